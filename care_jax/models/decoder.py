"""The decoder: one layer, and the three ways it is run over a prompt and its branches.

A layer works on any stream [B, T, D]; how its tokens attend is handed in. So the prompt and all branches share
every projection and MLP as one matrix product, and split only inside attention:

    prefill           T = P            the prompt alone, keeps its keys and values
    forward_stream    T = tokens       prompts and branches that lie behind each other: scores and gradients
    extend            T = J * new      new tokens of each branch on top of a prefix and a cache: decoding

The layers of a family are of one kind, or of several that take turns (TextConfig.period); a kind is what mixes tokens:
full attention (full_attention.py) or linear attention (delta_net.py). Layers of a kind are one stack, and all of them
one scan.
"""

from __future__ import annotations

import collections
import functools
import itertools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Bool, Float, Int32

from care_jax.models import delta_net, full_attention
from care_jax.models.attention import PackedMask, causal_attention, packed_attention
from care_jax.models.cache import Home, KeyValues, Memory
from care_jax.models.delta_net import Forest, GatedDeltaNet, Recur
from care_jax.models.delta_rule import Chunks
from care_jax.models.full_attention import Rope, SelfAttention, decoder_norm
from care_jax.models.layers import GatedMLP, recompute, residual_init_scale, stack
from care_jax.models.model_config import TextConfig
from care_jax.parallel.collectives import gather, to_parts
from care_jax.structs import Array

# (carried, layer, its number, its place among the layers of its kind) -> (carried, what is kept of the layer)
Step = Callable[[Any, "DecoderLayer", Array, Array], tuple[Any, Any]]


class DecoderLayer(nnx.Module):
    """A layer of one kind: pre-norm attention, full or linear, and gated MLP."""

    def __init__(self, config: TextConfig, kind: str, *, rngs: nnx.Rngs):
        """Makes the parameters with `rngs`; `kind` is one of TextConfig.period."""
        self.kind = kind
        self.input_layernorm = decoder_norm(config, config.hidden_size, axis="norm")
        if kind == "full_attention":
            self.self_attn = SelfAttention(config, rngs=rngs)
        else:
            self.linear_attn = GatedDeltaNet(config, rngs=rngs)
        self.post_attention_layernorm = decoder_norm(config, config.hidden_size, axis="norm")
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

    def __call__(self, x: Float[Array, "B T D"], rope: Rope, mix: Any) -> tuple[Float[Array, "B T D"], Any]:
        """Returns the output and what `mix` keeps, which is an Attend for full attention and a Recur for linear."""
        normed = to_parts(self.input_layernorm(x))
        if self.kind == "full_attention":
            mixed, kept = self.self_attn(normed, rope, mix)
        else:
            mixed, kept = self.linear_attn(normed, mix)
        x = x + mixed
        return x + self.mlp(to_parts(self.post_attention_layernorm(x))), kept


class MixedLayers(nnx.Module):
    """Layers of several kinds that take turns, each kind a stack."""

    def __init__(self, config: TextConfig, *, rngs: nnx.Rngs):
        """Makes the parameters with `rngs`."""
        self.period = config.period
        for kind in dict.fromkeys(config.period):
            setattr(self, kind, _stack(config, kind, rngs=rngs))


Layers = DecoderLayer | MixedLayers  # a stack of layers that are all of one kind, or of several


def stack_of(layers: Layers, kind: str) -> DecoderLayer:
    """The layers of a kind."""
    stack: DecoderLayer = layers if isinstance(layers, DecoderLayer) else getattr(layers, kind)
    return stack


def make_layers(config: TextConfig, *, rngs: nnx.Rngs) -> Layers:
    """The layers of a decoder."""
    kind, *more = config.period
    return MixedLayers(config, rngs=rngs) if more else _stack(config, kind, rngs=rngs)


