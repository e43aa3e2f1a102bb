"""Your own data: a JSONL file and its images, with the embedded 1 M-parameter model, on 2 CPU cores.

    python -m care_jax.train --config=configs/own_data.py --workdir=runs/own --config.data.train=train.jsonl ...

docs/own_data.md has the lines from a folder of images to a report. For a real model start from care_jax.config.base()
instead, whose sizes are meant for one.

Failures are not repaired: a model from random weights reads no words, and only rows with a "draft" can teach it what a
cue asks for. With such rows set objective.reflect.enabled=True, for cold start and training alike.
"""

from __future__ import annotations

import ml_collections

from care_jax.configs import demo


def get_config() -> ml_collections.ConfigDict:
    """The demo's run on a JSONL file, with room for longer questions; data.train and data.eval are yours."""
    c = demo.get_config()
    c.data.format = "jsonl"
    c.data.train = ""
    c.data.eval = ""
    c.data.overlong = "shrink"
    c.data.prompt_buckets = (128,)
    c.data.patch_buckets = (64,)
    c.data.max_image_tokens = 16
    c.rollout.response_len = 64
    c.objective.reflect.enabled = False
    c.objective.reflect.max_rationale_len = 40
    c.model.weights = "random"
    c.train.steps = 100
    c.train.prompts = 8
    c.train.eval_every = 0
    c.train.checkpoint_every = 50
    c.optimizer.warmup_steps = 2
    return c
