"""CARE, or any objective of objectives.py: the loop, in the order of time.

    python -m care_jax.train --config=configs/F.py --workdir=DIR [--config.a.b=v]     # the same command resumes

One step: rollouts, verdicts, one scoring pass, subgroups, reflections, and one jitted update (method.md section 1).
Host work is verification and bookkeeping; everything else is a program compiled before the first step.
"""

from __future__ import annotations

import functools
import time
from typing import NamedTuple

import jax
import ml_collections
import numpy as np
from etils import epath

from care_jax import cli
from care_jax.inputs.batch import Example, collate, padding_shares
from care_jax.inputs.processor import Processor
from care_jax.inputs.prompts import encode_prompt
from care_jax.method import reflect
from care_jax.method.train_batch import Reflection, no_reflection
from care_jax.models import QwenVL
from care_jax.models.cache import Prefix
from care_jax.rewards.judge import Judged, RewardConfig, judge
from care_jax.rewards.spans import TokenBytes
from care_jax.run import step_summary
from care_jax.run.build import make_model
from care_jax.run.session import Encoder, Session, open_session
from care_jax.stages.programs import EVERY_BUCKET, Bucket, Inputs, TrainPrograms, bucket_of
from care_jax.stages.rollout import nothing_forced
from care_jax.stages.train_state import TrainState
from care_jax.structs import Outcome, Prompts, Rollouts, Subgroup

# One number a random draw of a step, folded into its key. Redraws of dynamic sampling count on from ROLLOUT.
SELECT, REFLECT, ROLLOUT = range(3)


class Group(NamedTuple):
    """B prompts with their rollouts and verdicts."""

    examples: list[Example]
    bucket: Bucket
    prompts: Prompts  # on the device
    prefix: Prefix | None  # None where nothing more is decoded
    rollouts: Rollouts
    on_host: Rollouts  # the same as NumPy arrays
    judged: Judged
    drawn: step_summary.Drawn  # with what dynamic sampling dropped


