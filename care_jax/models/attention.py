"""Attention in its three forms: segments (images), a prompt and its branches at once, new tokens of branches.

Full sequences have three implementations: XLA's matrix products, which hold the scores of _CHUNK queries in memory at a
time, on a TPU the kernel of splash.py, and on a GPU the calls of cudnn.py. Scores and softmax are float32. A fully
masked row gives a finite value instead of NaN, and a finite gradient; such rows are padding and nobody reads them.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import einops
import jax
import jax.numpy as jnp
from flax import struct
from jaxtyping import Bool, Float, Int32

from care_jax.models import cudnn, splash
from care_jax.models.cache import Home, prompt_scores, prompt_values
from care_jax.structs import Array

# For full sequences. "splash_interpret" is the TPU kernel run by Pallas's interpreter: slow, but on any device.
IMPLEMENTATIONS = ("xla", "cudnn", "splash", "splash_interpret")

_CHUNK = 512  # queries whose scores exist at once
_FEW = 1 << 26  # scores that may exist at once

_MASKED = float(jnp.finfo(jnp.float32).min)


@struct.dataclass
class PackedMask:
    """Who sees whom in a stream of prompts and their branches, and the reach of each token."""

    group: Int32[Array, "B T"]
    branch: Int32[Array, "B T"]
    first: Int32[Array, "B T"]  # the first token of its group; padding has its own place
    num_branches: int = struct.field(pytree_node=False)  # the most of a group
    group_len: int = struct.field(pytree_node=False)  # the most tokens of a group

    @classmethod
    def make(
        cls, group: Int32[Array, "B T"], branch: Int32[Array, "B T"], *, num_branches: int, group_len: int
    ) -> PackedMask:
        """The mask of a packing's groups and branches (structs.Streams)."""
        return cls(group, branch, _starts(group), num_branches, group_len)


def _starts(ids: Int32[Array, "B T"]) -> Int32[Array, "B T"]:
    """The place of the first token of each token's segment; for segment 0, padding, the token's own place.

    Tokens of one segment lie side by side.
    """
    place = jnp.broadcast_to(jnp.arange(ids.shape[1], dtype=jnp.int32), ids.shape)
    is_first = jnp.concatenate([jnp.ones_like(ids[:, :1], bool), ids[:, 1:] != ids[:, :-1]], axis=1)
    return jax.lax.cummax(jnp.where(is_first | (ids == 0), place, 0), axis=1)


def _attend_near(
    attend: Callable[[Array, Array, Array, Any, Any], Array],
    q: Float[Array, "B T H C"],
    k: Float[Array, "B T N C"],
    v: Float[Array, "B T N C"],
    tokens: Any,
    first: Int32[Array, "B T"],
    end: Int32[Array, "B T"],
    *,
    reach: int,
    is_causal: bool,
) -> Float[Array, "B T H C"]:
    """Computes attend(q, k, v, tokens of q, tokens of k) for queries that lie side by side and the keys in their reach.

    `tokens` is a tree of arrays [B, T, ...], a row a token; a token sees none outside of its keys `first` to `end`, and
    these are at most `reach` tokens before it and, unless `is_causal`, behind it. Short reaches: all at once. Else
    _CHUNK queries at a time, whose keys are a slice of one of a few sizes; they are recomputed in the backward pass.
    """
    num_tokens = q.shape[1]
    if (out := _in_blocks(attend, q, k, v, tokens, reach=reach, is_causal=is_causal)) is not None:
        return out
    if num_tokens <= _CHUNK:
        return attend(q, k, v, tokens, tokens)
    sizes = [_CHUNK]
    while sizes[-1] < num_tokens:
        sizes.append(min(2 * sizes[-1], num_tokens))

    def cut(x: Array, fill: int = 0) -> Array:
        padding = [(0, 0), (0, -num_tokens % _CHUNK)] + [(0, 0)] * (x.ndim - 2)
        x = jnp.pad(x, padding, constant_values=fill)
        return jnp.moveaxis(x.reshape(x.shape[0], -1, _CHUNK, *x.shape[2:]), 1, 0)

    def of_chunk(chunk: tuple) -> Array:
        queries, of_queries, lowest, highest = chunk
        lowest, highest = lowest.min(), highest.max()

        def in_window(size: int) -> Array:
            start = jnp.clip(lowest, 0, num_tokens - size)
            keys, values, of_keys = jax.tree.map(
                lambda x: jax.lax.dynamic_slice_in_dim(x, start, size, axis=1), (k, v, tokens)
            )
            return attend(queries, keys, values, of_queries, of_keys)

        which = jnp.searchsorted(jnp.asarray(sizes), highest - lowest)
        return jax.lax.switch(which, [functools.partial(in_window, size) for size in sizes])

    chunks = cut(q), jax.tree.map(cut, tokens), cut(first, num_tokens), cut(end)
    out = jnp.moveaxis(jax.lax.map(jax.checkpoint(of_chunk), chunks), 0, 1)
    return out.reshape(q.shape[0], -1, *q.shape[2:])[:, :num_tokens]


