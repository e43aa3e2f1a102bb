"""The weight files of a Hugging Face folder: a single one, or several and their index."""

from __future__ import annotations

import json
from pathlib import Path

from care_jax.errors import InputError
from convert import safetensors_io
from convert.safetensors_io import StoredShard, Tensor

SINGLE_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"


def has_weights(folder: Path) -> bool:
    """True if there are safetensors, or an index that names some."""
    return any((folder / name).is_file() for name in (SINGLE_FILE, INDEX_FILE))


def read_shards(folder: Path) -> dict[str, StoredShard]:
    """The headers of the weight files by file name.

    Raises:
        InputError: no safetensors, files that the index names and that are missing, a file that is cut off, an index
            that contradicts the files, or weights beside those of the index.
    """
    if not has_weights(folder):
        raise InputError(f"no weights in {folder}: looked for {SINGLE_FILE} and {INDEX_FILE}; download one of them")
    index = folder / INDEX_FILE
    if not index.is_file():
        return {SINGLE_FILE: safetensors_io.read_header(folder / SINGLE_FILE)}
    weight_map = _read_weight_map(index)
    files = sorted(set(weight_map.values()))
    if SINGLE_FILE not in files and (folder / SINGLE_FILE).is_file():
        raise InputError(f"{folder} has {SINGLE_FILE} and {INDEX_FILE}, which does not name it; remove one of them")
    if absent := [file for file in files if not (folder / file).is_file()]:
        raise InputError(f"{index} names files that are not there: {', '.join(absent)}; download them")
    shards = {file: safetensors_io.read_header(folder / file) for file in files}
    found = {(name, file) for file, shard in shards.items() for name in shard.tensors}
    if differing := sorted(found ^ set(weight_map.items())):
        lines = (f"{name}: {'not ' if (name, file) not in found else ''}in {file}" for name, file in differing)
        raise InputError(f"{index} contradicts the files; download both again:\n  " + "\n  ".join(lines))
    return shards


def _read_weight_map(index: Path) -> dict[str, str]:
    try:
        weight_map = json.loads(index.read_text())["weight_map"]
        return {str(name): str(file) for name, file in weight_map.items()}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(f"{index} is not an index of safetensors ({error!r}); download it again") from error


def all_tensors(shards: dict[str, StoredShard]) -> dict[str, Tensor]:
    """The tensors of all files by name."""
    return {name: tensor for shard in shards.values() for name, tensor in shard.tensors.items()}
