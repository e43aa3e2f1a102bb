"""CARE on Qwen3-VL with the paper's data and values: 4b, 8b (the default) or 32b after the colon.

    python -m convert.hf_to_jax --hf=Qwen3-VL-8B-Instruct --out=weights/qwen3_vl_8b
    python -m care_jax.train --config=configs/qwen3_vl.py:8b --workdir=runs/qwen3_vl_8b
    python -m convert.jax_to_hf --checkpoint=runs/qwen3_vl_8b --hf=Qwen3-VL-8B-Instruct --out=export

configs/data_care_49k.py has the data. Each size is set up for one TPU slice; docs/planning.md shows what it takes.
"""

from __future__ import annotations

import ml_collections

from care_jax.configs import data_care_49k
from care_jax.options import choose_one


def get_config(size: str = "8b") -> ml_collections.ConfigDict:
    """Returns the paper's run of one size, from the converted weights.

    Raises:
        ValueError: there is no such size.
    """
    if size not in SIZES:
        raise ValueError(f"Qwen3-VL has no size {size!r}: {choose_one(SIZES)}")
    return SIZES[size]()


def size_4b() -> ml_collections.ConfigDict:
    """For a v5p:4x4x4."""
    return _paper_run("4b")


def size_8b() -> ml_collections.ConfigDict:
    """For a v5p:4x4x4."""
    return _paper_run("8b")


def size_32b() -> ml_collections.ConfigDict:
    """For a v5p:4x4x8."""
    c = _paper_run("32b")
    c.mesh.tensor = 4
    return c


def _paper_run(size: str) -> ml_collections.ConfigDict:
    c = data_care_49k.get_config()
    c.model.folder = f"Qwen3-VL-{size.upper()}-Instruct"
    c.model.weights = f"weights/qwen3_vl_{size}"
    return c


SIZES = {"4b": size_4b, "8b": size_8b, "32b": size_32b}
