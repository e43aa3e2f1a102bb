"""Rewards to advantages, in float32 (docs/method.md sections 2 to 4)."""

from __future__ import annotations

import jax.numpy as jnp
import ml_collections
import numpy as np
from flax import struct
from jaxtyping import Bool, Float, Float32

from care_jax.method import rescue
from care_jax.method.objectives import Objective, has_all_wrong_subgroups
from care_jax.structs import Array, Outcome, Subgroup

STD_EPS = 1e-6


@struct.dataclass
class SubgroupAdvantages:
    """Advantages of a subgroup's rows, 0 where not valid."""

    raw: Float32[Array, "B S"]  # z-scored rewards
    final: Float32[Array, "B S"]  # scaled; the loss takes these


def subgroup_advantages(
    *,
    rewards: Float[Array, "B S"],
    correct: Bool[Array, "B S"],
    reflected: Bool[Array, "B S"],
    subgroup: Subgroup,
    objective: Objective,
) -> SubgroupAdvantages:
    """Computes the advantages inside each subgroup (docs/method.md sections 2 to 4).

        A_raw = (r - mean_S) / (std_S + 1e-6)              mean and population std over the valid rows of S
        anchor, and every other row that is correct         A_raw
        reflected row that is still wrong                   -reflected_scale * |A_raw|
        negative                                            -negative_scale * |A_raw|
        all of them, if equalise                            times sqrt(K / K')

    An ALL_WRONG group that was rescued uses pseudo-rewards in place of r. z-scoring cancels their size; with
    rescue.scale "delta" the final values are multiplied by delta, which gives it back. Without `objective.anchored` all
    rows are treated alike, the final values are the raw ones, and a `virtual_reward` counts as one row more. A repair
    whose reward is above its anchor's pushes the anchor down: at K' = 1 and rewards 0.9 and 1.0 the final values are -2
    and +2.

    Args:
        rewards: of the subgroup's rows, with reflections already in their slots.
        correct: verdicts of the same rows.
        reflected: rows that a reflection replaced.
        subgroup: from `subgroup.select_subgroup`.
        objective: which of the above; static under jit.

    Returns:
        The advantages before and after scaling.
    """
    if not objective.anchored:
        raw = _z_score(rewards, subgroup.valid, objective.normalise_std, objective.virtual_reward)
        return SubgroupAdvantages(raw, raw)

    valid, rescued = subgroup.valid, (subgroup.outcome == Outcome.ALL_WRONG)[:, None]
    pseudo = rescue.pseudo_rewards(valid, subgroup.num_negatives, objective.rescue.delta)
    raw = _z_score(jnp.where(rescued, pseudo, rewards.astype(jnp.float32)), valid, objective.normalise_std)

    is_anchor = (jnp.arange(valid.shape[1], dtype=jnp.int32) == 0)[None]
    scale = jnp.where(reflected, objective.reflected_scale, objective.negative_scale)
    final = jnp.where(is_anchor | correct, raw, -scale * jnp.abs(raw))
    if objective.equalise:
        num_negatives = jnp.maximum(subgroup.num_negatives, 1).astype(jnp.float32)
        final *= jnp.sqrt(objective.num_negatives / num_negatives)[:, None]
    if objective.rescue.scale == "delta":
        final = jnp.where(rescued, objective.rescue.delta * final, final)
    return SubgroupAdvantages(raw, jnp.where(valid, final, 0.0))


def _z_score(
    rewards: Float[Array, "B S"], valid: Bool[Array, "B S"], normalise_std: bool, virtual_reward: float = 0.0
) -> Float32[Array, "B S"]:
    """(r - mean) / (std + 1e-6) over the valid rows, 0 elsewhere; slot 0 is valid if any slot is.

    A virtual reward above 0 counts as one row more in the mean and the deviation.
    """
    if virtual_reward > 0:
        rewards = jnp.pad(rewards, ((0, 0), (0, 1)), constant_values=virtual_reward)
        valid = jnp.pad(valid, ((0, 0), (0, 1)), constant_values=True)
        return _z_score(rewards, valid, normalise_std)[:, :-1]
    rewards = rewards.astype(jnp.float32)
    # Equal rewards whose float32 mean is off by one rounding step would come out as 0.06, not 0, because that
    # step is divided by 1e-6. Measured from slot 0 they are zeros, and so is everything made of them.
    rewards = jnp.where(valid, rewards - rewards[:, :1], 0.0)
    num_rows = jnp.maximum(valid.sum(axis=1, keepdims=True, dtype=jnp.int32), 1).astype(jnp.float32)
    centred = jnp.where(valid, rewards - rewards.sum(axis=1, keepdims=True) / num_rows, 0.0)
    if not normalise_std:
        return centred
    std = jnp.sqrt(jnp.square(centred).sum(axis=1, keepdims=True) / num_rows)
    return centred / (std + STD_EPS)


def has_contrast(
    correct: Bool[np.ndarray, "B G"], objective: Objective | ml_collections.ConfigDict
) -> Bool[np.ndarray, "B"]:
    """Groups that dynamic sampling keeps: MIXED, and ALL_WRONG if no repair is needed (docs/method.md section 6)."""
    contrasted = objective.rescue.enabled if objective.anchored else objective.virtual_reward > 0
    return ~np.all(correct, axis=1) & (np.any(correct, axis=1) | contrasted)


def may_teach(
    correct: Bool[np.ndarray, "B G"],
    rewards: Float[np.ndarray, "B G"],
    objective: Objective | ml_collections.ConfigDict,
) -> Bool[np.ndarray, "B"]:
    """Groups that may get a gradient; all others have advantages of 0, whatever their scores, and no KL.

    anchored    MIXED, and ALL_WRONG if they are rescued or repaired
    else        rewards that differ, from the virtual one too; all of them with a KL
    """
    if objective.anchored:
        return has_contrast(correct, objective) | (~np.any(correct, axis=1) & has_all_wrong_subgroups(objective))
    least, most = np.min(rewards, axis=1), np.max(rewards, axis=1)
    virtual = np.float32(objective.virtual_reward)
    return (least != most) | ((virtual > 0) & (most != virtual)) | (objective.kl_coef > 0)
