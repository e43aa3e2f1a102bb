"""Folders as trainers, quantizers and careless copies leave them: used rightly, or told what they are in one line."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from care_jax.checkpoints import load
from care_jax.convert import hf_to_jax, jax_to_hf
from care_jax.errors import InputError
from tests import weights
from tests.families import FAMILIES, edit_json, read_json

HEAD, EMBEDDING = "lm_head.weight", "model.embed_tokens.weight"


@pytest.fixture(scope="module")
def good(tiny_folder, tmp_path_factory) -> Path:
    """source: a tied Qwen2.5-VL; params: the same converted."""
    root = tmp_path_factory.mktemp("good")
    weights.make_source("qwen2_5_vl", tiny_folder, root / "source")
    hf_to_jax.convert(root / "source", root / "params")
    return root


@pytest.fixture
def source(good, tmp_path) -> Path:
    """A copy to change."""
    return Path(shutil.copytree(good / "source", tmp_path / "source"))


def refusal(call) -> str:
    """The one line that `call` is refused with."""
    with pytest.raises(InputError) as error:
        call()
    message = str(error.value)
    assert len(message.splitlines()) == 1, message
    assert len(message) < 3000, message
    return message


# Values


@pytest.mark.parametrize("dtype", weights.NAMES)
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("name", ["model.layers.2.mlp.down_proj.weight", "visual.blocks.1.norm2.weight", EMBEDDING])
def test_nan_and_infinity_are_refused_by_name(source, tmp_path, dtype, value, name):
    """Catches a broken fine-tune that converts, and then answers "!!!!" for a whole evaluation."""
    tensors = {key: tensor.to(dtype) for key, tensor in weights.load(source).items()}
    tensors[name].view(-1)[-7] = value
    weights.write(source, tensors)
    assert f"{name} in " in refusal(lambda: hf_to_jax.convert(source, tmp_path / "params"))
    assert not (tmp_path / "params").exists()


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("name", ["norm.weight", "layers.self_attn.q_proj.kernel"])
def test_nan_and_infinity_in_a_checkpoint_are_refused_by_name(good, tmp_path, name, value):
    """Catches the same in what this project wrote itself: at load and at export."""
    params = {key: np.array(param) for key, param in load.load_params(good / "params").items()}
    params[name].reshape(-1)[5] = value
    weights.save_params(tmp_path / "broken", params)
    assert f"NaN or infinity in {name}" in refusal(lambda: load.load_params(tmp_path / "broken"))
    refusal(lambda: jax_to_hf.convert(tmp_path / "broken", good / "source", tmp_path / "out"))
    assert not (tmp_path / "out").exists()


def test_a_value_that_the_type_cannot_hold_is_refused(good, tmp_path, source):
    """Catches an export to float16 that turns a large weight into infinity."""
    weights.write(source, {name: tensor.half() for name, tensor in weights.load(source).items()})
    params = {key: np.array(param) for key, param in load.load_params(good / "params").items()}
    params["norm.weight"][3] = 1e6
    weights.save_params(tmp_path / "large", params)
    told = refusal(lambda: jax_to_hf.convert(tmp_path / "large", source, tmp_path / "out"))
    assert "model.norm.weight holds" in told
    assert "float16" in told


# Bits


def damaged_files(folder: Path) -> list[Path]:
    """The files of a checkpoint, large ones often, so that a bit at random is mostly one of a weight."""
    files = [path for path in sorted(folder.rglob("*")) if path.is_file() and path.stat().st_size]
    return [path for path in files for _ in range(1 + path.stat().st_size // 10_000)]


@pytest.mark.parametrize("use", ["export", "load"])
def test_a_flipped_bit_is_never_carried_on(good, tmp_path, use):
    """Catches weights that changed on disk: a flip is refused, or it changes nothing."""
    rng = np.random.default_rng(1)
    expected = weights.load(good / "source")
    params = load.load_params(good / "params")
    refused = 0
    for trial in range(40):
        copy = Path(shutil.copytree(good / "params", tmp_path / f"params{trial}"))
        files = damaged_files(copy)
        path = files[rng.integers(len(files))]
        content = bytearray(path.read_bytes())
        content[rng.integers(len(content))] ^= 1 << rng.integers(8)
        path.write_bytes(content)
        try:
            if use == "export":
                jax_to_hf.convert(copy, good / "source", tmp_path / f"out{trial}")
                weights.assert_same_bits(weights.load(tmp_path / f"out{trial}"), expected)
            else:
                loaded = load.load_params(copy)
                assert all((loaded[name] == param).all() for name, param in params.items())
        except InputError:
            refused += 1
            assert not (tmp_path / f"out{trial}").exists()
        shutil.rmtree(copy)
    assert refused >= 25


# Tensors that are more than needed


def test_equal_extras_are_left_out_with_a_line(source, tmp_path, capsys):
    """Catches a conversion refused for a tied head, rotary frequencies or a second name that say nothing new."""
    tensors = weights.load(source)
    frequencies = 2.0 ** -(torch.arange(0, 32, 2) / 32)  # rope_theta is 2 in the tiny model
    extras = {
        HEAD: tensors[EMBEDDING].clone(),
        "model.layers.0.self_attn.rotary_emb.inv_freq": frequencies,
        "model.rotary_emb.inv_freq": frequencies.bfloat16(),
        "visual.rotary_pos_emb.inv_freq": 10000.0 ** -(torch.arange(0, 8, 2) / 8),
        "model.visual.merger.ln_q.weight": tensors["visual.merger.ln_q.weight"].clone(),
    }
    (source / "model.safetensors").unlink()
    weights.write(source, {**tensors, **extras}, num_files=2)
    hf_to_jax.convert(source, tmp_path / "params")
    told = capsys.readouterr().err.splitlines()
    assert len(told) == 1
    assert all(name in told[0] or "ln_q" in name for name in extras)
    assert "ln_q" in told[0]
    jax_to_hf.convert(tmp_path / "params", source, tmp_path / "out")
    index = read_json(tmp_path / "out" / "model.safetensors.index.json")
    written = weights.load(tmp_path / "out")
    assert index["weight_map"].keys() == written.keys()
    assert len(written) == len(tensors)
    for name, tensor in written.items():
        assert torch.equal(tensor, tensors[name.replace("model.visual.", "visual.")])


@pytest.mark.parametrize(
    ("name", "make", "words"),
    [
        (HEAD, lambda tensors: tensors[EMBEDDING] + 1, "set tie_word_embeddings to false in config.json"),
        (HEAD, lambda tensors: tensors[EMBEDDING].half(), "set tie_word_embeddings to false in config.json"),
        ("model.rotary_emb.inv_freq", lambda tensors: 3.0 ** -(torch.arange(0, 32, 2) / 32), "set its rope_theta"),
        ("model.visual.merger.ln_q.weight", lambda tensors: torch.zeros(64), "remove one of the two"),
    ],
)
def test_extras_that_differ_say_what_to_set(source, tmp_path, name, make, words):
    """Catches a head or a frequency that was trained and is thrown away."""
    tensors = weights.load(source)
    weights.write(source, {**tensors, name: make(tensors)})
    told = refusal(lambda: hf_to_jax.convert(source, tmp_path / "params"))
    assert words in told
    assert name in told or "ln_q" in told


def test_a_missing_head_says_what_to_set(source, tmp_path):
    """Catches the reverse: a tied model whose config.json says that it is not."""
    edit_json(source / "config.json", tie_word_embeddings=False)
    assert "set tie_word_embeddings to true" in refusal(lambda: hf_to_jax.convert(source, tmp_path / "params"))


@pytest.mark.slow
@pytest.mark.parametrize(
    "prefix", ["model.", "module.", "_orig_mod.", "base_model.model.", "module._orig_mod.model.", "module.module."]
)
@pytest.mark.parametrize("family", FAMILIES)
def test_prefixes_of_trainers_are_read_over(tiny_folder, tmp_path, family, prefix):
    """Catches 161 unknown tensors where the same model is saved from inside a wrapper."""
    source = weights.make_source(family, tiny_folder, tmp_path / "source", tied=False)
    expected = weights.read_hf(source)
    tensors = weights.load(source)
    inner = {name.replace("layers.1.", "layers.1._orig_mod."): tensor for name, tensor in tensors.items()}
    weights.write(source, {prefix + name: tensor for name, tensor in inner.items()})
    found = weights.read_hf(source)
    assert found.keys() == expected.keys()
    assert all((found[name] == value).all() for name, value in expected.items())


def test_long_lists_are_cut(source, tmp_path):
    """Catches a screen of names, of which the first says it all."""
    tensors = weights.load(source)
    weights.write(source, {f"other.{name}": tensor for name, tensor in tensors.items()})
    told = refusal(lambda: hf_to_jax.convert(source, tmp_path / "params"))
    assert told.startswith(f"{2 * len(tensors)} Hugging Face tensors do not fit")
    assert told.endswith(f"; and {2 * len(tensors) - 20} more")


# Other forms


def quantize(name: str, dtype: torch.dtype, suffix: str = "weight"):
    """Puts quantized tensors into the file, without a word in config.json."""

    def change(folder: Path) -> None:
        tensors = weights.load(folder)
        tensors[name.replace("weight", suffix)] = tensors.pop(name).to(dtype)
        weights.write(folder, tensors)

    return change


def says(**config):
    """Puts fields into config.json."""
    return lambda folder: edit_json(folder / "config.json", **config)


def only(*names: str):
    """Leaves files of these names in the place of the weights."""

    def change(folder: Path) -> None:
        (folder / "model.safetensors").unlink()
        for name in names:
            (folder / name).write_bytes(b"x")

    return change


PROJECTION = "model.layers.1.mlp.up_proj.weight"
OTHER_FORMS = {
    "awq": (says(quantization_config={"quant_method": "awq", "bits": 4}), ["awq", "dequantize"]),
    "gptq": (says(quantization_config={"quant_method": "gptq"}), ["gptq", "dequantize"]),
    "fp8": (says(quantization_config={"quant_method": "fp8"}), ["fp8", "dequantize"]),
    "bitsandbytes": (says(quantization_config={"load_in_4bit": True}), ["quantized", "dequantize"]),
    "compressed": (says(compression_config={"quant_method": "compressed-tensors"}), ["compressed-tensors"]),
    "nested": (says(text_config={"quantization_config": {"quant_method": "awq"}}), ["awq", "dequantize"]),
    "a list": (says(quantization_config=[1]), ["quantized"]),
    "quantize_config.json": (lambda folder: (folder / "quantize_config.json").write_text("{}"), ["quantized"]),
    "float8 alone": (quantize(PROJECTION, torch.float8_e4m3fn), [PROJECTION, "F8_E4M3", "dequantize"]),
    "int8 alone": (quantize(PROJECTION, torch.int8), [PROJECTION, "I8", "dequantize"]),
    "qweight alone": (quantize(PROJECTION, torch.int32, "qweight"), ["qweight", "dequantize"]),
    "adapter": (lambda folder: (folder / "adapter_config.json").write_text("{}"), ["adapter_config.json", "merge"]),
    "adapter as peft saves it": (
        lambda folder: [only("adapter_config.json")(folder), (folder / "config.json").unlink()],
        ["adapter_config.json", "merge"],
    ),
    "adapter alone": (quantize(PROJECTION, torch.float32, "lora_A.weight"), ["lora_A", "merge"]),
    "torch": (only("pytorch_model.bin"), ["pytorch_model.bin", "only safetensors", "save_pretrained"]),
    "torch shards": (only("pytorch_model-00001-of-00002.bin"), ["only safetensors"]),
    "gguf": (only("model-q4.gguf"), ["model-q4.gguf", "only safetensors"]),
    "no index": (only("model-00001-of-00002.safetensors"), ["model-00001-of-00002.safetensors", "index"]),
}


@pytest.mark.parametrize("name", OTHER_FORMS)
def test_other_forms_are_called_by_their_name(source, tmp_path, name):
    """Catches a list of tensors in the place of what the folder is and what to do."""
    change, words = OTHER_FORMS[name]
    change(source)
    told = refusal(lambda: hf_to_jax.convert(source, tmp_path / "params"))
    assert all(word in told for word in words), told


def test_a_hugging_face_folder_as_weights_names_the_converter(source):
    """Catches "no finished checkpoint" for what most people have."""
    assert "convert.hf_to_jax --hf=" in refusal(lambda: load.load_params(source))


# The export stays in its folder


@pytest.mark.parametrize(
    "file", ["/tmp/x.safetensors", "../x.safetensors", "a/b.safetensors", "..", "", "x.bin", "a\0.safetensors", 7, None]
)
def test_the_index_names_plain_files(good, source, tmp_path, file):
    """Catches an export that overwrites a file elsewhere, and reports no weights as written."""
    tensors = weights.load(source)
    weights.write(source, tensors, num_files=2)
    (source / "model.safetensors").unlink()
    index = read_json(source / "model.safetensors.index.json")
    index["weight_map"][EMBEDDING] = file
    (source / "model.safetensors.index.json").write_text(json.dumps(index))
    told = refusal(lambda: jax_to_hf.convert(good / "params", source, tmp_path / "out"))
    assert "a plain name is needed" in told
    assert sorted(path.name for path in tmp_path.iterdir()) == ["source"]


def test_links_that_leave_the_folder_are_not_followed(good, source, tmp_path, capsys):
    """Catches private files of this machine inside an export."""
    (tmp_path / "secret").write_text("key")
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "inner").write_text("key")
    (source / "notes").mkdir()
    (source / "notes" / "outside").symlink_to(tmp_path / "secret")
    (source / "linked").symlink_to(tmp_path / "folder")
    (source / "loop").symlink_to(source)
    (source / "dangling").symlink_to(tmp_path / "nothing")
    (source / "absolute").symlink_to("/dev/zero")
    (source / "LICENSE").write_text("free")
    (source / "COPYING").symlink_to("LICENSE")
    jax_to_hf.convert(good / "params", source, tmp_path / "out")
    told = capsys.readouterr().err.splitlines()
    assert len(told) == 1
    assert all(name in told[0] for name in ("outside", "linked", "loop", "dangling", "absolute"))
    assert (tmp_path / "out" / "COPYING").read_text() == "free"
    assert not any(path.is_symlink() or path.name == "outside" for path in (tmp_path / "out").rglob("*"))
    assert not any(path.read_bytes() == b"key" for path in (tmp_path / "out").rglob("*") if path.is_file())


@pytest.mark.parametrize("name", ["tokenizer.json", "preprocessor_config.json", "tokenizer_config.json"])
def test_an_export_without_a_needed_file_is_refused(good, source, tmp_path, name):
    """Catches an export without a tokenizer that ends well, since the source's is a link out of its folder."""
    (source / name).rename(tmp_path / name)
    (source / name).symlink_to(tmp_path / name)
    with pytest.raises(InputError, match=f"{name} of .* lie outside"):
        jax_to_hf.convert(good / "params", source, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_the_blobs_of_a_hub_cache_are_carried_over(good, source, tmp_path):
    """Catches an export without config and tokenizer: in a cache, all files of a snapshot are links."""
    blobs, snapshot = tmp_path / "models--q" / "blobs", tmp_path / "models--q" / "snapshots" / "abc"
    blobs.mkdir(parents=True)
    snapshot.mkdir(parents=True)
    for path in source.iterdir():
        shutil.copy(path, blobs / f"hash-{path.name}")
        (snapshot / path.name).symlink_to(Path("../../blobs") / f"hash-{path.name}")
    jax_to_hf.convert(good / "params", snapshot, tmp_path / "out")
    assert {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()} == {
        path.name: path.read_bytes() for path in source.iterdir()
    }


def test_an_export_stops_where_the_template_ends_a_turn(good, source, tmp_path, capsys):
    """Catches an export whose answers never end elsewhere: the stop ids of its source named <|endoftext|> alone."""
    edit_json(source / "generation_config.json", eos_token_id=272)
    jax_to_hf.convert(good / "params", source, tmp_path / "out")
    assert read_json(tmp_path / "out" / "generation_config.json")["eos_token_id"] == [274, 272]
    assert re.search("leaves out 274", capsys.readouterr().err)
    edit_json(source / "generation_config.json", eos_token_id=[272, 274])
    jax_to_hf.convert(good / "params", source, tmp_path / "again")
    again, before = (folder / "generation_config.json" for folder in (tmp_path / "again", source))
    assert again.read_bytes() == before.read_bytes()
