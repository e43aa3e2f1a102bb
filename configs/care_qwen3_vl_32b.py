"""CARE on Qwen3-VL-32B-Instruct with the paper's data and values, on a TPU v5p:4x4x8.

    python -m convert.hf_to_jax --hf=Qwen3-VL-32B-Instruct --out=weights/qwen3_vl_32b
    python -m care_jax.train --config=configs/care_qwen3_vl_32b.py --workdir=runs/care_qwen3_vl_32b
    python -m convert.jax_to_hf --checkpoint=runs/care_qwen3_vl_32b --hf=Qwen3-VL-32B-Instruct --out=export

The data: see configs/data_care_49k.py. 33.36 billion parameters: weights and Adam's two moments, all float32, take
400 GB of the slice; gradients and activations come on top.
"""

from __future__ import annotations

import ml_collections

from configs import data_care_49k


def get_config() -> ml_collections.ConfigDict:
    """The paper's run, from the converted weights."""
    c = data_care_49k.get_config()
    c.model.folder = "Qwen3-VL-32B-Instruct"
    c.model.weights = "weights/qwen3_vl_32b"
    c.mesh.tensor = 4
    return c
