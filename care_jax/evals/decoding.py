"""Decoding for evaluation: a step's sampler and prefill, with its own batch size and number of samples."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import ml_collections
from jax.sharding import Mesh

from care_jax import step
from care_jax.inputs.processor import Processor
from care_jax.method.objectives import Objective
from care_jax.models import QwenVL
from care_jax.parallel.sharding import ROWS, WHOLE, abstract_arrays, place, put, round_up
from care_jax.stages import sampler
from care_jax.stages.compiled import EVERY_BUCKET, CompiledStages, bucket_of, compile_all
from care_jax.stages.rollout import nothing_forced
from care_jax.stages.table import Bucket, DeviceStage, Setup, Table
from care_jax.structs import Array, Prompts, Rollouts, abstract

SAMPLER = dataclasses.replace(step.SAMPLER, timer="evaluate")
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


class Decoder:
    """Decodes the responses to batches of prompts: greedily, or eval.num_samples of them."""

    def __init__(self, config: ml_collections.ConfigDict, processor: Processor, model: QwenVL, mesh: Mesh):
        """Compiles nothing yet; `model` gives shapes and shardings."""
        greedy = config.eval.num_samples == 1
        self.batch_size = round_up(config.eval.batch_size, mesh)  # prompts
        setup = Setup(
            config=config,
            objective=Objective.from_config(config.objective),
            mesh=mesh,
            num_prompts=self.batch_size,
            num_rollouts=config.eval.num_samples,
            temperature=0.0 if greedy else config.eval.temperature,
            stop_ids=processor.stop_ids,
            forbidden_mask=processor.forbidden_mask,
            image_spec=processor.image_spec,
            params=abstract_arrays(model),
        )
        self.stages = CompiledStages(EVALUATION, setup, processor.buckets)
        self._start = {
            "unforced": put(mesh, jax.device_get(nothing_forced(self.batch_size, setup.num_rollouts))),
            "forbidden_mask": put(mesh, processor.forbidden_mask, WHOLE),
        }

    def open(self, model: QwenVL) -> Callable[[Prompts, Array], Any]:
        """Makes the function that starts decoding a batch from its prompts, on the devices, and a random key.

        It compiles the programs if nothing has yet.
        """
        if not self.stages.is_compiled:
            compile_all(self.stages)
        start = self._start | {"params": model}
        start |= self.stages.run(SAMPLER, EVERY_BUCKET, start)

        def decode(prompts: Prompts, key: Array) -> Any:
            bucket, values = bucket_of(prompts), start | {"prompts": prompts, "key": key}
            values |= self.stages.run(PREFILL, bucket, values)
            return self.stages.run(DECODE, bucket, values)["rollouts"]

        return decode

    def fetch(self, rollouts: Any) -> Rollouts:
        """Decoded responses as NumPy arrays, on every process."""
        return self.stages.fetch("rollouts", rollouts)
