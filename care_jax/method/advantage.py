"""Rewards to advantages, and advantages to tokens (method.md sections 2 to 5). All of it in float32."""

from __future__ import annotations

import jax.numpy as jnp
import ml_collections
from flax import struct

from care_jax.method import rescue
from care_jax.structs import Array, Outcome, Subgroup

STD_EPS = 1e-6
SCALES = ("zscore", "delta")


@struct.dataclass
class SubgroupAdvantages:
    """Advantages of a subgroup's rows, 0 where not valid."""

    raw: Array  # [B, S] float32, z-scored rewards
    final: Array  # [B, S] float32, what the loss is given


def subgroup_advantages(
    *, rewards: Array, correct: Array, reflected: Array, subgroup: Subgroup, objective: ml_collections.ConfigDict
) -> SubgroupAdvantages:
    """Advantages inside each subgroup (sections 2 to 4).

        A_raw = (r - mean_S) / (std_S + 1e-6)              mean and population std over the valid rows of S
        anchor, and a reflected row that came out correct   A_raw
        reflected row that is still wrong                   -reflected_scale * |A_raw|
        negative                                            -negative_scale * |A_raw|
        all of them, if equalise                            times sqrt(K / K')

    An ALL_WRONG group that was rescued uses pseudo-rewards in place of r. z-scoring cancels their size; with
    rescue.scale `delta` the final values are multiplied by delta, which gives it back. Without
    `objective.anchored` every row is alike and the final values are the raw ones. A repair whose reward is above its
    anchor's pushes the anchor down: at K' = 1 and rewards 0.9 and 1.0 the final values are -2 and +2.

    Args:
        rewards: [B, S] float32, of the subgroup's rows, reflections already in their slots.
        correct: [B, S] bool, of the same rows.
        reflected: [B, S] bool, rows that a reflection replaced.
        subgroup: from `subgroup.select_subgroup`.
        objective: a record of objectives.py; static under jit.

    Raises:
        ValueError: an unknown objective.rescue.scale.
    """
    if not objective.anchored:
        raw = _z_score(rewards, subgroup.valid, objective.normalise_std)
        return SubgroupAdvantages(raw, raw)
    if objective.rescue.scale not in SCALES:
        raise ValueError(f"objective.rescue.scale is {objective.rescue.scale!r}; allowed are {', '.join(SCALES)}")

    valid, rescued = subgroup.valid, (subgroup.outcome == Outcome.ALL_WRONG)[:, None]
    pseudo = rescue.pseudo_rewards(valid, subgroup.num_negatives, objective.rescue.delta)
    raw = _z_score(jnp.where(rescued, pseudo, rewards.astype(jnp.float32)), valid, objective.normalise_std)

    is_anchor = (jnp.arange(valid.shape[1], dtype=jnp.int32) == 0)[None]
    scale = jnp.where(reflected, objective.reflected_scale, objective.negative_scale)
    final = jnp.where(is_anchor | (reflected & correct), raw, -scale * jnp.abs(raw))
    if objective.equalise:
        num_negatives = jnp.maximum(subgroup.num_negatives, 1).astype(jnp.float32)
        final *= jnp.sqrt(objective.num_negatives / num_negatives)[:, None]
    if objective.rescue.scale == "delta":
        final = jnp.where(rescued, objective.rescue.delta * final, final)
    return SubgroupAdvantages(raw, jnp.where(valid, final, 0.0))


def token_weights(
    *, think_mask: Array, answer_mask: Array, sampled_mask: Array, correct: Array, objective: ml_collections.ConfigDict
) -> Array:
    """Region weights of the tokens (section 5); the loss divides by their sum over a response.

        f: format_weight, g: gamma_pos, n: gamma_neg
        response      <think> t  t  </think> <answer> a  </answer> <stop>
        weight        f       g  g  f        f        1  f         f         correct
        weight        f       n  n  f        f        1  f         f         wrong
        weight        1       1  1  1        1        1  1         1         no answer span, or regions off

    Args:
        think_mask, answer_mask, sampled_mask: [..., R] bool. Whether there is an answer span is judged on
            `answer_mask` as given; a token of both spans belongs to the answer.
        correct: [...] bool, of the rows themselves: a pseudo-anchor is not correct.
        objective: a record of objectives.py; static under jit.

    Returns:
        [..., R] float32, 0 where not sampled.
    """
    sampled = sampled_mask.astype(jnp.float32)
    if not objective.region.enabled:
        return sampled
    think_weight = jnp.where(correct, objective.region.gamma_pos, objective.region.gamma_neg).astype(jnp.float32)[
        ..., None
    ]
    weights = jnp.where(think_mask, think_weight, objective.region.format_weight)
    is_answer = answer_mask | ~answer_mask.any(axis=-1, keepdims=True)
    return jnp.where(is_answer, 1.0, weights).astype(jnp.float32) * sampled


def _z_score(rewards: Array, valid: Array, normalise_std: bool) -> Array:
    """(r - mean) / (std + 1e-6) over the valid rows [B, S], 0 elsewhere; slot 0 is valid if any slot is."""
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
