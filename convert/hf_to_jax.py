"""Hugging Face folder to our parameters, bit for bit and a few tens of megabytes at a time.

    python -m convert.hf_to_jax --hf=DIR --out=DIR
    python -m convert.hf_to_jax --hf=DIR --adapter=DIR --base=DIR --out=DIR

Each weight keeps its type. The second form reads a LoRA adapter of the peft library, for a model of the --hf folder;
--base names the converted weights of that model, which the result will lie beside.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from absl import flags
from etils import epath

from care_jax import cli, files
from care_jax.checkpoints.array_store import Index
from care_jax.checkpoints.base import Base
from care_jax.checkpoints.checksums import digest
from care_jax.checkpoints.load import find_params, open_params, read_sums
from care_jax.checkpoints.stream import StreamedParam, save_params
from care_jax.convert import adapter as adapter_lib
from care_jax.convert import hf_folder, mapping, staging
from care_jax.convert.extra_tensors import without_extras
from care_jax.convert.mapping import DTYPES
from care_jax.convert.safetensors_io import Tensor, are_finite
from care_jax.convert.weight import Weight, row_ranges
from care_jax.errors import InputError
from care_jax.models import load_model_config


def convert(folder: Path, out: Path) -> int:
    """Writes the parameters of a Hugging Face folder, for `checkpoints.load.load_params`, and returns their number.

    Each keeps its type; if the layers of one have several, it becomes float32.

    Raises:
        InputError: unreadable files, weights that do not fit config.json (listed) or hold NaN or infinity, or an
            `out` that exists or cannot be written.
    """
    config = hf_folder.read_config(folder)
    weights = mapping.weights_of(config)
    tensors = without_extras(hf_folder.all_tensors(hf_folder.read_shards(folder)), config, weights)
    sources = mapping.check_tensors(tensors, weights)
    layers = {(source.weight.ours, source.layer): name for name, source in sources.items()}
    params = {}
    for weight in weights:
        names = [layers[weight.ours, i] for i in range(len(weight.hf_names))]
        params[weight.ours] = _streamed(weight, {name: tensors[name] for name in names})
    with staging.new_folder(out, num_bytes=sum(tensor.nbytes for tensor in tensors.values())) as new:
        save_params(new, params)
    return sum(param.size for param in params.values())


def convert_adapter(adapter: Path, folder: Path, base: epath.PathLike, out: Path) -> int:
    """Writes the adapter of a peft folder as model.weights take it, and returns the number of its parameters.

    Args:
        adapter: the peft folder.
        folder: a Hugging Face folder with the config.json of the model that it is for.
        base: the converted weights of that model.
        out: the new folder.

    Raises:
        InputError: another kind of adapter, or one for another model (listed); no checkpoint at `base`, or one without
            checksums; or an `out` that exists or cannot be written.
    """
    weights = mapping.weights_of(load_model_config(folder))
    lora = adapter_lib.read_settings(adapter)
    tensors, ours = adapter_lib.read_tensors(adapter, weights, lora.rank)
    beneath = find_params(base)
    mapping.check_params(open_params(beneath), weights)
    if (sums := read_sums(beneath)) is None:
        raise InputError(f"{beneath} has no checksums; convert the model with python -m convert.hf_to_jax")
    params = {weight.ours: _streamed(weight, {name: tensors[name] for name in weight.hf_names}) for weight in ours}
    lora = dataclasses.replace(lora, targets=tuple(adapter_lib.linears_of(list(params))))
    with staging.new_folder(out, num_bytes=sum(tensor.nbytes for tensor in tensors.values())) as new:
        save_params(new, params)
        adapter_lib.write_base(new, Base(str(beneath), digest(sums), lora))
    return sum(param.size for param in params.values())


def _streamed(weight: Weight, tensors: dict[str, Tensor]) -> StreamedParam:
    types = {tensor.dtype for tensor in tensors.values()}
    dtype = DTYPES[types.pop()] if len(types) == 1 else np.dtype(np.float32)
    return StreamedParam(weight.our_shape, dtype, functools.partial(_parts, weight, tensors, dtype))


def _parts(
    weight: Weight, tensors: dict[str, Tensor], dtype: np.dtype, chunk_shape: tuple[int, ...]
) -> Iterator[tuple[Index, np.ndarray]]:
    """Parts that are whole chunks: of all layers if chunks hold several, else some rows of one layer."""
    if weight.layers is not None and chunk_shape[0] > 1:
        whole = np.empty(weight.our_shape, dtype)
        for layer, (name, tensor) in enumerate(tensors.items()):
            whole[layer] = weight.to_ours(_read(name, tensor))
        yield (slice(None),), whole
        return
    for layer, (name, tensor) in enumerate(tensors.items()):
        for rows in row_ranges(weight, chunk_shape, dtype):
            yield weight.place(layer, rows), weight.to_ours(_read(name, tensor, rows).astype(dtype, copy=False))


def _read(name: str, tensor: Tensor, rows: slice = slice(None)) -> np.ndarray:
    values = tensor.read(rows)
    if not are_finite(values):
        raise InputError(f"{name} in {tensor.file} holds NaN or infinity; convert a checkpoint from before it broke")
    return values


def _define_flags() -> None:
    flags.DEFINE_string("hf", None, "Hugging Face folder with config.json and safetensors.", required=True)
    flags.DEFINE_string("adapter", None, "Folder of a LoRA adapter that peft has saved, to read in place of weights.")
    flags.DEFINE_string("base", None, "With --adapter: the converted weights of its model.")
    flags.DEFINE_string("out", None, "New folder for the parameters.", required=True)


def main() -> None:
    """The command; raises InputError on bad input."""
    args = flags.FLAGS
    out, folder = files.on_disk(args.out, "--out"), files.on_disk(args.hf, "--hf")
    if (args.adapter is None) != (args.base is None):
        raise InputError("--adapter and --base go together: the adapter, and the converted weights beneath it")
    if args.adapter is None:
        size = convert(folder, out)
    else:
        size = convert_adapter(files.on_disk(args.adapter, "--adapter"), folder, args.base, out)
    print(f"{size:,} parameters -> {out}")


if __name__ == "__main__":
    _define_flags()
    cli.run_flags(main, on_host=True)
