"""Importance weights for a sampler that is not quite the policy (docs/method.md section 5)."""

from __future__ import annotations

import dataclasses
import math
import typing

import jax.numpy as jnp
import ml_collections
from flax import struct
from jaxtyping import Bool, Float32

from care_jax.options import RatioLevel
from care_jax.structs import Array


@dataclasses.dataclass(frozen=True)
class Correction:
    """The settings of `config.loss`, checked by config.py. Hashable, and static under jit."""

    tis_cap: float
    tis_level: RatioLevel
    mask_level: RatioLevel
    mask_low: float
    mask_high: float
    old_is_sampler: bool  # score.old_from="sampler": the old log-probs are the sampler's own

    @classmethod
    def from_config(cls, config: ml_collections.ConfigDict) -> Correction | None:
        """The correction that a config asks for; None if it sets neither a cap nor a bound."""
        loss = config.loss
        if not (loss.tis_cap or loss.mask_low or loss.mask_high):
            return None
        return cls(**loss.to_dict(), old_is_sampler=config.score.old_from == "sampler")


@struct.dataclass
class Importance:
    """The correction of each token. A token that was not sampled is neither kept nor truncated."""

    weights: Float32[Array, "B S R"]  # of the policy loss; 0 at tokens that are not kept
    kept: Bool[Array, "B S R"]
    truncated: Bool[Array, "B S R"]  # kept, with a ratio above the cap


def importance(log_ratio: Float32[Array, "B S R"], sampled: Bool[Array, "B S R"], correction: Correction) -> Importance:
    """Truncated weights, and the tokens whose ratio lies within the bounds (docs/method.md section 5).

        weight = min(ratio at tis_level, tis_cap), or 1 at tis_cap 0
        kept   = mask_low <= ratio at mask_level <= mask_high; a bound of 0 is none

    Args:
        log_ratio: log-prob under the policy minus log-prob under the sampler; 0 at tokens that were not sampled.
        sampled: tokens that were sampled, in rows that count.
        correction: cap, bounds and levels; static under jit.

    Returns:
        Importance. No gradient is stopped here: `log_ratio` must have none.
    """
    kept = sampled
    bounded = at_level(log_ratio, sampled, correction.mask_level)
    if correction.mask_low > 0:
        kept = kept & (bounded >= math.log(correction.mask_low))
    if correction.mask_high > 0:
        kept = kept & (bounded <= math.log(correction.mask_high))
    if correction.tis_cap == 0:
        return Importance(weights=kept.astype(jnp.float32), kept=kept, truncated=jnp.zeros_like(kept))
    limit = math.log(correction.tis_cap)
    weighed = at_level(log_ratio, sampled, correction.tis_level)
    weights = jnp.where(kept, jnp.exp(jnp.minimum(weighed, limit)), 0.0)
    return Importance(weights=weights, kept=kept, truncated=kept & (weighed > limit))


def at_level(
    log_ratio: Float32[Array, "B S R"], sampled: Bool[Array, "B S R"], level: RatioLevel
) -> Float32[Array, "B S R"]:
    """The logarithm of each token's ratio ("token"), of its row's product ("sequence") or mean ("geometric").

    Products and geometric means go over the row's sampled tokens, and are 1 for a row without any.
    """
    if level == "token":
        return log_ratio
    counted = sampled.astype(jnp.float32)
    total = (log_ratio * counted).sum(axis=-1, keepdims=True)
    if level == "geometric":
        total = total / jnp.maximum(counted.sum(axis=-1, keepdims=True), 1.0)
    elif level != "sequence":
        typing.assert_never(level)
    return jnp.broadcast_to(total, log_ratio.shape)
