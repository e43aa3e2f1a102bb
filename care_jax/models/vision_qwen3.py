"""Qwen3-VL's vision tower: learned beside rotary positions, full attention inside each frame, and deepstack.

Qwen3.5 has the same tower without deepstack.

Deepstack gives the features of some blocks to the decoder's first layers, each through a merger of its own.
The four grid cells around each patch and their weights come from the host (inputs/positions.py).
"""

from __future__ import annotations

import functools
from typing import Any

import einops
import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Float, Float32

from care_jax.models.attention import segment_attention
from care_jax.models.layers import ACTIVATIONS, Embedding, LayerNorm, Linear, recompute, residual_init_scale, stack
from care_jax.models.model_config import VisionConfig
from care_jax.models.vision import (
    NORM_EPS,
    Attend,
    PatchEmbed,
    PatchTables,
    VisionAttention,
    own_patches,
    rotary_tables,
)
from care_jax.parallel.collectives import gather, join_parts
from care_jax.structs import Array, Prompts, VisionFeatures


class VisionMLP(nnx.Module):
    """linear_fc2(act(linear_fc1(x)))."""

    def __init__(self, config: VisionConfig, *, rngs: nnx.Rngs):
        """Makes the parameters with `rngs`."""
        self.act = config.hidden_act
        scale = residual_init_scale(config.depth)
        width, channels = config.hidden_size, config.intermediate_size
        self.linear_fc1 = Linear(width, channels, axes=("vision_embed", "vision_mlp"), use_bias=True, rngs=rngs)
        self.linear_fc2 = Linear(
            channels,
            width,
            axes=("vision_mlp", "vision_embed"),
            use_bias=True,
            bias_axis="vision_norm",
            rngs=rngs,
            init_scale=scale,
        )

    def __call__(self, x: Float[Array, "B I width"]) -> Float[Array, "B I width"]:
        """Runs the MLP on every patch."""
        return self.linear_fc2(ACTIVATIONS[self.act](self.linear_fc1(x)))


class VisionBlock(nnx.Module):
    """Pre-norm attention and MLP."""

    def __init__(self, config: VisionConfig, *, rngs: nnx.Rngs):
        """Makes the parameters with `rngs`."""
        self.norm1 = LayerNorm(config.hidden_size, axis="vision_norm", eps=NORM_EPS)
        self.norm2 = LayerNorm(config.hidden_size, axis="vision_norm", eps=NORM_EPS)
        self.attn = VisionAttention(config, rngs=rngs)
        self.mlp = VisionMLP(config, rngs=rngs)

    def __call__(
        self, x: Float[Array, "B I width"], cos: Float32[Array, "B I C"], sin: Float32[Array, "B I C"], attend: Attend
    ) -> Float[Array, "B I width"]:
        """Runs the block; `cos` and `sin` are the rotary tables."""
        x = x + self.attn(self.norm1(x), cos, sin, attend)
        return x + self.mlp(self.norm2(x))


class PatchMerger(nnx.Module):
    """Joins the patches of a merged token; the norm is on single patches, or (deepstack) on the joined ones.

    The GELU is the exact (erf) one, whichever one the blocks have.
    """

    def __init__(self, config: VisionConfig, *, norm_joined: bool, rngs: nnx.Rngs):
        """Makes the parameters with `rngs`."""
        merged = config.hidden_size * config.merge_unit
        self.merge_unit = config.merge_unit
        self.norm_joined = norm_joined
        self.norm = LayerNorm(merged if norm_joined else config.hidden_size, axis="vision_norm", eps=NORM_EPS)
        self.linear_fc1 = Linear(merged, merged, axes=("vision_merged", "vision_out"), use_bias=True, rngs=rngs)
        self.linear_fc2 = Linear(
            merged, config.out_hidden_size, axes=("vision_merged", "vision_out"), use_bias=True, rngs=rngs
        )

    def __call__(self, x: Float[Array, "B I width"]) -> Float[Array, "B U D"]:
        """Merges patches that lie side by side."""

        def join(x: Array) -> Array:
            return einops.rearrange(x, "b (u patch) width -> b u (patch width)", patch=self.merge_unit)

        x = self.norm(join(x)) if self.norm_joined else join(self.norm(x))
        return self.linear_fc2(ACTIVATIONS["gelu"](self.linear_fc1(x)))


