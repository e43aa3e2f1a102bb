"""CARE on Qwen2.5-VL-72B-Instruct with the paper's data and values, on a TPU v5p:8x8x8.

    python -m convert.hf_to_jax --hf=Qwen2.5-VL-72B-Instruct --out=weights/qwen2_5_vl_72b
    python -m care_jax.train --config=configs/care_qwen2_5_vl_72b.py --workdir=runs/care_qwen2_5_vl_72b
    python -m convert.jax_to_hf --checkpoint=runs/care_qwen2_5_vl_72b --hf=Qwen2.5-VL-72B-Instruct --out=export

The data: see configs/data_care_49k.py. 73.41 billion parameters: weights and Adam's two moments, all float32, take
881 GB of the slice; gradients and activations come on top.

    python -m care_jax.plan --config=configs/care_qwen2_5_vl_72b.py --topology=v5p:8x8x8

    GiB of a chip's 95.74, mesh data 1 x fsdp 64 x tensor 8:
              params optimizer reference sampler prompt_kv branch_kv gradients activations batch temporaries  peak
    rollout     0.58      1.15      0.58   16.93      0.62      5.00      0.00        0.00  0.14        9.08 34.09
    score       0.58      1.15      0.58   16.93      0.62      0.00      0.00        0.00  0.15        7.08 27.09
    update      0.58      1.15      0.58    0.00      0.00      0.00      0.58       15.04  0.15        3.56 21.63
    a step of 34,603,008 tokens is 7,086,552 TFLOP; least seconds: compute 34.2, memory 29.8, links 7.4
    fits: the peak is 36.12 of 95.74 GiB, in the sampler's parameters
"""

from __future__ import annotations

import ml_collections

from configs import data_care_49k


def get_config() -> ml_collections.ConfigDict:
    """The paper's run, from the converted weights."""
    c = data_care_49k.get_config()
    c.model.folder = "Qwen2.5-VL-72B-Instruct"
    c.model.weights = "weights/qwen2_5_vl_72b"
    c.mesh.tensor = 8
    c.train.microbatches = 2  # a piece has 64 prompts, which 64 shards divide
    return c
