"""The values of a step: host copies are fresh, fetched once, and device memory is given up when it should be."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from care_jax.stages.compiled import EVERY_BUCKET
from care_jax.structs import Prompts, zeros
from care_jax.train import Values


@pytest.fixture
def calls() -> list[tuple[str, Any]]:
    """The waits, fetches and puts, in order."""
    return []


@pytest.fixture
def values(calls: list[tuple[str, Any]]) -> Values:
    """A step that begins with a state; host stages take `rollouts`, the log reads `scores` too."""

    def fetch(name: str, value: Any) -> str:
        calls.append(("fetch", name))
        return f"{value} on the host"

    stages: Any = SimpleNamespace(
        taken_by_host={"rollouts"}, read_by_host={"rollouts", "scores", "judged"}, fetch=fetch
    )
    supervisor = SimpleNamespace(wait=lambda value: calls.append(("wait", value)))
    session: Any = SimpleNamespace(supervisor=supervisor, put=lambda value: calls.append(("put", value)) or "put")
    return Values(stages, session, {"state": 0}, {"reflection": "none"})


def test_a_value_that_is_given_again_is_fetched_again(values: Values, calls: list[tuple[str, Any]]) -> None:
    """Catches a log that shows a batch as it was before the reference policy's log-probs."""
    values.give({"scores": "old"})
    assert values.on_host("scores") == "old on the host"
    assert values.on_host("scores") == "old on the host"
    assert calls == [("wait", "old"), ("fetch", "scores")]
    values.give({"scores": "new"})
    assert values.on_host("scores") == "new on the host"


def test_host_stages_find_their_values_fetched(values: Values, calls: list[tuple[str, Any]]) -> None:
    """Catches seconds of a copy that count under the next clock, and a wait for nothing: each asks all processes."""
    values.settle({})
    assert calls == []
    given = {"rollouts": "r", "scores": "s"}
    values.give(given)
    values.settle(given)
    assert calls == [("wait", given), ("fetch", "rollouts")]
    assert values.on_host("rollouts") == "r on the host"
    assert len(calls) == 2


def test_a_freed_value_is_kept_for_the_log_alone(values: Values, calls: list[tuple[str, Any]]) -> None:
    """Catches a log without its figures, device memory that nobody gives up, and copies that nobody reads."""
    values.give({"scores": "s", "prefix": "p"})
    values.free(["scores", "prefix", "never given"])
    assert values.on_devices == {"state": 0}
    assert calls == [("fetch", "scores")]
    assert values.on_host("scores") == "s on the host"


def test_the_host_keeps_what_it_reads_of_a_host_stage(values: Values) -> None:
    """Catches a batch of pictures that stays in the host's memory to the end of a step."""
    assert values.bucket == EVERY_BUCKET
    prompts = zeros(Prompts, B=2, P=8, I=16, F=3, X=0)
    values.give_host({"prompts": prompts, "judged": "j"}, put=["prompts"])
    assert values.bucket == (8, 16)
    assert values.on_devices["prompts"] == "put"
    assert values.on_host("judged") == "j"
    assert "prompts" not in values._on_host
