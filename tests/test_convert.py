"""The converter against transformers: the same bits, the same names, in every layout a folder may have."""

from __future__ import annotations

import json
import logging
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from care_jax import models
from convert import hf_to_jax, jax_to_hf, mapping, qwen2_5_vl


def _random_tensors(folder: Path) -> dict[str, torch.Tensor]:
    """Hub-layout tensors of transformers' own model of `folder`; norms and biases random too, so swaps show."""
    torch.manual_seed(0)
    config = transformers.AutoConfig.from_pretrained(folder)
    model = transformers.Qwen2_5_VLForConditionalGeneration(config)
    for parameter in model.parameters():
        parameter.data.normal_()
    tensors = {mapping.hub_name(name): tensor for name, tensor in model.state_dict().items()}
    if config.tie_word_embeddings:
        del tensors["lm_head.weight"]
    return tensors


def _write(folder: Path, tensors: dict[str, torch.Tensor], *, num_files: int = 1) -> None:
    """Weights as the hub has them: one file, or shards and an index."""
    files = {
        f"model-{i + 1:05}-of-{num_files:05}.safetensors" if num_files > 1 else "model.safetensors": sorted(tensors)[
            i::num_files
        ]
        for i in range(num_files)
    }
    for file, names in files.items():
        save_file({name: tensors[name].contiguous() for name in names}, folder / file, metadata={"format": "pt"})
    if num_files > 1:
        weight_map = {name: file for file, names in files.items() for name in names}
        (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))


def _load(folder: Path) -> dict[str, torch.Tensor]:
    return {name: tensor for file in folder.glob("*.safetensors") for name, tensor in load_file(file).items()}


def _copy(tiny_folder: Path, folder: Path, *, tied: bool = True) -> Path:
    shutil.copytree(tiny_folder, folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"tie_word_embeddings": tied}))
    return folder


