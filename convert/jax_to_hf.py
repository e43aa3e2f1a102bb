"""Our parameters to a Hugging Face folder that transformers, vLLM and SGLang load.

python -m convert.jax_to_hf --checkpoint=DIR --hf=DIR --out=DIR [--dtype=bfloat16] [--overwrite]
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np
import tensorstore as ts
from absl import flags
from etils import epath

from care_jax import cli, files
from care_jax.checkpoints.array_store import StoredParam
from care_jax.checkpoints.load import open_params
from care_jax.errors import InputError
from care_jax.models import load_model_config
from convert import hf_folder, mapping, safetensors_io, staging
from convert.hf_folder import INDEX_FILE, SINGLE_FILE
from convert.mapping import DTYPES, Source
from convert.safetensors_io import Shard, Spec
from convert.weight import Layout, Weight, row_ranges

_DTYPES = {"float32": "F32", "bfloat16": "BF16"}
_WEIGHT_FILES = ("*.safetensors", INDEX_FILE, "*.bin", "*.bin.index.json", "*.pt", "*.pth", "*.gguf")
_NOT_CARRIED = (*_WEIGHT_FILES, ".cache", ".git")  # what the hub's client and a clone leave in a folder
_MAX_SHARD_BYTES = 4 * 2**30


def convert(
    path: epath.PathLike,
    folder: Path,
    out: Path,
    *,
    dtype: str = "source",
    overwrite: bool = False,
    max_shard_bytes: int = _MAX_SHARD_BYTES,
) -> int:
    """Writes the parameters at `path` to `out`, beside unchanged copies of the other files of `folder`.

    If `folder` has weights, the new ones have their files, names, order and types, so that a model converted from it
    gives the same bytes again. If it has none, they have the names of the published files and the type that
    config.json names. config.json stays as it is in any case.

    Args:
        path: a run, a checkpoint or a converted model.
        folder: the Hugging Face folder.
        out: the new Hugging Face folder.
        dtype: float32 or bfloat16; "source" for the types of `folder`.
        overwrite: replace `out`, if it is a Hugging Face folder.
        max_shard_bytes: of a file, if `folder` has no weights and no single tensor is larger.

    Returns:
        The number of parameters.

    Raises:
        InputError: no checkpoint at `path`, parameters that do not fit config.json (all listed), an unknown dtype,
            or an `out` that may not or cannot be written.
    """
    _check_out(out, folder, overwrite=overwrite)
    config = load_model_config(folder)
    weights = mapping.weights_of(config)
    shards = _plan(folder, weights, mapping.published_layout(config), dtype, max_shard_bytes)
    params = open_params(path)
    mapping.check_params(params, weights)
    num_bytes = sum(spec.nbytes for shard in shards.values() for spec in shard.tensors.values())
    with staging.new_folder(out, num_bytes=num_bytes, replace=overwrite) as new:
        shutil.copytree(folder, new, ignore=shutil.ignore_patterns(*_NOT_CARRIED), dirs_exist_ok=True)
        _write_weights(new, shards, weights, params)
        if dtype == "source" and (folder / INDEX_FILE).is_file():
            shutil.copy(folder / INDEX_FILE, new)
        elif shards.keys() != {SINGLE_FILE}:
            write_index(new / INDEX_FILE, shards, num_bytes)
    return sum(np.prod(param.shape, dtype=int) for param in params.values())


def _check_out(out: Path, folder: Path, *, overwrite: bool) -> None:
    """Refuses to write over anything but a Hugging Face folder, and over the source."""
    ours, source = out.resolve(), folder.resolve()
    if ours == source or ours in source.parents or source in ours.parents:
        raise InputError(f"--out={out} and --hf={folder} lie inside each other; name a folder beside it")
    if not out.exists():
        return
    if not overwrite:
        raise InputError(f"--out={out} exists already; name a new folder or pass --overwrite")
    if not (out / "config.json").is_file():
        raise InputError(f"--out={out} is not a Hugging Face folder (no config.json), so --overwrite leaves it alone")


def _plan(folder: Path, weights: list[Weight], layout: Layout, dtype: str, max_shard_bytes: int) -> dict[str, Shard]:
    """The files to write, by name."""
    if dtype != "source" and dtype not in _DTYPES:
        raise InputError(f"cannot write {dtype=}; pass --dtype=float32 or --dtype=bfloat16")
    if not hf_folder.has_weights(folder):
        named = _DTYPES[_config_dtype(folder) if dtype == "source" else dtype]
        sources = mapping.by_hf_name(weights).items()
        specs = {mapping.laid_out(name, layout): Spec(named, source.weight.shape) for name, source in sources}
        return split(specs, max_shard_bytes)
    shards = hf_folder.read_shards(folder)
    mapping.check_tensors(hf_folder.all_tensors(shards), weights)
    return {
        file: Shard(
            {
                name: tensor if dtype == "source" else Spec(_DTYPES[dtype], tensor.shape)
                for name, tensor in shard.tensors.items()
            },
            shard.metadata,
        )
        for file, shard in shards.items()
    }


def _config_dtype(folder: Path) -> str:
    config = json.loads((folder / "config.json").read_text())
    keys = [key for key in ("dtype", "torch_dtype") if key in config]  # transformers 5 and the hub
    if not keys:
        raise InputError(f"{folder / 'config.json'} names no dtype; pass --dtype=float32 or --dtype=bfloat16")
    if config[keys[0]] not in _DTYPES:
        raise InputError(f"cannot write dtype {config[keys[0]]!r}; pass --dtype=float32 or --dtype=bfloat16")
    return config[keys[0]]


def split(specs: dict[str, Spec], max_shard_bytes: int) -> dict[str, Shard]:
    """One file, or files of at most `max_shard_bytes` unless a single tensor is larger."""
    parts: list[dict[str, Spec]] = [{}]
    filled = 0
    for name, spec in specs.items():
        if parts[-1] and filled + spec.nbytes > max_shard_bytes:
            parts.append({})
            filled = 0
        parts[-1][name] = spec
        filled += spec.nbytes
    count = len(parts)
    files = [SINGLE_FILE] if count == 1 else [f"model-{i:05}-of-{count:05}.safetensors" for i in range(1, count + 1)]
    return {file: Shard(part, {"format": "pt"}) for file, part in zip(files, parts, strict=True)}


def _write_weights(
    folder: Path, shards: Mapping[str, Shard], weights: list[Weight], params: Mapping[str, StoredParam]
) -> None:
    sources = mapping.by_hf_name(weights)
    for file, shard in shards.items():
        pieces = (
            piece
            for name, spec in shard.tensors.items()
            for piece in _pieces(sources[mapping.hub_name(name)], params, DTYPES[spec.dtype])
        )
        rows = (weight.to_hf(part.result().astype(dtype, copy=False)) for weight, part, dtype in _one_ahead(pieces))
        safetensors_io.write(folder / file, shard, rows)


class _Piece(NamedTuple):
    """Some rows of a tensor, being read from our array."""

    weight: Weight
    part: ts.Future[np.ndarray]
    dtype: np.dtype  # to write


def _pieces(source: Source, params: Mapping[str, StoredParam], dtype: np.dtype) -> Iterator[_Piece]:
    param = params[source.weight.ours]
    for rows in row_ranges(source.weight, param.chunk_shape, param.dtype):
        yield _Piece(source.weight, param.read(source.weight.place(source.layer, rows)), dtype)


def _one_ahead(pieces: Iterator[_Piece]) -> Iterator[_Piece]:
    """Prefetches by one: reading the next piece starts before the current one is yielded."""
    current = next(pieces)
    for following in pieces:
        yield current
        current = following
    yield current


def write_index(file: Path, shards: Mapping[str, Shard], num_bytes: int) -> None:
    """Writes the index that says which file holds which tensor."""
    weight_map = {name: file for file, shard in shards.items() for name in shard.tensors}
    index = {"metadata": {"total_size": num_bytes}, "weight_map": weight_map}
    file.write_text(json.dumps(index, indent=2, sort_keys=True) + "\n")


def _define_flags() -> None:
    flags.DEFINE_string("checkpoint", None, "Run, checkpoint, or converted model with the parameters.", required=True)
    flags.DEFINE_string("hf", None, "Hugging Face folder whose non-weight files are carried over.", required=True)
    flags.DEFINE_string("out", None, "New Hugging Face folder.", required=True)
    flags.DEFINE_enum("dtype", "source", ["source", *_DTYPES], "Of the weights; source: what --hf has.")
    flags.DEFINE_bool("overwrite", False, "Replace an --out that is a Hugging Face folder.")


def main() -> None:
    """The command; raises InputError on bad input."""
    args = flags.FLAGS
    folder, out = files.on_disk(args.hf, "--hf"), files.on_disk(args.out, "--out")
    size = convert(args.checkpoint, folder, out, dtype=args.dtype, overwrite=args.overwrite)
    print(f"{size:,} parameters -> {out}")


if __name__ == "__main__":
    _define_flags()
    cli.run_flags(main, on_host=True)