class Trainer:
    """The stages of a step over one session's programs."""

    def __init__(self, session: Session):
        config = session.config
        self.session, self.config, self.objective = session, config, config.objective
        self.token_bytes = TokenBytes(session.processor.tokenizer)
        inputs = Inputs.of(session.processor, config.objective)
        self.programs = TrainPrograms.build(config, inputs, session.state, session.optimizer, session.mesh)
        self.reference: QwenVL | None = make_model(config, session.mesh) if self.objective.kl_coef > 0 else None
        self.nothing_forced = session.put(
            jax.device_get(nothing_forced(config.train.prompts, config.rollout.num_rollouts))
        )
        self.no_reflection = jax.device_get(no_reflection(config.train.prompts, config.rollout.response_len))

    def step(self) -> dict[str, float]:
        """One step; returns its metrics, and writes events and samples."""
        session, objective, programs, timer = self.session, self.objective, self.programs, self.session.timer
        started = time.perf_counter()
        params, forbidden = session.state.params, session.forbidden_mask

        with timer("rollout"):
            sampler = programs.sampler(EVERY_BUCKET, params)
        group = self._mixed_groups(sampler) if objective.dynamic_sampling else self._rollouts(sampler, ROLLOUT)
        verdicts = session.put(group.judged.verdicts)

        with timer("score"):
            scores = programs.score(group.bucket, params, group.prompts, group.rollouts, verdicts, forbidden)
            session.wait(scores)
        with timer("select"):
            key = session.key(SELECT)
            subgroup = programs.select(group.bucket, group.rollouts, verdicts, scores, key)
            chosen = programs.select.fetch(subgroup)
        reflection, reflected = self.no_reflection, None
        if objective.reflect.enabled:
            with timer("reflect"):
                reflection, reflected = self._reflect(sampler, group, chosen)
        del sampler  # the update needs the room
        group = group._replace(prefix=None)
        with timer("select"):
            assembled = programs.assemble(
                group.bucket, group.prompts, group.rollouts, verdicts, scores, subgroup, session.put(reflection)
            )
            batch = session.wait(assembled).batch
        if self.reference is not None:
            with timer("score"):
                ref = programs.reference(group.bucket, self.reference, group.prompts, batch.token_ids, forbidden)
                batch = batch.replace(logprobs_ref=session.wait(ref))
        with timer("update"):
            output = programs.update(group.bucket, session.state, batch, forbidden)
            session.advance(output.state)
            update_metrics = {name: float(value) for name, value in jax.device_get(output.metrics).items()}
            update_metrics |= padding_shares(group.examples, group.bucket)

        on_host = programs.assemble.fetch(assembled.replace(batch=batch))
        done = step_summary.Step(
            records=[example.record for example in group.examples],
            rollouts=group.on_host,
            judged=group.judged,
            drawn=group.drawn,
            scores=programs.score.fetch(scores),
            subgroup=chosen,
            reflection=reflection,
            reflected=reflected,
            batch=on_host.batch,
            advantages=on_host.advantages,
        )
        return self._log(done, update_metrics, time.perf_counter() - started)

    def _rollouts(self, sampler: QwenVL, draw: int) -> Group:
        """The next batch of prompts, G rollouts each, judged."""
        session, timer = self.session, self.session.timer
        with timer("data"):
            examples = next(session.iterator)
            prompts = session.put(collate(session.processor, examples))
        bucket = bucket_of(prompts)
        with timer("rollout"):
            prefix = self.programs.prefill(bucket, session.state.params, prompts)
            key = session.key(draw)
            rollouts = self.programs.rollout(bucket, sampler, prefix, self.nothing_forced, session.forbidden_mask, key)
            on_host = self.programs.rollout.fetch(session.wait(rollouts))
        with timer("verify"):
            judged = self._judge(examples, on_host)
        records = [example.record for example in examples]
        drawn = step_summary.Drawn(records, judged, num_tokens=int(on_host.sampled_mask.sum()), num_draws=1)
        return Group(examples, bucket, prompts, prefix, rollouts, on_host, judged, drawn)

    def _judge(self, examples: list[Example], rollouts: Rollouts) -> Judged:
        reward_config = RewardConfig(
            response_format=self.session.processor.response_format,
            correct_weight=self.config.verify.correct_weight,
            format_weight=self.config.verify.format_weight,
            overlong_buffer_len=self.objective.overlong_buffer_len,
            overlong_penalty=self.objective.overlong_penalty,
        )
        records = [example.record for example in examples]
        return judge(self.session.verifier, records, rollouts, self.token_bytes, reward_config)

    def _mixed_groups(self, sampler: QwenVL) -> Group:
        """DAPO's dynamic sampling: draws batches until B groups are mixed; uniform ones fill up after max_draws.

        Dropped groups are gone: their prompts are not asked again in this epoch.
        """
        kept: list[tuple[Example, Rollouts, Judged]] = []
        spare: list[tuple[Example, Rollouts, Judged]] = []
        wanted, draws = self.config.train.prompts, list[step_summary.Drawn]()
        for draw in range(self.objective.max_draws):
            group = self._rollouts(sampler, ROLLOUT + draw)
            draws.append(group.drawn)
            correct = group.judged.verdicts.correct
            for b, example in enumerate(group.examples):
                is_mixed = 0 < correct[b].sum() < correct.shape[1]
                (kept if is_mixed else spare).append((example, _row(group.on_host, b), _judged_row(group.judged, b)))
            if len(kept) >= wanted:
                break
        rows = (kept + spare)[:wanted]
        examples = [row[0] for row in rows]
        prompts = self.session.put(collate(self.session.processor, examples))
        bucket, rollouts = bucket_of(prompts), _stack([row[1] for row in rows])
        prefix = None
        if self.objective.reflect.enabled:
            prefix = self.programs.prefill(bucket, self.session.state.params, prompts)
        return Group(
            examples=examples,
            bucket=bucket,
            prompts=prompts,
            prefix=prefix,
            rollouts=self.session.put(rollouts),
            on_host=rollouts,
            judged=step_summary.join_judged([row[2] for row in rows]),
            drawn=step_summary.join_drawn(draws),
        )

    def _reflect(self, sampler: QwenVL, group: Group, chosen: Subgroup) -> tuple[Reflection, step_summary.Reflected]:
        """One repair of the nearest failure of each MIXED group: decode, verify, score under its context.

        Returns them as the update wants them, and as they were decoded.
        """
        session, programs, objective = self.session, self.programs, self.objective
        params, forbidden = session.state.params, session.forbidden_mask
        forced = reflect.force_prefixes(session.processor, objective, texts=group.judged.texts, subgroup=chosen)
        key = session.key(REFLECT)
        repaired = programs.reflect(group.bucket, sampler, group.prefix, session.put(forced), forbidden, key)
        repaired = programs.reflect.fetch(session.wait(repaired))
        reflected = step_summary.Reflected(forced, repaired)
        tried = repaired.sampled_mask.any(axis=(1, 2))
        if objective.reflect.train_on == "rewrite":
            repaired = reflect.rewrite(session.processor, objective, token_bytes=self.token_bytes, repaired=repaired)
        judged = self._judge(group.examples, repaired)
        responses, verdicts = session.put(repaired), session.put(judged.verdicts)
        scores = programs.score_reflected.fetch(
            programs.score_reflected(group.bucket, params, group.prompts, responses, verdicts, forbidden)
        )
        reflection = Reflection(
            tried=tried,
            token_ids=repaired.token_ids[:, 0],
            response_len=repaired.response_len[:, 0],
            sampled_mask=repaired.sampled_mask[:, 0],
            logprobs_old=scores.logprobs[:, 0],
            correct=judged.verdicts.correct[:, 0],
            rewards=judged.verdicts.rewards[:, 0],
            think_mask=judged.verdicts.think_mask[:, 0],
            answer_mask=judged.verdicts.answer_mask[:, 0],
        )
        return reflection, reflected

    def _log(self, done: step_summary.Step, update_metrics: dict[str, float], seconds: float) -> dict[str, float]:
        session, config, anchored = self.session, self.config, self.objective.anchored
        times = session.timer.take()
        metrics = update_metrics | step_summary.metrics(done, anchored=anchored) | times
        metrics |= {"lr": session.last_lr, "time/step": seconds, "data/num_dropped": session.encoder.num_dropped}
        metrics.setdefault("logprob_gap/mean", metrics["abs_log_ratio"])  # where the sampler's scores are used
        metrics["tokens_per_s/rollout"] = done.drawn.num_tokens / times["time/rollout"]
        if self.objective.dynamic_sampling:
            metrics["dynamic/draws"] = done.drawn.num_draws
        metrics["tokens_per_s/update"] = float(done.batch.sampled_mask.sum()) / times["time/update"]
        session.writer.scalars(session.step, metrics)
        session.writer.events(session.step, step_summary.events(done, anchored=anchored))
        if session.step % config.train.samples_every == 0:
            row = _interesting(done)
            cue = self.objective.reflect.cue
            session.writer.samples(
                session.step, [step_summary.sample(done, row, anchored=anchored, cue=cue, token_bytes=self.token_bytes)]
            )
        gap = metrics["logprob_gap/mean"]
        if gap > config.train.max_logprob_gap:
            raise FloatingPointError(
                f"step {session.step}: sampler and scorer differ by {gap:.3g} nats a token, more than "
                f"train.max_logprob_gap={config.train.max_logprob_gap}; they must be one distribution"
            )
        return metrics


