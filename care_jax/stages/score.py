"""Scoring turns parameters and tokens into log-probs, entropy and pooled think states. No other module does.

Sampler and trainer share `masked_logits`: the same temperature, the same forbidden ids, float32.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import struct
from jaxtyping import Bool, Float, Float32, Int32

from care_jax.models import QwenVL
from care_jax.models.layers import Embedding, Linear
from care_jax.models.qwen_vl import logits
from care_jax.models.trained import is_trained, reference_policy
from care_jax.parallel.collectives import log_softmax, own_part, pick, rows_at, sum_parts, to_parts
from care_jax.stages.streams import Packed, Stream
from care_jax.structs import Array, Packing, Prompts, Rollouts, Scores, TrainBatch, Verdicts

_FORBIDDEN = float(jnp.finfo(jnp.float32).min)


@struct.dataclass
class TokenScores:
    """Log-prob and entropy of each token of the branches."""

    logprobs: Float32[Array, "B J R"]
    entropy: Float32[Array, "B J R"]  # nats


def masked_logits(
    head: Embedding | Linear,
    hidden: Float[Array, "*rows D"],
    *,
    forbidden_mask: Bool[Array, "V"],
    temperature: float | Float32[Array, "*rows 1"],
) -> Float32[Array, "*rows part"]:
    """Logits / temperature, with forbidden ids out of reach; on shards this device's part of the vocabulary."""
    values = logits(head, hidden) / temperature
    return jnp.where(_of_vocabulary(forbidden_mask, values), _FORBIDDEN, values)


