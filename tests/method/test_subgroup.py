"""Which rows are updated: hand-made groups, and thousands of random ones against the slow reference."""

from __future__ import annotations

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from care_jax.method import objectives, subgroup
from care_jax.method.objectives import Objective
from care_jax.structs import Outcome, Subgroup
from tests import reference
from tests.presets import record

NUM_GROUPS, RESPONSE_LEN = 500, 6


def random_groups(rng: np.random.Generator, rollouts: int) -> dict[str, np.ndarray]:
    """Small whole numbers everywhere, so that distances are exact in float32 and ties are frequent."""
    shape = (NUM_GROUPS, rollouts)
    return {
        "correct": rng.random(shape)
        < rng.choice([0.0, 0.15, 0.5, 0.85, 1.0], (NUM_GROUPS, 1), p=[0.2, 0.3, 0.2, 0.2, 0.1]),
        "think_len": rng.integers(0, 4, shape, dtype=np.int32),
        "answer_len": rng.integers(0, 3, shape, dtype=np.int32),
        "response_len": rng.integers(2, RESPONSE_LEN + 1, shape, dtype=np.int32),
        "logprobs_old": rng.choice([-2.0, -1.0, -0.5, 0.0], (*shape, RESPONSE_LEN)).astype(np.float32),
        "sampled_mask": rng.random((*shape, RESPONSE_LEN))
        < rng.choice([0.0, 0.5, 1.0], (*shape, 1), p=[0.1, 0.4, 0.5]),
        "think_states": rng.integers(-1, 2, (*shape, 4)).astype(np.float32),
    }


@functools.cache
def jitted(objective: Objective) -> Callable[..., Subgroup]:
    """The selection of an objective, compiled once a shape."""
    return jax.jit(functools.partial(subgroup.select_subgroup, objective=objective))


def select(groups: dict[str, np.ndarray], objective: Objective, key: jax.Array | None = None) -> Subgroup:
    """Selects the rows of NumPy groups."""
    return jitted(objective)(**groups, key=key)


def assert_equals_reference(groups: dict[str, np.ndarray], objective: Objective) -> list[reference.Group]:
    """Selects with care_jax and with the slow reference, which must agree; returns the reference's groups."""
    ours = select(groups, objective)
    index, valid = np.asarray(ours.index), np.asarray(ours.valid)
    expected = []
    for b in range(len(index)):
        names = "correct", "think_len", "answer_len", "response_len", "logprobs_old", "sampled_mask", "think_states"
        num_alike = groups["num_alike"][b] if "num_alike" in groups else None
        group = reference.select_subgroup(*(groups[name][b] for name in names), objective, num_alike)
        assert index[b, valid[b]].tolist() == group.rows, (b, groups["correct"][b])
        assert not index[b, ~valid[b]].any()
        used = group.num_negatives + 1 if group.rows else 0  # of the slots of the anchor and the negatives
        if not objective.anchored:
            used = len(group.rows)
        num_slots = objective.num_negatives + 1 if objective.anchored else used
        further = len(group.rows) - used
        places = [True] * used + [False] * (num_slots - used) + [True] * further
        assert valid[b].tolist() == places + [False] * (index.shape[1] - len(places))
        assert (ours.outcome[b], ours.num_negatives[b]) == (group.outcome, group.num_negatives)
        expected.append(group)
    return expected


@pytest.mark.parametrize(
    ("selector", "rollouts", "num_negatives", "num_neighbours"),
    [
        ("farthest_first", 8, 4, 6),
        ("farthest_first", 6, 4, 2),
        ("farthest_first", 3, 4, 6),
        ("nearest", 8, 4, 6),
        ("mixed", 8, 3, 6),
        ("mixed", 3, 4, 6),
        ("farthest", 6, 4, 2),
    ],
)
@pytest.mark.parametrize("num_positives", [1, 3])
def test_selection_equals_the_reference(
    selector: str, rollouts: int, num_negatives: int, num_neighbours: int, num_positives: int
) -> None:
    """Catches a wrong tie, count or order: one failure, none, all wrong, K' < K, M < K, K > G - 1, missing spans."""
    objective = record(
        objectives.care_no_rgr,
        selector=selector,
        num_positives=num_positives,
        num_negatives=num_negatives,
        num_neighbours=num_neighbours,
    )
    expected = assert_equals_reference(random_groups(np.random.default_rng(rollouts), rollouts), objective)
    seen = {(group.outcome, group.num_negatives) for group in expected}
    assert {(reference.MIXED, 1), (reference.ALL_CORRECT, 0)} <= seen
    assert (reference.ALL_WRONG, min(num_negatives, rollouts - 1)) in seen


