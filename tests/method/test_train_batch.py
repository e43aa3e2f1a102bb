"""From groups to rows: which rollout lands in which slot, and where a reflection takes one's place."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from care_jax.method import objectives, train_batch
from care_jax.method.advantage import has_contrast, may_teach
from care_jax.method.subgroup import select_subgroup
from care_jax.method.train_batch import Reflection
from care_jax.structs import Outcome, Prompts, Rollouts, Scores, Subgroup, Verdicts, zeros
from tests.presets import record

B, G, R = 3, 4, 5
# Group 0 is mixed, 1 all wrong, 2 mixed. Their rows, anchor first; the last slot of group 2 is unused.
INDEX = np.array([[2, 0, 3], [1, 3, 2], [3, 1, 0]], np.int32)
VALID = np.array([[1, 1, 1], [1, 1, 1], [1, 1, 0]], bool)
CORRECT = np.array([[0, 0, 1, 0], [0, 0, 0, 0], [0, 0, 0, 1]], bool)


def numbered(first: int, *shape: int) -> np.ndarray:
    """An array of its own number in every place."""
    return np.arange(first, first + int(np.prod(shape))).reshape(shape)


@pytest.fixture(scope="module")
def assemble():
    """(reflection) -> Assembled, with a number of its own in every place of the rollouts."""
    sampled = np.ones((B, G, R), bool)
    sampled[:, :, 4] = False
    think = np.zeros((B, G, R), bool)
    think[:, :, 0] = True
    answer = np.zeros((B, G, R), bool)
    answer[:, :, 2] = True
    rollouts = Rollouts(
        token_ids=numbered(0, B, G, R).astype(np.int32),
        response_len=numbered(100, B, G).astype(np.int32),
        logprobs=numbered(500, B, G, R).astype(np.float32),
        sampled_mask=sampled,
        finished=np.ones((B, G), bool),
    )
    verdicts = Verdicts(CORRECT, CORRECT, CORRECT, CORRECT.astype(np.float32), think, answer)
    scores = Scores(numbered(0, B, G, R).astype(np.float32), np.zeros((B, G, R)), np.zeros((B, G, 2)))
    outcome = np.array([Outcome.MIXED, Outcome.ALL_WRONG, Outcome.MIXED], np.int32)
    subgroup = Subgroup(INDEX, VALID, outcome, np.array([2, 2, 1], np.int32))
    prompts = zeros(Prompts, B=B, P=1, I=0, F=0, X=0)
    objective = record(objectives.care, num_negatives=2)
    run = jax.jit(
        lambda reflection, keep: train_batch.assemble(*given, reflection, objective=objective, keep_sampler=keep),
        static_argnums=1,
    )
    given = jax.device_put((prompts, rollouts, verdicts, scores, subgroup))
    return lambda reflection, keep_sampler=False: jax.device_get(run(reflection, keep_sampler))


def reflection(tried: list[bool], correct: list[bool]) -> Reflection:
    """Reflections whose tokens are 1000, 1001, .. and whose first two tokens were forced."""
    sampled = np.arange(R)[None] >= np.full((B, 1), 2)
    answer = np.arange(R)[None] == np.full((B, 1), 3)
    return Reflection(
        tried=np.array(tried),
        token_ids=numbered(1000, B, R).astype(np.int32),
        response_len=np.full(B, R, np.int32),
        sampled_mask=sampled,
        logprobs_old=-numbered(1000, B, R).astype(np.float32),
        logprobs_sampler=-numbered(2000, B, R).astype(np.float32),
        correct=np.array(correct),
        rewards=np.array(correct, np.float32),
        think_mask=~answer & sampled,
        answer_mask=answer,
    )


def test_rows_come_from_their_own_group(assemble):
    """Catches a gather along the wrong axis, and an unused slot that counts."""
    ours = assemble(zeros(Reflection, B=B, R=R))
    batch = ours.batch
    for b, s in np.ndindex(B, 3):
        g = INDEX[b, s]
        assert batch.token_ids[b, s].tolist() == [(b * G + g) * R + r for r in range(R)]
        assert batch.logprobs_old[b, s].tolist() == [float((b * G + g) * R + r) for r in range(R)]
        assert batch.response_len[b, s] == 100 + b * G + g
        assert batch.sampled_mask[b, s].tolist() == [bool(VALID[b, s])] * 4 + [False]
    np.testing.assert_array_equal(batch.row_mask, VALID)
    np.testing.assert_array_equal(batch.logprobs_ref, batch.logprobs_old)
    assert batch.advantages[2, 2] == 0
    assert not batch.token_weights[2, 2].any()


def test_advantages_and_weights_by_hand(assemble):
    """Catches the rewards of other rows than the ones gathered, and weights by the pseudo-anchor's verdict."""
    ours = assemble(zeros(Reflection, B=B, R=R))
    root = 2**0.5
    raw = [[root, -1 / root, -1 / root], [root, -1 / root, -1 / root], [1, -1, 0]]
    np.testing.assert_allclose(ours.advantages.raw, raw, rtol=0, atol=2e-5)
    # Negatives times 0.5; group 2 has 1 of 2 negatives: all of it times sqrt(2).
    final = [[root, -0.5 / root, -0.5 / root], [root, -0.5 / root, -0.5 / root], [root, -0.5 * root, 0]]
    np.testing.assert_allclose(ours.batch.advantages, final, rtol=0, atol=2e-5)
    anchor, wrong = [0.005, 0, 1, 0, 0], [0, 0, 1, 0, 0]
    expected = [[anchor, wrong, wrong], [wrong, wrong, wrong], [anchor, wrong, [0] * R]]
    np.testing.assert_allclose(ours.batch.token_weights, expected, rtol=1e-6)


