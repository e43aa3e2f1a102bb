"""A session, which cold start and RL open first: the checked config, model, optimizer, data, checkpoints, metrics.

They share all of it and differ in the loss and in the step, so a session knows neither.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import ml_collections
import numpy as np
import optax
from etils import epath
from jax.sharding import Mesh

from care_jax import config as config_lib
from care_jax import files
from care_jax.checkpoints.checkpointer import Checkpointer
from care_jax.checkpoints.checksums import Sums
from care_jax.checkpoints.initial_state import abstract_state, initial_state
from care_jax.data import loader
from care_jax.errors import InputError
from care_jax.evals.evaluator import Evaluator
from care_jax.inputs.processor import Processor, make_processor
from care_jax.method.objectives import Objective
from care_jax.parallel import sharding
from care_jax.parallel.processes import HostShare, exchange, is_first, require_same, together
from care_jax.rewards import functions, terms
from care_jax.rewards.judge import Verifier
from care_jax.run import history, trackers
from care_jax.run import manifest as manifest_lib
from care_jax.run.compilation_cache import WarmUp, opened
from care_jax.run.metrics_writer import MetricsWriter
from care_jax.run.profile import StepProfile
from care_jax.run.progress import Progress
from care_jax.run.stop import Stopped
from care_jax.run.supervisor import Supervisor, supervise
from care_jax.run.training_data import Encoder, TrainingData
from care_jax.stages.keys import stage_key
from care_jax.stages.model import make_mesh
from care_jax.stages.optimizer import make_optimizer, schedule_table
from care_jax.stages.train_state import TrainState

BEST_METRIC = "eval/accuracy/mean"


@dataclasses.dataclass
class Session:
    """Everything a loop works with."""

    config: ml_collections.ConfigDict
    processor: Processor
    verifier: Verifier
    mesh: Mesh
    share: HostShare  # the rows of each batch that this process reads, judges and logs
    forbidden_mask: jax.Array  # [V] bool, ids that neither sampler nor scorer gives any weight
    optimizer: optax.GradientTransformation
    lr: np.ndarray  # [updates of the run] float32, the schedule
    data: TrainingData
    state: TrainState
    sums: Sums  # checksums of the state
    evaluator: Evaluator
    checkpointer: Checkpointer
    writer: MetricsWriter
    progress: Progress
    supervisor: Supervisor
    warm_up: WarmUp
    profile: StepProfile
    held_out: str | None = None  # accuracy at the last evaluation, for the progress line

    @property
    def step(self) -> int:
        """Steps done."""
        return int(self.state.step)

    @property
    def last_lr(self) -> float:
        """Learning rate of the newest update."""
        return float(self.lr[self.step * self.config.train.minibatches - 1])

    def key(self, stage: int) -> jax.Array:
        """The random key of a stage of the current step."""
        return stage_key(self.step, stage, seed=self.config.seed, mesh=self.mesh)

    def put(self, tree: Any) -> Any:
        """Host arrays with the prompts of this process's share, to the devices."""
        return sharding.put_rows(self.mesh, tree, self.share)

    def has_ended(self) -> bool:
        """True when all steps are done, or a SIGTERM came."""
        return self.step >= self.config.train.steps or self.supervisor.stop.poll()

    @contextlib.contextmanager
    def until_stopped(self) -> Iterator[None]:
        """Ends its block at a SIGTERM. The step under way is given up, and its prompts will come again."""
        try:
            yield
        except Stopped:
            self.data.rewind()

    def end_warm_up(self) -> None:
        """Forbids compilations from here on: `finish_step` raises if there was one. Says what the start took."""
        stage_key(0, 0, seed=self.config.seed, mesh=self.mesh)
        self.supervisor.guard.arm()
        self.writer.scalars(self.step, self.warm_up.figures())
        if is_first():
            self.warm_up.tell()

    def advance(self, state: TrainState) -> None:
        """Makes `state` the run's; its step is done and will not be given up."""
        self.state = state
        self.sums = self.checkpointer.checksums(state)  # now: at a save the device may be busy with a cancelled step
        self.data.mark()

    def finish_step(self, figures: Mapping[str, float]) -> None:
        """After `advance`: evaluates if it is due, shows the progress with `figures`, saves if it is due.

        Raises:
            RuntimeError: the step compiled something.
            OSError: a checkpoint could not be written in the background (a full disk), or the run folder is gone.
        """
        self.checkpointer.require_written()
        self.writer.require_folder()
        metrics = self.evaluate_if_due()
        self.supervisor.guard.check(self.step)
        self.progress.show(self.step, figures if self.held_out is None else {**figures, "held-out": self.held_out})
        self.checkpoint_if_due(metrics)

    def evaluate_if_due(self) -> dict[str, float] | None:
        """Evaluates before the first step, every train.eval_every steps and at the end; logs and returns the result.

        A run that resumes at a step it has already evaluated does not do it again. After a SIGTERM there is no time
        for it: the run that resumes does it.
        """
        config = self.config.train
        at_end = self.step == config.steps
        due = at_end or self.step == 0 or (config.eval_every > 0 and self.step % config.eval_every == 0)
        if not due or self.supervisor.stop.is_set or self.step in self.writer.evaluated_steps:
            return None
        limit, timer = 0 if at_end else config.eval_examples, self.supervisor.timer
        with timer("evaluate"):
            metrics = self.evaluator.run(self.state.params, limit=limit, wait=self.supervisor.wait)
        self.writer.scalars(self.step, metrics | timer.take())
        self.writer.evaluated_steps.add(self.step)
        self.held_out = f"{metrics[BEST_METRIC]:.3f} at step {self.step}"
        return metrics

    def checkpoint_if_due(self, metrics: dict[str, float] | None) -> None:
        """Saves every train.checkpoint_every steps, at the end, and when asked to stop.

        If the last evaluation takes more records than the others, it does not count for the best checkpoint.
        """
        config = self.config.train
        due = self.step == config.steps or self.step % config.checkpoint_every == 0 or self.supervisor.stop.is_set
        if due and self.step > 0 and self.checkpointer.latest_step != self.step:
            self.supervisor.watchdog.beat(f"saving step {self.step}")
            self.writer.flush()
            ranked = None if self.step == config.steps and config.eval_examples else metrics
            self.checkpointer.save(self.state, self.data.iterator, ranked, sums=self.sums)

    def close(self) -> None:
        """Finishes all writing, a checkpoint under way too, and ends the workers, whatever fails. Saves nothing new."""
        self.supervisor.watchdog.beat("finishing the last checkpoint")
        with contextlib.ExitStack() as closed:
            for part in (self.verifier, self.profile, self.progress, self.writer, self.checkpointer):  # the last first
                closed.callback(part.close)


