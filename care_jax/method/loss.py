"""The policy loss of a batch of rows: ratio, surrogate, KL, and one sum (docs/method.md section 5).

Every denominator is a count over the whole minibatch, over all processes and micro-batches, and the caller passes it
in: the loss of a piece is its part of the whole, so that pieces and their gradients add up.

Log-ratios are limited to at most 20 before exp, against inf * 0 in the gradient; a healthy run never gets there.
"""

from __future__ import annotations

import typing

import jax
import jax.numpy as jnp
from flax import struct
from jaxtyping import Bool, Float32

from care_jax.method.importance import Correction, at_level, importance
from care_jax.method.objectives import Objective
from care_jax.options import Aggregate
from care_jax.structs import Array, TrainBatch

WEIGHT_EPS = 1e-6
MAX_LOG_RATIO = 20.0


@struct.dataclass
class Denominators:
    """Counts over a whole minibatch; never those of one micro-batch or one shard."""

    num_rows: Float32[Array, ""]  # rows that are updated
    num_tokens: Float32[Array, ""]  # sampled tokens of those rows


@struct.dataclass
class LossOutput:
    """A piece's part of the minibatch loss."""

    loss: Float32[Array, ""]  # policy + kl_coef * KL
    aux: dict[str, Float32[Array, ""]]  # to be added up over pieces; see `policy_loss`


def count_denominators(batch: TrainBatch) -> Denominators:
    """Counts the rows and sampled tokens of `batch`; call it on the minibatch before it is cut into pieces."""
    sampled = batch.sampled_mask & batch.row_mask[..., None]
    return Denominators(
        num_rows=batch.row_mask.sum(dtype=jnp.int32).astype(jnp.float32),
        num_tokens=sampled.sum(dtype=jnp.int32).astype(jnp.float32),
    )


def policy_loss(
    logprobs: Float32[Array, "B S R"],
    batch: TrainBatch,
    *,
    objective: Objective,
    denominators: Denominators,
    correction: Correction | None = None,
) -> LossOutput:
    """Computes the policy loss and the k3 KL of the rows in `batch.row_mask` (docs/method.md sections 5, 6).

        l = -min(rho * A, clip(rho, 1 - clip_low, 1 + clip_high) * A)   surrogate "clip"; `_surrogate` has the others
        k = exp(ref - new) - (ref - new) - 1
        rho = exp(new - old)                                         ratio "token"
        rho = exp(mean of new - old over the row's sampled tokens)   ratio "sequence" (GSPO, arXiv 2507.18071)
        rho = stop_gradient(that) * exp(new - stop_gradient(new))    ratio "sequence_token" (GSPO-token, the same paper)

    l is summed with the token weights, k with 1 at every sampled token, both divided as `aggregate_tokens` says. The
    loss is the first plus kl_coef times the second, which is not computed at kl_coef 0.

    With a correction, l is multiplied with importance weights, and tokens out of its bounds add nothing to either sum;
    denominators stay. The weights are made of exp(old - sampler). If old is the sampler's, they are made of
    exp(new - sampler), which has no gradient, and with a cap the values of new take the place of old in rho too: it is
    1, its gradient that of new, and nothing is clipped.

    Args:
        logprobs: of the policy that is being updated. Values at tokens that were not sampled are ignored, and their
            gradient is exactly 0.
        batch: the rows; all of a minibatch, or one piece of it.
        objective: ratio, surrogate, aggregate and KL coefficient; static under jit.
        denominators: counts of the whole minibatch.
        correction: of the sampler; needs `batch.logprobs_sampler`. None: none.

    Returns:
        LossOutput. aux holds sums over this piece: `loss` = `policy_loss` + `kl_loss` (their parts of the minibatch
        loss, already divided), `kl_sum` (k over tokens; divide by num_tokens), `log_ratio_sum` (new - old over
        tokens; by num_tokens) and `abs_log_ratio_sum`, `clipped_tokens` (tokens with a weight whose ratio was
        clipped; by weighted_tokens), `weighted_tokens`, `num_tokens`, `num_rows`. The two of the KL are absent at
        kl_coef 0. With a correction also `importance_sum` (weights of the `kept_tokens`), `kept_tokens`,
        `masked_tokens` and `truncated_tokens`.
    """
    mask = batch.sampled_mask & batch.row_mask[..., None]
    # Masked on the way in, so that a nan or inf under the mask reaches neither value nor gradient.
    logprobs = jnp.where(mask, logprobs.astype(jnp.float32), 0.0)
    old = jnp.where(mask, batch.logprobs_old, 0.0)
    log_ratio = logprobs - old
    sampled = mask.astype(jnp.float32)
    weights = jnp.where(mask, batch.token_weights, 0.0)

    moved, corrected = log_ratio, None
    if correction is not None:
        assert batch.logprobs_sampler is not None
        proximal = jax.lax.stop_gradient(logprobs) if correction.old_is_sampler else old
        corrected = importance(proximal - jnp.where(mask, batch.logprobs_sampler, 0.0), mask, correction)
        moved = logprobs - proximal if correction.tis_cap > 0 else log_ratio

    exponent = at_level(moved, mask, "token" if objective.ratio == "token" else "geometric")
    if objective.ratio == "sequence_token":
        exponent = jax.lax.stop_gradient(exponent) + (moved - jax.lax.stop_gradient(moved))
    ratio = jnp.exp(jnp.minimum(exponent, MAX_LOG_RATIO))
    advantages = jnp.where(batch.row_mask, batch.advantages, 0.0)[..., None]
    losses, is_clipped = _surrogate(ratio, logprobs, advantages, objective)
    weighed = losses if corrected is None else corrected.weights * losses
    policy = aggregate_tokens(weighed, weights, objective.aggregate, denominators)

    has_weight = weights > 0
    aux = {
        "policy_loss": policy,
        "log_ratio_sum": log_ratio.sum(),
        "abs_log_ratio_sum": jnp.abs(log_ratio).sum(),
        "clipped_tokens": (has_weight & is_clipped).sum(dtype=jnp.float32),
        "weighted_tokens": has_weight.sum(dtype=jnp.float32),
        "num_tokens": sampled.sum(),
        "num_rows": batch.row_mask.sum(dtype=jnp.float32),
    }
    if corrected is not None:
        aux |= {
            "importance_sum": corrected.weights.sum(),
            "kept_tokens": corrected.kept.sum(dtype=jnp.float32),
            "masked_tokens": (mask & ~corrected.kept).sum(dtype=jnp.float32),
            "truncated_tokens": corrected.truncated.sum(dtype=jnp.float32),
        }
    loss = policy
    if objective.kl_coef != 0:
        kl = _k3(jnp.where(mask, batch.logprobs_ref, 0.0) - logprobs)
        kl = kl if corrected is None else jnp.where(corrected.kept, kl, 0.0)
        kl_loss = objective.kl_coef * aggregate_tokens(kl, sampled, objective.aggregate, denominators)
        loss = policy + kl_loss
        aux |= {"kl_loss": kl_loss, "kl_sum": kl.sum()}
    return LossOutput(loss=loss, aux=aux | {"loss": loss})


