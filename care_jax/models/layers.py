"""The layers both towers share. Parameters carry Hugging Face's names; kernels are [in, out].

Whoever makes a layer names the logical axes of its parameters (sharding.RULES). Activations choose the compute type: a
kernel is cast to its input's type. Norm statistics are float32.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import TypeVar

import jax
import jax.numpy as jnp
from flax import nnx

from care_jax.parallel.collectives import lookup, sum_parts
from care_jax.parallel.sharding import mesh_axes
from care_jax.structs import Array

M = TypeVar("M", bound=nnx.Module)

# By their names in config.json. "gelu" is the exact one, not JAX's default.
ACTIVATIONS: dict[str, Callable[[Array], Array]] = {
    "silu": jax.nn.silu,
    "gelu": functools.partial(jax.nn.gelu, approximate=False),
    "gelu_pytorch_tanh": functools.partial(jax.nn.gelu, approximate=True),
}


def make_param(value: Array, *axes: str) -> nnx.Param:
    """A parameter whose dimensions have the logical axes `axes`.

    They are flax's sharding metadata, part of the tree's structure, so slices, gradients and an optimizer's moments
    keep them. Nothing is divided when the parameter is made.

    Raises:
        ValueError: not as many axes as dimensions, or an axis that sharding.RULES does not have.
    """
    if len(mesh_axes(axes)) != value.ndim:
        raise ValueError(f"a parameter of shape {value.shape} needs {value.ndim} logical axes; got {axes}")
    return nnx.Param(value, out_sharding=axes, eager_sharding=False)


def stack(make: Callable[[nnx.Rngs], M], count: int, *, rngs: nnx.Rngs) -> M:
    """`count` modules as one, whose parameters have a leading axis "layers", to be scanned."""
    stacked = jax.vmap(lambda key: make(nnx.Rngs(key)))(jax.random.split(rngs.params(), count))

    def with_axis(param: nnx.Param) -> nnx.Param:
        axes = param.get_metadata("out_sharding", None)
        return param if axes is None else param.replace(out_sharding=("layers", *axes))

    return jax.tree.map(with_axis, stacked, is_leaf=lambda node: isinstance(node, nnx.Param))


def _align(vector: Array, x: Array) -> Array:
    """A [channels] vector with x's rank and type, so that no rank or type is promoted silently."""
    return jnp.expand_dims(vector.astype(x.dtype), tuple(range(x.ndim - 1)))


class Linear(nnx.Module):
    """y = x @ kernel + bias, over the last axis.

    `axes` are the kernel's logical axes; the bias has the second one, or `bias_axis` where that is another.
    `from_parts`: inside a program on shards x and the kernel's rows are parts, and the result is summed over them.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        *,
        axes: tuple[str, str],
        use_bias: bool,
        rngs: nnx.Rngs,
        bias_axis: str | None = None,
        init_scale: float = 1.0,
        from_parts: bool = False,
    ):
        init = jax.nn.initializers.variance_scaling(init_scale**2, "fan_in", "truncated_normal")
        self.kernel = make_param(init(rngs.params(), (in_features, out_features), jnp.float32), *axes)
        bias = (bias_axis or axes[1]) if use_bias else None
        self.bias = make_param(jnp.zeros((out_features,), jnp.float32), bias) if bias else None
        self.from_parts = from_parts

    def __call__(self, x: Array) -> Array:
        # Two dimensions: with three, XLA's CPU backend takes twice as long for the kernel's gradient.
        flat = x.reshape(-1, x.shape[-1])
        y = (flat @ self.kernel[...].astype(x.dtype)).reshape(*x.shape[:-1], -1)
        y = sum_parts(y) if self.from_parts else y
        return y if self.bias is None else y + _align(self.bias[...], y)


class Embedding(nnx.Module):
    """Rows of a [V, D] table."""

    def __init__(self, num_embeddings: int, features: int, *, axes: tuple[str, str], rngs: nnx.Rngs):
        init = jax.nn.initializers.normal(features**-0.5)
        self.shape = (num_embeddings, features)
        self.weight = make_param(init(rngs.params(), self.shape, jnp.float32), *axes)

    def __call__(self, token_ids: Array, dtype: jnp.dtype) -> Array:
        return lookup(self.weight[...], token_ids, self.shape, dtype)


class RMSNorm(nnx.Module):
    """x / sqrt(mean(x^2) + eps) * weight; statistics in float32, the product with weight in x's type as in Qwen."""

    def __init__(self, features: int, *, axis: str, eps: float):
        self.weight = make_param(jnp.ones((features,), jnp.float32), axis)
        self.eps = eps

    def __call__(self, x: Array) -> Array:
        x32 = x.astype(jnp.float32)
        variance = jnp.mean(x32 * x32, axis=-1, keepdims=True)
        normed = (x32 * jax.lax.rsqrt(variance + self.eps)).astype(x.dtype)
        return normed * _align(self.weight[...], normed)


class LayerNorm(nnx.Module):
    """(x - mean) / sqrt(variance + eps) * weight + bias, all of it in float32 as in PyTorch."""

    def __init__(self, features: int, *, axis: str, eps: float):
        self.weight = make_param(jnp.ones((features,), jnp.float32), axis)
        self.bias = make_param(jnp.zeros((features,), jnp.float32), axis)
        self.eps = eps

    def __call__(self, x: Array) -> Array:
        x32 = x.astype(jnp.float32)
        centred = x32 - jnp.mean(x32, axis=-1, keepdims=True)
        variance = jnp.mean(centred * centred, axis=-1, keepdims=True)
        normed = centred * jax.lax.rsqrt(variance + self.eps)
        return (normed * _align(self.weight[...], normed) + _align(self.bias[...], normed)).astype(x.dtype)


class GatedMLP(nnx.Module):
    """down(act(gate(x)) * up(x)); SwiGLU if act is "silu". `in_parts`: its channels are divided over tensor.

    `axes` are the logical axes of the width and of the channels; `bias_axis` is that of down's bias.
    """

    def __init__(
        self,
        features: int,
        intermediate: int,
        *,
        axes: tuple[str, str],
        act: str,
        use_bias: bool,
        rngs: nnx.Rngs,
        init_scale: float,
        bias_axis: str | None = None,
        in_parts: bool = False,
    ):
        self.act = act
        self.gate_proj = Linear(features, intermediate, axes=axes, use_bias=use_bias, rngs=rngs)
        self.up_proj = Linear(features, intermediate, axes=axes, use_bias=use_bias, rngs=rngs)
        self.down_proj = Linear(
            intermediate,
            features,
            axes=(axes[1], axes[0]),
            use_bias=use_bias,
            bias_axis=bias_axis,
            rngs=rngs,
            init_scale=init_scale,
            from_parts=in_parts,
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
