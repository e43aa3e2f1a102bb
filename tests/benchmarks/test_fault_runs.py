"""The section "runs" of benchmarks.faults: some of its damages, and that it would see a wrong resumption."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks.faults import runs
from benchmarks.faults.damage import ANY_FILE, damaged_files
from benchmarks.faults.outcomes import Outcome, run_case, run_cases
from care_jax.run import metrics_writer


@pytest.mark.slow
def test_damaged_run_folders_are_resumed_rightly_or_refused(tmp_path: Path) -> None:
    """Catches a traceback, or a run that goes on from something else than what json and NumPy read."""
    results = list(run_cases(runs.runs(tmp_path, 8, 5)))
    assert len(results) == 8
    assert {result.outcome for result in results} <= {Outcome.RIGHT, Outcome.REFUSED}, results


@pytest.mark.slow
def test_a_wrong_resumption_is_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches a section that counts whatever happens as right."""
    past = b'{"step": 1}\n{"step": 9}\n'
    monkeypatch.setattr(runs, "damaged_files", lambda *_: [("a line of step 9", "events.jsonl", past)])
    (case,) = runs.runs(tmp_path, 1, 0)
    monkeypatch.setattr(metrics_writer, "cut_after", lambda path, step: None)
    assert run_case(case).outcome == Outcome.WRONG


def test_every_damage_of_every_file_comes_before_one_comes_twice() -> None:
    """Catches a damage that is never tried, and one that leaves each file as it was."""
    sound = {"a.json": b'{"x": {"y": [1, 2]}}\n', "b.jsonl": b'{"step": 1}\n{"step": 2}\n', "c": b"abc"}
    cases = list(damaged_files(sound, 400, 0))
    names = [name.partition(" (")[0] for name, _, _ in cases]
    once = names[: len(set(names))]
    assert len(set(once)) == len(once)
    assert {f"{file} {kind}" for file in sound for kind in ANY_FILE} < set(once)
    assert {"a.json retyped", "a.json unset", "a.json renamed", "b.jsonl a line retyped"} < set(once)
    unchanged = [name for name, file, data in cases if data == sound[file]]
    assert len(unchanged) < len(cases) / 50, unchanged
    assert list(damaged_files(sound, 400, 0)) == cases
    assert json.loads(next(data for name, _, data in cases if name.startswith("c null"))) is None