def _stack(config: TextConfig, kind: str, *, rngs: nnx.Rngs) -> DecoderLayer:
    return stack(lambda rngs: DecoderLayer(config, kind, rngs=rngs), len(config.layers_of(kind)), rngs=rngs)


def _scan(layers: Layers, step: Step, carried: Any, *, unroll_runs: bool = False) -> tuple[Any, Any]:
    """Runs `step` through the layers.

    Neighbours of one kind are a scan inside the scan over periods. With `unroll_runs` they are not, so that a layer's
    parameters are read where they lie and not copied out of their stack first.

    Returns:
        What was carried, and what was kept by kind of layer, stacked.
    """
    if isinstance(layers, DecoderLayer):
        carried, kept = _scan_stack(layers, step, carried, jnp.int32(0), jnp.int32(0))
        return carried, {layers.kind: kept}
    counts = collections.Counter(layers.period)
    groups = {
        kind: jax.tree.map(lambda x, count=count: x.reshape(-1, count, *x.shape[1:]), getattr(layers, kind))
        for kind, count in counts.items()
    }
    runs = [(kind, len(list(same))) for kind, same in itertools.groupby(layers.period)]

    def of_group(carried: Any, inputs: tuple[dict[str, DecoderLayer], Array]) -> tuple[Any, Any]:
        stacks, group = inputs
        number = group * len(layers.period)
        done: collections.Counter = collections.Counter()
        kept: dict[str, list[Any]] = {kind: [] for kind in stacks}
        for kind, count in runs:
            start = done[kind]
            run = jax.tree.map(lambda x, start=start, count=count: x[start : start + count], stacks[kind])
            place = group * counts[kind] + start
            carried, of_run = _scan_stack(run, step, carried, number, place, unroll=unroll_runs)
            kept[kind].append(of_run)
            number, done[kind] = number + count, start + count
        return carried, {
            kind: jax.tree.map(lambda *parts: jnp.concatenate(parts), *each) for kind, each in kept.items()
        }

    num_groups = jax.tree.leaves(groups)[0].shape[0]
    carried, kept = jax.lax.scan(of_group, carried, (groups, jnp.arange(num_groups, dtype=jnp.int32)))
    return carried, jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), kept)


def _scan_stack(
    layers: DecoderLayer, step: Step, carried: Any, number: Array, place: Array, *, unroll: bool = False
) -> tuple[Any, Any]:
    """Runs `step` through a stack of layers that follow each other, the first of them with these two."""

    def of_layer(carried: Any, inputs: tuple[DecoderLayer, Array]) -> tuple[Any, Any]:
        layer, index = inputs
        return step(carried, layer, number + index, place + index)

    return jax.lax.scan(of_layer, carried, _indexed(layers), unroll=unroll)


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
    layers: Layers,
    x: Float[Array, "B P D"],
    rope: Rope,
    deepstack: Float[Array, "E B P D"],
    prompt_len: Int32[Array, "B"],
    *,
    attention: str,
) -> tuple[Float[Array, "B P D"], Memory]:
    """Runs the prompt alone; `deepstack` is added after each of the first E layers.

    Returns:
        The hidden states, and what branches go on from.
    """
    chunks = Chunks.of_sequences(prompt_len, x.shape[1])

    def attend(q: Array, k: Array, v: Array) -> tuple[Array, KeyValues]:
        kept = KeyValues(jnp.swapaxes(k, 1, 2), jnp.swapaxes(v, 1, 2))
        return causal_attention(q, k, v, implementation=attention), kept

    recur: Recur = functools.partial(delta_net.prefill, chunks, prompt_len)
    mixes: dict[str, Any] = {"full_attention": attend, "linear_attention": recur}

    def step(x: Array, layer: DecoderLayer, number: Array, _: Array) -> tuple[Array, Any]:
        layer = gather(layer, x.dtype)
        x, kept = layer(x, rope, mixes[layer.kind])
        return _add_deepstack(x, deepstack, number), kept

    return _scan(layers, step, x)


