"""The layers both towers share. Parameters carry Hugging Face's names; kernels are [in, out].

Whoever makes a layer names the logical axes of its parameters (sharding.RULES). Activations choose the compute type: a
kernel is cast to its input's type. Norm statistics are float32.
"""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Float, Int32

from care_jax.parallel.collectives import lookup, most, sum_parts
from care_jax.parallel.sharding import mesh_axes, param_name
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

    def with_axis(param: nnx.Param) -> nnx.Variable:
        axes = param.get_metadata("out_sharding", None)
        return param if axes is None else param.replace(out_sharding=("layers", *axes))

    return jax.tree.map(with_axis, stacked, is_leaf=lambda node: isinstance(node, nnx.Param))


def _align(vector: Float[Array, "width"], x: Float[Array, "*batch width"]) -> Float[Array, "*ones width"]:
    """Gives a vector x's rank and type, so that no rank or type is promoted silently."""
    return jnp.expand_dims(vector.astype(x.dtype), tuple(range(x.ndim - 1)))


class Linear(nnx.Module):
    """y = x @ kernel + bias, over the last axis. A kernel of int8 has a scale for each output (`in_int8`).

    With an adapter (`with_adapter`) x @ lora_a @ lora_b * lora_scale is added.
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
        """Makes the parameters with `rngs`.

        Args:
            in_features: length of the last axis of x.
            out_features: length of the last axis of y.
            axes: logical axes of the kernel.
            use_bias: whether there is a bias.
            rngs: makes the kernel.
            bias_axis: logical axis of the bias; by default the kernel's second one.
            init_scale: factor of the kernel's initial values.
            from_parts: inside a program on shards x and the kernel's rows are parts, and y is the sum over them.
        """
        init = jax.nn.initializers.variance_scaling(init_scale**2, "fan_in", "truncated_normal")
        self.kernel = make_param(init(rngs.params(), (in_features, out_features), jnp.float32), *axes)
        self.scale: nnx.Param | None = None
        self.lora_a: nnx.Param | None = None
        self.lora_b: nnx.Param | None = None
        self.lora_scale = 1.0
        bias = (bias_axis or axes[1]) if use_bias else None
        self.bias = make_param(jnp.zeros((out_features,), jnp.float32), bias) if bias else None
        self.from_parts = from_parts

    def __call__(self, x: Float[Array, "*batch inputs"]) -> Float[Array, "*batch outputs"]:
        """Applies the layer."""
        # Two dimensions: with three, XLA's CPU backend takes twice as long for the kernel's gradient.
        flat = x.reshape(-1, x.shape[-1])
        kernel = self.kernel[...].astype(x.dtype)
        if self.scale is None:
            y = flat @ kernel
        else:
            y = jnp.matmul(flat, kernel, preferred_element_type=jnp.float32)
            y = (y * _align(self.scale[...], y)).astype(x.dtype)
        if self.lora_a is not None and self.lora_b is not None:
            y += flat @ self.lora_a[...].astype(x.dtype) @ self.lora_b[...].astype(x.dtype) * self.lora_scale
        y = y.reshape(*x.shape[:-1], -1)
        y = sum_parts(y) if self.from_parts else y
        return y if self.bias is None else y + _align(self.bias[...], y)

    def with_adapter(self, rank: int, scale: float, key: jax.Array) -> Linear:
        """The layer, or stack of layers, with a low-rank adapter (LoRA, arXiv 2106.09685) that adds nothing yet.

        lora_a is drawn as peft draws it, uniformly and as wide as the kernel of a PyTorch linear; lora_b is 0. Each has
        one of the kernel's axes and is divided along it as the kernel is; the one that fsdp does not divide there it
        divides along the rank.
        """
        *stacked, inputs, outputs = self.kernel.get_metadata("out_sharding")
        ranks = ("rank" if axis == "fsdp" else "rank_parts" for axis in mesh_axes((inputs, outputs)))
        axes = tuple(zip((inputs, outputs), ranks, strict=True))
        *sizes, num_inputs, num_outputs = self.kernel.shape
        bound = num_inputs**-0.5
        lora_a = jax.random.uniform(key, (*sizes, num_inputs, rank), jnp.float32, -bound, bound)
        layer = copy.copy(self)
        layer.lora_a = nnx.data(make_param(lora_a, *stacked, *axes[0]))
        layer.lora_b = nnx.data(make_param(jnp.zeros((*sizes, rank, num_outputs)), *stacked, *axes[1][::-1]))
        layer.lora_scale = scale
        return layer

    def without_adapter(self) -> Linear:
        """The layer, or stack of layers, as it was before `with_adapter`."""
        layer = copy.copy(self)
        layer.lora_a, layer.lora_b, layer.lora_scale = None, None, 1.0
        return layer

    def merged(self) -> Linear:
        """The layer, or stack of layers, with its adapter added to its kernel: in float32, then in the kernel's type.

        It must be whole along fsdp.
        """
        if self.lora_a is None or self.lora_b is None:
            return self

        def add(parts: tuple[Array, Array, Array]) -> Array:
            kernel, lora_a, lora_b = parts
            highest, float32 = jax.lax.Precision.HIGHEST, jnp.float32
            product = jnp.matmul(lora_a, lora_b, precision=highest, preferred_element_type=float32)
            return (kernel.astype(jnp.float32) + product * self.lora_scale).astype(kernel.dtype)

        parts = self.kernel[...], self.lora_a[...], self.lora_b[...]
        layer = self.without_adapter()
        # One layer after the other: their float32 products need not exist at once.
        kernel: Any = self.kernel.replace(add(parts) if self.kernel.ndim == 2 else jax.lax.map(add, parts))
        layer.kernel = kernel
        return layer

    def in_int8(self) -> Linear:
        """The layer, or stack of layers, with its kernel rounded to 255 steps between each output's largest weights.

        It is for decoding, has no gradient, and must be whole along fsdp.
        """
        kernel = self.kernel[...].astype(jnp.float32)
        largest = jnp.abs(kernel).max(axis=-2)
        largest = jnp.asarray(most(largest) if self.from_parts else largest)  # one scale for all parts of an output
        scale = jnp.maximum(largest, jnp.finfo(jnp.float32).tiny) / 127.0
        *stacked, inputs, outputs = self.kernel.get_metadata("out_sharding")
        layer = copy.copy(self)
        layer.kernel = make_param(jnp.round(kernel / scale[..., None, :]).astype(jnp.int8), *stacked, inputs, outputs)
        layer.scale = nnx.data(make_param(scale, *stacked, outputs))
        return layer


class Embedding(nnx.Module):
    """A table whose rows are looked up."""

    def __init__(self, num_embeddings: int, features: int, *, axes: tuple[str, str], rngs: nnx.Rngs):
        """Makes the table with `rngs`; `axes` are its logical axes."""
        init = jax.nn.initializers.normal(features**-0.5)
        self.shape = (num_embeddings, features)
        self.weight = make_param(init(rngs.params(), self.shape, jnp.float32), *axes)

    def __call__(self, ids: Int32[Array, "*batch"], dtype: jnp.dtype) -> Float[Array, "*batch width"]:
        """The rows `ids`, in `dtype`."""
        return lookup(self.weight[...], ids, self.shape, dtype)


class RMSNorm(nnx.Module):
    """x / sqrt(mean(x^2) + eps) * weight; statistics in float32, the product with weight in x's type as in Qwen.

    With `zero_centered` the factor is 1 + weight, and the product is float32, as in Qwen3.5.
    """

    def __init__(self, features: int, *, axis: str, eps: float, zero_centered: bool = False):
        """Makes the parameters; `axis` is their logical axis."""
        self.weight = make_param(jnp.full((features,), 0.0 if zero_centered else 1.0, jnp.float32), axis)
        self.eps, self.zero_centered = eps, zero_centered

    def __call__(self, x: Float[Array, "*batch width"]) -> Float[Array, "*batch width"]:
        """Applies the norm."""
        x32 = x.astype(jnp.float32)
        variance = jnp.mean(x32 * x32, axis=-1, keepdims=True)
        normed = x32 * jax.lax.rsqrt(variance + self.eps)
        if self.zero_centered:
            return (normed * (1.0 + _align(self.weight[...], x).astype(jnp.float32))).astype(x.dtype)
        normed = normed.astype(x.dtype)
        return normed * _align(self.weight[...], normed)


class LayerNorm(nnx.Module):
    """(x - mean) / sqrt(variance + eps) * weight + bias, all of it in float32 as in PyTorch."""

    def __init__(self, features: int, *, axis: str, eps: float):
        """Makes the parameters; `axis` is their logical axis."""
        self.weight = make_param(jnp.ones((features,), jnp.float32), axis)
        self.bias = make_param(jnp.zeros((features,), jnp.float32), axis)
        self.eps = eps

    def __call__(self, x: Float[Array, "*batch width"]) -> Float[Array, "*batch width"]:
        """Applies the norm."""
        x32 = x.astype(jnp.float32)
        centred = x32 - jnp.mean(x32, axis=-1, keepdims=True)
        variance = jnp.mean(centred * centred, axis=-1, keepdims=True)
        normed = centred * jax.lax.rsqrt(variance + self.eps)
        return (normed * _align(self.weight[...], normed) + _align(self.bias[...], normed)).astype(x.dtype)


class GatedMLP(nnx.Module):
    """down(act(gate(x)) * up(x)); SwiGLU if act is "silu"."""

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
        """Makes the parameters with `rngs`.

        Args:
            features: length of the last axis of x.
            intermediate: number of channels.
            axes: logical axes of these two.
            act: one of ACTIVATIONS.
            use_bias: whether the three layers have biases.
            rngs: makes the kernels.
            init_scale: factor of the initial values of down's kernel.
            bias_axis: logical axis of down's bias; by default that of the features.
            in_parts: inside a program on shards the channels are divided over tensor.
        """
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

    def __call__(self, x: Float[Array, "*batch width"]) -> Float[Array, "*batch width"]:
        """Applies the layer."""
        return self.down_proj(ACTIVATIONS[self.act](self.gate_proj(x)) * self.up_proj(x))


def map_linears(function: Callable[[str, Linear], Linear], module: M) -> M:
    """A copy of a module with `function(name, layer)` in place of each Linear layer, or stack of them."""

    def changed(path: tuple, node: Any) -> Any:
        return function(param_name(path), node) if isinstance(node, Linear) else node

    return jax.tree_util.tree_map_with_path(changed, module, is_leaf=lambda node: isinstance(node, Linear))


def in_int8(module: M) -> M:
    """A copy of a module with the kernels of all its Linear layers in int8."""
    return map_linears(lambda _, layer: layer.in_int8(), module)


def merged(module: M) -> M:
    """A copy of a module with its adapters added to the kernels that they lie beside."""
    return map_linears(lambda _, layer: layer.merged(), module)


def recompute(layer: Callable[..., Any], remat: str) -> Callable[..., Any]:
    """`layer` with what its backward pass recomputes: one of options.REMAT.

    "full" keeps the layer's input alone, "dots" also the results of its products with parameters.
    """
    if remat == "none":
        return layer
    keep = jax.checkpoint_policies.dots_with_no_batch_dims_saveable if remat == "dots" else None
    return jax.checkpoint(layer, policy=keep)


def residual_init_scale(num_layers: int) -> float:
    """Scales the two projections of a layer that write into the residual stream, so that its variance stays."""
    return (2 * num_layers) ** -0.5


def rotate(
    x: Float[Array, "*batch heads channels"], cos: Float[Array, "*batch C"], sin: Float[Array, "*batch C"]
) -> Float[Array, "*batch heads channels"]:
    """Applies a rotary embedding by halves (not even/odd pairs) to the first C channels; the others stay."""
    if (channels := cos.shape[-1]) < x.shape[-1]:
        return jnp.concatenate([rotate(x[..., :channels], cos, sin), x[..., channels:]], axis=-1)
    half = x.shape[-1] // 2
    turned = jnp.concatenate([-x[..., half:], x[..., :half]], axis=-1)
    cos, sin = cos[..., None, :], sin[..., None, :]
    return x * cos + turned * sin
