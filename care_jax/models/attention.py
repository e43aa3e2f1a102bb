"""Attention in its three forms: segments (images), a prompt and its branches at once, new tokens of branches.

Full sequences have two implementations: XLA's matrix products, whose scores exist in memory for a part of the queries
at a time, and on a TPU the kernel of splash.py. Scores and softmax are float32. A fully masked row gives a finite
average instead of NaN, in value and in gradient; such rows are padding and nobody reads them.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp

from care_jax.models import splash
from care_jax.structs import Array

# Of full sequences; the last is splash's kernel step by step, anywhere and slowly.
IMPLEMENTATIONS = ("xla", "splash", "splash_interpret")

_CHUNK = 512  # queries whose scores exist at once

_MASKED = float(jnp.finfo(jnp.float32).min)


def _split_heads(q: Array, num_kv_heads: int) -> Array:
    """[..., H, C] -> [..., N, Q, C]: the Q query heads that share a key/value head."""
    return q.reshape(*q.shape[:-2], num_kv_heads, q.shape[-2] // num_kv_heads, q.shape[-1])


def _join_heads(o: Array) -> Array:
    """[..., N, Q, C] -> [..., H, C]."""
    return o.reshape(*o.shape[:-3], -1, o.shape[-1])


def _in_chunks(attend: Callable[[Array, Array], Array], q: Array, rows: Array, axis: int) -> Array:
    """attend(q, rows) for _CHUNK queries at a time; q, rows and the result have the queries on `axis`.

    Chunks are recomputed in the backward pass. Without this a layer of a tower takes 48 GiB for 16,384 patches.
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
    q: Array, k: Array, v: Array, segment_ids: Array, *, segment_len: int | None = None, implementation: str
) -> Array:
    """Full attention inside segments: a patch sees the patches with its own segment id.

        ids 1 1 2:   1 1 0
                     1 1 0
                     0 0 1

    q, k, v [B, I, H, C]; segment_ids [B, I]; segment_len, where it is known, the most patches of a segment, whose
    patches then lie side by side. Returns [B, I, H, C].
    """
    if implementation != "xla":
        interpret = implementation == "splash_interpret"
        return splash.segment_attention(q, k, v, segment_ids, segment_len=segment_len, interpret=interpret)

    def attend(q: Array, ids: Array) -> Array:
        scores = jnp.einsum("bihc,bkhc->bhik", q, k, preferred_element_type=jnp.float32) * q.shape[-1] ** -0.5
        visible = (ids[:, :, None] == segment_ids[:, None, :])[:, None]
        weights = jax.nn.softmax(jnp.where(visible, scores, _MASKED), axis=-1).astype(v.dtype)
        return jnp.einsum("bhik,bkhc->bihc", weights, v)

    return _in_chunks(attend, q, segment_ids, axis=1)


def windowed_attention(
    q: Array,
    k: Array,
    v: Array,
    *,
    is_full: Array,
    image_ids: Array,
    window_ids: Array,
    window_len: int,
    implementation: str,
) -> Array:
    """`segment_attention` in whole images where is_full [], else in windows of at most window_len patches."""
    attend = functools.partial(segment_attention, implementation=implementation)
    if implementation == "xla":
        return attend(q, k, v, jnp.where(is_full, image_ids, window_ids))
    in_images = functools.partial(attend, segment_ids=image_ids)
    in_windows = functools.partial(attend, segment_ids=window_ids, segment_len=window_len)
    return jax.lax.cond(is_full, in_images, in_windows, q, k, v)


def causal_attention(q: Array, k: Array, v: Array, *, implementation: str) -> Array:
    """Causal attention of the prompt stream. Prompts are padded on the right, so no real token sees padding.

        1 0 0
        1 1 0
        1 1 1

    q [B, P, H, C]; k, v [B, P, N, C]. Returns [B, P, H, C].
    """
    if implementation != "xla":
        return splash.causal_attention(q, k, v, interpret=implementation == "splash_interpret")

    def attend(q: Array, visible: Array) -> Array:
        grouped = _split_heads(q, k.shape[-2])
        scores = jnp.einsum("bpnqc,bsnc->bnqps", grouped, k, preferred_element_type=jnp.float32) * q.shape[-1] ** -0.5
        weights = jax.nn.softmax(jnp.where(visible[:, None, None], scores, _MASKED), axis=-1).astype(v.dtype)
        return _join_heads(jnp.einsum("bnqps,bsnc->bpnqc", weights, v))

    return _in_chunks(attend, q, jnp.tril(jnp.ones((1, q.shape[1], q.shape[1]), bool)), axis=1)


