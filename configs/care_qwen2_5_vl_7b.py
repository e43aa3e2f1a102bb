"""CARE on Qwen2.5-VL-7B-Instruct with the paper's data and values, on a TPU v5p:4x4x4.

    python -m convert.hf_to_jax --hf=Qwen2.5-VL-7B-Instruct --out=weights/qwen2_5_vl_7b
    python -m care_jax.train --config=configs/care_qwen2_5_vl_7b.py --workdir=runs/care_qwen2_5_vl_7b
    python -m convert.jax_to_hf --checkpoint=runs/care_qwen2_5_vl_7b --hf=Qwen2.5-VL-7B-Instruct --out=export

The data: see configs/data_care_49k.py. 8.29 billion parameters: weights and Adam's two moments, all float32, take
99 GB of the slice; gradients and activations come on top.

    python -m care_jax.plan --config=configs/care_qwen2_5_vl_7b.py --topology=v5p:4x4x4

    GiB of a chip's 95.74, mesh data 1 x fsdp 64 x tensor 1:
              params optimizer reference sampler prompt_kv branch_kv gradients activations batch temporaries  peak
    rollout     0.49      0.97      0.49   14.19      0.88      7.00      0.00        0.00  0.14        7.02 31.17
    score       0.49      0.97      0.49   14.19      0.88      0.00      0.00        0.00  0.15        7.56 24.71
    update      0.49      0.97      0.49    0.00      0.00      0.00      0.49        2.61  0.15        6.59 11.78
    a step of 34,603,008 tokens is 731,630 TFLOP; least seconds: compute 28.2, memory 25.6, links 1.0
    fits: the peak is 31.17 of 95.74 GiB, in rollout
"""

from __future__ import annotations

import ml_collections

from configs import data_care_49k


def get_config() -> ml_collections.ConfigDict:
    """The paper's run, from the converted weights."""
    c = data_care_49k.get_config()
    c.model.folder = "Qwen2.5-VL-7B-Instruct"
    c.model.weights = "weights/qwen2_5_vl_7b"
    c.train.microbatches = 2  # a piece has 64 prompts, which 64 shards divide
    return c
