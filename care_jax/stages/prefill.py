"""Prefill: a shard's prompts in chunks, the shortest first, each chunk at the smallest of a few static sizes.

The prompts of a batch are padded to its longest. Sorted by length, most of them lie in chunks that need less (x tokens,
- padding that is computed, . padding that is not):

    xx--....
    xxxx....
    xxxxx-..
    xxxxxx..

So it is with their patches in the vision tower. All shards take turns together, so a chunk has the size that its
largest prompt needs on any shard.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Int32

from care_jax.models import QwenVL
from care_jax.models.cache import KeyValues, Memory, Prefix
from care_jax.parallel.collectives import most, num_shards
from care_jax.stages.packing import Bucket, PromptLengths
from care_jax.structs import Array, Prompts, VisionFeatures

_CHUNKS = 4  # of a shard; each gathers all parameters
_SIZES = 4  # of a bucket; each is compiled
_UNIT = 128  # tokens, of which sizes are multiples; a bucket that is no longer has one
_OF_TOKENS = ("token_ids", "position_ids", "vision_index")  # tables of Prompts that have tokens on the last axis
_OF_PATCHES = ("patches", "patch_position_ids", "window_ids", "image_ids", "grid_index", "grid_weights")


class Chunks(NamedTuple):
    """The chunks of a shard, the shortest first. If they do not come out even, the last one repeats its last prompt."""

    prompts: Int32[Array, "chunks prompts"]
    tokens: Int32[Array, "chunks"]  # which of ChunkSizes.tokens each needs
    patches: Int32[Array, "chunks"]


class ChunkSizes(NamedTuple):
    """The lengths at which a chunk can be computed, ascending."""

    tokens: list[int]
    patches: list[int]

    @classmethod
    def of(cls, bucket: Bucket, *, merge_unit: int, tensor: int) -> ChunkSizes:
        """The sizes for prompts of a bucket, on a mesh whose `tensor` divides the tokens of images."""
        tokens, patches = bucket
        return cls(_sizes(tokens, _UNIT), _sizes(patches, merge_unit * tensor * -(-_UNIT // tensor)))

    def divide(self, tokens: Int32[Array, "B"], patches: Int32[Array, "B"]) -> Chunks:
        """Sorts the prompts of a shard, which have so many tokens and patches, by size into chunks."""
        of_tokens, of_patches = _first_that_holds(self.tokens, tokens), _first_that_holds(self.patches, patches)
        chunk_len = len(of_tokens) if len(self.tokens) == 1 else -(-len(of_tokens) // _CHUNKS)
        order = jnp.argsort(of_tokens * len(self.patches) + of_patches, stable=True).astype(jnp.int32)
        order = jnp.pad(order, (0, -len(order) % chunk_len), mode="edge").reshape(-1, chunk_len)
        return Chunks(order, of_tokens[order].max(axis=1), of_patches[order].max(axis=1))

    def computed(self, prompts: PromptLengths, shards: int) -> list[tuple[int, Bucket]]:
        """The prompts of each chunk of a shard, and the tokens and patches that `prefill` computes for each of them.

        `prompts` are those of all shards.
        """
        tokens, patches = (jnp.asarray(lengths, jnp.int32).reshape(shards, -1) for lengths in prompts)
        chunks = jax.vmap(self.divide)(tokens, patches)
        sizes = zip(chunks.tokens.max(axis=0).tolist(), chunks.patches.max(axis=0).tolist(), strict=True)
        return [(chunks.prompts.shape[2], (self.tokens[first], self.patches[second])) for first, second in sizes]


def _sizes(padded: int, unit: int) -> list[int]:
    """Fourths of a padded length, rounded up to multiples of `unit`."""
    return sorted({min(-(-padded * part // (_SIZES * unit)) * unit, padded) for part in range(1, _SIZES + 1)})


def _first_that_holds(sizes: Sequence[int], lengths: Array) -> Int32[Array, "B"]:
    return jnp.sum(jnp.asarray(lengths)[:, None] > jnp.array(sizes)[None], axis=1, dtype=jnp.int32)


def prefill(model: QwenVL, prompts: Prompts) -> Prefix:
    """Computes `QwenVL.prefill` in chunks; keys and values of padding that is left out are zeros."""
    num_tokens, num_patches = prompts.token_ids.shape[1], prompts.image_ids.shape[1]
    merge_unit = model.config.vision.merge_unit
    sizes = ChunkSizes.of((num_tokens, num_patches), merge_unit=merge_unit, tensor=num_shards("tensor"))
    if len(sizes.tokens) == 1:
        return model.prefill(prompts)
    patch_len = jnp.sum(jnp.asarray(prompts.image_ids) > 0, axis=1, dtype=jnp.int32)
    chunks = sizes.divide(prompts.prompt_len, patch_len)
    of_tokens, of_patches = most(chunks.tokens), most(chunks.patches)

    def see(length: int, chunk: Prompts) -> VisionFeatures:
        features = model.features(_cut(chunk, _OF_PATCHES, (slice(None), slice(length))))
        return jax.tree.map(lambda x: _pad(x, num_patches // merge_unit, x.ndim - 2), features)

    def read(length: int, chunk: Prompts, features: VisionFeatures) -> tuple[Memory, Array]:
        prefix = model.prefill(_cut(chunk, _OF_TOKENS, (..., slice(length))), features)
        (memory,) = prefix.layers
        return {kind: _with_padding(of_kind, num_tokens) for kind, of_kind in memory.items()}, prefix.last_hidden

    def of_chunk(index: Array, carried: tuple[Memory, Array]) -> tuple[Memory, Array]:
        rows = chunks.prompts[index]
        chunk = jax.tree.map(lambda x: jnp.asarray(x)[rows], prompts)
        features = _switch(see, sizes.patches, of_patches[index], chunk)
        memory, last_hidden = _switch(read, sizes.tokens, of_tokens[index], chunk, features)
        memory = jax.tree.map(lambda whole, some: jnp.asarray(whole).at[:, rows].set(some), carried[0], memory)
        return memory, jnp.asarray(carried[1]).at[rows].set(last_hidden)

    whole = jax.eval_shape(QwenVL.prefill, model, prompts)
    start = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), (whole.layers[0], whole.last_hidden))
    memory, last_hidden = jax.lax.fori_loop(0, len(chunks.prompts), of_chunk, start)
    return Prefix((memory,), prompts.prompt_len, prompts.next_position, last_hidden)


def _switch(function: Any, sizes: Sequence[int], index: Array, *args: Any) -> Any:
    """Computes function(size, *args) for size number `index`."""
    return jax.lax.switch(index, [functools.partial(function, size) for size in sizes], *args)


def _cut(prompts: Prompts, names: Sequence[str], part: tuple) -> Any:
    """Prompts with a part of these tables: other P or I than before."""
    return dataclasses.replace(prompts, **{name: getattr(prompts, name)[part] for name in names})


def _with_padding(memory: Any, num_tokens: int) -> Any:
    """Keys and values of so many tokens, those behind the given ones zeros; a recurrence has no tokens."""
    is_keys = isinstance(memory, KeyValues)
    return jax.tree.map(lambda x: _pad(x, num_tokens, axis=3), memory) if is_keys else memory


def _pad(x: Array, length: int, axis: int) -> Array:
    return jnp.pad(x, [(0, length - x.shape[axis] if i == axis else 0) for i in range(x.ndim)])
