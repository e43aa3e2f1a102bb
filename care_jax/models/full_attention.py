"""Full attention of the decoder: its positions, its projections, and how new tokens attend while decoding."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import einops
import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx, struct
from jaxtyping import Bool, Float, Int, Int32

from care_jax.models import cudnn
from care_jax.models.attention import branch_attention
from care_jax.models.cache import Home, KeyValues
from care_jax.models.layers import Linear, RMSNorm, residual_init_scale, rotate
from care_jax.models.model_config import TextConfig
from care_jax.structs import Array

# (q [B, T, H, C], k [B, T, N, C], v [B, T, N, C]) -> (output [B, T, H, C], what the caller keeps)
Attend = Callable[[Array, Array, Array], tuple[Array, Any]]
_STRIDE = 256  # slots: decoding attends to the shortest multiple that holds what is stored


@struct.dataclass
class Rope:
    """Rotary tables of a stream, in the compute type."""

    cos: Float[Array, "B T C"]
    sin: Float[Array, "B T C"]


def mrope(position_ids: Int32[Array, "B 3 T"], config: TextConfig, dtype: jnp.dtype) -> Rope:
    """Multimodal rotary tables from positions in time, height and width.

    Angles are float32; the tables are cast once, as the reference does.
    """
    channels = config.rotary_dim
    inv_freq = 1.0 / (config.rope_theta ** (jnp.arange(0, channels, 2, dtype=jnp.float32) / channels))
    axis = mrope_axes(config)
    angles = jnp.einsum("bty,y->bty", jnp.moveaxis(position_ids, 1, 2)[..., axis].astype(jnp.float32), inv_freq)
    angles = jnp.concatenate([angles, angles], axis=-1)
    return Rope(cos=jnp.cos(angles).astype(dtype), sin=jnp.sin(angles).astype(dtype))


def mrope_axes(config: TextConfig) -> Int[np.ndarray, "Y"]:
    """The axis (0 time, 1 height, 2 width) that turns each of the C / 2 frequencies.

    sections (2, 1, 1)      one after the other (Qwen2-VL, arXiv 2409.12191)    0 0 1 2
                            interleaved (Qwen3-VL): time after the others end   0 1 2 0
    """
    sections = config.mrope_section
    if not config.mrope_interleaved:
        return np.repeat(np.arange(len(sections)) % 3, sections)
    index = np.arange(config.rotary_dim // 2)
    return np.where(index < 3 * np.asarray(sections)[index % 3], index % 3, 0)


class SelfAttention(nnx.Module):
    """The projections, and where the model has them the norms of each head of q and k, and a gate of each output."""

    def __init__(self, config: TextConfig, *, rngs: nnx.Rngs):
        """Makes the parameters with `rngs`."""
        self.head_dim, self.has_gate = config.head_dim, config.output_gate
        features = config.num_attention_heads * config.head_dim
        kv_features = config.num_key_value_heads * config.head_dim
        project = functools.partial(Linear, config.hidden_size, use_bias=config.qkv_bias, rngs=rngs)
        self.q_proj = project(2 * features if self.has_gate else features, axes=("embed", "heads"))
        self.k_proj = project(kv_features, axes=("embed", "kv_heads"))
        self.v_proj = project(kv_features, axes=("embed", "kv_heads"))
        norm = functools.partial(decoder_norm, config, config.head_dim, axis="head_channels")
        self.q_norm = norm() if config.qk_norm else None
        self.k_norm = norm() if config.qk_norm else None
        scale = residual_init_scale(config.num_hidden_layers)
        self.o_proj = Linear(
            features,
            config.hidden_size,
            axes=("heads", "embed"),
            use_bias=config.o_bias,
            bias_axis="norm",
            rngs=rngs,
            init_scale=scale,
            from_parts=True,
        )

    def __call__(self, x: Float[Array, "B T D"], rope: Rope, attend: Attend) -> tuple[Float[Array, "B T D"], Any]:
        """Returns the output and what `attend` keeps."""

        def heads(y: Array) -> Array:
            return einops.rearrange(y, "b t (h c) -> b t h c", c=self.head_dim)

        q, k = heads(self.q_proj(x)), heads(self.k_proj(x))
        gate = None
        if self.has_gate:  # a head's q and gate lie side by side
            q, gate = q[:, :, ::2], q[:, :, 1::2]
        if self.q_norm is not None and self.k_norm is not None:
            q, k = self.q_norm(q), self.k_norm(k)
        q, k = rotate(q, rope.cos, rope.sin), rotate(k, rope.cos, rope.sin)
        out, kept = attend(q, k, heads(self.v_proj(x)))
        if gate is not None:
            out = (out.astype(jnp.float32) * jax.nn.sigmoid(gate.astype(jnp.float32))).astype(x.dtype)
        return self.o_proj(einops.rearrange(out, "b t h c -> b t (h c)")), kept


def decoder_norm(config: TextConfig, features: int, *, axis: str) -> RMSNorm:
    """A norm of the decoder over `features` numbers of logical axis `axis`."""
    return RMSNorm(features, axis=axis, eps=config.rms_norm_eps, zero_centered=config.zero_centered_norm)


def extend(
    prompt: KeyValues,
    own: KeyValues,
    index: Int32[Array, ""],
    q: Float[Array, "B T H C"],
    k: Float[Array, "B T N C"],
    v: Float[Array, "B T N C"],
    *,
    num_branches: int,
    prompt_len: Int32[Array, "prompts"],
    slot: Int32[Array, ""],
    own_visible: Bool[Array, "#B #J #new #slots"],
    attention: str,
    home: Home | None,
) -> tuple[Float[Array, "B T H C"], KeyValues]:
    """Attention of new tokens in layer `index` of its kind; gives all layers' own keys and values with the new ones."""
    batch, _, num_heads, num_slots, channels = own.k.shape[1:]
    stride = -(-num_slots // 8 // _STRIDE) * _STRIDE
    lengths = [min(used, num_slots) for used in range(stride, num_slots + stride, stride)]
    num_new = q.shape[1] // num_branches
    shortest = (slot + num_new - 1) // stride  # index of the first of `lengths` that holds all that is stored

    def write(stored: Array, new: Array) -> Array:
        new = einops.rearrange(new, "b (j new) n c -> 1 b j n new c", j=num_branches)
        return jax.lax.dynamic_update_slice(stored, new, (index, 0, 0, 0, slot, 0))

    grown = KeyValues(write(own.k, k), write(own.v, v))

    # Slices are taken in here, each in one step, so that the products read them in place.
    def attend_to(used: int, attend: Callable[..., Array]) -> Array:
        def of_layer(stored: Array, shape: tuple[int, ...]) -> Array:
            return jax.lax.dynamic_slice(stored, (index, *[0] * len(shape)), (1, *shape))[0]

        own_shape = (batch, num_branches, num_heads, used, channels)
        prompt_k, prompt_v = (of_layer(stored, stored.shape[1:]) for stored in (prompt.k, prompt.v))
        return attend(
            einops.rearrange(q, "b (j new) h c -> b j new h c", j=num_branches),
            (prompt_k, prompt_v),
            (of_layer(grown.k, own_shape), of_layer(grown.v, own_shape)),
            prompt_len=prompt_len,
            own_visible=own_visible[..., :used],
            home=home,
        )

    if attention == "cudnn":  # is given all slots, and reads those that are filled
        out = attend_to(num_slots, functools.partial(cudnn.branch_attention, own_len=slot + num_new))
    else:
        choices = [functools.partial(attend_to, used, branch_attention) for used in lengths]
        out = jax.lax.switch(shortest, choices)
    return out.reshape(q.shape), grown
