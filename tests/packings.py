"""Packings of test batches."""

from __future__ import annotations

import numpy as np

from care_jax.stages.packing import PromptLengths, StreamSizes, pack
from care_jax.structs import Array, Packing, Prompts


def make_packing(
    prompts: Prompts, row_len: Array, *, padded_len: int, stream_len: int, shards: int = 1, parts: int = 1
) -> Packing:
    """Streams of the rows whose length is not 0; `padded_len` is R."""
    sizes = StreamSizes.make(
        num_prompts=row_len.shape[0],
        num_rows=row_len.shape[1],
        bucket=(prompts.token_ids.shape[1], prompts.image_ids.shape[1]),
        row_len=padded_len,
        stream_len=stream_len,
        shards=shards,
        parts=parts,
    )
    return pack(sizes, PromptLengths.of(prompts), np.asarray(row_len))
