"""Our parameters to a Hugging Face folder that transformers, vLLM and SGLang load.

    python -m convert.jax_to_hf --checkpoint=DIR --hf=DIR --out=DIR [--dtype=bfloat16] [--overwrite] [--adapter]

The weights get the files, names, order and types that --hf has; its other files are copied. The export of a run has the
pixel limits and stop ids that the run trained with; a note on stderr names what could not be taken over. The command
ends with a program that asks the export in transformers.

Adapters are added to the weights beneath them. With --adapter they are written alone, in a folder that the peft library
loads onto the model of --hf.
"""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np
import tensorstore as ts
from absl import flags
from etils import epath

from care_jax import cli, files
from care_jax.checkpoints.array_store import Index, StoredParam
from care_jax.checkpoints.base import base_params, read_base
from care_jax.checkpoints.checksums import PartialSum, digest, require_equal
from care_jax.checkpoints.load import find_params, open_params, read_sums
from care_jax.convert import adapter as adapter_lib
from care_jax.convert import hf_folder, mapping, safetensors_io, staging, trained_with
from care_jax.convert.adapter import Adapters
from care_jax.convert.carried_files import add_end_of_turn, copy_files
from care_jax.convert.extra_tensors import without_extras
from care_jax.convert.hf_folder import INDEX_FILE, SINGLE_FILE
from care_jax.convert.mapping import DTYPES, Source
from care_jax.convert.model_card import write_card
from care_jax.convert.safetensors_io import Shard, Spec, Tensor
from care_jax.convert.weight import PIECE_BYTES, Weight, row_ranges
from care_jax.errors import InputError, one_line, shown
from care_jax.models import ModelConfig
from care_jax.models.model_folder import read_fields

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
    """Writes the parameters at `path` to `out`, beside copies of the other files of `folder`.

    The copies are unchanged but for the stop ids (`add_end_of_turn`) and the pixel limits of the run that the
    parameters lie in (`trained_with`).

    If `folder` has weights, the new ones have their files, names, order and types, so that a model converted from it
    gives the same bytes again; tensors of parts that are not trained are copied. If it has none, they have the names of
    the published files and the type that config.json names. config.json stays as it is in any case. A run's export has
    a model card, README.md, that says how it was trained.

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
        InputError: no checkpoint at `path`, one that is damaged or holds NaN or infinity, parameters that do not fit
            config.json (listed), an unknown dtype, or an `out` that may not or cannot be written.
    """
    _check_out(out, folder, overwrite=overwrite)
    config = hf_folder.read_config(folder)
    weights = mapping.weights_of(config)
    shards = _plan(folder, config, weights, dtype, max_shard_bytes)
    stored = find_params(path)  # the newest now: a run may go on
    base, adapters = read_base(stored), None
    if base is not None:
        adapters = Adapters.load(stored, base.lora)
    beneath = stored if base is None else base_params(base, str(stored))
    params, sums = open_params(beneath), read_sums(beneath)
    mapping.check_params(params, weights)
    if adapters is not None:
        adapters.weights(weights)  # refuses those that do not fit
    num_bytes = sum(spec.nbytes for shard in shards.values() for spec in shard.tensors.values())
    with staging.new_folder(out, num_bytes=num_bytes, replace=overwrite) as new:
        copy_files(folder.resolve(), new, left_out=_NOT_CARRIED)
        # Before the weights: both may refuse the folder, and these take long.
        add_end_of_turn(new)
        for note in trained_with.apply(trained_with.read(stored), stored, folder, new):
            print(f"note: {note}", file=sys.stderr)
        carried = {name for shard in shards.values() for name in shard.tensors if mapping.is_carried(name, config)}
        found = _write_weights(new, shards, weights, params, carried, adapters)
        if sums is not None:
            try:
                require_equal({"params": found}, {"params": sums})
            except InputError as error:
                raise InputError(f"{beneath} is damaged ({error}); name another step's folder") from error
        if base is not None and digest(found) != base.digest:
            raise InputError(f"{beneath} holds other weights than those that the adapters in {stored} were trained on")
        if _is_index_of(folder, shards) and dtype == "source":
            shutil.copy(folder / INDEX_FILE, new)
        elif shards.keys() != {SINGLE_FILE}:
            write_index(new / INDEX_FILE, shards, num_bytes)
        write_card(new, stored, folder)
        written = hf_folder.all_tensors(hf_folder.read_shards(new))
        mapping.check_tensors({name: tensor for name, tensor in written.items() if name not in carried}, weights)
    return sum(np.prod(param.shape, dtype=int) for param in params.values())


