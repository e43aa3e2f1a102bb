"""The tables: they cover the model, put values where it reads them, and tell everything that does not fit."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from care_jax import models
from care_jax.convert import hf_to_jax, mapping
from care_jax.convert import weight as weight_lib
from care_jax.convert.weight import Weight, row_ranges
from tests import weights
from tests.families import FAMILIES, edit_json, make_folder


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("family", FAMILIES)
def test_table_covers_the_model(tiny_folder, tmp_path, family, tied):
    """Catches a parameter of the model that the table forgets, or whose shape it has wrong."""
    folder = make_folder(family, tiny_folder, tmp_path / "source")
    edit_json(folder / "config.json", tie_word_embeddings=tied)
    config = models.load_model_config(folder)
    ours = {name: leaf.shape for name, leaf in models.params_to_dict(models.abstract_model(config)).items()}
    assert {weight.ours: weight.our_shape for weight in mapping.weights_of(config)} == ours


def test_values_land_where_the_model_reads_them(tiny_folder, tmp_path):
    """Catches a transpose, layer order or patch order that is wrong the same way in both directions."""
    source = weights.make_source("qwen2_5_vl", tiny_folder, tmp_path / "source")
    tensors, params = weights.load(source), weights.read_hf(source)
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


def test_heads_of_linear_attention_lie_side_by_side(tiny_folder, tmp_path):
    """Catches q, k and v of different heads in one part of a divided projection: tensor would mix up heads."""
    source = weights.make_source("qwen3_5", tiny_folder, tmp_path / "source")
    tensors, params = weights.load(source), weights.read_hf(source)
    qkv = tensors["model.layers.1.linear_attn.in_proj_qkv.weight"].numpy()  # 2 x 16 of q, 2 x 16 of k, 4 x 24 of v
    second = np.concatenate([qkv[16:32], qkv[48:64], qkv[64 + 48 :]])
    kernel = params["layers.linear_attention.linear_attn.in_proj_qkv.kernel"]
    np.testing.assert_array_equal(kernel[1][:, 80:], second.T)
    conv = tensors["model.layers.2.linear_attn.conv1d.weight"].numpy()
    ours = params["layers.linear_attention.linear_attn.conv1d.kernel"]
    np.testing.assert_array_equal(ours[2][:, 80 + 16], conv[48, 0])
    full = tensors["model.layers.3.self_attn.q_proj.weight"].numpy()
    np.testing.assert_array_equal(params["layers.full_attention.self_attn.q_proj.kernel"][0], full.T)


def test_rows_go_there_and_back(monkeypatch):
    """Catches pieces that overlap, leave rows out or cut chunks, and a strip of the transpose that is left empty."""
    monkeypatch.setattr(weight_lib, "PIECE_BYTES", 1000)
    for weight, chunk in (
        (Weight("w", "w", (50, 3, 4), kernel=True), (12, 7)),
        (Weight("w{i}", "w", (50, 37), kernel=True, layers=range(2)), (1, 37, 5)),
        (Weight("w{i}", "w", (50, 6), layers=range(2)), (1, 8, 6)),
        (Weight("w", "w", (50,)), (50,)),
    ):
        tensor = np.random.default_rng(0).random(weight.shape, np.float32)
        ours = np.full(weight.our_shape, np.nan, np.float32)
        pieces = list(row_ranges(weight, chunk, tensor.dtype))
        assert all(piece.start % chunk[weight.row_axis] == 0 for piece in pieces)
        assert all(tensor[piece].nbytes <= 1000 or len(pieces) == 1 for piece in pieces)
        for piece in pieces:
            ours[weight.place(0, piece)] = weight.to_ours(tensor[piece])
        back = np.concatenate([weight.to_hf(ours[weight.place(0, piece)]) for piece in pieces])
        np.testing.assert_array_equal(back, tensor)
        assert np.isnan(ours).sum() == (ours.size - tensor.size)


def test_every_misfit_is_listed_at_once(tiny_folder, tmp_path):
    """Catches an import that fills what is missing, drops what it does not know, or stops at the first problem."""
    source = weights.make_source("qwen2_5_vl", tiny_folder, tmp_path / "source")
    broken = weights.load(source)
    del broken["visual.blocks.2.attn.qkv.bias"], broken["model.norm.weight"]
    broken["model.layers.3.mlp.up_proj.weight"] = torch.zeros(1)
    broken["visual.merger.mlp.1.bias"] = torch.zeros(1)
    broken["model.layers.1.self_attn.k_proj.weight"] = torch.zeros(128, 64)
    broken["visual.blocks.0.attn.qkv.bias"] = broken["visual.blocks.0.attn.qkv.bias"].to(torch.int32)
    weights.write(source, broken)

    with pytest.raises(ValueError, match="do not fit the model") as error:
        hf_to_jax.convert(source, tmp_path / "params")

    message = str(error.value)
    assert message.startswith("6 Hugging Face tensors do not fit")
    assert sorted(message.partition("that belongs to them: ")[2].split("; ")) == [
        "model.layers.1.self_attn.k_proj.weight: shape (128, 64), expected (64, 128)",
        "model.layers.3.mlp.up_proj.weight: unknown",
        "model.norm.weight: missing",
        "visual.blocks.0.attn.qkv.bias: type I32, supported: F32, BF16, F16",
        "visual.blocks.2.attn.qkv.bias: missing",
        "visual.merger.mlp.1.bias: unknown",
    ]
    assert [path.name for path in tmp_path.iterdir()] == ["source"]


def test_an_index_that_disagrees_with_its_files_is_refused(tiny_folder, tmp_path):
    """Catches a tensor of an older shard that is taken for the one the index means."""
    source = weights.make_source("qwen2_5_vl", tiny_folder, tmp_path / "source", num_files=2)
    first = source / "model-00001-of-00002.safetensors"
    tensors = weights.load(source)
    names = json.loads((source / "model.safetensors.index.json").read_text())["weight_map"]
    kept = [name for name, file in names.items() if file == first.name]
    save_file({name: tensors[name] for name in kept[1:]}, first)
    with pytest.raises(ValueError, match="contradicts the files") as error:
        hf_to_jax.convert(source, tmp_path / "params")
    assert str(error.value).endswith(f"download both again: {kept[0]}: not in {first.name}")
    save_file(tensors, source / "model.safetensors")  # transformers would load this one
    with pytest.raises(ValueError, match=r"has model.safetensors and .*, which does not name it"):
        hf_to_jax.convert(source, tmp_path / "params")
    (source / "model.safetensors").unlink()
    (source / "model.safetensors.index.json").write_text('{"metadata": {}}')
    with pytest.raises(ValueError, match="has no field 'weight_map'"):
        hf_to_jax.convert(source, Path(tmp_path / "params"))
