"""Token weights: hand-made rows, and the slow reference."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from care_jax.method import objectives
from care_jax.method.objectives import Objective
from care_jax.method.token_weights import shared_with_anchor, token_weights
from tests import reference
from tests.presets import record

#                  <think> t  t  </think> <answer> a  </answer> <stop> pad
THINK = np.array([[0, 1, 1, 0, 0, 0, 0, 0, 0]], bool)
ANSWER = np.array([[0, 0, 0, 0, 0, 1, 0, 0, 0]], bool)
SAMPLED = np.array([[1, 1, 1, 1, 1, 1, 1, 1, 0]], bool)
NO_SPAN = np.zeros_like(ANSWER)


@pytest.mark.parametrize(
    ("answer", "sampled", "correct", "expected"),
    [
        (ANSWER, SAMPLED, True, [0.25, 0.005, 0.005, 0.25, 0.25, 1, 0.25, 0.25, 0]),
        (ANSWER, SAMPLED, False, [0.25, 0, 0, 0.25, 0.25, 1, 0.25, 0.25, 0]),
        (NO_SPAN, SAMPLED, False, [1, 1, 1, 1, 1, 1, 1, 1, 0]),
        (ANSWER, SAMPLED & ~THINK, True, [0.25, 0, 0, 0.25, 0.25, 1, 0.25, 0.25, 0]),  # a forced rationale
    ],
)
def test_token_weights_by_hand(answer: np.ndarray, sampled: np.ndarray, correct: bool, expected: list[float]) -> None:
    """Catches a wrong rationale that is trained, a weight on a forced token, and a response without any weight."""
    objective = record(objectives.care, region__format_weight=0.25)
    arguments = {"think_mask": THINK, "answer_mask": answer, "sampled_mask": sampled, "correct": np.array([correct])}
    masks = {name: jnp.asarray(value) for name, value in arguments.items()}
    ours = token_weights(**masks, objective=objective)
    assert ours.dtype == jnp.float32
    np.testing.assert_allclose(ours[0], expected, atol=1e-8)
    np.testing.assert_array_equal(token_weights(**masks, objective=Objective()), sampled.astype(np.float32))


@pytest.mark.parametrize(
    ("answer", "sampled", "correct", "format_weight", "expected"),
    [
        (ANSWER, SAMPLED, True, 1.0, [8 / 20, 2, 2, 8 / 20, 8 / 20, 2, 8 / 20, 8 / 20, 0]),  # 8 in the parts 1 : 2 : 1
        (ANSWER, SAMPLED, False, 1.0, [4 / 5, 0, 0, 4 / 5, 4 / 5, 4, 4 / 5, 4 / 5, 0]),
        (NO_SPAN, SAMPLED, True, 1.0, [1, 1, 1, 1, 1, 1, 1, 1, 0]),
        (ANSWER, SAMPLED & ~THINK, True, 1.0, [3 / 5, 0, 0, 3 / 5, 3 / 5, 3, 3 / 5, 3 / 5, 0]),  # a forced rationale
        (ANSWER, SAMPLED & ~ANSWER, False, 0.0, [0] * 9),  # nothing that was sampled has a share
    ],
)
def test_shares_of_regions_by_hand(
    answer: np.ndarray, sampled: np.ndarray, correct: bool, format_weight: float, expected: list[float]
) -> None:
    """Catches a share that grows with a region's tokens, is lost with an empty one, or counts forced tokens."""
    changes = {"gamma_pos": 2.0, "gamma_neg": 0.0, "format_weight": format_weight, "unit": "region"}
    objective = record(objectives.care, **{f"region__{name}": value for name, value in changes.items()})
    arguments = {"think_mask": THINK, "answer_mask": answer, "sampled_mask": sampled, "correct": np.array([correct])}
    masks = {name: jnp.asarray(value) for name, value in arguments.items()}
    np.testing.assert_allclose(token_weights(**masks, objective=objective)[0], expected, rtol=1e-6)


def shared(rows: list[str], correct: list[bool], valid: list[bool] | None = None) -> list[str]:
    """The shared part of rationales written as letters, each behind a <think> of its own length of "."."""
    width = max(map(len, rows)) + 1
    ids = np.array([[ord(letter) for letter in row.ljust(width, "/")] for row in rows], np.int32)
    think = np.array([[letter.isalpha() for letter in row.ljust(width, "/")] for row in rows])
    used = np.ones(len(rows), bool) if valid is None else np.array(valid)
    marked = jax.jit(shared_with_anchor)(
        token_ids=ids[None], think_mask=think[None], correct=np.array([correct]), valid=used[None]
    )
    return ["".join(chr(i) for i in row[mask]) for row, mask in zip(ids, np.asarray(marked)[0], strict=True)]


