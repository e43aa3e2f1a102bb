"""There and back: the same bits, the same names, the same files, in every layout a folder may have."""

from __future__ import annotations

import itertools
import json
import logging
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from safetensors import safe_open

from care_jax.checkpoints import array_store, load
from care_jax.checkpoints.array_store import StoredParam
from care_jax.convert import check_parity, hf_to_jax, jax_to_hf, mapping, weight
from care_jax.convert.safetensors_io import Tensor
from tests import weights
from tests.families import FAMILIES, edit_json, make_folder


@pytest.fixture
def small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    """The tiny model's arrays are cut as a large one's are."""
    monkeypatch.setattr(array_store, "_WHOLE_BYTES", 40_000)
    monkeypatch.setattr(array_store, "_CHUNK_BYTES", 40_000)
    monkeypatch.setattr(weight, "PIECE_BYTES", 40_000)


def header_bytes(folder: Path) -> int:
    """The number of bytes before the data."""
    with (folder / "model.safetensors").open("rb") as stream:
        return 8 + int.from_bytes(stream.read(8), "little")


def files_of(folder: Path) -> dict[str, bytes]:
    """The bytes of every file below a folder."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize(
    ("layout", "tied", "dtype", "num_files"),
    [
        ("hub", True, torch.float32, 1),
        ("hub", False, torch.bfloat16, 3),
        ("nested", True, torch.bfloat16, 1),
        ("nested", False, torch.float32, 3),
    ],
)
@pytest.mark.parametrize("family", FAMILIES)
def test_round_trip_gives_every_byte_again(tiny_folder, tmp_path, small_pieces, family, layout, tied, dtype, num_files):
    """Catches a lost or swapped tensor, a rounded one, a head of a tied model, other names, files, or an order."""
    source = weights.make_source(
        family, tiny_folder, tmp_path / "source", layout=layout, tied=tied, dtype=dtype, num_files=num_files
    )
    (source / "LICENSE").write_text("as it was")
    (source / "assets").mkdir()
    (source / "assets" / "logo.svg").write_text("<svg/>")

    num_params = hf_to_jax.convert(source, tmp_path / "params")
    stored = load.open_params(tmp_path / "params")
    assert {param.dtype for param in stored.values()} == {mapping.DTYPES[weights.NAMES[dtype]]}
    assert any(param.chunk_shape != param.shape for param in stored.values())
    assert jax_to_hf.convert(tmp_path / "params", source, tmp_path / "out") == num_params

    tensors = weights.load(source)
    assert num_params == sum(tensor.numel() for tensor in tensors.values())
    assert ("lm_head.weight" in tensors) != tied
    weights.assert_same_bits(weights.load(tmp_path / "out"), tensors)
    assert files_of(tmp_path / "out") == files_of(source)


def test_types_that_differ_come_back_as_they_were(tiny_folder, tmp_path, small_pieces):
    """Catches norms in float32 that are rounded to their neighbours' type, within one stack too."""
    source = weights.make_source("qwen2_5_vl", tiny_folder, tmp_path / "source", dtype=torch.bfloat16)
    tensors = weights.load(source)
    for name in ("model.norm.weight", "model.layers.1.self_attn.q_proj.weight"):
        tensors[name] = torch.randn_like(tensors[name], dtype=torch.float32)
    tensors["visual.merger.ln_q.weight"] = tensors["visual.merger.ln_q.weight"].to(torch.float16)
    weights.write(source, tensors)
    hf_to_jax.convert(source, tmp_path / "params")
    jax_to_hf.convert(tmp_path / "params", source, tmp_path / "out")
    weights.assert_same_bits(weights.load(tmp_path / "out"), tensors)


def test_training_starts_from_float32(tiny_folder, tmp_path, small_pieces):
    """Catches master weights in bfloat16, and a restore that reads a chunk for another."""
    source = weights.make_source("qwen3_vl", tiny_folder, tmp_path / "source", dtype=torch.bfloat16)
    hf_to_jax.convert(source, tmp_path / "params")
    params = load.load_params(tmp_path / "params")
    assert {param.dtype for param in params.values()} == {np.dtype(np.float32)}
    up = weights.load(source)["model.layers.3.mlp.up_proj.weight"].float().numpy()
    np.testing.assert_array_equal(params["layers.mlp.up_proj.kernel"][3], up.T)