def convert_adapter(path: epath.PathLike, folder: Path, out: Path, *, overwrite: bool = False) -> int:
    """Writes the adapters at `path` to `out`, a folder of the peft library; returns the number of their parameters.

    Args:
        path: a run with adapters, a checkpoint of one, or a converted adapter.
        folder: the Hugging Face folder of the model beneath them.
        out: the new folder.
        overwrite: replace `out`, if it is a peft folder.

    Raises:
        InputError: no checkpoint at `path`, one without adapters, adapters that do not fit config.json (listed), or an
            `out` that may not or cannot be written.
    """
    _check_out(out, folder, overwrite=overwrite, kind=adapter_lib.CONFIG_FILE)
    stored = find_params(path)
    if (base := read_base(stored)) is None:
        raise InputError(f"{stored} holds a whole model and no adapters; export it without --adapter")
    adapters = Adapters.load(stored, base.lora)
    num_bytes = sum(value.nbytes for value in adapters.params.values())
    with staging.new_folder(out, num_bytes=num_bytes, replace=overwrite) as new:
        adapters.write(new, mapping.weights_of(hf_folder.read_config(folder)), str(folder))
    return sum(value.size for value in adapters.params.values())


def _check_out(out: Path, folder: Path, *, overwrite: bool, kind: str = "config.json") -> None:
    """Refuses to write over anything but a folder with a file of this `kind`, and over the source."""
    ours, source = out.resolve(), folder.resolve()
    if ours == source or ours in source.parents or source in ours.parents:
        raise InputError(f"--out={out} and --hf={folder} lie inside each other; name a folder beside it")
    if not out.exists():
        return
    if not overwrite:
        raise InputError(f"--out={out} exists already; name a new folder or pass --overwrite")
    if not (out / kind).is_file():
        raise InputError(f"--out={out} is not a Hugging Face folder (no {kind}), so --overwrite leaves it alone")


def _plan(
    folder: Path, config: ModelConfig, weights: list[Weight], dtype: str, max_shard_bytes: int
) -> dict[str, Shard]:
    """The files to write, by name."""
    if dtype != "source" and dtype not in _DTYPES:
        raise InputError(f"cannot write {dtype=}; pass --dtype=float32 or --dtype=bfloat16")
    if not hf_folder.has_weights(folder):
        named = _DTYPES[_config_dtype(folder) if dtype == "source" else dtype]
        layout, sources = mapping.published_layout(config), mapping.by_hf_name(weights).items()
        specs = {mapping.laid_out(name, layout): Spec(named, source.weight.shape) for name, source in sources}
        return split(specs, max_shard_bytes)
    shards = hf_folder.read_shards(folder)
    tensors = without_extras(hf_folder.all_tensors(shards), config, weights)
    mapping.check_tensors(tensors, weights)
    planned = {
        file: Shard(
            {
                name: Spec(_DTYPES[dtype], tensor.shape) if name in tensors and dtype != "source" else tensor
                for name, tensor in shard.tensors.items()
                if name in tensors or mapping.is_carried(name, config)
            },
            shard.metadata,
        )
        for file, shard in shards.items()
    }
    return {file: shard for file, shard in planned.items() if shard.tensors}


def _is_index_of(folder: Path, shards: Mapping[str, Shard]) -> bool:
    """True if the index of `folder` names the tensors of `shards`, and no others."""
    if not (folder / INDEX_FILE).is_file():
        return False
    names = {name: file for file, shard in shards.items() for name in shard.tensors}
    return bool(read_fields(folder / INDEX_FILE).get("weight_map") == names)


