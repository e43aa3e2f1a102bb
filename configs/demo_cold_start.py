"""Cold start of the demo: a random 1 M-parameter Qwen2.5-VL learns the form of mini_vqa's traces, and not all of it.

    python -m care_jax.cold_start --config=configs/demo_cold_start.py --workdir=runs/cold_start

It stops before the task is solved and before its learning rate has come down: groups are mixed, and RL has something to
learn from. Part of what RL then gains is what a decayed learning rate would have given as well.

Traces with a wrong draft that pass 32 tokens, 7 % of all, are left out (`data/num_dropped`). With room for the longest,
--config.rollout.response_len=46 here and 32 in the steps of CARE, the model repairs more of its failures (35 and not
26 % of seed 1's) but reads charts later: seeds 2 and 3 ended at 0.77 and 0.76, and not 0.82 and 0.88.
"""

from __future__ import annotations

from pathlib import Path

import ml_collections

import care_jax
from care_jax import config

TINY_MODEL = str(Path(care_jax.__file__).parent / "models" / "tiny_qwen2_5_vl")


def get_config() -> ml_collections.ConfigDict:
    """What the demo's cold start and its RL have in common, with the cold start's schedule."""
    c = config.base()
    c.model.folder = TINY_MODEL
    c.model.compute_dtype = "float32"
    c.model.remat = False
    c.model.logits_chunk = 4096

    c.data.format = "mini_vqa"
    c.data.train = "runs/data"
    c.data.ask_for_format = False  # the traces teach it
    c.data.prompt_buckets = (28,)
    c.data.patch_buckets = (36,)  # one 84 x 84 picture
    c.data.max_image_tokens = 9

    c.rollout.response_len = 32
    c.rollout.compact_shares = ()  # responses are about equally long, so there is no tail to save
    c.objective.reflect.cue = "!"  # one token; the traces with a draft teach what it asks for
    c.objective.reflect.max_rationale_len = 24

    c.train.steps = 600
    c.train.prompts = 64
    c.train.minibatches = 1
    c.train.microbatches = 1
    c.train.eval_every = 0
    c.train.checkpoint_every = 200
    c.optimizer.lr = 2e-3
    c.optimizer.warmup_steps = 20
    c.optimizer.schedule = "constant"
    c.optimizer.b2 = 0.98
    c.eval.batch_size = 125
    return c
