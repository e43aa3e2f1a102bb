"""Region weights: how much each token of a response counts in the loss (docs/method.md section 5)."""

from __future__ import annotations

import jax.numpy as jnp
from jaxtyping import Bool, Float32

from care_jax.method.objectives import Objective
from care_jax.structs import Array


def token_weights(
    *,
    think_mask: Bool[Array, "*rows R"],
    answer_mask: Bool[Array, "*rows R"],
    sampled_mask: Bool[Array, "*rows R"],
    correct: Bool[Array, "*rows"],
    objective: Objective,
) -> Float32[Array, "*rows R"]:
    """Weighs the tokens by region; the loss divides by a response's sum of weights (docs/method.md section 5).

        f: format_weight, g: gamma_pos, n: gamma_neg
        response      <think> t  t  </think> <answer> a  </answer> <stop>
        weight        f       g  g  f        f        1  f         f         correct
        weight        f       n  n  f        f        1  f         f         wrong
        weight        1       1  1  1        1        1  1         1         no answer span, or regions off

    With `region.unit` "region" these are the weights of a region's sampled tokens together, scaled so that the weights
    of a response sum to its sampled tokens: f = 1, g = 1 give 8/3 to the answer, 4/3 to each t and 8/15 to the others.

    Args:
        think_mask: tokens of the rationale.
        answer_mask: tokens of the answer. A token of both spans belongs to the answer. A response has an answer span if
            any token is set here, sampled or not.
        sampled_mask: tokens that may carry a loss.
        correct: the rows' own verdicts: a pseudo-anchor is not correct.
        objective: which weights; static under jit.

    Returns:
        The weights, 0 where nothing was sampled.
    """
    sampled = sampled_mask.astype(jnp.float32)
    region = objective.region
    if not region.enabled:
        return sampled
    think_weight = jnp.where(correct, region.gamma_pos, region.gamma_neg).astype(jnp.float32)[..., None]
    weights = jnp.where(think_mask, think_weight, region.format_weight)
    is_answer = answer_mask | ~answer_mask.any(axis=-1, keepdims=True)
    weights = jnp.where(is_answer, 1.0, weights).astype(jnp.float32) * sampled
    if region.unit == "token":
        return weights
    regions = (is_answer, think_mask & ~is_answer, ~(think_mask | is_answer))
    size = jnp.ones_like(weights)
    for mask in regions:  # sampled tokens of each token's region
        size = jnp.where(mask, (mask & sampled_mask).sum(axis=-1, keepdims=True, dtype=jnp.float32), size)
    shares = weights / jnp.maximum(size, 1.0)
    total = shares.sum(axis=-1, keepdims=True)
    return shares * sampled.sum(axis=-1, keepdims=True) / jnp.where(total > 0, total, 1.0)