def _row(rollouts: Rollouts, b: int) -> Rollouts:
    return jax.tree.map(lambda x: x[b], rollouts)


def _stack(rows: list[Rollouts]) -> Rollouts:
    return jax.tree.map(lambda *xs: np.stack(xs), *rows)


def _judged_row(judged: Judged, b: int) -> Judged:
    verdicts = jax.tree.map(lambda x: x[b : b + 1], judged.verdicts)
    return Judged(verdicts, judged.texts[b : b + 1], judged.extracted[b : b + 1], judged.reasons[b : b + 1])


def _interesting(done: step_summary.Step) -> int:
    """The group to show: one with a successful reflection, else a MIXED one, else the first."""
    mixed = done.subgroup.outcome == Outcome.MIXED
    return int(np.argmax(2 * (done.reflection.tried & done.reflection.correct) + mixed))


def run(config: ml_collections.ConfigDict, workdir: epath.PathLike) -> TrainState:
    """Trains to train.steps, or to a SIGTERM; the same call resumes. Returns the last state."""

    def make_encoder(processor: Processor) -> Encoder:
        reflect.require_room(processor, config)
        return functools.partial(encode_prompt, processor)

    with open_session(config, workdir, stage="train", make_encoder=make_encoder) as session:
        with session.until_stopped():
            held_out = session.evaluate_if_due()
            if session.has_ended():
                return session.state
            trainer = Trainer(session)
            session.end_warm_up()
            while not session.has_ended():
                metrics = trainer.step()
                fresh = session.evaluate_if_due()
                held_out = fresh or held_out
                session.guard.check(session.step)
                session.writer.progress(session.step, _figures(metrics, held_out))
                session.checkpoint_if_due(fresh)
        session.checkpoint_if_due(None)  # a SIGTERM may have come after the last save
        return session.state


def _figures(metrics: dict[str, float], held_out: dict[str, float] | None) -> dict[str, float]:
    """What the progress line shows."""
    names = {"accuracy/train": "acc", "groups/mixed": "mixed", "reflect/success_rate": "repaired", "entropy": "entropy"}
    figures = {short: metrics[name] for name, short in names.items() if name in metrics}
    return figures | ({"held-out": held_out["eval/accuracy/mean"]} if held_out else {})


def main(config: ml_collections.ConfigDict, workdir: epath.PathLike) -> None:
    """Runs the training."""
    run(config, workdir)


if __name__ == "__main__":
    cli.run(main)
