"""Positions of patches and tokens: attention segments, rotary and learned positions of the patches, M-RoPE ids.

A grid is (frames, height, width) in patches. Patches lie frame by frame, in window order, in units of one merged
token (merge * merge patches), so that no device ever permutes them. A 6 x 6 grid with merge 2 and windows of 2 x 2
merged tokens:

    merged tokens, reading order      window order            window_ids of the merged tokens
        0 1 | 2                       0 1 3 4 | 2 5 | 6 7 | 8        1 1 1 1 2 2 3 3 4
        3 4 | 5
        ---------
        6 7 | 8

Without windows (Qwen3-VL) the window order is the reading order, and a frame is one window.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

GridTHW = tuple[int, int, int]  # (frames, height, width) in patches


class PatchLayout(NamedTuple):
    """The settings of a model that the tables of a grid depend on, beside the grid itself."""

    merge: int  # patches a side of one merged token
    window: int  # merged tokens a side of one attention window; 0: a frame is one window
    side: int  # cells a side of the learned position grid; 0: there is none


class PatchTables(NamedTuple):
    """Tables of one grid; all in window order but `vision_index`. n merged tokens, m = n * merge**2 patches."""

    order: npt.NDArray[np.int32]  # [n] reading-order index of each merged token
    vision_index: npt.NDArray[np.int32]  # [n] row, in window order, of each merged token in reading order
    patch_position_ids: npt.NDArray[np.int32]  # [m, 2] (height, width) of each patch
    window_ids: npt.NDArray[np.int32]  # [m] from 1
    frame_ids: npt.NDArray[np.int32]  # [m] from 1
    grid_index: npt.NDArray[np.int32]  # [m, 4] cells of the learned grid around each patch; [m, 0] without one
    grid_weights: npt.NDArray[np.float32]  # [m, 4] and their bilinear weights; [m, 0] without one


def count_tokens(grids: Sequence[GridTHW], merge: int) -> int:
    """Counts the merged tokens of several grids."""
    return sum(t * (h // merge) * (w // merge) for t, h, w in grids)


@functools.lru_cache(maxsize=512)  # a table has up to 0.2 MB
def patch_tables(grid: GridTHW, layout: PatchLayout) -> PatchTables:
    """Computes the tables of a grid.

    Frames share no window; windows at the right and lower edge are smaller. Source: Qwen2.5-VL technical report (arXiv
    2502.13923) section 2.1, checked against transformers.
    """
    merge = layout.merge
    frames, height, width = grid[0], grid[1] // merge, grid[2] // merge
    window = layout.window or max(height, width)
    t, h, w = (axis.ravel() for axis in np.indices((frames, height, width)))
    windows_h, windows_w = -(-height // window), -(-width // window)
    window_of = (t * windows_h + h // window) * windows_w + w // window
    order = np.argsort(window_of, kind="stable")
    in_h, in_w = (axis.ravel() for axis in np.indices((merge, merge)))
    rows, columns = (h[order, None] * merge + in_h).ravel(), (w[order, None] * merge + in_w).ravel()
    index, weights = _grid_cells(rows, columns, grid[1:], layout.side)
    tables = PatchTables(
        order=order.astype(np.int32),
        vision_index=np.argsort(order).astype(np.int32),
        patch_position_ids=np.stack([rows, columns], axis=-1).astype(np.int32),
        window_ids=np.repeat(window_of[order] + 1, merge * merge).astype(np.int32),
        frame_ids=np.repeat(t[order] + 1, merge * merge).astype(np.int32),
        grid_index=index,
        grid_weights=weights,
    )
    for table in tables:
        table.setflags(write=False)  # shared by every example with this grid
    return tables


def _grid_cells(
    rows: npt.NDArray[np.int64], columns: npt.NDArray[np.int64], size: tuple[int, int], side: int
) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.float32]]:
    """Finds the four cells of the learned grid around each patch, and their weights.

    A frame of `size` patches is laid on the square grid so that the corners meet. The float32 operations are those of
    transformers, one by one.
    """
    if not side:
        return np.zeros((len(rows), 0), np.int32), np.zeros((len(rows), 0), np.float32)
    cells, weights = [], []
    for index, patches in zip((rows, columns), size, strict=True):
        at = index.astype(np.float32) * np.float32(side - 1) / np.float32(max(patches - 1, 1))
        near = np.floor(at)[:, None] + np.arange(2, dtype=np.float32)
        weights.append(1 - np.abs(at[:, None] - near))
        cells.append(np.minimum(near, side - 1).astype(np.int32))
    index_4 = cells[0][:, :, None] * side + cells[1][:, None, :]
    weights_4 = weights[0][:, :, None] * weights[1][:, None, :]
    return index_4.reshape(-1, 4), weights_4.reshape(-1, 4).astype(np.float32)


def mrope_position_ids(
    vision_mask: npt.NDArray[np.bool_], grids: Sequence[GridTHW], time_steps: Sequence[float], *, merge: int
) -> npt.NDArray[np.int32]:
    """Computes the M-RoPE positions of a prompt.

    Text counts on all three axes alike, and continues after a run of vision tokens at the run's largest position over
    all axes plus one. Source: Qwen2-VL (arXiv 2409.12191) section 2.1. transformers 5.23 continues after a video at its
    largest height or width instead, even if time has gone further; Qwen's own code agrees with this function.

    Args:
        vision_mask: [P], True at vision tokens.
        grids: one for each run of vision tokens, in order.
        time_steps: for each run, the positions from one patch in time to the next; their multiples are rounded down
            (tokens_per_second * seconds for videos of Qwen2.5-VL). Not used for runs of one patch in time.
        merge: patches a side of one merged token.

    Returns:
        [3, P] int32, (time, height, width).

    Raises:
        ValueError: mask and grids disagree.
    """
    tokens = [t * (h // merge) * (w // merge) for t, h, w in grids]
    if sum(tokens) != int(vision_mask.sum()):
        raise ValueError(f"{int(vision_mask.sum())} vision tokens given for grids {grids} that need {sum(tokens)}")
    positions = np.empty((3, len(vision_mask)), np.int32)
    starts = np.flatnonzero(vision_mask)[np.cumsum([0, *tokens[:-1]])] if grids else []
    done, position = 0, 0
    for start, count, (t, h, w), step in zip(starts, tokens, grids, time_steps, strict=True):
        positions[:, done:start] = np.arange(position, position + start - done)
        position += start - done
        time, row, column = np.indices((t, h // merge, w // merge), np.int32).reshape(3, -1)
        # In float32 like the reference: if the step is not a binary fraction, the precision decides the rounding.
        time = np.floor(time.astype(np.float32) * np.float32(step)).astype(np.int32)
        positions[:, start : start + count] = np.stack([time, row, column]) + position
        done, position = start + count, int(positions[:, start : start + count].max()) + 1
    positions[:, done:] = np.arange(position, position + len(vision_mask) - done)
    return positions
