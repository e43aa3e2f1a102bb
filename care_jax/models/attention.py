"""Attention in its three forms: segments (images), causal (the prompt), branches over a shared prompt.

Scores and softmax are float32. A fully masked row gives a finite average instead of NaN, in value and in
gradient; such rows are padding and nobody reads them.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from care_jax.structs import Array

_MASKED = float(jnp.finfo(jnp.float32).min)


def _split_heads(q: Array, num_kv_heads: int) -> Array:
    """[..., H, C] -> [..., N, Q, C]: the Q query heads that share a key/value head."""
    return q.reshape(*q.shape[:-2], num_kv_heads, q.shape[-2] // num_kv_heads, q.shape[-1])


def _join_heads(o: Array) -> Array:
    """[..., N, Q, C] -> [..., H, C]."""
    return o.reshape(*o.shape[:-3], -1, o.shape[-1])


def segment_attention(q: Array, k: Array, v: Array, segment_ids: Array) -> Array:
    """Full attention inside segments: a patch sees the patches with its own segment id.

        ids 1 1 2:   1 1 0
                     1 1 0
                     0 0 1

    q, k, v [B, I, H, C]; segment_ids [B, I]. Returns [B, I, H, C].
    """
    scores = jnp.einsum("bihc,bkhc->bhik", q, k, preferred_element_type=jnp.float32) * q.shape[-1] ** -0.5
    visible = (segment_ids[:, :, None] == segment_ids[:, None, :])[:, None]
    weights = jax.nn.softmax(jnp.where(visible, scores, _MASKED), axis=-1).astype(v.dtype)
    return jnp.einsum("bhik,bkhc->bihc", weights, v)


def causal_attention(q: Array, k: Array, v: Array) -> Array:
    """Causal attention of the prompt stream. Prompts are padded on the right, so no real token sees padding.

        1 0 0
        1 1 0
        1 1 1

    q [B, P, H, C]; k, v [B, P, N, C]. Returns [B, P, H, C].
    """
    grouped = _split_heads(q, k.shape[-2])
    scores = jnp.einsum("bpnqc,bsnc->bnqps", grouped, k, preferred_element_type=jnp.float32) * q.shape[-1] ** -0.5
    visible = jnp.tril(jnp.ones((q.shape[1], q.shape[1]), bool))[None, None, None]
    weights = jax.nn.softmax(jnp.where(visible, scores, _MASKED), axis=-1).astype(v.dtype)
    return _join_heads(jnp.einsum("bnqps,bsnc->bpnqc", weights, v))


def branch_attention(
    q: Array, prompt_kv: tuple[Array, Array], own_kv: tuple[Array, Array], *, prompt_len: Array, own_visible: Array
) -> Array:
    """Branches attend to their shared prompt and to themselves; the prompt's keys and values exist once.

        prompt of 3 (one padded), two tokens of a branch, and never another branch:

        1 1 0 | 1 0
        1 1 0 | 1 1

    q [B, J, T, H, C]; prompt_kv [B, P, N, C] each; own_kv [B, J, R, N, C] each; prompt_len [B];
    own_visible [B, J, T, R] (size-1 axes broadcast). Returns [B, J, T, H, C].
    """
    prompt_k, prompt_v = prompt_kv
    own_k, own_v = own_kv
    scale = q.shape[-1] ** -0.5
    grouped = _split_heads(q, prompt_k.shape[-2])
    on_prompt = jnp.einsum("bjtnqc,bpnc->bjnqtp", grouped, prompt_k, preferred_element_type=jnp.float32) * scale
    on_self = jnp.einsum("bjtnqc,bjrnc->bjnqtr", grouped, own_k, preferred_element_type=jnp.float32) * scale
    num_prompt = prompt_k.shape[1]
    prompt_visible = (jnp.arange(num_prompt)[None] < prompt_len[:, None])[:, None, None, None, None]
    scores = jnp.concatenate(
        [jnp.where(prompt_visible, on_prompt, _MASKED), jnp.where(own_visible[:, :, None, None], on_self, _MASKED)], -1
    )
    weights = jax.nn.softmax(scores, axis=-1).astype(own_v.dtype)
    out = jnp.einsum("bjnqtp,bpnc->bjtnqc", weights[..., :num_prompt], prompt_v)
    out = out + jnp.einsum("bjnqtr,bjrnc->bjtnqc", weights[..., num_prompt:], own_v)
    return _join_heads(out)
