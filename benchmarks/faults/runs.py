"""Damaged run folders: what a run does that resumes in one, file by file.

A small run's folder has each file that a run writes, the checkpoints' included. Right is: the state of the checkpoint
that is used, bit for bit, with the data position that belongs to it; and of the lines of metrics, events, samples and
held_out.jsonl those that json alone can read, up to that step.
"""

from __future__ import annotations

import contextlib
import functools
import io
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from etils import epath

from benchmarks.faults.damage import damaged_files
from benchmarks.faults.outcomes import Case
from benchmarks.made_model import write_folder
from care_jax import models
from care_jax.checkpoints.checkpointer import Checkpointer
from care_jax.data import loader
from care_jax.run import history, manifest
from care_jax.run.folder import CONFIG_FILE, EVENTS_FILE, HELD_OUT_FILE, MANIFEST_FILE, METRICS_FILE, SAMPLES_FILE
from care_jax.run.metrics_writer import MetricsWriter
from care_jax.run.session import BEST_METRIC
from care_jax.stages.train_state import TrainState

STAGE, STEPS = "train", (1, 2)  # a checkpoint each
SETTINGS = {
    "seed": 0,
    "train.steps": 4,
    "optimizer.lr": 1e-3,
    "data.prompt_buckets": [28],
    "content of data.train": "0af1",
    "content of data.eval": "77bc",
    "content of model.folder/config.json": "9e00",
}
_LINES = (METRICS_FILE, EVENTS_FILE, SAMPLES_FILE, HELD_OUT_FILE)


class _Numbers:
    """Records that are numbers."""

    def __len__(self) -> int:
        return 23

    def __getitem__(self, index: int) -> int:
        return range(23)[index]


def _iterator() -> Any:
    return loader.make_train_iterator(_Numbers(), lambda number: number, batch_size=4, seed=0)  # type: ignore[arg-type]


def runs(folder: Path, num_cases: int, seed: int) -> Iterator[Case]:
    """A case for each damage; see the module."""
    states = _states(folder / "model")
    sound = _write_run(folder / "sound", states)
    contents = {str(path.relative_to(sound)): path.read_bytes() for path in sorted(sound.rglob("*")) if path.is_file()}
    # This compiles what the cases use, which have a time limit.
    if not _resume(folder / "run", sound, MANIFEST_FILE, contents[MANIFEST_FILE], states):
        raise RuntimeError("a run that nothing has damaged is not resumed rightly")
    for name, file, data in damaged_files(contents, num_cases, seed):
        yield Case(name, functools.partial(_resume, folder / "run", sound, file, data, states))


def _states(model_folder: Path) -> dict[int, TrainState]:
    """A state for each step, in which every array differs."""
    config = models.load_model_config(write_folder(model_folder, num_layers=1, width=64, vocab_size=512))
    model, adam = models.init_model(config, jax.random.key(0)), optax.adam(1e-3)

    def at(step: int) -> TrainState:
        params = jax.tree.map(lambda x: x + jnp.float32(step), model)
        opt_state = jax.tree.map(lambda x: x + jnp.asarray(step, x.dtype), adam.init(model))
        return TrainState(step=jnp.int32(step), params=params, opt_state=opt_state)

    return {step: at(step) for step in (0, *STEPS)}


def _write_run(workdir: Path, states: dict[int, TrainState]) -> Path:
    """A run that was stopped after its last checkpoint."""
    writer, iterator = MetricsWriter(workdir, resume_step=-1), _iterator()
    checkpointer = Checkpointer(workdir, keep_last=2, best_metric=BEST_METRIC)
    for step in STEPS:
        next(iterator)
        scores = {BEST_METRIC: 0.5}
        writer.scalars(step, {"loss": 0.5 / step, **scores})
        writer.events(step, [{"id": f"q{step}", "outcome": "MIXED"}])  # type: ignore[typeddict-item]
        writer.samples(step, [{"id": f"q{step}", "prompt": "<image>?"}])  # type: ignore[typeddict-item]
        writer.held_out(step, [{"index": step, "id": f"t{step}", "correct": True}])  # type: ignore[typeddict-item]
        checkpointer.save(states[step], iterator, scores)
    checkpointer.close()
    writer.close()
    shutil.rmtree(workdir / "tensorboard")  # of which a run reads nothing
    folder = epath.Path(workdir)
    history.write(folder, SETTINGS, step=0)
    for name, values in (
        (CONFIG_FILE, {"seed": 0, "train": {"steps": 4}}),
        (MANIFEST_FILE, {"stage": STAGE, "seed": 0}),
    ):
        (workdir / name).write_text(json.dumps(values, indent=1) + "\n")
    return workdir


def _resume(workdir: Path, sound: Path, name: str, data: bytes, states: dict[int, TrainState]) -> bool:
    """Resumes in a copy of the run with one other file, as a session does; True if what it goes on with is right."""
    shutil.copytree(sound, workdir)
    (workdir / name).write_bytes(data)
    folder, iterator = epath.Path(workdir), _iterator()
    try:
        with contextlib.redirect_stderr(io.StringIO()):
            manifest.require_stage(folder, STAGE)
            history.require_same_run(folder, SETTINGS, allow_change=False)
            with contextlib.closing(Checkpointer(workdir, keep_last=2, best_metric=BEST_METRIC)) as checkpointer:
                state = checkpointer.restore(states[0], iterator)
            if state is None:
                return False
            step = int(state.step)
            history.write(folder, SETTINGS, step=step)
            writer = MetricsWriter(workdir, resume_step=step)
            writer.first_verdicts()
            writer.close()
        position = iterator.get_state()
        return (
            _equal(state, states[step])
            and position == {"positions": [4 * step + row for row in range(4)]}
            and all(_same_lines(workdir / file, sound / file, data if file == name else None, step) for file in _LINES)
            and writer.evaluated_steps == set(_steps(workdir / METRICS_FILE))
        )
    finally:
        shutil.rmtree(workdir)


def _equal(state: TrainState, wanted: TrainState) -> bool:
    pairs = zip(jax.tree.leaves(state), jax.tree.leaves(wanted), strict=True)
    return all(np.array_equal(ours, theirs) for ours, theirs in pairs)


def _same_lines(path: Path, sound: Path, damaged: bytes | None, step: int) -> bool:
    """True if `path` has those lines of what was there that are objects with a step up to `step`."""
    before = sound.read_bytes() if damaged is None else damaged
    wanted = [row for row in map(_read, before.split(b"\n")) if row is not None and row["step"] <= step]
    return [_read(line) for line in path.read_bytes().splitlines()] == wanted


def _read(line: bytes) -> dict[str, Any] | None:
    with contextlib.suppress(ValueError, RecursionError):
        row = json.loads(line.decode())
        if isinstance(row, dict) and type(row.get("step")) is int:
            return row
    return None


def _steps(path: Path) -> list[int]:
    rows = map(_read, path.read_bytes().splitlines())
    return [row["step"] for row in rows if row is not None and any(key.startswith("eval/") for key in row)]