def test_the_samplers_log_probs_come_along(assemble):
    """Catches weights against another row's sampler, or a repair's, and arrays that travel with no correction."""
    batch = assemble(reflection([True, False, False], [True] * B), keep_sampler=True).batch
    for b, s in np.ndindex(B, 3):
        first = (b * G + INDEX[b, s]) * R + 500
        expected = np.arange(first, first + R) if (b, s) != (0, 1) else -np.arange(2000, 2000 + R)
        np.testing.assert_array_equal(batch.logprobs_sampler[b, s], expected)
    assert assemble(zeros(Reflection, B=B, R=R)).batch.logprobs_sampler is None


@pytest.mark.parametrize("correct", [True, False])
def test_a_reflection_replaces_slot_1_of_mixed_groups_alone(assemble, correct):
    """Catches a replaced anchor or far negative, a reflection in a rescued group, and one that was never tried."""
    plain = assemble(zeros(Reflection, B=B, R=R))
    ours = assemble(reflection([True, True, False], [correct] * B))
    np.testing.assert_array_equal(ours.batch.token_ids[0, 1], 1000 + np.arange(R))
    np.testing.assert_array_equal(ours.batch.logprobs_old[0, 1], -1000.0 - np.arange(R))
    assert ours.batch.sampled_mask[0, 1].tolist() == [False, False, True, True, True]
    assert ours.batch.response_len[0, 1] == R
    gamma = np.float32(0.005 if correct else 0)
    assert ours.batch.token_weights[0, 1].tolist() == [0, 0, gamma, 1, gamma]
    others = np.ones((B, 3), bool)
    others[0, 1] = False
    for name in ("token_ids", "response_len", "sampled_mask", "logprobs_old", "token_weights", "row_mask"):
        theirs, mine = getattr(plain.batch, name), getattr(ours.batch, name)
        np.testing.assert_array_equal(mine[others], theirs[others], err_msg=name)
    np.testing.assert_array_equal(ours.batch.advantages[1:], plain.batch.advantages[1:])


