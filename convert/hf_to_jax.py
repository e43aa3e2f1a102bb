"""Hugging Face folder to our parameters.

python -m convert.hf_to_jax --hf=DIR --out=DIR
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
from absl import app, flags
from safetensors import SafetensorError, safe_open

from care_jax import checkpoint, cli
from care_jax.models import load_model_config
from convert import mapping, qwen2_5_vl

SINGLE_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"


class HFTensors(Mapping[str, np.ndarray]):
    """The safetensors of a folder by name, read from disk when asked for."""

    def __init__(self, folder: Path):
        """Reads the headers.

        Raises:
            ValueError: no safetensors, a shard of the index is not there, or a file is cut off.
        """
        index, single = folder / INDEX_FILE, folder / SINGLE_FILE
        if index.is_file():
            files = sorted({folder / file for file in json.loads(index.read_text())["weight_map"].values()})
        elif single.is_file():
            files = [single]
        else:
            raise ValueError(f"no weights in {folder}: looked for {SINGLE_FILE} and {INDEX_FILE}; download one of them")
        absent = [file.name for file in files if not file.is_file()]
        if absent:
            raise ValueError(f"{index} names files that are not there: {', '.join(absent)}; download them")
        self._files: dict[str, Path] = {}
        for file in files:
            try:
                with safe_open(file, framework="numpy") as tensors:
                    self._files.update(dict.fromkeys(tensors.keys(), file))
            except SafetensorError as error:
                raise ValueError(f"{file} is not a whole safetensors file ({error}); download it again") from error

    def __getitem__(self, name: str) -> np.ndarray:
        with safe_open(self._files[name], framework="numpy") as tensors:
            return tensors.get_tensor(name)

    def __iter__(self) -> Iterator[str]:
        return iter(self._files)

    def __len__(self) -> int:
        return len(self._files)


def read(hf_folder: Path) -> dict[str, np.ndarray]:
    """The float32 parameters of a Hugging Face folder by our dotted names.

    Raises:
        ValueError: unreadable files, or weights that do not fit config.json, all of them listed.
    """
    return mapping.to_jax(HFTensors(hf_folder), qwen2_5_vl.table(load_model_config(hf_folder)))


def convert(hf_folder: Path, out: Path) -> int:
    """Writes the parameters of `hf_folder` for `checkpoint.load_params` and gives their number.

    Raises:
        ValueError: as `read`, or `out` already holds parameters.
    """
    if out.exists():
        raise ValueError(f"--out={out} exists already; name a new folder or remove it")
    params = read(hf_folder)
    checkpoint.save_params(out, params)
    return sum(param.size for param in params.values())


def _define_flags() -> None:
    flags.DEFINE_string("hf", None, "Hugging Face folder with config.json and safetensors.", required=True)
    flags.DEFINE_string("out", None, "New folder for the parameters.", required=True)


def main(argv: list[str]) -> None:
    """The command; raises ValueError on bad input."""
    del argv
    out = Path(flags.FLAGS.out)
    size = convert(Path(flags.FLAGS.hf), out)
    print(f"{size:,} parameters -> {out}")


if __name__ == "__main__":
    _define_flags()  # not at import: the other direction has flags of the same names
    cli.exit_on_bad_input(lambda: app.run(main))