def _of_vocabulary(forbidden_mask: Array, values: Array) -> Array:
    """The part of forbidden_mask [V] that belongs to values [..., V or a part of it], with their rank."""
    mask = forbidden_mask if values.shape[-1] == forbidden_mask.size else own_part(forbidden_mask, axis=0)
    return jnp.expand_dims(mask, tuple(range(values.ndim - 1)))


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
    num_tokens: Int32[Array, ""] | None = None,
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
        num_tokens: the first so many count; nothing is computed for chunks behind them, which get zeros.

    Returns:
        TokenScores.
    """
    head, hidden = model.whole_head(), to_parts(hidden)
    shape, width, num_chunks = token_ids.shape, hidden.shape[-1], -(-token_ids.size // chunk)
    padding = num_chunks * chunk - token_ids.size
    hidden = jnp.pad(hidden.reshape(-1, width), ((0, padding), (0, 0))).reshape(num_chunks, chunk, width)
    ids = jnp.pad(token_ids.reshape(-1), (0, padding)).reshape(num_chunks, chunk)
    num_used = jnp.int32(num_chunks) if num_tokens is None else -(-num_tokens // chunk)
    mask = jnp.asarray(forbidden_mask)
    scores = _score_chunks(temperature, is_trained(head), head, hidden, ids, num_used, mask)
    return TokenScores(*(values.reshape(-1)[: token_ids.size].reshape(shape) for values in scores))


def _score_chunk(
    temperature: float, head: Any, hidden: Array, ids: Array, forbidden_mask: Array
) -> tuple[Array, Array]:
    values = masked_logits(head, hidden, forbidden_mask=forbidden_mask, temperature=temperature)
    logprobs = log_softmax(values)
    return pick(logprobs, ids), entropy_of(logprobs, forbidden_mask)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _score_chunks(
    temperature: float, trains_head: bool, head: Any, hidden: Array, ids: Array, num_used: Array, forbidden_mask: Array
) -> tuple[Array, Array]:
    """Log-probs and entropy of the first `num_used` chunks of hidden [chunks, chunk, D] and ids [chunks, chunk].

    The others get zeros. The backward pass is written here: that of a loop with a condition would keep the head once
    for each chunk. A head that is not trained gets no gradient.
    """

    def step(index: Array, scores: tuple[Array, Array]) -> tuple[Array, Array]:
        return jax.tree.map(
            lambda all_values, values: all_values.at[index].set(values),
            scores,
            _score_chunk(temperature, head, hidden[index], ids[index], forbidden_mask),
        )

    zeros = jnp.zeros(ids.shape, jnp.float32)
    return _loop(step, len(ids), num_used, (zeros, zeros))


def _score_chunks_forward(temperature: float, trains_head: bool, *args: Any) -> tuple[tuple, tuple]:
    return _score_chunks(temperature, trains_head, *args), args


def _score_chunks_backward(temperature: float, trains_head: bool, saved: tuple, gradient: tuple) -> tuple:
    head, hidden, ids, num_used, forbidden_mask = saved
    trained = head if trains_head else None

    def step(index: Array, total: tuple[Any, Array]) -> tuple[Any, Array]:
        def score(trained: Any, states: Array) -> tuple[Array, Array]:
            return _score_chunk(temperature, head if trained is None else trained, states, ids[index], forbidden_mask)

        of_head, of_states = jax.vjp(score, trained, hidden[index])[1](jax.tree.map(lambda x: x[index], gradient))
        return jax.tree.map(jnp.add, total[0], of_head), jnp.asarray(total[1]).at[index].set(of_states)

    zeros = jax.tree.map(jnp.zeros_like, (trained, hidden))
    return *_loop(step, len(ids), num_used, zeros), None, None, None


_score_chunks.defvjp(_score_chunks_forward, _score_chunks_backward)


def _loop(step: Callable[[Array, Any], Any], length: int, num_used: Array, start: Any) -> Any:
    """A loop of a known length whose steps from `num_used` on do nothing."""
    return jax.lax.fori_loop(
        0,
        length,
        lambda index, carried: jax.lax.cond(index < num_used, step, lambda _, same: same, index, carried),
        start,
    )


def pool_states(own_hidden: Float[Array, "B J R D"], mask: Bool[Array, "B J R"]) -> Float32[Array, "B J D"]:
    """The direction of the mean state over the mask: unit length, without a gradient. An empty mask gives 0."""
    states = jax.lax.stop_gradient(own_hidden).astype(jnp.float32)
    pooled = jnp.einsum("bjrd,bjr->bjd", states, mask.astype(jnp.float32))
    return _unit_length(pooled)


def _unit_length(states: Float32[Array, "B J D"]) -> Float32[Array, "B J D"]:
    return states / jnp.maximum(jnp.linalg.norm(states, axis=-1, keepdims=True), 1e-12)


class StreamScores(NamedTuple):
    """Scores of the rows' tokens in one stream, first to last; those behind `num_targets` do not count."""

    stream: Stream
    tokens: TokenScores  # [1, 1, T]
    states: Float[Array, "T D"]  # at each token, after the final norm


def score_stream(
    model: QwenVL,
    packed: Packed,
    index: Int32[Array, ""] | int,
    forbidden_mask: Bool[Array, "V"],
    *,
    temperature: float,
    chunk: int,
    length: int | None = None,
) -> StreamScores:
    """Runs the model over the first `length` tokens of stream `index`, and its head over those of the rows.

    None: over all.
    """
    stream = packed.stream(index, merge_unit=model.config.vision.merge_unit, length=length)
    (num_prompts, num_branches, row_len), prompts = packed.token_ids.shape, packed.prompts
    hidden = model.forward_stream(
        stream.tokens,
        stream.group,
        stream.branch,
        num_branches=num_branches,
        most_branches=num_prompts * num_branches,
        group_len=prompts.token_ids.shape[1] + num_branches * row_len,
        image_len=prompts.image_ids.shape[1],
    )[0]
    tokens = token_scores(
        model,
        hidden[stream.predictor][None, None],
        stream.token_ids[None, None],
        forbidden_mask=forbidden_mask,
        temperature=temperature,
        chunk=chunk,
        num_tokens=stream.num_targets,
    )
    return StreamScores(stream, tokens, hidden[stream.target])