def test_asked_for_a_type(tiny_folder, tmp_path):
    """Catches an export that keeps the source's type, or its index with the wrong size."""
    source = weights.make_source("qwen2_5_vl", tiny_folder, tmp_path / "source", num_files=2)
    tensors = weights.load(source)
    hf_to_jax.convert(source, tmp_path / "params")
    jax_to_hf.convert(tmp_path / "params", source, tmp_path / "out", dtype="bfloat16")
    weights.assert_same_bits(weights.load(tmp_path / "out"), {name: x.bfloat16() for name, x in tensors.items()})
    index = json.loads((tmp_path / "out" / "model.safetensors.index.json").read_text())
    assert index["metadata"]["total_size"] == 2 * sum(tensor.numel() for tensor in tensors.values())
    assert index["weight_map"].keys() == tensors.keys()
    assert (tmp_path / "out" / "config.json").read_bytes() == (source / "config.json").read_bytes()
    with pytest.raises(ValueError, match=r"float16.*--dtype=float32"):
        jax_to_hf.convert(tmp_path / "params", source, tmp_path / "other", dtype="float16")


def test_a_large_array_is_never_in_memory(tiny_folder, tmp_path, monkeypatch, small_pieces):
    """Catches a stack of layers that is read as a whole, and a tensor that is read once for each of its pieces."""
    source = weights.make_source("qwen2_5_vl", tiny_folder, tmp_path / "source", dtype=torch.bfloat16)
    sizes: dict[type, list[int]] = {Tensor: [], StoredParam: []}
    for kind in sizes:

        def counted(self, index=slice(None), kind=kind, read=kind.read):
            values = read(self, index)
            sizes[kind].append(np.asarray(values.result() if kind is StoredParam else values).nbytes)
            return values

        monkeypatch.setattr(kind, "read", counted)
    hf_to_jax.convert(source, tmp_path / "params")
    jax_to_hf.convert(tmp_path / "params", source, tmp_path / "out")
    largest = max(tensor.nbytes for tensor in weights.load(source).values())
    assert max(param.store.size for param in load.open_params(tmp_path / "params").values()) * 2 > largest
    for kind, seen in sizes.items():
        assert max(seen) <= largest, kind
        assert sum(seen) == (tmp_path / "out" / "model.safetensors").stat().st_size - header_bytes(source), kind


@pytest.mark.parametrize(
    ("family", "layout"),
    [("qwen2_5_vl", "hub"), ("qwen2_5_vl", "nested"), ("qwen3_vl", "nested"), ("qwen3_5", "nested")],
)
def test_exported_folder_loads_in_transformers(tiny_folder, tmp_path, caplog, family, layout):
    """Catches keys that transformers would fill at random with a warning only."""
    source = weights.make_source(family, tiny_folder, tmp_path / "source", layout=layout, num_files=2)
    hf_to_jax.convert(source, tmp_path / "params")
    jax_to_hf.convert(tmp_path / "params", source, tmp_path / "out")

    logger = logging.getLogger("transformers")
    logger.addHandler(caplog.handler)
    try:
        model, info = transformers.AutoModelForImageTextToText.from_pretrained(
            tmp_path / "out", output_loading_info=True
        )
    finally:
        logger.removeHandler(caplog.handler)

    assert not any(info.values()), info
    assert not [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]
    expected = {mapping.hub_name(name): tensor for name, tensor in weights.load(source).items()}
    expected["lm_head.weight"] = expected["model.embed_tokens.weight"]
    weights.assert_same_bits({mapping.hub_name(name): value for name, value in model.state_dict().items()}, expected)


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
def test_folder_without_weights_gets_the_names_that_transformers_writes(tiny_folder, tmp_path, family):
    """Catches a default layout that drifts from what transformers itself saves."""
    layout = {"qwen2_5_vl": "hub", "qwen3_vl": "nested", "qwen3_5": "nested"}[family]  # which transformers reads
    source = weights.make_source(family, tiny_folder, tmp_path / "source", layout=layout)
    hf_to_jax.convert(source, tmp_path / "params")
    model = transformers.AutoModelForImageTextToText.from_pretrained(source)
    model.save_pretrained(tmp_path / "theirs")

    (source / "model.safetensors").unlink()
    edit_json(source / "config.json", dtype="float32", torch_dtype=None)
    jax_to_hf.convert(tmp_path / "params", source, tmp_path / "ours")

    weights.assert_same_bits(weights.load(tmp_path / "ours"), weights.load(tmp_path / "theirs"))


