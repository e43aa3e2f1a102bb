"""The rollouts of a group that are updated: one anchor, and the hard negatives near it (docs/method.md section 2).

Everything is decided from the [G, G] distances of a group, and a choice is a rank: the place of a rollout among the
ones considered, lowest index first if keys are equal. No shape depends on the data.

Choices this module makes:
1. Negatives lie in their slots nearest to the anchor first, whatever the order they were picked in. Only the one that
   is repaired comes before the others (`reflect.failure`).
2. The pre-selection of M neighbours belongs to `farthest_first`; the other selectors look at all failures, and M only
   bounds how many they take, so that K' is the same for every selector.
"""

from __future__ import annotations

import typing

import jax
import jax.numpy as jnp
from jaxtyping import Bool, Float, Float32, Int32, PRNGKeyArray, Shaped

from care_jax.method import rescue
from care_jax.method.objectives import Objective, has_all_wrong_subgroups
from care_jax.options import Selector
from care_jax.structs import Array, Outcome, Subgroup

NO_RANK = jnp.iinfo(jnp.int32).max  # above every slot and every M, whatever G is


def classify(correct: Bool[Array, "B G"]) -> Int32[Array, "B"]:
    """Names the outcome of each group, a value of `Outcome` (docs/method.md section 1, item 4), in NumPy too."""
    return correct.any(axis=1).astype(jnp.int32) + correct.all(axis=1).astype(jnp.int32)


def rank_positives(
    correct: Bool[Array, "B G"],
    think_len: Int32[Array, "B G"],
    answer_len: Int32[Array, "B G"],
    response_len: Int32[Array, "B G"],
) -> Int32[Array, "B G"]:
    """Ranks the correct rollouts by their think tokens, fewest first; rank 0 is the anchor (docs/method.md section 2).

    Ties go to the fewest answer tokens, then to the lowest index. A span of length 0 is missing or empty and counts as
    the whole response, so that skipping the rationale is not the shortest rationale.

    Args:
        correct: verdicts.
        think_len: tokens of the rationale.
        answer_len: tokens of the answer.
        response_len: tokens of the response.

    Returns:
        The ranks from 0; NO_RANK for a wrong rollout.
    """
    think, answer = (jnp.where(length > 0, length, response_len) for length in (think_len, answer_len))
    order = jnp.lexsort((answer, think, ~correct))  # the last key counts most, and equal ones keep their order
    return jnp.where(correct, jnp.argsort(order).astype(jnp.int32), NO_RANK)


def state_distances(think_states: Float[Array, "B G D"]) -> Float32[Array, "B G G"]:
    """Computes -<h_i, h_j> between a group's rationales: cosine distances less one (docs/method.md section 2).

    The order is that of 1 - <h_i, h_j>; without the 1, rounding cannot turn small differences into ties.

    Args:
        think_states: h, of unit length.

    Returns:
        The distances.
    """
    states = think_states.astype(jnp.float32)

    def gram(states: Float32[Array, "... G D"]) -> Float32[Array, "... G G"]:
        # The default precision of a TPU multiplies in bfloat16, which reorders near neighbours.
        return jnp.einsum("...gd,...zd->...gz", states, states, precision=jax.lax.Precision.HIGHEST)

    # XLA's batched product of many small matrices is about five times slower on a CPU than one after the other.
    return -jax.lax.platform_dependent(states, cpu=lambda states: jax.lax.map(gram, states), default=gram)


def farthest_first(
    distances: Float32[Array, "B G G"],
    pool: Bool[Array, "B G"],
    start: Int32[Array, "B"],
    count: Int32[Array, "B"],
    max_count: int,
) -> Bool[Array, "B G"]:
    """Spreads greedily: takes the row of the pool whose smallest distance to those chosen is largest, again and again.

    See docs/method.md section 2.

    Args:
        distances: from `state_distances`.
        pool: rows that may be chosen.
        start: the row chosen first.
        count: how many to choose, `start` included; at most the size of the pool.
        max_count: static bound of `count`.

    Returns:
        The chosen rows.
    """
    rows = _rows(pool)
    chosen = pool & (rows == start[:, None]) & (count > 0)[:, None]
    gap = _distances_to(distances, start)
    for step in range(1, max_count):
        candidate_gap = jnp.where(pool & ~chosen, gap, -jnp.inf)
        pick = candidate_gap.argmax(axis=1).astype(jnp.int32)  # the first of equals
        chosen |= (rows == pick[:, None]) & (step < count)[:, None]
        gap = jnp.minimum(gap, _distances_to(distances, pick))
    return chosen


