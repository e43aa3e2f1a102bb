"""The mesh of devices: which sizes of its axes divide a model and its batches. What the axes mean: sharding.py."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import jax
import numpy as np
from jax.sharding import AxisType, Mesh

from care_jax.errors import InputError
from care_jax.parallel.sharding import AXES

# By description, counts and the mesh axes among which they have to be divided evenly.
Needs = Mapping[str, tuple[int, tuple[str, ...]]]


def create_device_mesh(sizes: Mapping[str, int], devices: Sequence[jax.Device]) -> Mesh:
    """The mesh with the sizes from `fit_sizes`, over the devices, with neighbours on neighbouring chips."""
    shape = tuple(sizes[axis] for axis in AXES)
    return jax.make_mesh(shape, AXES, axis_types=(AxisType.Auto,) * len(AXES), devices=devices)


def fit_sizes(given: Mapping[str, int], needs: Needs, num_devices: int) -> dict[str, int]:
    """Axis sizes as given, where one may be -1: what the others leave.

    Raises:
        InputError: one line with what does not divide, and the factorisations that work.
    """
    given = {axis: int(given[axis]) for axis in AXES}
    product = int(np.prod([size for size in given.values() if size > 0]))
    sizes = {axis: num_devices // product if size == -1 else size for axis, size in given.items()}
    problems = _problems(sizes, needs, num_devices)
    if list(given.values()).count(-1) > 1 or any(size < 1 and size != -1 for size in given.values()):
        problems = ["sizes are positive, and one of them may be -1 (what the others leave)"]
    if not problems:
        return sizes
    working = [
        "x".join(str(size) for size in choice.values())
        for choice in factorisations(num_devices)
        if not _problems(choice, needs, num_devices)
    ]
    shown = "x".join(str(size) for size in given.values())
    raise InputError(
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


def _problems(sizes: Mapping[str, int], needs: Needs, num_devices: int) -> list[str]:
    """The reasons why a mesh of these sizes does not work; none if it does."""
    product = int(np.prod(list(sizes.values())))
    if product != num_devices:
        return [f"the product is {product}"]
    parts = {what: int(np.prod([sizes[axis] for axis in axes])) for what, (_, axes) in needs.items()}
    return [
        f"{what} must divide by {' * '.join(axes)} = {parts[what]}"
        for what, (count, axes) in needs.items()
        if count % parts[what]
    ]
