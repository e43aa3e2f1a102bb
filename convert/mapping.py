"""A table of weights, read both ways between Hugging Face's names and layouts and ours.

Hugging Face keeps one tensor a layer and matrices as [out, in]; we stack the layers of a tower on a leading axis
and keep matrices as [in, out]. A table is written once, in the key layout of the hub's Qwen2.5-VL files. Everything
that does not fit is told in one error.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Literal, Protocol

import ml_dtypes
import numpy as np

from care_jax.checkpoints.checkpointer import Index

# "hub": visual.*, model.*, lm_head.* (published Qwen2.5-VL, and what transformers writes for it);
# "nested": model.visual.*, model.language_model.*, lm_head.* (published Qwen3-VL, the names of transformers' modules
# in memory, and Qwen2.5-VL in files that other tools saved).
Layout = Literal["hub", "nested"]

_NESTED_TO_HUB = {"model.language_model.": "model.", "model.visual.": "visual."}
# By safetensors' names: what is kept bit for bit, and is exact in float32.
DTYPES = {"F32": np.dtype(np.float32), "BF16": np.dtype(ml_dtypes.bfloat16), "F16": np.dtype(np.float16)}

PIECE_BYTES = 64 * 2**20  # of what is in memory at a time; two or three pieces are, with their copies
_STRIP = 16  # columns that are transposed at a time


class Shaped(Protocol):
    """An array, or one that is still on disk."""

    @property
    def shape(self) -> tuple[int, ...]: ...


class Typed(Shaped, Protocol):
    """The same, with safetensors' name of its type."""

    @property
    def dtype(self) -> str: ...


@dataclasses.dataclass(frozen=True)
class Weight:
    """One row of a table: a Hugging Face tensor, or one a layer, and the array of ours that holds it."""

    hf: str  # name in the hub layout, with {i} for the layer when there are `layers`
    ours: str
    shape: tuple[int, ...]  # of one Hugging Face tensor
    kernel: bool = False  # a matrix [out, in] or convolution [out, ...], kept here as [in, out]
    layers: int | None = None  # how many are stacked; None: a single tensor

    @property
    def hf_names(self) -> list[str]:
        """Names in the hub layout, in the order of the layers."""
        return [self.hf] if self.layers is None else [self.hf.format(i=i) for i in range(self.layers)]

    @property
    def our_shape(self) -> tuple[int, ...]:
        """Shape of our array."""
        one = (math.prod(self.shape[1:]), self.shape[0]) if self.kernel else self.shape
        return one if self.layers is None else (self.layers, *one)

    @property
    def row_axis(self) -> int:
        """The axis of our array along which the rows of a Hugging Face tensor lie."""
        return len(self.our_shape) - 1 if self.kernel else int(self.layers is not None)

    def place(self, layer: int, rows: slice = slice(None)) -> Index:
        """Where `rows` of a layer's tensor lie in our array."""
        one = (slice(None), rows) if self.kernel else (rows,)
        return one if self.layers is None else (layer, *one)

    def to_ours(self, rows: np.ndarray) -> np.ndarray:
        """Rows of a tensor as they lie in our array: a view."""
        return rows.reshape(len(rows), -1).T if self.kernel else rows

    def to_hf(self, part: np.ndarray) -> np.ndarray:
        """The inverse of `to_ours`, contiguous."""
        return _transposed(part).reshape(-1, *self.shape[1:]) if self.kernel else part


def _transposed(matrix: np.ndarray) -> np.ndarray:
    """A contiguous copy, in strips that stay in the cache: numpy's own takes ten times as long."""
    out = np.empty(matrix.shape[::-1], matrix.dtype)
    for start in range(0, len(matrix), _STRIP):
        out[:, start : start + _STRIP] = matrix[start : start + _STRIP].T
    return out


@dataclasses.dataclass(frozen=True)
class Source:
    """A Hugging Face tensor of a table."""

    weight: Weight
    layer: int


def row_ranges(weight: Weight, chunk_shape: tuple[int, ...], dtype: np.dtype) -> Iterator[slice]:
    """The rows of a Hugging Face tensor in whole chunks of our array, at most PIECE_BYTES if one chunk is."""
    chunk_rows = min(chunk_shape[weight.row_axis], weight.shape[0])
    row_bytes = math.prod(weight.shape[1:]) * dtype.itemsize
    step = chunk_rows * max(1, PIECE_BYTES // (chunk_rows * row_bytes))
    return (slice(start, min(start + step, weight.shape[0])) for start in range(0, weight.shape[0], step))


def by_hf_name(table: Sequence[Weight]) -> dict[str, Source]:
    """The tensors of a table by name in the hub layout, in the table's order."""
    return {name: Source(weight, i) for weight in table for i, name in enumerate(weight.hf_names)}


def check_tensors(tensors: Mapping[str, Typed], table: Sequence[Weight]) -> dict[str, Source]:
    """What each of the Hugging Face tensors, in either layout, is in the table.

    Raises:
        ValueError: listing every missing, unknown, repeated or mis-shaped tensor, and every type that is not kept.
    """
    wanted = by_hf_name(table)
    given: dict[str, str] = {}
    problems = []
    for name in tensors:
        if hub_name(name) in given:
            problems.append(f"{name}: the same weight as {given[hub_name(name)]}")
        given[hub_name(name)] = name
    problems += [f"{name}: missing" for name in wanted if name not in given]
    problems += [f"{given[name]}: unknown" for name in sorted(given.keys() - wanted.keys())]
    problems += _misshapen({given[name]: wanted[name].weight.shape for name in wanted if name in given}, tensors)
    problems += [
        f"{name}: type {tensor.dtype}, supported: {', '.join(DTYPES)}"
        for name, tensor in tensors.items()
        if tensor.dtype not in DTYPES
    ]
    _raise_for(problems, "Hugging Face tensors")
    return {name: wanted[hub_name(name)] for name in tensors}


def check_params(params: Mapping[str, Shaped], table: Sequence[Weight]) -> None:
    """Raises a ValueError that lists every missing, unknown or mis-shaped parameter."""
    shapes = {weight.ours: weight.our_shape for weight in table}
    problems = [f"{name}: missing" for name in shapes if name not in params]
    problems += [f"{name}: unknown" for name in sorted(params.keys() - shapes.keys())]
    problems += _misshapen({name: shape for name, shape in shapes.items() if name in params}, params)
    _raise_for(problems, "parameters")


def _misshapen(expected: Mapping[str, tuple[int, ...]], given: Mapping[str, Shaped]) -> list[str]:
    return [
        f"{name}: shape {tuple(given[name].shape)}, expected {shape}"
        for name, shape in expected.items()
        if tuple(given[name].shape) != shape
    ]


def _raise_for(problems: list[str], what: str) -> None:
    if problems:
        raise ValueError(
            f"{len(problems)} {what} do not fit the model of config.json (missing: the model needs it; unknown: the"
            " model has no place for it); use the config.json that belongs to them:\n  " + "\n  ".join(problems)
        )


def hub_name(name: str) -> str:
    """A tensor's name in the hub layout, from either."""
    for nested, hub in _NESTED_TO_HUB.items():
        if name.startswith(nested):
            return hub + name.removeprefix(nested)
    return name


def laid_out(name: str, layout: Layout) -> str:
    """The inverse of `hub_name`."""
    if layout == "nested":
        for nested, hub in _NESTED_TO_HUB.items():
            if name.startswith(hub):
                return nested + name.removeprefix(hub)
    return name
