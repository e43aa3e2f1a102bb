"""The all-wrong group: a pseudo-anchor and a small contrast (docs/method.md section 4).

subgroup.py chooses the representatives beside the pseudo-anchor, because it owns farthest-first. Nothing here changes a
real reward.
"""

from __future__ import annotations

import jax.numpy as jnp
from jaxtyping import Bool, Float, Float32, Int32

from care_jax.options import RankBy
from care_jax.structs import Array


def choose_pseudo_anchor(
    logprobs_old: Float[Array, "B G R"], sampled_mask: Bool[Array, "B G R"], rank_by: RankBy
) -> Int32[Array, "B"]:
    """Picks the rollout that the old policy finds most likely, the lowest one of equals (docs/method.md section 4).

    The arguments are those of `likelihood`.
    """
    return likelihood(logprobs_old, sampled_mask, rank_by).argmax(axis=1).astype(jnp.int32)


def likelihood(
    logprobs_old: Float[Array, "B G R"], sampled_mask: Bool[Array, "B G R"], rank_by: RankBy
) -> Float32[Array, "B G"]:
    """Scores rollouts by their likelihood under the old policy (docs/method.md section 4).

        score = sum_t logprobs_old                    rank_by "sum" (published; favours short responses)
        score = sum_t logprobs_old / num_sampled      rank_by "mean"

    Both sums run over the row's sampled tokens, and num_sampled counts them.

    Args:
        logprobs_old: log-probs of the policy that sampled. Values at other than sampled tokens are ignored.
        sampled_mask: the sampled tokens.
        rank_by: objective.rescue.rank_by.

    Returns:
        The scores; -inf for a row without sampled tokens, whose empty sum is not a likelihood.
    """
    score = jnp.where(sampled_mask, logprobs_old.astype(jnp.float32), 0.0).sum(axis=2)
    num_tokens = sampled_mask.sum(axis=2, dtype=jnp.int32)
    if rank_by == "mean":
        score /= jnp.maximum(num_tokens, 1).astype(jnp.float32)
    return jnp.where(num_tokens > 0, score, -jnp.inf)


def pseudo_rewards(valid: Bool[Array, "B S"], num_negatives: Int32[Array, "B"], delta: float) -> Float32[Array, "B S"]:
    """Gives +delta to the pseudo-anchor and -delta / K' to each representative (docs/method.md section 4).

    The rewards of a group sum to 0.

    Args:
        valid: rows of the subgroup, slot 0 the pseudo-anchor.
        num_negatives: K'.
        delta: objective.rescue.delta.

    Returns:
        The pseudo-rewards, 0 in slots that are not valid.
    """
    is_anchor = (jnp.arange(valid.shape[1], dtype=jnp.int32) == 0)[None]
    share = -delta / jnp.maximum(num_negatives, 1).astype(jnp.float32)
    return jnp.where(valid, jnp.where(is_anchor, delta, share[:, None]), 0.0)
