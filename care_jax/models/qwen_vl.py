"""Qwen-VL: vision tower, decoder and head, run over prompts and the branches that share them."""

from __future__ import annotations

import collections
import copy
import dataclasses
from collections.abc import Sequence
from typing import Any, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Bool, Float, Float32, Int32

from care_jax.models import decoder
from care_jax.models.attention import PackedMask
from care_jax.models.cache import BranchCache, Home, Prefix
from care_jax.models.full_attention import Rope, mrope
from care_jax.models.layers import Embedding, Linear, RMSNorm, in_int8, merged
from care_jax.models.model_config import ModelConfig, VisionConfig
from care_jax.options import SamplerWeights
from care_jax.parallel.collectives import gather
from care_jax.structs import Array, Prompts, VisionFeatures

_CACHED = 4 << 20  # bytes that surely fit a CPU's cache


def logits(head: Embedding | Linear, hidden: Float[Array, "*batch D"]) -> Float32[Array, "*batch V"]:
    """The logits of hidden states; on shards this device's part of V, and the head must be whole along fsdp."""
    if isinstance(head, Embedding):
        return to_float32(hidden, head.weight[...].astype(hidden.dtype), "...d,vd->...v")
    return to_float32(hidden, head.kernel[...].astype(hidden.dtype), "...d,dv->...v")


def to_float32(x: Array, kernel: Array, spec: str) -> Array:
    """einsum(spec, x, kernel) with a float32 result.

    Its gradient is rounded to x's type before the two products of the backward pass. Unrounded, a GPU would compute
    them in float32, which takes several times as long.
    """
    return (_einsum if x.dtype == jnp.float32 else _einsum_of_rounded)(x, kernel, spec)


def _einsum(x: Array, kernel: Array, spec: str) -> Array:
    return jnp.einsum(spec, x, kernel, preferred_element_type=jnp.float32)


_einsum_of_rounded = jax.custom_vjp(_einsum, nondiff_argnums=(2,))


def _backward_of_rounded(spec: str, saved: tuple[Array, Array], gradient: Array) -> tuple[Array, Array]:
    x, kernel = saved
    gradient = gradient.astype(x.dtype)
    (of_x,) = jax.linear_transpose(lambda x: jnp.einsum(spec, x, kernel), x)(gradient)
    (of_kernel,) = jax.linear_transpose(lambda kernel: jnp.einsum(spec, x, kernel), kernel)(gradient)
    return of_x, of_kernel


_einsum_of_rounded.defvjp(lambda x, kernel, spec: (_einsum(x, kernel, spec), (x, kernel)), _backward_of_rounded)


@runtime_checkable
class Tower(Protocol):
    """A vision tower."""

    def __init__(self, config: VisionConfig, *, remat: str, attention: str, rngs: nnx.Rngs):
        """Makes the parameters with `rngs`."""

    def __call__(self, prompts: Prompts, dtype: jnp.dtype, image_len: int | None = None) -> VisionFeatures:
        """The features of the prompts' patches, computed in `dtype`; an image has at most `image_len`, if given."""

    def parts(self) -> tuple[list[nnx.Module], list[nnx.Module]]:
        """The modules that run on every patch, and those that run on every merged token."""


