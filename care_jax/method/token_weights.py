"""Region weights: how much each token of a response counts in the loss (docs/method.md section 5)."""

from __future__ import annotations

import jax.numpy as jnp
from jaxtyping import Bool, Float32, Int32

from care_jax.method.objectives import Objective
from care_jax.structs import Array


def token_weights(
    *,
    think_mask: Bool[Array, "*rows R"],
    answer_mask: Bool[Array, "*rows R"],
    sampled_mask: Bool[Array, "*rows R"],
    correct: Bool[Array, "*rows"],
    objective: Objective,
    shared_mask: Bool[Array, "*rows R"] | None = None,
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
        shared_mask: from `shared_with_anchor`: tokens of the rationale that weigh 0 and count in no region. None: none.

    Returns:
        The weights, 0 where nothing was sampled.
    """
    sampled = sampled_mask.astype(jnp.float32)
    region = objective.region
    if not region.enabled:
        return sampled
    think_weight = jnp.where(correct, region.gamma_pos, region.gamma_neg).astype(jnp.float32)[..., None]
    weights = jnp.where(think_mask, think_weight, region.format_weight)
    if shared_mask is not None:
        weights = jnp.where(shared_mask, 0.0, weights)
    is_answer = answer_mask | ~answer_mask.any(axis=-1, keepdims=True)
    weights = jnp.where(is_answer, 1.0, weights).astype(jnp.float32) * sampled
    if region.unit == "token":
        return weights
    own_think = think_mask if shared_mask is None else think_mask & ~shared_mask
    regions = (is_answer, own_think & ~is_answer, ~(think_mask | is_answer))
    size = jnp.ones_like(weights)
    for mask in regions:  # sampled tokens of each token's region
        size = jnp.where(mask, (mask & sampled_mask).sum(axis=-1, keepdims=True, dtype=jnp.float32), size)
    shares = weights / jnp.maximum(size, 1.0)
    total = shares.sum(axis=-1, keepdims=True)
    return shares * sampled.sum(axis=-1, keepdims=True) / jnp.where(total > 0, total, 1.0)


def shared_with_anchor(
    *,
    token_ids: Int32[Array, "B S R"],
    think_mask: Bool[Array, "B S R"],
    correct: Bool[Array, "B S"],
    valid: Bool[Array, "B S"],
) -> Bool[Array, "B S R"]:
    """Marks the longest common beginning of each rationale and the anchor's (docs/method.md section 5).

        slot 0    <think> a b c d </think>    shared  0 1 1 0 0 0    the anchor: what all wrong rows share with it
        slot 1    <think> a b c x </think>    shared  0 1 1 1 0 0
        slot 2    <think> a b y </think>      shared  0 1 1 0 0
        slot 3    <think> a b c </think>      shared  0 1 1 0 0      a correct row: no more than its anchor

    Args:
        token_ids: of the rows, the anchor in slot 0.
        think_mask: tokens of the rationale, one run of them.
        correct: verdicts; the anchor is not compared with rows that are correct.
        valid: slots that are used.

    Returns:
        The shared tokens. A subgroup without a wrong row has none.
    """
    num_tokens = token_ids.shape[-1]
    place = jnp.arange(num_tokens, dtype=jnp.int32)[None, None]
    start = think_mask.argmax(axis=-1, keepdims=True).astype(jnp.int32)
    rationale = jnp.take_along_axis(token_ids, jnp.minimum(start + place, num_tokens - 1), axis=-1)
    is_inside = place < think_mask.sum(axis=-1, keepdims=True, dtype=jnp.int32)
    agrees = (rationale == rationale[:, :1]) & is_inside & is_inside[:, :1]
    shared_len = jnp.cumprod(agrees, axis=-1, dtype=jnp.int32).sum(axis=-1, dtype=jnp.int32)

    is_anchor = (jnp.arange(valid.shape[1], dtype=jnp.int32) == 0)[None]
    opposed = valid & ~correct & ~is_anchor
    of_anchor = jnp.where(opposed, shared_len, num_tokens).min(axis=1, keepdims=True)
    of_anchor = jnp.where(opposed.any(axis=1, keepdims=True), of_anchor, 0)
    shared_len = jnp.where(is_anchor | correct, jnp.minimum(shared_len, of_anchor), shared_len)
    return think_mask & (place - start < shared_len[..., None])
