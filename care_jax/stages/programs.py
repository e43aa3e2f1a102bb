"""Every device program of a run, compiled before its first step for every bucket.

A call outside the buckets is an error instead of a silent compilation (pitfall: a new image size on a TPU).
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import optax
from absl import logging
from jax.sharding import Mesh, NamedSharding

from care_jax.inputs.images import ImageSpec
from care_jax.inputs.processor import Processor
from care_jax.method import reflect, train_batch
from care_jax.method.loss import policy_loss
from care_jax.method.objectives import Objective, keeps_forced
from care_jax.method.subgroup import select_subgroup
from care_jax.models import QwenVL
from care_jax.models.cache import PREFIX_SPECS
from care_jax.models.model_config import VisionConfig
from care_jax.parallel.sharding import (
    ROWS,
    WHOLE,
    gathered,
    is_addressable,
    named,
    on_shards,
    param_specs,
    place,
    round_up,
)
from care_jax.stages import rollout
from care_jax.stages.rollout import Sampling
from care_jax.stages.score import score, scores_of_sampler, token_scores
from care_jax.stages.train_state import TrainState
from care_jax.stages.update import make_update, update_shardings
from care_jax.structs import Array, Forced, Prompts, Rollouts, Scores, Verdicts

Bucket = tuple[int, int]  # prompt tokens, patches
EVERY_BUCKET = (0, 0)  # of a program that has nothing to do with prompts


class Program:
    """A function compiled ahead of time, once per bucket, for the shapes and shardings of its arguments.

    `specs` makes the PartitionSpecs of a function that runs on shards, as `sharding.on_shards` takes them; without them
    it runs on whole arrays, its results divided as `out_shardings` say. `read` is the part of the results that the host
    reads.
    """

    def __init__(
        self,
        name: str,
        function: Callable,
        mesh: Mesh,
        *,
        specs: Callable[..., tuple[tuple, Any]] | None = None,
        out_shardings: Any = None,
        donate: tuple[int, ...] = (),
        read: Callable[[Any], Any] | None = None,
    ):
        self.name = name
        self._specs, self._out_shardings = specs, out_shardings
        if specs is not None:
            function = on_shards(mesh, function, specs)
        self._jitted = jax.jit(function, donate_argnums=donate, out_shardings=out_shardings)
        self._compiled: dict[Bucket, Any] = {}
        self._read, self._mesh = read, mesh
        self._copy_to_all: Any = None

    def compile(self, bucket: Bucket, *args: Any) -> Any:
        """Compiles for the shapes and shardings of `args`, arrays or ShapeDtypeStructs. Returns `output`."""
        started = time.time()
        self._compiled[bucket] = self.lower(*args).compile()
        logging.info("compiled %s for %d tokens, %d patches in %.1f s", self.name, *bucket, time.time() - started)
        output = self.output(*args)
        if self._read is not None and self._copy_to_all is None and not is_addressable(self._mesh):
            copy = jax.jit(lambda x: x, out_shardings=NamedSharding(self._mesh, WHOLE))
            self._copy_to_all = copy.lower(self._read(output)).compile()
        return output

    def lower(self, *args: Any) -> jax.stages.Lowered:
        """The program for the shapes and shardings of `args`, traced and not yet compiled."""
        return self._jitted.lower(*args)

    def output(self, *args: Any) -> Any:
        """The result's shapes and shardings; nothing is compiled."""
        shapes = jax.eval_shape(self._jitted, *args)
        shardings = self._out_shardings
        if self._specs is not None:
            shardings = named(self._mesh, self._specs(*args)[1])
        return jax.tree.map(
            lambda x, sharding: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding),
            shapes,
            jax.tree.broadcast(shardings, shapes),
        )

    def __call__(self, bucket: Bucket, *args: Any) -> Any:
        return self._compiled[bucket](*args)

    def fetch(self, output: Any) -> Any:
        """What the host reads of an output, as NumPy arrays, whole on every process. Its shapes know no bucket."""
        assert self._read is not None
        if self._copy_to_all is None:
            return jax.device_get(self._read(output))
        return jax.tree.map(lambda x: np.asarray(x.addressable_data(0)), self._copy_to_all(self._read(output)))


def bucket_of(prompts: Prompts) -> Bucket:
    """The bucket a batch was padded to."""
    return prompts.token_ids.shape[1], prompts.patches.shape[1]


def all_buckets(config: ml_collections.ConfigDict) -> list[Bucket]:
    """Every pair of a prompt and a patch bucket."""
    return list(itertools.product(config.data.prompt_buckets, config.data.patch_buckets))


