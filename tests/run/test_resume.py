"""A run that is killed or told to stop goes on with the same command, and ends with the same bits."""

from __future__ import annotations

import itertools
import os
import random
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from care_jax import train
from care_jax.configs import demo
from care_jax.run.stop import EXIT_CODE
from tests.end_to_end import (
    COLD_START,
    Fork,
    Forks,
    SmallTask,
    apply,
    assert_same_params,
    flags,
    metrics,
    saved_steps,
    small,
    train_steps,
)
from tests.marks import slow_but

STEPS, EVERY = 24, 4
_numbers = itertools.count()


class Stage(NamedTuple):
    """An entry point with its flags, and the folder of a run that nothing interrupted."""

    forks: Forks
    module: str
    flags: list[str]
    steps: int
    expected: Path

    def start(self, workdir: Path) -> Fork:
        """Starts or resumes it in `workdir`."""
        logs = workdir.with_name(f"{workdir.name}_log_{next(_numbers)}")
        return self.forks.start(logs, self.module, f"--workdir={workdir}", *self.flags)

    def finish(self, workdir: Path) -> None:
        """Runs it to its end."""
        ended = self.start(workdir).finish()
        assert ended.returncode == 0, ended.stderr


@pytest.fixture(scope="module")
def forks(small_task: SmallTask) -> Iterator[Forks]:
    """Processes that have imported both commands."""
    with Forks("care_jax.cold_start", "care_jax.train", cache=small_task.cache) as forks:
        yield forks


@pytest.fixture(scope="module")
def cold_start(small_task: SmallTask, forks: Forks) -> Stage:
    """The cold start on the small task."""
    overrides = small(small_task.model, small_task.data, **COLD_START)
    arguments = ["--config=configs/demo.py:cold_start", *flags(overrides)]
    return Stage(forks, "care_jax.cold_start", arguments, COLD_START["train__steps"], small_task.cold_start)


def _care(small_task: SmallTask, forks: Forks, expected: Path, steps: int, **changes: Any) -> Stage:
    """CARE on the small task, once run without an interruption."""
    overrides = small(
        small_task.model,
        small_task.data,
        model__weights=str(small_task.cold_start),
        train__steps=steps,
        train__checkpoint_every=EVERY,
        train__eval_every=EVERY,
        optimizer__lr=1e-3,
        data__turns_if_all_correct=0.5,
        data__turns_if_all_wrong=0.5,
        **changes,
    )
    stage = Stage(forks, "care_jax.train", ["--config=configs/demo.py", *flags(overrides)], steps, expected)
    stage.finish(expected)
    return stage


@pytest.fixture(scope="module")
def care(small_task: SmallTask, forks: Forks, tmp_path_factory: pytest.TempPathFactory) -> Stage:
    """CARE on the small task, some steps of it."""
    return _care(small_task, forks, tmp_path_factory.mktemp("uninterrupted") / "run", STEPS)


# The moments of a kill: what a run folder shows of the process that was started at `since` (ns) on it.
def _starting(workdir: Path, since: int) -> bool:
    return True


def _opened(workdir: Path, since: int) -> bool:
    """Restored, and compiling: nothing is written between the manifest and the first step."""
    manifest = workdir / "manifest.json"
    return manifest.exists() and manifest.stat().st_mtime_ns > since


def _past_a_step(workdir: Path, since: int) -> bool:
    return _opened(workdir, since) and train_steps(workdir)[-1:] > saved_steps(workdir)[-1:]


def _evaluating(workdir: Path, since: int) -> bool:
    rows = metrics(workdir)
    return _past_a_step(workdir, since) and "loss" in rows[-1] and rows[-1]["step"] % EVERY == 0


def _saving(workdir: Path, since: int) -> bool:
    folder = workdir / "checkpoints"
    return _past_a_step(workdir, since) and any(not child.name.isdigit() for child in folder.iterdir())


MOMENTS = (_starting, _opened, _past_a_step, _evaluating, _saving)


def _signal_when(
    process: Fork, number: int, moment: Callable[[Path, int], bool], workdir: Path, delay: float = 0.0
) -> bool:
    """Sends the signal at the moment and some seconds more; False where the process had ended before."""
    since = time.time_ns()
    while not moment(workdir, since):
        if process.poll() is not None:
            return False
        time.sleep(0.003)
    time.sleep(delay)
    if process.poll() is not None:
        return False
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
    events = "events.jsonl"
    assert (workdir / events).read_bytes() == (stage.expected / events).read_bytes()
    # A checkpoint that a kill cut off is neither taken for a whole one nor left lying about.
    assert all(child.name.isdigit() for child in (workdir / "checkpoints").iterdir())


def _survive(stage: Stage, workdir: Path, num_kills: int, seed: int) -> list[str]:
    """Kills a run at random moments, then lets it end; says when it was killed and by what."""
    rng, told = random.Random(seed), []
    for _ in range(num_kills):
        moment, number = rng.choice(MOMENTS), rng.choice((signal.SIGKILL, signal.SIGTERM))
        # Of a start that takes seconds, and of steps that take a fraction of one.
        delay = rng.uniform(0, 4) if moment is _starting else rng.choice((0, rng.uniform(0, 0.3)))
        process = stage.start(workdir)
        assert _signal_when(process, number, moment, workdir, delay), (told, process.finish().stderr)
        ended = process.finish()
        told.append(f"{number.name} {moment.__name__} +{delay:.2f} s: {ended.returncode}")
        if number == signal.SIGKILL:
            assert ended.returncode == -signal.SIGKILL, (told, ended.stderr)
            continue
        # Before it can know what to do with it, SIGTERM just ends it; after the last evaluation nothing is left to do.
        assert ended.returncode in (0, EXIT_CODE, -signal.SIGTERM), (told, ended.stderr)
        if ended.returncode != -signal.SIGTERM:
            saved = saved_steps(workdir)[-1:]
            assert train_steps(workdir)[-1:] == saved, told
            line = f"stopped at {saved[0] if saved else 0} of {stage.steps}; run again to resume"
            assert (line in ended.stderr.splitlines()) == (ended.returncode == EXIT_CODE), (told, ended.stderr)
    stage.finish(workdir)
    _assert_as_uninterrupted(stage, workdir)
    return told


