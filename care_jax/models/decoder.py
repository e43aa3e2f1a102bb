"""The decoder: one layer, and the three ways it is run over a prompt and its branches.

A layer works on any stream [B, T, D]; how its tokens attend is handed in. So the prompt and all branches share
every projection and MLP as one matrix product, and split only inside attention:

    prefill           T = P            the prompt alone, keeps its keys and values
    forward_branches  T = P + J * R    prompt and full branches at once: scores and gradients
    extend            T = J * new      new tokens of each branch on top of a prefix and a cache: decoding
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx, struct

from care_jax.models.attention import branch_attention, causal_attention
from care_jax.models.cache import BranchCache, Prefix
from care_jax.models.layers import GatedMLP, Linear, RMSNorm, residual_init_scale, rotate
from care_jax.models.model_config import TextConfig
from care_jax.structs import Array

# (q [B, T, H, C], k [B, T, N, C], v [B, T, N, C]) -> (output [B, T, H, C], what the caller keeps)
Attend = Callable[[Array, Array, Array], tuple[Array, Any]]


@struct.dataclass
class Rope:
    """Rotary tables of a stream, [B, T, C] each, in the compute type."""

    cos: Array
    sin: Array


def mrope(position_ids: Array, config: TextConfig, dtype: jnp.dtype) -> Rope:
    """Multimodal rotary tables from position_ids [B, 3, T] (time, height, width).

    Frequencies are split into sections; section i turns by axis i mod 3 (Qwen2-VL, arXiv 2409.12191).
    Angles are float32; the tables are cast once, as the reference does.
    """
    channels = config.head_dim
    inv_freq = 1.0 / (config.rope_theta ** (jnp.arange(0, channels, 2, dtype=jnp.float32) / channels))
    axis = jnp.repeat(
        jnp.arange(len(config.mrope_section)) % 3, jnp.asarray(config.mrope_section), total_repeat_length=channels // 2
    )
    angles = jnp.einsum("btf,f->btf", jnp.moveaxis(position_ids, 1, 2)[..., axis].astype(jnp.float32), inv_freq)
    angles = jnp.concatenate([angles, angles], axis=-1)
    return Rope(cos=jnp.cos(angles).astype(dtype), sin=jnp.sin(angles).astype(dtype))


class SelfAttention(nnx.Module):
    """The projections; biases on q, k and v, none on o."""

    def __init__(self, config: TextConfig, *, rngs: nnx.Rngs):
        self.head_dim = config.head_dim
        kv_features = config.num_key_value_heads * config.head_dim
        self.q_proj = Linear(config.hidden_size, config.hidden_size, use_bias=True, rngs=rngs)
        self.k_proj = Linear(config.hidden_size, kv_features, use_bias=True, rngs=rngs)
        self.v_proj = Linear(config.hidden_size, kv_features, use_bias=True, rngs=rngs)
        scale = residual_init_scale(config.num_hidden_layers)
        self.o_proj = Linear(config.hidden_size, config.hidden_size, use_bias=False, rngs=rngs, init_scale=scale)

    def __call__(self, x: Array, rope: Rope, attend: Attend) -> tuple[Array, Any]:
        def heads(y: Array) -> Array:
            return y.reshape(*y.shape[:-1], -1, self.head_dim)

        q = rotate(heads(self.q_proj(x)), rope.cos, rope.sin)
        k = rotate(heads(self.k_proj(x)), rope.cos, rope.sin)
        out, kept = attend(q, k, heads(self.v_proj(x)))
        return self.o_proj(out.reshape(x.shape)), kept


class DecoderLayer(nnx.Module):
    """Pre-norm attention and SwiGLU."""

    def __init__(self, config: TextConfig, *, rngs: nnx.Rngs):
        self.input_layernorm = RMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.self_attn = SelfAttention(config, rngs=rngs)
        self.post_attention_layernorm = RMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        scale = residual_init_scale(config.num_hidden_layers)
        self.mlp = GatedMLP(config.hidden_size, config.intermediate_size, use_bias=False, rngs=rngs, init_scale=scale)

    def __call__(self, x: Array, rope: Rope, attend: Attend) -> tuple[Array, Any]:
        attended, kept = self.self_attn(self.input_layernorm(x), rope, attend)
        x = x + attended
        return x + self.mlp(self.post_attention_layernorm(x)), kept


def stack_layers(config: TextConfig, *, rngs: nnx.Rngs) -> DecoderLayer:
    """All layers as one module whose parameters have a leading axis L, to be scanned."""
    keys = jax.random.split(rngs.params(), config.num_hidden_layers)
    return jax.vmap(lambda key: DecoderLayer(config, rngs=nnx.Rngs(key)))(keys)


def prefill(layers: DecoderLayer, x: Array, rope: Rope) -> tuple[Array, tuple[Array, Array]]:
    """The prompt alone. x [B, P, D]. Returns hidden [B, P, D] and (k, v), each [L, B, P, N, C]."""

    def step(x: Array, layer: DecoderLayer) -> tuple[Array, tuple[Array, Array]]:
        return layer(x, rope, lambda q, k, v: (causal_attention(q, k, v), (k, v)))

    return jax.lax.scan(step, x, layers)


def forward_branches(
    layers: DecoderLayer, x: Array, rope: Rope, *, prompt_len: Array, num_branches: int, num_prompt: int, remat: bool
) -> Array:
    """Prompt and J full branches in one pass. x [B, P + J * R, D], branches behind the prompt. Returns the same shape.

    The gradient of every branch flows into the one prompt stream.
    """
    batch, total, _ = x.shape
    num_response = (total - num_prompt) // num_branches
    causal = jnp.tril(jnp.ones((num_response, num_response), bool))[None, None]

    def branches(y: Array) -> Array:
        return y[:, num_prompt:].reshape(batch, num_branches, num_response, *y.shape[2:])

    def attend(q: Array, k: Array, v: Array) -> tuple[Array, None]:
        prompt_k, prompt_v = k[:, :num_prompt], v[:, :num_prompt]
        of_prompt = causal_attention(q[:, :num_prompt], prompt_k, prompt_v)
        of_branches = branch_attention(
            branches(q), (prompt_k, prompt_v), (branches(k), branches(v)), prompt_len=prompt_len, own_visible=causal
        )
        flat = of_branches.reshape(batch, num_branches * num_response, *q.shape[2:])
        return jnp.concatenate([of_prompt, flat], axis=1), None

    def step(x: Array, layer: DecoderLayer) -> tuple[Array, None]:
        return layer(x, rope, attend)

    return jax.lax.scan(jax.checkpoint(step) if remat else step, x, layers)[0]


def extend(
    layers: DecoderLayer, x: Array, rope: Rope, *, prefix: Prefix, cache: BranchCache, slot: Array, own_visible: Array
) -> tuple[Array, BranchCache]:
    """New tokens of each branch on top of a prefix; their keys and values go into slots slot, slot + 1, ...

    x [B, J * new, D]; own_visible [B, J, new, slots] (size-1 axes broadcast). Returns hidden [B, J * new, D] and
    the grown cache. The cache is carried through the layer scan, so XLA updates it in place.
    """
    batch, num_branches = cache.k.shape[1:3]

    def step(carry: tuple[Array, Array, Array], inputs: tuple[Array, DecoderLayer, Array, Array]):
        x, cache_k, cache_v = carry
        index, layer, prompt_k, prompt_v = inputs

        def write(stored: Array, new: Array) -> Array:
            new = new.reshape(1, batch, num_branches, -1, *new.shape[2:])
            return jax.lax.dynamic_update_slice(stored, new, (index, 0, 0, slot, 0, 0))

        def attend(q: Array, k: Array, v: Array) -> tuple[Array, tuple[Array, Array]]:
            grown_k, grown_v = write(cache_k, k), write(cache_v, v)
            own_k = jax.lax.dynamic_index_in_dim(grown_k, index, keepdims=False)
            own_v = jax.lax.dynamic_index_in_dim(grown_v, index, keepdims=False)
            out = branch_attention(
                q.reshape(batch, num_branches, -1, *q.shape[2:]),
                (prompt_k, prompt_v),
                (own_k, own_v),
                prompt_len=prefix.prompt_len,
                own_visible=own_visible,
            )
            return out.reshape(q.shape), (grown_k, grown_v)

        x, (cache_k, cache_v) = layer(x, rope, attend)
        return (x, cache_k, cache_v), None

    indexes = jnp.arange(prefix.k.shape[0], dtype=jnp.int32)
    carry, _ = jax.lax.scan(step, (x, cache.k, cache.v), (indexes, layers, prefix.k, prefix.v))
    return carry[0], BranchCache(k=carry[1], v=carry[2])
