"""Weights for tests: Hugging Face folders of random ones, and the conversion table applied in memory."""

from __future__ import annotations

import functools
import json
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import jax
import numpy as np
import torch
import transformers
from safetensors.torch import load_file, save_file

from care_jax.checkpoints import stream
from care_jax.checkpoints.load import load_params
from care_jax.checkpoints.stream import StreamedParam
from care_jax.convert import hf_to_jax, mapping
from care_jax.convert.weight import Layout, Weight
from care_jax.models import ModelConfig, QwenVL, init_model, params_from_dict, params_to_dict
from care_jax.models.model_config import TextConfig
from tests.families import edit_json, make_folder

NAMES = {torch.float32: "F32", torch.bfloat16: "BF16", torch.float16: "F16"}  # as safetensors names them


def random_tensors(folder: Path, dtype: torch.dtype = torch.float32) -> dict[str, torch.Tensor]:
    """Random tensors for transformers' model of `folder`, hub layout; norms and biases too, so that swaps show."""
    torch.manual_seed(0)
    config = transformers.AutoConfig.from_pretrained(folder)
    model = transformers.AutoModelForImageTextToText.from_config(config)
    tensors = {mapping.hub_name(name): torch.randn_like(x).to(dtype) for name, x in model.state_dict().items()}
    if config.tie_word_embeddings:
        del tensors["lm_head.weight"]
    return tensors


def write(folder: Path, tensors: Mapping[str, torch.Tensor], *, num_files: int = 1) -> None:
    """Writes weights as the hub stores them: one file, or shards and an index."""
    for i in range(num_files):
        names = sorted(tensors)[i::num_files]
        file = f"model-{i + 1:05}-of-{num_files:05}.safetensors" if num_files > 1 else "model.safetensors"
        save_file({name: tensors[name].contiguous() for name in names}, folder / file, metadata={"format": "pt"})
    if num_files > 1:
        write_index(folder)


def write_index(folder: Path) -> None:
    """Writes the index of the shards in `folder`."""
    weight_map = {name: file.name for file in sorted(folder.glob("*.safetensors")) for name in load_file(file)}
    index = {"metadata": {"total_size": 1}, "weight_map": weight_map}  # the size is copied, not checked
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def load(folder: Path) -> dict[str, torch.Tensor]:
    """Reads all tensors of a folder."""
    return {name: tensor for file in folder.glob("*.safetensors") for name, tensor in load_file(file).items()}


def initial_model(config: ModelConfig) -> QwenVL:
    """Makes the model that a run starts with, in one program instead of one for each draw."""
    model: QwenVL = jax.jit(functools.partial(init_model, config))(jax.random.key(0))
    return model


def random_model(config: ModelConfig) -> QwenVL:
    """Initial weights with noise, so that norms are not 1 and biases not 0."""
    rng = np.random.default_rng(0)
    initial = params_to_dict(initial_model(config))
    noisy = {name: leaf + 0.05 * rng.standard_normal(leaf.shape, np.float32) for name, leaf in initial.items()}
    weights = {name: settled(name, leaf, config.text) for name, leaf in noisy.items()}
    return params_from_dict(config, jax.device_put(weights))


def make_source(
    family: str,
    tiny_folder: Path,
    folder: Path,
    *,
    tied: bool = True,
    dtype: torch.dtype = torch.float32,
    layout: Layout = "hub",
    num_files: int = 1,
) -> Path:
    """A folder of the family with random weights."""
    make_folder(family, tiny_folder, folder)
    edit_json(folder / "config.json", tie_word_embeddings=tied)
    tensors = {mapping.laid_out(name, layout): tensor for name, tensor in random_tensors(folder, dtype).items()}
    write(folder, tensors, num_files=num_files)
    return folder


def assert_same_bits(actual: Mapping[str, torch.Tensor], expected: Mapping[str, torch.Tensor]) -> None:
    """Checks that names, types, shapes and bits are the same."""
    assert actual.keys() == expected.keys(), actual.keys() ^ expected.keys()
    for name, tensor in expected.items():
        assert actual[name].dtype == tensor.dtype, name
        assert actual[name].shape == tensor.shape, name
        assert torch.equal(actual[name].view(torch.uint8), tensor.contiguous().view(torch.uint8)), name


def settled(name: str, leaf: np.ndarray, text: TextConfig) -> np.ndarray:
    """A random parameter of linear attention so that states last and gradients are bounded; another as it is.

    Keys are made like queries: where they have nothing in common, the output of a head is near 0, and the norm behind
    it makes its rounding errors and its gradient as large as all else.
    """
    if name.endswith("A_log"):
        return leaf - 4.0
    if name.endswith(("in_proj_qkv.kernel", "conv1d.kernel")):
        heads = leaf.reshape(*leaf.shape[:-1], text.linear_num_key_heads, -1)
        q, k, v = np.split(heads, (text.linear_key_head_dim, 2 * text.linear_key_head_dim), axis=-1)
        return np.concatenate([q, 0.8 * q + 0.2 * k, v], axis=-1).reshape(leaf.shape)
    return leaf


def save_params(path: Path, params: Mapping[str, np.ndarray | jax.Array]) -> None:
    """Writes a checkpoint of parameters alone."""
    arrays = {name: np.asarray(value) for name, value in params.items()}
    stream.save_params(
        path, {name: StreamedParam(x.shape, x.dtype, lambda _, x=x: [((), x)]) for name, x in arrays.items()}
    )


def read_hf(folder: Path) -> dict[str, jax.Array]:
    """The float32 parameters of a Hugging Face folder."""
    with tempfile.TemporaryDirectory() as work:
        hf_to_jax.convert(folder, Path(work) / "params")
        return load_params(Path(work) / "params")


def to_hf(params: Mapping[str, np.ndarray | jax.Array], table: Sequence[Weight]) -> dict[str, np.ndarray]:
    """Converts parameters in memory to Hugging Face's tensors by name, in the hub layout."""
    return {
        name: source.weight.to_hf(np.asarray(params[source.weight.ours])[source.weight.place(source.layer)])
        for name, source in mapping.by_hf_name(table).items()
    }
