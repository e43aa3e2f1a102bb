"""Signs of a collapse, from metrics made by hand."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from care_jax.run.collapse import CollapseWatch

HEALTHY = {"response_len/mean": 24.0, "entropy": 0.08, "groups/no_gradient": 0.5}
STUDY = Path(__file__).parents[2] / "docs" / "study" / "runs.jsonl"


def follow(watch: CollapseWatch, first: int, count: int, **changes: float) -> dict[str, float]:
    """Gives the watch `count` steps of healthy metrics with `changes`; returns what the last shows."""
    found: dict[str, float] = {}
    for step in range(first, first + count):
        found = watch.look(step, HEALTHY | {name.replace("__", "/"): value for name, value in changes.items()})
    return found


@pytest.mark.parametrize(
    ("sign", "changes", "told"),
    [
        ("length", {"response_len__mean": 13.0}, "step 24: responses have 17.4 tokens and had 24.0 at the start"),
        ("entropy", {"entropy": 0.001}, "step 27: entropy is 0.0089 nats a token and was 0.08 at the start"),
        ("no_gradient", {"groups__no_gradient": 0.98}, "step 27: 93% of the groups give no gradient"),
    ],
)
def test_a_collapse_is_told_once(
    sign: str, changes: dict[str, float], told: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Catches a rationale that shrinks from 24 to 13 tokens without a word, and a warning at every step."""
    watch = CollapseWatch()
    assert not any(follow(watch, 1, 18).values())
    found = follow(watch, 19, 20, **changes)
    assert found == {f"collapse/{name}": float(name == sign) for name in ("length", "entropy", "no_gradient")}
    assert watch.signs == (sign,)
    (line,) = [record.getMessage() for record in caplog.records]
    assert line.startswith(told)
    assert not any(follow(watch, 39, 10).values())  # it has recovered


def test_a_run_that_resumes_shows_the_same() -> None:
    """Catches a resumed run that takes its collapsed steps for the start."""
    rows: list[dict[str, float]] = [HEALTHY] * 10 + [HEALTHY | {"response_len/mean": 13.0}] * 9
    watch = CollapseWatch([{"step": 0, "eval/accuracy/mean": 0.5}, *rows, {**HEALTHY, "entropy": None}])
    assert follow(watch, 20, 1, response_len__mean=13.0)["collapse/length"] == 1.0


def test_a_value_that_is_not_finite_is_passed_over() -> None:
    """Catches a NaN among the first steps, after which nothing is a collapse until the run resumes without it."""
    watch = CollapseWatch()
    follow(watch, 1, 1, entropy=float("nan"))
    follow(watch, 2, 10)
    assert follow(watch, 12, 10, entropy=0.001)["collapse/entropy"] == 1.0


def test_no_run_of_the_study_is_a_collapse() -> None:
    """Catches bounds that cry wolf: the study's curves are means of several steps each, of healthy runs."""
    num_runs = 0
    for line in STUDY.read_text().splitlines():
        curves = json.loads(line).get("curves") or {}
        if "entropy" not in curves or "response_len/mean" not in curves:
            continue
        num_runs += 1
        watch = CollapseWatch()
        for step, (length, entropy) in enumerate(zip(curves["response_len/mean"], curves["entropy"], strict=True)):
            watch.look(step, {"response_len/mean": length[1], "entropy": entropy[1]})
            assert watch.signs == ()
    assert num_runs > 100
