"""Where arrays live: one mesh, and the one table from parameters to its axes.

    axis     divides                                  parameters
    data     prompts                                  repeated
    fsdp     prompts                                  divided; gathered a layer at a time while in use (ZeRO-3,
                                                      arXiv 1910.02054)
    tensor   heads, MLP channels, the vocabulary;     divided and used so (Megatron-LM, arXiv 1909.08053); those of
             the vision tower's patches               the vision tower repeated

The leading axis of everything else is the prompt, so a group of rollouts lies whole on one shard. Shardings are made
here and programs compiled for them; what a program communicates is written in collectives.py, and the compiler is left
nothing to choose. Nothing here is global: a mesh is made once and handed on.
"""

from __future__ import annotations

import fnmatch
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

AXES = ("data", "fsdp", "tensor")
ROWS = PartitionSpec(("data", "fsdp"))  # the leading axis of Prompts, Rollouts, Verdicts, Scores, TrainBatch, ...
WHOLE = PartitionSpec()  # the same on every device
KEYS = PartitionSpec(None, ("data", "fsdp"), "tensor")  # keys and values of prompts [L, B, N, P, C]
BRANCH_KEYS = PartitionSpec(None, ("data", "fsdp"), None, "tensor")  # of branches [L, B, J, N, R, C]

# Parameters by name, first match, to the logical names of their axes.
LOGICAL_AXES: dict[str, tuple[str, ...]] = {
    "embed_tokens.weight": ("vocab", "embed"),
    "lm_head.kernel": ("embed", "vocab"),
    "norm.weight": ("norm",),
    "layers.self_attn.q_proj.kernel": ("layers", "embed", "heads"),
    "layers.self_attn.q_proj.bias": ("layers", "heads"),
    "layers.self_attn.[kv]_proj.kernel": ("layers", "embed", "kv_heads"),
    "layers.self_attn.[kv]_proj.bias": ("layers", "kv_heads"),
    "layers.self_attn.o_proj.kernel": ("layers", "heads", "embed"),
    "layers.self_attn.o_proj.bias": ("layers", "norm"),
    "layers.self_attn.[qk]_norm.weight": ("layers", "head_channels"),
    "layers.mlp.gate_proj.kernel": ("layers", "embed", "mlp"),
    "layers.mlp.up_proj.kernel": ("layers", "embed", "mlp"),
    "layers.mlp.down_proj.kernel": ("layers", "mlp", "embed"),
    "layers.*norm.weight": ("layers", "norm"),
    "visual.patch_embed.proj.kernel": ("patch_values", "vision_embed"),
    "visual.pos_embed.weight": ("grid_cells", "vision_embed"),
    "visual.blocks.attn.qkv.kernel": ("layers", "vision_embed", "vision_qkv"),
    "visual.blocks.attn.proj.kernel": ("layers", "vision_embed", "vision_out"),
    "visual.blocks.mlp.down_proj.kernel": ("layers", "vision_mlp", "vision_embed"),
    "visual.blocks.mlp.linear_fc2.kernel": ("layers", "vision_mlp", "vision_embed"),
    "visual.blocks.mlp.*.kernel": ("layers", "vision_embed", "vision_mlp"),
    "visual.merger.*.kernel": ("vision_merged", "vision_out"),
    "visual.deepstack_merger_list.*.kernel": ("layers", "vision_merged", "vision_out"),
    "visual.blocks.*": ("layers", "vision_vector"),
    "visual.deepstack_merger_list.*": ("layers", "vision_vector"),
    "visual.*": ("vision_vector",),
}

# Logical axes to mesh axes; the others are not divided.
RULES: dict[str, str] = {
    "vocab": "tensor",
    "heads": "tensor",
    "kv_heads": "tensor",
    "mlp": "tensor",
    "embed": "fsdp",
    "vision_embed": "fsdp",
    "vision_merged": "fsdp",
}

# Of parameters that each device of `tensor` has whole and uses on its own heads or patches, so that its gradient is a
# part of a sum.
PARTIAL_AXES = ("head_channels", "vision_embed", "vision_merged", "vision_vector")


def param_name(path: tuple) -> str:
    """Dotted parameter name of a key path; the Variable's own `value` level is left out."""
    return ".".join(key.name for key in path if isinstance(key, jax.tree_util.GetAttrKey) and key.name != "value")


def logical_axes(name: str) -> tuple[str, ...]:
    """The logical axes of a parameter, or of what an optimizer keeps of it ("mu.norm.weight").

    Raises:
        ValueError: a parameter without a line in LOGICAL_AXES.
    """
    parts = name.split(".")
    for start in range(len(parts)):
        known = ".".join(parts[start:])
        for pattern, axes in LOGICAL_AXES.items():
            if fnmatch.fnmatchcase(known, pattern):
                return axes
    raise ValueError(f"parameter {name} has no line in sharding.LOGICAL_AXES; give its axes names there")


def param_spec(name: str) -> PartitionSpec:
    """How a parameter is divided at rest."""
    return PartitionSpec(*(RULES.get(axis) for axis in logical_axes(name)))


def param_specs(tree: Any) -> Any:
    """PartitionSpecs for any tree whose leaves are parameters or, as in an optimizer's state, made of them.

    Numbers (a count of updates) are whole.
    """
    return jax.tree_util.tree_map_with_path(lambda path, x: param_spec(param_name(path)) if x.ndim else WHOLE, tree)


def gathered(specs: Any) -> Any:
    """The specs of parameters that are not divided over fsdp: what the sampler decodes with."""
    return jax.tree.map(lambda spec: PartitionSpec(*(None if axis == "fsdp" else axis for axis in spec)), specs)


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
    """Whether all devices of the mesh are this process's."""
    return NamedSharding(mesh, WHOLE).is_fully_addressable


def put(mesh: Mesh, tree: Any, spec: PartitionSpec = ROWS) -> Any:
    """Host arrays to the devices; every process holds the whole arrays and puts its own part of them."""
    sharding = NamedSharding(mesh, spec)
    if is_addressable(mesh):
        return jax.device_put(tree, sharding)
    return jax.tree.map(
        lambda x: jax.make_array_from_callback(x.shape, sharding, lambda index: np.asarray(x)[index]), tree
    )


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


def round_up(num_rows: int, mesh: Mesh) -> int:
    """The least number of rows from `num_rows` on that the mesh divides."""
    shards = mesh.shape["data"] * mesh.shape["fsdp"]
    return -(-num_rows // shards) * shards
