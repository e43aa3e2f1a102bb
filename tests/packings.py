"""Packings of test batches."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from care_jax.models import QwenVL
from care_jax.stages.packing import PromptLengths, StreamSizes, pack
from care_jax.stages.score import score_stream
from care_jax.stages.streams import Packed
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


def branch_logprobs(model: QwenVL, prompts: Prompts, token_ids: Array, packing: Packing) -> jax.Array:
    """Log-probs [B, J, R] of packed branches by the model alone: temperature 1, nothing forbidden."""
    packed, nothing = Packed(prompts, token_ids, packing.streams), jnp.zeros(model.config.text.vocab_size, bool)
    logprobs = jnp.zeros(token_ids.shape, jnp.float32)
    for index in range(packing.streams.num_targets.shape[0]):
        scored = score_stream(model, packed, index, nothing, temperature=1.0, chunk=16)
        logprobs = scored.stream.put_in_rows(logprobs, scored.tokens.logprobs)
    return logprobs