@pytest.mark.parametrize("failure", ["likeliest", "commonest"])
def test_the_failure_to_repair_equals_the_reference(failure: str) -> None:
    """Catches a choice among all failures, a row without tokens or an answer that wins, and ties by index."""
    objective = record(objectives.care, reflect__failure=failure, num_negatives=3)
    rng = np.random.default_rng(7)
    groups = random_groups(rng, 8)
    shape = groups["logprobs_old"].shape
    start, length = rng.integers(0, 4, (*shape[:2], 1)), rng.integers(0, 3, (*shape[:2], 1))
    answer_mask = (np.arange(shape[2]) >= start) & (np.arange(shape[2]) < start + length)
    answers = rng.integers(0, 3, shape).astype(np.int32), answer_mask, groups["correct"]
    num_alike = jax.jit(subgroup.count_alike)(*answers)
    expected = [reference.count_alike(*(values[b] for values in answers)) for b in range(NUM_GROUPS)]
    assert np.asarray(num_alike).tolist() == expected
    assert_equals_reference(groups | {"num_alike": num_alike}, objective)
    ours, nearest = (
        np.asarray(select(groups | {"num_alike": num_alike}, chosen).index)
        for chosen in (objective, record(objectives.care, num_negatives=3))
    )
    assert (np.sort(ours) == np.sort(nearest)).all()
    assert (ours[:, 1] != nearest[:, 1]).mean() > 0.2


def test_the_commonest_answer_by_hand() -> None:
    """Catches answers compared at their place in the response, right ones that count, and none that count as alike."""
    token_ids = jnp.array([[[5, 1, 2, 0], [1, 2, 9, 9], [1, 3, 9, 9], [7, 7, 7, 7], [8, 8, 8, 8], [1, 2, 4, 4]]])
    mask = jnp.array([[[0, 1, 1, 0], [1, 1, 0, 0], [1, 1, 0, 0], [0] * 4, [0] * 4, [1, 1, 0, 0]]], bool)
    correct = jnp.array([[False, False, False, False, False, True]])
    assert subgroup.count_alike(token_ids, mask, correct).tolist() == [[2, 2, 1, 0, 0, 2]]


@pytest.mark.parametrize("enabled", [True, False])
def test_rescue_by_mean_and_rescue_off_equal_the_reference(enabled: bool) -> None:
    """Catches an all-wrong group that is updated although rescue is off, and a mean over padding."""
    objective = record(objectives.care_no_rgr, rescue__enabled=enabled, rescue__rank_by="mean")
    assert_equals_reference(random_groups(np.random.default_rng(1), 7), objective)


def test_without_an_anchor_every_row_is_kept_in_order() -> None:
    """Catches GRPO losing rows of uniform groups."""
    groups = random_groups(np.random.default_rng(2), 4)
    assert_equals_reference(groups, Objective())
    ours = select(groups, Objective())
    assert ours.index[7].tolist() == [0, 1, 2, 3]
    assert bool(ours.valid.all())


def test_outcomes() -> None:
    """Catches MIXED and ALL_CORRECT confused, and a group of one rollout called MIXED."""
    correct = jnp.array([[False, False], [True, False], [False, True], [True, True]])
    expected = [Outcome.ALL_WRONG, Outcome.MIXED, Outcome.MIXED, Outcome.ALL_CORRECT]
    assert subgroup.classify(correct).tolist() == expected
    assert subgroup.classify(jnp.array([[True], [False]])).tolist() == [Outcome.ALL_CORRECT, Outcome.ALL_WRONG]


@pytest.mark.parametrize(
    ("correct", "think_len", "answer_len", "expected"),
    [
        ([0, 1, 1, 1], [1, 9, 5, 7], [1, 1, 1, 1], [2, 3, 1]),  # the shortest rationale, not the shortest wrong one
        ([1, 1, 1, 1], [5, 5, 5, 6], [4, 3, 3, 1], [1, 2, 0, 3]),  # fewest answer tokens, then lowest index
        ([1, 1, 0, 0], [0, 19, 1, 1], [1, 1, 1, 1], [1, 0]),  # no rationale counts as 20 tokens
        ([1, 1, 0, 0], [5, 5, 1, 1], [0, 19, 1, 1], [1, 0]),  # no answer span counts as 20 tokens
        ([0, 0, 1, 0], [0, 0, 0, 0], [0, 0, 0, 0], [2]),  # the only correct one, spans missing
        ([0, 0, 0, 0], [1, 2, 3, 4], [1, 1, 1, 1], []),
    ],
)
def test_positives_by_hand(
    correct: list[int], think_len: list[int], answer_len: list[int], expected: list[int]
) -> None:
    """Catches a missing span that wins as the shortest, and a wrong rollout as the anchor."""
    rows = [jnp.array([row]) for row in (think_len, answer_len, [20] * 4)]
    ranks = subgroup.rank_positives(jnp.array([correct], dtype=bool), *rows)[0].tolist()
    assert [ranks.index(place) for place in range(len(expected))] == expected
    assert ranks.count(subgroup.NO_RANK) == 4 - len(expected)


