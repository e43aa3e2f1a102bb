"""Meshes: what is refused, and on eight fake devices (tests/on_shards.py) the same numbers on every one of them."""

from __future__ import annotations

import dataclasses
import json
import math
import re
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import pytest
from flax import nnx

from care_jax import config as config_lib
from care_jax import models
from care_jax.configs import demo
from care_jax.errors import InputError
from care_jax.models.layers import make_param
from care_jax.parallel import sharding
from care_jax.parallel.mesh import create_device_mesh
from care_jax.stages.model import mesh_sizes
from care_jax.stages.optimizer import make_optimizer
from care_jax.stages.train_state import TrainState
from tests import families
from tests.end_to_end import finish, start
from tests.marks import slow_but
from tests.on_shards import APART, CHUNK, MODELS, QUICK, R, S

CASES = slow_but([f"qwen2_5_vl {QUICK}"], [f"{model} {mesh}" for model, meshes in MODELS.items() for mesh in meshes])


@pytest.fixture(scope="module")
def found(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The findings of tests/on_shards.py; a process for each model, or one for one mesh if no slow test is selected."""
    folder = tmp_path_factory.mktemp("on_shards")
    ours = [item for item in request.session.items if item.path == request.path]
    is_quick = not any(item.get_closest_marker("slow") for item in ours)
    xla_flags = "--xla_force_host_platform_device_count=8 --xla_cpu_collective_call_terminate_timeout_seconds=500"
    extra = {
        "XLA_FLAGS": xla_flags,  # eight threads meet late on a machine with other work
        "JAX_NUMPY_DTYPE_PROMOTION": "strict",
        "JAX_NUMPY_RANK_PROMOTION": "raise",
    }
    findings: dict[str, Any] = {"meshes": {}, "restored": {}, "sizes": {}}
    for model, meshes in {"qwen2_5_vl": (QUICK,)}.items() if is_quick else MODELS.items():
        started = start("tests.on_shards", str(folder), model, *meshes, cache=folder / "cache", extra=extra)
        ended = finish(started, seconds=600)
        assert ended.returncode == 0, ended.stderr
        for kind, of_model in json.loads(ended.stdout.splitlines()[-1]).items():
            findings[kind] |= of_model
    return findings


@pytest.mark.parametrize("case", CASES)
def test_update_is_that_of_one_device(found: dict[str, Any], case: str) -> None:
    """Catches a sum left out or made twice, a mean of means, and a wrong part of a parameter or of the vocabulary.

    Also a shard without images that does something else than the others.
    """
    mesh = found["meshes"][case]
    assert mesh["moved"] > 1e-2
    assert mesh["difference"] <= 1e-5


@pytest.mark.parametrize("case", CASES)
def test_scores_are_those_of_one_device(found: dict[str, Any], case: str) -> None:
    """Catches groups that are scored on another shard and whose scores do not come home."""
    assert found["meshes"][case]["scores"] <= 1e-4


@pytest.mark.parametrize("case", CASES)
def test_rollouts_are_those_of_one_device(found: dict[str, Any], case: str) -> None:
    """Catches rows that change places, a compaction over shards, and a cache or prefix with others' heads."""
    mesh = found["meshes"][case]
    assert mesh["same_tokens"]
    assert mesh["logprobs"] <= 1e-4


@pytest.mark.slow
@pytest.mark.parametrize("case", [*(f"qwen2_5_vl {mesh}" for mesh in APART), "qwen3_5 1x8x1", "qwen2_5_vl_lora 2x4x1"])
def test_a_sampler_with_its_own_layout_decodes_as_one_device(found: dict[str, Any], case: str) -> None:
    """Catches keys of other heads or prompts, parts of parameters in the wrong order, and rollouts of other chips."""
    mesh = found["meshes"][case]
    assert mesh["apart"]
    assert mesh["apart_layout"]
    assert mesh["apart_logprobs"] <= 1e-4
    ours, theirs = np.array(mesh["apart_draws"])
    assert (ours == theirs).mean() > 0.9  # a share within rounding of a border may fall on its other side
    assert len({row.tobytes() for prompt in ours for row in prompt}) > ours[..., 0].size // 2


@pytest.mark.parametrize(
    ("tensor", "mesh", "problem"),
    [
        (3, (1, 8, 1), "4 heads must divide by it"),
        (4, (1, 4, 2), "mesh.tensor is 2 and not 1"),
        (2, (8, 1, 1), "mesh.fsdp = 1 must divide by it"),
    ],
)
def test_a_layout_that_does_not_divide_is_refused(
    tiny_folder: Path, tensor: int, mesh: tuple[int, int, int], problem: str
) -> None:
    """Catches a sampler's layout that fails in the compiler."""
    config = demo.get_config("care")
    config.model.folder, config.rollout.tensor = str(tiny_folder), tensor
    config.data.patch_buckets = (64,)
    config.mesh.update(dict(zip(sharding.AXES, mesh, strict=True)))
    model = models.load_model_config(tiny_folder)
    with pytest.raises(InputError, match=f"rollout.tensor={tensor}: .*{problem}"):
        mesh_sizes(config, model, 8)
    config.rollout.tensor = 0
    assert mesh_sizes(config, model, 8)


@pytest.mark.parametrize("case", CASES)
def test_arrays_are_divided_and_groups_are_not(found: dict[str, Any], case: str) -> None:
    """Catches a group on two shards, and parameters or rows that every device holds whole."""
    mesh = found["meshes"][case]
    data, fsdp, tensor = (int(size) for size in case.split()[1].split("x"))
    assert mesh["groups_whole"]
    assert mesh["rows_of_a_shard"] == 8 // (data * fsdp)
    assert mesh["kernel_part"] * fsdp * tensor == mesh["kernel"]


def elements(shapes: list[list[int]]) -> int:
    """Numbers in arrays of these shapes."""
    return sum(math.prod(shape) for shape in shapes)


@pytest.mark.parametrize("case", CASES)
def test_parameters_are_gathered_a_layer_at_a_time(found: dict[str, Any], case: str) -> None:
    """Catches a compiled update that holds all layers at once on every device."""
    mesh, sizes = found["meshes"][case], found["sizes"]
    data, fsdp, _ = map(int, case.split()[1].split("x"))
    gathers = [
        # All but one row of the batch from each shard, or from some of them.
        [shape for shape in shapes if shape[0] > data * fsdp or shape[1:] not in mesh["row_shapes"]]
        for kind, shapes in mesh["collectives"]
        if kind == "all-gather"
    ]
    assert not [shape for shapes in gathers for shape in shapes if shape in mesh["whole_stacks"]]
    if "qwen2_5_vl" in case:
        assert max(map(elements, gathers), default=0) <= max(sizes["layer"], sizes["head"]) < sizes["parameters"] / 2
        assert any(gathers) == (case != "qwen2_5_vl 8x1x1")


@pytest.mark.parametrize("case", CASES)
def test_logits_are_made_a_chunk_at_a_time(found: dict[str, Any], case: str) -> None:
    """Catches a compiled update with a value for every token and entry of the vocabulary."""
    mesh = found["meshes"][case]
    assert CHUNK <= mesh["vocabulary_rows"] < mesh["rows_of_a_shard"] * S * R


@pytest.mark.slow
def test_gradients_are_summed_where_they_are_kept(found: dict[str, Any]) -> None:
    """Catches gradients that are summed whole on every device, in place of to the parts that it keeps."""
    all_collectives = found["meshes"]["qwen2_5_vl 1x8x1"]["collectives"]
    assert {"all-gather", "reduce-scatter", "all-to-all"} <= {kind for kind, _ in all_collectives}
    vectors = 3 * 192  # the largest parameter that is not divided: biases of all layers
    sums = [shape for kind, shapes in all_collectives if kind == "all-reduce" for shape in shapes]
    assert max(math.prod(shape) for shape in sums) <= vectors


@pytest.mark.slow
@pytest.mark.parametrize("change", ["8x1x1 2x4x1", "1x4x1 1x2x1", "converted 2x4x1"])
def test_a_run_goes_on_on_another_mesh(found: dict[str, Any], change: str) -> None:
    """Catches parts of parameters or moments that are restored to other places."""
    assert found["restored"][change] <= 1e-6


def mesh_config(**sizes: int) -> ml_collections.ConfigDict:
    """A config with these sizes of the mesh, and minibatches of 8 prompts."""
    config = config_lib.base()
    config.mesh.update(sizes)
    config.train.prompts, config.train.minibatches = 16, 2
    config.data.patch_buckets = (64,)
    return config


def test_what_works_is_named(tiny_folder: Path) -> None:
    """Catches a mesh that fails late or silently, one that leaves devices idle, and suggestions that do not work."""
    model = models.load_model_config(tiny_folder)  # 4 heads, 2 of keys and values
    assert mesh_sizes(mesh_config(), model, 8) == {"data": 1, "fsdp": 8, "tensor": 1}
    assert mesh_sizes(mesh_config(data=-1, fsdp=2, tensor=2), model, 8)["data"] == 2
    refused = {
        "2 key/value heads must divide by tensor = 8": {"fsdp": 1, "tensor": 8},
        "the product is 3": {"data": 3, "fsdp": 1},
        "one of them may be -1": {"data": -1, "fsdp": -1},
        "the product is 6": {"fsdp": -1, "data": 3},
    }
    for reason, sizes in refused.items():
        with pytest.raises(ValueError, match=re.escape(reason)) as error:
            mesh_sizes(mesh_config(**sizes), model, 8)
        told = str(error.value)
        assert "\n" not in told
        working = re.search("these work: (.*)", told)
        assert working is not None
        assert working[1].split(", ")[0] == "1x8x1"
        for shape in working[1].split(", "):
            data, fsdp, tensor = (int(size) for size in shape.split("x"))
            mesh_sizes(mesh_config(data=data, fsdp=fsdp, tensor=tensor), model, 8)
    config = mesh_config(fsdp=16)
    with pytest.raises(ValueError, match=r"train\.prompts / minibatches = 8 must divide by data \* fsdp = 16"):
        mesh_sizes(config, model, 16)
    assert mesh_sizes(config, model, 16, training=False)["fsdp"] == 16


def tiny(family: str, tiny_folder: Path, target: Path) -> models.QwenVL:
    """The shapes of a family's tiny model."""
    return models.abstract_model(models.load_model_config(families.make_folder(family, tiny_folder, target / "x")))


def axes_by_name(tree: Any) -> dict[str, tuple[str, ...]]:
    """The logical axes of each parameter."""
    joined = models.params_to_dict(sharding.map_params(lambda axes, _: " ".join(axes), tree))
    return {name: tuple(axes.split()) for name, axes in joined.items()}


@pytest.mark.parametrize("family", families.FAMILIES)
def test_every_parameter_has_logical_axes(family: str, tiny_folder: Path, tmp_path: Path) -> None:
    """Catches a stack whose axes are those of one layer, axes of another parameter, and a large one that all hold."""
    model = tiny(family, tiny_folder, tmp_path)
    params, axes = models.params_to_dict(model), axes_by_name(model)
    assert params.keys() == axes.keys()
    for name, leaf in params.items():
        assert len(axes[name]) == leaf.ndim, name
        assert set(axes[name]) <= sharding.RULES.keys(), name
        stacked = name.startswith(("layers.", "visual.blocks.", "visual.deepstack_merger_list."))
        assert (axes[name][0] == "layers") == stacked, name
        assert ("vocab" in axes[name]) == (leaf.shape[0] == model.config.text.vocab_size), name
        assert any(sharding.mesh_axes(axes[name])) or leaf.size < 1000, name


def test_parameters_are_divided_as_the_layers_use_them(tiny_folder: Path, tmp_path: Path) -> None:
    """Catches a matrix that is divided along its other side: Megatron's halves then add up what is not a part."""
    specs = models.params_to_dict(sharding.param_specs(tiny("qwen3_vl", tiny_folder, tmp_path)))
    expected = {
        "embed_tokens.weight": ("tensor", "fsdp"),
        "layers.self_attn.q_proj.kernel": (None, "fsdp", "tensor"),
        "layers.self_attn.o_proj.kernel": (None, "tensor", "fsdp"),
        "layers.self_attn.q_norm.weight": (None, None),
        "layers.mlp.up_proj.kernel": (None, "fsdp", "tensor"),
        "layers.mlp.down_proj.kernel": (None, "tensor", "fsdp"),
        "layers.input_layernorm.weight": (None, None),
        "visual.patch_embed.proj.kernel": (None, "fsdp"),
        "visual.patch_embed.proj.bias": (None,),
        "visual.pos_embed.weight": (None, "fsdp"),
        "visual.blocks.attn.qkv.kernel": (None, "fsdp", None),
        "visual.blocks.attn.qkv.bias": (None, None),
        "visual.blocks.attn.proj.kernel": (None, "fsdp", None),
        "visual.blocks.mlp.linear_fc2.kernel": (None, None, "fsdp"),
        "visual.blocks.mlp.linear_fc2.bias": (None, None),
        "visual.merger.linear_fc2.kernel": ("fsdp", None),
        "visual.deepstack_merger_list.linear_fc1.kernel": (None, "fsdp", None),
    }
    assert {name: tuple(specs[name]) for name in expected} == expected


def test_a_slice_of_a_stack_keeps_the_axes_of_a_layer(tiny_folder: Path, tmp_path: Path) -> None:
    """Catches a layer inside a scan that is gathered along the axis beside the divided one."""
    layers = tiny("qwen2_5_vl", tiny_folder, tmp_path).layers
    one = jax.eval_shape(lambda stack: jax.tree.map(lambda x: x[0], stack), layers)
    assert axes_by_name(one) == {name: axes[1:] for name, axes in axes_by_name(layers).items()}


def test_what_an_optimizer_keeps_is_divided_like_the_parameters(tiny_folder: Path, tmp_path: Path) -> None:
    """Catches moments that every device holds whole, and a frozen tower's that are looked for and are not there."""
    model = tiny("qwen2_5_vl", tiny_folder, tmp_path)
    model = models.abstract_model(dataclasses.replace(model.config, freeze=("vision", "merger")))
    optimizer = make_optimizer(config_lib.base())
    state = jax.eval_shape(lambda params: TrainState.start(params, optimizer), model).opt_state
    specs = models.params_to_dict(sharding.param_specs(model))
    kept = [
        (sharding.param_name(path), spec)
        for path, spec in jax.tree_util.tree_leaves_with_path(sharding.param_specs(state))
    ]
    moments = [(name.split("mu.")[1], spec) for name, spec in kept if "mu." in name]
    assert moments == [(name, spec) for name, spec in specs.items() if not name.startswith("visual.")]
    assert {spec for name, spec in kept if "mu." not in name and "nu." not in name} == {sharding.WHOLE}


def test_a_parameter_without_axes_is_refused(tiny_folder: Path, tmp_path: Path) -> None:
    """Catches a parameter of a new layer that every device holds whole because nobody said how it is divided."""
    model = tiny("qwen2_5_vl", tiny_folder, tmp_path)
    model.layers.mlp.scale = nnx.Param(jnp.ones((3, 4)))
    with pytest.raises(
        ValueError, match=r"^parameter layers\.mlp\.scale has no logical axes; make it with .*make_param$"
    ):
        sharding.param_specs(model)
    for axes in (("embed", "mlp", "norm"), ("layers",)):
        model.layers.mlp.scale = nnx.Param(jnp.ones((3, 4)), out_sharding=axes, eager_sharding=False)
        told = rf"^layers\.mlp\.scale has shape \(3, 4\), but .* \({', '.join(axes)}\)$"
        with pytest.raises(ValueError, match=told):
            sharding.param_specs(model)
    model.layers.mlp.scale = jnp.ones((3, 4))
    with pytest.raises(ValueError, match=r"^array layers\.mlp\.scale \(3, 4\) is outside of any parameter"):
        sharding.param_specs(model)
    with pytest.raises(ValueError, match=r"^logical axis 'width' of a parameter has no line in sharding\.RULES"):
        make_param(jnp.ones((3, 4)), "layers", "width")
    with pytest.raises(ValueError, match=r"^a parameter of shape \(3, 4\) needs 2 logical axes; got \('mlp',\)$"):
        make_param(jnp.ones((3, 4)), "mlp")


@pytest.mark.parametrize("run", ["care", "cold_start"])
def test_the_demo_runs_on_what_is_there(run: str, tiny_folder: Path) -> None:
    """Catches a default mesh that the demo's batches do not divide over."""
    config = demo.get_config(run)
    model = models.load_model_config(tiny_folder)
    for count in (1, 2, 4, 8):
        assert mesh_sizes(config, model, count)["fsdp"] == count


def test_one_device_is_not_asked_to_share() -> None:
    """Catches a program on one device that goes through shard_map, and so is another one than before."""
    mesh = create_device_mesh({"data": 1, "fsdp": 1, "tensor": 1}, jax.devices()[:1])

    def function() -> None: ...

    assert sharding.on_shards(mesh, function, lambda: ((), None)) is function
