"""CARE on Qwen2.5-VL with the paper's data and values: 3b, 7b (the default), 32b or 72b after the colon.

7b_lora trains adapters alone (LoRA) on eight chips.

    python -m convert.hf_to_jax --hf=Qwen2.5-VL-7B-Instruct --out=weights/qwen2_5_vl_7b
    python -m care_jax.train --config=configs/qwen2_5_vl.py:7b --workdir=runs/qwen2_5_vl_7b
    python -m convert.jax_to_hf --checkpoint=runs/qwen2_5_vl_7b --hf=Qwen2.5-VL-7B-Instruct --out=export

configs/data_care_49k.py has the data. Each size is set up for one TPU slice; docs/planning.md shows what it takes.
"""

from __future__ import annotations

import ml_collections

from care_jax.configs import data_care_49k
from care_jax.options import choose_one


def get_config(size: str = "7b") -> ml_collections.ConfigDict:
    """Returns the paper's run of one size, from the converted weights.

    Raises:
        ValueError: there is no such size.
    """
    if size not in SIZES:
        raise ValueError(f"Qwen2.5-VL has no size {size!r}: {choose_one(SIZES)}")
    return SIZES[size]()


def size_3b() -> ml_collections.ConfigDict:
    """For a v5p:2x2x2."""
    c = _paper_run("3b")
    c.rollout.tensor = 2
    return c


def size_7b() -> ml_collections.ConfigDict:
    """For a v5p:4x4x4."""
    c = _paper_run("7b")
    c.rollout.tensor = 4
    return c


def size_32b() -> ml_collections.ConfigDict:
    """For a v5p:4x4x8."""
    c = _paper_run("32b")
    c.mesh.tensor = 4
    return c


def size_72b() -> ml_collections.ConfigDict:
    """For a v5p:8x8x8."""
    c = _paper_run("72b")
    c.mesh.tensor = 8
    return c


def size_7b_lora() -> ml_collections.ConfigDict:
    """For a v5e:2x4."""
    c = data_care_49k.with_lora(_paper_run("7b"))
    c.rollout.tensor = 4
    return c


def _paper_run(size: str) -> ml_collections.ConfigDict:
    c = data_care_49k.get_config()
    c.model.folder = f"Qwen2.5-VL-{size.upper()}-Instruct"
    c.model.weights = f"weights/qwen2_5_vl_{size}"
    return c


SIZES = {"3b": size_3b, "7b": size_7b, "32b": size_32b, "72b": size_72b, "7b_lora": size_7b_lora}
