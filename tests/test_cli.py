"""Bad input: one clear line, exit code 2, no traceback, and nothing written."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.end_to_end import flags, run, small, write_small_model, write_squares

TRAIN, EVALUATE = "care_jax.train", "care_jax.evaluate"


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small model and data, which every case below spoils in one point."""
    folder = tmp_path_factory.mktemp("cli")
    write_small_model(folder / "model")
    write_squares(folder / "data")
    return folder


# What is asked for, changes to it, and what the line must say.
CASES = {
    "unknown key": (TRAIN, {"train.stepz": 3}, ["stepz", "steps"]),
    "bad value": (TRAIN, {"train.steps": 0}, ["train.steps=0", "at least 1"]),
    "not a number": (TRAIN, {"train.steps": "three"}, ["train.steps", "three"]),
    "unknown objective option": (TRAIN, {"objective.selector": "best"}, ["objective.selector", "farthest_first"]),
    "no model folder": (TRAIN, {"model.folder": "nowhere/model"}, ["nowhere/model", "Hugging Face"]),
    "no data": (TRAIN, {"data.train": "nowhere/train.jsonl"}, ["nowhere/train.jsonl", "JSON object a line"]),
    "no held-out data": (TRAIN, {"data.eval": "nowhere/eval.jsonl"}, ["nowhere/eval.jsonl", "JSON object a line"]),
    "no weights": (TRAIN, {"model.weights": "nowhere/run"}, ["nowhere/run", "checkpoint"]),
    "nothing to evaluate": (EVALUATE, {}, ["no finished checkpoint"]),
}


@pytest.mark.parametrize("case", CASES)
def test_one_line_and_exit_code_2(case: str, files: Path, tmp_path: Path) -> None:
    """Catches a traceback, a wrong exit code, a message without the culprit, and half a run folder."""
    module, changes, words = CASES[case]
    workdir = tmp_path / "run"
    overrides = small(files / "model", files / "data", model__weights="random") | changes
    ended = run(module, "--config=configs/demo.py", f"--workdir={workdir}", *flags(overrides), cache=files / "cache")
    _assert_refused(ended.returncode, ended.stderr, words)
    assert ended.stdout == "" and not workdir.exists()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--config=configs/demo.py"], ["--workdir"]),
        (["--workdir=run"], ["--config"]),
        (["--config=configs/demo.py", "--workdir=run", "extra"], ["extra"]),
        (["--config=configs/absent.py", "--workdir=run"], ["configs/absent.py"]),
        (["--config=configs/demo.py", "--workdir=run", "--stepz=3"], ["stepz"]),
    ],
)
def test_missing_and_unknown_flags(arguments: list[str], words: list[str], files: Path) -> None:
    """Catches absl's own help page, or a traceback, where a flag is wrong."""
    ended = run(TRAIN, *arguments, cache=files / "cache")
    _assert_refused(ended.returncode, ended.stderr, words)


def _assert_refused(code: int, stderr: str, words: list[str]) -> None:
    assert code == 2, stderr
    assert "Traceback" not in stderr
    lines = stderr.strip().splitlines()
    assert len(lines) == 1 and lines[0].startswith("error: "), stderr
    for word in words:
        assert word in lines[0]
