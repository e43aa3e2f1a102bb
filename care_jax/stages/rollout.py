"""Rollouts: each prompt is prefilled once, and its branches are decoded together from that one prefix.

`generate` serves the rollouts (G empty branches) and the reflection (one branch that starts with a forced
prefix). Forced tokens carry sampled_mask False and log-prob 0. Responses hold at most `response_len` tokens,
forced ones included unless they are left out (Sampling.drop_forced).

Lengths have a long tail: once few branches are left, they are decoded as a smaller batch (Sampling.compact_shares).
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import struct
from jaxtyping import Bool, Float, Float32, Int32

from care_jax.models import QwenVL
from care_jax.models.cache import BranchCache, Home, Prefix, empty_branch_cache
from care_jax.models.decoder import Layers
from care_jax.parallel.collectives import argmax, first_row, log_softmax, most, pick
from care_jax.stages.draws import draw
from care_jax.stages.score import entropy_of, masked_logits
from care_jax.structs import Array, Forced, Rollouts


@dataclasses.dataclass(frozen=True)
class Sampling:
    """Settings of a draw. Nothing truncates the distribution: the sampler's is the trainer's."""

    response_len: int  # R, tokens
    temperature: float  # 0 decodes greedily (log-probs are then those of temperature 1)
    stop_ids: tuple[int, ...]
    compact_shares: tuple[float, ...] = ()  # of all branches, descending; the sizes that a batch shrinks to
    keep_states: bool = False  # also return entropy and states, which stand in for a scoring pass
    drop_forced: bool = False  # responses hold the sampled tokens alone, up to R

    @property
    def logits_temperature(self) -> float:
        """The divisor of the logits."""
        return self.temperature if self.temperature > 0 else 1.0


@struct.dataclass
class _Written:
    """The sampled tokens, counted from the first sampled one."""

    token_ids: Int32[Array, "rows J R"]
    logprobs: Float32[Array, "rows J R"]
    sampled_len: Int32[Array, "rows J"]
    stopped: Bool[Array, "rows J"]  # a stop token was sampled
    entropy: Float32[Array, "rows J R"] | None  # with keep_states
    states: Float[Array, "rows J R D"] | None  # with keep_states


@struct.dataclass
class Loop:
    """The decoding loop's state after t sampled tokens: of all branches [B, J], or of the n that are left as [n, 1]."""

    t: Int32[Array, ""]
    hidden: Float[Array, "rows J D"]  # predicts token t
    cache: BranchCache
    written: _Written
    alive: Bool[Array, "rows J"]


@struct.dataclass
class Branches:
    """The part of a loop that stays as it is while branches are decoded; rows are prompts, or moved branches."""

    prefix: Prefix
    forced_len: Int32[Array, "rows J"]
    room: Int32[Array, "rows J"]  # tokens that may be sampled
    number: Int32[Array, "rows J"]  # among all branches, so that draws do not depend on the batch
    temperature: Float32[Array, "rows J"] | None = None  # 0 decodes greedily; None: the sampling's, for all
    num_forced: int = struct.field(default=0, pytree_node=False)  # slots of forced tokens
    home: Home | None = None  # of moved branches, whose prompts stay where they are


def nothing_forced(batch: int, num_branches: int) -> Forced:
    """J empty branches a prompt."""
    return Forced(
        token_ids=jnp.zeros((batch, num_branches, 0), jnp.int32),
        forced_len=jnp.zeros((batch, num_branches), jnp.int32),
        active=jnp.ones((batch, num_branches), bool),
    )


@functools.partial(jax.jit, static_argnames=("sampling",))
def generate(
    model: QwenVL,
    prefix: Prefix,
    forced: Forced,
    forbidden_mask: Bool[Array, "V"],
    key: Array,
    *,
    sampling: Sampling,
) -> Rollouts:
    """Decodes every branch until all have stopped or are full. Returns Rollouts with J branches a prompt.

    `key` is used for this call alone; token t of branch n is drawn with fold_in(fold_in(key, t), n).
    """
    batch, num_branches, _ = forced.token_ids.shape
    stacks, prefix = model.in_stacks(prefix)
    counted = nothing_forced(batch, num_branches) if sampling.drop_forced else forced  # what a response holds of it
    room = sampling.response_len - counted.forced_len

    decode = functools.partial(
        decode_token, model=model, stacks=stacks, forbidden_mask=forbidden_mask, key=key, sampling=sampling
    )

    def finish(branches: Branches, loop: Loop, sizes: list[int]) -> _Written:
        """Decodes to the end; once no more than sizes[0] branches are alive, these alone."""
        enough = sizes[0] if sizes else 0

        def goes_on(loop: Loop) -> Array:
            # On shards all go on together: none leaves a loop in which others still exchange data.
            return (loop.t < sampling.response_len) & (most(jnp.sum(loop.alive)) > enough)

        loop = jax.lax.while_loop(goes_on, functools.partial(decode, branches), loop)
        if not sizes:
            return loop.written
        left = jnp.argsort(~loop.alive.reshape(-1), stable=True)[:enough]
        rest = finish(_take_branches(branches, left), _take_loop(loop, left), sizes[1:])
        return jax.tree.map(lambda every, some: _put(every, left, some), loop.written, rest)

    total = batch * num_branches
    sizes = sorted({max(1, int(share * total)) for share in sampling.compact_shares} - {total}, reverse=True)
    number = first_row(batch) * num_branches + jnp.arange(total, dtype=jnp.int32)
    num_forced = forced.token_ids.shape[-1]
    everyone = Branches(prefix, forced.forced_len, room, number.reshape(batch, num_branches), num_forced=num_forced)
    forced = dataclasses.replace(forced, active=forced.active & (room > 0))
    return _join(counted, finish(everyone, start_loop(model, stacks, prefix, forced, sampling), sizes))


