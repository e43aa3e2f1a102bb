"""The section of broken model folders, and that it tells a wrong reading from a right one."""

from __future__ import annotations

from pathlib import Path

import jax
import pytest

from benchmarks.faults import models
from benchmarks.faults.outcomes import Case, Outcome, run_case
from care_jax.checkpoints.load import load_params
from tests.marks import slow_but


@pytest.fixture(params=slow_but(["qwen3_vl"], models.MODEL_TYPES))
def sound(request, tmp_path) -> dict[str, bytes]:
    """The files of a sound folder of each family."""
    folder = models.write_tiny(tmp_path / "sound", request.param)
    return {path.name: path.read_bytes() for path in models.write_weights(folder).iterdir()}


def outcome(folder: Path, files: dict[str, bytes], reader) -> str:
    """Writes a folder with these files and returns the outcome of using it."""
    return run_case(Case("made", lambda: models.is_used_rightly(folder, files, reader))).outcome


def _negated(folder: Path) -> dict[str, jax.Array]:
    return {name: -param for name, param in load_params(folder).items()}


def test_a_sound_folder_is_right(sound, tmp_path):
    """Catches an independent reading that agrees with nothing, so that every damage counts as refused or wrong."""
    for reader in (models.prompts_are_right, models.weights_are_right):
        assert outcome(tmp_path / "used", sound, reader) is Outcome.RIGHT


def test_a_wrong_reading_is_seen(sound, tmp_path, monkeypatch):
    """Catches a section whose cases cannot be wrong: other stop ids, and weights that another conversion wrote."""
    monkeypatch.setattr("care_jax.inputs.tokenizer.all_stop_ids", lambda folder, end_id, eos: (272,))
    assert outcome(tmp_path / "used", sound, models.prompts_are_right) is Outcome.WRONG
    monkeypatch.setattr(
        "benchmarks.faults.models.load_params", lambda out: {k: -x for k, x in load_params(out).items()}
    )
    assert outcome(tmp_path / "used", sound, models.weights_are_right) is Outcome.WRONG


@pytest.mark.slow
def test_damaged_files_are_right_or_refused(tmp_path):
    """Catches a traceback of a reader; a few of the cases, the benchmark runs all."""
    results = [run_case(case) for case in models.model_folders(tmp_path, 12, seed=3)]
    assert len(results) >= 12
    assert not [result for result in results if result.outcome in {Outcome.TRACEBACK, Outcome.WRONG}]
