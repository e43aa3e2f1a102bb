"""What cold start and RL open first: the checked config, model, optimizer, data, checkpoints, metrics.

They share all of it and differ in the loss and in the loop, so a session knows neither.
"""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import importlib.metadata
import json
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import Any, TypeVar

import grain
import jax
import ml_collections
import numpy as np
import optax
from etils import epath
from jax.sharding import Mesh

from care_jax import config as config_lib
from care_jax import files
from care_jax.checkpoints.checkpointer import Checkpointer, Sums
from care_jax.data import loader
from care_jax.evaluate import Evaluator
from care_jax.inputs.processor import Processor
from care_jax.models import QwenVL, abstract_model
from care_jax.parallel import sharding
from care_jax.parallel.processes import exchange, is_alone, is_first, require_same, together
from care_jax.rewards.judge import Verifier
from care_jax.run.build import (
    make_mesh,
    make_model,
    make_model_config,
    make_processor,
    make_verifier,
    stage_key,
)
from care_jax.run.watchdog import Watchdog
from care_jax.run.writers import CompileGuard, MetricsWriter, StageTimer
from care_jax.stages.optimizer import make_optimizer, schedule_table
from care_jax.stages.train_state import TrainState, state_specs
from care_jax.structs import Record

BEST_METRIC = "eval/accuracy/mean"
MANIFEST_FILE = "manifest.json"
# A record as the stage needs it, or None to drop it.
Encoder = Callable[[Record], Any]
Arrays = TypeVar("Arrays")
_PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "transformers", "numpy")


class Stopped(Exception):
    """The run is to stop, and what it was about is to be given up."""


class StopFlag:
    """SIGTERM (a preemption notice) to any process: the loop polls it, saves and leaves with exit code 0.

    Several processes agree on it at every poll, so that all leave at the same place. Not with JAX's
    `reached_preemption_sync_point`: it counts its calls by one number, which Orbax sets to the training step at every
    save, and a notice that comes then is never told to who polls within a step.
    Of several flags, one inside the other, all are told; from `close` on the signal does what it did before.
    """

    def __init__(self) -> None:
        self.is_set = False
        self._is_told = False
        self._previous = signal.signal(signal.SIGTERM, self._on_signal)

    def _on_signal(self, signum: int, frame: FrameType | None) -> None:
        self._is_told = True
        if callable(self._previous):
            self._previous(signum, frame)

    def close(self) -> None:
        """Puts the earlier handler back."""
        signal.signal(signal.SIGTERM, self._previous)

    def poll(self) -> bool:
        """Whether to stop, the same on all processes; each has to ask equally often."""
        self.is_set = self.is_set or any(exchange(self._is_told))
        return self.is_set

    def wait(self, arrays: Any) -> None:
        """Until `arrays` are computed. A process that is alone leaves at once, whatever its device still does.

        Raises:
            Stopped: told to stop.
        """
        pause = 1e-4  # seconds
        while is_alone() and not all(x.is_ready() for x in jax.tree.leaves(arrays)):
            if self.poll():
                raise Stopped
            time.sleep(pause)
            pause = min(1.5 * pause, 0.02)
        jax.block_until_ready(arrays)
        if self.poll():
            raise Stopped


