"""The division of arrays among devices: the axes of the mesh, and the one table from a parameter's axes to them.

    axis     divides                                  parameters
    data     prompts                                  repeated
    fsdp     prompts                                  divided; gathered a layer at a time while in use (ZeRO-3,
                                                      arXiv 1910.02054)
    tensor   heads, MLP channels, the vocabulary;     divided and used so (Megatron-LM, arXiv 1909.08053); those of
             the vision tower's patches               the vision tower repeated

The leading axis of everything else is the prompt, so a group of rollouts lies whole on one shard. Shardings are made
here and programs compiled for them; what a program communicates is written in collectives.py, and nothing is left to
the compiler's choice. Nothing here is global: a mesh is made once and passed on.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import jax
import numpy as np
from flax import nnx
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from care_jax.parallel.processes import HostShare

AXES = ("data", "fsdp", "tensor")
ROWS = PartitionSpec(("data", "fsdp"))  # the leading axis of Prompts, Rollouts, Verdicts, Scores, TrainBatch, ...
WHOLE = PartitionSpec()  # the same on every device
KEYS = PartitionSpec(None, ("data", "fsdp"), "tensor")  # keys, values and states of prompts [L, B, N, ...]
BRANCH_KEYS = PartitionSpec(None, ("data", "fsdp"), None, "tensor")  # of branches [L, B, J, N, ...]

# Every logical axis that a parameter may have, and the mesh axis that divides it. A parameter's axes are named where it
# is made (models.layers.make_param), in the order of its dimensions.
RULES: dict[str, str | None] = {
    "layers": None,  # the leading axis of a stack that is scanned
    "vocab": "tensor",
    "embed": "fsdp",  # the decoder's width, in matrices
    "norm": None,  # the decoder's width, in vectors
    "heads": "tensor",  # channels of all query heads, or of all heads of linear attention
    "kv_heads": "tensor",
    "head_channels": None,
    "taps": None,  # of a convolution
    "mlp": "tensor",
    "patch_values": None,
    "grid_cells": None,  # rows of a table of learned positions
    "vision_embed": "fsdp",  # the tower's width, in matrices
    "vision_norm": None,  # the tower's width, or that of a merged token, in vectors
    "vision_qkv": None,
    "vision_mlp": None,
    "vision_merged": "fsdp",
    "vision_out": None,
    "rank": None,  # of the matrix of an adapter whose other axis, one of its linear's, is divided over fsdp
    "rank_parts": "fsdp",  # of the other matrix
}

# A parameter with one of these axes, and none that `tensor` divides, lies whole on each device of `tensor`, which uses
# it on its own heads or patches alone: its gradient there is a part of a sum.
PARTIAL_AXES = (
    "head_channels",
    "vision_embed",
    "vision_norm",
    "vision_qkv",
    "vision_mlp",
    "vision_merged",
    "vision_out",
    "rank",
    "rank_parts",
)

T = TypeVar("T")


def param_name(path: tuple) -> str:
    """Dotted parameter name of a key path; the Variable's own `value` level is left out."""
    return ".".join(key.name for key in path if isinstance(key, jax.tree_util.GetAttrKey) and key.name != "value")


def map_params(function: Callable[[tuple[str, ...], Any], T], tree: Any) -> Any:
    """`function(logical axes, array)` for each array of a tree of parameters, or of what an optimizer keeps of them.

    The axes are those of the array itself: a slice of a stack has none called "layers", and a number outside of every
    parameter (a count of updates) has none at all.

    Raises:
        ValueError: naming a parameter that was made without axes, or an array that does not have its parameter's axes.
    """

    def of_node(path: tuple, node: Any) -> Any:
        name = param_name(path)
        if not isinstance(node, nnx.Variable):
            if node.ndim:
                raise ValueError(f"array {name} {node.shape} is outside of any parameter; make it with make_param")
            return function((), node)
        axes = node.get_metadata("out_sharding", None)
        if axes is None:
            raise ValueError(f"parameter {name} has no logical axes; make it with models.layers.make_param")
        return jax.tree.map(lambda x: function(_own_axes(name, axes, x), x), node)

    return jax.tree_util.tree_map_with_path(of_node, tree, is_leaf=lambda node: isinstance(node, nnx.Variable))


def _own_axes(name: str, axes: tuple[str, ...], x: Any) -> tuple[str, ...]:
    """Axes of `x`, which has all of its parameter's `axes`, those behind "layers", or none."""
    missing = len(axes) - x.ndim
    if missing < 0 or (x.ndim and axes[:missing] not in ((), ("layers",))):
        raise ValueError(f"{name} has shape {x.shape}, but its parameter's logical axes are ({', '.join(axes)})")
    return axes[missing:]


def is_matrix(axes: tuple[str, ...]) -> bool:
    """A parameter with these axes is a matrix, or a stack of them, and not a stack of vectors."""
    return len([axis for axis in axes if axis != "layers"]) > 1


def mesh_axes(axes: tuple[str, ...]) -> tuple[str | None, ...]:
    """The mesh axis that divides each of a parameter's logical axes.

    Raises:
        ValueError: naming an axis that RULES does not have.
    """
    if unknown := [axis for axis in axes if axis not in RULES]:
        raise ValueError(f"logical axis {unknown[0]!r} of a parameter has no line in sharding.RULES; add one")
    return tuple(RULES[axis] for axis in axes)


def param_specs(tree: Any) -> Any:
    """PartitionSpecs for any tree whose leaves are parameters or, as in an optimizer's state, made of them."""
    return map_params(lambda axes, _: PartitionSpec(*mesh_axes(axes)), tree)