def _assert_same_bits(actual: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    assert actual.keys() == expected.keys()
    for name, tensor in expected.items():
        assert actual[name].dtype == tensor.dtype, name
        assert actual[name].shape == tensor.shape, name
        assert torch.equal(actual[name].view(torch.uint8), tensor.contiguous().view(torch.uint8)), name


@pytest.fixture(scope="module")
def tensors(tiny_folder) -> dict[str, torch.Tensor]:
    return _random_tensors(tiny_folder)


@pytest.fixture
def source(tiny_folder, tensors, tmp_path) -> Path:
    """A tied float32 hub folder with one weight file."""
    folder = _copy(tiny_folder, tmp_path / "source")
    _write(folder, tensors)
    return folder


@pytest.mark.parametrize("num_files", [1, 3])
@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("layout", ["hub", "nested"])
def test_round_trip_is_bit_equal(tiny_folder, tmp_path, layout, tied, num_files):
    """Catches a lost or swapped tensor, a head written for a tied model, and a key layout other than the source's."""
    folder = _copy(tiny_folder, tmp_path / "source", tied=tied)
    tensors = {mapping.laid_out(name, layout): tensor for name, tensor in _random_tensors(folder).items()}
    _write(folder, tensors, num_files=num_files)

    max_shard_bytes = 2**30 if num_files == 1 else 1_000_000
    jax_to_hf.export(hf_to_jax.read(folder), folder, tmp_path / "out", max_shard_bytes=max_shard_bytes)

    assert ("lm_head.weight" in tensors) != tied
    assert (len(list((tmp_path / "out").glob("*.safetensors"))) > 1) == (num_files > 1)
    _assert_same_bits(_load(tmp_path / "out"), tensors)


def test_bfloat16_survives_float32_and_is_the_default_where_the_source_says_so(tiny_folder, tensors, tmp_path):
    """Catches an export that doubles a bfloat16 model on disk, or one that rounds twice."""
    folder = _copy(tiny_folder, tmp_path / "source")
    config = json.loads((folder / "config.json").read_text()) | {"torch_dtype": "bfloat16"}
    (folder / "config.json").write_text(json.dumps(config))
    halved = {name: tensor.to(torch.bfloat16) for name, tensor in tensors.items()}
    _write(folder, halved)

    params = hf_to_jax.read(folder)
    jax_to_hf.export(params, folder, tmp_path / "out")
    jax_to_hf.export(params, folder, tmp_path / "wide", dtype="float32")

    assert {param.dtype for param in params.values()} == {np.dtype(np.float32)}
    _assert_same_bits(_load(tmp_path / "out"), halved)
    _assert_same_bits(_load(tmp_path / "wide"), {name: tensor.float() for name, tensor in halved.items()})
    assert (tmp_path / "wide" / "config.json").read_bytes() == (folder / "config.json").read_bytes()


def test_values_land_where_the_model_reads_them(source, tensors):
    """Catches a transpose, layer order or patch order that is wrong the same way in both directions."""
    params = hf_to_jax.read(source)
    down = tensors["model.layers.2.mlp.down_proj.weight"].numpy()
    np.testing.assert_array_equal(params["layers.mlp.down_proj.kernel"][2], down.T)
    np.testing.assert_array_equal(params["embed_tokens.weight"], tensors["model.embed_tokens.weight"].numpy())
    np.testing.assert_array_equal(params["visual.merger.fc1.bias"], tensors["visual.merger.mlp.0.bias"].numpy())
    norm = tensors["visual.blocks.1.norm2.weight"].numpy()
    np.testing.assert_array_equal(params["visual.blocks.norm2.weight"][1], norm)

    conv = tensors["visual.patch_embed.proj.weight"]
    channel, time, row, column = 1, 1, 3, 5
    _, _, num_times, height, width = conv.shape
    patch_value = ((channel * num_times + time) * height + row) * width + column
    expected = conv[:, channel, time, row, column].numpy()
    np.testing.assert_array_equal(params["visual.patch_embed.proj.kernel"][patch_value], expected)


@pytest.mark.parametrize("tied", [True, False])
def test_table_covers_the_model(tiny_folder, tmp_path, tied):
    """Catches a parameter of the model that the table forgets, or whose shape it has wrong."""
    config = models.load_model_config(_copy(tiny_folder, tmp_path / "source", tied=tied))
    ours = {name: leaf.shape for name, leaf in models.params_to_dict(models.abstract_model(config)).items()}
    assert {weight.ours: weight.our_shape for weight in qwen2_5_vl.table(config)} == ours


def test_every_misfit_is_listed_at_once(source, tensors):
    """Catches an import that fills what is missing, drops what it does not know, or stops at the first problem."""
    broken = dict(tensors)
    del broken["visual.blocks.2.attn.qkv.bias"], broken["model.norm.weight"]
    broken["model.layers.3.mlp.up_proj.weight"] = torch.zeros(1)
    broken["visual.merger.mlp.1.bias"] = torch.zeros(1)
    broken["model.layers.1.self_attn.k_proj.weight"] = torch.zeros(128, 64)
    broken["model.visual.merger.ln_q.weight"] = broken["visual.merger.ln_q.weight"].clone()
    broken["lm_head.weight"] = broken["model.embed_tokens.weight"].clone()
    _write(source, broken)

    with pytest.raises(ValueError) as error:
        hf_to_jax.read(source)

    head, *lines = str(error.value).splitlines()
    assert head.startswith("7 Hugging Face tensors do not fit")
    assert sorted(line.strip() for line in lines if "the same weight" not in line) == [
        "lm_head.weight: unknown",
        "model.layers.1.self_attn.k_proj.weight: shape (128, 64), expected (64, 128)",
        "model.layers.3.mlp.up_proj.weight: unknown",
        "model.norm.weight: missing",
        "visual.blocks.2.attn.qkv.bias: missing",
        "visual.merger.mlp.1.bias: unknown",
    ]
    repeated = [line for line in lines if "the same weight" in line]
    assert len(repeated) == 1 and "model.visual.merger.ln_q.weight" in repeated[0]


def test_export_lists_every_misfit_and_leaves_nothing_behind(source, tmp_path):
    """Catches a half-written folder, and parameters of another model exported under this config."""
    params = hf_to_jax.read(source)
    params["norm.scale"] = params.pop("norm.weight")
    params["embed_tokens.weight"] = params["embed_tokens.weight"][:-1]

    with pytest.raises(ValueError) as error:
        jax_to_hf.export(params, source, tmp_path / "out")

    assert [line.strip() for line in str(error.value).splitlines()[1:]] == [
        "norm.weight: missing",
        "norm.scale: unknown",
        "embed_tokens.weight: shape (287, 128), expected (288, 128)",
    ]
    assert [path.name for path in tmp_path.iterdir()] == ["source"]


def test_failed_write_leaves_the_old_export_alone(source, tmp_path, monkeypatch):
    """Catches an export that removes or mixes the old folder before the new one is whole."""
    params = hf_to_jax.read(source)
    jax_to_hf.export(params, source, tmp_path / "out")
    before = (tmp_path / "out" / "model.safetensors").read_bytes()

    def full_disk(*_, **__):
        raise OSError("No space left on device")

    monkeypatch.setattr(jax_to_hf, "save_file", full_disk)
    with pytest.raises(OSError, match="No space left"):
        jax_to_hf.export(params, source, tmp_path / "out", overwrite=True)

    assert (tmp_path / "out" / "model.safetensors").read_bytes() == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "source"]


