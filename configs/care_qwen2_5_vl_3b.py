"""CARE on Qwen2.5-VL-3B-Instruct with the paper's data and values, on a TPU v5p:2x2x2.

    python -m convert.hf_to_jax --hf=Qwen2.5-VL-3B-Instruct --out=weights/qwen2_5_vl_3b
    python -m care_jax.train --config=configs/care_qwen2_5_vl_3b.py --workdir=runs/care_qwen2_5_vl_3b
    python -m convert.jax_to_hf --checkpoint=runs/care_qwen2_5_vl_3b --hf=Qwen2.5-VL-3B-Instruct --out=export

The data: see configs/data_care_49k.py. 3.75 billion parameters: weights and Adam's two moments, all float32, take
45 GB of the slice; gradients and activations come on top.

    python -m care_jax.plan --config=configs/care_qwen2_5_vl_3b.py --topology=v5p:2x2x2

    GiB of a chip's 95.74, mesh data 1 x fsdp 8 x tensor 1:
              params optimizer reference sampler prompt_kv branch_kv gradients activations batch temporaries  peak
    rollout     1.75      3.50      1.75    5.75      4.50     36.00      0.00        0.00  1.16       36.03 90.43
    score       1.75      3.50      1.75    5.75      4.50      0.00      0.00        0.00  1.17       34.45 52.87
    update      1.75      3.50      1.75    0.00      0.00      0.00      1.75        8.00  1.18       10.44 28.37
    a step of 34,603,008 tokens is 345,133 TFLOP; least seconds: compute 106.6, memory 32.5, links 0.9
    fits: the peak is 90.43 of 95.74 GiB, in rollout
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
