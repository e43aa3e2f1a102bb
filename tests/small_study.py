"""The study at a size for tests: one task, two arms, two steps of a tiny model."""

from __future__ import annotations

import dataclasses

import ml_collections

from care_jax.configs import study

ABOUT, OBJECTIVES, SHOWN = "A tiny model.", study.OBJECTIVES, (study.GRPO, study.CARE)
TASKS = {"tiny": study.Task("tiny", 2, 46)}
ARMS = {
    name: dataclasses.replace(study.ARMS[name], seeds=range(1), tasks=("tiny",), num_probes=int(name == "care"))
    for name in ("grpo", "care")
}


def get_config(run: str) -> ml_collections.ConfigDict:
    """The config of a run of the study's first task, made small."""
    c = study.get_config(f"{study.FIRST_TASK}/{run.partition('/')[2]}")
    c.data.mini_vqa.num_train, c.data.mini_vqa.num_heldout = 120, 30
    c.train.steps, c.train.eval_every, c.eval.batch_size = 2, 1, 30
    c.train.prompts = 4
    c.rollout.num_rollouts = 4
    c.optimizer.warmup_steps = 1
    return c
