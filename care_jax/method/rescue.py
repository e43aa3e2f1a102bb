"""The group in which every rollout is wrong: a pseudo-anchor and a small contrast (method.md section 4).

The representatives beside the pseudo-anchor are chosen in subgroup.py, which owns farthest-first; real
rewards are never changed by what is here.
"""

from __future__ import annotations

import jax.numpy as jnp

from care_jax.structs import Array

RANKS = ("sum", "mean")


def choose_pseudo_anchor(logprobs_old: Array, sampled_mask: Array, rank_by: str) -> Array:
    """The rollout the old policy found most likely (section 4).

    Args:
        logprobs_old: [B, G, R] float32.
        sampled_mask: [B, G, R] bool; log-probs of other tokens are not looked at.
        rank_by: `sum` over the sampled tokens (published; favours short responses) or their `mean`. The
            denominator of the mean is the row's number of sampled tokens.

    Returns:
        [B] int32, ties by lowest index. A row without sampled tokens comes last: its empty sum is not a likelihood.

    Raises:
        ValueError: another `rank_by`.
    """
    score = jnp.where(sampled_mask, logprobs_old.astype(jnp.float32), 0.0).sum(axis=2)
    num_tokens = sampled_mask.sum(axis=2, dtype=jnp.int32)
    if rank_by == "mean":
        score /= jnp.maximum(num_tokens, 1).astype(jnp.float32)
    elif rank_by != "sum":
        raise ValueError(f"objective.rescue.rank_by is {rank_by!r}; allowed are {', '.join(RANKS)}")
    return jnp.where(num_tokens > 0, score, -jnp.inf).argmax(axis=1).astype(jnp.int32)


def pseudo_rewards(valid: Array, num_negatives: Array, delta: float) -> Array:
    """+delta for the pseudo-anchor and -delta / K' for each representative, so that they sum to 0 (section 4).

    Args:
        valid: [B, S] bool, slot 0 the pseudo-anchor.
        num_negatives: [B] int32, K'.
        delta: objective.rescue.delta.

    Returns:
        [B, S] float32, 0 where not valid.
    """
    is_anchor = (jnp.arange(valid.shape[1], dtype=jnp.int32) == 0)[None]
    share = -delta / jnp.maximum(num_negatives, 1).astype(jnp.float32)
    return jnp.where(valid, jnp.where(is_anchor, delta, share[:, None]), 0.0)
