"""One weight of a model, in Hugging Face's layout and in ours.

Hugging Face keeps one tensor a layer and matrices as [out, in]; we stack the layers of a tower on a leading axis and
keep matrices as [in, out].
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Sequence
from typing import Literal

import numpy as np

from care_jax.checkpoints.array_store import Index

# "hub": visual.*, model.*, lm_head.* (published Qwen2.5-VL, and what transformers writes for it);
# "nested": model.visual.*, model.language_model.*, lm_head.* (published Qwen3-VL and Qwen3.5, the names of
# transformers' modules in memory, and Qwen2.5-VL in files that other tools saved).
Layout = Literal["hub", "nested"]

PIECE_BYTES = 64 * 2**20  # of a weight in memory at a time; two or three pieces are, with their copies
_STRIP = 16  # columns that are transposed at a time


@dataclasses.dataclass(frozen=True)
class Weight:
    """A Hugging Face tensor, or one for each layer, and the array of ours that holds it.

    With `sections` the rows of a tensor lie otherwise in ours: a tensor has sections of these sizes, each of them with
    rows of every one of `num_heads`, and ours has the rows of all sections by head.
    """

    hf: str  # name in the hub layout, with {i} for the layer when there are `layers`
    ours: str
    shape: tuple[int, ...]  # of one Hugging Face tensor
    kernel: bool = False  # a matrix [out, in] or convolution [out, ...], kept here as [in, out]
    layers: Sequence[int] | None = None  # the numbers of those that are stacked; None: a single tensor
    sections: tuple[int, ...] = ()
    num_heads: int = 1

    @property
    def hf_names(self) -> list[str]:
        """Names in the hub layout, in the order of the layers."""
        return [self.hf] if self.layers is None else [self.hf.format(i=i) for i in self.layers]

    @property
    def our_shape(self) -> tuple[int, ...]:
        """Shape of our array."""
        one = (math.prod(self.shape[1:]), self.shape[0]) if self.kernel else self.shape
        return one if self.layers is None else (len(self.layers), *one)

    @property
    def row_axis(self) -> int:
        """The axis of our array along which the rows of a Hugging Face tensor lie."""
        return len(self.our_shape) - 1 if self.kernel else int(self.layers is not None)

    def place(self, layer: int, rows: slice = slice(None)) -> Index:
        """The index of our array at which `rows` of the tensor of place `layer` in the stack lie."""
        one = (slice(None), rows) if self.kernel else (rows,)
        return one if self.layers is None else (layer, *one)

    def to_ours(self, rows: np.ndarray) -> np.ndarray:
        """Rows of a tensor as they lie in our array, without sections a view; with them it takes all rows."""
        rows = rows[self._order] if self.sections else rows
        return rows.reshape(len(rows), -1).T if self.kernel else rows

    def to_hf(self, part: np.ndarray) -> np.ndarray:
        """The inverse of `to_ours`, contiguous."""
        rows = _transposed(part).reshape(-1, *self.shape[1:]) if self.kernel else part
        return rows[np.argsort(self._order)] if self.sections else rows

    @property
    def _order(self) -> np.ndarray:
        """The row of a Hugging Face tensor at each of our places."""
        ends = np.cumsum(self.sections)
        by_head = [rows.reshape(self.num_heads, -1) for rows in np.split(np.arange(ends[-1]), ends[:-1])]
        return np.concatenate(by_head, axis=1).reshape(-1)


def _transposed(matrix: np.ndarray) -> np.ndarray:
    """A contiguous copy, in strips that stay in the cache: numpy's own takes ten times as long."""
    out = np.empty(matrix.shape[::-1], matrix.dtype)
    for start in range(0, len(matrix), _STRIP):
        out[:, start : start + _STRIP] = matrix[start : start + _STRIP].T
    return out


def row_ranges(weight: Weight, chunk_shape: tuple[int, ...], dtype: np.dtype) -> Iterator[slice]:
    """Ranges of rows of a Hugging Face tensor, each whole chunks of our array of at most PIECE_BYTES, or one chunk.

    A tensor with sections is one range.
    """
    if weight.sections:
        return iter([slice(0, weight.shape[0])])
    chunk_rows = min(chunk_shape[weight.row_axis], weight.shape[0])
    row_bytes = math.prod(weight.shape[1:]) * dtype.itemsize
    step = chunk_rows * max(1, PIECE_BYTES // (chunk_rows * row_bytes))
    return (slice(start, min(start + step, weight.shape[0])) for start in range(0, weight.shape[0], step))