def abstract_prompts(batch: int, bucket: Bucket, spec: ImageSpec | VisionConfig) -> Prompts:
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

    batch_size: int  # eval.batch_size, rounded up to what the mesh divides
    sampler: Program
    prefill: Program
    generate: Program

    @classmethod
    def build(cls, config: ml_collections.ConfigDict, processor: Processor, model: QwenVL, mesh: Mesh) -> EvalPrograms:
        """Compiles all for every bucket."""
        greedy = config.eval.num_samples == 1
        sampling = make_sampling(config, processor.stop_ids, 0.0 if greedy else config.eval.temperature)
        programs = cls(
            batch_size=round_up(config.eval.batch_size, mesh),
            sampler=_sampler(mesh),
            prefill=_prefill("evaluation prefill", mesh),
            generate=_generate("evaluation decode", sampling, mesh),
        )
        size = programs.batch_size
        forced = jax.eval_shape(lambda: rollout.nothing_forced(size, config.eval.num_samples))
        sampler = programs.sampler.compile(EVERY_BUCKET, model)
        for bucket in all_buckets(config):
            prompts = place(mesh, abstract_prompts(size, bucket, processor.image_spec), ROWS)
            prefix = programs.prefill.compile(bucket, model, prompts)
            programs.generate.compile(
                bucket,
                sampler,
                prefix,
                place(mesh, forced, ROWS),
                place(mesh, processor.forbidden_mask, WHOLE),
                _abstract_key(mesh),
            )
        return programs


@dataclasses.dataclass(frozen=True)
class Inputs:
    """What the programs must know of a model's files, the parameters aside."""

    stop_ids: tuple[int, ...]
    forbidden_mask: Array  # [V] bool
    image_spec: ImageSpec | VisionConfig
    num_forced: int  # F, tokens of the longest forced prefix of a reflection

    @classmethod
    def of(cls, processor: Processor, objective: Objective) -> Inputs:
        """As the processor read them."""
        num_forced = reflect.forced_width(processor, objective)
        return cls(processor.stop_ids, processor.forbidden_mask, processor.image_spec, num_forced)


