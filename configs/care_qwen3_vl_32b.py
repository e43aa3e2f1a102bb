"""CARE on Qwen3-VL-32B-Instruct with the paper's data and values, on a TPU v5p:4x4x8.

    python -m convert.hf_to_jax --hf=Qwen3-VL-32B-Instruct --out=weights/qwen3_vl_32b
    python -m care_jax.train --config=configs/care_qwen3_vl_32b.py --workdir=runs/care_qwen3_vl_32b
    python -m convert.jax_to_hf --checkpoint=runs/care_qwen3_vl_32b --hf=Qwen3-VL-32B-Instruct --out=export

The data: see configs/data_care_49k.py. 33.36 billion parameters: weights and Adam's two moments, all float32, take
400 GB of the slice; gradients and activations come on top.

    python -m care_jax.plan --config=configs/care_qwen3_vl_32b.py --topology=v5p:4x4x8

    GiB of a chip's 95.74, mesh data 1 x fsdp 32 x tensor 4:
              params optimizer reference sampler prompt_kv branch_kv gradients activations batch temporaries  peak
    rollout     1.03      2.05      1.03   15.26      2.00     16.00      0.00        0.00  0.38       17.58 55.33
    score       1.03      2.05      1.03   15.26      2.00      0.00      0.00        0.00  0.38       10.74 32.49
    update      1.03      2.05      1.03    0.00      0.00      0.00      1.03        7.56  0.39        6.27 19.35
    a step of 34,603,008 tokens is 3,300,361 TFLOP; least seconds: compute 63.7, memory 34.3, links 7.6
    fits: the peak is 55.33 of 95.74 GiB, in rollout
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
