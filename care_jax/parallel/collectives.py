"""The communication between the shards of a program (sharding.on_shards). On one device none of these does anything.

Inside such a program every array is a device's own part. Over `fsdp` parameters are gathered just before they are used
and their gradients summed and divided again. Over `tensor` the two halves of a layer work as in Megatron-LM (arXiv
1909.08053, section 3):

    x -- to_parts -- q k v, heads, o_proj -- sum_parts -- +      forward: nothing, a sum
                                                                 backward: a sum, nothing

Each pair is written with its own backward pass: shard_map without type checks (Pallas kernels have no such types) would
transpose a sum to a sum.
"""

from __future__ import annotations

import functools
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int32, Shaped

from care_jax.parallel.sharding import AXES, PARTIAL_AXES, map_params, mesh_axes
from care_jax.structs import Array

M = TypeVar("M")


def num_shards(axis: str) -> int:
    """Size of a mesh axis inside a program that runs on shards; 1 outside of one."""
    mesh = jax.sharding.get_abstract_mesh()
    return mesh.shape[axis] if axis in mesh.manual_axes else 1


def _divided(*axes: str) -> tuple[str, ...]:
    return tuple(axis for axis in axes if num_shards(axis) > 1)


def sum_rows(tree: Any) -> Any:
    """Adds up sums over a shard's prompts to sums over all prompts. It must not be differentiated."""
    axes = _divided("data", "fsdp")
    return jax.lax.psum(tree, axes) if axes else tree


def most(x: Shaped[Array, "*shape"]) -> Shaped[Array, "*shape"]:
    """The largest of all shards' values."""
    axes = _divided(*AXES)
    return jax.lax.pmax(x, axes) if axes else x


def first_row(num_rows: int) -> Int32[Array, ""] | int:
    """The place in the whole batch of the first of this shard's `num_rows` rows."""
    axes = _divided("data", "fsdp")
    return jax.lax.axis_index(axes) * num_rows if axes else 0


def rows_at(tree: Any, order: Int32[Array, "B"]) -> Any:
    """Brings rows of the whole batch to this shard: at place i row order[i], whichever shard has it.

    `tree` has arrays [B, ...], and `order` numbers of the whole batch. On one device it is the batch's own order. Each
    shard hands out a row at a time to all, so only as many rows as there are shards exist besides the own ones.
    """
    if not _divided("data", "fsdp"):
        return tree
    shard, turn_of = jnp.divmod(jnp.asarray(order), order.shape[0])

    def exchange(turn: Array, rows: Any) -> Any:
        def take(mine: Array, row: Array) -> Array:
            offered = _of_all(jax.lax.dynamic_index_in_dim(mine, turn))
            is_here = (turn_of == turn).reshape(-1, *[1] * (mine.ndim - 1))
            return jnp.where(is_here, offered[shard], row)

        return jax.tree.map(take, tree, rows)

    return jax.lax.fori_loop(0, order.shape[0], exchange, tree)


def _of_all(row: Array) -> Array:
    """The rows [1, ...] of all shards, in the order of the batch [shards, ...]."""
    for groups in _two_steps() if num_shards("fsdp") > 1 else []:
        row = jax.lax.all_gather(row, "fsdp", axis_index_groups=groups, tiled=True)
    return jax.lax.all_gather(row, "data", tiled=True) if num_shards("data") > 1 else row


def gather(module: M, dtype: jnp.dtype) -> M:
    """`module`, or a slice of a stack of them, with its parameters whole along fsdp.

    They travel in `dtype`, the type they are used in, and their gradients in float32.
    """
    if num_shards("fsdp") == 1:
        return module

    def gathered(axes: tuple[str, ...], x: Array) -> Array:
        divided = mesh_axes(axes)
        return _gather(x, divided.index("fsdp") - len(axes), dtype) if "fsdp" in divided else x

    return map_params(gathered, module)


@functools.partial(jax.custom_vjp, nondiff_argnums=(1, 2))
def _gather(x: Array, axis: int, dtype: jnp.dtype) -> Array:
    whole = x.astype(dtype)
    for groups in _two_steps():
        whole = jax.lax.all_gather(whole, "fsdp", axis=x.ndim + axis, axis_index_groups=groups, tiled=True)
    return whole.astype(x.dtype)  # back again, so that the gradients of several uses add up in float32


def _gather_backward(axis: int, dtype: jnp.dtype, _: None, gradient: Array) -> tuple[Array]:
    return (_sum_and_divide(gradient, gradient.ndim + axis),)


