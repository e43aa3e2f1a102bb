"""The least that a step must compute, read, send and hold, counted from the architecture and the run's sizes.

Counts are of full buckets: every prompt of P tokens and I patches in one image, every response of R tokens, a forced
prefix included; one that is dropped is not counted. A matrix product of m x k by k x n has 2 m k n FLOPs; a query and a
key that meet have 4 C a head (the score and its share of the value); a token of linear attention has 6 C Cv a value
head (its state is read twice and corrected, as in the recurrent form; chunks have up to twice as many). Norms,
activations and rotations, about one per cent, are left out. What chips send each other is what ZeRO-3 and Megatron's
halves need (sharding.py), each collective sending the least that it can.
"""

from __future__ import annotations

import dataclasses

import ml_collections

from care_jax import step
from care_jax.models.trained import reference_part
from care_jax.planning.chips import Chip
from care_jax.planning.passes import Pass
from care_jax.planning.sizes import Sizes, count_bytes
from care_jax.stages.table import Compute, DeviceStage

BOUNDS = ("compute", "memory", "links")


@dataclasses.dataclass(frozen=True)
class Work:
    """The needs of one stage of a step, over all chips."""

    tokens: int  # of the decoder
    flops: float  # each product once; of an update also those of the backward pass
    recomputed: float  # FLOPs of products that the backward pass computes again
    parameter_bytes: float  # of parameters that are read in their whole length along fsdp
    state_bytes: float  # of parameters and optimizer, read and written where they lie
    cache_bytes: float  # of keys, values and states that decoding reads, and of states that it writes
    link_bytes: float  # that one chip receives


def step_work(sizes: Sizes, config: ml_collections.ConfigDict) -> dict[str, Work]:
    """The stages of a step that has full length, by the names of their programs."""
    length, prompts = sizes.response_len, sizes.prompts
    whole = sizes.num_params * sizes.weight_bytes

    def full_pass(rows: int) -> Pass:
        layers = sizes.prompt_flops() + rows * sizes.branch_flops()
        parts = (sizes.bucket[0] + rows * length, sizes.vision_flops(), layers, rows * sizes.head_flops())
        return Pass(*(prompts * part for part in parts))

    def passes(rows: int) -> Work:
        """Prompt and `rows` full branches of each prompt in one forward pass."""
        done = full_pass(rows)
        received = sizes.gathered_bytes(*sizes.gathered_modules(sizes.params)) + sizes.summed_bytes(done.tokens, sums=2)
        return Work(round(done.tokens), done.flops, 0, whole, 0, 0, received)

    def decodes(rows: int) -> Work:
        """`rows` branches of each prompt, a token at a time."""
        weights: float = sizes.decode_bytes
        keys = sizes.key_bytes(sizes.bucket[0]) * length + rows * sizes.key_bytes(length * (length + 1) // 2)
        keys += rows * 2 * sizes.state_bytes * length
        flops = rows * (sizes.branch_flops() + sizes.head_flops())
        tokens = prompts * rows * length
        received = sizes.summed_bytes(tokens, sums=2, parts=sizes.decode_tensor)
        # `floors` divides by the mesh's tensor.
        weights *= length * sizes.mesh["tensor"] / sizes.decode_tensor
        return Work(tokens, prompts * flops, 0, weights, 0, prompts * keys, received)

    def update(rows: int) -> Work:
        forward, backward = full_pass(rows), sizes.backward
        # Forward and backward two a layer; of a layer that is computed again the MLP's sum is not needed.
        num_data, sums = sizes.mesh["data"], 5 if sizes.model.remat != "none" else 4
        of_gradients = 4 * sizes.num_trained / (sizes.mesh["fsdp"] * sizes.mesh["tensor"])
        return Work(
            tokens=round(forward.tokens),
            flops=forward.updated(backward),
            recomputed=forward.recomputed(backward, remat=sizes.model.remat),
            parameter_bytes=2 * sizes.micro_batches * whole,
            # Of what is trained parameter, gradient and Adam's two moments are read, all but the gradient written.
            state_bytes=sizes.minibatches * 7 * 4 * sizes.num_trained,
            cache_bytes=0,
            link_bytes=sizes.fsdp_minimum()
            + sizes.summed_bytes(forward.tokens, sums)
            + sizes.minibatches * of_gradients * 2 * (num_data - 1) / num_data,
        )

    def work(compute: Compute) -> Work:
        if compute.mode == "train":
            return update(compute.branches(config))
        return (decodes if compute.mode == "decode" else passes)(compute.branches(config))

    stages = [stage for stage in step.STEP.when(config).stages if isinstance(stage, DeviceStage)]
    return {stage.name: work(stage.compute) for stage in stages if stage.compute is not None}


def floors(sizes: Sizes, work: Work, chip: Chip) -> dict[str, float]:
    """Seconds that a stage takes at the least, were it bound by FLOPs, by reading HBM or by the links alone.

    Each chip reads the parameters that it uses, which tensor alone divides, and its own part of state and cache.
    """
    read = work.parameter_bytes / sizes.mesh["tensor"] + (work.state_bytes + work.cache_bytes) / sizes.num_chips
    return {
        "compute": (work.flops + work.recomputed) / (sizes.num_chips * chip.peak_flops),
        "memory": read / chip.hbm_bytes_per_s,
        "links": work.link_bytes / chip.link_bytes_per_s,
    }


def least_seconds(sizes: Sizes, config: ml_collections.ConfigDict, chip: Chip) -> float:
    """Lower bound on a step: each stage takes the largest of its compute, memory and link times."""
    return sum(max(floors(sizes, work, chip).values()) for work in step_work(sizes, config).values())


def least_bytes(sizes: Sizes, config: ml_collections.ConfigDict) -> float:
    """Lower bound on one chip's memory: the larger of decoding and updating."""
    trained, parts = sizes.num_trained, sizes.mesh["fsdp"] * sizes.mesh["tensor"]
    kept = count_bytes(sizes.params) + 8 * trained  # Adam's two moments
    kept += count_bytes(reference_part(sizes.params)) if config.objective.kl_coef > 0 else 0
    keys = sizes.key_bytes(sizes.bucket[0]) + sizes.num_rollouts * sizes.key_bytes(sizes.response_len)
    keys += (1 + sizes.num_rollouts) * sizes.state_bytes
    decodes = sizes.sampler_bytes / sizes.decode_tensor
    decodes += sizes.prompts * keys / sizes.num_chips
    updates = 4 * trained / parts + sizes.activation_bytes()
    return kept / parts + max(decodes, updates)
