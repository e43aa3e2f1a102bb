"""Keys and values kept between calls: the prompt's once, each branch's own. By head, as the products read them.

Of all L layers as one stack, or of stacks of fewer that follow each other (QwenVL.in_stacks).
"""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
from flax import struct

from care_jax.parallel.sharding import BRANCH_KEYS, KEYS, ROWS
from care_jax.structs import Array


@struct.dataclass
class Prefix:
    """A prefilled prompt; any number of branches continue from it."""

    k: tuple[Array, ...]  # of each stack [L, B, N, P, C]
    v: tuple[Array, ...]
    prompt_len: Array  # [B] int32
    next_position: Array  # [B] int32
    last_hidden: Array  # [B, D], after the final norm, at the last prompt token


@struct.dataclass
class BranchCache:
    """Keys and values of the branches' own tokens, by slot."""

    k: tuple[Array, ...]  # of each stack [L, B, J, N, R, C]
    v: tuple[Array, ...]


# How they are divided: PartitionSpecs in the arrays' places.
_prefix: dict[str, Any] = {"k": KEYS, "v": KEYS, "prompt_len": ROWS, "next_position": ROWS, "last_hidden": ROWS}
_branches: dict[str, Any] = {"k": BRANCH_KEYS, "v": BRANCH_KEYS}
PREFIX_SPECS, BRANCH_CACHE_SPECS = Prefix(**_prefix), BranchCache(**_branches)


def empty_branch_cache(prefix: Prefix, num_branches: int, num_slots: int) -> BranchCache:
    """Zeros for `num_branches` branches of `num_slots` tokens each, shaped after the prefix."""

    def zeros(stack: Array) -> Array:
        layers, batch, heads, _, channels = stack.shape
        return jnp.zeros((layers, batch, num_branches, heads, num_slots, channels), stack.dtype)

    return BranchCache(k=tuple(map(zeros, prefix.k)), v=tuple(map(zeros, prefix.v)))