@functools.partial(jax.jit, static_argnames=("temperature", "chunk"))
def score(
    model: QwenVL,
    prompts: Prompts,
    rollouts: Rollouts,
    verdicts: Verdicts,
    packing: Packing,
    forbidden_mask: Bool[Array, "V"],
    *,
    temperature: float,
    chunk: int,
) -> Scores:
    """Scores the packed rollouts with the trainer's graph (docs/method.md section 1): old log-probs and think states.

    The others get zeros.
    """
    shape = batch, num_rows, row_len = rollouts.token_ids.shape
    groups = prompts, rollouts.token_ids, pooled_tokens(rollouts, verdicts)
    prompts, token_ids, pooled = rows_at(groups, packing.order)
    packed, pooled = Packed(prompts, token_ids, packing.streams), pooled.reshape(-1)

    def add(index: Array, length: int, total: Scores) -> Scores:
        stream, tokens, states = score_stream(
            model, packed, index, forbidden_mask, temperature=temperature, chunk=chunk, length=length
        )
        row = stream.row_place // row_len
        is_pooled = jnp.append(pooled, False)[stream.row_place]
        belongs = (jnp.arange(batch * num_rows)[:, None] == row[None]) & is_pooled[None]
        added = jnp.einsum("xt,td->xd", belongs.astype(jnp.float32), states.astype(jnp.float32))
        return Scores(
            logprobs=stream.put_in_rows(total.logprobs, tokens.logprobs),
            entropy=stream.put_in_rows(total.entropy, tokens.entropy),
            think_states=total.think_states + added.reshape(batch, num_rows, -1),
        )

    zeros = jnp.zeros(shape, jnp.float32)
    states = jnp.zeros((batch, num_rows, model.config.text.hidden_size), jnp.float32)
    total = packed.for_each(add, Scores(zeros, zeros, states))
    return rows_at(Scores(total.logprobs, total.entropy, _unit_length(total.think_states)), packing.home)


def scores_of_sampler(rollouts: Rollouts, verdicts: Verdicts) -> Scores:
    """Scores without a pass, from what the sampler kept (Sampling.keep_states)."""
    assert rollouts.entropy is not None
    assert rollouts.states is not None
    return Scores(
        logprobs=rollouts.logprobs,
        entropy=rollouts.entropy,
        think_states=pool_states(rollouts.states, pooled_tokens(rollouts, verdicts)),
    )


def pooled_tokens(rollouts: Rollouts, verdicts: Verdicts) -> Bool[Array, "B J R"]:
    """The tokens whose states make a rationale's embedding: the rationale's, or all of a response without one."""
    in_response = jnp.arange(rollouts.token_ids.shape[-1])[None, None] < rollouts.response_len[..., None]
    has_think = jnp.any(verdicts.think_mask, axis=-1, keepdims=True)
    return jnp.where(has_think, verdicts.think_mask, in_response)


def batch_logprobs(
    model: QwenVL,
    batch: TrainBatch,
    packing: Packing,
    forbidden_mask: Bool[Array, "V"],
    *,
    temperature: float,
    chunk: int,
) -> Float32[Array, "B S R"]:
    """Log-probs of a batch's packed rows under `model`; 0 in the others."""
    prompts, token_ids = rows_at((batch.prompts, batch.token_ids), packing.order)
    packed = Packed(prompts, token_ids, packing.streams)

    def add(index: Array, length: int, total: Array) -> Array:
        stream, tokens, _ = score_stream(
            model, packed, index, forbidden_mask, temperature=temperature, chunk=chunk, length=length
        )
        return stream.put_in_rows(total, tokens.logprobs)

    zeros: Array = jnp.zeros(batch.token_ids.shape, jnp.float32)
    return rows_at(packed.for_each(add, zeros), packing.home)


def reference_logprobs(part: QwenVL, params: QwenVL, *args: Any, **options: Any) -> Float32[Array, "B S R"]:
    """`batch_logprobs` of the reference policy, which is its own part and what is not trained of the params."""
    return batch_logprobs(reference_policy(part, params), *args, **options)