@pytest.mark.parametrize("dtype", ["source", "float32"])
def test_parts_that_are_not_trained_are_carried_over(tiny_folder, tmp_path, small_pieces, dtype):
    """Catches a head for several tokens that an export loses, moves to another file, rounds, or takes for unknown."""
    bfloat16 = torch.bfloat16
    source = weights.make_source("qwen3_5", tiny_folder, tmp_path / "source", layout="nested", dtype=bfloat16)
    head = {"mtp.fc.weight": torch.randn(96, 192).to(bfloat16), "mtp.norm.weight": torch.full((96,), torch.nan)}
    tensors = weights.load(source) | head
    (source / "model.safetensors").unlink()
    weights.write(source, tensors, num_files=3)
    num_params = hf_to_jax.convert(source, tmp_path / "params")
    assert num_params == sum(tensor.numel() for name, tensor in tensors.items() if name not in head)
    jax_to_hf.convert(tmp_path / "params", source, tmp_path / "out", dtype=dtype)
    expected = {name: x if name in head or dtype == "source" else x.float() for name, x in tensors.items()}
    weights.assert_same_bits(weights.load(tmp_path / "out"), expected)
    files = [
        json.loads((folder / "model.safetensors.index.json").read_text())["weight_map"]
        for folder in (source, tmp_path / "out")
    ]
    assert files[0] == files[1]
    stages = check_parity.compare(tmp_path / "out", tmp_path / "params")
    assert not any(stage.differing for stage in stages.values())


def test_files_hold_the_limit_and_the_index_names_each_tensor(tiny_folder, tmp_path):
    """Catches files past the limit, an empty one, a file for each tensor, and a total size in elements."""
    bare = make_folder("qwen2_5_vl", tiny_folder, tmp_path / "bare")
    source = weights.make_source("qwen2_5_vl", tiny_folder, tmp_path / "source")
    num_params = hf_to_jax.convert(source, tmp_path / "params")
    limit = 100_000  # bytes; less than the embedding, which comes first
    jax_to_hf.convert(tmp_path / "params", bare, tmp_path / "out", dtype="float32", max_shard_bytes=limit)

    index = json.loads((tmp_path / "out" / "model.safetensors.index.json").read_text())
    totals = []
    for file in sorted((tmp_path / "out").glob("*.safetensors")):
        with safe_open(file, framework="numpy") as shard:
            sizes = {name: shard.get_tensor(name).nbytes for name in shard.keys()}  # noqa: SIM118 (a shard is no dict)
            assert shard.metadata() == {"format": "pt"}
        assert sum(sizes.values()) <= limit or len(sizes) == 1
        assert all(index["weight_map"].pop(name) == file.name for name in sizes)
        totals.append(sum(sizes.values()))
    assert not index["weight_map"]
    assert min(totals) > 0
    assert all(one + two > limit for one, two in itertools.pairwise(totals))
    assert index["metadata"]["total_size"] == sum(totals) == 4 * num_params


def test_overwrite_replaces_the_whole_folder(tiny_folder, tmp_path):
    """Catches shards and an index of an earlier export that stay beside the new weights."""
    source = weights.make_source("qwen2_5_vl", tiny_folder, tmp_path / "source")
    hf_to_jax.convert(source, tmp_path / "params")
    out = Path(shutil.copytree(source, tmp_path / "out"))
    (out / "model.safetensors").rename(out / "model-00001-of-00001.safetensors")
    weights.write_index(out)

    jax_to_hf.convert(tmp_path / "params", source, out, overwrite=True)

    assert files_of(out) == files_of(source)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "params", "source"]