def _sum_and_divide(x: Array, axis: int) -> Array:
    """This shard's part along `axis` of the sum over fsdp."""
    for groups in reversed(_two_steps()):
        x = jax.lax.psum_scatter(x, "fsdp", scatter_dimension=axis, axis_index_groups=groups, tiled=True)
    return x


def _two_steps() -> list[list[list[int]]]:
    """The shards of fsdp as a x b: groups of b neighbours, then groups of the a at the same place among neighbours.

    The TPU compiler turns one collective over all shards of a larger slice into an all-reduce, which sends twice as
    much. Two steps send as many bytes as one should: (1 - 1/b) / a and then 1 - 1/a of the whole.
    """
    num_shards = jax.lax.axis_size("fsdp")
    inner = next(size for size in range(1, num_shards + 1) if num_shards % size == 0 and size**2 >= num_shards)
    shards = np.arange(num_shards).reshape(-1, inner)
    return [groups.tolist() for groups in (shards, shards.T) if groups.shape[1] > 1]


_gather.defvjp(lambda x, axis, dtype: (_gather(x, axis, dtype), None), _gather_backward)


def sum_gradients(grads: Any) -> Any:
    """Adds up the gradients of a shard's prompts to those of all prompts, divided as the parameters are."""

    def total(axes: tuple[str, ...], x: Array) -> Array:
        divided = mesh_axes(axes)  # over fsdp `gather` has added them up
        over = [axis for axis in ("data", "fsdp") if axis not in divided]
        is_partial = "tensor" not in divided and any(axis in PARTIAL_AXES for axis in axes)
        over += ["tensor"] if is_partial else []
        present = _divided(*over)
        return jax.lax.psum(x, present) if present else x

    return map_params(total, grads)


def to_parts(x: Shaped[Array, "*shape"]) -> Shaped[Array, "*shape"]:
    """Hands an array that all of `tensor` have to the layers whose parameters are divided."""
    return _to_parts(x) if num_shards("tensor") > 1 else x


def sum_parts(x: Shaped[Array, "*shape"]) -> Shaped[Array, "*shape"]:
    """Adds up the results that each of `tensor` has from its part of the parameters; all of them get the sum."""
    return _sum_parts(x) if num_shards("tensor") > 1 else x


@jax.custom_vjp
def _to_parts(x: Array) -> Array:
    return x


_to_parts.defvjp(lambda x: (x, None), lambda _, gradient: (jax.lax.psum(gradient, "tensor"),))


@jax.custom_vjp
def _sum_parts(x: Array) -> Array:
    return jax.lax.psum(x, "tensor")


_sum_parts.defvjp(lambda x: (_sum_parts(x), None), lambda _, gradient: (gradient,))


def own_part(x: Array, axis: int) -> Array:
    """This device's part, along `axis`, of an array that all of `tensor` have."""
    parts = num_shards("tensor")
    if parts == 1:
        return x
    size = x.shape[axis] // parts
    return jax.lax.dynamic_slice_in_dim(x, jax.lax.axis_index("tensor") * size, size, axis)


def params_to_sampler(module: M, dtype: jnp.dtype) -> M:
    """From the trainer's parts of parameters to those of the sampler's mesh, in `dtype`, in which they travel.

    A device of `tensor` gives away what it has along fsdp of the others' parts, and gets what they have of its own.
    """

    def moved(axes: tuple[str, ...], x: Array) -> Array:
        divided, x = mesh_axes(axes), x.astype(dtype)
        first, own = (divided.index(axis) if axis in divided else None for axis in ("fsdp", "tensor"))
        if first is None:
            return x if own is None else own_part(x, own)
        if own is None:
            return jax.lax.all_gather(x, "tensor", axis=first, tiled=True)
        return jax.lax.all_to_all(x, "tensor", split_axis=own, concat_axis=first, tiled=True)

    return map_params(moved, module)


def rows_to_sampler(tree: Any) -> Any:
    """The rows that all of `tensor` have together."""
    return jax.tree.map(lambda x: jax.lax.all_gather(x, "tensor", tiled=True), tree)


def own_rows(tree: Any) -> Any:
    """Undoes `rows_to_sampler`."""
    return jax.tree.map(lambda x: own_part(x, axis=0), tree)


def heads_apart(x: Float[Array, "first part H *rest"]) -> Float[Array, "first T heads *rest"]:
    """Exchanges a part of the tokens (or rows) with all heads for all tokens with a part of the heads."""
    if num_shards("tensor") == 1:
        return x
    return jax.lax.all_to_all(x, "tensor", split_axis=2, concat_axis=1, tiled=True)


