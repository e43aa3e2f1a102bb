"""Trains with RL: CARE, or any objective of method/objectives.py.

    python -m care_jax.train --config=configs/F.py --workdir=DIR [--config.a.b=v]     # the same command resumes

A step is the table of step.py, walked from top to bottom: rollouts, verdicts, one scoring pass, subgroups, repairs, and
one update. Programs are compiled before the first step; the host verifies answers and writes the log.
"""

from __future__ import annotations

from care_jax import cli

if __name__ == "__main__":
    cli.training_flags()
    cli.read_first(with_run=True)  # the imports below take seconds

import functools
import itertools
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import jax
import ml_collections
import numpy as np
from absl import flags
from etils import epath

from care_jax import step
from care_jax.checkpoints.initial_state import initial_reference
from care_jax.inputs.batch import Example
from care_jax.inputs.processor import Processor
from care_jax.inputs.prompts import encode_prompt
from care_jax.method import reflect
from care_jax.method.advantage import has_contrast
from care_jax.method.objectives import Objective
from care_jax.method.train_batch import Reflection
from care_jax.parallel.sharding import abstract_arrays
from care_jax.planning.speed import SHOWN, PromptSizes, Speed, memory
from care_jax.rewards.judge import Judged
from care_jax.rewards.spans import TokenBytes
from care_jax.run import samples, step_summary
from care_jax.run.session import Session, open_session
from care_jax.run.training_data import Encoder
from care_jax.stages.compiled import EVERY_BUCKET, CompiledStages, bucket_of, compile_all
from care_jax.stages.host import Services
from care_jax.stages.rollout import nothing_forced
from care_jax.stages.table import HostStage, Setup, Stage
from care_jax.stages.train_state import TrainState
from care_jax.structs import Rollouts, zeros

# What dynamic sampling puts together of the groups of several draws.
REGROUPED = frozenset(
    ("examples", "records", "padding", "bucket", "lengths", "prompts", "prefix", "rollouts", "judged", "verdicts")
)


class Values:
    """The values of one step by name: on the devices, and host copies of what the host has or reads."""

    def __init__(
        self, stages: CompiledStages, session: Session, on_devices: Mapping[str, Any], on_host: Mapping[str, Any]
    ):
        """Begins with these values."""
        self._stages, self._session = stages, session
        self.on_devices, self.bucket = dict(on_devices), EVERY_BUCKET
        self._on_host = dict(on_host)
        self.wait: Callable[[Any], Any] = session.supervisor.wait  # raises Stopped when the run is to stop

    def give(self, given: Mapping[str, Any]) -> None:
        """Adds what a device stage gives."""
        self.on_devices |= given
        for name in given:
            self._on_host.pop(name, None)

    def give_host(self, given: Mapping[str, Any], *, put: Collection[str]) -> None:
        """Adds what a host stage gives; the names in `put` go to the devices."""
        self._on_host |= {name: value for name, value in given.items() if name in self._stages.read_by_host}
        self.on_devices |= {name: self._session.put(given[name]) for name in put}
        if "prompts" in put:
            self.bucket = bucket_of(given["prompts"])

    def settle(self, given: Mapping[str, Any]) -> None:
        """Waits for what device stages have given, and fetches what a host stage will take."""
        if given:
            self.wait(given)
        for name in given:
            if name in self._stages.taken_by_host:
                self._fetch(name)

    def on_host(self, name: str) -> Any:
        """The host's copy of a value, which waits for the devices if there is none yet."""
        if name not in self._on_host:
            self.wait(self.on_devices[name])
            self._fetch(name)
        return self._on_host[name]

    def free(self, names: Sequence[str]) -> None:
        """Gives up the device memory of values; of those that the log reads the host takes its copy first."""
        for name in names:
            if name in self.on_devices:
                if name in self._stages.read_by_host and name not in self._on_host:
                    self._fetch(name)
                del self.on_devices[name]

    def _fetch(self, name: str) -> None:
        self._on_host[name] = self._stages.fetch(name, self.on_devices[name])


