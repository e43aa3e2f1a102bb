"""Advantages: hand-made numbers, the signature of the method, and the slow reference."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from care_jax.method import advantage, objectives
from care_jax.method.objectives import Objective
from care_jax.method.subgroup import select_subgroup
from care_jax.structs import Outcome, Subgroup
from tests import reference
from tests.presets import record

NUM_GROUPS, K = 600, 4


def make_subgroup(num_negatives: list[int], outcome: Outcome = Outcome.MIXED, slots: int = K + 1) -> Subgroup:
    """Groups of one outcome whose rows are the first rollouts, so many negatives each."""
    count = jnp.array(num_negatives, jnp.int32)
    index = jnp.broadcast_to(jnp.arange(slots, dtype=jnp.int32)[None], (len(num_negatives), slots))
    return Subgroup(index, index <= count[:, None], jnp.full_like(count, outcome), count)


CARE, CARE_NO_RGR = record(objectives.care), record(objectives.care_no_rgr)


def weigh(objective: Objective, **arguments) -> advantage.SubgroupAdvantages:
    """The advantages of an objective, jitted."""
    return jax.jit(functools.partial(advantage.subgroup_advantages, objective=objective))(**arguments)


def weigh_group(rewards: jax.Array, normalise_std: bool, virtual_reward: float = 0.0) -> jax.Array:
    """The advantages of a group objective, which updates every row."""
    no_row = jnp.zeros(rewards.shape, bool)
    none = jnp.zeros(len(rewards), jnp.int32)
    every_row = Subgroup(no_row.astype(jnp.int32), ~no_row, none, none)
    objective = Objective(normalise_std=normalise_std, virtual_reward=virtual_reward)
    ours = weigh(objective, rewards=rewards, correct=no_row, reflected=no_row, subgroup=every_row)
    np.testing.assert_array_equal(ours.raw, ours.final)
    return ours.final


@pytest.mark.parametrize("normalise_std", [True, False])
def test_group_advantages_by_hand(normalise_std: bool) -> None:
    """Catches the sample standard deviation (which would give 0.866), and a mean over the batch."""
    rewards = jnp.array([[1.0, 0.0, 0.0, 1.0], [1.0, 0.0, 0.0, 0.0]])
    expected = [[1, -1, -1, 1], [3**0.5, -(3**-0.5), -(3**-0.5), -(3**-0.5)]]
    if not normalise_std:
        expected = [[0.5, -0.5, -0.5, 0.5], [0.75, -0.25, -0.25, -0.25]]
    np.testing.assert_allclose(weigh_group(rewards, normalise_std), expected, atol=1e-5)


def test_a_virtual_reward_by_hand() -> None:
    """Catches a virtual response that is updated, and one that changes a group whose rewards all are the largest."""
    rewards = jnp.array([[0.0] * 4, [1.0, 0, 0, 0], [1.0] * 4])
    up, down = 0.6 / 0.24**0.5, -0.4 / 0.24**0.5  # mean 2/5
    expected = [[-0.5] * 4, [up, down, down, down], [0.0] * 4]  # in the first: mean 1/5, deviation 2/5
    np.testing.assert_allclose(weigh_group(rewards, True, 1.0), expected, atol=1e-5)
    np.testing.assert_allclose(weigh_group(rewards, False, 1.0)[0], [-0.2] * 4, atol=1e-6)


@pytest.mark.parametrize("rollouts", [3, 5, 6, 7, 8])
def test_equal_rewards_give_exactly_zero(rollouts: int) -> None:
    """Catches the rounding of a float32 mean divided by 1e-6, which pushes all rows of a uniform group one way."""
    rewards = jnp.asarray(np.tile(np.array([[0.1], [0.9], [0.7], [1 / 3]], np.float32), rollouts))
    assert not weigh_group(rewards, True).any()


def test_a_repair_that_beats_its_anchor() -> None:
    """Records that section 2, to the letter, pushes the anchor down at K' = 1 if the repair has the higher reward."""
    ours = weigh(
        CARE,
        rewards=jnp.array([[0.9, 1.0]]),
        correct=jnp.array([[True, True]]),
        reflected=jnp.array([[False, True]]),
        subgroup=make_subgroup([1], slots=2),
    )
    np.testing.assert_allclose(ours.final, [[-2.0, 2.0]], atol=1e-4)


