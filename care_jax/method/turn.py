"""The all-wrong group of which a repair is right: the repair becomes its anchor (docs/method.md section 4)."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
from jaxtyping import Bool, Float, PRNGKeyArray, Shaped

from care_jax.method.objectives import Objective
from care_jax.method.subgroup import NO_RANK, fill_slots, select_negatives, state_distances
from care_jax.method.train_batch import Reflection, turned_groups
from care_jax.structs import Array, Outcome, Subgroup


def turn(
    *,
    subgroup: Subgroup,
    correct: Bool[Array, "B G"],
    think_states: Float[Array, "B G D"],
    reflection: Reflection,
    repair_states: Float[Array, "B 1 D"],
    key: PRNGKeyArray,
    objective: Objective,
) -> Subgroup:
    """Chooses the negatives of each ALL_WRONG group that a repair turns: the failures near the repair (section 2).

    Slot 0 keeps the pseudo-anchor's index; `train_batch.assemble` puts the repair there. An ALL_WRONG group that is not
    turned is rescued, or without `objective.rescue.enabled` has no valid slot. All other groups stay as they are.

    Args:
        subgroup: from `subgroup.select_subgroup`.
        correct: verdicts of the rollouts.
        think_states: of the rollouts, of unit length.
        reflection: one a group.
        repair_states: the reflections' think states.
        key: for the random selector.
        objective: number of negatives and selector; static under jit.

    Returns:
        The subgroups. The outcome of a turned group is still ALL_WRONG, that of its rollouts.
    """
    turned = turned_groups(subgroup.outcome, reflection.tried, reflection.correct)
    distances = state_distances(jnp.concatenate([think_states, repair_states.astype(think_states.dtype)], axis=1))
    is_rollout = jnp.arange(distances.shape[1], dtype=jnp.int32) < correct.shape[1]
    repair = jnp.full(turned.shape, correct.shape[1], jnp.int32)  # a row behind the rollouts
    negatives = select_negatives(
        distances=distances,
        anchor=repair,
        failures=is_rollout[None] & turned[:, None],
        num_negatives=objective.num_negatives,
        num_neighbours=objective.num_neighbours,
        selector=objective.selector,
        key=key,
    )
    no_others = jnp.full(negatives.shape, NO_RANK, jnp.int32)
    chosen = fill_slots(
        distances, repair, negatives, turned, subgroup.outcome, objective=objective, positives=no_others
    )
    pseudo_anchor = subgroup.index[:, :1]
    chosen = dataclasses.replace(chosen, index=jnp.concatenate([pseudo_anchor, chosen.index[:, 1:]], axis=1))

    def of_turned(new: Shaped[Array, "B ..."], old: Shaped[Array, "B ..."]) -> Shaped[Array, "B ..."]:
        return jnp.where(turned if old.ndim == 1 else turned[:, None], new, old)

    result: Subgroup = jax.tree.map(of_turned, chosen, subgroup)
    if not objective.rescue.enabled:
        is_taught = turned | (subgroup.outcome != Outcome.ALL_WRONG)
        result = dataclasses.replace(
            result,
            valid=result.valid & is_taught[:, None],
            num_negatives=jnp.where(is_taught, result.num_negatives, 0),
        )
    return result
