"""Rollouts: each prompt is prefilled once, its branches are decoded together from the one prefix.

`generate` serves the rollouts (G empty branches) and the reflection (one branch that starts with a forced
prefix). Forced tokens carry sampled_mask False and log-prob 0. Responses hold at most `response_len` tokens,
forced ones included.
"""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp
from flax import struct

from care_jax.models import QwenVL
from care_jax.models.cache import BranchCache, Prefix, empty_branch_cache
from care_jax.score import masked_logits
from care_jax.structs import Array, Prompts, Rollouts


@dataclasses.dataclass(frozen=True)
class Sampling:
    """How tokens are drawn. No truncation: the sampler's distribution is the trainer's."""

    response_len: int  # R, tokens
    temperature: float  # 0 decodes greedily (log-probs are then those of temperature 1)
    stop_ids: tuple[int, ...]

    @property
    def logits_temperature(self) -> float:
        """What the logits are divided by."""
        return self.temperature if self.temperature > 0 else 1.0


@struct.dataclass
class Forced:
    """Tokens each branch starts with, padded on the right; F may be 0."""

    token_ids: Array  # [B, J, F] int32
    forced_len: Array  # [B, J] int32
    active: Array  # [B, J] bool; inactive branches sample nothing


@struct.dataclass
class _Loop:
    """The decoding loop's state after t sampled tokens."""

    t: Array  # []
    hidden: Array  # [B, J, D], predicts token t
    cache: BranchCache
    token_ids: Array  # [B, J, R], sampled tokens only
    logprobs: Array  # [B, J, R]
    sampled_len: Array  # [B, J]
    stopped: Array  # [B, J], a stop token was sampled
    alive: Array  # [B, J]


def nothing_forced(batch: int, num_branches: int) -> Forced:
    """J empty branches a prompt."""
    return Forced(
        token_ids=jnp.zeros((batch, num_branches, 0), jnp.int32),
        forced_len=jnp.zeros((batch, num_branches), jnp.int32),
        active=jnp.ones((batch, num_branches), bool),
    )


@jax.jit
def prefill(model: QwenVL, prompts: Prompts) -> Prefix:
    """Vision tower and prompt once per prompt; rollouts and reflection both continue from the result."""
    return model.prefill(prompts)


@functools.partial(jax.jit, static_argnames=("sampling",))
def generate(
    model: QwenVL, prefix: Prefix, forced: Forced, forbidden_mask: Array, key: Array, *, sampling: Sampling
) -> Rollouts:
    """Decodes every branch until all have stopped or are full. Returns Rollouts with J branches a prompt.

    `key` is used for this call alone; token t of all branches is drawn with fold_in(key, t).
    """
    num_forced = forced.token_ids.shape[-1]
    slots = jnp.arange(num_forced + sampling.response_len, dtype=jnp.int32)
    forced_visible = slots[None, None] < forced.forced_len[..., None]

    def unfinished(loop: _Loop) -> Array:
        return (loop.t < sampling.response_len) & jnp.any(loop.alive)

    def decode_token(loop: _Loop) -> _Loop:
        logits = masked_logits(
            model, loop.hidden, forbidden_mask=forbidden_mask, temperature=sampling.logits_temperature
        )
        if sampling.temperature > 0:
            token = jax.random.categorical(jax.random.fold_in(key, loop.t), logits).astype(jnp.int32)
        else:
            token = jnp.argmax(logits, axis=-1).astype(jnp.int32)
        logprob = jnp.take_along_axis(jax.nn.log_softmax(logits), token[..., None], axis=-1)
        is_stop = jnp.any(token[..., None] == jnp.asarray(sampling.stop_ids, jnp.int32)[None, None], axis=-1)
        sampled_len = loop.sampled_len + loop.alive.astype(jnp.int32)
        is_full = forced.forced_len + sampled_len >= sampling.response_len

        def record(column: Array, value: Array) -> Array:
            value = jnp.where(loop.alive[..., None], value, jnp.zeros_like(value))
            return jax.lax.dynamic_update_slice(column, value, (0, 0, loop.t))

        own_visible = forced_visible | ((slots >= num_forced) & (slots <= num_forced + loop.t))[None, None]
        hidden, cache = model.extend(
            token[..., None],
            prefix=prefix,
            cache=loop.cache,
            slot=num_forced + loop.t,
            offset=(forced.forced_len + loop.t)[..., None],
            own_visible=own_visible[:, :, None],
        )
        return _Loop(
            t=loop.t + 1,
            hidden=hidden[:, :, 0],
            cache=cache,
            token_ids=record(loop.token_ids, token[..., None]),
            logprobs=record(loop.logprobs, logprob),
            sampled_len=sampled_len,
            stopped=loop.stopped | (loop.alive & is_stop),
            alive=loop.alive & ~is_stop & ~is_full,
        )

    return _join(forced, jax.lax.while_loop(unfinished, decode_token, _start(model, prefix, forced, slots, sampling)))


