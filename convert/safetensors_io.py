"""Safetensors files, read and written a few rows of one tensor at a time.

A file is 8 bytes with the header's length, a JSON header, the data.
"""

from __future__ import annotations

import dataclasses
import json
import math
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np
from safetensors import SafetensorError, safe_open

from care_jax.convert.mapping import DTYPES
from care_jax.errors import InputError, shown

_ALIGNMENT = 8  # bytes, of where the data begin


@dataclasses.dataclass(frozen=True)
class Spec:
    """A tensor without its values."""

    dtype: str  # safetensors' name
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        """Size of the data."""
        return math.prod(self.shape) * DTYPES[self.dtype].itemsize


@dataclasses.dataclass(frozen=True)
class Tensor(Spec):
    """A tensor in a file."""

    file: Path
    offset: int  # bytes, from the start of the file

    def read(self, rows: slice = slice(None)) -> np.ndarray:
        """Some rows, or all of them."""
        start, stop, _ = rows.indices(self.shape[0])
        shape, dtype = (stop - start, *self.shape[1:]), DTYPES[self.dtype]
        row_bytes = math.prod(self.shape[1:]) * dtype.itemsize
        raw = np.fromfile(self.file, np.uint8, (stop - start) * row_bytes, offset=self.offset + start * row_bytes)
        return raw.view(dtype).reshape(shape)


class Shard(NamedTuple):
    """The tensors of one file in the order of their data: one that exists, or one to write."""

    tensors: Mapping[str, Spec]
    metadata: Mapping[str, str]


class StoredShard(NamedTuple):
    """A `Shard` on disk."""

    tensors: dict[str, Tensor]
    metadata: dict[str, str]


def read_header(file: Path) -> StoredShard:
    """The tensors of a file.

    Raises:
        InputError: it is cut off, or not a safetensors file.
    """
    try:
        with safe_open(file, framework="numpy"):  # checks the header and the length of the file; reads no values
            pass
    except (SafetensorError, OSError) as error:
        raise InputError(f"{file} is not a whole safetensors file ({shown(str(error))}); download it again") from error
    with file.open("rb") as stream:
        length = int.from_bytes(stream.read(8), "little")
        header = json.loads(stream.read(length))
    metadata = header.pop("__metadata__", {})
    ordered = sorted(header.items(), key=lambda item: item[1]["data_offsets"])
    tensors = {
        name: Tensor(entry["dtype"], tuple(entry["shape"]), file, 8 + length + entry["data_offsets"][0])
        for name, entry in ordered
    }
    return StoredShard(tensors, metadata)


def write(file: Path, shard: Shard, values: Iterable[np.ndarray]) -> None:
    """Writes `shard`; `values` are those of its tensors in their order and types, in pieces of any size."""
    header: dict[str, object] = {"__metadata__": dict(shard.metadata)} if shard.metadata else {}
    end = 0
    for name, spec in shard.tensors.items():
        start, end = end, end + spec.nbytes
        header[name] = {"dtype": spec.dtype, "shape": list(spec.shape), "data_offsets": [start, end]}
    text = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode()
    text += b" " * (-len(text) % _ALIGNMENT)
    with file.open("wb") as stream:
        stream.write(len(text).to_bytes(8, "little") + text)
        for piece in values:
            stream.write(np.ascontiguousarray(piece).reshape(-1).view(np.uint8).data)
        stream.flush()
        os.fsync(stream.fileno())


def are_finite(values: np.ndarray) -> bool:
    """True if there is no NaN and no infinity among values of one of DTYPES; several times as fast as numpy's."""
    if values.dtype == np.float32:
        return not np.any((values.view(np.uint32) & np.uint32(0x7F800000)) == 0x7F800000)
    exponent = np.uint16(0x7C00 if values.dtype == np.float16 else 0x7F80)
    return not np.any((values.view(np.uint16) & exponent) == exponent)
