"""The memory of a layer kept between calls, one struct a kind of layer: the prompt's once, each branch's own. By head.

They are one stack of all L layers of their kind, or stacks of fewer layers that follow each other (QwenVL.in_stacks).
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from flax import struct
from jaxtyping import Float, Float32, Int32, Shaped

from care_jax.parallel.sharding import BRANCH_KEYS, KEYS, ROWS
from care_jax.structs import Array


@struct.dataclass
class KeyValues:
    """Keys and values of full attention: of a prompt's tokens [B], or of branches' own by slot [rows J]."""

    k: Float[Array, "L ... N _slots C"]
    v: Float[Array, "L ... N _slots C"]


@struct.dataclass
class Recurrence:
    """The state of linear attention behind a prompt or a branch: its convolution and its delta rule go on from it."""

    conv: Float[Array, "... N _before E"]  # the last inputs of each key head's channels
    state: Float32[Array, "... N Q C Cv"]


Memory = dict[str, KeyValues | Recurrence]  # by kind of layer, those of config.json (TextConfig.period)


@struct.dataclass
class Prefix:
    """A prefilled prompt; any number of branches continue from it."""

    layers: tuple[Memory, ...]  # one per stack of layers
    prompt_len: Int32[Array, "B"]
    next_position: Int32[Array, "B"]
    last_hidden: Float[Array, "B D"]  # after the final norm, at the last prompt token


@struct.dataclass
class BranchCache:
    """The memory of the branches."""

    layers: tuple[Memory, ...]  # one per stack of layers


@struct.dataclass
class Home:
    """The places of moved branches among all B * J; the keys of their prompts stay where they are."""

    place: Int32[Array, "n"]
    num_branches: int = struct.field(pytree_node=False)  # J

    def spread(self, x: Shaped[Array, "n 1 *rest"], num_prompts: int) -> Shaped[Array, "B J *rest"]:
        """Puts what the branches have in their places; 0 elsewhere."""
        everyone = jnp.zeros((num_prompts * self.num_branches, *x.shape[2:]), x.dtype)
        return everyone.at[self.place].set(x[:, 0]).reshape(num_prompts, self.num_branches, *x.shape[2:])

    def collect(self, x: Shaped[Array, "B J *rest"]) -> Shaped[Array, "n 1 *rest"]:
        """Undoes `spread`."""
        return x.reshape(-1, *x.shape[2:])[self.place][:, None]


def prompt_scores(
    q: Float[Array, "rows J new N Q C"],
    keys: Float[Array, "B N P C"],
    *,
    prompt_len: Int32[Array, "B"],
    masked: float,
    home: Home | None,
) -> Float32[Array, "rows J N Q new P"]:
    """Scores of branches on the keys of their prompts; `masked` at padding. Rows are prompts, or what `home` moved."""
    everyone = q if home is None else home.spread(q, keys.shape[0])
    scores = jnp.einsum("bjtnqc,bnpc->bjnqtp", everyone, keys, preferred_element_type=jnp.float32) * q.shape[-1] ** -0.5
    in_prompt = jnp.arange(keys.shape[2])[None] < prompt_len[:, None]
    scores = jnp.where(in_prompt[:, None, None, None, None], scores, masked)
    return scores if home is None else home.collect(scores)


def prompt_values(
    weights: Float[Array, "rows J N Q new P"], values: Float[Array, "B N P C"], *, home: Home | None
) -> Float[Array, "rows J N Q new C"]:
    """Sums of the values of branches' prompts with their weights."""
    everyone = weights if home is None else home.spread(weights, values.shape[0])
    sums = jnp.einsum("bjnqtp,bnpc->bjnqtc", everyone, values)
    return sums if home is None else home.collect(sums)


# PartitionSpecs in the places of the arrays.
_prefix: dict[str, Any] = {"layers": KEYS, "prompt_len": ROWS, "next_position": ROWS, "last_hidden": ROWS}
_branches: dict[str, Any] = {"layers": BRANCH_KEYS}
PREFIX_SPECS, BRANCH_CACHE_SPECS = Prefix(**_prefix), BranchCache(**_branches)


def empty_branch_cache(prefix: Prefix, num_branches: int, num_slots: int) -> BranchCache:
    """The memory of `num_branches` branches without tokens of their own, and room for `num_slots` each.

    A recurrence goes on from the prompt's; keys and values are zeros.
    """

    def zeros(stack: Array) -> Array:
        layers, batch, heads, _, channels = stack.shape
        return jnp.zeros((layers, batch, num_branches, heads, num_slots, channels), stack.dtype)

    def repeated(stack: Array) -> Array:
        return jnp.broadcast_to(stack[:, :, None], (*stack.shape[:2], num_branches, *stack.shape[2:]))

    def start(memory: KeyValues | Recurrence) -> KeyValues | Recurrence:
        return jax.tree.map(zeros if isinstance(memory, KeyValues) else repeated, memory)

    return BranchCache(tuple({kind: start(memory) for kind, memory in stack.items()} for stack in prefix.layers))