@dataclasses.dataclass
class Session:
    """Everything a loop works with."""

    config: ml_collections.ConfigDict
    workdir: epath.Path
    processor: Processor
    verifier: Verifier
    optimizer: optax.GradientTransformation
    state: TrainState
    iterator: grain.DatasetIterator[list[Any]]  # lists of what the stage's encoder makes of records
    encoder: loader.DropCounter
    evaluator: Evaluator
    checkpointer: Checkpointer
    writer: MetricsWriter
    guard: CompileGuard
    stop: StopFlag
    watchdog: Watchdog
    timer: StageTimer  # entering a stage raises Stopped when the run is to stop
    mesh: Mesh
    forbidden_mask: jax.Array  # [V] bool, ids that neither sampler nor scorer gives any weight
    lr: np.ndarray  # [updates of the run] float32, the schedule
    sums: Sums  # checksums of the state
    position: Any  # of the iterator, at this state

    @property
    def step(self) -> int:
        """Steps done."""
        return int(self.state.step)

    def has_ended(self) -> bool:
        """All steps are done, or a SIGTERM came."""
        return self.step >= self.config.train.steps or self.stop.poll()

    def advance(self, state: TrainState) -> None:
        """Makes `state` the run's; its step is done and will not be given up."""
        self.state = state
        # Now and not when it is saved: that may be while the device is at work on what has been given up.
        self.sums = self.checkpointer.checksums(state)
        self.position = self.iterator.get_state()

    def wait(self, arrays: Arrays) -> Arrays:
        """`arrays`, when they are computed; raises Stopped, at once on one process, when the run is to stop."""
        self.stop.wait(arrays)
        self.watchdog.beat()
        return arrays

    @contextlib.contextmanager
    def until_stopped(self) -> Iterator[None]:
        """Ends its block at a SIGTERM. The step under way is given up, and its prompts will come again."""
        try:
            yield
        except Stopped:
            self.iterator.set_state(self.position)

    @property
    def last_lr(self) -> float:
        """Learning rate of the newest update."""
        return float(self.lr[self.step * self.config.train.minibatches - 1])

    def key(self, stage: int) -> jax.Array:
        """The random key of a stage of the current step."""
        return stage_key(self.step, stage, seed=self.config.seed, mesh=self.mesh)

    def put(self, tree: Any) -> Any:
        """Host arrays whose leading axis is the prompt, to the devices."""
        return sharding.put(self.mesh, tree)

    def end_warm_up(self) -> None:
        """From here on nothing may compile; `guard.check` says so at every step."""
        stage_key(0, 0, seed=self.config.seed, mesh=self.mesh)
        self.guard.arm()

    def evaluate_if_due(self) -> dict[str, float] | None:
        """Evaluates before the first step, every train.eval_every steps and at the end; logs and returns the result.

        A run that resumes at a step it has already evaluated does not do it again. After a SIGTERM there is no time
        for it: the run that resumes does it.
        """
        config = self.config.train
        at_end = self.step == config.steps
        due = at_end or self.step == 0 or (config.eval_every > 0 and self.step % config.eval_every == 0)
        if not due or self.stop.is_set or self.step in self.writer.evaluated_steps:
            return None
        with self.timer("evaluate"):
            metrics = self.evaluator.run(self.state.params, limit=0 if at_end else config.eval_examples, wait=self.wait)
        self.writer.scalars(self.step, metrics | self.timer.take())
        self.writer.evaluated_steps.add(self.step)
        return metrics

    def checkpoint_if_due(self, metrics: dict[str, float] | None) -> None:
        """Saves every train.checkpoint_every steps, at the end, and when asked to stop.

        Where the last evaluation takes more records than the others it does not count for the best checkpoint.
        """
        config = self.config.train
        due = self.step == config.steps or self.step % config.checkpoint_every == 0 or self.stop.is_set
        if due and self.step > 0 and self.checkpointer.latest_step != self.step:
            self.watchdog.beat(f"saving step {self.step}")
            self.writer.flush()
            ranked = None if self.step == config.steps and config.eval_examples else metrics
            self.checkpointer.save(self.state, self.iterator, ranked, sums=self.sums)

    def close(self) -> None:
        """Finishes writing, a checkpoint under way included, and ends the worker processes. Saves nothing new."""
        self.watchdog.beat("finishing the last checkpoint")
        self.checkpointer.close()
        self.writer.close()
        self.verifier.close()
        self.guard.close()


@contextlib.contextmanager
def open_session(
    config: ml_collections.ConfigDict,
    workdir: epath.PathLike,
    *,
    stage: str,
    make_encoder: Callable[[Processor], Encoder],
) -> Iterator[Session]:
    """Checks the config, then starts or resumes the run in `workdir`. `stage` is "cold_start" or "train".

    The iterator yields lists of what the encoder makes of records; it drops those that become None.

    Raises:
        ValueError: one clear line on a bad config, unusable data or weights, or a folder that holds another stage's
            run or only damaged checkpoints, before anything is written.
    """
    workdir = files.anywhere(workdir)
    with (
        contextlib.ExitStack() as held,
        contextlib.closing(StopFlag()) as stop,
        Watchdog(config.train.hang_after, workdir, process_index=jax.process_index()) as watchdog,
    ):
        session = _open(config, workdir, held, stop, watchdog, stage=stage, make_encoder=make_encoder)
        try:
            yield session
        finally:
            session.close()