def gathered(specs: Any) -> Any:
    """The specs of parameters that are not divided over fsdp: what the sampler decodes with."""
    return jax.tree.map(lambda spec: PartitionSpec(*(None if axis == "fsdp" else axis for axis in spec)), specs)


def sampler_mesh(mesh: Mesh, tensor: int) -> Mesh:
    """The devices of a mesh whose `tensor` is 1 as one where so many neighbours along fsdp divide heads."""
    data, fsdp, _ = mesh.devices.shape
    return Mesh(mesh.devices.reshape(data, fsdp // tensor, tensor), AXES, axis_types=mesh.axis_types)


def in_sampler_mesh(spec: PartitionSpec) -> PartitionSpec:
    """The division that `spec` is in a mesh, said in its `sampler_mesh`: fsdp is fsdp and tensor there."""

    def renamed(axes: Any) -> Any:
        names = [axes] if isinstance(axes, str) else axes or ()
        return tuple(new for name in names for new in {"fsdp": ("fsdp", "tensor"), "tensor": ()}.get(name, (name,)))

    return PartitionSpec(*map(renamed, spec))


def place(mesh: Mesh, tree: Any, specs: Any) -> Any:
    """`tree` as ShapeDtypeStructs with shardings, to compile for or to restore into.

    `specs` is a tree of PartitionSpecs like `tree`, or one for all its leaves.
    """

    def placed(x: Any, spec: PartitionSpec) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=NamedSharding(mesh, spec))

    if isinstance(specs, PartitionSpec):
        return jax.tree.map(lambda x: placed(x, specs), tree)
    return jax.tree.map(placed, tree, specs)


def abstract_arrays(tree: Any) -> Any:
    """The shapes and shardings of a tree of arrays, without the arrays."""
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), tree)


def named(mesh: Mesh, specs: Any) -> Any:
    """NamedShardings of a tree of PartitionSpecs."""
    return jax.tree.map(lambda spec: NamedSharding(mesh, spec), specs)


def is_addressable(mesh: Mesh) -> bool:
    """True if all devices of the mesh belong to this process."""
    return NamedSharding(mesh, WHOLE).is_fully_addressable


def put(mesh: Mesh, tree: Any, spec: PartitionSpec = ROWS) -> Any:
    """Host arrays to the devices; every process holds the whole arrays and puts its own part of them."""
    sharding = NamedSharding(mesh, spec)
    if is_addressable(mesh):
        return jax.device_put(tree, sharding)
    return jax.tree.map(
        lambda x: jax.make_array_from_callback(x.shape, sharding, lambda index: np.asarray(x)[index]), tree
    )


def own_share(mesh: Mesh) -> HostShare:
    """The shards on the devices of this process; all, if devices of several processes have one together."""
    holders: list[set[int]] = [set() for _ in range(num_shards(mesh))]
    places: Any = NamedSharding(mesh, ROWS).devices_indices_map((len(holders),))
    for device, (rows,) in places.items():
        holders[rows.start or 0].add(device.process_index)
    return HostShare.of_process(jax.process_index(), holders)


def whole_share(mesh: Mesh) -> HostShare:
    """All shards."""
    count = num_shards(mesh)
    return HostShare(tuple(range(count)), count)


def put_rows(mesh: Mesh, tree: Any, share: HostShare) -> Any:
    """Host arrays with the rows of `share` to the devices, as arrays with the rows of all processes."""
    if share.is_whole:
        return put(mesh, tree)
    sharding = NamedSharding(mesh, ROWS)

    def placed(x: Any) -> jax.Array:
        x = np.asarray(x)
        size = len(x) // len(share.shards)

        def part(index: Any) -> np.ndarray:
            place = share.shards.index((index[0].start or 0) // size)
            return x[place * size :][:size]

        return jax.make_array_from_callback((size * share.num_shards, *x.shape[1:]), sharding, part)

    return jax.tree.map(placed, tree)


def fetch_rows(tree: Any) -> Any:
    """The rows of this process's devices, as NumPy arrays; of arrays that are whole on each device, all."""

    def parts(x: jax.Array) -> dict[int, jax.Array]:
        return {shard.index[0].start or 0 if x.ndim else 0: shard.data for shard in x.addressable_shards}

    leaves, structure = jax.tree.flatten(tree)
    fetched = [[x[at] for at in sorted(x)] for x in jax.device_get([parts(leaf) for leaf in leaves])]
    return jax.tree.unflatten(structure, [x[0] if len(x) == 1 else np.concatenate(x) for x in fetched])


def on_shards(mesh: Mesh | None, function: Callable, specs: Callable[..., tuple[tuple, Any]]) -> Callable:
    """`function` on each device's part of its arguments; on one device (or no mesh) the function itself.

    `specs` makes, from the whole arguments, the arguments' PartitionSpecs and the results'. What `function`
    communicates is in collectives.py.
    """
    if mesh is None or mesh.size == 1:
        return function

    def run(*args: Any) -> Any:
        in_specs, out_specs = specs(*args)
        # Kernels written in Pallas do not say which axes their results vary over, hence no check.
        return jax.shard_map(function, mesh=mesh, in_specs=in_specs, out_specs=out_specs, check_vma=False)(*args)

    return run


def num_shards(mesh: Mesh) -> int:
    """The number of parts that prompts are divided into."""
    return mesh.shape["data"] * mesh.shape["fsdp"]


def round_up(num_rows: int, mesh: Mesh) -> int:
    """The smallest number of rows, at least `num_rows`, that the mesh divides."""
    shards = num_shards(mesh)
    return -(-num_rows // shards) * shards
