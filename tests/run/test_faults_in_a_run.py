"""Whole runs that meet a fault: how they end, what they say, and with which exit code."""

from __future__ import annotations

import itertools
import json
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.end_to_end import Forks, SmallTask, flags, metrics, small, train_steps
from tests.marks import slow_but

STEPS = 2
_numbers = itertools.count()


class Command:
    """The command of a short run of CARE, with changes."""

    def __init__(self, forks: Forks, task: SmallTask, logs: Path):
        """Starts nothing yet."""
        self._forks, self._task, self._logs = forks, task, logs

    def start(self, workdir: Path, *words: str, model: Path | None = None, data: Path | None = None, **changes: Any):
        """Starts or resumes the run in `workdir`; `words` are added to the command line."""
        given = {"train__steps": STEPS, "train__checkpoint_every": 1, "optimizer__lr": 1e-3, **changes}
        overrides = small(
            model or self._task.model, data or self._task.data, model__weights=str(self._task.cold_start), **given
        )
        arguments = ["--config=configs/demo.py", f"--workdir={workdir}", *flags(overrides), *words]
        return self._forks.start(self._logs / str(next(_numbers)), "care_jax.train", *arguments)

    def end(self, workdir: Path, *words: str, **changes: Any) -> tuple[int, str]:
        """Runs it to its end: the exit code and stderr."""
        ended = self.start(workdir, *words, **changes).finish()
        return ended.returncode, ended.stderr


@pytest.fixture(scope="module")
def command(small_task: SmallTask, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Command]:
    """The command."""
    with Forks("care_jax.train", cache=small_task.cache) as forks:
        yield Command(forks, small_task, tmp_path_factory.mktemp("logs"))


