"""Decoding for evaluation: a step's sampler and prefill, with its own batch size and number of samples."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
import ml_collections
import numpy as np
from jax.sharding import Mesh

from care_jax import step
from care_jax.inputs.processor import Processor
from care_jax.method.objectives import Objective
from care_jax.models import QwenVL
from care_jax.parallel.sharding import (
    ROWS,
    WHOLE,
    abstract_arrays,
    num_shards,
    own_share,
    place,
    put,
    put_rows,
    round_up,
)
from care_jax.stages import sampler
from care_jax.stages.compiled import EVERY_BUCKET, CompiledStages, bucket_of, compile_all
from care_jax.stages.rollout import nothing_forced
from care_jax.stages.table import Bucket, DeviceStage, Setup, Table
from care_jax.structs import Array, Prompts, Rollouts, abstract

# Whatever rollout.weights says: what is evaluated is the policy.
SAMPLER = dataclasses.replace(
    step.SAMPLER, timer="evaluate", function=sampler.make_params, out_shardings=sampler.params_shardings
)
PREFILL = dataclasses.replace(step.PREFILL, name="evaluation prefill", timer="evaluate", is_drawing=False)
DECODE = DeviceStage(
    "evaluation decode",
    timer="evaluate",
    takes=("sampler", "prefix", "unforced", "forbidden_mask", "key"),
    gives=("rollouts",),
    function=lambda setup: sampler.make_decode(setup, setup.sampling),
    on_shards=False,
)


def start_of_evaluation(setup: Setup, bucket: Bucket) -> dict[str, Any]:
    """The values that are there before EVALUATION, as shapes with shardings."""
    prompts = place(setup.mesh, abstract(Prompts, **setup.prompt_dims(bucket)), ROWS)
    return step.start_of_step(setup, bucket) | {"prompts": prompts}


EVALUATION = Table((SAMPLER, PREFILL, DECODE), start_of_evaluation, logged=("rollouts",))


def batch_size(config: ml_collections.ConfigDict, mesh: Mesh, num_records: int) -> int:
    """The prompts of a batch of an evaluation, over all devices.

    They take the memory of a rollout, which is mostly keys and values. Each of a step's train.prompts prompts has those
    of P + G R tokens: P of the largest of data.prompt_buckets, R of each of G branches. In an evaluation it has k =
    eval.num_samples branches, and to prefill it takes about as much again as its own keys and values, so

        batch = train.prompts (P + G R) / max(2 P, P + k R)

    or eval.batch_size, if that is set. The batches of `num_records` records are equally large, up to what the shards
    divide, so a small source is one small batch.
    """
    prompt_len, response_len = max(config.data.prompt_buckets), config.rollout.response_len
    shards = num_shards(mesh)
    most = config.eval.batch_size
    if most == 0:
        of_rollout = config.train.prompts * (prompt_len + config.rollout.num_rollouts * response_len)
        of_prompt = prompt_len + max(prompt_len, config.eval.num_samples * response_len)
        most = of_rollout // of_prompt // shards * shards
    num_records = max(num_records, 1)
    num_batches = -(-num_records // max(most, shards))
    return round_up(-(-num_records // num_batches), mesh)


def evaluation_setup(
    config: ml_collections.ConfigDict,
    processor: Processor,
    model: QwenVL,
    mesh: Mesh,
    *,
    num_prompts: int,
    num_samples: int,
    temperature: float,
) -> Setup:
    """The setup of programs that decode `num_samples` responses to each of `num_prompts` prompts, and train nothing."""
    return Setup(
        config=config,
        objective=Objective.from_config(config.objective),
        mesh=mesh,
        num_prompts=num_prompts,
        num_rollouts=num_samples,
        temperature=temperature,
        stop_ids=processor.stop_ids,
        forbidden_mask=processor.forbidden_mask,
        image_spec=processor.image_spec,
        params=abstract_arrays(model),
    )


class Decoder:
    """Decodes the responses to batches of prompts: greedily, or eval.num_samples of them.

    Args:
        config: the run's config.
        processor: has the tokenizer's special ids, and the buckets.
        model: gives shapes and shardings.
        mesh: the mesh that the model is divided over.
        num_records: of the largest source that is asked.
    """

    def __init__(
        self,
        config: ml_collections.ConfigDict,
        processor: Processor,
        model: QwenVL,
        mesh: Mesh,
        num_records: int,
    ):
        """Compiles nothing yet."""
        greedy = config.eval.num_samples == 1
        self.batch_size = batch_size(config, mesh, num_records)  # prompts
        self._mesh, self._share = mesh, own_share(mesh)
        setup = evaluation_setup(
            config,
            processor,
            model,
            mesh,
            num_prompts=self.batch_size,
            num_samples=config.eval.num_samples,
            temperature=0.0 if greedy else config.eval.temperature,
        )
        self.stages = CompiledStages(EVALUATION, setup, processor.buckets, self._share)
        num_own = len(self._share.rows(self.batch_size))
        self._unforced = jax.device_get(nothing_forced(num_own, setup.num_rollouts))
        self._forbidden_mask = put(mesh, processor.forbidden_mask, WHOLE)

    def open(self, model: QwenVL) -> Callable[[Prompts, Sequence[bool], Array], Any]:
        """Makes the function that starts decoding a batch.

        It takes this process's rows of the prompts, which of them are asked, and a random key. The others are not
        decoded. It compiles the programs if nothing has yet.
        """
        if not self.stages.is_compiled:
            compile_all(self.stages)
        start = {"params": model, "forbidden_mask": self._forbidden_mask}
        start |= self.stages.run(SAMPLER, EVERY_BUCKET, start)

        def decode(prompts: Prompts, asked: Sequence[bool], key: Array) -> Any:
            active = self._unforced.active & np.array(asked)[:, None]
            given = {"prompts": prompts, "unforced": self._unforced.replace(active=active)}
            bucket, values = bucket_of(prompts), start | put_rows(self._mesh, given, self._share) | {"key": key}
            values |= self.stages.run(PREFILL, bucket, values)
            return self.stages.run(DECODE, bucket, values)["rollouts"]

        return decode

    def fetch(self, rollouts: Any) -> Rollouts:
        """This process's rows of decoded responses, as NumPy arrays."""
        return self.stages.fetch("rollouts", rollouts)