def test_overwrite_replaces_the_whole_folder(tiny_folder, tensors, tmp_path):
    """Catches shards and an index of an earlier export, or of the source, that stay beside the new weights."""
    source = _copy(tiny_folder, tmp_path / "source")
    _write(source, tensors, num_files=3)
    params = hf_to_jax.read(source)
    jax_to_hf.export(params, source, tmp_path / "out", max_shard_bytes=100_000)
    assert (tmp_path / "out" / "model.safetensors.index.json").is_file()

    jax_to_hf.export(params, source, tmp_path / "out", overwrite=True)

    carried = {path.name for path in tiny_folder.iterdir()}
    assert {path.name for path in (tmp_path / "out").iterdir()} == carried | {"model.safetensors"}
    assert all((tmp_path / "out" / name).read_bytes() == (source / name).read_bytes() for name in carried)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "source"]


def test_out_folders_that_are_refused(source, tmp_path):
    """Catches --overwrite deleting the source, a folder above it, or a folder that never was an export."""
    params = hf_to_jax.read(source)
    other = tmp_path / "other"
    other.mkdir()
    with pytest.raises(ValueError, match="exists already"):
        jax_to_hf.export(params, source, other)
    with pytest.raises(ValueError, match="not a Hugging Face folder"):
        jax_to_hf.export(params, source, other, overwrite=True)
    for out in (source, tmp_path, source / "out"):
        with pytest.raises(ValueError, match="inside each other"):
            jax_to_hf.export(params, source, out, overwrite=True)
    with pytest.raises(ValueError, match="float16.*--dtype=float32"):
        jax_to_hf.export(params, source, tmp_path / "out", dtype="float16")


def test_shards_hold_the_limit_and_the_index_names_each_tensor(source, tmp_path):
    """Catches shards past the limit, an empty shard, a shard for each tensor, and a total size in elements."""
    params = hf_to_jax.read(source)
    limit = 100_000  # bytes; less than the embedding, which comes first
    jax_to_hf.export(params, source, tmp_path / "out", max_shard_bytes=limit)

    index = json.loads((tmp_path / "out" / "model.safetensors.index.json").read_text())
    totals = []
    for file in sorted((tmp_path / "out").glob("*.safetensors")):
        with safe_open(file, framework="numpy") as shard:
            sizes = {name: shard.get_tensor(name).nbytes for name in shard.keys()}  # noqa: SIM118
            assert shard.metadata() == {"format": "pt"}
        assert sum(sizes.values()) <= limit or len(sizes) == 1
        assert all(index["weight_map"].pop(name) == file.name for name in sizes)
        totals.append(sum(sizes.values()))
    assert not index["weight_map"]
    assert min(totals) > 0
    assert all(one + two > limit for one, two in zip(totals, totals[1:], strict=False))
    assert index["metadata"]["total_size"] == sum(totals) == 4 * sum(param.size for param in params.values())


