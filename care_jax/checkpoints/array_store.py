"""Named arrays on disk as Orbax writes them: cut into chunks, read in parts and in any sharding."""

from __future__ import annotations

import concurrent.futures
import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
import tensorstore as ts
from etils import epath

from care_jax.errors import InputError

Index = tuple[int | slice, ...]

_AT_ONCE = 4  # arrays being read, so that their size on the host is bounded
# Arrays above the first size are stored in chunks of at most the second, so that a part can be read without the rest:
# by another mesh, or by an export.
_WHOLE_BYTES, _CHUNK_BYTES = 4 * 2**20, 64 * 2**20


def save_args(tree: Any) -> Any:
    """Tells Orbax how to cut the leaves of `tree` into chunks; those of stacked matrices lie within a layer."""
    return jax.tree.map(_chunks, tree)


def _chunks(x: Any) -> ocp.SaveArgs:
    if math.prod(x.shape) * x.dtype.itemsize <= _WHOLE_BYTES:
        return ocp.SaveArgs()
    return ocp.SaveArgs(chunk_byte_size=_CHUNK_BYTES, shard_axes=(0,) if len(x.shape) == 3 else ())


@dataclasses.dataclass(frozen=True)
class StoredParam:
    """An array on disk, in the type it was saved with."""

    shape: tuple[int, ...]
    dtype: np.dtype
    chunk_shape: tuple[int, ...]  # the least that is read
    store: ts.TensorStore

    def read(self, index: Index) -> ts.Future[np.ndarray]:
        """Starts reading a part of it."""
        future = self.store[index].read()
        future.force()
        return future


def open_arrays(folder: epath.Path) -> dict[str, StoredParam]:
    """The arrays in `folder`, by name; none of their values is read.

    Raises:
        InputError: there are none, or the files that list or describe them cannot be read.
    """
    try:
        stores = _open(folder)
    except ValueError as error:
        raise InputError(f"{folder.name} cannot be read: {error}") from error
    if not stores:
        raise InputError(f"{folder.name} holds no arrays")
    return {
        name: StoredParam(
            tuple(store.shape), store.dtype.numpy_dtype, tuple(store.chunk_layout.read_chunk_template.shape), store
        )
        for name, store in stores.items()
    }


def _open(folder: epath.Path) -> dict[str, ts.TensorStore]:
    parent, name = str(folder.parent).removeprefix("gs://"), f"{folder.name}/"
    base = {"driver": "file", "path": f"{parent}/{name}"}
    if str(folder).startswith("gs://"):
        bucket, *path = parent.split("/")
        base = {"driver": "gcs", "bucket": bucket, "path": "/".join((*path, name))}
    database = {"driver": "ocdbt", "base": base}
    keys = ts.KvStore.open(database).result().list().result()
    names = [key.decode().removesuffix("/.zarray") for key in sorted(keys) if key.endswith(b"/.zarray")]
    opening = {
        name: ts.open({"driver": "zarr", "kvstore": database | {"path": f"{name}/"}}, read=True) for name in names
    }
    return {name: future.result() for name, future in opening.items()}


def read_arrays(folder: epath.Path, like: Mapping[str, Any]) -> dict[str, jax.Array]:
    """The arrays in `folder`, by the names and in the shapes, types and shardings of `like`.

    Orbax's own reader is not used: if one array fails, it leaves its other tasks running and other processes waiting.

    Args:
        folder: the folder of one item of a checkpoint.
        like: arrays or ShapeDtypeStructs by name.

    Raises:
        InputError: one line that names every array that is missing, unknown, of another shape or unreadable.
    """
    stored = open_arrays(folder)
    problems = [f"missing {name}" for name in like if name not in stored]
    problems += [
        f"{name} has shape {param.shape}, expected {like[name].shape}" if name in like else f"unknown {name}"
        for name, param in stored.items()
        if name not in like or param.shape != like[name].shape
    ]
    if problems:
        raise InputError(f"{folder.name}: {'; '.join(problems)}")
    return read_stored(folder, stored, like)


def read_stored(folder: epath.Path, stored: Mapping[str, StoredParam], like: Mapping[str, Any]) -> dict[str, jax.Array]:
    """Those of the arrays in `folder`, as `open_arrays` gives them, that `like` names, in its types and shardings.

    Raises:
        InputError: one line that names an array that cannot be read.
    """
    with concurrent.futures.ThreadPoolExecutor(_AT_ONCE) as pool:
        arrays = pool.map(lambda name: _read(f"{folder.name}: {name}", stored[name], like[name]), like)
        return dict(zip(like, arrays, strict=True))


def _read(name: str, stored: StoredParam, like: Any) -> jax.Array:
    parts: dict[str, np.ndarray] = {}  # devices that hold the same part share one reading of it

    def part(index: Any) -> np.ndarray:
        key = str(index)
        if key not in parts:
            parts[key] = stored.read(index).result().astype(like.dtype, copy=False)
        return parts[key]

    try:
        return jax.make_array_from_callback(like.shape, like.sharding, part)
    except ValueError as error:
        raise InputError(f"{name} cannot be read: {error}") from error
