"""A run that is killed or told to stop goes on with the same command, and ends with the same bits."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.end_to_end import (
    COLD_START,
    SmallTask,
    assert_same_params,
    finish,
    flags,
    metrics,
    run,
    saved_steps,
    small,
    start,
    train_steps,
)

STEPS, EVERY = 16, 4


class Stage(NamedTuple):
    """An entry point with its flags, and the folder of a run that nothing interrupted."""

    module: str
    flags: list[str]
    cache: Path
    steps: int
    expected: Path

    def start(self, workdir: Path) -> subprocess.Popen[str]:
        return start(self.module, f"--workdir={workdir}", *self.flags, cache=self.cache)


@pytest.fixture(scope="module")
def cold_start(small_task: SmallTask) -> Stage:
    overrides = small(small_task.model, small_task.data, **COLD_START)
    arguments = ["--config=configs/demo_cold_start.py", *flags(overrides)]
    return Stage("care_jax.cold_start", arguments, small_task.cache, COLD_START["train__steps"], small_task.cold_start)


@pytest.fixture(scope="module")
def care(small_task: SmallTask, tmp_path_factory: pytest.TempPathFactory) -> Stage:
    overrides = small(
        small_task.model,
        small_task.data,
        model__weights=str(small_task.cold_start),
        train__steps=STEPS,
        train__checkpoint_every=EVERY,
        train__eval_every=EVERY,
        optimizer__lr=1e-3,
    )
    expected = tmp_path_factory.mktemp("uninterrupted") / "run"
    stage = Stage("care_jax.train", ["--config=configs/demo.py", *flags(overrides)], small_task.cache, STEPS, expected)
    ended = finish(stage.start(expected))
    assert ended.returncode == 0, ended.stderr
    return stage


# The moments of a kill: conditions on the run folder, from the start of a run to past its first checkpoint.
def _opened(workdir: Path) -> bool:
    return (workdir / "manifest.json").exists()


def _under_way(workdir: Path) -> bool:
    return bool(saved_steps(workdir)) and train_steps(workdir)[-1] > saved_steps(workdir)[-1]


def _saving(workdir: Path) -> bool:
    folder = workdir / "checkpoints"
    return folder.is_dir() and any(not child.name.isdigit() for child in folder.iterdir())


def _signal_when(process: subprocess.Popen[str], number: int, moment: Callable[[Path], bool], workdir: Path) -> bool:
    """Sends the signal at the moment; False where the process had ended before."""
    while not moment(workdir):
        if process.poll() is not None:
            return False
        time.sleep(0.001)
    process.send_signal(number)
    return True


def _assert_as_uninterrupted(stage: Stage, workdir: Path) -> None:
    assert train_steps(workdir) == list(range(1, stage.steps + 1))
    evaluated = [row["step"] for row in metrics(workdir) if "eval/accuracy/mean" in row]
    assert evaluated == [row["step"] for row in metrics(stage.expected) if "eval/accuracy/mean" in row]
    assert_same_params(workdir, stage.expected)
    assert [row["loss"] for row in metrics(workdir) if "loss" in row] == [
        row["loss"] for row in metrics(stage.expected) if "loss" in row
    ]


def test_care_survives_kills(care: Stage, tmp_path: Path) -> None:
    """Catches lost or repeated steps and data, random keys that restart, and half-written checkpoints taken for whole.

    One run is killed while it compiles, while it writes a checkpoint, and while it trains past one.
    """
    workdir = tmp_path / "run"
    for moment in (_opened, _saving, _under_way):
        process = care.start(workdir)
        assert _signal_when(process, signal.SIGKILL, moment, workdir), finish(process).stderr
        assert finish(process).returncode == -signal.SIGKILL
    ended = finish(care.start(workdir))
    assert ended.returncode == 0, ended.stderr
    _assert_as_uninterrupted(care, workdir)
    events = (workdir / "events.jsonl").read_text().splitlines()
    assert events == (care.expected / "events.jsonl").read_text().splitlines()


def test_cold_start_survives_a_kill(cold_start: Stage, tmp_path: Path) -> None:
    """Catches the same in the other loop."""
    workdir = tmp_path / "run"
    process = cold_start.start(workdir)
    assert _signal_when(process, signal.SIGKILL, _under_way, workdir), finish(process).stderr
    finish(process)
    ended = finish(cold_start.start(workdir))
    assert ended.returncode == 0, ended.stderr
    _assert_as_uninterrupted(cold_start, workdir)


def test_sigterm_saves_and_leaves(care: Stage, tmp_path: Path) -> None:
    """Catches a preemption notice that loses steps, takes long, or counts as a failure."""
    workdir = tmp_path / "run"
    process = care.start(workdir)
    assert _signal_when(process, signal.SIGTERM, _under_way, workdir), finish(process).stderr
    told = time.monotonic()
    ended = finish(process)
    assert ended.returncode == 0, ended.stderr
    assert time.monotonic() - told < 20  # seconds on a loaded machine
    last = train_steps(workdir)[-1]
    assert saved_steps(workdir)[-1] == last < STEPS
    ended = finish(care.start(workdir))
    assert ended.returncode == 0, ended.stderr
    _assert_as_uninterrupted(care, workdir)


def test_finished_run_does_nothing(care: Stage, tmp_path: Path) -> None:
    """Catches a finished run that trains on, evaluates again or writes its checkpoint anew."""
    workdir = shutil.copytree(care.expected, tmp_path / "run")
    watched = [workdir / name for name in ("metrics.jsonl", "events.jsonl", "samples.jsonl")]
    before = [path.read_bytes() for path in watched]
    written = os.stat(workdir / "checkpoints" / str(STEPS)).st_mtime_ns
    ended = finish(care.start(workdir))
    assert ended.returncode == 0, ended.stderr
    assert [path.read_bytes() for path in watched] == before
    assert saved_steps(workdir)[-1] == STEPS
    assert os.stat(workdir / "checkpoints" / str(STEPS)).st_mtime_ns == written


def test_another_stages_folder_is_refused(care: Stage, cold_start: Stage, tmp_path: Path) -> None:
    """Catches a cold start's checkpoints taken for those of the training."""
    workdir = shutil.copytree(cold_start.expected, tmp_path / "run")
    ended = run(care.module, f"--workdir={workdir}", *care.flags, cache=care.cache)
    assert ended.returncode == 2 and "'cold_start'" in ended.stderr
