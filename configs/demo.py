"""Full CARE on mini_vqa with the 1 M-parameter model, on 2 CPU cores.

    make demo        # data, cold start, this, evaluation, export, report
    python -m care_jax.train --config=configs/demo.py --workdir=runs/care --config.model.weights=runs/cold_start

What differs from the paper's values, and why: see `care_for_tiny`.
"""

from __future__ import annotations

import ml_collections

from care_jax.method import objectives
from configs import demo_cold_start


def get_config() -> ml_collections.ConfigDict:
    """Full CARE."""
    return with_objective(care_for_tiny(objectives.care()))


def care_for_tiny(objective: ml_collections.ConfigDict) -> ml_collections.ConfigDict:
    """CARE's knobs for a task whose rationale decides the answer.

    * gamma_pos 1 (paper 0.005), gamma_neg 1 (paper 0) and format_weight 1 (paper 0): the answer repeats the last number
      of the rationale, so the tokens that can be wrong lie in the rationale; with the paper's weights they get almost
      no credit, and a failure pushes down nothing but a correct copy.
    * rescue.scale delta: a wrong answer is not pushed as hard as a verified one.
    * reflect.train_on rewrite: what a repair found is learned in the form it is needed in at test time.
    * kl_coef 0: the cold start is far from good, and a reference pass costs time.
    """
    objective.region.gamma_pos = 1.0
    objective.region.gamma_neg = 1.0
    objective.region.format_weight = 1.0
    objective.rescue.scale = "delta"
    objective.reflect.train_on = "rewrite"
    objective.kl_coef = 0.0
    return objective


def with_objective(objective: ml_collections.ConfigDict) -> ml_collections.ConfigDict:
    """The demo with another objective; everything else stays equal.

    The learning rate ends at 0: at 1e-4 a step's noise costs several points of accuracy, which the decay gives back; at
    3e-4 the policy falls apart within 100 steps.
    """
    c = demo_cold_start.get_config()
    reflect = c.objective.reflect
    objective.reflect.cue, objective.reflect.max_rationale_len = reflect.cue, reflect.max_rationale_len
    c.objective = objective

    c.model.weights = "runs/cold_start"
    c.rollout.num_rollouts = 8
    c.train.steps = 1200
    c.train.prompts = 16
    c.train.eval_every = 100
    c.train.eval_examples = 375
    c.train.checkpoint_every = 50
    c.train.samples_every = 10
    c.optimizer.lr = 1e-4
    c.optimizer.warmup_steps = 10
    c.optimizer.schedule = "linear"
    c.optimizer.final_lr_ratio = 0.0
    c.optimizer.b2 = 0.99
    c.optimizer.weight_decay = 0.0
    return c
