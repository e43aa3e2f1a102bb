"""CARE on Qwen2.5-VL-3B-Instruct with the paper's data and values, on a TPU v5p:2x2x2.

    python -m convert.hf_to_jax --hf=Qwen2.5-VL-3B-Instruct --out=weights/qwen2_5_vl_3b
    python -m care_jax.train --config=configs/care_qwen2_5_vl_3b.py --workdir=runs/care_qwen2_5_vl_3b
    python -m convert.jax_to_hf --checkpoint=runs/care_qwen2_5_vl_3b --hf=Qwen2.5-VL-3B-Instruct --out=export

The data: see configs/data_care_49k.py. 3.75 billion parameters: weights and Adam's two moments, all float32, take
45 GB of the slice; gradients and activations come on top.
"""

from __future__ import annotations

import ml_collections

from configs import data_care_49k


def get_config() -> ml_collections.ConfigDict:
    """The paper's run, from the converted weights."""
    c = data_care_49k.get_config()
    c.model.folder = "Qwen2.5-VL-3B-Instruct"
    c.model.weights = "weights/qwen2_5_vl_3b"
    return c
