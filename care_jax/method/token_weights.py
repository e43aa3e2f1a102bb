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
    return jnp.where(is_answer, 1.0, weights).astype(jnp.float32) * sampled
