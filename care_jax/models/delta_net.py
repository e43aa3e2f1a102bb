"""Gated DeltaNet (arXiv 2412.06464), the linear attention of Qwen3.5: a short convolution, then the gated delta rule.

The channels of q, k and v are one projection and one convolution. They lie by key head, [q k v v] a head, so that
tensor divides them like heads; Hugging Face has all q, then all k, then all v, and the conversion moves them.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import einops
import jax
import jax.numpy as jnp
from flax import nnx, struct
from jaxtyping import Float, Float32, Int32

from care_jax.models.cache import Recurrence
from care_jax.models.delta_rule import Chunks, delta_rule, delta_step
from care_jax.models.layers import ACTIVATIONS, Linear, RMSNorm, make_param, residual_init_scale
from care_jax.models.model_config import TextConfig
from care_jax.structs import Array


class Inputs(NamedTuple):
    """The inputs of the convolution and the delta rule, of each token; E channels a key head, each of Q value heads."""

    qkv: Float[Array, "B T N E"]
    decay: Float32[Array, "B T N Q"]  # the logarithm of what the state is multiplied with
    rate: Float32[Array, "B T N Q"]


# (layer, inputs) -> (output [B, T, N, Q, Cv], what the caller keeps)
Recur = Callable[["GatedDeltaNet", Inputs], tuple[Array, Any]]


class CausalConv(nnx.Module):
    """A convolution of each channel over a token and those before it."""

    def __init__(self, channels: int, taps: int, *, rngs: nnx.Rngs):
        """Makes the parameters with `rngs`."""
        init = jax.nn.initializers.variance_scaling(1.0, "fan_in", "truncated_normal")
        self.kernel = make_param(init(rngs.params(), (taps, channels), jnp.float32), "taps", "heads")

    def __call__(self, taps: Sequence[Float[Array, "*batch N E"]]) -> Float32[Array, "*batch N E"]:
        """Sums up inputs by their weights, in float32; `taps` are those of each token, the token itself last."""
        dtype, shape = taps[0].dtype, (*[1] * (taps[0].ndim - 2), *taps[0].shape[-2:])
        kernel = self.kernel[...].astype(dtype).astype(jnp.float32)
        products = (x.astype(jnp.float32) * weight.reshape(shape) for x, weight in zip(taps, kernel, strict=True))
        return functools.reduce(jnp.add, products)


class GatedDeltaNet(nnx.Module):
    """The projections, the convolution, the decay of each head, and the gated norm."""

    def __init__(self, config: TextConfig, *, rngs: nnx.Rngs):
        """Makes the parameters with `rngs`; initial decays are Qwen's."""
        self.num_heads, self.num_values = config.linear_num_key_heads, config.values_per_key
        self.key_dim, self.value_dim = config.linear_key_head_dim, config.linear_value_head_dim
        self.num_taps, self.act = config.linear_conv_kernel_dim, config.hidden_act
        value_heads = config.linear_num_value_heads
        values = value_heads * self.value_dim
        project = functools.partial(Linear, config.hidden_size, axes=("embed", "heads"), use_bias=False, rngs=rngs)
        self.in_proj_qkv = project(2 * self.num_heads * self.key_dim + values)
        self.in_proj_z = project(values)
        self.in_proj_b = project(value_heads)
        self.in_proj_a = project(value_heads)
        self.conv1d = CausalConv(config.linear_channels, self.num_taps, rngs=rngs)
        spread = jax.random.uniform(rngs.params(), (value_heads,), minval=0.01, maxval=16.0)
        self.A_log = make_param(jnp.log(spread), "heads")
        self.dt_bias = make_param(jnp.ones((value_heads,), jnp.float32), "heads")
        self.norm = RMSNorm(self.value_dim, axis="head_channels", eps=config.rms_norm_eps)
        self.out_proj = Linear(
            values,
            config.hidden_size,
            axes=("heads", "embed"),
            use_bias=False,
            bias_axis="norm",
            rngs=rngs,
            init_scale=residual_init_scale(config.num_hidden_layers),
            from_parts=True,
        )

    def __call__(self, x: Float[Array, "B T D"], recur: Recur) -> tuple[Float[Array, "B T D"], Any]:
        """Returns the output and what `recur` keeps."""
        # On shards a device has some of the heads.
        qkv = einops.rearrange(self.in_proj_qkv(x), "b t (n e) -> b t n e", e=self._channels)
        rate = jax.nn.sigmoid(self.in_proj_b(x).astype(jnp.float32))
        a_log, dt_bias = (p[...].astype(x.dtype).astype(jnp.float32)[None, None] for p in (self.A_log, self.dt_bias))
        decay = -jnp.exp(a_log) * jax.nn.softplus(self.in_proj_a(x).astype(jnp.float32) + dt_bias)
        decay, rate = (einops.rearrange(y, "b t (n q) -> b t n q", q=self.num_values) for y in (decay, rate))
        out, kept = recur(self, Inputs(qkv, decay, rate))
        gate = self.in_proj_z(x).astype(jnp.float32).reshape(out.shape)
        out = self.norm(out.astype(x.dtype)).astype(jnp.float32) * jax.nn.silu(gate)
        return self.out_proj(out.astype(x.dtype).reshape(*x.shape[:2], -1)), kept

    @property
    def _channels(self) -> int:
        """Channels of a key head: its q, its k, and the v of its value heads."""
        return 2 * self.key_dim + self.num_values * self.value_dim

    def split_heads(self, convolved: Float32[Array, "*batch N E"], dtype: jnp.dtype) -> tuple[Array, Array, Array]:
        """Q and k [..., N, C] and v [..., N, Q, Cv] of tokens, from what the convolution gives; it is rounded once."""
        qkv = ACTIVATIONS[self.act](convolved).astype(dtype)
        q, k, v = jnp.split(qkv, (self.key_dim, 2 * self.key_dim), axis=-1)
        return q, k, v.reshape(*v.shape[:-1], self.num_values, self.value_dim)