def _start(model: QwenVL, prefix: Prefix, forced: Forced, slots: Array, sampling: Sampling) -> _Loop:
    """The state before the first sampled token: forced tokens are run through the model all at once."""
    batch, num_branches, num_forced = forced.token_ids.shape
    cache = empty_branch_cache(prefix, num_branches, slots.size)
    hidden = jnp.broadcast_to(prefix.last_hidden[:, None], (batch, num_branches, prefix.last_hidden.shape[-1]))
    if num_forced:
        offset = jnp.arange(num_forced, dtype=jnp.int32)
        states, cache = model.extend(
            forced.token_ids,
            prefix=prefix,
            cache=cache,
            slot=jnp.int32(0),
            offset=jnp.broadcast_to(offset[None, None], forced.token_ids.shape),
            own_visible=(slots[None, :] <= offset[:, None])[None, None],
        )
        last = jnp.maximum(forced.forced_len - 1, 0)[..., None, None]
        at_last = jnp.take_along_axis(states, last, axis=2)[:, :, 0]
        hidden = jnp.where((forced.forced_len > 0)[..., None], at_last, hidden)
    empty = jnp.zeros((batch, num_branches, sampling.response_len))
    return _Loop(
        t=jnp.int32(0),
        hidden=hidden,
        cache=cache,
        token_ids=empty.astype(jnp.int32),
        logprobs=empty.astype(jnp.float32),
        sampled_len=jnp.zeros((batch, num_branches), jnp.int32),
        stopped=jnp.zeros((batch, num_branches), bool),
        alive=forced.active & (forced.forced_len < sampling.response_len),
    )


def _join(forced: Forced, loop: _Loop) -> Rollouts:
    """Forced and sampled tokens side by side, without the gap the cache has between them."""
    column = jnp.arange(loop.token_ids.shape[-1])[None, None]
    from_start = column - forced.forced_len[..., None]
    response_len = jnp.minimum(forced.forced_len, column.shape[-1]) + loop.sampled_len
    sampled_mask = (from_start >= 0) & (column < response_len[..., None])
    take = jnp.clip(from_start, 0, column.shape[-1] - 1)
    token_ids = jnp.where(sampled_mask, jnp.take_along_axis(loop.token_ids, take, axis=-1), 0)
    if forced.token_ids.shape[-1]:
        pad = max(0, column.shape[-1] - forced.token_ids.shape[-1])
        start = jnp.pad(forced.token_ids, ((0, 0), (0, 0), (0, pad)))[..., : column.shape[-1]]
        token_ids = jnp.where(from_start < 0, start, token_ids)
    return Rollouts(
        token_ids=token_ids,
        response_len=response_len,
        logprobs=jnp.where(sampled_mask, jnp.take_along_axis(loop.logprobs, take, axis=-1), 0.0),
        sampled_mask=sampled_mask,
        finished=loop.stopped,
    )
