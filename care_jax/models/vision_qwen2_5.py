"""Qwen2.5-VL's vision tower: windowed and full attention blocks, 2-D rotary positions, a 2x2 merger.

Patches come in window order (processor.py), so windows are segment ids and nothing is permuted here: the
merger sees the units of one merged token side by side, and `Prompts.vision_index` undoes the order.
"""

from __future__ import annotations

import functools

import einops
import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Float, Float32

from care_jax.models.attention import windowed_attention
from care_jax.models.layers import ACTIVATIONS, GatedMLP, Linear, RMSNorm, recompute, residual_init_scale, stack
from care_jax.models.model_config import VisionConfig
from care_jax.models.vision import NORM_EPS, Attend, PatchEmbed, VisionAttention, own_patches, rotary_tables
from care_jax.parallel.collectives import gather, join_parts
from care_jax.structs import Array, Prompts, VisionFeatures


class VisionBlock(nnx.Module):
    """Pre-norm attention and SwiGLU."""

    def __init__(self, config: VisionConfig, *, rngs: nnx.Rngs):
        """Makes the parameters with `rngs`."""
        self.norm1 = RMSNorm(config.hidden_size, axis="vision_norm", eps=NORM_EPS)
        self.norm2 = RMSNorm(config.hidden_size, axis="vision_norm", eps=NORM_EPS)
        self.attn = VisionAttention(config, rngs=rngs)
        self.mlp = GatedMLP(
            config.hidden_size,
            config.intermediate_size,
            axes=("vision_embed", "vision_mlp"),
            bias_axis="vision_norm",
            act=config.hidden_act,
            use_bias=True,
            rngs=rngs,
            init_scale=residual_init_scale(config.depth),
        )

    def __call__(
        self, x: Float[Array, "B I width"], cos: Float32[Array, "B I C"], sin: Float32[Array, "B I C"], attend: Attend
    ) -> Float[Array, "B I width"]:
        """Runs the block; `cos` and `sin` are the rotary tables."""
        x = x + self.attn(self.norm1(x), cos, sin, attend)
        return x + self.mlp(self.norm2(x))


class PatchMerger(nnx.Module):
    """Joins the patches of a merged token: norm, concatenate, two linears with the exact (erf) GELU between."""

    def __init__(self, config: VisionConfig, *, rngs: nnx.Rngs):
        """Makes the parameters with `rngs`."""
        merged = config.hidden_size * config.merge_unit
        self.merge_unit = config.merge_unit
        self.ln_q = RMSNorm(config.hidden_size, axis="vision_norm", eps=NORM_EPS)
        self.fc1 = Linear(merged, merged, axes=("vision_merged", "vision_out"), use_bias=True, rngs=rngs)
        self.fc2 = Linear(
            merged, config.out_hidden_size, axes=("vision_merged", "vision_out"), use_bias=True, rngs=rngs
        )

    def __call__(self, x: Float[Array, "B I width"]) -> Float[Array, "B U D"]:
        """Merges patches that lie side by side."""
        x = einops.rearrange(self.ln_q(x), "b (u patch) width -> b u (patch width)", patch=self.merge_unit)
        return self.fc2(ACTIVATIONS["gelu"](self.fc1(x)))


class VisionTower(nnx.Module):
    """Patches to merged features in the decoder's width."""

    def __init__(self, config: VisionConfig, *, remat: str, attention: str, rngs: nnx.Rngs):
        """Makes the parameters with `rngs`."""
        self.config = config
        self.remat = remat
        self.attention = attention
        self.patch_embed = PatchEmbed(config, use_bias=False, rngs=rngs)
        self.blocks = stack(lambda rngs: VisionBlock(config, rngs=rngs), config.depth, rngs=rngs)
        self.merger = PatchMerger(config, rngs=rngs)

    def parts(self) -> tuple[list[nnx.Module], list[nnx.Module]]:
        """The modules that run on every patch, and those that run on every merged token."""
        return [self.patch_embed, self.blocks], [self.merger]

    def __call__(self, prompts: Prompts, dtype: jnp.dtype, image_len: int | None = None) -> VisionFeatures:
        """Features in window order; rows of padding are finite and unread."""
        own = own_patches(prompts, self.config)
        cos, sin = rotary_tables(own.position_ids, self.config)
        is_full = jnp.isin(jnp.arange(self.config.depth), jnp.asarray(self.config.fullatt_block_indexes))

        def block(x: Array, layer: tuple[VisionBlock, Array]) -> tuple[Array, None]:
            module, full = layer
            attend = functools.partial(
                windowed_attention,
                is_full=full,
                image_ids=prompts.image_ids,
                window_ids=prompts.window_ids,
                image_len=image_len,
                window_len=self.config.window_len,
                implementation=self.attention,
            )
            return gather(module, dtype)(x, cos, sin, attend), None

        block = recompute(block, self.remat)
        x = gather(self.patch_embed, dtype)(own.patches.astype(dtype))
        x, _ = jax.lax.scan(block, x, (self.blocks, is_full))
        merged = join_parts(gather(self.merger, dtype)(x), axis=1)
        return VisionFeatures(merged=merged, deepstack=jnp.zeros((0, *merged.shape), merged.dtype))
