"""A checksum of every array, and NaN looked for: what comes back from disk is what was trained, and can be used.

A sum is a uint32, the same on every mesh: (2 i + 1) times the bits of element i, summed modulo 2^32. These are
integers, so the order of summation is free, and any one changed bit changes the sum. Those of parameters are taken of
their float32 values, whatever type they are stored in. Devices sum whole arrays; a conversion, which never holds one,
sums its parts on the host.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath

from care_jax.checkpoints.array_store import Index
from care_jax.errors import InputError, listed

NamedArrays = dict[str, dict[str, jax.Array]]  # folder of a checkpoint -> name -> array
Sums = dict[str, dict[str, jax.Array]]  # the same with the checksum in place of the array


def sums_file(params: epath.Path) -> epath.Path:
    """The file with the checksums of the parameters in the folder `params`; JSON of Sums."""
    return params.parent / "checksums" / "metadata"


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


class PartialSum:
    """The checksum of the float32 values of one array, from its parts, each added once and in any order."""

    def __init__(self, shape: tuple[int, ...]):
        """Takes the shape of the whole array."""
        self._shape, self._sum = shape, 0

    def add(self, index: Index, part: np.ndarray) -> None:
        """Adds the part that lies at `index` of the array."""
        whole = (*index, *[slice(None)] * (len(self._shape) - len(index)))
        bits = part.astype(np.float32, copy=False).view(np.uint32)
        bits = bits[tuple(np.newaxis if isinstance(at, int) else slice(None) for at in whole)]
        total = int(bits.sum(dtype=np.uint32))
        stride = 1
        for axis in reversed(range(bits.ndim)):  # i is the sum of stride * place over the axes, so 2 i x is too
            at = whole[axis]
            start = at if isinstance(at, int) else at.indices(self._shape[axis])[0]
            others = tuple(other for other in range(bits.ndim) if other != axis)
            places = np.arange(start, start + bits.shape[axis], dtype=np.uint32)
            along = int((bits.sum(axis=others, dtype=np.uint32) * places).sum(dtype=np.uint32))
            total += 2 * stride * along
            stride *= self._shape[axis]
        self._sum = (self._sum + total) % 2**32

    def value(self) -> int:
        """The checksum, when every part was added."""
        return self._sum


@jax.jit
def are_finite(arrays: NamedArrays) -> NamedArrays:
    """True for each array without NaN or infinity."""
    return jax.tree.map(lambda x: jnp.all(jnp.isfinite(x)), arrays)


def require_finite(arrays: NamedArrays) -> None:
    """Looks at every value, where the arrays lie.

    Raises:
        InputError: some are NaN or infinite; names those arrays.
    """
    require_all_finite(jax.device_get(are_finite(arrays)))


def require_all_finite(finite: Mapping[str, Mapping[str, Any]]) -> None:
    """Looks at what `are_finite` has found, on the host.

    Raises:
        InputError: some are NaN or infinite; names those arrays.
    """
    if broken := [name for named in finite.values() for name, is_finite in named.items() if not is_finite]:
        raise InputError(f"NaN or infinity in {listed(broken)}; use weights from before they broke")


def digest(sums: Mapping[str, Any]) -> str:
    """One short text for the checksums of a model's parameters, by name."""
    text = json.dumps({name: int(value) for name, value in sums.items()}, sort_keys=True)
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


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
        raise InputError(f"checksum mismatch: {listed(differing)}")
