"""The decoder: one layer, and the three ways it is run over a prompt and its branches.

A layer works on any stream [B, T, D]; how its tokens attend is handed in. So the prompt and all branches share
every projection and MLP as one matrix product, and split only inside attention:

    prefill           T = P            the prompt alone, keeps its keys and values
    forward_branches  T = P + J * R    prompt and full branches at once: scores and gradients
    extend            T = J * new      new tokens of each branch on top of a prefix and a cache: decoding
"""

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
from care_jax.models.attention import PackedMask, branch_attention, causal_attention, packed_attention
from care_jax.models.cache import Home
from care_jax.models.layers import GatedMLP, Linear, RMSNorm, recompute, residual_init_scale, rotate
from care_jax.models.model_config import TextConfig
from care_jax.parallel.collectives import gather, to_parts
from care_jax.structs import Array

# (q [B, T, H, C], k [B, T, N, C], v [B, T, N, C]) -> (output [B, T, H, C], what the caller keeps)
Attend = Callable[[Array, Array, Array], tuple[Array, Any]]


@struct.dataclass
class Rope:
    """Rotary tables of a stream, in the compute type."""

    cos: Float[Array, "B T C"]
    sin: Float[Array, "B T C"]


_STRIDE = 256  # slots: decoding attends to the shortest multiple that holds what is stored


