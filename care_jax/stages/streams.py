"""Streams on the devices: what packing.py has placed, taken from the batch as it lies, one stream at a time."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
from flax import struct
from jaxtyping import Float32, Int32

from care_jax.parallel.collectives import most
from care_jax.stages.packing import shorter_len
from care_jax.structs import Array, Prompts, Streams

Carried = TypeVar("Carried")


@struct.dataclass
class Stream:
    """The tokens of one stream, as a batch of 1."""

    tokens: Prompts
    group: Int32[Array, "1 T"]
    branch: Int32[Array, "1 T"]
    # Of the rows' tokens, first to last; `num_targets` of them count.
    predictor: Int32[Array, "T"]  # place of the state that predicts each
    target: Int32[Array, "T"]  # its own place
    token_ids: Int32[Array, "T"]
    row_place: Int32[Array, "T"]  # its place in the rows [B * J * R], which is behind them if it does not count
    num_targets: Int32[Array, ""]

    def put_in_rows(self, rows: Float32[Array, "B J R"], values: Float32[Array, "1 1 T"]) -> Float32[Array, "B J R"]:
        """`rows` with the values of this stream's tokens in their places."""
        return jnp.reshape(rows, -1).at[self.row_place].set(jnp.reshape(values, -1), mode="drop").reshape(rows.shape)


def _with_length(step: Callable, length: int, index: Array, carried: Any) -> Any:
    return step(index, length, carried)


@struct.dataclass
class Packed:
    """The groups that a shard computes, and the places of their prompts and rows in its streams."""

    prompts: Prompts
    token_ids: Int32[Array, "B J R"]
    streams: Streams

    def num_longer(self, length: int) -> Int32[Array, ""]:
        """Streams that hold more than `length` tokens; they come first."""
        return ((jnp.asarray(self.streams.group) > 0).sum(axis=-1) > length).sum(dtype=jnp.int32)

    def for_each(self, step: Callable[[Array, int, Carried], Carried], start: Carried) -> Carried:
        """Runs step(index, length, carried) for each stream that any shard uses, the longest first.

        `length` has room for the stream's tokens on all shards: all T, or `shorter_len` of them.
        """
        whole = self.streams.group.shape[-1]
        shorter, carried = shorter_len(whole), start
        num_long, num_used = most(self.num_longer(shorter)), most(self.num_longer(0))
        for first, end, length in ((0, num_long, whole), (num_long, num_used, shorter)):
            carried = jax.lax.fori_loop(first, end, functools.partial(_with_length, step, length), carried)
        return carried

    def stream(self, index: Int32[Array, ""] | int, *, merge_unit: int, length: int | None = None) -> Stream:
        """Takes the first `length` tokens of stream `index` from the batch; None: all.

        `merge_unit` is the number of patches of a merged token.
        """
        prompts = self.prompts
        (batch, num_rows, row_len), prompt_len = self.token_ids.shape, prompts.token_ids.shape[1]
        patch_len, first_row = prompts.image_ids.shape[1], batch * prompt_len
        taken = jax.tree.map(
            lambda x: jax.lax.dynamic_index_in_dim(jnp.asarray(x), index, keepdims=False), self.streams
        )
        names = ("source", "group", "branch", "target", "predictor")
        taken = dataclasses.replace(taken, **{name: getattr(taken, name)[:length] for name in names})
        source = jnp.maximum(taken.source, 0)
        is_row = source >= first_row
        row, offset = jnp.divmod(jnp.maximum(source - first_row, 0), row_len)
        of_prompt = jnp.minimum(source, first_row - 1)
        prompt = jnp.where(is_row, row // num_rows, of_prompt // prompt_len)

        patch = jnp.maximum(taken.patch_source, 0)
        owner, is_patch = patch // patch_len, taken.patch_source >= 0
        # Images of different prompts, or of two copies of one, have the same ids in the batch, but not in a stream.
        piece = jnp.cumsum(is_patch & (patch % patch_len == 0), dtype=jnp.int32)
        window_ids, image_ids = (
            jnp.where(is_patch, piece * (patch_len + 1) + ids.reshape(-1)[patch], 0)
            for ids in (jnp.asarray(prompts.window_ids), jnp.asarray(prompts.image_ids))
        )
        places = jnp.arange(len(patch), dtype=jnp.int32)
        first_patch = jnp.full(batch, len(patch), jnp.int32).at[owner].min(jnp.where(is_patch, places, len(patch)))
        vision_index = jnp.asarray(prompts.vision_index).reshape(-1)[of_prompt]
        has_vision = ~is_row & (vision_index >= 0) & (taken.source >= 0)

        def patches_of(table: Array) -> Array:
            return jnp.asarray(table).reshape(batch * patch_len, *table.shape[2:])[patch][None]

        in_prompt = jnp.moveaxis(jnp.asarray(prompts.position_ids), 1, 2).reshape(-1, 3)[of_prompt]
        in_row = (jnp.asarray(prompts.next_position)[prompt] + offset)[:, None]
        all_ids = [jnp.asarray(ids).reshape(-1) for ids in (prompts.token_ids, self.token_ids)]
        stream_ids = jnp.concatenate(all_ids)[source]
        counts = jnp.arange(len(source), dtype=jnp.int32) < taken.num_targets
        return Stream(
            tokens=Prompts(
                token_ids=stream_ids[None],
                prompt_len=jnp.full(1, len(source), jnp.int32),
                position_ids=jnp.where(is_row[:, None], in_row, in_prompt).T[None],
                next_position=jnp.zeros(1, jnp.int32),
                vision_index=jnp.where(has_vision, vision_index + first_patch[prompt] // merge_unit, -1)[None],
                patches=patches_of(prompts.patches),
                pixel_norm=jnp.asarray(prompts.pixel_norm)[:1],  # that of every prompt
                patch_position_ids=patches_of(prompts.patch_position_ids),
                window_ids=window_ids[None],
                image_ids=image_ids[None],
                grid_index=patches_of(prompts.grid_index),
                grid_weights=patches_of(prompts.grid_weights),
            ),
            group=taken.group[None],
            branch=taken.branch[None],
            predictor=taken.predictor,
            target=taken.target,
            token_ids=stream_ids[taken.target],
            row_place=jnp.where(counts, (source - first_row)[taken.target], batch * num_rows * row_len),
            num_targets=taken.num_targets,
        )