def select_negatives(
    *,
    distances: Float32[Array, "B G G"],
    anchor: Int32[Array, "B"],
    failures: Bool[Array, "B G"],
    num_negatives: int,
    num_neighbours: int,
    selector: Selector,
    key: PRNGKeyArray | None,
) -> Bool[Array, "B G"]:
    """Picks the hard negatives of each group, K' = min(K, M, number of failures) of them (docs/method.md section 2).

    Args:
        distances: from `state_distances`.
        anchor: the row that distances are measured to.
        failures: the only candidates.
        num_negatives: K.
        num_neighbours: M.
        selector: farthest_first (the M nearest, then spread, starting from the nearest), nearest, farthest, mixed (half
            nearest, the odd one included, half farthest) or random.
        key: needed for random, else unused.

    Returns:
        The negatives.

    Raises:
        ValueError: selector is random and there is no key.
    """
    count = jnp.minimum(failures.sum(axis=1, dtype=jnp.int32), min(num_negatives, num_neighbours))
    to_anchor = _distances_to(distances, anchor)
    nearness = _rank(to_anchor, failures)
    if selector == "farthest_first":
        max_count = min(num_negatives, num_neighbours)
        return farthest_first(distances, nearness < num_neighbours, _first(nearness == 0), count, max_count)
    if selector == "nearest":
        return nearness < count[:, None]
    if selector == "farthest":
        return _rank(-to_anchor, failures) < count[:, None]
    if selector == "mixed":
        near = nearness < (count - count // 2)[:, None]
        return near | (_rank(-to_anchor, failures & ~near) < (count // 2)[:, None])
    if selector == "random":
        if key is None:
            raise ValueError("selector 'random' was given no key; pass a jax.random key")
        return _rank(jax.random.uniform(key, failures.shape), failures) < count[:, None]
    typing.assert_never(selector)


def select_subgroup(
    *,
    correct: Bool[Array, "B G"],
    think_len: Int32[Array, "B G"],
    answer_len: Int32[Array, "B G"],
    response_len: Int32[Array, "B G"],
    logprobs_old: Float[Array, "B G R"],
    sampled_mask: Bool[Array, "B G R"],
    think_states: Float[Array, "B G D"],
    key: PRNGKeyArray | None,
    objective: Objective,
    num_alike: Int32[Array, "B G"] | None = None,
) -> Subgroup:
    """Chooses the rows of each group that are updated (docs/method.md sections 2 and 4).

    Without `objective.anchored` they are all G rollouts in order. With it, a MIXED group gives its anchor and
    negatives, an ALL_WRONG one its pseudo-anchor and representatives (none if it is neither rescued nor repaired), and
    an ALL_CORRECT one nothing.

        slot          0       1 2 3 4                         5 6                K = 4, three failures
        valid         1       1 1 1 0                         1 1                num_positives = 3
        index         anchor  negatives, nearest first;       other positives,
                              slot 1 the one to repair        shortest first

    Args:
        correct: verdicts.
        think_len: tokens of the rationale.
        answer_len: tokens of the answer.
        response_len: tokens of the response.
        logprobs_old: log-probs of the policy that sampled; with sampled_mask, they rank the rescue.
        sampled_mask: the sampled tokens.
        think_states: of unit length.
        key: needed for the random selector, else unused.
        objective: which rows; static under jit.
        num_alike: from `count_alike`; needed for reflect.failure "commonest", else unused.

    Returns:
        A Subgroup with S = num_positives + K (anchored) or G. Slots that are not valid have index 0. `num_negatives`
        is 0 in a group without an anchor.

    Raises:
        ValueError: an anchored objective has fewer than 2 rollouts, or K or M below 1, or lacks the key it needs.
    """
    outcome = classify(correct)
    if not objective.anchored:
        index = jnp.broadcast_to(_rows(correct), correct.shape)
        return Subgroup(index, jnp.ones_like(correct), outcome, jnp.zeros_like(outcome))

    _require_room(correct.shape[1], objective)
    distances = state_distances(think_states)
    positives = rank_positives(correct, think_len, answer_len, response_len)
    anchor = _first(positives == 0)
    negatives = select_negatives(
        distances=distances,
        anchor=anchor,
        failures=~correct,
        num_negatives=objective.num_negatives,
        num_neighbours=objective.num_neighbours,
        selector=objective.selector,
        key=key,
    )
    active = outcome == Outcome.MIXED
    if has_all_wrong_subgroups(objective):
        all_wrong = outcome == Outcome.ALL_WRONG
        pseudo_anchor = rescue.choose_pseudo_anchor(logprobs_old, sampled_mask, objective.rescue.rank_by)
        anchor = jnp.where(all_wrong, pseudo_anchor, anchor)
        representatives = _representatives(distances, pseudo_anchor, objective.num_negatives)
        negatives = jnp.where(all_wrong[:, None], representatives, negatives)
        active = active | all_wrong
    preference = None
    if objective.reflect.enabled and objective.reflect.failure == "likeliest":
        preference = rescue.likelihood(logprobs_old, sampled_mask, objective.rescue.rank_by)
    elif objective.reflect.enabled and objective.reflect.failure == "commonest":
        assert num_alike is not None
        preference = num_alike.astype(jnp.float32)
    negatives &= active[:, None]
    positives = jnp.where(active[:, None], positives, NO_RANK)
    return fill_slots(
        distances, anchor, negatives, active, outcome, objective=objective, positives=positives, preference=preference
    )


def count_alike(
    token_ids: Int32[Array, "B G R"], answer_mask: Bool[Array, "B G R"], correct: Bool[Array, "B G"]
) -> Int32[Array, "B G"]:
    """Counts the failures of a group that give each rollout's answer, token by token (docs/method.md section 3).

    Args:
        token_ids: of the rollouts.
        answer_mask: tokens of the answer, one run of them.
        correct: verdicts.

    Returns:
        The counts, a failure's own included; 0 for a rollout without an answer.
    """
    place = jnp.arange(token_ids.shape[-1], dtype=jnp.int32)[None, None]
    start = answer_mask.argmax(axis=-1, keepdims=True).astype(jnp.int32)
    answers = jnp.take_along_axis(token_ids, jnp.minimum(start + place, place.size - 1), axis=-1)
    answers = jnp.where(place < answer_mask.sum(axis=-1, keepdims=True, dtype=jnp.int32), answers, -1)

    def count(row: Int32[Array, ""]) -> Int32[Array, "B"]:
        is_alike = (answers == answers[:, row, None]).all(axis=-1) & ~correct
        return is_alike.sum(axis=1, dtype=jnp.int32)

    counts = jax.lax.map(count, jnp.arange(token_ids.shape[1], dtype=jnp.int32)).T
    return jnp.where(answer_mask.any(axis=-1), counts, 0)


def _put_first(
    rank: Int32[Array, "B G"], negatives: Bool[Array, "B G"], preference: Float32[Array, "B G"]
) -> Int32[Array, "B G"]:
    """The ranks with the most preferred negative before the others, of equals the one of the lowest rank."""
    best = jnp.where(negatives, preference, -jnp.inf).max(axis=1, keepdims=True)
    is_best = negatives & (preference == best)
    first = jnp.where(is_best, rank, NO_RANK).min(axis=1, keepdims=True)
    return jnp.where(is_best & (rank == first), 0, rank + (rank < first).astype(jnp.int32))


def _require_room(num_rollouts: int, objective: Objective) -> None:
    if num_rollouts < 2 or objective.num_negatives < 1 or objective.num_neighbours < 1:
        raise ValueError(
            f"an anchored objective was given {num_rollouts} rollouts, num_negatives {objective.num_negatives},"
            f" num_neighbours {objective.num_neighbours}; allowed are at least 2, 1 and 1; raise them or set"
            " objective.anchored=False"
        )


def _representatives(
    distances: Float32[Array, "B G G"], pseudo_anchor: Int32[Array, "B"], num_negatives: int
) -> Bool[Array, "B G"]:
    """K' = min(K, G - 1) rows, spread from the one farthest from the pseudo-anchor (docs/method.md section 4)."""
    others = _rows(distances[:, 0]) != pseudo_anchor[:, None]
    to_anchor = jnp.where(others, _distances_to(distances, pseudo_anchor), -jnp.inf)
    start = to_anchor.argmax(axis=1).astype(jnp.int32)
    count = min(num_negatives, distances.shape[1] - 1)
    return farthest_first(distances, others, start, jnp.full_like(pseudo_anchor, count), count)


def fill_slots(
    distances: Float32[Array, "B G G"],
    anchor: Int32[Array, "B"],
    negatives: Bool[Array, "B G"],
    active: Bool[Array, "B"],
    outcome: Int32[Array, "B"],
    *,
    objective: Objective,
    positives: Int32[Array, "B G"],
    preference: Float32[Array, "B G"] | None = None,
) -> Subgroup:
    """Puts the anchor into slot 0 and the negatives behind it, nearest first; only `active` groups count.

    With `preference` the negative that has most of it comes before the others. Behind the negatives come the rollouts
    that `positives` ranks, from rank 1.
    """
    nearness = _rank(_distances_to(distances, anchor), negatives)
    order = nearness if preference is None else _put_first(nearness, negatives, preference)
    others, are_others = _at_ranks(order, range(objective.num_negatives))
    further, are_further = _at_ranks(positives, range(1, objective.num_positives))
    index = jnp.concatenate([jnp.where(active, anchor, 0)[:, None], others, further], axis=1)
    valid = jnp.concatenate([active[:, None], are_others, are_further], axis=1)
    return Subgroup(index, valid, outcome, negatives.sum(axis=1, dtype=jnp.int32))


def _at_ranks(rank: Int32[Array, "B G"], ranks: range) -> tuple[Int32[Array, "B slots"], Bool[Array, "B slots"]]:
    """The row of each rank, 0 if there is none, and whether there is one."""
    is_there = rank[:, None, :] == jnp.asarray(ranks, jnp.int32)[None, :, None]
    return jnp.where(is_there, _rows(rank)[:, None, :], 0).sum(axis=2, dtype=jnp.int32), is_there.any(axis=2)


def _rank(keys: Float[Array, "B G"], among: Bool[Array, "B G"]) -> Int32[Array, "B G"]:
    """Place of each row of `among` by its key, 0 for the smallest, ties by index; NO_RANK elsewhere."""
    rows, ours, theirs = _rows(keys), keys[:, :, None], keys[:, None, :]
    before = (theirs < ours) | ((theirs == ours) & (rows[:, None, :] < rows[:, :, None]))
    rank = (before & among[:, None, :]).sum(axis=2, dtype=jnp.int32)
    return jnp.where(among, rank, NO_RANK)


def _rows(values: Shaped[Array, "B G"]) -> Int32[Array, "1 G"]:
    """Indices of the rollouts of `values`."""
    return jnp.arange(values.shape[1], dtype=jnp.int32)[None]


def _first(claim: Bool[Array, "B G"]) -> Int32[Array, "B"]:
    """The lowest index at which `claim` holds; 0 if it never does."""
    return claim.argmax(axis=1).astype(jnp.int32)


def _distances_to(distances: Float32[Array, "B G G"], row: Int32[Array, "B"]) -> Float32[Array, "B G"]:
    """Distances of all rows to `row`."""
    return jnp.take_along_axis(distances, row[:, None, None], axis=1)[:, 0]
