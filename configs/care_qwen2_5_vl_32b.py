"""CARE on Qwen2.5-VL-32B-Instruct with the paper's data and values, on a TPU v5p:4x4x8.

    python -m convert.hf_to_jax --hf=Qwen2.5-VL-32B-Instruct --out=weights/qwen2_5_vl_32b
    python -m care_jax.train --config=configs/care_qwen2_5_vl_32b.py --workdir=runs/care_qwen2_5_vl_32b
    python -m convert.jax_to_hf --checkpoint=runs/care_qwen2_5_vl_32b --hf=Qwen2.5-VL-32B-Instruct --out=export

The data: see configs/data_care_49k.py. 33.45 billion parameters: weights and Adam's two moments, all float32, take
401 GB of the slice; gradients and activations come on top.

    python -m care_jax.plan --config=configs/care_qwen2_5_vl_32b.py --topology=v5p:4x4x8

    GiB of a chip's 95.74, mesh data 1 x fsdp 32 x tensor 4:
              params optimizer reference sampler prompt_kv branch_kv gradients activations batch temporaries  peak
    rollout     1.04      2.08      1.04   15.26      2.00     16.00      0.00        0.00  0.29       16.02 53.72
    score       1.04      2.08      1.04   15.26      2.00      0.00      0.00        0.00  0.29       10.09 31.79
    update      1.04      2.08      1.04    0.00      0.00      0.00      1.04        7.58  0.30        5.39 18.45
    a step of 34,603,008 tokens is 3,197,722 TFLOP; least seconds: compute 61.7, memory 34.3, links 7.6
    fits: the peak is 53.72 of 95.74 GiB, in rollout
"""

from __future__ import annotations

import ml_collections

from configs import data_care_49k


def get_config() -> ml_collections.ConfigDict:
    """The paper's run, from the converted weights."""
    c = data_care_49k.get_config()
    c.model.folder = "Qwen2.5-VL-32B-Instruct"
    c.model.weights = "weights/qwen2_5_vl_32b"
    c.mesh.tensor = 4
    return c