def test_signature_of_binary_rewards() -> None:
    """Catches a z-score over unused slots: the anchor has sqrt(K'), a negative -1 / sqrt(K')."""
    is_anchor = jnp.broadcast_to(jnp.arange(K + 1)[None] == 0, (4, K + 1))
    ours = weigh(
        CARE_NO_RGR,
        rewards=is_anchor.astype(jnp.float32),
        correct=is_anchor,
        reflected=jnp.zeros_like(is_anchor),
        subgroup=make_subgroup([1, 2, 3, 4]),
    )
    for row, count in enumerate([1, 2, 3, 4]):
        unused = [0.0] * (K - count)
        np.testing.assert_allclose(ours.raw[row], [count**0.5] + [-(count**-0.5)] * count + unused, atol=1e-5)
        equaliser = (K / count) ** 0.5
        final = [equaliser * count**0.5] + [-0.5 * equaliser * count**-0.5] * count + unused
        np.testing.assert_allclose(ours.final[row], final, atol=1e-5)


def test_reflections_by_hand() -> None:
    """Catches a repaired row that is pushed down, and a failed repair with the scale of a negative."""
    rewards = jnp.array([[1.0, 1.0, 0.0, 0.0, 0.0], [1.0, 0.0, 0.0, 0.0, 0.0], [1.0, 1.0, 0.0, 0.0, 0.0]])
    slot_one = jnp.arange(5)[None] == jnp.ones((3, 1), jnp.int32)
    ours = weigh(
        CARE,
        rewards=rewards,
        correct=rewards > 0,
        reflected=slot_one,
        subgroup=make_subgroup([4, 4, 1]),
    )
    up, down = 1.5**0.5, -0.5 * (2 / 3) ** 0.5  # mean 0.4, std 0.4899
    np.testing.assert_allclose(ours.final[0], [up, up, down, down, down], atol=1e-5)
    np.testing.assert_allclose(ours.final[1], [2.0, -0.25 * 0.5, -0.25, -0.25, -0.25], atol=1e-5)
    assert ours.final[2].tolist() == [0.0] * 5  # K' = 1, repaired: nothing is left to contrast


def test_rescue_scales_by_hand() -> None:
    """Catches a delta that z-scoring cancels although rescue.scale asks for it, and real rewards in a rescue."""
    arguments = {
        "rewards": jnp.array([[0.0, 0.1, 0.1, 0.0, 0.1]]),
        "correct": jnp.zeros((1, 5), bool),
        "reflected": jnp.zeros((1, 5), bool),
        "subgroup": make_subgroup([4], Outcome.ALL_WRONG),
    }
    published = weigh(CARE, **arguments)
    np.testing.assert_allclose(published.final[0], [2.0] + [-0.25] * 4, atol=1e-4)
    by_delta = record(objectives.care, rescue__scale="delta")
    scaled = weigh(by_delta, **arguments)
    np.testing.assert_allclose(scaled.final[0], [0.2] + [-0.025] * 4, atol=1e-5)
    mixed = arguments | {"subgroup": make_subgroup([4])}
    np.testing.assert_array_equal(weigh(by_delta, **mixed).final, weigh(CARE, **mixed).final)


def random_rows(rng: np.random.Generator, outcomes: np.ndarray, slots: int) -> dict[str, np.ndarray]:
    """Rows as the pipeline makes them: correct positives, at most one reflection, format rewards of all kinds."""
    shape = (NUM_GROUPS, slots)
    reflected = (np.arange(slots) == rng.integers(1, K + 1, (NUM_GROUPS, 1))) & (rng.random((NUM_GROUPS, 1)) < 0.6)
    correct = (np.arange(slots) == 0) | (np.arange(slots) > K) | (reflected & (rng.random(shape) < 0.5))
    mixed = (outcomes == Outcome.MIXED)[:, None]
    correct, reflected = correct & mixed, reflected & mixed
    rewards = 0.9 * correct + 0.1 * (rng.random(shape) < 0.7)
    return {"rewards": rewards.astype(np.float32), "correct": correct, "reflected": reflected}