@pytest.mark.parametrize("layout", ["hub", "nested"])
def test_exported_folder_loads_in_transformers(source, tensors, tmp_path, caplog, layout):
    """Catches keys that transformers would fill at random with a warning only."""
    (source / "model.safetensors").unlink()
    _write(source, {mapping.laid_out(name, layout): tensor for name, tensor in tensors.items()})
    jax_to_hf.export(hf_to_jax.read(source), source, tmp_path / "out", max_shard_bytes=500_000)

    logger = logging.getLogger("transformers")
    logger.addHandler(caplog.handler)
    try:
        model, info = transformers.Qwen2_5_VLForConditionalGeneration.from_pretrained(
            tmp_path / "out", output_loading_info=True
        )
    finally:
        logger.removeHandler(caplog.handler)

    assert not any(info.values()), info
    assert not [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]
    expected = tensors | {"lm_head.weight": tensors["model.embed_tokens.weight"]}
    _assert_same_bits({mapping.hub_name(name): value for name, value in model.state_dict().items()}, expected)


def test_folder_without_weights_gets_the_layout_that_transformers_writes(tiny_folder, source, tmp_path):
    """Catches a default layout that drifts from what transformers itself saves."""
    model = transformers.Qwen2_5_VLForConditionalGeneration.from_pretrained(source)
    model.save_pretrained(tmp_path / "theirs")

    jax_to_hf.export(hf_to_jax.read(source), tiny_folder, tmp_path / "ours")

    _assert_same_bits(_load(tmp_path / "ours"), _load(tmp_path / "theirs"))


def test_unreadable_sources_are_told_plainly(tiny_folder, tensors, tmp_path):
    """Catches a traceback, or a model half filled, where a download was cut off."""
    folder = _copy(tiny_folder, tmp_path / "source")
    with pytest.raises(ValueError, match="no weights in .*looked for model.safetensors"):
        hf_to_jax.read(folder)
    _write(folder, tensors, num_files=3)
    second = folder / "model-00002-of-00003.safetensors"
    second.write_bytes(second.read_bytes()[:-100])
    with pytest.raises(ValueError, match="00002-of-00003.*not a whole safetensors file"):
        hf_to_jax.read(folder)
    second.unlink()
    with pytest.raises(ValueError, match="not there: model-00002-of-00003.safetensors"):
        hf_to_jax.read(folder)


def test_commands_go_there_and_back(source, tensors, tmp_path):
    """Catches flags of one name defined twice, parameters lost in the checkpoint, and tracebacks for bad input."""

    def run(module: str, **flags: Path) -> subprocess.CompletedProcess:
        args = [f"--{name}={value}" for name, value in flags.items()]
        return subprocess.run([sys.executable, "-m", f"convert.{module}", *args], capture_output=True, text=True)

    there = run("hf_to_jax", hf=source, out=tmp_path / "params")
    assert there.returncode == 0, there.stderr
    back = run("jax_to_hf", checkpoint=tmp_path / "params", hf=source, out=tmp_path / "out")
    assert back.returncode == 0, back.stderr
    _assert_same_bits(_load(tmp_path / "out"), tensors)

    again = run("hf_to_jax", hf=source, out=tmp_path / "params")
    assert again.returncode == 2
    assert again.stderr.splitlines()[-1] == (
        f"error: --out={tmp_path / 'params'} exists already; name a new folder or remove it"
    )
    assert "Traceback" not in again.stderr
