"""Weights of any shape go to our arrays and back in pieces, and into files of any size, without loss."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from care_jax.convert import weight as weight_lib
from care_jax.convert.jax_to_hf import split
from care_jax.convert.safetensors_io import Spec
from care_jax.convert.weight import Weight, row_ranges


@st.composite
def weights(draw: st.DrawFn) -> tuple[Weight, tuple[int, ...]]:
    """A weight and the shape of a chunk of our array."""
    shape = tuple(draw(st.lists(st.integers(1, 40), min_size=1, max_size=4)))
    layers = draw(st.none() | st.sampled_from([(0,), (2, 5), (0, 1, 2)]))
    is_kernel = len(shape) > 1 and draw(st.booleans())
    num_heads, sections = 1, ()
    if draw(st.booleans()):
        num_heads, sections = draw(st.integers(1, 3)), tuple(draw(st.lists(st.integers(1, 5), min_size=1, max_size=3)))
        sections = tuple(num_heads * size for size in sections)
        shape = (sum(sections), *shape[1:])
    shape = shape[:1] + tuple(min(n, 6) for n in shape[1:])
    weight = Weight("w{i}" if layers else "w", "w", shape, is_kernel, layers, sections, num_heads)
    return weight, tuple(draw(st.integers(1, n)) for n in weight.our_shape)


@given(drawn=weights(), piece_bytes=st.sampled_from([1, 100, 5000, 2**20]), dtype=st.sampled_from(["f4", "f2"]))
@settings(max_examples=150, deadline=None, derandomize=True, database=None)
def test_pieces_make_the_whole(drawn: tuple[Weight, tuple[int, ...]], piece_bytes: int, dtype: str) -> None:
    """Catches rows that are left out or written twice, a chunk that is cut, and a layer or axis that changes place."""
    weight, chunk = drawn
    layers = range(len(weight.hf_names))
    numbers = np.arange(len(layers) * math.prod(weight.shape)).reshape(len(layers), *weight.shape).astype(dtype)
    ours, written = np.zeros(weight.our_shape, dtype), np.zeros(weight.our_shape, int)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(weight_lib, "PIECE_BYTES", piece_bytes)
        ranges = list(row_ranges(weight, chunk, np.dtype(dtype)))
    for layer in layers:
        back = []
        for rows in ranges:
            place = weight.place(layer, rows)
            ours[place] = weight.to_ours(numbers[layer][rows])
            written[place] += 1
            back.append(weight.to_hf(ours[place]))
            assert rows.start % min(chunk[weight.row_axis], weight.shape[0]) == 0
        assert np.array_equal(np.concatenate(back), numbers[layer])
        index = (layer,) if weight.layers is not None else ()
        rows = numbers[layer][by_head(weight)]
        flat = rows.reshape(weight.shape[0], -1)
        assert np.array_equal(ours[index], flat.T if weight.kernel else rows)
    assert (written == 1).all()


def by_head(weight: Weight) -> list[int]:
    """The row of Hugging Face's tensor at each place of ours."""
    if not weight.sections:
        return list(range(weight.shape[0]))
    order = []
    for head in range(weight.num_heads):
        start = 0
        for section in weight.sections:
            size = section // weight.num_heads
            order += range(start + head * size, start + (head + 1) * size)
            start += section
    return order


@given(sizes=st.lists(st.integers(1, 50), min_size=1, max_size=30), most=st.integers(1, 120))
@settings(max_examples=200, deadline=None, derandomize=True, database=None)
def test_files_hold_every_tensor_once(sizes: list[int], most: int) -> None:
    """Catches a tensor that no file has, a file past its size, and one that is closed before it is full."""
    specs = {f"t{i}": Spec("F32", (size,)) for i, size in enumerate(sizes)}
    shards = split(specs, most)
    assert [name for shard in shards.values() for name in shard.tensors] == list(specs)
    assert all(shard.tensors[name] is specs[name] for shard in shards.values() for name in shard.tensors)
    filled = [sum(spec.nbytes for spec in shard.tensors.values()) for shard in shards.values()]
    for shard, num_bytes in zip(shards.values(), filled, strict=True):
        assert num_bytes <= most or len(shard.tensors) == 1
    firsts = [next(iter(shard.tensors.values())).nbytes for shard in shards.values()]
    assert all(before + first > most for before, first in zip(filled, firsts[1:], strict=False))
    names = [f"model-{i:05}-of-{len(shards):05}.safetensors" for i in range(1, len(shards) + 1)]
    assert list(shards) == (names if len(shards) > 1 else ["model.safetensors"])