class VisionTower(nnx.Module):
    """Patches to merged features in the decoder's width, of the last block and of the deepstack blocks."""

    def __init__(self, config: VisionConfig, *, remat: str, attention: str, rngs: nnx.Rngs):
        """Makes the parameters with `rngs`."""
        self.config = config
        self.remat = remat
        self.attention = attention
        self.patch_embed = PatchEmbed(config, use_bias=True, rngs=rngs)
        self.pos_embed = Embedding(
            config.num_position_embeddings, config.hidden_size, axes=("grid_cells", "vision_embed"), rngs=rngs
        )
        self.blocks = stack(lambda rngs: VisionBlock(config, rngs=rngs), config.depth, rngs=rngs)
        self.merger = PatchMerger(config, norm_joined=False, rngs=rngs)
        num_taps = len(config.deepstack_visual_indexes)
        make = functools.partial(PatchMerger, config, norm_joined=True)
        self.deepstack_merger_list = stack(lambda rngs: make(rngs=rngs), num_taps, rngs=rngs) if num_taps else None

    def parts(self) -> tuple[list[nnx.Module], list[nnx.Module]]:
        """The modules that run on every patch, and those that run on every merged token."""
        mergers = [self.merger, self.deepstack_merger_list]
        return [self.patch_embed, self.blocks], [merger for merger in mergers if merger is not None]

    def __call__(self, prompts: Prompts, dtype: jnp.dtype, image_len: int | None = None) -> VisionFeatures:
        """Features in the patches' order; rows of padding are finite and unread."""
        own = own_patches(prompts, self.config)
        cos, sin = rotary_tables(own.position_ids, self.config)
        tapped = jnp.asarray(self.config.deepstack_visual_indexes, jnp.int32)

        attend = functools.partial(
            segment_attention,
            segment_ids=prompts.image_ids,
            segment_len=image_len,
            implementation=self.attention,
        )

        def block(x: Array, module: VisionBlock) -> Array:
            return gather(module, dtype)(x, cos, sin, attend)

        block = recompute(block, self.remat)

        # The tapped states are carried, outside of what is recomputed, and not stacked for every block.
        def step(carry: tuple[Array, Array], layer: tuple[VisionBlock, Array]) -> tuple[Any, None]:
            x, taps = carry
            module, index = layer
            x = block(x, module)
            return (x, jnp.where((tapped == index)[:, None, None, None], x[None], taps)), None

        x = gather(self.patch_embed, dtype)(own.patches.astype(dtype))
        x = x + self._learned_positions(own).astype(dtype)
        taps = jnp.zeros((tapped.size, *x.shape), x.dtype)
        (x, taps), _ = jax.lax.scan(step, (x, taps), (self.blocks, jnp.arange(self.config.depth)))
        merged = gather(self.merger, dtype)(x)
        if self.deepstack_merger_list is None:
            merged = join_parts(merged, axis=1)
            return VisionFeatures(merged=merged, deepstack=jnp.zeros((0, *merged.shape), merged.dtype))
        mergers = gather(self.deepstack_merger_list, dtype)
        deepstack = jax.vmap(lambda merger, states: merger(states))(mergers, taps)
        return VisionFeatures(merged=join_parts(merged, axis=1), deepstack=join_parts(deepstack, axis=2))

    def _learned_positions(self, own: PatchTables) -> Float32[Array, "B part width"]:
        """The four grid cells around each patch, added up by their weights."""
        table = gather(self.pos_embed, jnp.dtype("float32"))
        cells = table(own.grid_index, jnp.dtype("float32"))
        return jnp.einsum("bixd,bix->bid", cells, own.grid_weights, precision=jax.lax.Precision.HIGHEST)
