"""Grids of any size: what an image is scaled to, the order of its patches, and the positions of its tokens."""

from __future__ import annotations

import collections

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from care_jax.inputs.images import smart_resize
from care_jax.inputs.positions import PatchLayout, count_tokens, mrope_position_ids, patch_tables

FACTOR = 28
GRIDS = st.tuples(st.integers(1, 3), st.integers(1, 7), st.integers(1, 7))  # frames, and merged tokens of a side


@given(height=st.integers(1, 4000), ratio=st.floats(0.01, 100), most=st.integers(64, 1280))
@settings(max_examples=300, deadline=None, derandomize=True, database=None)
def test_an_image_keeps_the_limits(height: int, ratio: float, most: int) -> None:
    """Catches a size that is no multiple of a token's, passes a limit, or shrinks anew when it is scaled again."""
    width = max(round(height * ratio), -(-height // 100))
    low, high = 4 * FACTOR**2, most * FACTOR**2
    new = smart_resize(height, width, factor=FACTOR, min_pixels=low, max_pixels=high)
    assert all(side > 0 and side % FACTOR == 0 for side in new)
    assert new[0] * new[1] >= low
    if FACTOR not in new:  # a side of one token cannot shrink further
        assert new[0] * new[1] <= high
        assert smart_resize(*new, factor=FACTOR, min_pixels=low, max_pixels=high) == new


@given(tokens=GRIDS, merge=st.integers(1, 3), window=st.integers(0, 4))
@settings(max_examples=150, deadline=None, derandomize=True, database=None)
def test_windows_divide_the_patches(tokens: tuple[int, int, int], merge: int, window: int) -> None:
    """Catches a patch that is lost or doubled, a window over two frames or larger than it may be, a wrong inverse."""
    grid = (tokens[0], tokens[1] * merge, tokens[2] * merge)
    tables = patch_tables(grid, PatchLayout(merge, window, 0))
    count = count_tokens([grid], merge)
    assert sorted(tables.order) == list(range(count))
    assert np.array_equal(tables.order[tables.vision_index], np.arange(count))
    assert len(tables.window_ids) == count * merge**2
    assert np.array_equal(np.unique(tables.window_ids), np.arange(1, tables.window_ids[-1] + 1))
    assert (np.diff(tables.window_ids) >= 0).all()
    for one in range(1, tables.window_ids[-1] + 1):
        inside = tables.window_ids == one
        assert len(set(tables.frame_ids[inside])) == 1
        rows, columns = tables.patch_position_ids[inside].T
        for axis in (rows, columns) if window else ():
            assert len(set(axis // (window * merge))) == 1
    for frame in range(1, grid[0] + 1):
        places = tables.patch_position_ids[tables.frame_ids == frame]
        assert len(set(map(tuple, places))) == len(places) == grid[1] * grid[2]


@given(parts=st.lists(st.tuples(st.integers(0, 4), GRIDS), max_size=4), tail=st.integers(0, 4))
@settings(max_examples=200, deadline=None, derandomize=True, database=None)
def test_positions_go_on_behind_each_image(parts: list[tuple[int, tuple[int, int, int]]], tail: int) -> None:
    """Catches a text that does not continue behind an image, and images that share or miss a place."""
    merge = 2
    grids = [(frames, height * merge, width * merge) for _, (frames, height, width) in parts]
    runs = [count_tokens([grid], merge) for grid in grids]
    mask = [is_image for (text, _), run in zip(parts, runs, strict=True) for is_image in [False] * text + [True] * run]
    mask += [False] * tail
    positions = mrope_position_ids(np.array(mask, bool), grids, [1.0] * len(grids), merge=merge)
    expected: list[tuple[int, int, int]] = []
    free = 0
    for (text, tokens), _ in zip(parts, runs, strict=True):
        expected += [(free + i,) * 3 for i in range(text)]
        free += text
        image = [(free + t, free + h, free + w) for t, h, w in np.ndindex(*tokens)]
        expected += image
        free = max(map(max, image)) + 1
    expected += [(free + i,) * 3 for i in range(tail)]
    assert positions.T.tolist() == [list(place) for place in expected]
    assert max(collections.Counter(expected).values(), default=1) == 1
