"""The parts that the vision towers of all families share: patch embedding, attention in segments, rotary positions."""

from __future__ import annotations

from collections.abc import Callable

import einops
import jax
import jax.numpy as jnp
from flax import nnx, struct
from jaxtyping import Float, Float32, Int32, UInt8

from care_jax.models.layers import Linear, residual_init_scale, rotate
from care_jax.models.model_config import VisionConfig
from care_jax.parallel.collectives import heads_apart, heads_together, own_part
from care_jax.structs import Array, Prompts

Attend = Callable[[Array, Array, Array], Array]  # q, k, v [B, I, H, C] each -> [B, I, H, C]

NORM_EPS = 1e-6  # fixed in Qwen's code, not part of config.json


class PatchEmbed(nnx.Module):
    """A linear layer on flattened patches; the reference has it as a Conv3d."""

    def __init__(self, config: VisionConfig, *, use_bias: bool, rngs: nnx.Rngs):
        """Makes the parameters with `rngs`."""
        self.proj = Linear(
            config.patch_values,
            config.hidden_size,
            axes=("patch_values", "vision_embed"),
            use_bias=use_bias,
            bias_axis="vision_norm",
            rngs=rngs,
        )

    def __call__(self, patches: Float[Array, "B I values"]) -> Float[Array, "B I width"]:
        """Embeds patches, whose values are (channel, frame, height, width)."""
        return self.proj(patches)


class VisionAttention(nnx.Module):
    """Multi-head attention inside segments; the rotation is done in float32."""

    def __init__(self, config: VisionConfig, *, rngs: nnx.Rngs):
        """Makes the parameters with `rngs`."""
        self.num_heads = config.num_heads
        width, scale = config.hidden_size, residual_init_scale(config.depth)
        self.qkv = Linear(width, 3 * width, axes=("vision_embed", "vision_qkv"), use_bias=True, rngs=rngs)
        self.proj = Linear(
            width, width, axes=("vision_embed", "vision_out"), use_bias=True, rngs=rngs, init_scale=scale
        )

    def __call__(
        self, x: Float[Array, "B I width"], cos: Float32[Array, "B I C"], sin: Float32[Array, "B I C"], attend: Attend
    ) -> Float[Array, "B I width"]:
        """Attends with `attend`; `cos` and `sin` are the rotary tables."""
        qkv = self.qkv(x).reshape(*x.shape[:2], 3, self.num_heads, -1)
        q = rotate(qkv[:, :, 0].astype(jnp.float32), cos, sin).astype(x.dtype)
        k = rotate(qkv[:, :, 1].astype(jnp.float32), cos, sin).astype(x.dtype)
        out = heads_together(attend(*(heads_apart(y) for y in (q, k, qkv[:, :, 2]))))
        return self.proj(out.reshape(x.shape))


@struct.dataclass
class PatchTables:
    """The tables of Prompts with a row per patch: `part` counts those on this device."""

    patches: Float32[Array, "B part values"]  # normalised pixels of all frames
    position_ids: Int32[Array, "B part 2"]
    grid_index: Int32[Array, "B part X"]
    grid_weights: Float32[Array, "B part X"]


def own_patches(prompts: Prompts, config: VisionConfig) -> PatchTables:
    """This device's part of the prompts' patches.

    The tower is divided over tensor by its patches: its parameters stay whole, and only attention needs the patches of
    other devices, for a part of the heads (arXiv 2309.14509).
    """
    return PatchTables(
        patches=pixels(
            own_part(prompts.patches, axis=1),
            prompts.pixel_norm,
            patch_size=config.patch_size,
            num_frames=config.temporal_patch_size,
        ),
        position_ids=own_part(prompts.patch_position_ids, axis=1),
        grid_index=own_part(prompts.grid_index, axis=1),
        grid_weights=own_part(prompts.grid_weights, axis=1),
    )


def pixels(
    patches: UInt8[Array, "B I F"], norm: Float32[Array, "B 2 3"], *, patch_size: int, num_frames: int
) -> Float32[Array, "B I values"]:
    """Normalises bytes and repeats a still picture's only frame.

    The values are bit for bit those of transformers' Qwen2VLImageProcessorPil, (byte / 255 - mean) / deviation.

    Args:
        patches: bytes, as in Prompts.
        norm: mean and deviation of each channel.
        patch_size: pixels a side.
        num_frames: frames of a patch.

    Returns:
        The values of each patch (channel, frame, height, width).
    """
    bytes_ = einops.rearrange(jnp.asarray(patches), "b i (c t v) -> b i c t v", c=norm.shape[-1], v=patch_size**2)
    mean, deviation = (jnp.asarray(norm)[:, i, None, :, None, None] for i in range(2))
    values = _divide(_divide(bytes_.astype(jnp.float32), jnp.float32(255)) - mean, deviation)
    values = jnp.broadcast_to(values, (*values.shape[:3], num_frames, patch_size**2))
    return einops.rearrange(values, "b i c t v -> b i (c t v)")


def _divide(x: Float32[Array, "..."], y: Float32[Array, "..."]) -> Float32[Array, "..."]:
    """The quotient rounded to the nearest float32, as IEEE 754 wants it and as no compiler for accelerators promises.

    An estimate is corrected by its remainder, which products of 12-bit halves give without rounding (Dekker 1971).
    Products and sums alone have to be rounded right, and may be fused.
    """
    reciprocal = 1 / y
    estimate = x * reciprocal
    high, y_high = _high(estimate), _high(y)
    low, y_low = estimate - high, y - y_high
    remainder = ((x - high * y_high) - high * y_low - low * y_high) - low * y_low
    return estimate + remainder * reciprocal


def _high(x: Float32[Array, "..."]) -> Float32[Array, "..."]:
    """The number without the lower 12 of its 24 bits."""
    bits = jax.lax.bitcast_convert_type(x, jnp.uint32) & jnp.uint32(0xFFFFF000)
    return jax.lax.bitcast_convert_type(bits, jnp.float32)


def rotary_tables(
    position_ids: Int32[Array, "B I 2"], config: VisionConfig
) -> tuple[Float32[Array, "B I C"], Float32[Array, "B I C"]]:
    """The rotary tables cos and sin: a quarter of the channels for the row, a quarter for the column, twice."""
    half = config.hidden_size // config.num_heads // 2
    inv_freq = 1.0 / (config.rope_theta ** (jnp.arange(0, half, 2, dtype=jnp.float32) / half))
    angles = jnp.einsum("bio,y->bioy", position_ids.astype(jnp.float32), inv_freq)
    angles = einops.rearrange(angles, "b i o y -> b i (o y)")
    angles = jnp.concatenate([angles, angles], axis=-1)
    return jnp.cos(angles), jnp.sin(angles)
