"""CARE on Geometry3K alone, with Qwen2.5-VL-3B-Instruct; docs/data.md has the lines that prepare the data.

    python -m convert.hf_to_jax --hf=Qwen2.5-VL-3B-Instruct --out=weights/qwen2_5_vl_3b
    python -m care_jax.train --config=configs/geometry3k.py --workdir=runs/geometry3k
    python -m care_jax.evaluate --config=configs/geometry3k.py --workdir=runs/geometry3k --benchmark=geometry3k

2,101 questions: 8 steps of 256 prompts are an epoch. docs/planning.md shows the memory that this model takes.
"""

from __future__ import annotations

import ml_collections

from care_jax import config as config_lib


def get_config() -> ml_collections.ConfigDict:
    """The defaults with this data, for ten epochs."""
    c = config_lib.base()
    c.model.folder = "Qwen2.5-VL-3B-Instruct"
    c.model.weights = "weights/qwen2_5_vl_3b"
    c.data.format = "prepared"
    c.data.train = "data/geometry3k"
    c.data.eval = "data/benchmarks/geometry3k"
    c.train.steps = 80
    c.train.prompts = 256
    c.train.eval_every = 20
    c.train.checkpoint_every = 20
    return c