@pytest.mark.parametrize(
    "change",
    [
        {},
        {"equalise": False},
        {"normalise_std": False},
        {"reflected_scale": 0.4, "negative_scale": 0.7},
        {"rescue__scale": "delta"},
        {"num_positives": 4},
    ],
    ids=str,
)
def test_subgroup_advantages_equal_the_reference(change: dict[str, Any]) -> None:
    """Catches any wrong case of outcome, K', reflection, equaliser and rescue scale."""
    objective = record(objectives.care, **change)
    rng = np.random.default_rng(0)
    outcomes = rng.choice([Outcome.ALL_WRONG, Outcome.MIXED, Outcome.ALL_CORRECT], NUM_GROUPS, p=[0.3, 0.6, 0.1])
    counts = np.where(outcomes == Outcome.ALL_CORRECT, 0, rng.integers(1, K + 1, NUM_GROUPS)).astype(np.int32)
    slot = np.arange(K + objective.num_positives)
    further = (slot > K) & (slot <= K + rng.integers(0, 4, (NUM_GROUPS, 1))) & (outcomes == Outcome.MIXED)[:, None]
    valid = ((slot <= counts[:, None]) & (outcomes != Outcome.ALL_CORRECT)[:, None]) | further
    chosen = Subgroup(np.zeros_like(valid, np.int32), valid, outcomes.astype(np.int32), counts)
    rows = random_rows(rng, outcomes, len(slot))
    ours = weigh(objective, **rows, subgroup=chosen)
    raw, final = np.asarray(ours.raw), np.asarray(ours.final)
    for b in range(NUM_GROUPS):
        group = reference.Group(np.flatnonzero(valid[b]).tolist(), int(outcomes[b]), int(counts[b]))
        values = (rows[name][b][valid[b]] for name in ("rewards", "correct", "reflected"))
        expected_raw, expected_final = reference.subgroup_advantages(*values, group, objective)
        np.testing.assert_allclose(raw[b, valid[b]], expected_raw, rtol=1e-6, atol=1e-6)
        np.testing.assert_allclose(final[b, valid[b]], expected_final, rtol=1e-6, atol=1e-6)
        assert not raw[b, ~valid[b]].any()
        assert not final[b, ~valid[b]].any()


def test_a_subgroup_of_all_rollouts_has_the_advantages_of_a_group() -> None:
    """Catches a positive that is left out, scaled or pushed down where the subgroup has room for every rollout."""
    everything = {"num_positives": 8, "num_negatives": 8, "num_neighbours": 8, "negative_scale": 1.0, "equalise": False}
    objective = record(objectives.care_no_rgr, **everything, rescue__enabled=False)
    rng = np.random.default_rng(2)
    correct = rng.random((NUM_GROUPS, 8)) < rng.random((NUM_GROUPS, 1))
    rewards = (0.9 * correct + 0.1 * (rng.random(correct.shape) < 0.7)).astype(np.float32)
    lengths = [rng.integers(1, 5, correct.shape).astype(np.int32) for _ in range(3)]
    states = rng.standard_normal((*correct.shape, 4)).astype(np.float32)
    none = np.zeros((*correct.shape, 1))
    chosen = jax.jit(functools.partial(select_subgroup, objective=objective))(
        correct=correct,
        think_len=lengths[0],
        answer_len=lengths[1],
        response_len=lengths[2],
        logprobs_old=none,
        sampled_mask=none > 0,
        think_states=states,
        key=None,
    )
    ours = np.zeros_like(rewards)
    rows = {
        name: np.take_along_axis(x, np.asarray(chosen.index), 1)
        for name, x in [("rewards", rewards), ("correct", correct)]
    }
    final = weigh(objective, **rows, reflected=np.zeros_like(rows["correct"]), subgroup=chosen).final
    for b, slot in zip(*np.nonzero(np.asarray(chosen.valid)), strict=True):
        ours[b, chosen.index[b, slot]] += final[b, slot]
    mixed = correct.any(1) & ~correct.all(1)
    assert mixed.sum() > NUM_GROUPS // 2
    np.testing.assert_allclose(np.abs(ours[mixed]), np.abs(weigh_group(jnp.asarray(rewards), True)[mixed]), atol=1e-5)
    assert (ours[mixed] * np.where(correct, 1, -1)[mixed] >= 0).all()
    assert not ours[~mixed].any()


@pytest.mark.parametrize("virtual_reward", [0.0, 1.0])
@pytest.mark.parametrize("normalise_std", [True, False])
def test_group_advantages_equal_the_reference(normalise_std: bool, virtual_reward: float) -> None:
    """Catches a group objective that scales or equalises as the anchored one does."""
    rewards = np.random.default_rng(1).choice([0.0, 0.1, 0.9, 1.0], (NUM_GROUPS, 8)).astype(np.float32)
    ours = weigh_group(jnp.asarray(rewards), normalise_std, virtual_reward)
    objective = Objective(normalise_std=normalise_std, virtual_reward=virtual_reward)
    nothing, group = [False] * 8, reference.Group(list(range(8)), Outcome.MIXED, 0)
    expected = [reference.subgroup_advantages(row, nothing, nothing, group, objective)[0] for row in rewards]
    np.testing.assert_allclose(ours, expected, rtol=1e-6, atol=1e-6)
