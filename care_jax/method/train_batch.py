"""From groups to rows: gathers each subgroup, puts the reflection in its slot, and weighs what remains."""

from __future__ import annotations

import jax.numpy as jnp
import ml_collections
from flax import struct

from care_jax.method.advantage import SubgroupAdvantages, subgroup_advantages, token_weights
from care_jax.structs import Array, Outcome, Prompts, Rollouts, Scores, Subgroup, TrainBatch, Verdicts

REFLECTED_SLOT = 1  # the nearest negative


@struct.dataclass
class Reflection:
    """One reflected response a group, ready to take the place of the nearest negative."""

    tried: Array  # [B] bool
    token_ids: Array  # [B, R] int32
    response_len: Array  # [B] int32
    sampled_mask: Array  # [B, R] bool, False at forced tokens
    logprobs_old: Array  # [B, R] float32, under the context the update conditions on
    correct: Array  # [B] bool
    rewards: Array  # [B] float32
    think_mask: Array  # [B, R] bool
    answer_mask: Array  # [B, R] bool


@struct.dataclass
class Assembled:
    """The batch of an update, and the advantages before and after scaling."""

    batch: TrainBatch
    advantages: SubgroupAdvantages


def no_reflection(batch: int, response_len: int) -> Reflection:
    """A Reflection in which nothing was tried."""
    row, tokens = jnp.zeros((batch,), bool), jnp.zeros((batch, response_len), bool)
    return Reflection(
        tried=row,
        token_ids=tokens.astype(jnp.int32),
        response_len=row.astype(jnp.int32),
        sampled_mask=tokens,
        logprobs_old=tokens.astype(jnp.float32),
        correct=row,
        rewards=row.astype(jnp.float32),
        think_mask=tokens,
        answer_mask=tokens,
    )


def assemble(
    prompts: Prompts,
    rollouts: Rollouts,
    verdicts: Verdicts,
    scores: Scores,
    subgroup: Subgroup,
    reflection: Reflection,
    *,
    objective: ml_collections.FrozenConfigDict,
) -> Assembled:
    """Rows, advantages and token weights of the update (method.md sections 2 to 5).

    A reflection, right or wrong, replaces the negative in slot 1 of a MIXED group before rewards are normalised.
    `logprobs_ref` is set to the old log-probs; the caller overwrites it where a reference policy is used.
    """
    num_slots = subgroup.index.shape[1]
    slot = jnp.arange(num_slots, dtype=jnp.int32)[None]
    replaced = reflection.tried[:, None] & (slot == REFLECTED_SLOT) & subgroup.valid
    replaced = replaced & (subgroup.outcome == Outcome.MIXED)[:, None]

    def rows(of_rollouts: Array, of_reflection: Array) -> Array:
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
        subgroup=subgroup,
        objective=objective,
    )
    weights = token_weights(
        think_mask=rows(verdicts.think_mask, reflection.think_mask),
        answer_mask=rows(verdicts.answer_mask, reflection.answer_mask),
        sampled_mask=sampled_mask,
        correct=correct,
        objective=objective,
    )
    logprobs_old = rows(scores.logprobs, reflection.logprobs_old)
    batch = TrainBatch(
        prompts=prompts,
        token_ids=rows(rollouts.token_ids, reflection.token_ids),
        response_len=rows(rollouts.response_len, reflection.response_len),
        sampled_mask=sampled_mask,
        logprobs_old=logprobs_old,
        logprobs_ref=logprobs_old,
        advantages=advantages.final,
        token_weights=weights,
        row_mask=subgroup.valid,
    )
    return Assembled(batch=batch, advantages=advantages)
