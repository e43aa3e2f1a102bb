"""Compares a checkpoint with a Hugging Face folder: max |difference| of the weights, stage by stage.

    python -m convert.check_parity --hf=DIR --checkpoint=DIR

A stage is a part of the model that activations pass through: patch embedding, vision blocks, merger, token embedding,
decoder layers (of each kind), last norm, head. Every tensor of the folder is read from its file and compared, as exact
float32 numbers, with the part of our array that holds it; "differing" counts those of which any bit differs (so 0 and
-0, or two NaNs, do not pass for equal). Two equal weights give two equal models only if both are computed alike, which
the tests show against transformers; no model is run here, and nothing has to fit into memory.

Exit code: 0 if every bit is equal, 1 if not, 2 for bad input. The last line is one JSON object.
"""

from __future__ import annotations

import dataclasses
import json
import sys
from pathlib import Path

import numpy as np
from absl import flags
from etils import epath

from care_jax import cli, files
from care_jax.checkpoints.array_store import StoredParam
from care_jax.checkpoints.load import open_params
from care_jax.convert import hf_folder, mapping
from care_jax.convert.extra_tensors import without_extras
from care_jax.convert.mapping import Source
from care_jax.convert.safetensors_io import Tensor
from care_jax.convert.weight import row_ranges
from care_jax.models.model_config import LAYER_TYPES


@dataclasses.dataclass
class Stage:
    """The comparison of one part of the model."""

    tensors: int = 0
    differing: int = 0
    max_difference: float = 0.0


def compare(folder: Path, path: epath.PathLike) -> dict[str, Stage]:
    """Compares the model of a Hugging Face folder with the checkpoint at `path`, stage by stage.

    Raises:
        InputError: unreadable files, no checkpoint, or weights on either side that do not fit config.json (all listed).
    """
    config = hf_folder.read_config(folder)
    weights = mapping.weights_of(config)
    tensors = without_extras(hf_folder.all_tensors(hf_folder.read_shards(folder)), config, weights)
    sources = mapping.check_tensors(tensors, weights)
    params = open_params(path)
    mapping.check_params(params, weights)
    stages = {stage_of(weight.ours): Stage() for weight in weights}
    for name, tensor in tensors.items():
        source = sources[name]
        difference, is_equal = _compare(tensor, source, params[source.weight.ours])
        stage = stages[stage_of(source.weight.ours)]
        stage.tensors += 1
        stage.differing += not is_equal
        stage.max_difference = float(np.maximum(stage.max_difference, difference))  # a NaN stays
    return stages


def stage_of(name: str) -> str:
    """The part of the model that one of our parameters belongs to, e.g. "visual.blocks" or "layers"."""
    head, *rest = name.split(".")
    return f"{head}.{rest[0]}" if head == "visual" or rest[0] in LAYER_TYPES else head


def _compare(tensor: Tensor, source: Source, param: StoredParam) -> tuple[float, bool]:
    """The max |difference|, and whether every bit is the same."""
    largest, is_equal = 0.0, True
    for rows in row_ranges(source.weight, param.chunk_shape, param.dtype):
        ours = source.weight.to_hf(param.read(source.weight.place(source.layer, rows)).result()).astype(np.float32)
        theirs = tensor.read(rows).astype(np.float32)
        if np.array_equal(ours.view(np.uint32), theirs.view(np.uint32)):
            continue
        is_equal = False
        with np.errstate(invalid="ignore"):  # inf - inf is the NaN that is shown
            largest = float(np.maximum(largest, np.abs(ours - theirs).max()))
    return largest, is_equal


def show(stages: dict[str, Stage]) -> None:
    """The table for people, then the JSON line for programs."""
    print(f"{'stage':<24}{'tensors':>10}{'differing':>11}{'max |difference|':>18}")
    for name, stage in stages.items():
        print(f"{name:<24}{stage.tensors:>10}{stage.differing:>11}{stage.max_difference:>18.3g}")
    print(json.dumps({name: dataclasses.asdict(stage) for name, stage in stages.items()}))


def _define_flags() -> None:
    flags.DEFINE_string("hf", None, "Hugging Face folder with config.json and safetensors.", required=True)
    flags.DEFINE_string("checkpoint", None, "Run, checkpoint, or converted model with the parameters.", required=True)


def main() -> None:
    """The command; raises InputError on bad input."""
    stages = compare(files.on_disk(flags.FLAGS.hf, "--hf"), flags.FLAGS.checkpoint)
    show(stages)
    sys.exit(1 if any(stage.differing for stage in stages.values()) else 0)


if __name__ == "__main__":
    _define_flags()
    cli.run_flags(main, on_host=True)
