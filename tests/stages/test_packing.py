"""Streams: every token that is wanted lies in one place, behind its prompt, and the shards share the work."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from care_jax.stages.packing import PromptLengths, StreamSizes, pack, padding_share, shorter_len
from care_jax.stages.streams import Packed
from care_jax.structs import Packing, Prompts
from tests.packings import make_packing

P, PATCHES, R = 24, 16, 10  # padded prompt, patches and row


def draw(seed: int, *, num_prompts: int, num_rows: int) -> tuple[PromptLengths, np.ndarray]:
    """Lengths of prompts and rows; some prompts have no image, some rows and groups are left out."""
    rng = np.random.default_rng(seed)
    tokens = rng.integers(2, P + 1, num_prompts).astype(np.int32)
    patches = (4 * rng.integers(0, PATCHES // 4 + 1, num_prompts)).astype(np.int32)
    row_len = rng.integers(1, R + 1, (num_prompts, num_rows)) * (rng.random((num_prompts, num_rows)) < 0.8)
    return PromptLengths(tokens, patches), (row_len * (rng.random((num_prompts, 1)) < 0.8)).astype(np.int32)


def sizes_of(row_len: np.ndarray, *, shards: int, parts: int, stream_len: int) -> StreamSizes:
    """The shape of a packing of such rows."""
    num_prompts, num_rows = row_len.shape
    dims = {"num_prompts": num_prompts, "num_rows": num_rows, "shards": shards, "parts": parts}
    return StreamSizes.make(**dims, bucket=(P, PATCHES), row_len=R, stream_len=stream_len)


def rows_found(packing: Packing, sizes: StreamSizes, num_rows: int) -> dict[tuple[int, int], tuple[int, int, int]]:
    """Part, length and prompt's length of each packed row, by prompt and row; checks how it lies on the way."""
    found, size = {}, sizes.num_prompts // sizes.shards
    for number in range(len(packing.streams.num_targets)):
        source, group, branch, target, predictor, patches = (
            np.asarray(getattr(packing.streams, name)[number])
            for name in ("source", "group", "branch", "target", "predictor", "patch_source")
        )
        shard, part = divmod(number // sizes.num_streams, sizes.parts)
        owners = []
        for one in range(1, group.max(initial=0) + 1):
            (places,) = np.nonzero(group == one)
            assert np.array_equal(places, np.arange(places[0], places[-1] + 1))
            in_prompt = places[branch[places] == 0]
            place, start = divmod(int(source[in_prompt[0]]), P)
            assert start == 0
            assert np.array_equal(source[in_prompt], place * P + np.arange(len(in_prompt)))
            assert place % sizes.parts == part
            owners.append(place)
            prompt = int(packing.order[shard * size + place])
            for which in range(1, branch[places].max() + 1):
                own = places[branch[places] == which]
                row, start = divmod(int(source[own[0]] - size * P), R)
                assert start == 0
                assert row // num_rows == place
                assert np.array_equal(source[own] - source[own[0]], np.arange(len(own)))
                first = np.flatnonzero(target == own[0])[0]
                assert np.array_equal(target[first : first + len(own)], own)
                assert list(predictor[first : first + len(own)]) == [in_prompt[-1], *own[:-1]]
                assert (prompt, row % num_rows) not in found
                found[prompt, row % num_rows] = part, len(own), len(in_prompt)
        real = patches[patches >= 0]
        assert [place for place in dict.fromkeys((real // PATCHES).tolist()) if place not in owners] == []
        assert packing.streams.num_targets[number] == (branch > 0).sum()
        assert np.array_equal(source >= 0, group > 0)
    return found


@given(
    seed=st.integers(0, 10**6),
    groups=st.sampled_from([2, 4, 6]),
    num_rows=st.integers(1, 6),
    shards=st.sampled_from([1, 2, 4]),
    stream_len=st.sampled_from([P + R, 50, 90, 400]),
)
@settings(max_examples=150, deadline=None)
def test_every_wanted_row_lies_in_one_place(seed, groups, num_rows, shards, stream_len):
    """Catches a row that is lost, doubled, cut or behind another prompt, and a minibatch that gets another's group."""
    parts = 2
    prompts, row_len = draw(seed, num_prompts=groups * shards, num_rows=num_rows)
    sizes = sizes_of(row_len, shards=shards, parts=parts, stream_len=stream_len)
    packing = pack(sizes, prompts, row_len)
    size = groups
    wanted = {
        (int(prompt), int(row)): (int(prompt) % size % parts, int(row_len[prompt, row]), int(prompts.tokens[prompt]))
        for prompt, row in zip(*np.nonzero(row_len), strict=True)
    }
    assert rows_found(packing, sizes, num_rows) == wanted
    assert sorted(packing.order.tolist()) == list(range(len(row_len)))
    assert np.array_equal(packing.order[packing.home], np.arange(len(row_len)))
    assert shards > 1 or np.array_equal(packing.order, packing.home)
    if not wanted:
        assert padding_share(packing, sizes) == 1.0


def test_shards_share_the_work():
    """Catches groups that stay where the data put them: the busiest shard then computes what all others wait for."""
    long, short = [R] * 4, [1, 0, 0, 0]
    row_len = np.array([long, long, short, short, long, short, long, short], np.int32)
    prompts = PromptLengths(np.full(8, P, np.int32), np.zeros(8, np.int32))
    sizes = sizes_of(row_len, shards=4, parts=1, stream_len=P + 4 * R)
    packing = pack(sizes, prompts, row_len)
    tokens = (packing.streams.source >= 0).reshape(4, -1).sum(axis=1)
    assert tokens.tolist() == [2 * P + 4 * R + 1] * 4


def test_groups_go_to_the_shard_with_the_fewest_tokens():
    """Catches shards that take turns, longest group first, whatever they have already."""
    row_len = np.array([[8], [4], [4], [3], [3], [1]], np.int32)
    prompts = PromptLengths(np.full(6, 2, np.int32), np.zeros(6, np.int32))
    packing = pack(sizes_of(row_len, shards=2, parts=1, stream_len=90), prompts, row_len)
    tokens = (packing.streams.source >= 0).reshape(2, -1).sum(axis=1)
    assert sorted(tokens.tolist()) == [17, 18]  # in turns 21 and 14


def test_a_part_keeps_its_groups():
    """Catches a balance that moves a group to another minibatch, whose update it would then belong to."""
    prompts, row_len = draw(3, num_prompts=12, num_rows=3)
    packing = pack(sizes_of(row_len, shards=2, parts=3, stream_len=90), prompts, row_len)
    assert np.array_equal(packing.order % 6 % 3, np.tile([0, 1, 2], 4))


@pytest.mark.parametrize(
    ("last_row", "shards", "computed"),
    [(10, 1, 46 + 46), (10, 2, 2 * 46), (13, 1, 60 + 46), (13, 2, 2 * 60)],  # the fuller stream has 44 or 47 tokens
)
def test_padding_counts_what_shards_wait_for(last_row, shards, computed):
    """Catches a share of padding that leaves out what the busiest shard has and others have not."""
    row_len = np.array([[10, last_row], [10, 0], [0, 0], [0, 0]], np.int32)
    prompts = PromptLengths(np.array([24, 14, 5, 5], np.int32), np.zeros(4, np.int32))
    sizes = sizes_of(row_len, shards=shards, parts=1, stream_len=60)
    share = (24 + 10 + last_row + 14 + 10) / computed
    assert padding_share(pack(sizes, prompts, row_len), sizes) == pytest.approx(1 - share)


def test_each_stream_is_computed_once_with_room_for_its_tokens():
    """Catches a stream that is left out, computed twice, or cut."""
    prompts, row_len = draw(5, num_prompts=12, num_rows=3)
    streams = pack(sizes_of(row_len, shards=1, parts=1, stream_len=60), prompts, row_len).streams
    nothing: Any = None
    packed = Packed(nothing, nothing, streams)
    computed = packed.for_each(lambda index, length, total: total.at[index].add(length), jnp.zeros(len(streams.group)))
    filled = (streams.group > 0).sum(axis=1)
    assert {0, 46, 60} == set(np.unique(computed).tolist())
    np.testing.assert_array_equal(computed, np.where(filled > 46, 60, np.where(filled > 0, 46, 0)))


def test_shorter_streams_are_even():
    """Catches a length that cuDNN's masks do not take, from an even one."""
    for length in range(34, 9000, 2):
        assert shorter_len(length) % 2 == 0
        assert 0.7 * length < shorter_len(length) < length


def test_copies_of_a_prompt_have_images_of_their_own(tiny_prompts: Prompts) -> None:
    """Catches patches of two pieces of a group that see each other: first fit puts pieces 1 and 3 into one stream."""
    prompts = jax.tree.map(lambda x: np.asarray(x)[1:2], tiny_prompts)  # two images
    row_len = np.array([[81, 72, 72, 15]], np.int32)
    length = int(prompts.prompt_len[0])
    streams = make_packing(prompts, row_len, padded_len=81, stream_len=length + 150).streams
    packed = Packed(prompts, np.zeros((1, 4, 81), np.int32), streams)
    found = []
    for index in range(2):
        stream = jax.jit(lambda packed, i: packed.stream(i, merge_unit=4))(packed, np.int32(index)).tokens
        for ids in (np.asarray(stream.image_ids[0]), np.asarray(stream.window_ids[0])):
            runs = [one for one, before in zip(ids, [0, *ids[:-1]], strict=True) if one not in (0, before)]
            assert len(runs) == len(set(runs))
            found.append(len(runs))
    images, windows = (len(np.unique(ids[ids > 0])) for ids in map(np.asarray, (prompts.image_ids, prompts.window_ids)))
    assert found == [images, windows, 2 * images, 2 * windows]
