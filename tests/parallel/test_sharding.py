"""Meshes: what is refused, and on eight fake devices (tests/on_shards.py) the same numbers on every one of them."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from typing import Any

import jax
import ml_collections
import pytest

from care_jax import config as config_lib
from care_jax import models
from care_jax.parallel import sharding
from care_jax.parallel.mesh import make_mesh, mesh_sizes
from configs import demo
from tests import families
from tests.end_to_end import finish, start
from tests.on_shards import CHUNK, MESHES, R, S

CASES = (*(f"qwen2_5_vl {mesh}" for mesh in MESHES), "qwen3_vl 2x2x2")


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What tests/on_shards.py found; one process for all meshes."""
    folder = tmp_path_factory.mktemp("on_shards")
    xla_flags = "--xla_force_host_platform_device_count=8 --xla_cpu_collective_call_terminate_timeout_seconds=500"
    extra = {
        "XLA_FLAGS": xla_flags,  # eight threads meet late on a machine with other work
        "JAX_NUMPY_DTYPE_PROMOTION": "strict",
        "JAX_NUMPY_RANK_PROMOTION": "raise",
    }
    ended = finish(start("tests.on_shards", str(folder), cache=folder / "cache", extra=extra), seconds=600)
    assert ended.returncode == 0, ended.stderr
    return json.loads(ended.stdout.splitlines()[-1])


@pytest.mark.parametrize("case", CASES)
def test_update_is_that_of_one_device(found: dict[str, Any], case: str) -> None:
    """Catches a sum left out or made twice, a mean of means, a wrong part of a parameter or of the vocabulary, and a
    shard without images that does something else than the others."""
    mesh = found["meshes"][case]
    assert mesh["moved"] > 1e-2
    assert mesh["difference"] <= 1e-5


@pytest.mark.parametrize("case", CASES)
def test_rollouts_are_those_of_one_device(found: dict[str, Any], case: str) -> None:
    """Catches rows that change places, a compaction over shards, and a cache or prefix with others' heads."""
    mesh = found["meshes"][case]
    assert mesh["same_tokens"]
    assert mesh["logprobs"] <= 1e-4


@pytest.mark.parametrize("case", CASES)
def test_arrays_are_divided_and_groups_are_not(found: dict[str, Any], case: str) -> None:
    """Catches a group on two shards, and parameters or rows that every device holds whole."""
    mesh = found["meshes"][case]
    data, fsdp, tensor = (int(size) for size in case.split()[1].split("x"))
    assert mesh["groups_whole"]
    assert mesh["rows_of_a_shard"] == 8 // (data * fsdp)
    whole = found["meshes"]["qwen2_5_vl 8x1x1"]["kernel_part"] if "2_5" in case else 4 * 96 * 192
    assert mesh["kernel_part"] * fsdp * tensor == whole


def elements(shapes: list[list[int]]) -> int:
    return sum(math.prod(shape) for shape in shapes)


@pytest.mark.parametrize("case", CASES)
def test_parameters_are_gathered_a_layer_at_a_time(found: dict[str, Any], case: str) -> None:
    """Catches a compiled update that holds all layers at once on every device."""
    mesh, sizes = found["meshes"][case], found["sizes"]
    gathers = [shapes for kind, shapes in mesh["collectives"] if kind == "all-gather"]
    assert not [shape for shapes in gathers for shape in shapes if shape in mesh["whole_stacks"]]
    if "qwen2_5_vl" in case:
        assert max(map(elements, gathers), default=0) <= max(sizes["layer"], sizes["head"]) < sizes["parameters"] / 2
        assert bool(gathers) == (case != "qwen2_5_vl 8x1x1")


@pytest.mark.parametrize("case", CASES)
def test_logits_are_made_a_chunk_at_a_time(found: dict[str, Any], case: str) -> None:
    """Catches a compiled update with a value for every token and entry of the vocabulary."""
    mesh = found["meshes"][case]
    assert CHUNK <= mesh["vocabulary_rows"] < mesh["rows_of_a_shard"] * S * R


def test_gradients_are_summed_where_they_are_kept(found: dict[str, Any]) -> None:
    """Catches gradients that are summed whole on every device, in place of to the parts that it keeps."""
    all_collectives = found["meshes"]["qwen2_5_vl 1x8x1"]["collectives"]
    assert {"all-gather", "reduce-scatter", "all-to-all"} <= {kind for kind, _ in all_collectives}
    vectors = 3 * 192  # the largest parameter that is not divided: biases of all layers
    sums = [shape for kind, shapes in all_collectives if kind == "all-reduce" for shape in shapes]
    assert max(math.prod(shape) for shape in sums) <= vectors


@pytest.mark.parametrize("change", ["8x1x1 2x4x1", "1x4x1 1x2x1", "converted 2x4x1"])
def test_a_run_goes_on_on_another_mesh(found: dict[str, Any], change: str) -> None:
    """Catches parts of parameters or moments that are restored to other places."""
    assert found["restored"][change] <= 1e-6


def mesh_config(**sizes: int) -> ml_collections.ConfigDict:
    config = config_lib.base()
    config.mesh.update(sizes)
    config.train.prompts, config.train.minibatches, config.train.microbatches = 16, 1, 2
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
        with pytest.raises(ValueError) as error:
            mesh_sizes(mesh_config(**sizes), model, 8)
        told = str(error.value)
        assert reason in told and "\n" not in told
        working = re.search("these work: (.*)", told)
        assert working and working[1].split(", ")[0] == "1x8x1"
        for shape in working[1].split(", "):
            data, fsdp, tensor = (int(size) for size in shape.split("x"))
            mesh_sizes(mesh_config(data=data, fsdp=fsdp, tensor=tensor), model, 8)
    config = mesh_config(fsdp=16)
    with pytest.raises(
        ValueError, match="train.prompts / minibatches / microbatches = 8 must divide by data . fsdp = 16"
    ):
        mesh_sizes(config, model, 16)
    assert mesh_sizes(config, model, 16, training=False)["fsdp"] == 16


@pytest.mark.parametrize("family", families.FAMILIES)
def test_every_parameter_has_logical_axes(family: str, tiny_folder: Path, tmp_path: Path) -> None:
    """Catches a parameter that is added to a model and not to the table, and axes of another one."""
    model = models.abstract_model(models.load_model_config(families.make_folder(family, tiny_folder, tmp_path / "x")))
    for name, leaf in models.params_to_dict(model).items():
        axes = sharding.logical_axes(name)
        assert len(axes) == leaf.ndim, name
        assert ("vocab" in axes) == (leaf.shape[0] == model.config.text.vocab_size), name
        assert any(axis in sharding.RULES for axis in axes) or leaf.size < 1000, name
    with pytest.raises(ValueError, match="layers.new.kernel has no line"):
        sharding.logical_axes("layers.new.kernel")


@pytest.mark.parametrize("run", ["care", "cold_start"])
def test_the_demo_runs_on_what_is_there(run: str, tiny_folder: Path) -> None:
    """Catches a default mesh that the demo's batches do not divide over."""
    config = demo.get_config(run)
    model = models.load_model_config(tiny_folder)
    for count in (1, 2, 4, 8):
        assert mesh_sizes(config, model, count)["fsdp"] == count


def test_one_device_is_not_asked_to_share() -> None:
    """Catches a program on one device that goes through shard_map, and so is another one than before."""
    mesh = make_mesh({"data": 1, "fsdp": 1, "tensor": 1}, jax.devices()[:1])

    def function() -> None: ...

    assert sharding.on_shards(mesh, function, lambda: ((), None)) is function
