"""Qwen2.5-VL's vision tower: windowed and full attention blocks, 2-D rotary positions, a 2x2 merger.

Patches come in window order (processor.py), so windows are segment ids and nothing is permuted here: the
merger sees the units of one merged token side by side, and `Prompts.vision_index` undoes the order.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import nnx

from care_jax.models.attention import segment_attention
from care_jax.models.layers import GatedMLP, Linear, RMSNorm, residual_init_scale, rotate
from care_jax.models.model_config import VisionConfig
from care_jax.structs import Array, Prompts

_NORM_EPS = 1e-6  # fixed in Qwen2.5-VL's code, not part of config.json
_ROPE_THETA = 10000.0


class VisionAttention(nnx.Module):
    """Multi-head attention inside segments; the rotation is done in float32."""

    def __init__(self, config: VisionConfig, *, rngs: nnx.Rngs):
        self.num_heads = config.num_heads
        self.qkv = Linear(config.hidden_size, 3 * config.hidden_size, use_bias=True, rngs=rngs)
        scale = residual_init_scale(config.depth)
        self.proj = Linear(config.hidden_size, config.hidden_size, use_bias=True, rngs=rngs, init_scale=scale)

    def __call__(self, x: Array, cos: Array, sin: Array, segment_ids: Array) -> Array:
        qkv = self.qkv(x).reshape(*x.shape[:2], 3, self.num_heads, -1)
        q = rotate(qkv[:, :, 0].astype(jnp.float32), cos, sin).astype(x.dtype)
        k = rotate(qkv[:, :, 1].astype(jnp.float32), cos, sin).astype(x.dtype)
        out = segment_attention(q, k, qkv[:, :, 2], segment_ids)
        return self.proj(out.reshape(x.shape))


class VisionBlock(nnx.Module):
    """Pre-norm attention and SwiGLU."""

    def __init__(self, config: VisionConfig, *, rngs: nnx.Rngs):
        self.norm1 = RMSNorm(config.hidden_size, eps=_NORM_EPS)
        self.norm2 = RMSNorm(config.hidden_size, eps=_NORM_EPS)
        self.attn = VisionAttention(config, rngs=rngs)
        scale = residual_init_scale(config.depth)
        self.mlp = GatedMLP(config.hidden_size, config.intermediate_size, use_bias=True, rngs=rngs, init_scale=scale)

    def __call__(self, x: Array, cos: Array, sin: Array, segment_ids: Array) -> Array:
        x = x + self.attn(self.norm1(x), cos, sin, segment_ids)
        return x + self.mlp(self.norm2(x))


class PatchEmbed(nnx.Module):
    """A flattened patch times the Conv3d weight of the reference."""

    def __init__(self, config: VisionConfig, *, rngs: nnx.Rngs):
        self.proj = Linear(config.patch_values, config.hidden_size, use_bias=False, rngs=rngs)

    def __call__(self, patches: Array) -> Array:
        return self.proj(patches)


class PatchMerger(nnx.Module):
    """Joins the patches of a merged token: norm, concatenate, two linears with the exact (erf) GELU between."""

    def __init__(self, config: VisionConfig, *, rngs: nnx.Rngs):
        merged = config.hidden_size * config.merge_unit
        self.merge_unit = config.merge_unit
        self.ln_q = RMSNorm(config.hidden_size, eps=_NORM_EPS)
        self.fc1 = Linear(merged, merged, use_bias=True, rngs=rngs)
        self.fc2 = Linear(merged, config.out_hidden_size, use_bias=True, rngs=rngs)

    def __call__(self, x: Array) -> Array:
        x = self.ln_q(x)
        x = x.reshape(x.shape[0], x.shape[1] // self.merge_unit, -1)
        return self.fc2(jax.nn.gelu(self.fc1(x), approximate=False))


class VisionTower(nnx.Module):
    """Patches to merged features in the decoder's width."""

    def __init__(self, config: VisionConfig, *, remat: bool, rngs: nnx.Rngs):
        self.config = config
        self.remat = remat
        self.patch_embed = PatchEmbed(config, rngs=rngs)
        keys = jax.random.split(rngs.params(), config.depth)
        self.blocks = jax.vmap(lambda key: VisionBlock(config, rngs=nnx.Rngs(key)))(keys)
        self.merger = PatchMerger(config, rngs=rngs)

    def __call__(self, prompts: Prompts, dtype: jnp.dtype) -> Array:
        """Merged features [B, I / merge_unit, D], in window order; rows of padding are finite and unread."""
        cos, sin = self._rotary_tables(prompts.patch_position_ids)
        is_full = jnp.isin(jnp.arange(self.config.depth), jnp.asarray(self.config.fullatt_block_indexes))

        def block(x: Array, layer: tuple[VisionBlock, Array]) -> tuple[Array, None]:
            module, full = layer
            return module(x, cos, sin, jnp.where(full, prompts.image_ids, prompts.window_ids)), None

        block = jax.checkpoint(block) if self.remat else block
        x = self.patch_embed(prompts.patches.astype(dtype))
        x, _ = jax.lax.scan(block, x, (self.blocks, is_full))
        return self.merger(x)

    def _rotary_tables(self, position_ids: Array) -> tuple[Array, Array]:
        """cos, sin [B, I, C] float32: a quarter of the channels for the row, a quarter for the column, twice."""
        half = self.config.hidden_size // self.config.num_heads // 2
        inv_freq = 1.0 / (_ROPE_THETA ** (jnp.arange(0, half, 2, dtype=jnp.float32) / half))
        angles = jnp.einsum("bid,f->bidf", position_ids.astype(jnp.float32), inv_freq)
        angles = angles.reshape(*angles.shape[:2], -1)
        angles = jnp.concatenate([angles, angles], axis=-1)
        return jnp.cos(angles), jnp.sin(angles)
