"""CARE on Qwen3.5 with the paper's data and values: 9b (the default), or 9b_lora, adapters alone on eight chips.

    python -m convert.hf_to_jax --hf=Qwen3.5-9B --out=weights/qwen3_5_9b
    python -m care_jax.train --config=configs/qwen3_5.py:9b --workdir=runs/qwen3_5_9b
    python -m convert.jax_to_hf --checkpoint=runs/qwen3_5_9b --hf=Qwen3.5-9B --out=export

configs/data_care_49k.py has the data, docs/planning.md what a run takes of a slice. For another size, from 0.8B to 27B,
or for Qwen3.6-27B and Qwen3.8-27B, set --config.model.folder and --config.model.weights, and ask care_jax.plan.
"""

from __future__ import annotations

import ml_collections

from care_jax.configs import data_care_49k
from care_jax.options import choose_one


def get_config(size: str = "9b") -> ml_collections.ConfigDict:
    """Returns the paper's run of one size, from the converted weights.

    Raises:
        ValueError: there is no such size.
    """
    if size not in SIZES:
        raise ValueError(f"Qwen3.5 has no size {size!r}: {choose_one(SIZES)}")
    return SIZES[size]()


def size_9b() -> ml_collections.ConfigDict:
    """For a v5p:4x4x4 or a v6e:8x8."""
    c = _paper_run("9b")
    c.rollout.tensor = 4
    return c


def size_9b_lora() -> ml_collections.ConfigDict:
    """For a v5e:2x4."""
    c = data_care_49k.with_lora(_paper_run("9b"))
    c.rollout.tensor = 4
    return c


def _paper_run(size: str) -> ml_collections.ConfigDict:
    c = data_care_49k.get_config()
    c.model.folder = f"Qwen3.5-{size.upper()}"
    c.model.weights = f"weights/qwen3_5_{size}"
    return c


SIZES = {"9b": size_9b, "9b_lora": size_9b_lora}