@pytest.mark.parametrize(
    ("rows", "correct", "expected"),
    [
        ([".abcd", ".abcx", ".aby"], [1, 0, 0], ["ab", "abc", "ab"]),
        (["..abcd", ".abcx", "...aby"], [1, 0, 0], ["ab", "abc", "ab"]),  # spans that begin elsewhere
        ([".abcd", ".xbcd", ".abcd"], [1, 0, 0], ["", "", "abcd"]),  # equal again later, and a wrong answer alone
        ([".abcd", ".ab", ".abcde"], [1, 0, 0], ["ab", "ab", "abcd"]),  # one ends where the other goes on
        ([".abcd", ".xyz", ".abc"], [1, 1, 0], ["abc", "", "abc"]),  # a repair that is right does not oppose the anchor
        ([".abcd", ".abcy", ".abx"], [1, 1, 0], ["ab", "ab", "ab"]),  # what is right shares no more than its anchor
        ([".abcd", ".abc"], [1, 1], ["", ""]),  # nothing opposes them
        ([".abcd", ".abx"], [0, 0], ["ab", "ab"]),  # a pseudo-anchor
        ([".abcd", ".", ".abx"], [1, 0, 0], ["", "", "ab"]),  # no rationale to share
    ],
)
def test_shared_beginnings_by_hand(rows: list[str], correct: list[int], expected: list[str]) -> None:
    """Catches tokens compared at their place in the response, and an anchor that is measured by one row alone."""
    assert shared(rows, [bool(right) for right in correct]) == expected


def test_rows_without_use_do_not_oppose_the_anchor() -> None:
    """Catches an unused slot, which holds another rollout, that gives the anchor credit for what all have in common."""
    assert shared([".abcd", ".abx", ".zzz"], [True, False, False], [True, True, False])[0] == "ab"


@pytest.mark.parametrize("unit", ["token", "region"])
def test_what_is_shared_has_no_weight(unit: str) -> None:
    """Catches shared tokens that keep a weight, or that share in their region's or become form."""
    changes = {"gamma_pos": 1.0, "gamma_neg": 1.0, "format_weight": 0.5, "unit": unit, "after_divergence": True}
    objective = record(objectives.care, **{f"region__{name}": value for name, value in changes.items()})
    first = THINK & (np.cumsum(THINK, axis=1) == 1)
    masks = {"think_mask": THINK, "answer_mask": ANSWER, "sampled_mask": SAMPLED, "correct": np.array([False])}
    masks = {name: jnp.asarray(value) for name, value in masks.items()}
    ours = token_weights(**masks, objective=objective, shared_mask=jnp.asarray(first))
    form = 0.5 if unit == "token" else 0.2 * 8 / 5
    rest = 1.0 if unit == "token" else 0.4 * 8
    np.testing.assert_allclose(ours[0], [form, 0, rest, form, form, rest, form, form, 0], rtol=1e-6)


def test_shared_beginnings_equal_the_reference() -> None:
    """Catches a tie between a length and a difference, or a slot out of use, that the text decides otherwise."""
    rng = np.random.default_rng(3)
    count, slots, width = 300, 5, 9
    token_ids = rng.choice([7, 8], (count, slots, width), p=[0.85, 0.15]).astype(np.int32)
    start, length = rng.integers(0, 4, (2, count, slots, 1))
    place = np.arange(width)
    think = (place >= start) & (place < start + length + rng.integers(0, 3, (count, slots, 1)))
    correct = rng.random((count, slots)) < 0.2
    num_valid = rng.integers(1, slots + 1, count)
    ours = jax.jit(shared_with_anchor)(
        token_ids=token_ids, think_mask=think, correct=correct, valid=np.arange(slots) < num_valid[:, None]
    )
    seen = 0
    for b in range(count):
        rows = slice(num_valid[b])
        expected = reference.shared_with_anchor(token_ids[b, rows], think[b, rows], correct[b, rows])
        assert np.asarray(ours)[b, rows].tolist() == expected
        seen += sum(map(sum, expected))
    assert 0.1 < seen / think.sum() < 0.9


@pytest.mark.parametrize("after_divergence", [False, True])
@pytest.mark.parametrize("unit", ["token", "region"])
def test_token_weights_equal_the_reference(unit: str, after_divergence: bool) -> None:
    """Catches overlapping, missing or shared spans handled differently from the text."""
    rng = np.random.default_rng(2)
    think, answer, sampled = (rng.random((50, 5, 6)) < share for share in (0.4, 0.15, 0.8))
    correct = rng.random((50, 5)) < 0.5
    changes: dict[str, Any] = {"format_weight": 0.3, "gamma_pos": 0.5, "unit": unit}
    objective = record(objectives.care, **{f"region__{name}": value for name, value in changes.items()})
    shared_mask = think & (rng.random((50, 5, 6)) < 0.5) if after_divergence else None
    masks = {"think_mask": think, "answer_mask": answer, "sampled_mask": sampled, "correct": correct}
    ours = jax.jit(functools.partial(token_weights, objective=objective))(**masks, shared_mask=shared_mask)
    for b, s in np.ndindex(50, 5):
        shared_row = None if shared_mask is None else shared_mask[b, s]
        rows = (think[b, s], answer[b, s], sampled[b, s])
        expected = reference.token_weights(*rows, bool(correct[b, s]), objective, shared_row)
        np.testing.assert_allclose(ours[b, s], expected, rtol=1e-6, atol=1e-7)
