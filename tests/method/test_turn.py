"""The all-wrong group that a repair turns, against the slow reference and by hand."""

from __future__ import annotations

import jax
import numpy as np
import pytest

from care_jax.method import objectives
from care_jax.method.subgroup import select_subgroup
from care_jax.method.train_batch import Reflection, assemble
from care_jax.method.turn import turn
from care_jax.structs import Outcome, Prompts, Rollouts, Scores, Subgroup, Verdicts, zeros
from tests import reference
from tests.presets import record

B, G, R, D = 24, 7, 4, 5


def unit(x: np.ndarray) -> np.ndarray:
    """The vectors with length 1."""
    return (x / np.linalg.norm(x, axis=-1, keepdims=True)).astype(np.float32)


def groups(rng: np.random.Generator) -> dict[str, np.ndarray]:
    """All-wrong, mixed and all-correct groups in turn, their states, and repairs of which most are right."""
    correct = np.zeros((B, G), bool)
    correct[1::3, 2], correct[2::3] = True, True
    return {
        "correct": correct,
        "think_states": unit(rng.normal(size=(B, G, D))),
        "repair_states": unit(rng.normal(size=(B, 1, D))),
        "tried": rng.random(B) < 0.8,
        "repaired": rng.random(B) < 0.7,
        "logprobs_old": -rng.random((B, G, R)).astype(np.float32),
    }


def selected(given: dict[str, np.ndarray], objective: objectives.Objective) -> Subgroup:
    """The subgroups before a repair."""
    ones = np.ones((B, G), np.int32)
    return select_subgroup(
        correct=given["correct"],
        think_len=ones,
        answer_len=ones,
        response_len=4 * ones,
        logprobs_old=given["logprobs_old"],
        sampled_mask=np.ones((B, G, R), bool),
        think_states=given["think_states"],
        key=jax.random.key(0),
        objective=objective,
    )


def reflection(given: dict[str, np.ndarray]) -> Reflection:
    """The repairs, whose tokens are all 99."""
    made = zeros(Reflection, B=B, R=R)
    tried, correct = given["tried"], given["repaired"]
    ids, every = np.full((B, R), 99, np.int32), np.ones((B, R), bool)
    rewards, length = correct.astype(np.float32), np.full(B, R, np.int32)
    fields = {"tried": tried, "correct": correct, "rewards": rewards, "token_ids": ids, "response_len": length}
    return made.replace(**fields, sampled_mask=every)


@pytest.mark.parametrize("selector", ["farthest_first", "nearest", "farthest", "mixed"])
def test_negatives_lie_near_the_repair(selector: str) -> None:
    """Catches negatives near the pseudo-anchor, a repair that is its own negative, and other groups that change."""
    objective = record(objectives.care, reflect__all_wrong=True, selector=selector, num_negatives=3, num_neighbours=4)
    given = groups(np.random.default_rng(0))
    before = jax.device_get(selected(given, objective))
    after = jax.device_get(
        turn(
            subgroup=before,
            correct=given["correct"],
            think_states=given["think_states"],
            reflection=reflection(given),
            repair_states=given["repair_states"],
            key=jax.random.key(1),
            objective=objective,
        )
    )
    turned = ~given["correct"].any(1) & given["tried"] & given["repaired"]
    assert 2 < turned.sum() < B // 3  # some all-wrong groups are not
    for b in range(B):
        if not turned[b]:
            for name in ("index", "valid", "outcome", "num_negatives"):
                assert np.array_equal(getattr(after, name)[b], getattr(before, name)[b])
            continue
        states = np.concatenate([given["think_states"][b], given["repair_states"][b]])
        # The repair is a right rollout behind the others.
        wrong = [False] * G + [True]
        expected = reference.select_negatives(states, wrong, G, 3, 4, selector)
        assert after.index[b].tolist() == [before.index[b, 0], *expected]
        assert after.valid[b].all()
        assert (after.outcome[b], after.num_negatives[b]) == (Outcome.ALL_WRONG, 3)


@pytest.mark.parametrize("rescued", [True, False])
def test_a_turned_group_is_updated_as_a_mixed_one(rescued: bool) -> None:
    """Catches a repair in another slot, pseudo-rewards or delta in a turned group, and a wrong repair that is trained.

    A group that is not turned has the rows of a rescue, or none if there are no rescues.

    Rewards are 1 for the repair and 0 for its three negatives: z-scores are sqrt(3) and -1/sqrt(3).
    """
    changes = {"num_negatives": 3, "rescue__scale": "delta", "rescue__enabled": rescued}
    objective = record(objectives.care, reflect__all_wrong=True, **changes)
    given = groups(np.random.default_rng(1))
    before = jax.device_get(selected(given, objective))
    repairs = reflection(given)
    states = {"think_states": given["think_states"], "repair_states": given["repair_states"]}
    chosen = turn(
        subgroup=before,
        correct=given["correct"],
        reflection=repairs,
        key=jax.random.key(1),
        objective=objective,
        **states,
    )
    ids = np.broadcast_to(np.arange(G, dtype=np.int32)[None, :, None], (B, G, R))
    lengths, logprobs = np.full((B, G), R, np.int32), given["logprobs_old"]
    rollouts = Rollouts(ids, lengths, logprobs, np.ones((B, G, R), bool), np.ones((B, G), bool))
    correct = given["correct"]
    spans = np.zeros((B, G, R), bool)
    verdicts = Verdicts(correct, correct, correct, correct.astype(np.float32), spans, spans)
    scores = Scores(logprobs, -logprobs, given["think_states"])
    prompts = zeros(Prompts, B=B, P=1, I=0, F=0, X=0)
    made = jax.device_get(assemble(prompts, rollouts, verdicts, scores, chosen, repairs, objective=objective))
    all_wrong = ~correct.any(1)
    turned = all_wrong & given["tried"] & given["repaired"]
    root = 3**0.5
    plain, none = record(objectives.care, **changes), zeros(Reflection, B=B, R=R)
    of_rescue = jax.device_get(selected(given, plain))
    without = jax.device_get(assemble(prompts, rollouts, verdicts, scores, of_rescue, none, objective=plain))
    for b in np.flatnonzero(all_wrong):
        if turned[b]:
            assert made.batch.token_ids[b, 0].tolist() == [99] * R
            assert made.batch.token_ids[b, 1:, 0].tolist() == chosen.index[b, 1:].tolist()
            np.testing.assert_allclose(made.batch.advantages[b], [root, *[-0.5 / root] * 3], atol=1e-5)
        else:
            assert not (made.batch.token_ids[b] == 99).any()
            np.testing.assert_array_equal(made.batch.advantages[b], without.batch.advantages[b])
            np.testing.assert_array_equal(made.batch.row_mask[b], without.batch.row_mask[b])
            assert made.batch.row_mask[b].any() == rescued
            assert bool(chosen.num_negatives[b]) == rescued