def _in_blocks(
    attend: Callable[[Array, Array, Array, Any, Any], Array],
    q: Float[Array, "B T H C"],
    k: Float[Array, "B T N C"],
    v: Float[Array, "B T N C"],
    tokens: Any,
    *,
    reach: int,
    is_causal: bool,
) -> Float[Array, "B T H C"] | None:
    """`_attend_near` for all tokens at once, in blocks with their neighbours. None: too many scores, or no fewer."""
    # More and smaller blocks compute fewer scores that nothing sees, in smaller products: 24 tokens or more of a block.
    num_tokens, num_before = q.shape[1], max(1, min(4, reach // 24))
    block = -(-reach // num_before)
    num_near = num_before + 1 if is_causal else 2 * num_before + 1  # blocks
    if q.shape[0] * num_tokens * q.shape[2] * num_near * block > _FEW or num_near * block >= num_tokens:
        return None

    def cut(x: Array, before: int, after: int) -> Array:
        padding = [(0, 0), (before * block, -num_tokens % block + after * block)] + [(0, 0)] * (x.ndim - 2)
        x = jnp.pad(x, padding, constant_values=-1 if jnp.issubdtype(x.dtype, jnp.integer) else 0)
        return x.reshape(x.shape[0], -1, block, *x.shape[2:])

    def around(x: Array) -> Array:
        blocks = cut(x, num_before, num_near - num_before - 1)
        num_blocks = blocks.shape[1] - num_near + 1
        return jnp.concatenate([blocks[:, i : i + num_blocks] for i in range(num_near)], axis=2)

    def together(x: Array) -> Array:
        return x.reshape(-1, *x.shape[2:])

    keys = jax.tree.map(lambda x: together(around(x)), (k, v, tokens))
    queries = jax.tree.map(lambda x: together(cut(x, 0, 0)), (q, tokens))
    out = attend(queries[0], keys[0], keys[1], queries[1], keys[2])
    return out.reshape(q.shape[0], -1, *q.shape[2:])[:, :num_tokens]


def _in_chunks(attend: Callable[[Array, Array], Array], q: Array, rows: Array, axis: int) -> Array:
    """Computes attend(q, rows) for _CHUNK queries at a time; q, rows and the result have the queries on `axis`.

    Chunks are recomputed in the backward pass.
    """
    num_queries = q.shape[axis]
    if num_queries <= _CHUNK:
        return attend(q, rows)

    def cut(x: Array) -> Array:
        x = jnp.pad(x, [(0, -num_queries % _CHUNK if i == axis else 0) for i in range(x.ndim)])
        return jnp.moveaxis(x.reshape(*x.shape[:axis], -1, _CHUNK, *x.shape[axis + 1 :]), axis, 0)

    out = jax.lax.map(jax.checkpoint(lambda chunk: attend(*chunk)), (cut(q), cut(rows)))
    out = jnp.moveaxis(out, 0, axis)
    return jax.lax.slice_in_dim(out.reshape(*q.shape[:axis], -1, *out.shape[axis + 2 :]), 0, num_queries, axis=axis)


def segment_attention(
    q: Float[Array, "B I H C"],
    k: Float[Array, "B I H C"],
    v: Float[Array, "B I H C"],
    segment_ids: Int32[Array, "B I"],
    *,
    segment_len: int | None = None,
    implementation: str,
) -> Float[Array, "B I H C"]:
    """Full attention inside segments: a patch sees the patches with its own segment id.

        ids 1 1 2:   1 1 0
                     1 1 0
                     0 0 1

    A segment's patches lie side by side; padding has id 0. `segment_len` is the most patches of a segment, if that is
    known. cuDNN needs a mask of all pairs for batches with several images in a row.
    """
    if implementation.startswith("splash"):
        interpret = implementation == "splash_interpret"
        return splash.segment_attention(q, k, v, segment_ids, segment_len=segment_len, interpret=interpret)

    if implementation == "cudnn":
        num_real = jnp.sum(segment_ids > 0, axis=-1, dtype=jnp.int32)
        in_front = jnp.arange(q.shape[1])[None] < num_real[:, None]
        is_one = jnp.all(segment_ids == jnp.where(in_front, segment_ids[:, :1], 0))

        def several(q: Array, k: Array, v: Array) -> Array:
            return cudnn.masked_attention(q, k, v, segment_ids[:, :, None] == segment_ids[:, None], False)

        return jax.lax.cond(is_one, functools.partial(cudnn.prefix_attention, num_real=num_real), several, q, k, v)
    return _segment_products(q, k, v, segment_ids, segment_len)


def _segment_products(q: Array, k: Array, v: Array, segment_ids: Array, segment_len: int | None) -> Array:
    def attend(q: Array, k: Array, v: Array, q_ids: Array, k_ids: Array) -> Array:
        scores = jnp.einsum("bihc,bzhc->bhiz", q, k, preferred_element_type=jnp.float32) * q.shape[-1] ** -0.5
        visible = (q_ids[:, :, None] == k_ids[:, None, :])[:, None]
        weights = jax.nn.softmax(jnp.where(visible, scores, _MASKED), axis=-1).astype(v.dtype)
        return jnp.einsum("bhiz,bzhc->bihc", weights, v)

    ids = jnp.asarray(segment_ids)
    end = ids.shape[1] - jnp.flip(_starts(jnp.flip(ids, axis=1)), axis=1)
    reach = q.shape[1] if segment_len is None else segment_len
    return _attend_near(attend, q, k, v, ids, _starts(ids), end, reach=reach, is_causal=False)


def windowed_attention(
    q: Float[Array, "B I H C"],
    k: Float[Array, "B I H C"],
    v: Float[Array, "B I H C"],
    *,
    is_full: Bool[Array, ""],
    image_ids: Int32[Array, "B I"],
    window_ids: Int32[Array, "B I"],
    image_len: int | None,
    window_len: int,
    implementation: str,
) -> Float[Array, "B I H C"]:
    """`segment_attention` in images, of at most `image_len` patches, if `is_full`; else in windows of `window_len`."""
    in_images = functools.partial(
        segment_attention, segment_ids=image_ids, segment_len=image_len, implementation=implementation
    )
    if implementation.startswith("splash"):
        in_windows = functools.partial(
            segment_attention, segment_ids=window_ids, segment_len=window_len, implementation=implementation
        )
    else:
        in_windows = functools.partial(_segment_products, segment_ids=window_ids, segment_len=window_len)
    return jax.lax.cond(is_full, in_images, in_windows, q, k, v)


def causal_attention(
    q: Float[Array, "B P H C"], k: Float[Array, "B P N C"], v: Float[Array, "B P N C"], *, implementation: str
) -> Float[Array, "B P H C"]:
    """Causal attention of the prompt stream. Prompts are padded on the right, so no real token sees padding.

    1 0 0
    1 1 0
    1 1 1
    """
    if implementation == "cudnn":
        return cudnn.causal_attention(q, k, v)
    if implementation != "xla":
        return splash.causal_attention(q, k, v, interpret=implementation == "splash_interpret")

    def attend(q: Array, visible: Array) -> Array:
        grouped = einops.rearrange(q, "b p (n q) c -> b p n q c", n=k.shape[2])
        scores = jnp.einsum("bpnqc,bznc->bnqpz", grouped, k, preferred_element_type=jnp.float32) * q.shape[-1] ** -0.5
        weights = jax.nn.softmax(jnp.where(visible[:, None, None], scores, _MASKED), axis=-1).astype(v.dtype)
        return einops.rearrange(jnp.einsum("bnqpz,bznc->bpnqc", weights, v), "b p n q c -> b p (n q) c")

    return _in_chunks(attend, q, jnp.tril(jnp.ones((1, q.shape[1], q.shape[1]), bool)), axis=1)


def packed_attention(
    q: Float[Array, "B T H C"],
    k: Float[Array, "B T N C"],
    v: Float[Array, "B T N C"],
    mask: PackedMask,
    *,
    implementation: str,
) -> Float[Array, "B T H C"]:
    """Prompts and branches behind each other: a token sees the earlier ones of its prompt and of its own branch.

    a prompt of 2 with branches of 2 and 1, then one of 1 with a branch of 1:

    group  1 1 1 1 1 2 2        1 0 0 0 0 0 0
    branch 0 0 1 1 2 0 1        1 1 0 0 0 0 0
                                1 1 1 0 0 0 0
                                1 1 1 1 0 0 0
                                1 1 0 0 1 0 0
                                0 0 0 0 0 1 0
                                0 0 0 0 0 1 1
    """
    if implementation.startswith("splash"):
        interpret = implementation == "splash_interpret"
        return splash.packed_attention(
            q, k, v, mask.group, mask.branch, num_branches=mask.num_branches, interpret=interpret
        )

    def visible(of_q: Array, of_k: Array) -> Array:
        """Who sees whom [B, queries, keys], from group, branch and place of each token."""
        (q_group, q_branch, q_place), (k_group, k_branch, k_place) = (
            jnp.moveaxis(x, -1, 0) for x in (of_q[:, :, None], of_k[:, None])
        )
        return (q_group == k_group) & ((k_branch == 0) | (k_branch == q_branch)) & (k_place <= q_place)

    def attend(q: Array, k: Array, v: Array, of_q: Array, of_k: Array) -> Array:
        grouped = einops.rearrange(q, "b t (n q) c -> b t n q c", n=k.shape[2])
        scores = jnp.einsum("btnqc,bznc->bnqtz", grouped, k, preferred_element_type=jnp.float32) * q.shape[-1] ** -0.5
        shown = visible(of_q, of_k)[:, None, None]
        weights = jax.nn.softmax(jnp.where(shown, scores, _MASKED), axis=-1).astype(v.dtype)
        return einops.rearrange(jnp.einsum("bnqtz,bznc->btnqc", weights, v), "b t n q c -> b t (n q) c")

    place = jnp.broadcast_to(jnp.arange(q.shape[1], dtype=jnp.int32), mask.group.shape)
    tokens = jnp.stack([mask.group, mask.branch, place], axis=-1)
    if implementation == "cudnn":
        return cudnn.masked_attention(q, k, v, visible(tokens, tokens), True)
    return _attend_near(attend, q, k, v, tokens, mask.first, place + 1, reach=mask.group_len, is_causal=True)


def branch_attention(
    q: Float[Array, "rows J new H C"],
    prompt_kv: tuple[Float[Array, "B N P C"], Float[Array, "B N P C"]],
    own_kv: tuple[Float[Array, "rows J N slots C"], Float[Array, "rows J N slots C"]],
    *,
    prompt_len: Int32[Array, "B"],
    own_visible: Bool[Array, "#rows #J #new #slots"],
    home: Home | None = None,
) -> Float[Array, "rows J new H C"]:
    """Branches attend to their shared prompt and to themselves; the prompt's keys and values exist once.

        prompt of 3 (one padded), two tokens of a branch; other branches are never seen:

        1 1 0 | 1 0
        1 1 0 | 1 1

    `prompt_kv` and `own_kv` are keys and values. Rows are prompts, or with `home` moved branches: these are put back in
    their places beside their prompt for the products with its keys.
    """
    prompt_k, prompt_v = prompt_kv
    own_k, own_v = own_kv
    scale = q.shape[-1] ** -0.5
    grouped = einops.rearrange(q, "b j t (n q) c -> b j t n q c", n=prompt_k.shape[1])
    on_prompt = prompt_scores(grouped, prompt_k, prompt_len=prompt_len, masked=_MASKED, home=home)
    on_self = jnp.einsum("bjtnqc,bjnrc->bjnqtr", grouped, own_k, preferred_element_type=jnp.float32) * scale
    num_prompt = prompt_k.shape[2]
    scores = jnp.concatenate([on_prompt, jnp.where(own_visible[:, :, None, None], on_self, _MASKED)], -1)
    weights = jax.nn.softmax(scores, axis=-1).astype(own_v.dtype)
    out = prompt_values(weights[..., :num_prompt], prompt_v, home=home)
    out = out + jnp.einsum("bjnqtr,bjnrc->bjnqtc", weights[..., num_prompt:], own_v)
    return einops.rearrange(out, "b j n q t c -> b j t (n q) c")
