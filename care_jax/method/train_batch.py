"""From groups to rows: each subgroup with its reflection, advantages and weights (docs/method.md sections 2 to 5)."""

from __future__ import annotations

import dataclasses

import jax.numpy as jnp
import numpy as np
from flax import struct
from jaxtyping import Bool, Float32, Int32, Shaped

from care_jax.method.advantage import SubgroupAdvantages, subgroup_advantages
from care_jax.method.objectives import Objective
from care_jax.method.token_weights import shared_with_anchor, token_weights
from care_jax.structs import Array, Outcome, Prompts, Rollouts, Scores, Subgroup, TrainBatch, Verdicts

REFLECTED_SLOT = 1  # of a MIXED group: the negative that is repaired, the nearest or as reflect.failure says


def slot_of_repair(outcome: Shaped[Array, "B"]) -> Shaped[Array, "B"]:
    """The slot whose rollout a repair starts from: REFLECTED_SLOT, or of an ALL_WRONG group the pseudo-anchor's, 0."""
    return (outcome != Outcome.ALL_WRONG).astype(np.int32) * np.int32(REFLECTED_SLOT)


def turned_groups(outcome: Int32[Array, "B"], tried: Bool[Array, "B"], correct: Bool[Array, "B"]) -> Bool[Array, "B"]:
    """The ALL_WRONG groups of which the repair is right."""
    return (outcome == Outcome.ALL_WRONG) & tried & correct


@struct.dataclass
class Reflection:
    """One reflected response a group, ready for the slot of its negative. Zeros mean that none was tried."""

    tried: Bool[Array, "B"]
    token_ids: Int32[Array, "B R"]
    response_len: Int32[Array, "B"]
    sampled_mask: Bool[Array, "B R"]  # False at forced tokens
    logprobs_old: Float32[Array, "B R"]  # under the context the update conditions on
    logprobs_sampler: Float32[Array, "B R"]  # the old ones for a rewrite, which nobody sampled
    correct: Bool[Array, "B"]
    rewards: Float32[Array, "B"]
    think_mask: Bool[Array, "B R"]
    answer_mask: Bool[Array, "B R"]


@struct.dataclass
class Assembled:
    """The batch of an update, the advantages before and after scaling, and what has to be computed of the batch."""

    batch: TrainBatch
    advantages: SubgroupAdvantages
    taught_len: Int32[Array, "B S"]  # tokens of each row that has a gradient, 0 for the others


def assemble(
    prompts: Prompts,
    rollouts: Rollouts,
    verdicts: Verdicts,
    scores: Scores,
    subgroup: Subgroup,
    reflection: Reflection,
    *,
    objective: Objective,
    keep_sampler: bool = False,
) -> Assembled:
    """Gathers the rows of an update with their advantages and token weights (docs/method.md sections 2 to 5).

    A reflection, right or wrong, replaces the negative in slot 1 of a MIXED group before rewards are normalised. A
    right one replaces the pseudo-anchor of an ALL_WRONG group, which from there on counts as MIXED.

    Args:
        prompts: the batch's prompts, passed on.
        rollouts: G responses to each.
        verdicts: of the rollouts.
        scores: of the rollouts, under the policy that sampled.
        subgroup: from `subgroup.select_subgroup`.
        reflection: one a group; ignored if it was not tried.
        objective: advantages and weights; static under jit.
        keep_sampler: the batch has the sampler's log-probs.

    Returns:
        The batch, whose `logprobs_ref` are the old log-probs until the caller puts a reference policy's there.
    """
    num_slots = subgroup.index.shape[1]
    slot = jnp.arange(num_slots, dtype=jnp.int32)[None]
    turned = turned_groups(subgroup.outcome, reflection.tried, reflection.correct) & objective.reflect.all_wrong
    takes_repair = turned | (reflection.tried & (subgroup.outcome == Outcome.MIXED))
    replaced = takes_repair[:, None] & (slot == slot_of_repair(subgroup.outcome)[:, None]) & subgroup.valid

    def rows(of_rollouts: Shaped[Array, "B G ..."], of_reflection: Shaped[Array, "B ..."]) -> Shaped[Array, "B S ..."]:
        """The subgroup's rows, with the reflection in its slot."""
        index = subgroup.index if of_rollouts.ndim == 2 else subgroup.index[..., None]
        gathered = jnp.take_along_axis(of_rollouts, index, axis=1)
        mask = replaced if of_rollouts.ndim == 2 else replaced[..., None]
        return jnp.where(mask, of_reflection[:, None], gathered)

    correct = rows(verdicts.correct, reflection.correct)
    sampled_mask = rows(rollouts.sampled_mask, reflection.sampled_mask) & subgroup.valid[..., None]
    advantages = subgroup_advantages(
        rewards=rows(verdicts.rewards, reflection.rewards),
        correct=correct,
        reflected=replaced,
        subgroup=dataclasses.replace(subgroup, outcome=jnp.where(turned, jnp.int32(Outcome.MIXED), subgroup.outcome)),
        objective=objective,
    )
    token_ids = rows(rollouts.token_ids, reflection.token_ids)
    think_mask = rows(verdicts.think_mask, reflection.think_mask)
    shared_mask = None
    if objective.region.enabled and objective.region.after_divergence:
        shared_mask = shared_with_anchor(
            token_ids=token_ids, think_mask=think_mask, correct=correct, valid=subgroup.valid
        )
    weights = token_weights(
        think_mask=think_mask,
        answer_mask=rows(verdicts.answer_mask, reflection.answer_mask),
        sampled_mask=sampled_mask,
        correct=correct,
        objective=objective,
        shared_mask=shared_mask,
    )
    logprobs_old = rows(scores.logprobs, reflection.logprobs_old)
    batch = TrainBatch(
        prompts=prompts,
        token_ids=token_ids,
        response_len=rows(rollouts.response_len, reflection.response_len),
        sampled_mask=sampled_mask,
        logprobs_old=logprobs_old,
        logprobs_ref=logprobs_old,
        advantages=advantages.final,
        token_weights=weights,
        row_mask=subgroup.valid,
        logprobs_sampler=rows(rollouts.logprobs, reflection.logprobs_sampler) if keep_sampler else None,
    )
    has_gradient = subgroup.valid & ((advantages.final != 0) | (objective.kl_coef > 0))
    return Assembled(batch, advantages, jnp.where(has_gradient, batch.response_len, 0))