def mrope(position_ids: Int32[Array, "B 3 T"], config: TextConfig, dtype: jnp.dtype) -> Rope:
    """Multimodal rotary tables from positions in time, height and width.

    Angles are float32; the tables are cast once, as the reference does.
    """
    channels = config.head_dim
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
    index = np.arange(config.head_dim // 2)
    return np.where(index < 3 * np.asarray(sections)[index % 3], index % 3, 0)


class SelfAttention(nnx.Module):
    """The projections, and the norms of each head of q and k where the model has them."""

    def __init__(self, config: TextConfig, *, rngs: nnx.Rngs):
        """Makes the parameters with `rngs`."""
        self.head_dim = config.head_dim
        features = config.num_attention_heads * config.head_dim
        kv_features = config.num_key_value_heads * config.head_dim
        project = functools.partial(Linear, config.hidden_size, use_bias=config.qkv_bias, rngs=rngs)
        self.q_proj = project(features, axes=("embed", "heads"))
        self.k_proj = project(kv_features, axes=("embed", "kv_heads"))
        self.v_proj = project(kv_features, axes=("embed", "kv_heads"))
        norm = functools.partial(RMSNorm, config.head_dim, axis="head_channels", eps=config.rms_norm_eps)
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
        if self.q_norm is not None and self.k_norm is not None:
            q, k = self.q_norm(q), self.k_norm(k)
        q, k = rotate(q, rope.cos, rope.sin), rotate(k, rope.cos, rope.sin)
        out, kept = attend(q, k, heads(self.v_proj(x)))
        return self.o_proj(einops.rearrange(out, "b t h c -> b t (h c)")), kept


class DecoderLayer(nnx.Module):
    """Pre-norm attention and gated MLP."""

    def __init__(self, config: TextConfig, *, rngs: nnx.Rngs):
        """Makes the parameters with `rngs`."""
        self.input_layernorm = RMSNorm(config.hidden_size, axis="norm", eps=config.rms_norm_eps)
        self.self_attn = SelfAttention(config, rngs=rngs)
        self.post_attention_layernorm = RMSNorm(config.hidden_size, axis="norm", eps=config.rms_norm_eps)
        self.mlp = GatedMLP(
            config.hidden_size,
            config.intermediate_size,
            axes=("embed", "mlp"),
            act=config.hidden_act,
            use_bias=False,
            rngs=rngs,
            init_scale=residual_init_scale(config.num_hidden_layers),
            in_parts=True,
        )

    def __call__(self, x: Float[Array, "B T D"], rope: Rope, attend: Attend) -> tuple[Float[Array, "B T D"], Any]:
        """Returns the output and what `attend` keeps."""
        attended, kept = self.self_attn(to_parts(self.input_layernorm(x)), rope, attend)
        x = x + attended
        return x + self.mlp(to_parts(self.post_attention_layernorm(x))), kept


def _add_deepstack(
    x: Float[Array, "B T D"], deepstack: Float[Array, "E B P D"], index: Int32[Array, ""]
) -> Float[Array, "B T D"]:
    """Adds the deepstack features of layer `index`, if it is one of the first E, to its first P tokens.

    A branch is taken inside the scan. Features stacked with zeros for all other layers would take the memory of L
    hidden states.
    """
    num_added, _, num_prompt, _ = deepstack.shape
    if num_added == 0:
        return x

    def add(x: Array) -> Array:
        features = jax.lax.dynamic_index_in_dim(deepstack, jnp.minimum(index, num_added - 1), keepdims=False)
        return jnp.concatenate([x[:, :num_prompt] + features, x[:, num_prompt:]], axis=1)

    return jax.lax.cond(index < num_added, add, lambda x: x, x)


def _indexed(layers: DecoderLayer) -> tuple[DecoderLayer, Array]:
    """The layers and their indexes, to be scanned together."""
    return layers, jnp.arange(layers.input_layernorm.weight[...].shape[0], dtype=jnp.int32)


def prefill(
    layers: DecoderLayer, x: Float[Array, "B P D"], rope: Rope, deepstack: Float[Array, "E B P D"], *, attention: str
) -> tuple[Float[Array, "B P D"], tuple[Float[Array, "L B N P C"], Float[Array, "L B N P C"]]]:
    """Runs the prompt alone; `deepstack` is added after each of the first E layers.

    Returns:
        The hidden states, and keys and values.
    """
    attend = functools.partial(causal_attention, implementation=attention)

    def step(x: Array, inputs: tuple[DecoderLayer, Array]) -> tuple[Array, tuple[Array, Array]]:
        layer, index = inputs
        layer = gather(layer, x.dtype)
        x, kept = layer(x, rope, lambda q, k, v: (attend(q, k, v), (k, v)))
        return _add_deepstack(x, deepstack, index), (jnp.swapaxes(kept[0], 1, 2), jnp.swapaxes(kept[1], 1, 2))

    return jax.lax.scan(step, x, _indexed(layers))


def forward_stream(
    layers: DecoderLayer,
    x: Float[Array, "B T D"],
    rope: Rope,
    deepstack: Float[Array, "E B T D"],
    mask: PackedMask,
    *,
    remat: str,
    attention: str,
) -> Float[Array, "B T D"]:
    """Runs prompts and branches that lie behind each other; `deepstack` is added after each of the first E layers.

    The gradient of every branch flows into its one prompt.
    """
    attend = functools.partial(packed_attention, mask=mask, implementation=attention)

    def step(x: Array, inputs: tuple[DecoderLayer, Array]) -> tuple[Array, None]:
        layer, index = inputs
        layer = gather(layer, x.dtype)
        x, _ = layer(x, rope, lambda q, k, v: (attend(q, k, v), None))
        return _add_deepstack(x, deepstack, index), None

    return jax.lax.scan(recompute(step, remat), x, _indexed(layers))[0]


def extend(
    layers: DecoderLayer,
    x: Float[Array, "B T D"],
    rope: Rope,
    *,
    prompt_kv: tuple[Float[Array, "L prompts N P C"], Float[Array, "L prompts N P C"]],
    own_kv: tuple[Float[Array, "L B J N slots C"], Float[Array, "L B J N slots C"]],
    prompt_len: Int32[Array, "prompts"],
    slot: Int32[Array, ""],
    own_visible: Bool[Array, "#B #J #new #slots"],
    attention: str,
    home: Home | None = None,
) -> tuple[Float[Array, "B T D"], tuple[Float[Array, "L B J N slots C"], Float[Array, "L B J N slots C"]]]:
    """Runs new tokens of each branch on top of a prefix; their keys and values go into slots slot, slot + 1, ...

    Keys and values are carried through the layer scan, so XLA updates them in place. On shards the layers must be the
    sampler's (QwenVL.for_sampling): gathering them for every token would take longer than the token.

    Args:
        layers: a stack of decoder layers.
        x: the new tokens, T = J * new, of one branch after the other.
        rope: their rotary tables.
        prompt_kv: keys and values of the prompts.
        own_kv: keys and values of the branches' own tokens, by slot.
        prompt_len: tokens.
        slot: the slot of the first new token.
        own_visible: the slots that each new token sees.
        attention: one of attention.IMPLEMENTATIONS.
        home: if the rows are moved branches, with J = 1; None: they are the prompts.

    Returns:
        The hidden states, and `own_kv` with the new tokens.
    """
    batch, num_branches, num_heads, num_slots, channels = own_kv[0].shape[1:]
    stride = -(-num_slots // 8 // _STRIDE) * _STRIDE
    lengths = [min(used, num_slots) for used in range(stride, num_slots + stride, stride)]
    num_new = x.shape[1] // num_branches
    shortest = (slot + num_new - 1) // stride  # index of the first of `lengths` that holds all that is stored

    def step(carry: tuple[Array, Array, Array], inputs: tuple[DecoderLayer, Array]) -> tuple[Any, None]:
        x, cache_k, cache_v = carry
        layer, index = inputs

        def write(stored: Array, new: Array) -> Array:
            new = einops.rearrange(new, "b (j new) n c -> 1 b j n new c", j=num_branches)
            return jax.lax.dynamic_update_slice(stored, new, (index, 0, 0, 0, slot, 0))

        def attend(q: Array, k: Array, v: Array) -> tuple[Array, tuple[Array, Array]]:
            grown_k, grown_v = write(cache_k, k), write(cache_v, v)

            # Slices are taken in here, each in one step, so that the products read them in place.
            def attend_to(used: int, attend: Callable[..., Array]) -> Array:
                def of_layer(stored: Array, shape: tuple[int, ...]) -> Array:
                    return jax.lax.dynamic_slice(stored, (index, *[0] * len(shape)), (1, *shape))[0]

                own = (batch, num_branches, num_heads, used, channels)
                prompt_k, prompt_v = (of_layer(stored, stored.shape[1:]) for stored in prompt_kv)
                return attend(
                    einops.rearrange(q, "b (j new) h c -> b j new h c", j=num_branches),
                    (prompt_k, prompt_v),
                    (of_layer(grown_k, own), of_layer(grown_v, own)),
                    prompt_len=prompt_len,
                    own_visible=own_visible[..., :used],
                    home=home,
                )

            if attention == "cudnn":  # is given all slots, and reads those that are filled
                out = attend_to(num_slots, functools.partial(cudnn.branch_attention, own_len=slot + num_new))
            else:
                choices = [functools.partial(attend_to, used, branch_attention) for used in lengths]
                out = jax.lax.switch(shortest, choices)
            return out.reshape(q.shape), (grown_k, grown_v)

        x, (cache_k, cache_v) = layer(x, rope, attend)
        return (x, cache_k, cache_v), None

    (x, *grown), _ = jax.lax.scan(step, (x, *own_kv), _indexed(layers))
    return x, (grown[0], grown[1])
