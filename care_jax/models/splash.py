"""Full sequences on a TPU: jax's splash attention kernel, whose scores never leave the chip's own memory.

Three things together say which keys a token sees: a mask, known when the program is compiled, of which the blocks that
are empty are skipped; segment ids, known when it runs; and, in streams, channels that tell branches apart. A stream
with a prompt of two tokens and branches of two and one, then a prompt of one with a branch of one:

    mask               segment ids (groups)    branches, by the channels
    1 0 0 0 0 0 0      1 1 1 1 1 2 2           0 0 1 1 2 0 1
    1 1 0 0 0 0 0
    1 1 1 0 0 0 0                              a key is seen from its own branch,
    1 1 1 1 0 0 0                              and that of a prompt, branch 0,
    1 1 1 1 1 0 0                              from all branches of its group
    1 1 1 1 1 1 0
    1 1 1 1 1 1 1
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental.pallas.ops.tpu.splash_attention import (
    BlockSizes,
    Mask,
    MultiHeadMask,
    SegmentIds,
    make_splash_mha,
)
from jaxtyping import Float, Int32

from care_jax.structs import Array

_LANES = 128  # a block is a multiple of it
_HIDDEN = -(2.0**14)  # added to the score of a key that is not seen; exp(_HIDDEN) is 0
_LARGEST_BLOCK = 512  # with 1024 the gradient needs more of a v5p's vector memory than there is


@dataclasses.dataclass(frozen=True, eq=False)
class _LazyMask(Mask):
    """A mask that is computed a block at a time; the kernel stores the blocks that are neither full nor empty."""

    num_queries: int
    num_keys: int
    visible: Callable[[np.ndarray, np.ndarray], np.ndarray]  # of indices [queries, 1] and [1, keys]

    @property
    def shape(self) -> tuple[int, int]:
        return self.num_queries, self.num_keys

    def __getitem__(self, index: tuple[slice, slice]) -> np.ndarray:
        queries, keys = (np.arange(part.start, part.stop) for part in index)
        return self.visible(queries[:, None], keys[None])


def causal_attention(
    q: Float[Array, "B P H C"], k: Float[Array, "B P N C"], v: Float[Array, "B P N C"], *, interpret: bool
) -> Float[Array, "B P H C"]:
    """Computes `attention.causal_attention`."""
    return _splash(q, k, v, None, lambda query, key: key <= query, interpret)


def packed_attention(
    q: Float[Array, "B T H C"],
    k: Float[Array, "B T N C"],
    v: Float[Array, "B T N C"],
    group: Int32[Array, "B T"],
    branch: Int32[Array, "B T"],
    *,
    num_branches: int,
    interpret: bool,
) -> Float[Array, "B T H C"]:
    """Computes `attention.packed_attention`.

    Segment ids can only ask whether two ids are equal, and all branches see their prompt. So channels behind those of
    queries and keys tell branches apart: two for each bit of the branch's number, whose product is 0 where the bits are
    the same or the key is the prompt's, else so negative that nothing is left of the key.
    """
    bits = jnp.arange(num_branches.bit_length(), dtype=jnp.int32)[None, None]

    def bits_of(branch: Array) -> Array:
        is_set = ((branch[..., None] >> bits) & 1).astype(q.dtype)
        return jnp.concatenate([is_set, 1 - is_set], axis=-1)[:, :, None]

    hidden = jnp.asarray(_HIDDEN, q.dtype) * (1 - bits_of(branch))
    shown = bits_of(branch) * jnp.asarray(branch > 0, k.dtype)[..., None, None]
    ids = SegmentIds(q=jnp.asarray(group), kv=jnp.asarray(group))
    return _splash(q, k, v, ids, lambda query, key: key <= query, interpret, (hidden, shown))


def segment_attention(
    q: Float[Array, "B I H C"],
    k: Float[Array, "B I H C"],
    v: Float[Array, "B I H C"],
    segment_ids: Int32[Array, "B I"],
    *,
    segment_len: int | None,
    interpret: bool,
) -> Float[Array, "B I H C"]:
    """Computes `attention.segment_attention`; segments are contiguous and of at most `segment_len` tokens."""
    block = _block(q.shape[1])
    reach = -(-(segment_len or q.shape[1]) // block)  # blocks to each side

    def visible(query: np.ndarray, key: np.ndarray) -> np.ndarray:
        return np.abs(query // block - key // block) <= reach

    ids = jnp.asarray(segment_ids)
    return _splash(q, k, v, SegmentIds(q=ids, kv=ids), visible, interpret)


def _block(length: int) -> int:
    """The block size that cuts a sequence into the fewest blocks, and of these sizes the one that pads it least."""
    num_blocks = -(-length // _LARGEST_BLOCK)
    return -(-length // num_blocks // _LANES) * _LANES


def _splash(
    q: Float[Array, "B queries H C"],
    k: Float[Array, "B Z N C"],
    v: Float[Array, "B Z N C"],
    ids: SegmentIds | None,
    visible: Callable[[np.ndarray, np.ndarray], np.ndarray],
    interpret: bool,
    more_channels: tuple[Float[Array, "B queries 1 more"], Float[Array, "B Z 1 more"]] | None = None,
) -> Float[Array, "B queries H C"]:
    """Calls the kernel; `ids` are [B, queries] and [B, keys], `more_channels` those of all queries and keys.

    Sequences are padded to whole blocks with tokens of segment 0. Their rows are cut off, and no real token sees them:
    they are to its right or in another segment.
    """
    num_queries, block_q, block_kv = q.shape[1], _block(q.shape[1]), _block(k.shape[1])

    def pad(x: Array, block: int) -> jax.Array:
        return jnp.pad(x, ((0, 0), (0, -x.shape[1] % block)) + ((0, 0),) * (x.ndim - 2))

    def by_head(x: Array, block: int) -> Array:
        return jnp.swapaxes(pad(x, block), 1, 2)

    q = (q.astype(jnp.float32) * q.shape[-1] ** -0.5).astype(q.dtype)
    if more_channels is not None:
        q, k = (
            jnp.concatenate([x, jnp.broadcast_to(more, (*x.shape[:-1], more.shape[-1]))], axis=-1)
            for x, more in zip((q, k), more_channels, strict=True)
        )
    q, k, v = by_head(q, block_q), by_head(k, block_kv), by_head(v, block_kv)
    kernel = make_splash_mha(
        MultiHeadMask([_LazyMask(q.shape[2], k.shape[2], visible)] * q.shape[1]),
        block_sizes=BlockSizes(
            block_q=block_q,
            block_kv=block_kv,
            block_q_dkv=block_q,
            block_kv_dkv=block_kv,
            block_q_dq=block_q,
            block_kv_dq=block_kv,
        ),
        head_shards=1,
        q_seq_shards=1,
        interpret=interpret,
    )
    if ids is not None:
        ids = SegmentIds(q=pad(ids.q, block_q), kv=pad(ids.kv, block_kv))
    return jnp.swapaxes(jax.vmap(kernel)(q, k, v, ids), 1, 2)[:, :num_queries]
