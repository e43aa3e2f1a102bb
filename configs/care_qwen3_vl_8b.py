"""CARE on Qwen3-VL-8B-Instruct with the paper's data and values, on a TPU v5p:4x4x4.

    python -m convert.hf_to_jax --hf=Qwen3-VL-8B-Instruct --out=weights/qwen3_vl_8b
    python -m care_jax.train --config=configs/care_qwen3_vl_8b.py --workdir=runs/care_qwen3_vl_8b
    python -m convert.jax_to_hf --checkpoint=runs/care_qwen3_vl_8b --hf=Qwen3-VL-8B-Instruct --out=export

The data: see configs/data_care_49k.py. 8.77 billion parameters: weights and Adam's two moments, all float32, take
105 GB of the slice; gradients and activations come on top.
"""

from __future__ import annotations

import ml_collections

from configs import data_care_49k


def get_config() -> ml_collections.ConfigDict:
    """The paper's run, from the converted weights."""
    c = data_care_49k.get_config()
    c.model.folder = "Qwen3-VL-8B-Instruct"
    c.model.weights = "weights/qwen3_vl_8b"
    c.train.microbatches = 2  # a piece has 64 prompts, which 64 shards divide
    return c
