"""Every device program of a run, compiled before its first step for every bucket.

A call outside the buckets is an error instead of a silent compilation (pitfall: a new image size on a TPU).
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
from absl import logging

from care_jax import reflect, rollout, train_batch
from care_jax.images import ImageSpec
from care_jax.models import QwenVL
from care_jax.processor import Processor
from care_jax.rollout import Forced, Sampling
from care_jax.score import score, scores_of_sampler, token_scores
from care_jax.structs import Array, Prompts, Rollouts, Scores, TrainState, Verdicts
from care_jax.subgroup import select_subgroup

Bucket = tuple[int, int]  # prompt tokens, patches


class Program:
    """A function compiled ahead of time, once per bucket."""

    def __init__(self, name: str, function: Callable, *, donate: tuple[int, ...] = ()):
        self.name = name
        self._jitted = jax.jit(function, donate_argnums=donate)
        self._compiled: dict[Bucket, Any] = {}

    def compile(self, bucket: Bucket, *args: Any) -> Any:
        """Compiles for the shapes of `args` (arrays or ShapeDtypeStructs). Returns the abstract output."""
        started = time.time()
        self._compiled[bucket] = self._jitted.lower(*args).compile()
        logging.info("compiled %s for %d tokens, %d patches in %.1f s", self.name, *bucket, time.time() - started)
        return jax.eval_shape(self._jitted, *args)

    def __call__(self, bucket: Bucket, *args: Any) -> Any:
        return self._compiled[bucket](*args)


def bucket_of(prompts: Prompts) -> Bucket:
    """The bucket a batch was padded to."""
    return prompts.token_ids.shape[1], prompts.patches.shape[1]


def all_buckets(config: ml_collections.ConfigDict) -> list[Bucket]:
    """Every pair of a prompt and a patch bucket."""
    return list(itertools.product(config.data.prompt_buckets, config.data.patch_buckets))


def abstract_prompts(batch: int, bucket: Bucket, spec: ImageSpec) -> Prompts:
    """Prompts of a bucket as shapes."""
    tokens, patches = bucket
    shapes = {
        "token_ids": (batch, tokens),
        "prompt_len": (batch,),
        "position_ids": (batch, 3, tokens),
        "next_position": (batch,),
        "vision_index": (batch, tokens),
        "patch_position_ids": (batch, patches, 2),
        "window_ids": (batch, patches),
        "image_ids": (batch, patches),
        "grid_index": (batch, patches, spec.grid_cells),
    }
    return jax.eval_shape(
        lambda: Prompts(
            patches=jnp.zeros((batch, patches, spec.patch_values), jnp.float32),
            grid_weights=jnp.zeros((batch, patches, spec.grid_cells), jnp.float32),
            **{name: jnp.zeros(shape, jnp.int32) for name, shape in shapes.items()},
        )
    )


def abstract_verdicts(batch: int, num_rollouts: int, response_len: int) -> Verdicts:
    """Verdicts as shapes."""

    def verdicts() -> Verdicts:
        row = jnp.zeros((batch, num_rollouts), bool)
        tokens = jnp.zeros((batch, num_rollouts, response_len), bool)
        return Verdicts(
            correct=row,
            parsed=row,
            format_ok=row,
            rewards=row.astype(jnp.float32),
            think_mask=tokens,
            answer_mask=tokens,
        )

    return jax.eval_shape(verdicts)


def make_sampling(config: ml_collections.ConfigDict, stop_ids: Sequence[int], temperature: float) -> Sampling:
    """How responses are drawn."""
    return Sampling(
        response_len=config.rollout.response_len,
        temperature=temperature,
        stop_ids=tuple(stop_ids),
        compact_shares=tuple(config.rollout.compact_shares),
    )


@dataclasses.dataclass(frozen=True)
class EvalPrograms:
    """Prefill and decode at the size of an evaluation batch."""

    prefill: Program
    generate: Program

    @classmethod
    def build(cls, config: ml_collections.ConfigDict, processor: Processor, model: QwenVL) -> EvalPrograms:
        """Compiles both for every bucket."""
        greedy = config.eval.num_samples == 1
        sampling = make_sampling(config, processor.stop_ids, 0.0 if greedy else config.eval.temperature)
        programs = cls(
            prefill=Program("evaluation prefill", rollout.prefill),
            generate=Program("evaluation decode", functools.partial(rollout.generate, sampling=sampling)),
        )
        size = config.eval.batch_size
        forced = jax.eval_shape(lambda: rollout.nothing_forced(size, config.eval.num_samples))
        for bucket in all_buckets(config):
            prompts = abstract_prompts(size, bucket, processor.image_spec)
            prefix = programs.prefill.compile(bucket, model, prompts)
            programs.generate.compile(bucket, model, prefix, forced, processor.forbidden_mask, _abstract_key())
        return programs


@dataclasses.dataclass(frozen=True)
class TrainPrograms:
    """The stages of a CARE step, in order."""

    prefill: Program
    rollout: Program
    score: Program
    select: Program
    reflect: Program
    score_reflected: Program
    assemble: Program
    reference: Program
    update: Program

    @classmethod
    def build(
        cls, config: ml_collections.ConfigDict, processor: Processor, state: TrainState, update: Callable
    ) -> TrainPrograms:
        """Compiles every stage for every bucket; reflection and reference only where the objective uses them."""
        objective = ml_collections.FrozenConfigDict(config.objective)
        sampling = make_sampling(config, processor.stop_ids, config.rollout.temperature)
        scoring = {"temperature": config.rollout.temperature, "chunk": config.model.logits_chunk}
        from_sampler = config.score.old_from == "sampler"
        keeping = dataclasses.replace(sampling, keep_states=from_sampler)
        programs = cls(
            prefill=Program("prefill", rollout.prefill),
            rollout=Program("rollout", functools.partial(rollout.generate, sampling=keeping)),
            score=Program("score", _scores_of_sampler if from_sampler else functools.partial(score, **scoring)),
            select=Program("select", functools.partial(_select, objective=objective)),
            reflect=Program("reflect", functools.partial(rollout.generate, sampling=sampling)),
            score_reflected=Program("score of reflections", functools.partial(score, **scoring)),
            assemble=Program("assemble", functools.partial(train_batch.assemble, objective=objective)),
            reference=Program("reference", functools.partial(_reference_logprobs, **scoring)),
            update=Program("update", update, donate=(0,)),
        )
        for bucket in all_buckets(config):
            programs._compile(bucket, config, processor, state)
        return programs

    def _compile(
        self, bucket: Bucket, config: ml_collections.ConfigDict, processor: Processor, state: TrainState
    ) -> None:
        size, num_rollouts = config.train.prompts, config.rollout.num_rollouts
        length, forbidden, key = config.rollout.response_len, processor.forbidden_mask, _abstract_key()
        prompts = abstract_prompts(size, bucket, processor.image_spec)
        prefix = self.prefill.compile(bucket, state.params, prompts)
        forced = jax.eval_shape(lambda: rollout.nothing_forced(size, num_rollouts))
        rollouts = self.rollout.compile(bucket, state.params, prefix, forced, forbidden, key)
        verdicts = abstract_verdicts(size, num_rollouts, length)
        scores = self.score.compile(bucket, state.params, prompts, rollouts, verdicts, forbidden)
        subgroup = self.select.compile(bucket, rollouts, verdicts, scores, key)
        num_forced = reflect.forced_width(processor, config.objective)
        forced = jax.eval_shape(
            lambda: Forced(
                token_ids=jnp.zeros((size, 1, num_forced), jnp.int32),
                forced_len=jnp.zeros((size, 1), jnp.int32),
                active=jnp.zeros((size, 1), bool),
            )
        )
        one = abstract_verdicts(size, 1, length)
        if config.objective.reflect.enabled:
            reflected = self.reflect.compile(bucket, state.params, prefix, forced, forbidden, key)
            self.score_reflected.compile(bucket, state.params, prompts, reflected, one, forbidden)
        reflection = jax.eval_shape(lambda: train_batch.no_reflection(size, length))
        output = self.assemble.compile(bucket, prompts, rollouts, verdicts, scores, subgroup, reflection)
        if config.objective.kl_coef > 0:
            self.reference.compile(bucket, state.params, prompts, output.batch.token_ids, forbidden)
        self.update.compile(bucket, state, output.batch, forbidden)


def _abstract_key() -> Array:
    return jax.eval_shape(lambda: jax.random.key(0))


def _scores_of_sampler(
    model: QwenVL, prompts: Prompts, rollouts: Rollouts, verdicts: Verdicts, forbidden_mask: Array
) -> Scores:
    """In place of a scoring pass, so that a step reads the same with both."""
    return scores_of_sampler(rollouts, verdicts)


def _select(
    rollouts: Rollouts, verdicts: Verdicts, scores: Scores, key: Array, *, objective: ml_collections.FrozenConfigDict
):
    return select_subgroup(
        correct=verdicts.correct,
        think_len=verdicts.think_mask.sum(-1, dtype=jnp.int32),
        answer_len=verdicts.answer_mask.sum(-1, dtype=jnp.int32),
        response_len=rollouts.response_len,
        logprobs_old=scores.logprobs,
        sampled_mask=rollouts.sampled_mask,
        think_states=scores.think_states,
        key=key,
        objective=objective,
    )


def _reference_logprobs(
    model: QwenVL, prompts: Prompts, token_ids: Array, forbidden_mask: Array, *, temperature: float, chunk: int
) -> Array:
    hidden = model.forward_branches(prompts, token_ids).predicting
    return token_scores(
        model, hidden, token_ids, forbidden_mask=forbidden_mask, temperature=temperature, chunk=chunk
    ).logprobs