def decode_token(
    branches: Branches,
    loop: Loop,
    *,
    model: QwenVL,
    stacks: Sequence[Layers],
    forbidden_mask: Bool[Array, "V"],
    key: Array,
    sampling: Sampling,
) -> Loop:
    """Samples token t of the branches that are alive, and runs it through the model: one round of a decoding loop."""
    num_forced = branches.num_forced
    slots = jnp.arange(num_forced + sampling.response_len, dtype=jnp.int32)
    logprobs = log_softmax(
        masked_logits(model.head, loop.hidden, forbidden_mask=forbidden_mask, temperature=_divisor(branches, sampling))
    )
    token = _choose(branches, logprobs, jax.random.fold_in(key, loop.t), sampling)
    is_stop = jnp.any(token[..., None] == jnp.asarray(sampling.stop_ids, jnp.int32)[None, None], axis=-1)
    sampled_len = loop.written.sampled_len + loop.alive.astype(jnp.int32)
    is_full = sampled_len >= branches.room
    forced_visible = slots[None, None] < branches.forced_len[..., None]
    own_visible = forced_visible | ((slots >= num_forced) & (slots <= num_forced + loop.t))[None, None]
    hidden, cache = model.extend(
        token[..., None],
        stacks=stacks,
        prefix=branches.prefix,
        cache=loop.cache,
        slot=num_forced + loop.t,
        offset=(branches.forced_len + loop.t)[..., None],
        own_visible=own_visible[:, :, None],
        home=branches.home,
    )

    def record(column: Array, value: Array) -> Array:
        """Writes value [B, J, ...] as token t of the branches that are alive."""
        value = jnp.where(jnp.expand_dims(loop.alive, tuple(range(2, value.ndim))), value, jnp.zeros_like(value))
        return jax.lax.dynamic_update_index_in_dim(column, value, loop.t, axis=2)

    written = loop.written
    return Loop(
        t=loop.t + 1,
        hidden=hidden[:, :, 0],
        cache=cache,
        written=_Written(
            token_ids=record(written.token_ids, token),
            logprobs=record(written.logprobs, pick(logprobs, token)),
            sampled_len=sampled_len,
            stopped=written.stopped | (loop.alive & is_stop),
            entropy=None if written.entropy is None else record(written.entropy, entropy_of(logprobs, forbidden_mask)),
            states=None if written.states is None else record(written.states, hidden[:, :, 0]),
        ),
        alive=loop.alive & ~is_stop & ~is_full,
    )


def _divisor(branches: Branches, sampling: Sampling) -> Any:
    """The divisor of the logits: a float, or one for each branch [B, J, 1]."""
    if branches.temperature is None:
        return sampling.logits_temperature
    return jnp.where(branches.temperature > 0, branches.temperature, 1.0)[..., None]


def _choose(branches: Branches, logprobs: Array, key: Array, sampling: Sampling) -> Int32[Array, "rows J"]:
    """The next id of each branch: a draw, or the likeliest at temperature 0."""
    if branches.temperature is not None:
        drawn = draw(key, branches.number, jnp.exp(logprobs))
        return jnp.where(branches.temperature > 0, drawn, argmax(logprobs))
    return draw(key, branches.number, jnp.exp(logprobs)) if sampling.temperature > 0 else argmax(logprobs)


def _take(x: Array, rows: Array) -> Array:
    """Takes branches `rows` [n] out of x [B, J, ...], as [n, 1, ...]."""
    return x.reshape(-1, *x.shape[2:])[rows][:, None]


def _put(x: Array, rows: Array, new: Array) -> Array:
    """Undoes `_take`: x with its branches `rows` replaced by new [n, 1, ...]."""
    return jnp.asarray(x).reshape(-1, *x.shape[2:]).at[rows].set(new[:, 0]).reshape(x.shape)


