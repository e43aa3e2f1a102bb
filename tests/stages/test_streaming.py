"""Decoding in pieces: the tokens of a decode in one go, whatever the pieces and whoever shares the batch."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import Any
from unittest.mock import Mock

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from care_jax.models import QwenVL
from care_jax.stages import rollout, streaming
from care_jax.stages.rollout import Sampling
from care_jax.stages.streaming import Asked, Progress
from care_jax.stages.table import Setup
from care_jax.structs import Rollouts

R, TEMPERATURE, KEY = 12, 0.7, jax.random.key(1)
SAMPLED = Sampling(R, TEMPERATURE, tuple(range(60, 84)))
GREEDY = Sampling(R, 0.0, SAMPLED.stop_ids)
NUMBERS = (0, 1, 2)  # of the branches, as `generate` counts them


def _asked(
    rows: Sequence[int] = NUMBERS, *, room: Sequence[int] = (R, R, R), temperature: float | Sequence = 0.7
) -> Asked:
    columns = (np.array(room, np.int32), np.array(rows, np.int32), np.broadcast_to(np.float32(temperature), 3))
    return Asked(*(jnp.asarray(column)[:, None] for column in columns))


@pytest.fixture(scope="module")
def decode(tiny_model, tiny_prompts, tiny_processor) -> Callable[..., Progress]:
    """(asked, ends of pieces, who goes on in each, order of the prompts) -> the progress after the last piece."""
    setup = Mock(spec=Setup, sampling=SAMPLED, sampler_mesh=None)
    begin, go_on = jax.jit(streaming._make_begin(setup)), jax.jit(streaming._make_go_on(setup))
    prefill, forbidden = jax.jit(QwenVL.prefill), jnp.asarray(tiny_processor.forbidden_mask)

    def decode(asked: Asked, ends: Sequence[int], going: Sequence = (), order: Sequence[int] = NUMBERS) -> Any:
        prefix = prefill(tiny_model, jax.tree.map(lambda x: x[np.array(order)], tiny_prompts))
        loop = begin(tiny_model, prefix, asked)
        for end, rows in itertools.zip_longest(ends, going, fillvalue=(True, True, True)):
            going_on = jnp.array(rows)[:, None]
            loop, progress = go_on(tiny_model, prefix, asked, loop, going_on, jnp.int32(end), forbidden, KEY)
        return jax.device_get(progress)

    return decode


@pytest.fixture(scope="module")
def whole(tiny_model, tiny_prompts, tiny_processor) -> Callable[[Sampling], Rollouts]:
    """One response to each prompt, decoded by `generate`."""
    prefix = jax.jit(QwenVL.prefill)(tiny_model, tiny_prompts)
    forbidden, nothing = jnp.asarray(tiny_processor.forbidden_mask), rollout.nothing_forced(3, 1)

    def whole(sampling: Sampling) -> Rollouts:
        return jax.device_get(rollout.generate(tiny_model, prefix, nothing, forbidden, KEY, sampling=sampling))

    return whole


def _assert_same(
    ours: Progress, theirs: Rollouts, rows: Sequence[int] = NUMBERS, places: Sequence[int] = NUMBERS
) -> None:
    for row, place in zip(rows, places, strict=True):
        length = theirs.response_len[row, 0]
        assert ours.sampled_len[place] == length
        assert ours.token_ids[place].tolist() == theirs.token_ids[row, 0].tolist()
        np.testing.assert_allclose(ours.logprobs[place], theirs.logprobs[row, 0], rtol=0, atol=1e-5)
        assert ours.stopped[place] == theirs.finished[row, 0]
        assert not ours.alive[place]


@pytest.mark.parametrize("ends", [[R], range(1, R + 1), [5, 6, R], [1, 100]])
def test_pieces_are_the_whole(decode, whole, ends):
    """Catches another draw, position or cache behind the end of a piece, and a call that decodes past the end."""
    theirs = whole(SAMPLED)
    assert len({*theirs.response_len.ravel().tolist()}) > 1, "the case says little"
    _assert_same(decode(_asked(), ends), theirs)


def test_a_piece_ends_where_it_is_told(decode, whole):
    """Catches tokens that the host has not asked for yet, and rows that are said to have ended."""
    ours, lengths = decode(_asked(), [2]), whole(SAMPLED).response_len[:, 0]
    assert ours.sampled_len.tolist() == np.minimum(lengths, 2).tolist()
    assert ours.alive.tolist() == (lengths > 2).tolist()


def test_each_row_has_its_temperature(decode, whole):
    """Catches one temperature for all, and a greedy row that draws."""
    ours = decode(_asked(temperature=(0.0, TEMPERATURE, 0.0)), [4, R])
    _assert_same(ours, whole(GREEDY), (0, 2), (0, 2))
    _assert_same(ours, whole(SAMPLED), (1,), (1,))


def test_draws_hang_on_the_number_and_not_on_the_row(decode, whole):
    """Catches a sample that comes out differently in another place of another batch."""
    order = (2, 0, 1)
    _assert_same(decode(_asked(order), [R], order=order), whole(SAMPLED), order)
    other = decode(_asked((7, 8, 9)), [R])
    assert other.token_ids.tolist() != whole(SAMPLED).token_ids[:, 0].tolist()


def test_room(decode, whole):
    """Catches a limit that is off by one, one for all rows, and a row that decodes though nothing is asked in it."""
    theirs, room = whole(SAMPLED), (3, 0, 1)
    ours = decode(_asked(room=room), [2, R])
    assert ours.sampled_len.tolist() == np.minimum(theirs.response_len[:, 0], room).tolist()
    for row, length in enumerate(ours.sampled_len):
        assert ours.token_ids[row][:length].tolist() == theirs.token_ids[row, 0][:length].tolist()
        assert not ours.token_ids[row][length:].any()
    assert not ours.alive.any()


def test_a_row_that_is_given_up_ends(decode, whole):
    """Catches a row that goes on, or comes back, and one that takes the others with it."""
    theirs = whole(SAMPLED)
    row = int(theirs.response_len[:, 0].argmax())
    going = [[True] * 3, [other != row for other in NUMBERS], [True] * 3]
    ours = decode(_asked(), [2, 4, R], going)
    assert ours.sampled_len[row] == 2
    assert not ours.alive[row]
    others = [other for other in NUMBERS if other != row]
    _assert_same(ours, theirs, others, others)
