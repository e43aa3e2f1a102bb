"""A session, which cold start and RL open first: the checked config, model, optimizer, data, checkpoints, metrics.

They share all of it and differ in the loss and in the step, so a session knows neither.
"""

from __future__ import annotations

import contextlib
import dataclasses
import sys
from collections.abc import Callable, Iterator, Mapping
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
from care_jax.checkpoints.initial_state import abstract_state, initial_state, load_base
from care_jax.data import loader
from care_jax.errors import InputError
from care_jax.evals.evaluator import Evaluator
from care_jax.evals.judged_items import JudgedItem
from care_jax.inputs.processor import Processor
from care_jax.parallel import sharding
from care_jax.parallel.processes import HostShare, exchange, is_first, require_same, together
from care_jax.rewards.judge import Verifier
from care_jax.run import history, opening, samples, trackers
from care_jax.run import manifest as manifest_lib
from care_jax.run.collapse import CollapseWatch
from care_jax.run.compilation_cache import WarmUp, opened
from care_jax.run.metrics_writer import MetricsWriter
from care_jax.run.profile import StepProfile
from care_jax.run.progress import Progress
from care_jax.run.stop import EXIT_CODE, Stopped
from care_jax.run.supervisor import Supervisor, supervise
from care_jax.run.training_data import Encoder, TrainingData
from care_jax.stages.keys import stage_key
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
    collapse: CollapseWatch
    train: loader.RecordSource  # the training data, which the majority answers are counted in
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

    def is_complete(self) -> bool:
        """True when all steps are done and the last is evaluated, so that the same command has nothing left to do."""
        return self.step >= self.config.train.steps and self.step in self.writer.evaluated_steps

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
        told = {"held-out": self.held_out, "COLLAPSE": " ".join(self.collapse.signs)}
        self.progress.show(self.step, {**figures, **{name: text for name, text in told.items() if text}})
        self.checkpoint_if_due(metrics)

    def evaluate_if_due(self) -> dict[str, float] | None:
        """Evaluates before the first step, every train.eval_every steps and at the end; logs and returns the result.

        All evaluations ask the same train.eval_examples records; the last one asks the others as well, and the first
        adds the accuracy of the majority answer.

        A run that resumes at a step it has already evaluated does not do it again. After a SIGTERM there is no time
        for it: the run that resumes does it.
        """
        config = self.config.train
        at_end = self.step == config.steps
        due = at_end or self.step == 0 or (config.eval_every > 0 and self.step % config.eval_every == 0)
        if not due or self.supervisor.stop.is_set or self.step in self.writer.evaluated_steps:
            return None
        limit, timer = config.eval_examples, self.supervisor.timer
        asked: dict[int, JudgedItem] = {}
        with timer("evaluate"):
            metrics = self.evaluator.run(
                self.state.params, limit=limit, whole=at_end, write=asked.__setitem__, wait=self.supervisor.wait
            )
            if self.step == 0:
                metrics |= self.evaluator.majority(self.train, limit=limit)
        answers, changes = samples.held_out_answers(asked, self.writer.first_verdicts(), self.evaluator.source)
        self.writer.held_out(self.step, answers)  # before the metrics, which say that all of it is written
        self.writer.scalars(self.step, metrics | changes | timer.take())
        self.writer.evaluated_steps.add(self.step)
        self.held_out = "{:.3f} ± {:.3f} of {:.0f} at step {}".format(
            *(metrics[f"eval/{name}/mean"] for name in ("accuracy", "interval", "n")), self.step
        )
        return metrics

    def checkpoint_if_due(self, metrics: dict[str, float] | None) -> None:
        """Saves every train.checkpoint_every steps, at the end, and when asked to stop."""
        config = self.config.train
        due = self.step == config.steps or self.step % config.checkpoint_every == 0 or self.supervisor.stop.is_set
        if due and self.step > 0 and self.checkpointer.latest_step != self.step:
            self.supervisor.watchdog.beat(f"saving step {self.step}")
            self.writer.flush()
            self.checkpointer.save(self.state, self.data.iterator, metrics, sums=self.sums)

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
        SystemExit: a SIGTERM has ended the run before it was complete; all is saved.
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
    if not session.is_complete():
        _say(f"stopped at {session.step} of {config.train.steps}; run again to resume")
        raise SystemExit(EXIT_CODE)


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
    inputs = together(lambda: opening.open_inputs(config, workdir, stage, make_encoder, allow_change=allow_change))
    processor, data, mesh = inputs.processor, inputs.data, inputs.mesh
    held.callback(data.close)
    optimizer = make_optimizer(config)
    loaded = together(lambda: load_base(config, mesh, workdir))
    state = None
    if not any(exchange((workdir / "checkpoints").is_dir())):
        state = together(lambda: initial_state(config, optimizer, mesh, loaded))
    together(lambda: opening.lock(workdir, held))
    if is_first():
        warm_up.write_cache()
    verifier = Verifier.from_config(config, on_progress=supervisor.watchdog.beat)
    base = None if loaded is None else loaded.base
    checkpointer = Checkpointer(workdir, keep_last=config.train.keep_last, best_metric=BEST_METRIC, base=base)
    if state is None:
        state = checkpointer.restore(abstract_state(config, optimizer, mesh, loaded), data.iterator)
    if state is None:  # killed before its first checkpoint
        state = together(lambda: initial_state(config, optimizer, mesh, loaded))
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
    session = Session(
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
        collapse=CollapseWatch(writer.past_rows(), enabled=is_first()),
        train=inputs.train,
    )
    if session.is_complete():
        _say(f"{workdir} is finished: step {session.step} of {config.train.steps}; raise train.steps to train on")
    else:
        _say(*inputs.account, *([f"resuming from step {session.step}"] if session.step else []))
    return session


def _say(*lines: str) -> None:
    """Prints lines on stderr, by the first process alone."""
    if is_first():
        print(*lines, sep="\n", file=sys.stderr, flush=True)