@pytest.fixture(scope="module")
def done(command: Command, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run that has ended."""
    workdir = tmp_path_factory.mktemp("done") / "run"
    code, told = command.end(workdir)
    assert code == 0, told
    return workdir


def contents(folder: Path) -> dict[str, bytes]:
    """All files but the lock."""
    files = (path for path in folder.rglob("*") if path.is_file() and path.name != ".lock")
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def other_golds(task: SmallTask, folder: Path) -> dict[str, Any]:
    """Writes the training data again, with the gold of one row changed."""
    data = shutil.copytree(task.data, folder / "data")
    text = (data / "train.jsonl").read_text()
    (data / "train.jsonl").write_text(text.replace('"answer": "1"', '"answer": "7"', 1))
    return {"data": data}


def other_held_out(task: SmallTask, folder: Path) -> dict[str, Any]:
    """One held-out row less."""
    data = shutil.copytree(task.data, folder / "data")
    lines = (data / "heldout.jsonl").read_text().splitlines(keepends=True)
    (data / "heldout.jsonl").write_text("".join(lines[1:]))
    return {"data": data}


def other_model(task: SmallTask, folder: Path) -> dict[str, Any]:
    """A wider model."""
    model = shutil.copytree(task.model, folder / "model")
    fields = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps(fields | {"intermediate_size": 2 * fields["intermediate_size"]}))
    return {"model": model}


REFUSED: dict[str, tuple[Callable[[SmallTask, Path], dict[str, Any]], str]] = {
    "golds": (other_golds, "the content of data.train has changed"),
    "held-out data": (other_held_out, "the content of data.eval has changed"),
    "model": (other_model, "the content of model.folder/config.json has changed"),
    "seed": (lambda *_: {"seed": 1}, "seed was 0 and is 1"),
    "objective": (lambda *_: {"objective__kl_coef": 0.5}, "objective.kl_coef was 0.0 and is 0.5"),
    "decay": (lambda *_: {"optimizer__weight_decay": 0.5}, "optimizer.weight_decay was 0.0 and is 0.5"),
    "steps": (lambda *_: {"train__steps": 1, "optimizer__warmup_steps": 0}, "train.steps=1 is below step 2"),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", REFUSED)
def test_another_run_is_refused(small_task: SmallTask, command: Command, done: Path, tmp_path: Path, name: str) -> None:
    """Catches a run that goes on with other data or settings as if it had always been so."""
    change, told = REFUSED[name]
    workdir = shutil.copytree(done, tmp_path / "run")
    before = contents(workdir)
    code, err = command.end(workdir, **{"train__steps": STEPS + 1} | change(small_task, tmp_path))
    lines = err.strip().splitlines()
    assert (code, len(lines)) == (2, 1), err
    assert told in lines[0]
    assert contents(workdir) == before


@pytest.mark.slow
def test_another_model_is_not_called_damaged(
    small_task: SmallTask, command: Command, done: Path, tmp_path: Path
) -> None:
    """Catches sound checkpoints that are called damaged, when the model is another one on purpose."""
    workdir = shutil.copytree(done, tmp_path / "run")
    changes = other_model(small_task, tmp_path)
    code, err = command.end(workdir, "--allow_change", train__steps=STEPS + 1, **changes)
    assert code == 2, err
    assert "holds another model: " in err
    assert "damaged" not in err
    assert train_steps(workdir) == [1, 2]


@pytest.mark.slow
def test_what_may_change_is_recorded_with_its_step(command: Command, done: Path, tmp_path: Path) -> None:
    """Catches a config that seems to have been so from the start, and an --allow_change that lets nothing through."""
    workdir = shutil.copytree(done, tmp_path / "run")
    code, err = command.end(
        workdir, "--allow_change", train__steps=STEPS + 1, optimizer__lr=5e-4, optimizer__weight_decay=0.5
    )
    assert code == 0, err
    changed = {"train.steps": 3, "optimizer.lr": 5e-4, "optimizer.weight_decay": 0.5}
    assert [line for line in err.splitlines() if line.startswith("changed from step 2 on: ")] == [
        "changed from step 2 on: optimizer.lr was 0.001 and is 0.0005",
        "changed from step 2 on: optimizer.weight_decay was 0.0 and is 0.5",
        "changed from step 2 on: train.steps was 2 and is 3",
    ]
    history = json.loads((workdir / "history.json").read_text())
    assert history["started"]["optimizer.lr"] == 1e-3
    assert [(change["step"], change["to"]) for change in history["changes"]] == [(2, changed)]
    assert train_steps(workdir) == [1, 2, 3]


@pytest.mark.slow
def test_numbers_that_are_not_finite_end_the_run_at_their_stage(command: Command, tmp_path: Path) -> None:
    """Catches a subgroup, a loss or a log that is computed from NaN, and a run that goes on with it."""
    workdir = tmp_path / "run"
    code, err = command.end(workdir, optimizer__lr=1e30, optimizer__warmup_steps=0, train__steps=4)
    assert code == 1, err
    assert "FloatingPointError: step 2, stage rollout: not finite: " in err
    assert " in logprobs" in err
    assert train_steps(workdir) == [1]


@pytest.mark.slow
def test_a_folder_that_is_deleted_ends_the_run(command: Command, tmp_path: Path) -> None:
    """Catches a run that goes on for days and ends with exit code 0, without config, metrics or checkpoints."""
    workdir = tmp_path / "run"
    process = command.start(workdir, train__steps=500, train__checkpoint_every=500)
    limit = time.monotonic() + 200
    while len(metrics(workdir)) < 3:
        assert process.poll() is None, process.finish().stderr
        assert time.monotonic() < limit
        time.sleep(0.02)
    workdir.rename(tmp_path / "gone")
    ended = process.finish()
    assert ended.returncode == 1, ended.stderr
    assert "the run folder was deleted, moved or replaced" in ended.stderr
    assert train_steps(tmp_path / "gone")[-1] < 500


@pytest.mark.parametrize("place", slow_but(["file/run"], ["file", "file/run", "/proc/run", "/dev/null"]))
def test_a_folder_that_cannot_be_written_is_refused(command: Command, tmp_path: Path, place: str) -> None:
    """Catches a traceback where one line says what to do."""
    (tmp_path / "file").write_text("")
    code, err = command.end(tmp_path / place)
    assert (code, len(err.strip().splitlines())) == (2, 1), err
    assert "--workdir=" in err
    assert (tmp_path / "file").read_text() == ""
