"""Hugging Face folder to our parameters, bit for bit and a few tens of megabytes at a time.

python -m convert.hf_to_jax --hf=DIR --out=DIR
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from absl import flags

from care_jax import files
from care_jax.checkpoints import checkpointer
from care_jax.models import load_model_config
from convert import command, hf_folder, mapping, staging, tables
from convert.mapping import DTYPES, Index, Weight
from convert.safetensors_io import Tensor


def convert(folder: Path, out: Path) -> int:
    """Writes the parameters of a Hugging Face folder for `checkpointer.load_params` and gives their number.

    Each keeps its type; where the layers of one differ in it, float32 holds them all.

    Raises:
        ValueError: unreadable files, weights that do not fit config.json (all of them listed), or an `out` that
            exists or cannot be written.
    """
    table = tables.table(load_model_config(folder))
    tensors = hf_folder.all_tensors(hf_folder.read_shards(folder))
    sources = mapping.check_tensors(tensors, table)
    layers = {(source.weight.ours, source.layer): tensors[name] for name, source in sources.items()}
    params = {
        weight.ours: _streamed(weight, [layers[weight.ours, i] for i in range(len(weight.hf_names))])
        for weight in table
    }
    with staging.new_folder(out, num_bytes=sum(tensor.nbytes for tensor in tensors.values())) as new:
        checkpointer.save_params(new, params)
    return sum(param.size for param in params.values())


def _streamed(weight: Weight, tensors: list[Tensor]) -> checkpointer.StreamedParam:
    types = {tensor.dtype for tensor in tensors}
    dtype = DTYPES[types.pop()] if len(types) == 1 else np.dtype(np.float32)
    return checkpointer.StreamedParam(weight.our_shape, dtype, functools.partial(_parts, weight, tensors, dtype))


def _parts(
    weight: Weight, tensors: list[Tensor], dtype: np.dtype, chunk_shape: tuple[int, ...]
) -> Iterator[tuple[Index, np.ndarray]]:
    """Whole chunks: of several layers, if they are small, or some rows of one."""
    if weight.layers is not None and chunk_shape[0] > 1:
        whole = np.empty(weight.our_shape, dtype)
        for layer, tensor in enumerate(tensors):
            whole[layer] = weight.to_ours(tensor.read())
        yield (slice(None),), whole
        return
    for layer, tensor in enumerate(tensors):
        for rows in mapping.row_ranges(weight, chunk_shape, dtype):
            yield weight.place(layer, rows), weight.to_ours(tensor.read(rows).astype(dtype, copy=False))


def _define_flags() -> None:
    flags.DEFINE_string("hf", None, "Hugging Face folder with config.json and safetensors.", required=True)
    flags.DEFINE_string("out", None, "New folder for the parameters.", required=True)


def main() -> None:
    """The command; raises ValueError on bad input."""
    out = files.on_disk(flags.FLAGS.out, "--out")
    size = convert(files.on_disk(flags.FLAGS.hf, "--hf"), out)
    print(f"{size:,} parameters -> {out}")


if __name__ == "__main__":
    _define_flags()  # not at import: the other commands have flags of the same names
    command.run(main)