def stream_attention(
    q: Array,
    k: Array,
    v: Array,
    *,
    prompt_len: Array,
    num_prompt: int,
    num_branches: int,
    implementation: str,
) -> Array:
    """Prompts and full branches: tokens see what is before them in the prompt and in their own branch.

        prompt of 3 (one padded), two branches of 2:

        1 0 0 0 0 0 0
        1 1 0 0 0 0 0
        1 1 1 0 0 0 0
        1 1 0 1 0 0 0
        1 1 0 1 1 0 0
        1 1 0 0 0 1 0
        1 1 0 0 0 1 1

    k, v [B, P + J * R, N, C], branches behind the prompt; q [B, T, H, C] the last T tokens: all of them, or those of
    the branches alone. prompt_len [B]. Returns [B, T, H, C].
    """
    if implementation != "xla":
        return splash.stream_attention(
            q,
            k,
            v,
            prompt_len=prompt_len,
            num_prompt=num_prompt,
            num_branches=num_branches,
            interpret=implementation == "splash_interpret",
        )

    num_own = k.shape[1] - num_prompt

    def split(x: Array) -> tuple[Array, Array]:
        """Prompt tokens, of which a q of the branches alone has none, and branch tokens [B, J, R, ...]."""
        own = x[:, x.shape[1] - num_own :]
        return x[:, : x.shape[1] - num_own], own.reshape(x.shape[0], num_branches, -1, *x.shape[2:])

    (prompt_q, own_q), (prompt_k, own_k), (prompt_v, own_v) = split(q), split(k), split(v)

    def attend(q: Array, visible: Array) -> Array:
        prompt_kv = jnp.swapaxes(prompt_k, 1, 2), jnp.swapaxes(prompt_v, 1, 2)
        own_kv = jnp.swapaxes(own_k, 2, 3), jnp.swapaxes(own_v, 2, 3)
        return branch_attention(q, prompt_kv, own_kv, prompt_len=prompt_len, own_visible=visible)

    out = _in_chunks(attend, own_q, jnp.tril(jnp.ones((1, 1, own_k.shape[2], own_k.shape[2]), bool)), axis=2)
    out = out.reshape(q.shape[0], num_own, *q.shape[2:])
    if not prompt_q.size:
        return out
    of_prompt = causal_attention(prompt_q, prompt_k, prompt_v, implementation=implementation)
    return jnp.concatenate([of_prompt, out], axis=1)


def branch_attention(
    q: Array, prompt_kv: tuple[Array, Array], own_kv: tuple[Array, Array], *, prompt_len: Array, own_visible: Array
) -> Array:
    """Branches attend to their shared prompt and to themselves; the prompt's keys and values exist once.

        prompt of 3 (one padded), two tokens of a branch, and never another branch:

        1 1 0 | 1 0
        1 1 0 | 1 1

    q [B, J, T, H, C]; prompt_kv [B, N, P, C] each; own_kv [B, J, N, R, C] each; prompt_len [B];
    own_visible [B, J, T, R] (size-1 axes broadcast). Returns [B, J, T, H, C].
    """
    prompt_k, prompt_v = prompt_kv
    own_k, own_v = own_kv
    scale = q.shape[-1] ** -0.5
    grouped = _split_heads(q, prompt_k.shape[1])
    on_prompt = jnp.einsum("bjtnqc,bnpc->bjnqtp", grouped, prompt_k, preferred_element_type=jnp.float32) * scale
    on_self = jnp.einsum("bjtnqc,bjnrc->bjnqtr", grouped, own_k, preferred_element_type=jnp.float32) * scale
    num_prompt = prompt_k.shape[2]
    prompt_visible = (jnp.arange(num_prompt)[None] < prompt_len[:, None])[:, None, None, None, None]
    scores = jnp.concatenate(
        [jnp.where(prompt_visible, on_prompt, _MASKED), jnp.where(own_visible[:, :, None, None], on_self, _MASKED)], -1
    )
    weights = jax.nn.softmax(scores, axis=-1).astype(own_v.dtype)
    out = jnp.einsum("bjnqtp,bnpc->bjnqtc", weights[..., :num_prompt], prompt_v)
    out = out + jnp.einsum("bjnqtr,bjnrc->bjnqtc", weights[..., num_prompt:], own_v)
    return _join_heads(jnp.moveaxis(out, 4, 2))