@contextlib.contextmanager
def open_session(
    config: ml_collections.ConfigDict,
    workdir: epath.PathLike,
    *,
    stage: str,
    make_encoder: Callable[[Processor], Encoder],
    allow_change: bool = False,
    profile_steps: str | None = None,
) -> Iterator[Session]:
    """Checks the config, then starts or resumes the run in `workdir`.

    Args:
        config: the run's config.
        workdir: the run folder.
        stage: "cold_start" or "train".
        make_encoder: makes the function that turns records into the examples of the session's data.
        allow_change: resume even if settings have changed that history.py has its doubts about.
        profile_steps: for StepProfile.

    Raises:
        InputError: one clear line on a bad config or `profile_steps`, unusable data or weights, or a folder that cannot
            be written or holds another stage's run, one with other settings or only damaged checkpoints, before
            anything is written.
        RuntimeError: input that was fine at the start can no longer be used: images are gone, data have run dry.
    """
    together(lambda: config_lib.validate(config))
    together(lambda: trackers.require_packages(config.tracker))
    workdir = files.anywhere(workdir)
    profile = together(lambda: StepProfile(profile_steps, workdir, config.train.steps))
    with (
        contextlib.ExitStack() as held,
        supervise(workdir, hang_after=config.train.hang_after) as supervisor,
        opened(workdir, supervisor.guard) as warm_up,
    ):
        session = _open(
            config, workdir, held, supervisor, warm_up, profile, stage, make_encoder, allow_change=allow_change
        )
        held.callback(session.close)
        try:
            yield session
        except InputError as error:  # a supervisor would take it for a command that can never succeed
            raise RuntimeError(f"the run in {workdir} ends: {error}") from error


@dataclasses.dataclass(frozen=True)
class _Inputs:
    """Opens all that can be refused before anything is written."""

    processor: Processor
    data: TrainingData
    held_out: loader.RecordSource
    mesh: Mesh
    share: HostShare
    settings: dict[str, Any]  # of history.py; empty on every process but the first


