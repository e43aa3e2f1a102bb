"""Hugging Face folder to our parameters, bit for bit and a few tens of megabytes at a time.

python -m convert.hf_to_jax --hf=DIR --out=DIR
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from absl import flags

from care_jax import cli, files
from care_jax.checkpoints.array_store import Index
from care_jax.checkpoints.stream import StreamedParam, save_params
from care_jax.models import load_model_config
from convert import hf_folder, mapping, staging
from convert.mapping import DTYPES
from convert.safetensors_io import Tensor
from convert.weight import Weight, row_ranges


def convert(folder: Path, out: Path) -> int:
    """Writes the parameters of a Hugging Face folder, for `checkpoints.load.load_params`, and returns their number.

    Each keeps its type; if the layers of one have several, it becomes float32.

    Raises:
        InputError: unreadable files, weights that do not fit config.json (all of them listed), or an `out` that
            exists or cannot be written.
    """
    weights = mapping.weights_of(load_model_config(folder))
    tensors = hf_folder.all_tensors(hf_folder.read_shards(folder))
    sources = mapping.check_tensors(tensors, weights)
    layers = {(source.weight.ours, source.layer): tensors[name] for name, source in sources.items()}
    params = {
        weight.ours: _streamed(weight, [layers[weight.ours, i] for i in range(len(weight.hf_names))])
        for weight in weights
    }
    with staging.new_folder(out, num_bytes=sum(tensor.nbytes for tensor in tensors.values())) as new:
        save_params(new, params)
    return sum(param.size for param in params.values())


def _streamed(weight: Weight, tensors: list[Tensor]) -> StreamedParam:
    types = {tensor.dtype for tensor in tensors}
    dtype = DTYPES[types.pop()] if len(types) == 1 else np.dtype(np.float32)
    return StreamedParam(weight.our_shape, dtype, functools.partial(_parts, weight, tensors, dtype))


def _parts(
    weight: Weight, tensors: list[Tensor], dtype: np.dtype, chunk_shape: tuple[int, ...]
) -> Iterator[tuple[Index, np.ndarray]]:
    """Parts that are whole chunks: of all layers if chunks hold several, else some rows of one layer."""
    if weight.layers is not None and chunk_shape[0] > 1:
        whole = np.empty(weight.our_shape, dtype)
        for layer, tensor in enumerate(tensors):
            whole[layer] = weight.to_ours(tensor.read())
        yield (slice(None),), whole
        return
    for layer, tensor in enumerate(tensors):
        for rows in row_ranges(weight, chunk_shape, dtype):
            yield weight.place(layer, rows), weight.to_ours(tensor.read(rows).astype(dtype, copy=False))


def _define_flags() -> None:
    flags.DEFINE_string("hf", None, "Hugging Face folder with config.json and safetensors.", required=True)
    flags.DEFINE_string("out", None, "New folder for the parameters.", required=True)


def main() -> None:
    """The command; raises InputError on bad input."""
    out = files.on_disk(flags.FLAGS.out, "--out")
    size = convert(files.on_disk(flags.FLAGS.hf, "--hf"), out)
    print(f"{size:,} parameters -> {out}")


if __name__ == "__main__":
    _define_flags()
    cli.run_flags(main, on_host=True)