def test_what_a_subgroup_shares_with_its_anchor_has_no_weight():
    """Catches rationales that are compared with another group's anchor, before the repair is placed, or not at all."""
    shape, place = (B, G, R), np.arange(R)
    token_ids = np.full(shape, 7, np.int32)
    token_ids[0, 3, 1], token_ids[1, 3, 0] = 8, 8  # group 0: slot 2 parts at its second token; group 1: slot 1 at once
    think, answer = (np.broadcast_to(mask, shape) for mask in (place < 3, place == 3))
    whole = np.ones(shape, bool)
    rollouts = Rollouts(token_ids, np.full((B, G), R, np.int32), np.zeros(shape, np.float32), whole, whole[:, :, 0])
    verdicts = Verdicts(CORRECT, CORRECT, CORRECT, CORRECT.astype(np.float32), think, answer)
    scores = Scores(np.zeros(shape, np.float32), np.zeros(shape, np.float32), np.zeros((B, G, 2), np.float32))
    outcome = np.array([Outcome.MIXED, Outcome.ALL_WRONG, Outcome.MIXED], np.int32)
    subgroup = Subgroup(INDEX, VALID, outcome, np.array([2, 2, 1], np.int32))
    regions = {"region__gamma_pos": 1.0, "region__gamma_neg": 1.0, "region__after_divergence": True}
    objective = record(objectives.care, num_negatives=2, **regions)
    repair = reflection([False, False, True], [False] * B)  # its rationale is tokens 2 and 4
    repair = repair.replace(
        token_ids=np.full((B, R), 7, np.int32), think_mask=np.isin(place, (2, 3))[None].repeat(B, 0)
    )
    repair = repair.replace(answer_mask=np.broadcast_to(place == 4, (B, R)))
    prompts = zeros(Prompts, B=B, P=1, I=0, F=0, X=0)
    assemble = jax.jit(functools.partial(train_batch.assemble, objective=objective))
    weights = np.asarray(assemble(prompts, rollouts, verdicts, scores, subgroup, repair).batch.token_weights)
    assert weights[0].tolist() == [[0, 1, 1, 1, 0], [0, 0, 0, 1, 0], [0, 1, 1, 1, 0]]
    assert weights[1].tolist() == [[1, 1, 1, 1, 0], [1, 1, 1, 1, 0], [0, 0, 0, 1, 0]]
    assert weights[2].tolist() == [[0, 0, 1, 1, 0], [0, 0, 0, 0, 1], [0] * R]


def test_a_reflection_is_normalised_with_its_group(assemble):
    """Catches rewards z-scored before the replacement, and a repaired row that is pushed down as a negative."""
    right = assemble(reflection([True, False, False], [True] * B)).batch.advantages[0]
    np.testing.assert_allclose(right, [0.5**0.5, 0.5**0.5, -0.5 * 2**0.5], rtol=0, atol=2e-5)
    wrong = assemble(reflection([True, False, False], [False] * B)).batch.advantages[0]
    np.testing.assert_allclose(wrong, [2**0.5, -0.25 * 0.5**0.5, -0.5 * 0.5**0.5], rtol=0, atol=2e-5)


def test_a_reflection_in_an_unused_slot_stays_out(assemble):
    """Catches a slot that comes back to life: group 2 without any negative."""
    batch = assemble(reflection([False, False, True], [True] * B)).batch
    assert batch.token_ids[2, 1].tolist() == [1010, 1011, 1012, 1013, 1014]
    assert batch.token_ids[2, 2].tolist() == jnp.arange(40, 45).tolist()
    assert not batch.row_mask[2, 2]