def _open(
    config: ml_collections.ConfigDict,
    workdir: epath.Path,
    held: contextlib.ExitStack,
    stop: StopFlag,
    watchdog: Watchdog,
    *,
    stage: str,
    make_encoder: Callable[[Processor], Encoder],
) -> Session:
    manifest = _manifest(config, stage)
    require_same({"--workdir": str(workdir)} | manifest | config_lib.flat(config))

    def open_inputs() -> tuple[Processor, loader.DropCounter, Any, loader.RecordSource, Mesh]:
        config_lib.validate(config)
        _check_stage(workdir, stage)
        processor = make_processor(config)
        encoder = loader.DropCounter(make_encoder(processor))
        iterator = loader.make_train_iterator(
            loader.open_source(config, "train"), encoder, batch_size=config.train.prompts, seed=config.seed
        )
        return processor, encoder, iterator, loader.open_source(config, "eval"), make_mesh(config, training=True)

    processor, encoder, iterator, held_out, mesh = together(open_inputs)
    optimizer = make_optimizer(config)
    guard = CompileGuard(lambda name: watchdog.beat(f"what follows the compilation of {name}"))
    state = None
    if not any(exchange((workdir / "checkpoints").is_dir())):
        state = together(lambda: _first_state(config, optimizer, mesh))
    workdir.mkdir(parents=True, exist_ok=True)
    together(lambda: _lock(workdir, held))
    verifier = make_verifier(config)
    checkpointer = Checkpointer(workdir, keep_last=config.train.keep_last, best_metric=BEST_METRIC)
    if state is None:
        state = checkpointer.restore(_abstract_state(config, optimizer, mesh), iterator)
    if state is None:  # killed before its first checkpoint
        state = together(lambda: _first_state(config, optimizer, mesh))
    checkpointer.warm_up(state)

    def enter(stage: str) -> None:
        watchdog.beat(f"stage {stage}")
        if stop.poll():
            raise Stopped

    if is_first():
        _write_json(workdir / "config.json", json.loads(config.to_json_best_effort()))
        _write_json(workdir / MANIFEST_FILE, manifest)
    writer = MetricsWriter(workdir, resume_step=int(state.step), total_steps=config.train.steps, enabled=is_first())
    writer.evaluated_steps = exchange(writer.evaluated_steps)[0]
    return Session(
        config=config,
        workdir=workdir,
        processor=processor,
        verifier=verifier,
        optimizer=optimizer,
        state=state,
        iterator=iterator,
        encoder=encoder,
        evaluator=Evaluator(
            config, source=held_out, processor=processor, verifier=verifier, model=state.params, mesh=mesh
        ),
        checkpointer=checkpointer,
        writer=writer,
        guard=guard,
        stop=stop,
        watchdog=watchdog,
        timer=StageTimer(enter),
        mesh=mesh,
        forbidden_mask=sharding.put(mesh, processor.forbidden_mask, sharding.WHOLE),
        lr=schedule_table(config),
        sums=checkpointer.checksums(state),
        position=iterator.get_state(),
    )


def _abstract_state(config: ml_collections.ConfigDict, optimizer: optax.GradientTransformation, mesh: Mesh) -> Any:
    """A state's shapes and shardings; costs nothing at any size."""

    def make(model: QwenVL) -> TrainState:
        return TrainState(step=jax.numpy.int32(0), params=model, opt_state=optimizer.init(model))

    state = jax.eval_shape(make, abstract_model(make_model_config(config, mesh.devices.flat[0].platform)))
    return sharding.place(mesh, state, state_specs(state))


def _first_state(config: ml_collections.ConfigDict, optimizer: optax.GradientTransformation, mesh: Mesh) -> TrainState:
    """The state before the first step, each part made where it lies."""
    model = make_model(config, mesh)
    shardings = sharding.named(mesh, sharding.param_specs(jax.eval_shape(optimizer.init, model)))
    return TrainState(
        step=sharding.put(mesh, np.int32(0), sharding.WHOLE),
        params=model,
        opt_state=jax.jit(optimizer.init, out_shardings=shardings)(model),
    )


def _lock(workdir: epath.Path, held: contextlib.ExitStack) -> None:
    """Keeps other runs out of a folder on a disk until `held` is closed, or the process ends in whatever way.

    Raises:
        ValueError: another process is in it.
    """
    if is_first() and not files.in_bucket(workdir):
        file = held.enter_context((Path(workdir) / ".lock").open("ab"))
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise ValueError(f"--workdir={workdir}: another process trains in it; wait for its end") from error
        except OSError:
            pass  # a file system without locks


def _check_stage(workdir: epath.Path, stage: str) -> None:
    """Refuses the folder of another stage: its checkpoints would pass for this one's."""
    manifest = workdir / MANIFEST_FILE
    if manifest.is_file() and (found := json.loads(manifest.read_text())["stage"]) != stage:
        raise ValueError(f"--workdir={workdir} holds a run of stage {found!r}, this is {stage!r}; name another folder")


def _write_json(path: epath.Path, values: dict[str, Any]) -> None:
    temporary = path.with_suffix(".tmp")
    temporary.write_text(json.dumps(values, indent=1, sort_keys=True) + "\n")
    temporary.replace(path)


def _manifest(config: ml_collections.ConfigDict, stage: str) -> dict[str, Any]:
    """What the run ran on: versions, commit, device, seed."""
    commit = subprocess.run(
        # A tree that differs from its commit says so: HASH-dirty.
        ["git", "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"],
        capture_output=True,
        text=True,
        check=False,
        cwd=Path(__file__).parent,
    ).stdout.strip()
    about = {
        "stage": stage,
        "seed": config.seed,
        "commit": commit,
        "device": f"{jax.devices()[0].device_kind} x {jax.device_count()}",
        "processes": jax.process_count(),
    }
    return about | {name: importlib.metadata.version(name) for name in _PACKAGES}