def _open(
    config: ml_collections.ConfigDict,
    workdir: epath.Path,
    held: contextlib.ExitStack,
    supervisor: Supervisor,
    warm_up: WarmUp,
    profile: StepProfile,
    stage: str,
    make_encoder: Callable[[Processor], Encoder],
    *,
    allow_change: bool,
) -> Session:
    manifest = manifest_lib.make_manifest(config, stage)
    same = {"--workdir": str(workdir), "--allow_change": allow_change} | manifest | config_lib.flat(config)
    if manifest_lib.UNKNOWN in exchange(manifest["commit"]):  # git was too slow somewhere
        del same["commit"]
    require_same(same)
    inputs = together(lambda: _open_inputs(config, workdir, stage, make_encoder, allow_change=allow_change))
    processor, data, mesh = inputs.processor, inputs.data, inputs.mesh
    held.callback(data.close)
    optimizer = make_optimizer(config)
    state = None
    if not any(exchange((workdir / "checkpoints").is_dir())):
        state = together(lambda: initial_state(config, optimizer, mesh))
    together(lambda: _lock(workdir, held))
    if is_first():
        warm_up.write_cache()
    verifier = Verifier.from_config(config, on_progress=supervisor.watchdog.beat)
    checkpointer = Checkpointer(workdir, keep_last=config.train.keep_last, best_metric=BEST_METRIC)
    if state is None:
        state = checkpointer.restore(abstract_state(config, optimizer, mesh), data.iterator)
    if state is None:  # killed before its first checkpoint
        state = together(lambda: initial_state(config, optimizer, mesh))
    profile.warn_if_past(int(state.step))
    checkpointer.warm_up(state)
    data.mark()
    writer = MetricsWriter(
        workdir, resume_step=int(state.step), enabled=is_first(), share=inputs.share, settings=inputs.settings
    )
    if is_first():
        history.write(workdir, inputs.settings, step=int(state.step))
        manifest_lib.write(workdir, config, manifest)
    writer.evaluated_steps = set(exchange(sorted(writer.evaluated_steps))[0])
    return Session(
        config=config,
        processor=processor,
        verifier=verifier,
        mesh=mesh,
        share=inputs.share,
        forbidden_mask=sharding.put(mesh, processor.forbidden_mask, sharding.WHOLE),
        optimizer=optimizer,
        lr=schedule_table(config),
        data=data,
        state=state,
        sums=checkpointer.checksums(state),
        evaluator=Evaluator(
            config,
            source=inputs.held_out,
            processor=processor,
            verifier=verifier,
            model=state.params,
            limit=config.train.eval_examples,
            mesh=mesh,
        ),
        checkpointer=checkpointer,
        writer=writer,
        progress=Progress(stage, config.train.steps, enabled=is_first()),
        supervisor=supervisor,
        warm_up=warm_up,
        profile=profile,
    )


def _open_inputs(
    config: ml_collections.ConfigDict,
    workdir: epath.Path,
    stage: str,
    make_encoder: Callable[[Processor], Encoder],
    *,
    allow_change: bool,
) -> _Inputs:
    if workdir.exists() and not workdir.is_dir():
        raise InputError(f"--workdir={workdir} is a file; name a folder")
    manifest_lib.require_stage(workdir, stage)
    for term in terms.read_terms(config.verify.rewards):
        functions.load(term.function)
    processor = make_processor(config)
    train, held_out = loader.open_source(config, "train"), loader.open_source(config, "eval")
    settings: dict[str, Any] = {}
    if is_first():
        settings = history.settings(config, train=train, held_out=held_out)
        history.require_same_run(workdir, settings, allow_change=allow_change)
    mesh = make_mesh(config, training=True)
    # Dynamic sampling moves groups to any row, so there every process has all of them.
    is_whole = Objective.from_config(config.objective).dynamic_sampling
    share = sharding.whole_share(mesh) if is_whole else sharding.own_share(mesh)
    data = TrainingData(train, make_encoder(processor), batch_size=config.train.prompts, seed=config.seed, share=share)
    return _Inputs(processor, data, held_out, mesh, share, settings)


def _lock(workdir: epath.Path, held: contextlib.ExitStack) -> None:
    """Makes the run folder and keeps other runs out of it until `held` is closed, or the process ends in any way.

    A folder in a bucket is not locked.

    Raises:
        InputError: the folder cannot be written, or another process is in it.
    """
    if not is_first():
        return
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        if not files.in_bucket(workdir):
            message = f"--workdir={workdir}: another process trains in it; wait for its end"
            held.enter_context(files.locked(Path(workdir) / ".lock", message))
    except OSError as error:
        if files.is_of_the_machine(error):
            raise
        raise InputError(f"--workdir={workdir} cannot be written: {error.strerror or error}; name another") from error