@pytest.mark.slow
def test_care_survives_kills(care: Stage, tmp_path: Path) -> None:
    """Catches lost or repeated steps and data, random keys that restart, and half-written checkpoints taken for whole.

    One run is killed by SIGKILL and SIGTERM while it starts, compiles, samples, evaluates and saves.
    """
    print(*_survive(care, tmp_path / "run", num_kills=5, seed=2), sep="\n")


@pytest.mark.chaos
@pytest.mark.parametrize("seed", range(3))
def test_care_survives_twenty_kills(small_task: SmallTask, forks: Forks, tmp_path: Path, seed: int) -> None:
    """Many kills, and each seed at other moments."""
    stage = _care(small_task, forks, tmp_path / "uninterrupted", steps=60)
    print(*_survive(stage, tmp_path / "run", num_kills=20, seed=seed), sep="\n")


@pytest.mark.slow
def test_adapters_survive_kills(small_task: SmallTask, forks: Forks, tmp_path: Path) -> None:
    """Catches a base that is loaded from elsewhere or anew at random, and adapters that are drawn again."""
    changes = {"model__lora__rank": 2, "model__compute_dtype": "bfloat16", "objective__kl_coef": 1e-2}
    stage = _care(small_task, forks, tmp_path / "uninterrupted", 12, **changes)
    print(*_survive(stage, tmp_path / "run", num_kills=2, seed=5), sep="\n")


@pytest.mark.parametrize("stage", slow_but(["care"], ["care", "cold_start"]))
def test_a_stage_survives_a_kill(request: pytest.FixtureRequest, stage: str, tmp_path: Path) -> None:
    """Catches the same in both loops, with one kill, while a checkpoint is written."""
    killed, workdir = request.getfixturevalue(stage), tmp_path / "run"
    process = killed.start(workdir)
    assert _signal_when(process, signal.SIGKILL, _saving, workdir), process.finish().stderr
    process.finish()
    killed.finish(workdir)
    _assert_as_uninterrupted(killed, workdir)


def test_turns_are_passed_over(care: Stage) -> None:
    """Catches outcomes that do not reach the data: the options of `care` leave half of a uniform group's turns."""
    assert sum(row.get("data/num_passed_over", 0) for row in metrics(care.expected)) > 0


def test_finished_run_does_nothing(care: Stage, tmp_path: Path) -> None:
    """Catches a finished run that trains on, evaluates again or writes its checkpoint anew."""
    workdir = shutil.copytree(care.expected, tmp_path / "run")
    watched = [workdir / name for name in ("metrics.jsonl", "events.jsonl", "samples.jsonl", "held_out.jsonl")]
    before = [path.read_bytes() for path in watched]
    written = os.stat(workdir / "checkpoints" / str(STEPS)).st_mtime_ns
    ended = care.start(workdir).finish()
    assert ended.returncode == 0, ended.stderr
    assert f"{workdir} is finished: step {STEPS} of {STEPS}; raise train.steps to train on" in ended.stderr
    assert [path.read_bytes() for path in watched] == before
    assert saved_steps(workdir)[-1] == STEPS
    assert os.stat(workdir / "checkpoints" / str(STEPS)).st_mtime_ns == written


def test_a_run_goes_on_without_the_weights_it_began_with(cached: SmallTask, tmp_path: Path) -> None:
    """Catches a resumed run that needs the initial weights, which its own checkpoints have replaced."""
    weights = shutil.copytree(cached.cold_start, tmp_path / "weights")
    changes = {"model__weights": str(weights), "train__steps": 2, "train__checkpoint_every": 1}
    config = apply(demo.get_config(), small(cached.model, cached.data, **changes))
    train.run(config, tmp_path / "run")
    shutil.rmtree(weights)
    config.train.steps = 3
    train.run(config, tmp_path / "run")
    assert train_steps(tmp_path / "run") == [1, 2, 3]


@pytest.mark.slow
def test_a_run_goes_on_from_the_checkpoint_before_a_damaged_one(care: Stage, tmp_path: Path) -> None:
    """Catches metrics, events or an evaluation past the older checkpoint that stay, and so come twice."""
    workdir = shutil.copytree(care.expected, tmp_path / "run")
    (workdir / "checkpoints" / str(STEPS) / "params" / "manifest.ocdbt").write_bytes(b"")
    ended = care.start(workdir).finish()
    assert ended.returncode == 0, ended.stderr
    assert ended.stderr.count(f"step {STEPS} is damaged") == 1, ended.stderr
    assert f"\nresuming from step {STEPS - EVERY}\n" in ended.stderr
    shutil.rmtree(workdir / "checkpoints" / f"{STEPS}.damaged")
    _assert_as_uninterrupted(care, workdir)


def test_another_stages_folder_is_refused(care: Stage, cold_start: Stage, tmp_path: Path) -> None:
    """Catches a cold start's checkpoints taken for those of the training."""
    workdir = shutil.copytree(cold_start.expected, tmp_path / "run")
    ended = care.start(workdir).finish()
    assert ended.returncode == 2
    assert "'cold_start'" in ended.stderr