def _surrogate(
    ratio: Float32[Array, "B S R"],
    logprobs: Float32[Array, "B S R"],
    advantages: Float32[Array, "B S 1"],
    objective: Objective,
) -> tuple[Float32[Array, "B S R"], Bool[Array, "B S R"]]:
    """The loss of each token, and whether its ratio was clipped.

    -min(rho * A, clip(rho) * A)               clip (PPO, arXiv 1707.06347)
    -stop_gradient(clip(rho)) * A * new        cispo (MiniMax-M1, arXiv 2506.13585): every token keeps a gradient
    -4 / tau * sigmoid(tau * (rho - 1)) * A    sapo (arXiv 2511.20347): tau by the sign of A; nothing is clipped
    """
    if objective.surrogate == "sapo":
        tau = jnp.where(advantages > 0, objective.sapo_tau_pos, objective.sapo_tau_neg)
        return -4.0 / tau * jax.nn.sigmoid(tau * (ratio - 1.0)) * advantages, jnp.zeros(ratio.shape, bool)
    bounded = jnp.clip(ratio, 1.0 - objective.clip_low, 1.0 + objective.clip_high)
    if objective.surrogate == "cispo":
        return -jax.lax.stop_gradient(bounded) * advantages * logprobs, bounded != ratio
    if objective.surrogate == "clip":
        unclipped, clipped = ratio * advantages, bounded * advantages
        return -jnp.minimum(unclipped, clipped), clipped < unclipped
    typing.assert_never(objective.surrogate)


def aggregate_tokens(
    values: Float32[Array, "B S R"],
    weights: Float32[Array, "B S R"],
    aggregate: Aggregate,
    denominators: Denominators,
) -> Float32[Array, ""]:
    """Makes one number of the tokens of a piece: its part of the minibatch's mean (docs/method.md sections 5 and 6).

        aggregate     sum                                                        divided by
        "sequence"    over rows of sum_t w_t v_t / (sum_t w_t + 1e-6)            num_rows
        "token"       over rows and tokens of w_t v_t                            num_tokens
        "constant"    over rows and tokens of w_t v_t                            num_rows * R (arXiv 2503.20783)

    Args:
        values: one number a token.
        weights: of the tokens; 0 for a token that does not count.
        aggregate: objective.aggregate.
        denominators: counts of the whole minibatch; a count of 0 divides as 1.

    Returns:
        The piece's part of the mean.
    """
    num_rows = jnp.maximum(denominators.num_rows, 1.0)
    if aggregate == "sequence":
        row_weight = weights.sum(axis=-1) + WEIGHT_EPS
        return ((weights * values).sum(axis=-1) / row_weight).sum() / num_rows
    if aggregate == "token":
        return (weights * values).sum() / jnp.maximum(denominators.num_tokens, 1.0)
    if aggregate == "constant":
        return (weights * values).sum() / (num_rows * values.shape[-1])
    typing.assert_never(aggregate)


def _k3(log_ratio_ref: Float32[Array, "B S R"]) -> Float32[Array, "B S R"]:
    """exp(x) - x - 1 with x = ref - new: unbiased, never negative, 0 at x = 0 (Schulman's k3)."""
    log_ratio_ref = jnp.minimum(log_ratio_ref, MAX_LOG_RATIO)
    return jnp.exp(log_ratio_ref) - log_ratio_ref - 1.0
