"""The all-wrong group: who is the pseudo-anchor, and what the pseudo-rewards are."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from care_jax.method import objectives, rescue, subgroup
from tests.presets import record

LOGPROBS = jnp.array([[[-1.0, -1.0, -1.0], [-2.0, 0.0, 0.0], [-9.0, -0.5, -0.5], [0.0, 0.0, 0.0]]])
SAMPLED = jnp.array([[[1, 1, 1], [1, 0, 0], [0, 1, 1], [0, 0, 0]]], dtype=bool)


@pytest.mark.parametrize(
    ("rank_by", "sampled", "expected"),
    [
        ("sum", SAMPLED, 2),  # -3, -2, -1; the row without tokens has no likelihood
        ("mean", SAMPLED, 2),  # -1, -2, -0.5
        ("sum", SAMPLED.at[0, 2, 0].set(True), 1),  # -3, -2, -10
        ("mean", SAMPLED.at[0, 2, 0].set(True), 0),  # -1, -2, -10/3
        (
            "mean",
            SAMPLED.at[0, 1].set(jnp.array([True, False, True])).at[0, 2].set(False),
            0,
        ),  # -1 and -1: lowest index
    ],
)
def test_pseudo_anchor_by_hand(rank_by: str, sampled: jnp.ndarray, expected: int) -> None:
    """Catches forced tokens in the score, a mean over R, and an empty response that wins with its sum of 0."""
    assert rescue.choose_pseudo_anchor(LOGPROBS, sampled, rank_by).tolist() == [expected]


def test_nan_where_nothing_was_sampled_is_not_seen() -> None:
    """Catches log-probs of padding that poison the ranking."""
    poisoned = jnp.where(SAMPLED, LOGPROBS, jnp.nan)
    assert rescue.choose_pseudo_anchor(poisoned, SAMPLED, "sum").tolist() == [2]


def test_pseudo_rewards_by_hand() -> None:
    """Catches K in place of K', and rewards in unused slots."""
    valid = jnp.array([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0], [0, 0, 0, 0, 0]], dtype=bool)
    rewards = rescue.pseudo_rewards(valid, jnp.array([4, 2, 0]), 0.1)
    expected = [[0.1, -0.025, -0.025, -0.025, -0.025], [0.1, -0.05, -0.05, 0.0, 0.0], [0.0] * 5]
    np.testing.assert_allclose(rewards, expected, atol=1e-8)
    np.testing.assert_allclose(rewards.sum(axis=1), 0.0, atol=1e-8)


def test_representatives_spread_from_the_one_farthest_from_the_pseudo_anchor() -> None:
    """Catches a spread that starts from the nearest, as that of a mixed group does, or counts the pseudo-anchor."""
    # At degrees, the first the likeliest: 100, then 10, then 60. Only K = 1 tells the start from the nearest one.
    degrees = np.radians([0, 10, 20, 30, 60, 95, 100])
    states = jnp.asarray(np.stack([np.cos(degrees), np.sin(degrees)], axis=1)[None], jnp.float32)
    zeros = jnp.zeros((1, 7), jnp.int32)
    chosen = {}
    for num_negatives in (1, 3):
        objective = record(objectives.care_no_rgr, num_negatives=num_negatives)
        select = jax.jit(functools.partial(subgroup.select_subgroup, key=None, objective=objective))
        ours = select(
            correct=zeros > 0,
            think_len=zeros,
            answer_len=zeros,
            response_len=zeros + 2,
            logprobs_old=jnp.array([-0.5] + [-1.0] * 6)[None, :, None],
            sampled_mask=jnp.ones((1, 7, 1), bool),
            think_states=states,
        )
        chosen[num_negatives] = ours.index[0].tolist()
    assert chosen == {1: [0, 6], 3: [0, 1, 4, 6]}