def prefill(
    chunks: Chunks, lengths: Int32[Array, "B"], layer: GatedDeltaNet, inputs: Inputs
) -> tuple[Array, Recurrence]:
    """A `Recur` over prompts alone; keeps their states."""
    batch, _, heads, channels = inputs.qkv.shape
    nothing = Recurrence(
        jnp.zeros((batch, heads, layer.num_taps - 1, channels), inputs.qkv.dtype),
        jnp.zeros((batch, heads, layer.num_values, layer.key_dim, layer.value_dim), jnp.float32),
    )
    return _continue(chunks, lengths, layer, inputs, nothing)


def _continue(
    chunks: Chunks, lengths: Int32[Array, "B"], layer: GatedDeltaNet, inputs: Inputs, before: Recurrence
) -> tuple[Array, Recurrence]:
    """Sequences that go on from `before`; their states at their ends."""
    num_tokens, num_before = inputs.qkv.shape[1], layer.num_taps - 1
    seen = jnp.concatenate([jnp.swapaxes(before.conv, 1, 2), inputs.qkv], axis=1)
    taps = [seen[:, i : i + num_tokens] for i in range(layer.num_taps)]
    convolved = layer.conv1d(taps)
    out, state = delta_rule(
        *layer.split_heads(convolved, inputs.qkv.dtype), inputs.decay, inputs.rate, chunks, before.state
    )
    last = lengths[:, None] + jnp.arange(num_before)[None]  # of what was seen
    conv = jnp.take_along_axis(seen, last[..., None, None], axis=1)
    return out, Recurrence(jnp.swapaxes(conv, 1, 2), state)


@struct.dataclass
class Forest:
    """The tokens of streams as the convolution and the delta rule see them; `starts` is the most branches of a stream.

    The convolution of a branch's first tokens reaches into its prompt. They are few, so what it finds there is added
    behind the convolution of all tokens, in which a token sees its own prompt or branch alone.
    """

    chunks: Chunks
    depth: Int32[Array, "B T"]  # earlier tokens of a token's own prompt or branch
    head: Int32[Array, "B starts before"]  # places of the first tokens of each branch; T where there is none
    tail: Int32[Array, "B starts before"]  # of the last tokens of its prompt; -1 where there is none

    @classmethod
    def make(
        cls,
        group: Int32[Array, "B T"],
        branch: Int32[Array, "B T"],
        first: Int32[Array, "B T"],
        *,
        num_taps: int,
        most_branches: int,
    ) -> Forest:
        """The forest of a packing's groups and branches (structs.Streams).

        Args:
            group: of each token.
            branch: of each token.
            first: the place of the first token of its group.
            num_taps: inputs that a convolution takes.
            most_branches: of a stream.
        """
        num_tokens, before = group.shape[1], num_taps - 1
        place = jnp.broadcast_to(jnp.arange(num_tokens, dtype=jnp.int32), group.shape)
        changed = (group[:, 1:] != group[:, :-1]) | (branch[:, 1:] != branch[:, :-1])
        is_first = jnp.concatenate([jnp.ones_like(changed[:, :1]), changed], axis=1)
        own_first = jax.lax.cummax(jnp.where(is_first, place, 0), axis=1)
        prompt_last = jax.lax.cummax(jnp.where(branch == 0, place, 0), axis=1)

        def of_stream(own_first: Array, prompt_last: Array, first: Array, starts_branch: Array) -> tuple[Array, Array]:
            (start,) = jnp.nonzero(starts_branch, size=min(most_branches, num_tokens), fill_value=num_tokens)
            start = start.astype(jnp.int32)[:, None]
            steps = jnp.arange(before, dtype=jnp.int32)[None]
            head = start + steps
            is_own = jnp.take(own_first, head, mode="fill", fill_value=-1) == start
            last, lowest = (jnp.take(x, start, mode="fill", fill_value=0) for x in (prompt_last, first))
            tail = last - before + 1 + steps
            is_prompt = (tail >= lowest) & (start < num_tokens)
            return jnp.where(is_own, head, num_tokens), jnp.where(is_prompt, tail, -1)

        head, tail = jax.vmap(of_stream)(own_first, prompt_last, first, is_first & (branch > 0))
        return cls(Chunks.of_streams(group, branch), place - own_first, head, tail)