@pytest.mark.parametrize(
    ("preset", "changes", "expected"),
    [
        (objectives.dapo, {}, [True, False, False]),
        (objectives.dapo, {"rescue__enabled": True}, [True, False, False]),  # a rescue needs an anchor
        (objectives.care, {"dynamic_sampling": True}, [True, True, False]),
        (objectives.care, {"rescue__enabled": False}, [True, False, False]),
        (objectives.care, {"rescue__enabled": False, "reflect__all_wrong": True}, [True, False, False]),
        (objectives.grpo, {"virtual_reward": 1.0}, [True, True, False]),
    ],
)
def test_dynamic_sampling_keeps_groups_with_a_contrast(preset, changes, expected):
    """Catches all-wrong groups that CARE would rescue and dynamic sampling throws away, and uniform ones it keeps."""
    correct = np.array([[1, 0], [0, 0], [1, 1]], bool)
    for objective in (record(preset, **changes), record(preset, **changes).to_config()):
        assert has_contrast(correct, objective).tolist() == expected


@pytest.mark.parametrize(
    ("preset", "changes", "expected"),
    [
        (objectives.care, {}, [True, True, True, False, False]),
        (objectives.care, {"rescue__enabled": False}, [True, False, False, False, False]),
        (objectives.care, {"kl_coef": 0.0}, [True, True, True, False, False]),
        (objectives.care, {"rescue__enabled": False, "reflect__all_wrong": True}, [True, True, True, False, False]),
        (objectives.grpo, {"kl_coef": 0.0}, [True, True, False, True, False]),
        (objectives.grpo, {"kl_coef": 0.01}, [True] * 5),
        (objectives.dapo, {}, [True, True, False, True, False]),
        (objectives.dr_grpo, {"kl_coef": 0.0}, [True, True, False, True, False]),
        (objectives.dr_grpo, {"virtual_reward": 1.0}, [True, True, True, True, False]),
    ],
)
def test_groups_that_are_left_out_have_no_gradient(preset, changes, expected):
    """Catches a group that is not scored and yet is updated, with old log-probs of 0, and one that is scored in vain.

    The groups are mixed, all wrong with rewards that differ, all wrong with equal ones, and all correct in both ways.
    """
    objective = record(preset, num_negatives=2, **changes)
    correct = np.array([[1, 0, 0, 1], [0] * 4, [0] * 4, [1] * 4, [1] * 4], bool)
    is_formed = np.array([[1, 1, 0, 1], [1, 0, 1, 1], [1] * 4, [1, 1, 0, 1], [1] * 4], bool)
    rewards = (0.9 * correct + 0.1 * is_formed).astype(np.float32)
    rng, shape = np.random.default_rng(0), (*correct.shape, R)
    masks = [np.broadcast_to(np.arange(R) == place, shape) for place in (1, 3)]
    rollouts = Rollouts(
        token_ids=np.zeros(shape, np.int32),
        response_len=np.full(correct.shape, R, np.int32),
        logprobs=np.zeros(shape, np.float32),
        sampled_mask=np.ones(shape, bool),
        finished=np.ones(correct.shape, bool),
    )
    verdicts = Verdicts(correct, correct, is_formed, rewards, *masks)
    states = rng.normal(size=(*correct.shape, 8)).astype(np.float32)
    scores = Scores(rng.normal(size=shape).astype(np.float32), np.ones(shape, np.float32), states)
    subgroup = jax.jit(functools.partial(select_subgroup, objective=objective))(
        correct=correct,
        think_len=np.ones(correct.shape, np.int32),
        answer_len=np.ones(correct.shape, np.int32),
        response_len=rollouts.response_len,
        logprobs_old=scores.logprobs,
        sampled_mask=rollouts.sampled_mask,
        think_states=states,
        key=jax.random.key(0),
    )
    prompts, none = zeros(Prompts, B=5, P=1, I=0, F=0, X=0), zeros(Reflection, B=5, R=R)
    assemble = jax.jit(functools.partial(train_batch.assemble, objective=objective))
    assembled = assemble(prompts, rollouts, verdicts, scores, subgroup, none)
    teaches = may_teach(correct, rewards, objective)
    assert teaches.tolist() == expected
    assert np.asarray(assembled.taught_len).any(axis=1).tolist() == expected
