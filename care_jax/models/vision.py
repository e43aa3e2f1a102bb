"""What the vision towers of both families share: patch embedding, attention inside segments, rotary positions."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import jax.numpy as jnp
from flax import nnx

from care_jax.models.layers import Linear, residual_init_scale, rotate
from care_jax.models.model_config import VisionConfig
from care_jax.parallel.collectives import heads_apart, heads_together, own_part
from care_jax.structs import Array, Prompts

Attend = Callable[[Array, Array, Array], Array]  # q, k, v [B, I, H, C] each -> [B, I, H, C]

NORM_EPS = 1e-6  # fixed in Qwen's code, not part of config.json


class PatchEmbed(nnx.Module):
    """A flattened patch times the Conv3d weight of the reference."""

    def __init__(self, config: VisionConfig, *, use_bias: bool, rngs: nnx.Rngs):
        self.proj = Linear(
            config.patch_values,
            config.hidden_size,
            axes=("patch_values", "vision_embed"),
            use_bias=use_bias,
            bias_axis="vision_norm",
            rngs=rngs,
        )

    def __call__(self, patches: Array) -> Array:
        return self.proj(patches)


class VisionAttention(nnx.Module):
    """Multi-head attention inside segments; the rotation is done in float32."""

    def __init__(self, config: VisionConfig, *, rngs: nnx.Rngs):
        self.num_heads = config.num_heads
        width, scale = config.hidden_size, residual_init_scale(config.depth)
        self.qkv = Linear(width, 3 * width, axes=("vision_embed", "vision_qkv"), use_bias=True, rngs=rngs)
        self.proj = Linear(
            width, width, axes=("vision_embed", "vision_out"), use_bias=True, rngs=rngs, init_scale=scale
        )

    def __call__(self, x: Array, cos: Array, sin: Array, attend: Attend) -> Array:
        qkv = self.qkv(x).reshape(*x.shape[:2], 3, self.num_heads, -1)
        q = rotate(qkv[:, :, 0].astype(jnp.float32), cos, sin).astype(x.dtype)
        k = rotate(qkv[:, :, 1].astype(jnp.float32), cos, sin).astype(x.dtype)
        out = heads_together(attend(*(heads_apart(y) for y in (q, k, qkv[:, :, 2]))))
        return self.proj(out.reshape(x.shape))


def own_patches(prompts: Prompts) -> Prompts:
    """Prompts with this device's part of the patches: the tower's way to be divided over tensor. Its parameters stay
    whole, and only attention needs the others' patches, for a part of the heads (arXiv 2309.14509)."""
    tables = ("patches", "patch_position_ids", "grid_index", "grid_weights")
    return dataclasses.replace(prompts, **{name: own_part(getattr(prompts, name), axis=1) for name in tables})


def rotary_tables(position_ids: Array, config: VisionConfig) -> tuple[Array, Array]:
    """cos, sin [B, I, C] float32 from position_ids [B, I, 2]: a quarter of the channels for the row, a quarter for
    the column, twice."""
    half = config.hidden_size // config.num_heads // 2
    inv_freq = 1.0 / (config.rope_theta ** (jnp.arange(0, half, 2, dtype=jnp.float32) / half))
    angles = jnp.einsum("bid,f->bidf", position_ids.astype(jnp.float32), inv_freq)
    angles = angles.reshape(*angles.shape[:2], -1)
    angles = jnp.concatenate([angles, angles], axis=-1)
    return jnp.cos(angles), jnp.sin(angles)