def heads_together(x: Float[Array, "B T heads C"]) -> Float[Array, "B part H C"]:
    """Undoes `heads_apart`."""
    if num_shards("tensor") == 1:
        return x
    return jax.lax.all_to_all(x, "tensor", split_axis=1, concat_axis=2, tiled=True)


def join_parts(x: Array, axis: int) -> Array:
    """Puts the parts that each of `tensor` has side by side along `axis`; all of them get the whole array."""
    return _join_parts(x, axis) if num_shards("tensor") > 1 else x


@functools.partial(jax.custom_vjp, nondiff_argnums=(1,))
def _join_parts(x: Array, axis: int) -> Array:
    # Parts are gathered on an axis of their own: the TPU compiler may make an axis along which it gathers the
    # outermost, and pad the others to tiles.
    parts = jnp.moveaxis(jax.lax.all_gather(x, "tensor"), 0, axis % x.ndim)
    return parts.reshape(*(-1 if i == axis % x.ndim else size for i, size in enumerate(x.shape)))


_join_parts.defvjp(lambda x, axis: (_join_parts(x, axis), None), lambda axis, _, gradient: (own_part(gradient, axis),))


def lookup(
    table: Float[Array, "rows columns"], ids: Int32[Array, "*batch"], shape: tuple[int, int], dtype: jnp.dtype
) -> Float[Array, "*batch width"]:
    """Looks up rows of an embedding table of which this device has a part; `shape` is that of the whole table.

    The table stays where it is: over fsdp the ids travel to its columns and the columns back to their prompts, over
    tensor each device looks up the ids it has. Returns the rows in `dtype`.
    """
    num_rows, num_columns = table.shape
    wanted = jnp.asarray(ids)
    if num_columns < shape[1]:
        wanted = jax.lax.all_gather(wanted, "fsdp", tiled=True)
    if num_rows < shape[0]:
        wanted = wanted - jax.lax.axis_index("tensor") * num_rows
        is_mine = (wanted >= 0) & (wanted < num_rows)
        rows = jnp.take(table, jnp.clip(wanted, 0, num_rows - 1), axis=0).astype(dtype)
        rows = jnp.asarray(sum_parts(jnp.where(is_mine[..., None], rows, jnp.zeros_like(rows))))
    else:
        rows = jnp.take(table, wanted, axis=0).astype(dtype)
    if num_columns < shape[1]:
        rows = jax.lax.all_to_all(rows, "fsdp", split_axis=0, concat_axis=rows.ndim - 1, tiled=True)
    return rows


def part_start(size: int) -> Int32[Array, ""] | int:
    """The place of this device's part in an array that `tensor` divides into parts of `size`."""
    return jax.lax.axis_index("tensor") * size if num_shards("tensor") > 1 else 0


def argmax(values: Float[Array, "*batch part"]) -> Int32[Array, "*batch"]:
    """The first index of the largest value of each row; each of `tensor` has a part of the last axis."""
    best = jnp.argmax(values, axis=-1).astype(jnp.int32)
    if num_shards("tensor") == 1:
        return best
    highest = values.max(axis=-1)
    # Of NaN the first is taken, as by jnp.argmax, so that its log-prob is seen to be none.
    is_highest = (highest == jax.lax.pmax(highest, "tensor")) | jnp.isnan(highest)
    none = jnp.iinfo(jnp.int32).max
    return jax.lax.pmin(jnp.where(is_highest, best + part_start(values.shape[-1]), none), "tensor")


def log_softmax(logits: Float[Array, "*batch part"]) -> Float[Array, "*batch part"]:
    """Computes log-softmax over the last axis, of which each of `tensor` has a part."""
    if num_shards("tensor") == 1:
        return jax.nn.log_softmax(logits)
    highest = jax.lax.pmax(jax.lax.stop_gradient(logits).max(axis=-1, keepdims=True), "tensor")
    shifted = logits - highest
    return shifted - to_parts(jnp.log(sum_parts(jnp.exp(shifted).sum(axis=-1, keepdims=True))))


def pick(values: Float[Array, "*batch part"], index: Int32[Array, "*batch"]) -> Float[Array, "*batch"]:
    """Takes one value of each row; each of `tensor` has a part of the last axis."""
    if num_shards("tensor") == 1:
        return jnp.take_along_axis(values, index[..., None], axis=-1)[..., 0]
    column = part_start(values.shape[-1]) + jax.lax.broadcasted_iota(jnp.int32, values.shape, values.ndim - 1)
    return sum_parts(jnp.where(column == index[..., None], values, 0.0).sum(axis=-1))