def run_stream(forest: Forest, layer: GatedDeltaNet, inputs: Inputs) -> tuple[Array, None]:
    """A `Recur` over streams of prompts and branches; keeps nothing."""
    qkv, before = inputs.qkv, layer.num_taps - 1
    num_streams, num_tokens = qkv.shape[:2]

    def own(back: int) -> Array:
        """The input `back` tokens before each token of a prompt or a branch; 0 if there is none."""
        shifted = jnp.pad(qkv, ((0, 0), (back, 0), (0, 0), (0, 0)))[:, :num_tokens]
        return jnp.where((forest.depth >= back)[..., None, None], shifted, jnp.zeros_like(shifted))

    convolved = layer.conv1d([own(back) for back in range(before, -1, -1)])
    stream = jnp.arange(num_streams)[:, None, None]
    tails = jnp.where((forest.tail >= 0)[..., None, None], qkv[stream, forest.tail], jnp.zeros((), qkv.dtype))
    seen = jnp.concatenate([tails, jnp.zeros_like(tails)], axis=2)
    of_prompt = layer.conv1d([seen[:, :, i : i + before] for i in range(layer.num_taps)])
    convolved = jnp.asarray(convolved).at[stream, forest.head].add(of_prompt, mode="drop")
    heads = layer.split_heads(convolved, qkv.dtype)
    return delta_rule(*heads, inputs.decay, inputs.rate, forest.chunks)[0], None


def extend(
    before: Recurrence, num_new: Int32[Array, "rows J"] | None, layer: GatedDeltaNet, inputs: Inputs
) -> tuple[Array, Recurrence]:
    """A `Recur` over new tokens of branches [rows, J * new], each from its state `before` [rows, J, ...].

    The first `num_new` tokens of each branch count; None: each has one.
    """
    rows, branches = before.conv.shape[:2]

    def apart(x: Array) -> Array:
        """X [rows, J * new, ...] as [rows * J, new, ...]."""
        return x.reshape(rows * branches, -1, *x.shape[2:])

    apart_inputs = Inputs(*map(apart, inputs))
    flat = Recurrence(*(x.reshape(-1, *x.shape[2:]) for x in (before.conv, before.state)))
    if num_new is None:
        seen = jnp.concatenate([flat.conv, jnp.swapaxes(apart_inputs.qkv, 1, 2)], axis=2)
        taps = [seen[:, :, i] for i in range(layer.num_taps)]
        heads = layer.split_heads(layer.conv1d(taps), inputs.qkv.dtype)
        decay, rate = apart_inputs.decay[:, 0], apart_inputs.rate[:, 0]
        out, state = delta_step(*heads, decay, rate, flat.state)
        out, after = out[:, None], Recurrence(seen[:, :, 1:], state)
    else:
        lengths = num_new.reshape(-1)
        chunks = Chunks.of_sequences(lengths, apart_inputs.qkv.shape[1])
        out, after = _continue(chunks, lengths, layer, apart_inputs, flat)
    kept = Recurrence(*(x.reshape(rows, branches, *x.shape[1:]) for x in (after.conv, after.state)))
    return out.reshape(rows, -1, *out.shape[2:]), kept