def directions(*degrees: float) -> np.ndarray:
    """Unit vectors of one group in the plane."""
    return np.stack([np.cos(np.radians(degrees)), np.sin(np.radians(degrees))], axis=1)[None].astype(np.float32)


def test_negatives_by_hand() -> None:
    """Catches selectors mixed up, a neighbourhood that is not M wide, and slots that are not nearest first."""
    zeros = np.zeros((1, 9), np.int32)
    groups = {
        "correct": zeros == np.arange(9),
        "think_len": zeros + 3,
        "answer_len": zeros + 1,
        "response_len": zeros + 9,
        "logprobs_old": np.zeros((1, 9, 2), np.float32),
        "sampled_mask": np.ones((1, 9, 2), bool),
        "think_states": directions(0, 10, 12, -40, 45, -60, 70, 80, 85),
    }
    expected = {
        "farthest_first": [0, 1, 4, 5, 6],  # 10, then -60, then 70, then 45; 80 and 85 are not among the six nearest
        "nearest": [0, 1, 2, 3, 4],
        "farthest": [0, 5, 6, 7, 8],
        "mixed": [0, 1, 2, 7, 8],
    }
    chosen = {}
    for selector in expected:
        ours = select(groups, record(objectives.care_no_rgr, selector=selector))
        assert ours.num_negatives.tolist() == [4]
        assert ours.valid.tolist() == [[True] * 5]
        chosen[selector] = ours.index[0].tolist()
    assert chosen == expected


def test_zero_states_are_equally_far_from_everything() -> None:
    """Catches nan or a shuffled order where no rollout has a rationale to embed."""
    groups = random_groups(np.random.default_rng(3), 8)
    groups["think_states"] = np.zeros_like(groups["think_states"])
    for group in assert_equals_reference(groups, record(objectives.care_no_rgr)):
        assert group.rows[1:] == sorted(group.rows[1:])


def test_random_selector_takes_failures_evenly() -> None:
    """Catches a successful rollout, a repeated row or a fixed choice among the random negatives."""
    objective = record(objectives.care_no_rgr, selector="random")
    groups = random_groups(np.random.default_rng(4), 8)
    groups["correct"] = np.tile(np.arange(8) == 2, (NUM_GROUPS, 1))
    ours, again, other = (select(groups, objective, jax.random.key(seed)) for seed in (0, 0, 1))
    index = np.asarray(ours.index)
    assert bool(ours.valid.all())
    assert (index[:, 0] == 2).all()
    assert (index == np.asarray(again.index)).all()
    assert (index != np.asarray(other.index)).any()
    assert all(len({*row}) == 5 for row in index.tolist())
    share = np.bincount(index[:, 1:].ravel(), minlength=8) / NUM_GROUPS
    assert share[2] == 0
    np.testing.assert_allclose(np.delete(share, 2), 4 / 7, atol=0.1)  # four standard deviations


def test_distances_are_those_of_the_states() -> None:
    """Catches a half-precision product, which reorders near neighbours."""
    states = np.random.default_rng(5).standard_normal((3, 4, 64)).astype(np.float32)
    states /= np.linalg.norm(states, axis=-1, keepdims=True)
    expected = -np.einsum("bgd,bzd->bgz", states.astype(np.float64), states.astype(np.float64))
    np.testing.assert_allclose(subgroup.state_distances(jnp.asarray(states)), expected, atol=1e-6)
    lowered = jax.jit(subgroup.state_distances).trace(states).lower(lowering_platforms=("tpu",)).as_text()
    assert "HIGHEST" in lowered


def test_refusals_name_what_is_allowed() -> None:
    """Catches a missing key or an impossible group that silently trains on something else."""
    groups = random_groups(np.random.default_rng(6), 2)
    with pytest.raises(ValueError, match="given no key"):
        select(groups, record(objectives.care_no_rgr, selector="random"))
    with pytest.raises(ValueError, match=r"1 rollouts.*at least 2, 1 and 1"):
        select({name: value[:, :1] for name, value in groups.items()}, record(objectives.care_no_rgr))
