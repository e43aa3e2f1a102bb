"""Which rollouts of a group are updated: one anchor, and the hard negatives near it (method.md section 2).

Everything is decided from the [G, G] distances of a group, and a choice is a rank: the place of a rollout
among the ones considered, lowest index first where keys are equal. No shape depends on the data.

Choices this module makes:
1. Negatives lie in their slots nearest to the anchor first, whatever the order they were picked in.
2. The pre-selection of M neighbours belongs to `farthest_first`; the other selectors look at all failures,
   and M only bounds how many they take, so that K' is the same for every selector.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import ml_collections

from care_jax.method import rescue
from care_jax.structs import Array, Outcome, Subgroup

SELECTORS = ("farthest_first", "nearest", "random", "mixed", "farthest")
NO_RANK = jnp.iinfo(jnp.int32).max  # above every slot and every M, whatever G is


def classify(correct: Array) -> Array:
    """The outcome of each group: `correct` [B, G] bool to [B] int32, values of `Outcome` (section 1, item 4)."""
    outcome = jnp.where(correct.all(axis=1), Outcome.ALL_CORRECT, Outcome.MIXED)
    return jnp.where(correct.any(axis=1), outcome, Outcome.ALL_WRONG).astype(jnp.int32)


def choose_anchor(correct: Array, think_len: Array, answer_len: Array, response_len: Array) -> Array:
    """The correct rollout with the fewest think tokens (section 2).

    Ties go to the fewest answer tokens, then to the lowest index. A span of length 0 is missing or empty
    and counts as the whole response, so that skipping the rationale is not the shortest rationale.

    Args:
        correct: [B, G] bool.
        think_len, answer_len, response_len: [B, G] int32, tokens.

    Returns:
        [B] int32; 0 where no rollout is correct.
    """
    among = correct
    for length in (think_len, answer_len):
        length = jnp.where(length > 0, length, response_len)
        length = jnp.where(among, length, NO_RANK)
        among &= length == length.min(axis=1, keepdims=True)
    return _first(among)


def state_distances(think_states: Array) -> Array:
    """Cosine distances less one between a group's rationales: `think_states` [B, G, D] to [B, G, G] float32.

    The order is that of 1 - <h_i, h_j>; without the 1, rounding cannot turn small differences into ties.
    """
    states = think_states.astype(jnp.float32)

    def gram(states: Array) -> Array:
        # The default precision of a TPU multiplies in bfloat16, which reorders near neighbours.
        return jnp.einsum("...id,...jd->...ij", states, states, precision=jax.lax.Precision.HIGHEST)

    # XLA's batched product of many small matrices is about five times slower on a CPU than one after the other.
    return -jax.lax.platform_dependent(states, cpu=lambda states: jax.lax.map(gram, states), default=gram)


def farthest_first(distances: Array, pool: Array, start: Array, count: Array, max_count: int) -> Array:
    """Greedy spread: each time the pool's row whose smallest distance to those chosen is largest (section 2).

    Args:
        distances: [B, G, G] float32.
        pool: [B, G] bool, rows that may be chosen.
        start: [B] int32, the row chosen first.
        count: [B] int32, how many to choose, `start` included; at most the size of the pool.
        max_count: static bound of `count`.

    Returns:
        [B, G] bool, the chosen rows.
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
    distances: Array,
    anchor: Array,
    failures: Array,
    num_negatives: int,
    num_neighbours: int,
    selector: str,
    key: Array | None,
) -> Array:
    """The hard negatives of each group, K' = min(K, M, number of failures) of them (section 2).

    Args:
        distances: [B, G, G] float32, from `state_distances`.
        anchor: [B] int32.
        failures: [B, G] bool, the only candidates.
        num_negatives, num_neighbours: K and M.
        selector: farthest_first (the M nearest, then spread, starting from the nearest), nearest, farthest,
            mixed (half nearest, the odd one included, half farthest) or random.
        key: for random, else unused.

    Returns:
        [B, G] bool, the negatives.

    Raises:
        ValueError: an unknown selector, or random without a key.
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
    raise ValueError(f"objective.selector is {selector!r}; allowed are {', '.join(SELECTORS)}")


def select_subgroup(
    *,
    correct: Array,
    think_len: Array,
    answer_len: Array,
    response_len: Array,
    logprobs_old: Array,
    sampled_mask: Array,
    think_states: Array,
    key: Array | None,
    objective: ml_collections.ConfigDict,
) -> Subgroup:
    """The rows of each group that are updated (sections 2 and 4).

    Without `objective.anchored` they are all G rollouts in order. With it: a MIXED group gives its anchor
    and negatives, an ALL_WRONG one its pseudo-anchor and representatives (none if rescue is off), and an
    ALL_CORRECT one nothing.

        slot          0       1 2 3 4          K = 4, three failures
        valid         1       1 1 1 0
        index         anchor  negatives, nearest first

    Args:
        correct: [B, G] bool.
        think_len, answer_len, response_len: [B, G] int32, tokens.
        logprobs_old, sampled_mask: [B, G, R], old log-probs and which tokens were sampled; rank the rescue.
        think_states: [B, G, D] float32, unit length.
        key: for the random selector, else unused.
        objective: a record of objectives.py; static under jit.

    Returns:
        A Subgroup with S = K + 1 (anchored) or G. Slots that are not valid have index 0. `num_negatives` is 0
        where there is no anchor.

    Raises:
        ValueError: fewer than 2 rollouts, K or M below 1 with an anchored objective, or an unknown option.
    """
    outcome = classify(correct)
    if not objective.anchored:
        index = jnp.broadcast_to(_rows(correct), correct.shape)
        return Subgroup(index, jnp.ones_like(correct), outcome, jnp.zeros_like(outcome))

    _require_room(correct.shape[1], objective)
    distances = state_distances(think_states)
    anchor = choose_anchor(correct, think_len, answer_len, response_len)
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
    if objective.rescue.enabled:
        rescued = outcome == Outcome.ALL_WRONG
        pseudo_anchor = rescue.choose_pseudo_anchor(logprobs_old, sampled_mask, objective.rescue.rank_by)
        anchor = jnp.where(rescued, pseudo_anchor, anchor)
        representatives = _representatives(distances, pseudo_anchor, objective.num_negatives)
        negatives = jnp.where(rescued[:, None], representatives, negatives)
        active |= rescued
    return _fill_slots(distances, anchor, negatives & active[:, None], active, outcome, objective.num_negatives)


def _require_room(num_rollouts: int, objective: ml_collections.ConfigDict) -> None:
    if num_rollouts < 2 or objective.num_negatives < 1 or objective.num_neighbours < 1:
        raise ValueError(
            f"an anchored objective was given {num_rollouts} rollouts, num_negatives {objective.num_negatives},"
            f" num_neighbours {objective.num_neighbours}; allowed are at least 2, 1 and 1; raise them or set"
            " objective.anchored=False"
        )


def _representatives(distances: Array, pseudo_anchor: Array, num_negatives: int) -> Array:
    """Section 4: K' = min(K, G - 1) rows [B, G] bool, spread from the one farthest from the pseudo-anchor."""
    others = _rows(distances[:, 0]) != pseudo_anchor[:, None]
    to_anchor = jnp.where(others, _distances_to(distances, pseudo_anchor), -jnp.inf)
    start = to_anchor.argmax(axis=1).astype(jnp.int32)
    count = min(num_negatives, distances.shape[1] - 1)
    return farthest_first(distances, others, start, jnp.full_like(pseudo_anchor, count), count)


