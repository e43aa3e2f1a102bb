"""Our parameters to a Hugging Face folder that transformers, vLLM and SGLang load.

python -m convert.jax_to_hf --checkpoint=DIR --hf=DIR --out=DIR [--dtype=bfloat16] [--overwrite]
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path

import jax
import ml_dtypes
import numpy as np
from absl import app, flags
from safetensors.numpy import save_file

from care_jax import checkpoint, cli
from care_jax.models import load_model_config
from convert import mapping, qwen2_5_vl
from convert.hf_to_jax import INDEX_FILE, SINGLE_FILE, HFTensors

_DTYPES = {"float32": np.dtype(np.float32), "bfloat16": np.dtype(ml_dtypes.bfloat16)}
_WEIGHT_FILES = ("*.safetensors", "*.safetensors.index.json", "*.bin", "*.bin.index.json", "*.pt", "*.pth", "*.gguf")
_NOT_CARRIED = (*_WEIGHT_FILES, ".cache", ".git")  # what the hub's client and a clone leave in a folder
_MAX_SHARD_BYTES = 4 * 2**30


def export(
    params: Mapping[str, np.ndarray | jax.Array],
    hf_folder: Path,
    out: Path,
    *,
    dtype: str = "source",
    overwrite: bool = False,
    max_shard_bytes: int = _MAX_SHARD_BYTES,
) -> None:
    """Writes `params` (dotted names) to `out` beside unchanged copies of the non-weight files of `hf_folder`.

    `dtype` is float32, bfloat16 or source (what config.json says, which stays as it is in any case). The key layout
    is that of the source's weights, and what transformers writes if it has none. `out` appears whole or not at all.

    Raises:
        ValueError: parameters that do not fit config.json (all listed), an unknown dtype, an `out` that may not be
            written.
    """
    _check_out(out, hf_folder, overwrite=overwrite)
    config = load_model_config(hf_folder)
    np_dtype = _resolve_dtype(dtype, hf_folder)
    has_weights = any((hf_folder / name).is_file() for name in (SINGLE_FILE, INDEX_FILE))
    layout = mapping.layout_of(HFTensors(hf_folder)) if has_weights else "hub"
    tensors = mapping.to_hf(params, qwen2_5_vl.table(config), layout)

    partial, replaced = out.with_name(out.name + ".partial"), out.with_name(out.name + ".replaced")
    for leftover in (partial, replaced):
        if leftover.exists():
            raise ValueError(f"{leftover} is left from an export that was cut off; look at it and remove it")
    try:
        shutil.copytree(hf_folder, partial, ignore=shutil.ignore_patterns(*_NOT_CARRIED))
        _write_weights(tensors, partial, np_dtype, max_shard_bytes)
        if out.exists():
            out.rename(replaced)
        partial.rename(out)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    if replaced.exists():
        shutil.rmtree(replaced)


def _check_out(out: Path, hf_folder: Path, *, overwrite: bool) -> None:
    """Refuses to write over anything but a Hugging Face folder, and over the source."""
    ours, source = out.resolve(), hf_folder.resolve()
    if ours == source or ours in source.parents or source in ours.parents:
        raise ValueError(f"--out={out} and --hf={hf_folder} lie inside each other; name a folder beside it")
    if not out.exists():
        return
    if not overwrite:
        raise ValueError(f"--out={out} exists already; name a new folder or pass --overwrite")
    if not (out / "config.json").is_file():
        raise ValueError(f"--out={out} is not a Hugging Face folder (no config.json), so --overwrite leaves it alone")


def _resolve_dtype(dtype: str, hf_folder: Path) -> np.dtype:
    named = dtype
    if dtype == "source":
        raw = json.loads((hf_folder / "config.json").read_text())
        keys = [key for key in ("dtype", "torch_dtype") if key in raw]  # transformers 5 and the hub
        if not keys:
            raise ValueError(f"{hf_folder / 'config.json'} names no dtype; pass --dtype=float32 or --dtype=bfloat16")
        named = raw[keys[0]]
    if named not in _DTYPES:
        raise ValueError(f"cannot write dtype {named!r} ({dtype=}); pass --dtype=float32 or --dtype=bfloat16")
    return _DTYPES[named]


def _write_weights(tensors: Mapping[str, np.ndarray], folder: Path, dtype: np.dtype, max_shard_bytes: int) -> None:
    """One file, or shards of at most `max_shard_bytes` and an index; only one shard is in memory at a time."""
    shards: list[list[str]] = [[]]
    filled = 0
    for name, tensor in tensors.items():
        size = tensor.size * dtype.itemsize
        if shards[-1] and filled + size > max_shard_bytes:
            shards.append([])
            filled = 0
        shards[-1].append(name)
        filled += size

    count = len(shards)
    files = [SINGLE_FILE] if count == 1 else [f"model-{i:05}-of-{count:05}.safetensors" for i in range(1, count + 1)]
    for file, names in zip(files, shards, strict=True):
        # safetensors writes an array's memory as it lies, whatever its strides: transposed views must be copied.
        shard = {name: tensors[name].astype(dtype, order="C") for name in names}
        save_file(shard, folder / file, metadata={"format": "pt"})
    if count > 1:
        index = {
            "metadata": {"total_size": sum(tensor.size for tensor in tensors.values()) * dtype.itemsize},
            "weight_map": {name: file for file, names in zip(files, shards, strict=True) for name in names},
        }
        (folder / INDEX_FILE).write_text(json.dumps(index, indent=2) + "\n")


def _define_flags() -> None:
    flags.DEFINE_string("checkpoint", None, "Run, checkpoint, or converted model with the parameters.", required=True)
    flags.DEFINE_string("hf", None, "Hugging Face folder whose non-weight files are carried over.", required=True)
    flags.DEFINE_string("out", None, "New Hugging Face folder.", required=True)
    flags.DEFINE_enum("dtype", "source", ["source", *_DTYPES], "Of the weights; source: what config.json says.")
    flags.DEFINE_bool("overwrite", False, "Replace an --out that is a Hugging Face folder.")


def main(argv: list[str]) -> None:
    """The command; raises ValueError on bad input."""
    del argv
    args = flags.FLAGS
    hf_folder, out = Path(args.hf), Path(args.out)
    _check_out(out, hf_folder, overwrite=args.overwrite)  # before the parameters are read, which may take minutes
    params = checkpoint.load_params(Path(args.checkpoint))
    export(params, hf_folder, out, dtype=args.dtype, overwrite=args.overwrite)
    print(f"{sum(param.size for param in params.values()):,} parameters -> {out}")


if __name__ == "__main__":
    _define_flags()  # not at import: the other direction has flags of the same names
    cli.exit_on_bad_input(lambda: app.run(main))