class Trainer:
    """Runs the table of a step over one session's programs."""

    def __init__(self, session: Session):
        """Makes every stage that the config switches on; compiles nothing yet."""
        config, processor, share = session.config, session.processor, session.share
        self.session, self.config = session, config
        self.objective = Objective.from_config(config.objective)
        self.services = Services(
            config=config,
            objective=self.objective,
            processor=processor,
            verifier=session.verifier,
            token_bytes=TokenBytes(processor.tokenizer),
            next_examples=lambda: next(session.data),
            share=share,
        )
        state = abstract_arrays(session.state)
        reference = initial_reference(config, session.mesh) if self.objective.kl_coef > 0 else None
        setup = Setup(
            config=config,
            objective=self.objective,
            mesh=session.mesh,
            num_prompts=config.train.prompts,
            num_rollouts=config.rollout.num_rollouts,
            temperature=config.rollout.temperature,
            stop_ids=processor.stop_ids,
            forbidden_mask=processor.forbidden_mask,
            image_spec=processor.image_spec,
            num_forced=reflect.forced_width(processor, self.objective),
            params=state.params,
            reference=abstract_arrays(reference),
            state=state,
            optimizer=session.optimizer,
        )
        self.stages = CompiledStages(step.STEP, setup, processor.buckets, share)
        self.phases = self.stages.table.phases()
        if self.objective.dynamic_sampling:
            left = self.stages.table.given_anew() - REGROUPED
            assert not left, f"_draw_until_full does not put {', '.join(left)} together"
        self.speed, self.idle_seconds = Speed(config, session.mesh), 0.0  # in which the devices wait for the host
        # What is there before every step, beside the state.
        num_own = len(share.rows(setup.num_prompts))
        no_reflection = zeros(Reflection, B=num_own, R=config.rollout.response_len)
        self.start_on_host = {"reflection": no_reflection}
        self.start = {
            "unforced": session.put(jax.device_get(nothing_forced(num_own, setup.num_rollouts))),
            "reflection": session.put(no_reflection),
            "forbidden_mask": session.forbidden_mask,
        }
        if reference is not None:
            self.start["reference"] = reference

    def step(self) -> dict[str, float]:
        """One step; returns its metrics, and writes events and samples."""
        started = time.perf_counter()
        self.stages.step, state = self.session.step + 1, self.session.state
        start = self.start | {"state": state, "params": state.params}
        values = Values(self.stages, self.session, start, self.start_on_host)

        self._run(self.phases.opening, values, wait=False)  # the devices work while the data are read
        drawn = self._draw_until_full(values) if self.objective.dynamic_sampling else self._draw(values, 0)
        values.free(self.stages.table.freed_after_drawing())
        self._run(self.phases.learning, values)

        figures = {name: float(value) for name, value in values.on_host("update_metrics").items()}
        figures |= values.on_host("padding") | values.on_host("update_padding")
        figures |= values.on_host("score_padding") if self.config.score.old_from == "pass" else {}
        done = step_summary.read_step(values.on_host, drawn, self.config)
        seconds = time.perf_counter() - started
        figures["speed/idle_seconds"] = self.idle_seconds
        started = time.perf_counter()
        metrics = self._log(done, PromptSizes.of(values.on_host("examples")), figures, seconds)
        self.idle_seconds = time.perf_counter() - started  # the next step begins with them
        return metrics

    def _run(self, stages: Sequence[Stage], values: Values, *, draw: int = 0, wait: bool = True) -> None:
        """Runs stages in order, neighbours with the same timer under one clock."""
        for timer, neighbours in itertools.groupby(stages, key=lambda stage: stage.timer):
            with self.session.supervisor.timer(timer):
                for stage in neighbours:
                    given = self._run_stage(stage, values, draw)
                    values.free(self.stages.ends[stage.name])
                if wait:
                    values.settle(given)  # or its seconds would count under the next clock

    def _run_stage(self, stage: Stage, values: Values, draw: int) -> dict[str, Any]:
        """Runs one stage; returns what it gives on the devices, perhaps not computed yet."""
        if isinstance(stage, HostStage):
            taken = [values.on_host(name) for name in stage.takes]
            started = time.perf_counter()
            values.give_host(stage.function(self.services, *taken), put=stage.puts)
            self.idle_seconds += time.perf_counter() - started
            return {}
        if stage.random is not None:
            values.on_devices["key"] = self.session.key(stage.random + draw)
        given = self.stages.run(stage, values.bucket, values.on_devices)
        values.give(given)
        if "state" in given:  # the step is done and will not be given up: nothing below raises Stopped
            self.session.advance(given["state"])
            values.wait = jax.block_until_ready
        return given

    def _draw(self, values: Values, draw: int) -> step_summary.Drawn:
        """The next batch of prompts, with G judged rollouts each."""
        self._run(self.phases.drawing, values, draw=draw)
        rollouts: Rollouts = values.on_host("rollouts")
        self.session.data.tell(values.on_host("judged").verdicts.correct)
        return step_summary.Drawn(
            records=values.on_host("records"),
            judged=values.on_host("judged"),
            num_tokens=int(rollouts.sampled_mask.sum()),
            num_draws=1,
        )

    def _draw_until_full(self, values: Values) -> step_summary.Drawn:
        """Dynamic sampling: draws batches until B groups have a contrast; others fill up after max_draws.

        Dropped groups are gone: their prompts are not asked again in this epoch.
        """
        kept: list[tuple[Example, Rollouts, Judged]] = []
        spare: list[tuple[Example, Rollouts, Judged]] = []
        wanted, draws = self.config.train.prompts, list[step_summary.Drawn]()
        drawn = [name for stage in self.phases.drawing for name in stage.gives]
        for draw in range(self.objective.max_draws):
            values.free(drawn)
            draws.append(self._draw(values, draw))
            rollouts, judged = values.on_host("rollouts"), values.on_host("judged")
            is_kept = has_contrast(judged.verdicts.correct, self.objective)
            for b, example in enumerate(values.on_host("examples")):
                (kept if is_kept[b] else spare).append((example, _row(rollouts, b), step_summary.judged_row(judged, b)))
            if len(kept) >= wanted:
                break
        examples, rollouts, judged = zip(*(kept + spare)[:wanted], strict=True)
        values.free(drawn)
        group = self.services.batch(examples)
        group |= {"rollouts": _stack(rollouts), "judged": step_summary.join_judged(judged)}
        group["verdicts"] = group["judged"].verdicts
        values.give_host(group, put=["prompts", "rollouts", "verdicts"])
        if any("prefix" in stage.takes for stage in self.phases.learning):
            self._run([step.PREFILL], values)
        return step_summary.join_drawn(draws)

    def _log(
        self, done: step_summary.Step, prompts: PromptSizes, figures: dict[str, float], seconds: float
    ) -> dict[str, float]:
        session, config, anchored = self.session, self.config, self.objective.anchored
        times, share = session.supervisor.timer.take(), session.share
        metrics = figures | step_summary.metrics(done, anchored=anchored, share=share) | times
        metrics |= {"lr": session.last_lr, "time/step": seconds} | session.data.counts()
        if "logprob_gap/mean" not in metrics:  # the sampler's scores are used, and the update is what they differ from
            metrics["logprob_gap/mean"] = metrics["abs_log_ratio"]
        metrics["tokens_per_s/rollout"] = metrics["tokens/rollout"] / times["time/rollout"]
        if self.objective.dynamic_sampling:
            metrics["dynamic/draws"] = done.drawn.num_draws
        num_updated = sum(share.exchange(float(done.batch.sampled_mask.sum())))
        metrics["tokens_per_s/update"] = num_updated / times["time/update"]
        metrics |= self.speed.step(done, prompts, times, share) | memory()
        metrics |= session.collapse.look(session.step, metrics)
        session.writer.scalars(session.step, metrics)
        session.writer.events(session.step, step_summary.events(done, anchored=anchored))
        if session.step % config.train.samples_every == 0:
            cue, token_bytes = self.objective.reflect.cue, self.services.token_bytes
            tell = functools.partial(samples.sample, done, anchored=anchored, cue=cue, token_bytes=token_bytes)
            for row in samples.groups_to_show(done, share):
                session.writer.samples(session.step, [] if row is None else [tell(row)])
        gap = metrics["logprob_gap/mean"]
        if gap > config.train.max_logprob_gap:
            raise FloatingPointError(
                f"step {session.step}: sampler and scorer differ by {gap:.3g} nats a token, more than "
                f"train.max_logprob_gap={config.train.max_logprob_gap}; they must be one distribution"
            )
        return metrics


