"""Drawing ids from their probabilities, each branch with a random key of its own."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Float32, Int32

from care_jax.parallel.collectives import num_shards, part_start, sum_parts
from care_jax.structs import Array

_BLOCK = 512  # ids


def draw(key: Array, number: Int32[Array, "B J"], probs: Float32[Array, "B J part"]) -> Int32[Array, "B J"]:
    """Draws an id for each branch from probs, with a key of its own made from its number [B, J].

    A block of ids is drawn first, then an id in it: two random numbers a branch, where Gumbel noise takes V. One number
    for both would lose ids of the tail, whose probabilities are smaller than the spacing of float32 numbers below 1.
    On shards a device has a part of the vocabulary: it tells the others the sums of its blocks, and who has the one
    that was drawn tells that block.
    """
    keys = jax.vmap(jax.vmap(lambda n: jax.random.fold_in(key, n)))(number)
    at = jax.vmap(jax.vmap(lambda key: jax.random.uniform(key, (2,))))(keys)
    size, parts = probs.shape[-1], num_shards("tensor")
    first, offset = jnp.divmod(jnp.int32(part_start(size)), _BLOCK)  # the part may begin and end within a block
    rows, num_blocks = probs.shape[:-1], -(-size * parts // _BLOCK)
    num_own = -(-(size + (_BLOCK if parts > 1 else 0)) // _BLOCK)
    own = jnp.zeros((*rows, num_own * _BLOCK), probs.dtype)
    own = jax.lax.dynamic_update_slice(own, probs, (0, 0, offset)).reshape(*rows, num_own, _BLOCK)
    sums = jnp.zeros((*rows, num_blocks + num_own), probs.dtype)
    sums = jax.lax.dynamic_update_slice(sums, jnp.sum(own, axis=-1), (0, 0, first))
    block = _find(jnp.asarray(sum_parts(sums))[..., :num_blocks], at[..., 0])
    mine = block - first
    drawn = jnp.take_along_axis(own, jnp.clip(mine, 0, num_own - 1)[..., None, None], axis=-2)[..., 0, :]
    drawn = jnp.where(((mine >= 0) & (mine < num_own))[..., None], drawn, 0.0)
    return block * _BLOCK + _find(jnp.asarray(sum_parts(drawn)), at[..., 1])


def _find(weights: Array, at: Array) -> Array:
    """Index at which a share `at` [...] in [0, 1) of the sum of weights [..., n] is reached; never at a weight of 0."""
    upto = jnp.cumsum(weights, axis=-1)
    has_weight = weights > 0  # rounded sums may rise where there is none
    reached = (upto > at[..., None] * upto[..., -1:]) & has_weight
    last = weights.shape[-1] - 1 - jnp.argmax(has_weight[..., ::-1], axis=-1)
    index = jnp.where(jnp.any(reached, axis=-1), jnp.argmax(reached, axis=-1), last)
    return index.astype(jnp.int32)  # a share that is rounded up to all of it is past the last
