"""The layers both towers share. Parameters carry Hugging Face's names; kernels are [in, out].

Activations choose the compute type: a kernel is cast to its input's type. Norm statistics are float32.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import nnx

from care_jax.parallel.collectives import lookup, sum_parts
from care_jax.structs import Array

# By their names in config.json. "gelu" is the exact one, not JAX's default.
ACTIVATIONS: dict[str, Callable[[Array], Array]] = {
    "silu": jax.nn.silu,
    "gelu": functools.partial(jax.nn.gelu, approximate=False),
    "gelu_pytorch_tanh": functools.partial(jax.nn.gelu, approximate=True),
}


def _align(vector: Array, x: Array) -> Array:
    """A [channels] vector with x's rank and type, so that no rank or type is promoted silently."""
    return jnp.expand_dims(vector.astype(x.dtype), tuple(range(x.ndim - 1)))


class Linear(nnx.Module):
    """y = x @ kernel + bias, over the last axis.

    `from_parts`: inside a program on shards x and the kernel's rows are parts, and the result is summed over them.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        *,
        use_bias: bool,
        rngs: nnx.Rngs,
        init_scale: float = 1.0,
        from_parts: bool = False,
    ):
        init = jax.nn.initializers.variance_scaling(init_scale**2, "fan_in", "truncated_normal")
        self.kernel = nnx.Param(init(rngs.params(), (in_features, out_features), jnp.float32))
        self.bias = nnx.Param(jnp.zeros((out_features,), jnp.float32)) if use_bias else None
        self.from_parts = from_parts

    def __call__(self, x: Array) -> Array:
        # Two dimensions: with three, XLA's CPU backend takes twice as long for the kernel's gradient.
        flat = x.reshape(-1, x.shape[-1])
        y = (flat @ self.kernel[...].astype(x.dtype)).reshape(*x.shape[:-1], -1)
        y = sum_parts(y) if self.from_parts else y
        return y if self.bias is None else y + _align(self.bias[...], y)


class Embedding(nnx.Module):
    """Rows of a [V, D] table."""

    def __init__(self, num_embeddings: int, features: int, *, rngs: nnx.Rngs):
        init = jax.nn.initializers.normal(features**-0.5)
        self.shape = (num_embeddings, features)
        self.weight = nnx.Param(init(rngs.params(), self.shape, jnp.float32))

    def __call__(self, token_ids: Array, dtype: jnp.dtype) -> Array:
        return lookup(self.weight[...], token_ids, self.shape, dtype)


class RMSNorm(nnx.Module):
    """x / sqrt(mean(x^2) + eps) * weight; statistics in float32, the product with weight in x's type as in Qwen."""

    def __init__(self, features: int, *, eps: float):
        self.weight = nnx.Param(jnp.ones((features,), jnp.float32))
        self.eps = eps

    def __call__(self, x: Array) -> Array:
        x32 = x.astype(jnp.float32)
        variance = jnp.mean(x32 * x32, axis=-1, keepdims=True)
        normed = (x32 * jax.lax.rsqrt(variance + self.eps)).astype(x.dtype)
        return normed * _align(self.weight[...], normed)


class LayerNorm(nnx.Module):
    """(x - mean) / sqrt(variance + eps) * weight + bias, all of it in float32 as in PyTorch."""

    def __init__(self, features: int, *, eps: float):
        self.weight = nnx.Param(jnp.ones((features,), jnp.float32))
        self.bias = nnx.Param(jnp.zeros((features,), jnp.float32))
        self.eps = eps

    def __call__(self, x: Array) -> Array:
        x32 = x.astype(jnp.float32)
        centred = x32 - jnp.mean(x32, axis=-1, keepdims=True)
        variance = jnp.mean(centred * centred, axis=-1, keepdims=True)
        normed = centred * jax.lax.rsqrt(variance + self.eps)
        return (normed * _align(self.weight[...], normed) + _align(self.bias[...], normed)).astype(x.dtype)


class GatedMLP(nnx.Module):
    """down(act(gate(x)) * up(x)), SwiGLU where act is "silu". `in_parts`: its channels are divided over tensor."""

    def __init__(
        self,
        features: int,
        intermediate: int,
        *,
        act: str,
        use_bias: bool,
        rngs: nnx.Rngs,
        init_scale: float,
        in_parts: bool = False,
    ):
        self.act = act
        self.gate_proj = Linear(features, intermediate, use_bias=use_bias, rngs=rngs)
        self.up_proj = Linear(features, intermediate, use_bias=use_bias, rngs=rngs)
        self.down_proj = Linear(
            intermediate, features, use_bias=use_bias, rngs=rngs, init_scale=init_scale, from_parts=in_parts
        )

    def __call__(self, x: Array) -> Array:
        return self.down_proj(ACTIVATIONS[self.act](self.gate_proj(x)) * self.up_proj(x))


def residual_init_scale(num_layers: int) -> float:
    """Of the projections that write into the residual stream: 2 a layer, so its variance stays that of the input."""
    return (2 * num_layers) ** -0.5


def rotate(x: Array, cos: Array, sin: Array) -> Array:
    """Rotary embedding by halves (not even/odd pairs). x [..., heads, C]; cos, sin [..., C]."""
    half = x.shape[-1] // 2
    turned = jnp.concatenate([-x[..., half:], x[..., :half]], axis=-1)
    cos, sin = cos[..., None, :], sin[..., None, :]
    return x * cos + turned * sin
