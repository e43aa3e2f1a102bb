"""CARE on Qwen3-VL-4B-Instruct with the paper's data and values, on a TPU v5p:4x4x4.

    python -m convert.hf_to_jax --hf=Qwen3-VL-4B-Instruct --out=weights/qwen3_vl_4b
    python -m care_jax.train --config=configs/care_qwen3_vl_4b.py --workdir=runs/care_qwen3_vl_4b
    python -m convert.jax_to_hf --checkpoint=runs/care_qwen3_vl_4b --hf=Qwen3-VL-4B-Instruct --out=export

The data: see configs/data_care_49k.py. 4.44 billion parameters: weights and Adam's two moments, all float32, take
53 GB of the slice; gradients and activations come on top.

    python -m care_jax.plan --config=configs/care_qwen3_vl_4b.py --topology=v5p:4x4x4

    GiB of a chip's 95.74, mesh data 1 x fsdp 64 x tensor 1:
              params optimizer reference sampler prompt_kv branch_kv gradients activations batch temporaries  peak
    rollout     0.26      0.52      0.26    7.49      2.25     18.00      0.00        0.00  0.19       19.07 48.05
    score       0.26      0.52      0.26    7.49      2.25      0.00      0.00        0.00  0.19        5.63 16.61
    update      0.26      0.52      0.26    0.00      0.00      0.00      0.26        2.30  0.19        5.16  8.95
    a step of 34,603,008 tokens is 466,149 TFLOP; least seconds: compute 18.0, memory 23.6, links 0.6
    fits: the peak is 48.05 of 95.74 GiB, in rollout
"""

from __future__ import annotations

import ml_collections

from configs import data_care_49k


def get_config() -> ml_collections.ConfigDict:
    """The paper's run, from the converted weights."""
    c = data_care_49k.get_config()
    c.model.folder = "Qwen3-VL-4B-Instruct"
    c.model.weights = "weights/qwen3_vl_4b"
    c.train.microbatches = 2  # a piece has 64 prompts, which 64 shards divide
    return c
