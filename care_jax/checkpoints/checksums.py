"""A checksum of every array, taken on the devices: what comes back from disk is what was trained.

A sum is a uint32, the same on every mesh: (2 i + 1) times the bits of element i, summed modulo 2^32. These are
integers, so the order of summation is free, and any one changed bit changes the sum.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from care_jax.errors import InputError

NamedArrays = dict[str, dict[str, jax.Array]]  # folder of a checkpoint -> name -> array
Sums = dict[str, dict[str, jax.Array]]  # the same with the checksum in place of the array


@jax.jit
def checksums(arrays: NamedArrays) -> Sums:
    """The checksum of each array, computed where it lies, and asynchronously."""
    return jax.tree.map(_checksum, arrays)


def _checksum(x: jax.Array) -> jax.Array:
    unsigned = {1: jnp.uint8, 2: jnp.uint16, 4: jnp.uint32}[x.dtype.itemsize]
    index = jnp.zeros(x.shape, jnp.uint32)
    for axis, size in enumerate(x.shape):
        index = index * jnp.uint32(size) + jax.lax.broadcasted_iota(jnp.uint32, x.shape, axis)
    bits = jax.lax.bitcast_convert_type(x, unsigned).astype(jnp.uint32)
    return jnp.sum(bits * (jnp.uint32(2) * index + jnp.uint32(1)), dtype=jnp.uint32)


def require_equal(actual: Mapping[str, Mapping[str, Any]], saved: Mapping[str, Any]) -> None:
    """Compares checksums on the host with those that were saved.

    Raises:
        InputError: some differ; names those arrays.
    """
    differing = [
        f"{folder}: {name}"
        for folder, sums in actual.items()
        for name, value in sums.items()
        if saved.get(folder, {}).get(name) != int(value)
    ]
    if differing:
        raise InputError(f"checksum mismatch: {', '.join(differing)}")
