"""Tables of grids against transformers' modelling code, and M-RoPE positions written down by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from transformers.vision_utils import (
    get_vision_cu_seqlens,
    get_vision_interpolation_indices_and_weights,
    get_vision_position_ids,
    get_vision_window_index,
)

from care_jax.inputs.positions import PatchLayout, mrope_position_ids, patch_tables
from tests.pictures import hub_order, segments

# Grids in patches, windows of 2 x 2 merged tokens: exact multiples, smaller than a window, odd remainders.
GRIDS = [(1, 4, 4), (1, 2, 2), (1, 6, 6), (1, 2, 10), (1, 10, 6), (1, 8, 14), (3, 6, 4)]
WINDOWED = PatchLayout(merge=2, window=2, side=0)


@pytest.mark.parametrize("grid", GRIDS)
def test_window_order_and_positions_equal_transformers(grid):
    """Catches windows cut in patches instead of merged tokens, edge windows dropped, frames sharing a window."""
    tables = patch_tables(grid, WINDOWED)
    tensor = torch.tensor([grid])
    index, cumulative = get_vision_window_index(tensor, 2, 56, 14)
    assert np.array_equal(tables.order, index.numpy())
    assert np.array_equal(tables.vision_index, torch.argsort(index).numpy())
    positions = get_vision_position_ids(tensor, 2).numpy()
    assert np.array_equal(tables.patch_position_ids, positions[hub_order([grid], 4)])
    assert np.array_equal(tables.window_ids, segments(np.diff(cumulative.numpy())))
    assert np.array_equal(tables.frame_ids, segments(np.diff(get_vision_cu_seqlens(tensor).numpy())))
    assert tables.grid_index.shape == tables.grid_weights.shape == (len(positions), 0)


@pytest.mark.parametrize("side", [5, 48])
@pytest.mark.parametrize("grid", [*GRIDS, (1, 2, 96), (2, 94, 50)])
def test_learned_positions_equal_transformers_bit_for_bit(grid, side):
    """Catches corners that do not meet, height and width swapped, a cell past the edge, and the raster order."""
    tables = patch_tables(grid, PatchLayout(merge=2, window=0, side=side))
    index, weights = get_vision_interpolation_indices_and_weights(
        torch.tensor([grid]), side, align_corners=True, spatial_merge_size=2
    )
    assert np.array_equal(tables.grid_index, index.numpy())
    assert tables.grid_weights.dtype == np.float32
    assert np.array_equal(tables.grid_weights, weights.numpy())


def test_without_windows_patches_stay_in_reading_order():
    """Catches windows in a model that has none, and frames that share a segment."""
    tables = patch_tables((2, 6, 8), PatchLayout(merge=2, window=0, side=0))
    assert tables.order.tolist() == tables.vision_index.tolist() == list(range(24))
    assert np.array_equal(tables.patch_position_ids, get_vision_position_ids(torch.tensor([[2, 6, 8]]), 2).numpy())
    assert tables.window_ids.tolist() == tables.frame_ids.tolist() == [1] * 48 + [2] * 48


def test_window_order_by_hand():
    """The picture at the top of positions.py: 3 x 3 merged tokens, windows of 2 x 2."""
    tables = patch_tables((1, 6, 6), WINDOWED)
    assert tables.order.tolist() == [0, 1, 3, 4, 2, 5, 6, 7, 8]
    assert tables.window_ids[::4].tolist() == [1, 1, 1, 1, 2, 2, 3, 3, 4]
    assert tables.patch_position_ids[16:20].tolist() == [[0, 4], [0, 5], [1, 4], [1, 5]]


def test_learned_positions_by_hand():
    """Two rows on a grid of 4 x 4: the top and the bottom one. Four columns: one cell each."""
    tables = patch_tables((1, 2, 4), PatchLayout(merge=2, window=0, side=4))
    assert tables.grid_index[:, 0].tolist() == [0, 1, 12, 13, 2, 3, 14, 15]
    assert tables.grid_weights.tolist() == [[1, 0, 0, 0]] * 8


# v marks vision tokens. Steps are positions from one frame to the next.
MROPE = {
    "text": ("tttt", [], [], [[0, 1, 2, 3]] * 3),
    "one image": (
        "ttvvvvvvt",
        [(1, 4, 6)],
        [1.0],
        [[0, 1, 2, 2, 2, 2, 2, 2, 5], [0, 1, 2, 2, 2, 3, 3, 3, 5], [0, 1, 2, 3, 4, 2, 3, 4, 5]],
    ),
    "images side by side": (
        "vvvvvt",
        [(1, 2, 2), (1, 2, 8)],
        [1.0, 1.0],
        [[0, 1, 1, 1, 1, 5], [0, 1, 1, 1, 1, 5], [0, 1, 2, 3, 4, 5]],
    ),
    "a tall image first and last": (
        "vvvtvv",
        [(1, 6, 2), (1, 2, 4)],
        [1.0, 1.0],
        [[0, 0, 0, 3, 4, 4], [0, 1, 2, 3, 4, 4], [0, 0, 0, 3, 4, 5]],
    ),
    # Qwen2.5-VL. The steps are rounded down frame by frame: 0, 1.5 and 3.
    "a video whose width goes furthest": (
        "tvvvvvvvvvvvvt",
        [(3, 2, 8)],
        [1.5],
        [
            [0, 1, 1, 1, 1, 2, 2, 2, 2, 4, 4, 4, 4, 5],
            [0, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 5],
            [0, 1, 2, 3, 4, 1, 2, 3, 4, 1, 2, 3, 4, 5],
        ],
    ),
    # ... and where time goes furthest the text goes on behind it, not inside the video (transformers 5.23 does).
    "a slow video": (
        "tvvvtt",
        [(3, 2, 2)],
        [4.0],
        [[0, 1, 5, 9, 10, 11], [0, 1, 1, 1, 10, 11], [0, 1, 1, 1, 10, 11]],
    ),
    "a video of half steps": (  # an integer cast of the step would leave all frames at one place
        "vvvvt",
        [(4, 2, 2)],
        [0.5],
        [[0, 0, 1, 1, 2], [0, 0, 0, 0, 2], [0, 0, 0, 0, 2]],
    ),
    "an image, then a video": (
        "tvvvvtvvvvvvt",
        [(1, 4, 4), (3, 2, 4)],
        [1.0, 1.5],
        [
            [0, 1, 1, 1, 1, 3, 4, 4, 5, 5, 7, 7, 8],
            [0, 1, 1, 2, 2, 3, 4, 4, 4, 4, 4, 4, 8],
            [0, 1, 2, 1, 2, 3, 4, 5, 4, 5, 4, 5, 8],
        ],
    ),
    # Qwen3-VL: each frame is an image of its own between its time and the next.
    "frames between times": (
        "ttvvttvvt",
        [(1, 2, 4), (1, 2, 4)],
        [1.0, 1.0],
        [[0, 1, 2, 2, 4, 5, 6, 6, 8], [0, 1, 2, 2, 4, 5, 6, 6, 8], [0, 1, 2, 3, 4, 5, 6, 7, 8]],
    ),
    "an image, then frames": (
        "vvvvtvvtvvt",
        [(1, 4, 4), (1, 4, 2), (1, 4, 2)],
        [1.0, 1.0, 1.0],
        [
            [0, 0, 0, 0, 2, 3, 3, 5, 6, 6, 8],
            [0, 0, 1, 1, 2, 3, 4, 5, 6, 7, 8],
            [0, 1, 0, 1, 2, 3, 3, 5, 6, 6, 8],
        ],
    ),
}


@pytest.mark.parametrize("case", MROPE)
def test_mrope_by_hand(case):
    """Catches text that goes on at the number of vision tokens or inside a video, and steps that are rounded first."""
    marks, grids, steps, expected = MROPE[case]
    mask = np.array([mark == "v" for mark in marks])
    assert mrope_position_ids(mask, grids, steps, merge=2).tolist() == expected


def test_mrope_refuses_a_mask_that_misses_tokens():
    """Catches positions that are read past the end of a run."""
    with pytest.raises(ValueError, match=r"3 vision tokens given for grids .* that need 4"):
        mrope_position_ids(np.array([0, 1, 1, 1], bool), [(1, 4, 4)], [1.0], merge=2)