class QwenVL(nnx.Module):
    """The model. A pytree of parameters, float32 if they are trained; `config` says how it is computed."""

    def __init__(self, config: ModelConfig, tower: type[Tower], *, rngs: nnx.Rngs):
        """Makes the parameters with `rngs`."""
        text = config.text
        self.config = config
        self.visual = tower(config.vision, remat=config.remat, attention=config.attention, rngs=rngs)
        self.embed_tokens = Embedding(text.vocab_size, text.hidden_size, axes=("vocab", "embed"), rngs=rngs)
        self.layers = decoder.make_layers(text, rngs=rngs)
        self.norm = RMSNorm(text.hidden_size, axis="norm", eps=text.rms_norm_eps, zero_centered=text.zero_centered_norm)
        head = (text.hidden_size, text.vocab_size)
        tied = text.tie_word_embeddings
        self.lm_head = None if tied else Linear(*head, axes=("embed", "vocab"), use_bias=False, rngs=rngs)

    def features(self, prompts: Prompts, image_len: int | None = None) -> VisionFeatures:
        """Runs the vision tower; an image has at most `image_len` patches, if given."""
        return self.visual(prompts, self._dtype, image_len)

    def prefill(self, prompts: Prompts, features: VisionFeatures | None = None) -> Prefix:
        """Runs the decoder over the prompts alone, and before it the vision tower, unless it gets its features."""
        x, deepstack = self._embed_prompts(prompts, features)
        rope = self._rope(prompts.position_ids)
        x, memory = decoder.prefill(
            self.layers, x, rope, deepstack, prompts.prompt_len, attention=self.config.attention
        )
        return Prefix(
            layers=(memory,),
            prompt_len=prompts.prompt_len,
            next_position=prompts.next_position,
            last_hidden=self.norm(_at(x, prompts.prompt_len - 1)),
        )

    def forward_stream(
        self,
        tokens: Prompts,
        group: Int32[Array, "B T"],
        branch: Int32[Array, "B T"],
        *,
        num_branches: int,
        most_branches: int,
        group_len: int,
        image_len: int,
    ) -> Float[Array, "B T D"]:
        """Runs prompts and branches that lie behind each other in streams.

        Args:
            tokens: the streams' tokens and the images of their prompts.
            group: as in structs.Streams.
            branch: as in structs.Streams.
            num_branches: the most of a group.
            most_branches: the most of a stream.
            group_len: the most tokens of a group.
            image_len: the most patches of an image.

        Returns:
            The hidden states after the final norm.
        """
        x, deepstack = self._embed_prompts(tokens, self.features(tokens, image_len))
        x = decoder.forward_stream(
            self.layers,
            x,
            self._rope(tokens.position_ids),
            deepstack,
            PackedMask.make(group, branch, num_branches=num_branches, group_len=group_len),
            num_taps=self.config.text.linear_conv_kernel_dim,
            most_branches=most_branches,
            remat=self.config.remat,
            attention=self.config.attention,
        )
        return self.norm(x)

    def extend(
        self,
        token_ids: Int32[Array, "rows J new"],
        *,
        stacks: Sequence[decoder.Layers],
        prefix: Prefix,
        cache: BranchCache,
        slot: Int32[Array, ""],
        offset: Int32[Array, "rows J new"],
        own_visible: Bool[Array, "#rows #J #new #slots"],
        num_new: Int32[Array, "rows J"] | None = None,
        home: Home | None = None,
    ) -> tuple[Float[Array, "rows J new D"], BranchCache]:
        """Runs new tokens of each branch on top of a prefix and a cache.

        Args:
            token_ids: the new tokens.
            stacks: the layers, from `in_stacks`.
            prefix: the prompts, from `in_stacks`.
            cache: the memory of the branches' earlier tokens.
            slot: the slot of the first new token in the cache.
            offset: positions of the new tokens, counted from the prompt's end.
            own_visible: the slots that each new token sees.
            num_new: of the new tokens of each branch, the first that count; None: there is one, which does.
            home: if the rows are moved branches, with J = 1; None: they are the prompts.

        Returns:
            The hidden states after the final norm, and the cache with the new tokens.
        """
        batch = token_ids.shape[0]
        x = self.embed_tokens(token_ids.reshape(batch, -1), self._dtype)
        first = prefix.next_position if home is None else prefix.next_position[home.place // home.num_branches]
        rope = self._rope(self._text_positions(first, offset.reshape(batch, -1)))
        grown = []
        for layers, prompt, own in zip(stacks, prefix.layers, cache.layers, strict=True):
            x, memory = decoder.extend(
                layers,
                x,
                rope,
                prompt=prompt,
                own=own,
                prompt_len=prefix.prompt_len,
                num_branches=token_ids.shape[1],
                slot=slot,
                own_visible=own_visible,
                attention=self.config.attention,
                num_new=num_new,
                home=home,
            )
            grown.append(memory)
        return self.norm(x).reshape(*token_ids.shape, -1), BranchCache(tuple(grown))

    def in_stacks(self, prefix: Prefix) -> tuple[list[decoder.Layers], Prefix]:
        """The layers and a prefix as stacks that `extend` scans: one of all layers, or one for each of them.

        XLA for CPUs and GPUs copies a layer and its keys out of their stacks for every token. On a CPU, if a layer does
        not fit the cache, that takes a third of the token's time; on a GPU, half.
        """
        text = self.config.text
        layer_bytes = sum(leaf.nbytes for leaf in jax.tree.leaves(self.layers)) / text.num_hidden_layers
        if self.config.scan_decoding or layer_bytes < _CACHED:
            return [self.layers], prefix

        def alone(stack: Any, place: int) -> Any:
            return jax.tree.map(lambda x: x[place : place + 1], stack)

        (memory,) = prefix.layers
        layers, memories, passed = [], [], collections.Counter[str]()
        for kind in text.period * (text.num_hidden_layers // len(text.period)):
            layers.append(alone(decoder.stack_of(self.layers, kind), passed[kind]))
            memories.append({kind: alone(memory[kind], passed[kind])})
            passed[kind] += 1
        return layers, dataclasses.replace(prefix, layers=tuple(memories))

    def for_sampling(self, weights: SamplerWeights = "auto") -> QwenVL:
        """The model that decoding reads: without the tower, in the compute type, and on shards whole along fsdp.

        Adapters are added to the kernels that they lie beside. With weights "int8" the kernels of the layers are int8.
        Its embeddings, head and norms are not.
        """
        model = copy.copy(self)
        model.visual = None  # type: ignore[assignment]
        model = merged(jax.tree.map(lambda x: x.astype(self._dtype), gather(model, self._dtype)))
        if weights == "int8":
            model.layers = in_int8(model.layers)
        return model

    @property
    def head(self) -> Embedding | Linear:
        """The layer that makes logits: the embedding table, if they are tied."""
        return self.embed_tokens if self.lm_head is None else self.lm_head

    def whole_head(self) -> Embedding | Linear:
        """The head whole along fsdp, for several calls of `logits`."""
        return gather(self.head, self._dtype)

    @property
    def _dtype(self) -> jnp.dtype:
        return jnp.dtype(self.config.compute_dtype)

    def _rope(self, position_ids: Int32[Array, "B 3 T"]) -> Rope:
        return mrope(position_ids, self.config.text, self._dtype)

    def _embed_prompts(
        self, prompts: Prompts, features: VisionFeatures | None = None
    ) -> tuple[Float[Array, "B P D"], Float[Array, "E B P D"]]:
        """Embeds the tokens of prompts, with vision features in the places of images; None: those of the tower.

        Returns:
            The embeddings, and the deepstack features, which are 0 at text. Features get to their places by a gather,
            never by a scatter.
        """
        text = self.embed_tokens(prompts.token_ids, self._dtype)
        features = self.features(prompts) if features is None else features
        rows = jnp.maximum(prompts.vision_index, 0)[..., None]
        is_vision = prompts.vision_index[..., None] >= 0
        x = jnp.where(is_vision, jnp.take_along_axis(features.merged, rows, axis=1), text)
        deepstack = jnp.take_along_axis(features.deepstack, rows[None], axis=2)
        return x, jnp.where(is_vision[None], deepstack, jnp.zeros_like(deepstack))

    def _text_positions(self, next_position: Int32[Array, "B"], offset: Int32[Array, "#B T"]) -> Int32[Array, "B 3 T"]:
        """Positions of text, which counts on by one on all three axes."""
        positions = next_position[:, None] + offset
        return jnp.broadcast_to(positions[:, None], (positions.shape[0], 3, positions.shape[1]))


def _at(x: Float[Array, "B T D"], index: Int32[Array, "B"]) -> Float[Array, "B D"]:
    """Takes one token of each row."""
    return jnp.take_along_axis(x, index[:, None, None], axis=1)[:, 0]