def _config_dtype(folder: Path) -> str:
    config = read_fields(folder / "config.json")
    keys = [key for key in ("dtype", "torch_dtype") if key in config]  # transformers 5 and the hub
    if not keys:
        raise InputError(f"{folder / 'config.json'} names no dtype; pass --dtype=float32 or --dtype=bfloat16")
    if not isinstance(config[keys[0]], str) or config[keys[0]] not in _DTYPES:
        raise InputError(f"cannot write dtype {shown(config[keys[0]])}; pass --dtype=float32 or --dtype=bfloat16")
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
    folder: Path,
    shards: Mapping[str, Shard],
    weights: list[Weight],
    params: Mapping[str, StoredParam],
    carried: set[str],
    adapters: Adapters | None,
) -> dict[str, int]:
    """Writes the files, with what adapters add, and returns the checksum of each parameter as it was read.

    Tensors in `carried` are copied.
    """
    sources = mapping.by_hf_name(weights)
    sums = {name: PartialSum(param.shape) for name, param in params.items()}
    for file, shard in shards.items():
        pieces = (
            piece
            for name, spec in shard.tensors.items()
            for piece in (
                _copied(spec)
                if name in carried
                else _pieces(name, sources[mapping.hub_name(name)], params, DTYPES[spec.dtype])
            )
        )
        safetensors_io.write(folder / file, shard, (_values(piece, sums, adapters) for piece in _one_ahead(pieces)))
    return {name: each.value() for name, each in sums.items()}


class _Piece(NamedTuple):
    """Some rows of a tensor, being read from our array."""

    name: str
    weight: Weight
    place: Index
    part: ts.Future[np.ndarray]
    dtype: np.dtype  # to write


def _copied(spec: Spec) -> Iterator[np.ndarray]:
    """The rows of a tensor on disk, some at a time."""
    assert isinstance(spec, Tensor)
    step = max(1, PIECE_BYTES * spec.shape[0] // max(1, spec.nbytes))
    return (spec.read(slice(start, start + step)) for start in range(0, spec.shape[0], step))


def _pieces(name: str, source: Source, params: Mapping[str, StoredParam], dtype: np.dtype) -> Iterator[_Piece]:
    param = params[source.weight.ours]
    for rows in row_ranges(source.weight, param.chunk_shape, param.dtype):
        place = source.weight.place(source.layer, rows)
        yield _Piece(name, source.weight, place, param.read(place), dtype)


def _values(piece: _Piece | np.ndarray, sums: Mapping[str, PartialSum], adapters: Adapters | None) -> np.ndarray:
    """The rows to write, with what adapters add. Adds what was read of our arrays to the checksums."""
    if isinstance(piece, np.ndarray):
        return piece
    try:
        part = piece.part.result()
    except ValueError as error:
        raise InputError(f"{piece.name} cannot be read ({one_line(error)}); name another step's folder") from error
    sums[piece.weight.ours].add(piece.place, part)
    if adapters is not None:
        part = adapters.merge(piece.weight, piece.place, part)
    with np.errstate(over="ignore"):  # is looked for next
        values = piece.weight.to_hf(part.astype(piece.dtype, copy=False))
    if not safetensors_io.are_finite(values):
        raise InputError(
            f"{piece.name} holds NaN, infinity, or a value too large for {piece.dtype}; export another checkpoint, or "
            "with --dtype=float32"
        )
    return values


def _one_ahead(pieces: Iterator[_Piece | np.ndarray]) -> Iterator[_Piece | np.ndarray]:
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
    flags.DEFINE_enum("dtype", "source", ["source", *_DTYPES], "The type of the weights; source: what --hf has.")
    flags.DEFINE_bool("overwrite", False, "Replace an --out that is a Hugging Face folder.")
    flags.DEFINE_bool("adapter", False, "Write the adapters of --checkpoint alone, as the peft library has them.")


def main() -> None:
    """The command; raises InputError on bad input."""
    args = flags.FLAGS
    folder, out = files.on_disk(args.hf, "--hf"), files.on_disk(args.out, "--out")
    if args.adapter:
        if args.dtype != "source":
            raise InputError(
                f"--dtype={args.dtype} does not go with --adapter: adapters are written as they are, float32"
            )
        size = convert_adapter(args.checkpoint, folder, out, overwrite=args.overwrite)
        print(f"{size:,} parameters -> {out}")
        return
    size = convert(args.checkpoint, folder, out, dtype=args.dtype, overwrite=args.overwrite)
    print(f"{size:,} parameters -> {out}")
    if (trained := trained_with.read(find_params(args.checkpoint))) is not None:
        print(f"\nTo ask it in transformers:\n\n{trained_with.snippet(out, trained)}")


if __name__ == "__main__":
    _define_flags()
    cli.run_flags(main, on_host=True)