def _fill_slots(
    distances: Array, anchor: Array, negatives: Array, active: Array, outcome: Array, num_slots: int
) -> Subgroup:
    """Slot 0 is the anchor, slot k the k-th nearest of `negatives` [B, G]; `active` [B] says which groups count."""
    nearness = _rank(_distances_to(distances, anchor), negatives)
    at_slot = nearness[:, None, :] == jnp.arange(num_slots, dtype=jnp.int32)[None, :, None]  # [B, K, G]
    slots = jnp.where(at_slot, _rows(negatives)[:, None, :], 0).sum(axis=2, dtype=jnp.int32)
    index = jnp.concatenate([jnp.where(active, anchor, 0)[:, None], slots], axis=1)
    valid = jnp.concatenate([active[:, None], at_slot.any(axis=2)], axis=1)
    return Subgroup(index, valid, outcome, negatives.sum(axis=1, dtype=jnp.int32))


def _rank(keys: Array, among: Array) -> Array:
    """Place of each row of `among` [B, G] by its key, 0 for the smallest, ties by index; NO_RANK elsewhere."""
    rows, ours, theirs = _rows(keys), keys[:, :, None], keys[:, None, :]
    before = (theirs < ours) | ((theirs == ours) & (rows[:, None, :] < rows[:, :, None]))
    rank = (before & among[:, None, :]).sum(axis=2, dtype=jnp.int32)
    return jnp.where(among, rank, NO_RANK)


def _rows(values: Array) -> Array:
    """Indices [1, G] int32 of the rollouts of `values` [B, G]."""
    return jnp.arange(values.shape[1], dtype=jnp.int32)[None]


def _first(claim: Array) -> Array:
    """The lowest index [B] int32 where `claim` [B, G] holds; 0 where it never does."""
    return claim.argmax(axis=1).astype(jnp.int32)


def _distances_to(distances: Array, row: Array) -> Array:
    """Distances [B, G] of all rows to `row` [B]."""
    return jnp.take_along_axis(distances, row[:, None, None], axis=1)[:, 0]