def forward_stream(
    layers: Layers,
    x: Float[Array, "B T D"],
    rope: Rope,
    deepstack: Float[Array, "E B T D"],
    mask: PackedMask,
    *,
    num_taps: int,
    most_branches: int,
    remat: str,
    attention: str,
) -> Float[Array, "B T D"]:
    """Runs prompts and branches that lie behind each other; `deepstack` is added after each of the first E layers.

    The gradient of every branch flows into its one prompt. `num_taps` is TextConfig.linear_conv_kernel_dim, and
    `most_branches` those of a stream.
    """

    def attend(q: Array, k: Array, v: Array) -> tuple[Array, None]:
        return packed_attention(q, k, v, mask, implementation=attention), None

    mixes: dict[str, Any] = {"full_attention": attend}
    if num_taps:
        sizes = {"num_taps": num_taps, "most_branches": most_branches}
        forest = Forest.make(mask.group, mask.branch, mask.first, **sizes)
        mixes["linear_attention"] = functools.partial(delta_net.run_stream, forest)

    def step(x: Array, layer: DecoderLayer, number: Array, _: Array) -> tuple[Array, None]:
        layer = gather(layer, x.dtype)
        x, _ = layer(x, rope, mixes[layer.kind])
        return _add_deepstack(x, deepstack, number), None

    return _scan(layers, recompute(step, remat), x)[0]


def extend(
    layers: Layers,
    x: Float[Array, "B T D"],
    rope: Rope,
    *,
    prompt: Memory,
    own: Memory,
    prompt_len: Int32[Array, "prompts"],
    num_branches: int,
    slot: Int32[Array, ""],
    own_visible: Bool[Array, "#B #J #new #slots"],
    attention: str,
    num_new: Int32[Array, "B J"] | None = None,
    home: Home | None = None,
) -> tuple[Float[Array, "B T D"], Memory]:
    """Runs new tokens of each branch on top of a prefix; their keys and values go into slots slot, slot + 1, ...

    The branches' memory is carried through the layer scan, so XLA updates it in place. On shards the layers must be the
    sampler's (QwenVL.for_sampling): gathering them for every token would take longer than the token.

    Args:
        layers: all or a stack of the decoder's.
        x: the new tokens, T = J * new, of one branch after the other.
        rope: their rotary tables.
        prompt: the memory of the prompts.
        own: that of the branches.
        prompt_len: tokens.
        num_branches: J.
        slot: the slot of the first new token.
        own_visible: the slots that each new token sees.
        attention: one of attention.IMPLEMENTATIONS.
        num_new: of the new tokens of each branch, the first that count; None: there is one, which does.
        home: if the rows are moved branches, with J = 1; None: they are the prompts.

    Returns:
        The hidden states, and the branches' memory with the new tokens.
    """
    attend_in = functools.partial(
        full_attention.extend,
        num_branches=num_branches,
        prompt_len=prompt_len,
        slot=slot,
        own_visible=own_visible,
        attention=attention,
        home=home,
    )

    def step(carried: tuple[Array, Memory], layer: DecoderLayer, _: Array, place: Array) -> tuple[Any, None]:
        x, memory = carried
        kind = layer.kind
        if kind == "full_attention":
            x, grown = layer(x, rope, functools.partial(attend_in, prompt[kind], memory[kind], place))
        else:
            before = jax.tree.map(
                lambda stored: jax.lax.dynamic_index_in_dim(stored, place, keepdims=False), memory[kind]
            )
            x, after = layer(x, rope, functools.partial(delta_net.extend, before, num_new))
            grown = jax.tree.map(
                lambda stored, new: jax.lax.dynamic_update_index_in_dim(stored, new, place, axis=0), memory[kind], after
            )
        return (x, {**memory, kind: grown}), None

    return _scan(layers, step, (x, own), unroll_runs=True)[0]
