"""The verifier benchmark at a tiny size."""

from __future__ import annotations

import json

import pytest

from benchmarks import verify
from care_jax.rewards.verifiers import ANSWER_KINDS


def test_every_kind_is_timed_and_the_last_line_is_json(capsys: pytest.CaptureFixture[str]) -> None:
    """Catches a benchmark whose answers are all refused, that leaves a kind out, or prints after its figures."""
    figures = verify.main(["--items", "40", "--repeats", "1"])
    assert json.loads(capsys.readouterr().out.splitlines()[-1]) == figures
    assert figures["verdicts_per_s"] > 0
    assert list(figures["pool_verdicts_per_s"]) == list(verify.KINDS)
    assert set(verify.KINDS) == set(ANSWER_KINDS)


def test_wrong_verdicts_are_not_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches a rate of a pool that says yes to everything, or to nothing."""
    always = verify.make_items("integer", 1) * 10
    monkeypatch.setattr(verify, "make_items", lambda kind, count: always)
    with pytest.raises(ValueError, match="not those that the answers were made for"):
        verify.main(["--items", "10", "--repeats", "1"])


def test_bad_arguments_end_with_code_2() -> None:
    """Catches a division by zero in place of a message."""
    with pytest.raises(SystemExit) as caught:
        verify.main(["--items", "0"])
    assert caught.value.code == 2
