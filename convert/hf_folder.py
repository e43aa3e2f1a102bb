"""The weight files of a Hugging Face folder: a single one, or several and their index."""

from __future__ import annotations

import re
from pathlib import Path

from care_jax.convert import safetensors_io
from care_jax.convert.other_forms import no_weights, refuse_other_forms
from care_jax.convert.safetensors_io import StoredShard, Tensor
from care_jax.errors import InputError, listed, shown
from care_jax.models import ModelConfig, load_model_config
from care_jax.models.model_folder import read_fields

SINGLE_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"
_PLAIN_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*\.safetensors")


def read_config(folder: Path) -> ModelConfig:
    """The architecture of the folder's model.

    Raises:
        InputError: the folder is an adapter or its weights are quantized, or config.json cannot be used.
    """
    refuse_other_forms(folder)
    return load_model_config(folder)


def has_weights(folder: Path) -> bool:
    """True if there are safetensors, or an index that names some."""
    return any((folder / name).is_file() for name in (SINGLE_FILE, INDEX_FILE))


def read_shards(folder: Path) -> dict[str, StoredShard]:
    """The headers of the weight files by file name.

    Raises:
        InputError: no safetensors, files that the index names and that are missing or no plain names, a file that is
            cut off, an index that contradicts the files, or weights beside those of the index.
    """
    if not has_weights(folder):
        raise no_weights(folder, f"{SINGLE_FILE} or {INDEX_FILE}")
    index = folder / INDEX_FILE
    if not index.is_file():
        return {SINGLE_FILE: safetensors_io.read_header(folder / SINGLE_FILE)}
    weight_map = _read_weight_map(index)
    files = sorted(set(weight_map.values()))
    if SINGLE_FILE not in files and (folder / SINGLE_FILE).is_file():
        raise InputError(f"{folder} has {SINGLE_FILE} and {INDEX_FILE}, which does not name it; remove one of them")
    if absent := [file for file in files if not (folder / file).is_file()]:
        raise InputError(f"{index} names files that are not there: {listed(absent)}; download them")
    shards = {file: safetensors_io.read_header(folder / file) for file in files}
    found = {(name, file) for file, shard in shards.items() for name in shard.tensors}
    if differing := sorted(found ^ set(weight_map.items())):
        problems = [f"{name}: {'not ' if (name, file) not in found else ''}in {file}" for name, file in differing]
        raise InputError(f"{index} contradicts the files; download both again: {listed(problems)}")
    return shards


def _read_weight_map(index: Path) -> dict[str, str]:
    """The file of each tensor, by a plain name: an export writes files of these names."""
    weight_map = read_fields(index, "weight_map")["weight_map"]
    if not isinstance(weight_map, dict) or not weight_map:
        raise InputError(f"{index} has weight_map {shown(weight_map)}; it must name a file for each tensor")
    for file in weight_map.values():
        if not isinstance(file, str) or not _PLAIN_NAME.fullmatch(file):
            raise InputError(f"{index} names the file {shown(file)}; a plain name is needed, as {SINGLE_FILE}")
    return weight_map


def all_tensors(shards: dict[str, StoredShard]) -> dict[str, Tensor]:
    """The tensors of all files by name."""
    return {name: tensor for shard in shards.values() for name, tensor in shard.tensors.items()}
