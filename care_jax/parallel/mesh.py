"""The mesh of devices: which sizes of its axes work for a model and its batches. What they divide: sharding.py."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import jax
import ml_collections
import numpy as np
from jax.sharding import AxisType, Mesh

from care_jax.models import ModelConfig
from care_jax.parallel.sharding import AXES


def make_mesh(sizes: Mapping[str, int], devices: Sequence[jax.Device]) -> Mesh:
    """The mesh of sizes that `mesh_sizes` gave, over the devices, with neighbours on neighbouring chips."""
    shape = tuple(sizes[axis] for axis in AXES)
    return jax.make_mesh(shape, AXES, axis_types=(AxisType.Auto,) * len(AXES), devices=devices)


def mesh_sizes(
    config: ml_collections.ConfigDict, model: ModelConfig, num_devices: int, *, training: bool = True
) -> dict[str, int]:
    """Axis sizes from config.mesh, where one may be -1: what the others leave. `training`: not evaluation alone.

    Raises:
        ValueError: one line with what does not divide, and the factorisations that work.
    """
    given = {axis: int(config.mesh[axis]) for axis in AXES}
    product = int(np.prod([size for size in given.values() if size > 0]))
    sizes = {axis: num_devices // product if size == -1 else size for axis, size in given.items()}
    problems = _problems(sizes, config, model, num_devices, training)
    if list(given.values()).count(-1) > 1 or any(size < 1 and size != -1 for size in given.values()):
        problems = ["sizes are positive, and one of them may be -1 (what the others leave)"]
    if not problems:
        return sizes
    working = [
        "x".join(str(size) for size in choice.values())
        for choice in factorisations(num_devices)
        if not _problems(choice, config, model, num_devices, training)
    ]
    shown = "x".join(str(size) for size in given.values())
    raise ValueError(
        f"mesh data x fsdp x tensor = {shown} on {num_devices} devices: {', '.join(problems)}; "
        + (f"these work: {', '.join(working)}" if working else "no other factorisation works with this config either")
    )


def factorisations(num_devices: int) -> list[dict[str, int]]:
    """Every mesh of so many devices."""
    divisors = [n for n in range(1, num_devices + 1) if num_devices % n == 0]
    return [
        dict(zip(AXES, (num_devices // fsdp // tensor, fsdp, tensor), strict=True))
        for tensor in divisors
        for fsdp in reversed(divisors)
        if num_devices // tensor % fsdp == 0
    ]


def _problems(
    sizes: Mapping[str, int], config: ml_collections.ConfigDict, model: ModelConfig, num_devices: int, training: bool
) -> list[str]:
    """What a mesh does not divide."""
    data, fsdp, tensor = (sizes[axis] for axis in AXES)
    if data * fsdp * tensor != num_devices:
        return [f"the product is {data * fsdp * tensor}"]
    text, vision, train = model.text, model.vision, config.train
    rows = train.prompts // (train.minibatches * train.microbatches)
    needs = {
        f"train.prompts / minibatches / microbatches = {rows}": (rows if training else 0, "data * fsdp", data * fsdp),
        f"hidden_size {text.hidden_size}": (text.hidden_size, "fsdp", fsdp),
        f"the vision tower's hidden_size {vision.hidden_size}": (vision.hidden_size, "fsdp", fsdp),
        f"{text.num_attention_heads} heads": (text.num_attention_heads, "tensor", tensor),
        f"{text.num_key_value_heads} key/value heads": (text.num_key_value_heads, "tensor", tensor),
        f"the vision tower's {vision.num_heads} heads": (vision.num_heads, "tensor", tensor),
        f"intermediate_size {text.intermediate_size}": (text.intermediate_size, "tensor", tensor),
        f"vocab_size {text.vocab_size}": (text.vocab_size, "tensor", tensor),
        **{
            f"{size // vision.merge_unit} image tokens of data.patch_buckets": (
                size // vision.merge_unit,
                "tensor",
                tensor,
            )
            for size in config.data.patch_buckets
        },
    }
    return [f"{what} must divide by {axes} = {size}" for what, (count, axes, size) in needs.items() if count % size]
