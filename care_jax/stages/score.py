"""Scoring turns parameters and tokens into log-probs, entropy and pooled think states. No other module does.

Sampler and trainer share `masked_logits`: the same temperature, the same forbidden ids, float32.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
from flax import struct
from jaxtyping import Bool, Float, Float32, Int32

from care_jax.models import QwenVL
from care_jax.parallel.collectives import log_softmax, own_part, pick, sum_parts, to_parts
from care_jax.structs import Array, Prompts, Rollouts, Scores, TrainBatch, Verdicts

_FORBIDDEN = float(jnp.finfo(jnp.float32).min)


@struct.dataclass
class TokenScores:
    """Log-prob and entropy of each token of the branches."""

    logprobs: Float32[Array, "B J R"]
    entropy: Float32[Array, "B J R"]  # nats


def masked_logits(
    model: QwenVL, hidden: Float[Array, "*rows D"], *, forbidden_mask: Bool[Array, "V"], temperature: float
) -> Float32[Array, "*rows part"]:
    """Logits / temperature, with forbidden ids out of reach; on shards this device's part of the vocabulary."""
    logits = model.logits(hidden) / temperature
    return jnp.where(_of_vocabulary(forbidden_mask, logits), _FORBIDDEN, logits)


def _of_vocabulary(forbidden_mask: Array, logits: Array) -> Array:
    """The part of forbidden_mask [V] that belongs to logits [..., V or a part of it], with their rank."""
    mask = forbidden_mask if logits.shape[-1] == forbidden_mask.size else own_part(forbidden_mask, axis=0)
    return jnp.expand_dims(mask, tuple(range(logits.ndim - 1)))


def entropy_of(logprobs: Float32[Array, "*rows part"], forbidden_mask: Bool[Array, "V"]) -> Float32[Array, "*rows"]:
    """Entropy in nats. On shards `logprobs` is this device's part of the vocabulary, the entropy that of the whole.

    Forbidden ids have probability 0 and add 0.
    """
    forbidden = _of_vocabulary(forbidden_mask, logprobs)
    entropy = -jnp.sum(jnp.exp(logprobs) * jnp.where(forbidden, 0.0, logprobs), axis=-1)
    return entropy if logprobs.shape[-1] == forbidden_mask.size else sum_parts(entropy)


def token_scores(
    model: QwenVL,
    hidden: Float[Array, "B J R D"],
    token_ids: Int32[Array, "B J R"],
    *,
    forbidden_mask: Bool[Array, "V"],
    temperature: float,
    chunk: int,
) -> TokenScores:
    """Log-probs and entropy of tokens, from the states that predict them.

    Runs the head over `chunk` tokens at a time and recomputes each chunk in the backward pass, so that no
    [tokens, V] array exists. A forbidden token's log-prob is a huge negative number with no gradient.

    Args:
        model: its head is used.
        hidden: the state that predicts each token, after the final norm.
        token_ids: the tokens.
        forbidden_mask: ids that have probability 0.
        temperature: divides the logits.
        chunk: tokens.

    Returns:
        TokenScores.
    """
    model, hidden = model.with_whole_head(), to_parts(hidden)
    shape, width = token_ids.shape, hidden.shape[-1]
    hidden, flat_ids = hidden.reshape(-1, width), token_ids.reshape(-1)
    num_chunks = -(-flat_ids.size // chunk)
    padding = num_chunks * chunk - flat_ids.size
    hidden = jnp.pad(hidden, ((0, padding), (0, 0))).reshape(num_chunks, chunk, width)
    flat_ids = jnp.pad(flat_ids, (0, padding)).reshape(num_chunks, chunk)

    @jax.checkpoint
    def score_chunk(_: None, inputs: tuple[Array, Array]) -> tuple[None, tuple[Array, Array]]:
        states, ids = inputs
        logits = masked_logits(model, states, forbidden_mask=forbidden_mask, temperature=temperature)
        logprobs = log_softmax(logits)
        return None, (pick(logprobs, ids), entropy_of(logprobs, forbidden_mask))

    _, (logprobs, entropy) = jax.lax.scan(score_chunk, None, (hidden, flat_ids))
    size = flat_ids.size - padding
    return TokenScores(
        logprobs=logprobs.reshape(-1)[:size].reshape(shape), entropy=entropy.reshape(-1)[:size].reshape(shape)
    )


def pool_states(own_hidden: Float[Array, "B J R D"], mask: Bool[Array, "B J R"]) -> Float32[Array, "B J D"]:
    """The direction of the mean state over the mask: unit length, without a gradient. An empty mask gives 0."""
    states = jax.lax.stop_gradient(own_hidden).astype(jnp.float32)
    pooled = jnp.einsum("bjrd,bjr->bjd", states, mask.astype(jnp.float32))
    return pooled / jnp.maximum(jnp.linalg.norm(pooled, axis=-1, keepdims=True), 1e-12)


@functools.partial(jax.jit, static_argnames=("temperature", "chunk"))
def score(
    model: QwenVL,
    prompts: Prompts,
    rollouts: Rollouts,
    verdicts: Verdicts,
    forbidden_mask: Bool[Array, "V"],
    *,
    temperature: float,
    chunk: int,
) -> Scores:
    """Scores the rollouts with the trainer's graph: old log-probs and think states (docs/method.md section 1)."""
    hidden = model.forward_branches(prompts, rollouts.token_ids)
    scores = token_scores(
        model,
        hidden.predicting,
        rollouts.token_ids,
        forbidden_mask=forbidden_mask,
        temperature=temperature,
        chunk=chunk,
    )
    states = think_states(hidden.own, rollouts, verdicts)
    return Scores(logprobs=scores.logprobs, entropy=scores.entropy, think_states=states)


def scores_of_sampler(rollouts: Rollouts, verdicts: Verdicts) -> Scores:
    """Scores without a pass, from what the sampler kept (Sampling.keep_states)."""
    assert rollouts.entropy is not None
    assert rollouts.states is not None
    return Scores(
        logprobs=rollouts.logprobs,
        entropy=rollouts.entropy,
        think_states=think_states(rollouts.states, rollouts, verdicts),
    )


def think_states(
    own_hidden: Float[Array, "B J R D"], rollouts: Rollouts, verdicts: Verdicts
) -> Float32[Array, "B J D"]:
    """The rationales' embeddings: the states after the final norm, pooled over the rationale.

    A response without a rationale is pooled whole.
    """
    in_response = jnp.arange(rollouts.token_ids.shape[-1])[None, None] < rollouts.response_len[..., None]
    has_think = jnp.any(verdicts.think_mask, axis=-1, keepdims=True)
    return pool_states(own_hidden, jnp.where(has_think, verdicts.think_mask, in_response))


def batch_logprobs(
    model: QwenVL, batch: TrainBatch, forbidden_mask: Bool[Array, "V"], *, temperature: float, chunk: int
) -> Float32[Array, "B S R"]:
    """Log-probs of a batch's rows under `model`: the reference policy's."""
    hidden = model.forward_branches(batch.prompts, batch.token_ids).predicting
    return token_scores(
        model, hidden, batch.token_ids, forbidden_mask=forbidden_mask, temperature=temperature, chunk=chunk
    ).logprobs