def _row(rollouts: Rollouts, b: int) -> Rollouts:
    return jax.tree.map(lambda x: x[b], rollouts)


def _stack(rows: Sequence[Rollouts]) -> Rollouts:
    return jax.tree.map(lambda *xs: np.stack(xs), *rows)


def run(
    config: ml_collections.ConfigDict,
    workdir: epath.PathLike,
    *,
    allow_change: bool = False,
    profile_steps: str | None = None,
) -> TrainState:
    """Trains to train.steps; the same call resumes. Returns the last state.

    `allow_change` resumes with settings that differ more than history.py allows; `profile_steps` names steps to trace.

    Raises:
        SystemExit: a SIGTERM has ended it earlier, with run.stop.EXIT_CODE; all is saved.
    """

    def make_encoder(processor: Processor) -> Encoder:
        objective = Objective.from_config(config.objective)
        reflect.require_room(processor, objective, response_len=config.rollout.response_len)
        return functools.partial(encode_prompt, processor)

    with open_session(
        config,
        workdir,
        stage="train",
        make_encoder=make_encoder,
        allow_change=allow_change,
        profile_steps=profile_steps,
    ) as session:
        with session.until_stopped():
            if not session.has_ended():
                trainer = Trainer(session)
                with session.warm_up.compiling():
                    compile_all(session.evaluator.stages, trainer.stages)
            session.evaluate_if_due()
            if session.has_ended():
                return session.state
            session.end_warm_up()
            while not session.has_ended():
                with session.profile.around(session.step + 1):
                    figures = _figures(trainer.step())
                session.finish_step(figures)
        session.checkpoint_if_due(None)  # a SIGTERM may have come after the last save
        return session.state


def _figures(metrics: dict[str, float]) -> dict[str, float]:
    """The figures of the progress line."""
    names = {"accuracy/train": "acc", "groups/mixed": "mixed", "reflect/success_rate": "repaired", "entropy": "entropy"}
    return {short: metrics[name] for name, short in (names | SHOWN).items() if name in metrics}


def main(config: ml_collections.ConfigDict, workdir: epath.PathLike) -> None:
    """Runs the training."""
    run(config, workdir, allow_change=flags.FLAGS.allow_change, profile_steps=flags.FLAGS.profile_steps)


if __name__ == "__main__":
    cli.run(main)