@dataclasses.dataclass(frozen=True)
class TrainPrograms:
    """The stages of a CARE step, in order."""

    sampler: Program
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
        cls,
        config: ml_collections.ConfigDict,
        inputs: Inputs,
        state: TrainState,
        optimizer: optax.GradientTransformation,
        mesh: Mesh,
    ) -> TrainPrograms:
        """Compiles every stage for every bucket; reflection and reference only where the objective uses them."""
        programs = cls.declare(config, inputs, state, optimizer, mesh)
        programs.sampler.compile(EVERY_BUCKET, state.params)
        for bucket in all_buckets(config):
            for program, args in programs.arguments(bucket, config, inputs, state, mesh):
                program.compile(bucket, *args)
        return programs

    @classmethod
    def declare(
        cls,
        config: ml_collections.ConfigDict,
        inputs: Inputs,
        state: TrainState,
        optimizer: optax.GradientTransformation,
        mesh: Mesh,
    ) -> TrainPrograms:
        """The stages, not compiled for anything yet."""
        objective = Objective.from_config(config.objective)
        sampling = make_sampling(config, inputs.stop_ids, config.rollout.temperature)
        scoring = {"temperature": config.rollout.temperature, "chunk": config.model.logits_chunk}
        from_sampler = config.score.old_from == "sampler"
        keeping = dataclasses.replace(sampling, keep_states=from_sampler)
        rows = NamedSharding(mesh, ROWS)
        update = make_update(
            optimizer,
            functools.partial(policy_loss, objective=objective),
            minibatches=config.train.minibatches,
            microbatches=config.train.microbatches,
            mesh=mesh,
            **scoring,
        )
        return cls(
            sampler=_sampler(mesh),
            prefill=_prefill("prefill", mesh),
            # What dynamic sampling puts together anew must have all its parts.
            rollout=_generate("rollout", keeping, mesh, read_states=objective.dynamic_sampling),
            score=Program(
                "score",
                _scores_of_sampler if from_sampler else functools.partial(score, **scoring),
                mesh,
                specs=_score_specs,
                read=lambda scores: scores.replace(think_states=None),
            ),
            select=Program(
                "select",
                functools.partial(_select, objective=objective),
                mesh,
                out_shardings=rows,
                read=lambda subgroup: subgroup,
            ),
            reflect=_generate(
                "reflect", dataclasses.replace(sampling, drop_forced=not keeps_forced(objective.reflect)), mesh
            ),
            score_reflected=Program(
                "score of reflections",
                functools.partial(score, **scoring),
                mesh,
                specs=_score_specs,
                read=lambda scores: scores.replace(think_states=None),
            ),
            assemble=Program(
                "assemble",
                functools.partial(train_batch.assemble, objective=objective),
                mesh,
                out_shardings=rows,
                read=lambda assembled: assembled.replace(batch=assembled.batch.replace(prompts=None)),
            ),
            reference=Program(
                "reference",
                functools.partial(_reference_logprobs, **scoring),
                mesh,
                specs=lambda model, *_: ((param_specs(model), ROWS, ROWS, WHOLE), ROWS),
            ),
            update=Program(
                "update",
                update,
                mesh,
                out_shardings=update_shardings(mesh, state),
                donate=(0,),
            ),
        )

    def arguments(
        self, bucket: Bucket, config: ml_collections.ConfigDict, inputs: Inputs, state: TrainState, mesh: Mesh
    ) -> Iterator[tuple[Program, tuple]]:
        """What a step of a bucket uses but the sampler, in order, with the shapes and shardings of the arguments."""
        size, num_rollouts = config.train.prompts, config.rollout.num_rollouts
        length, key = config.rollout.response_len, _abstract_key(mesh)
        forbidden = place(mesh, inputs.forbidden_mask, WHOLE)

        def rows(tree: Any) -> Any:
            return place(mesh, tree, ROWS)

        sampler = self.sampler.output(state.params)
        prompts = rows(abstract_prompts(size, bucket, inputs.image_spec))
        yield self.prefill, (state.params, prompts)
        prefix = self.prefill.output(state.params, prompts)
        forced = rows(jax.eval_shape(lambda: rollout.nothing_forced(size, num_rollouts)))
        yield self.rollout, (drawing := (sampler, prefix, forced, forbidden, key))
        rollouts = self.rollout.output(*drawing)
        verdicts = rows(abstract_verdicts(size, num_rollouts, length))
        yield self.score, (scoring := (state.params, prompts, rollouts, verdicts, forbidden))
        scores = self.score.output(*scoring)
        yield self.select, (rollouts, verdicts, scores, key)
        subgroup = self.select.output(rollouts, verdicts, scores, key)
        if config.objective.reflect.enabled:
            cued = jax.eval_shape(
                lambda: Forced(
                    token_ids=jnp.zeros((size, 1, inputs.num_forced), jnp.int32),
                    forced_len=jnp.zeros((size, 1), jnp.int32),
                    active=jnp.zeros((size, 1), bool),
                )
            )
            yield self.reflect, (drawing := (sampler, prefix, rows(cued), forbidden, key))
            repaired, verdicts_of_one = self.reflect.output(*drawing), rows(abstract_verdicts(size, 1, length))
            yield self.score_reflected, (state.params, prompts, repaired, verdicts_of_one, forbidden)
        reflection = rows(jax.eval_shape(lambda: train_batch.no_reflection(size, length)))
        yield self.assemble, (assembling := (prompts, rollouts, verdicts, scores, subgroup, reflection))
        batch = self.assemble.output(*assembling).batch
        if config.objective.kl_coef > 0:
            yield self.reference, (state.params, prompts, batch.token_ids, forbidden)
        yield self.update, (state, batch, forbidden)


def _sampler(mesh: Mesh) -> Program:
    def specs(model: QwenVL) -> tuple[tuple, Any]:
        return (param_specs(model),), gathered(param_specs(jax.eval_shape(QwenVL.for_sampling, model)))

    return Program("the sampler's parameters", QwenVL.for_sampling, mesh, specs=specs)


def _prefill(name: str, mesh: Mesh) -> Program:
    return Program(name, rollout.prefill, mesh, specs=lambda model, _: ((param_specs(model), ROWS), PREFIX_SPECS))


def _generate(name: str, sampling: Sampling, mesh: Mesh, *, read_states: bool = False) -> Program:
    def specs(sampler: QwenVL, *_: Any) -> tuple[tuple, Any]:
        return (gathered(param_specs(sampler)), PREFIX_SPECS, ROWS, WHOLE, WHOLE), ROWS

    return Program(
        name,
        functools.partial(rollout.generate, sampling=sampling),
        mesh,
        specs=specs,
        read=lambda rollouts: rollouts if read_states else dataclasses.replace(rollouts, states=None),
    )


def _score_specs(model: QwenVL, *_: Any) -> tuple[tuple, Any]:
    return (param_specs(model), ROWS, ROWS, ROWS, WHOLE), ROWS


def _abstract_key(mesh: Mesh) -> Array:
    return place(mesh, jax.eval_shape(lambda: jax.random.key(0)), WHOLE)


def _scores_of_sampler(
    model: QwenVL, prompts: Prompts, rollouts: Rollouts, verdicts: Verdicts, forbidden_mask: Array
) -> Scores:
    """In place of a scoring pass, so that a step reads the same with both."""
    return scores_of_sampler(rollouts, verdicts)


def _select(
    rollouts: Rollouts, verdicts: Verdicts, scores: Scores, key: jax.Array, *, objective: Objective
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