def _take_branches(branches: Branches, rows: Array) -> Any:
    """Branches `rows` [n], as Branches with n in place of B.

    Each takes along a copy of its prompt's keys and values once that is no more to read than all prompts'.
    """
    prefix, home = branches.prefix, branches.home
    num_branches = branches.number.shape[1] if home is None else home.num_branches
    place = rows if home is None else home.place[rows]
    if rows.size > prefix.prompt_len.size:
        home = Home(place, num_branches)
    else:
        prompt, home = place // num_branches, None
        prefix = Prefix(
            layers=jax.tree.map(lambda stack: stack[:, prompt], prefix.layers),
            prompt_len=prefix.prompt_len[prompt],
            next_position=prefix.next_position[prompt],
            last_hidden=prefix.last_hidden[prompt],
        )
    return Branches(
        prefix=prefix,
        forced_len=_take(branches.forced_len, rows),
        room=_take(branches.room, rows),
        number=_take(branches.number, rows),
        temperature=None if branches.temperature is None else _take(branches.temperature, rows),
        num_forced=branches.num_forced,
        home=home,
    )


def _take_loop(loop: Loop, rows: Array) -> Any:
    """The loop's state of branches `rows` [n]: a Loop with n in place of B."""
    take = functools.partial(_take, rows=rows)
    return Loop(
        t=loop.t,
        hidden=take(loop.hidden),
        cache=jax.tree.map(jax.vmap(take), loop.cache),
        written=jax.tree.map(take, loop.written),
        alive=take(loop.alive),
    )


def start_loop(
    model: QwenVL,
    stacks: Sequence[Layers],
    prefix: Prefix,
    forced: Forced,
    sampling: Sampling,
) -> Loop:
    """The state before the first sampled token: forced tokens are run through the model all at once."""
    batch, num_branches, num_forced = forced.token_ids.shape
    slots = jnp.arange(num_forced + sampling.response_len, dtype=jnp.int32)
    cache = empty_branch_cache(prefix, num_branches, slots.size)
    hidden = jnp.broadcast_to(prefix.last_hidden[:, None], (batch, num_branches, prefix.last_hidden.shape[-1]))
    if num_forced:
        offset = jnp.arange(num_forced, dtype=jnp.int32)
        states, cache = model.extend(
            forced.token_ids,
            stacks=stacks,
            prefix=prefix,
            cache=cache,
            slot=jnp.int32(0),
            offset=jnp.broadcast_to(offset[None, None], forced.token_ids.shape),
            own_visible=(slots[None, :] <= offset[:, None])[None, None],
            num_new=forced.forced_len,
        )
        last = jnp.maximum(forced.forced_len - 1, 0)[..., None, None]
        at_last = jnp.take_along_axis(states, last, axis=2)[:, :, 0]
        hidden = jnp.where((forced.forced_len > 0)[..., None], at_last, hidden)
    shape = (batch, num_branches, sampling.response_len)
    return Loop(
        t=jnp.int32(0),
        hidden=hidden,
        cache=cache,
        written=_Written(
            token_ids=jnp.zeros(shape, jnp.int32),
            logprobs=jnp.zeros(shape, jnp.float32),
            sampled_len=jnp.zeros((batch, num_branches), jnp.int32),
            stopped=jnp.zeros((batch, num_branches), bool),
            entropy=jnp.zeros(shape, jnp.float32) if sampling.keep_states else None,
            states=jnp.zeros((*shape, hidden.shape[-1]), hidden.dtype) if sampling.keep_states else None,
        ),
        alive=forced.active,
    )


def _join(forced: Forced, written: _Written) -> Rollouts:
    """Forced and sampled tokens side by side, without the gap the cache has between them."""
    column = jnp.arange(written.token_ids.shape[-1])[None, None]
    from_start = column - forced.forced_len[..., None]
    response_len = jnp.minimum(forced.forced_len, column.shape[-1]) + written.sampled_len
    sampled_mask = (from_start >= 0) & (column < response_len[..., None])
    take = jnp.clip(from_start, 0, column.shape[-1] - 1)

    def shift(x: Array) -> Array:
        """X [B, J, R, ...] moved behind the forced tokens; 0 where nothing was sampled."""
        more = tuple(range(3, x.ndim))
        moved = jnp.take_along_axis(x, jnp.expand_dims(take, more), axis=2)
        return jnp.where(jnp.expand_dims(sampled_mask, more), moved, jnp.zeros_like(moved))

    token_ids = shift(written.token_ids)
    if forced.token_ids.shape[-1]:
        pad = max(0, column.shape[-1] - forced.token_ids.shape[-1])
        start = jnp.pad(forced.token_ids, ((0, 0), (0, 0), (0, pad)))[..., : column.shape[-1]]
        token_ids = jnp.where(from_start < 0, start, token_ids)
    return Rollouts(
        token_ids=token_ids,
        response_len=response_len,
        logprobs=shift(written.logprobs),
        sampled_mask=sampled_mask,
        finished=written.stopped,
        entropy=None if written.entropy is None else shift(written.entropy),
        states=None if written.states is None else shift(written.states),
    )
