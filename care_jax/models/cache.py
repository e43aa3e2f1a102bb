"""Keys and values kept between calls: the prompt's once, each branch's own. By head, as the products read them.

They are one stack of all L layers, or stacks of fewer layers that follow each other (QwenVL.in_stacks).
"""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
from flax import struct
from jaxtyping import Float, Int32

from care_jax.parallel.sharding import BRANCH_KEYS, KEYS, ROWS
from care_jax.structs import Array


@struct.dataclass
class Prefix:
    """A prefilled prompt; any number of branches continue from it."""

    k: tuple[Float[Array, "L B N P C"], ...]  # one per stack of layers
    v: tuple[Float[Array, "L B N P C"], ...]
    prompt_len: Int32[Array, "B"]
    next_position: Int32[Array, "B"]
    last_hidden: Float[Array, "B D"]  # after the final norm, at the last prompt token


@struct.dataclass
class BranchCache:
    """Keys and values of the branches' own tokens, by slot."""

    k: tuple[Float[Array, "L B J N slots C"], ...]  # one per stack of layers
    v: tuple[Float[Array, "L B J N slots C"], ...]


# PartitionSpecs in the places of the arrays.
_prefix: dict[str, Any] = {"k": KEYS, "v": KEYS, "prompt_len": ROWS, "next_position": ROWS, "last_hidden": ROWS}
_branches: dict[str, Any] = {"k": BRANCH_KEYS, "v": BRANCH_KEYS}
PREFIX_SPECS, BRANCH_CACHE_SPECS = Prefix(**_prefix), BranchCache(**_branches)


def empty_branch_cache(prefix: Prefix, num_branches: int, num_slots: int) -> BranchCache:
    """Zeros for `num_branches` branches of `num_slots` tokens each, shaped after the prefix."""

    def zeros(stack: Array) -> Array:
        layers, batch, heads, _, channels = stack.shape
        return jnp.zeros((layers, batch, num_branches, heads, num_slots, channels), stack.dtype)

    return BranchCache(k=tuple(map(zeros, prefix.k)), v=tuple(map(zeros, prefix.v)))
