"""CARE on Qwen3-VL-8B-Instruct with the paper's data and values, on a TPU v5p:4x4x4.

    python -m convert.hf_to_jax --hf=Qwen3-VL-8B-Instruct --out=weights/qwen3_vl_8b
    python -m care_jax.train --config=configs/care_qwen3_vl_8b.py --workdir=runs/care_qwen3_vl_8b
    python -m convert.jax_to_hf --checkpoint=runs/care_qwen3_vl_8b --hf=Qwen3-VL-8B-Instruct --out=export

The data: see configs/data_care_49k.py. 8.77 billion parameters: weights and Adam's two moments, all float32, take
105 GB of the slice; gradients and activations come on top.

    python -m care_jax.plan --config=configs/care_qwen3_vl_8b.py --topology=v5p:4x4x4

    GiB of a chip's 95.74, mesh data 1 x fsdp 64 x tensor 1:
              params optimizer reference sampler prompt_kv branch_kv gradients activations batch temporaries  peak
    rollout     0.51      1.03      0.51   15.26      2.25     18.00      0.00        0.00  0.19       19.70 57.45
    score       0.51      1.03      0.51   15.26      2.25      0.00      0.00        0.00  0.19        6.37 26.12
    update      0.51      1.03      0.51    0.00      0.00      0.00      0.51        3.61  0.19        8.15 14.52
    a step of 34,603,008 tokens is 802,505 TFLOP; least seconds: compute 31.0, memory 34.2, links 1.7
    fits: the peak is 57.45 of 95.74 GiB, in rollout
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
