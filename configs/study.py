"""The runs that CARE is compared by: two tasks, and the arms in which one thing differs from another.

    python -m benchmarks.study --config=configs/study.py --out=docs/study        # all of them, hours on two CPU cores
    python -m care_jax.train --config=configs/study.py:five_digits/grpo --workdir=runs/mine --config.seed=3 \\
        --config.data.train=runs/data --config.model.weights=COLD_START      # one of them
    python -m care_jax.cold_start --config=configs/study.py:five_digits/cold_start --workdir=COLD_START \\
        --config.seed=3 --config.data.train=runs/data

All arms of a seed start from one cold start and see the prompts in one order; none has a KL term. Most ablations change
one thing of "CARE, equal weights": all tokens weigh the same there, since in these tasks the rationale decides the
answer and the paper's weights leave it almost no credit. "CARE" has the paper's weights.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import ml_collections

from care_jax import objectives
from configs import demo, demo_cold_start

GRPO, CARE, EQUAL = "grpo", "care", "care_equal"
COLD_START = "cold_start"
FIRST_TASK, SECOND_TASK = "three_skills", "five_digits"


@dataclasses.dataclass(frozen=True)
class Task:
    """What is asked, and for how long the cold start learns it: to an accuracy of about a half to three quarters."""

    title: str
    cold_start_steps: int
    changes: Mapping[str, Any] = dataclasses.field(default_factory=dict)  # of all its runs, by dotted key


TASKS: Mapping[str, Task] = {
    FIRST_TASK: Task("three skills", 600),
    SECOND_TASK: Task("five digits", 450, {"data.mini_vqa.skills": ("digits",), "data.mini_vqa.num_digits": 5}),
}


@dataclasses.dataclass(frozen=True)
class Arm:
    """What is trained for some seeds, and what it is compared with."""

    title: str
    section: str
    make_objective: Callable[[], ml_collections.ConfigDict]
    changes: Mapping[str, Any] = dataclasses.field(default_factory=dict)  # of the objective, by dotted key
    num_rollouts: int = 8
    num_seeds: int = 3
    tasks: tuple[str, ...] = (FIRST_TASK,)
    baseline: str = EQUAL  # the arm that differences are taken to
    is_probed: bool = False  # the noise of its gradient, its repairs and its times are measured at the cold start


BOTH = (FIRST_TASK, SECOND_TASK)
OBJECTIVES = "Objectives"


def _objective(title: str, make: Callable[[], ml_collections.ConfigDict], num_seeds: int, **changes: Any) -> Arm:
    return Arm(
        title,
        OBJECTIVES,
        make,
        changes,
        num_seeds=num_seeds,
        tasks=BOTH,
        baseline=GRPO,
        is_probed=True,
    )


def _ablation(section: str, title: str, changes: Mapping[str, Any], **fields: Any) -> Arm:
    return Arm(title, section, objectives.care, changes, **fields)


_UNIFORM = {"region.gamma_pos": 1.0, "region.gamma_neg": 1.0, "region.format_weight": 1.0}
_PAPER = {"region.gamma_pos": 0.005, "region.gamma_neg": 0.0, "region.format_weight": 0.0}

# The first named are run first.
ARMS: Mapping[str, Arm] = {
    GRPO: _objective("GRPO", objectives.grpo, 5),
    CARE: _objective("CARE", objectives.care, 5, **_PAPER),
    EQUAL: _objective("CARE, equal weights", objectives.care, 5),
    "care_no_rgr": _objective("CARE, equal weights, no reflection", objectives.care_no_rgr, 3),
    "dapo": _objective("DAPO", objectives.dapo, 3, overlong_buffer_len=8),
    "gspo": _objective("GSPO", objectives.gspo, 3),
    "dr_grpo": _objective("Dr. GRPO", objectives.dr_grpo, 3),
    "rescue_off": _ablation("Rescue", "off", {"rescue.enabled": False}, tasks=BOTH),
    "rescue_delta": _ablation("Rescue", "scale delta, rank by sum", {"rescue.scale": "delta"}, tasks=BOTH),
    "rescue_mean": _ablation("Rescue", "scale z-score, rank by mean", {"rescue.rank_by": "mean"}, tasks=BOTH),
    "rescue_delta_mean": _ablation(
        "Rescue", "scale delta, rank by mean", {"rescue.scale": "delta", "rescue.rank_by": "mean"}, tasks=BOTH
    ),
    "reflect_rewrite": _ablation("Reflection", "trained on the rewrite", {"reflect.train_on": "rewrite"}, tasks=BOTH),
    "reflect_no_cue": _ablation("Reflection", "without a cue", {"reflect.cue": ""}, is_probed=True),
    "reflect_scratch": _ablation("Reflection", "from scratch", {"reflect.source": "scratch"}, is_probed=True),
    "aggregate_token": _ablation("Mean of the loss", "over tokens", {"aggregate": "token"}, tasks=BOTH),
    "aggregate_constant": _ablation("Mean of the loss", "over a constant", {"aggregate": "constant"}, tasks=BOTH),
    "weights_answer": _ablation(
        "Weights", "answer only", _PAPER | {"region.gamma_pos": 0.0}, tasks=BOTH, baseline=CARE
    ),
    "weights_format": _ablation(
        "Weights", "format weight 1", _PAPER | {"region.format_weight": 1.0}, tasks=BOTH, baseline=CARE
    ),
    "weights_005": _ablation("Weights", "gamma_pos 0.05", _PAPER | {"region.gamma_pos": 0.05}, baseline=CARE),
    "weights_failing": _ablation(
        "Weights", "failing rationales unmasked", _PAPER | {"region.gamma_neg": 1.0}, baseline=CARE
    ),
    "weights_masked": _ablation("Weights", "failing rationales masked", {"region.gamma_neg": 0.0}),
    "selector_nearest": _ablation("Selector", "nearest", {"selector": "nearest"}),
    "selector_random": _ablation("Selector", "random", {"selector": "random"}),
    "selector_mixed": _ablation("Selector", "mixed", {"selector": "mixed"}),
    "selector_farthest": _ablation("Selector", "farthest", {"selector": "farthest"}),
    "scale_025": _ablation(
        "Scale of negatives", "s = 0.25", {"negative_scale": 0.25, "reflected_scale": 0.125}, is_probed=True
    ),
    "scale_1": _ablation(
        "Scale of negatives", "s = 1", {"negative_scale": 1.0, "reflected_scale": 0.5}, is_probed=True
    ),
    "equalise_off": _ablation("Equalisation", "off", {"equalise": False}),
    "rollouts_4": _ablation("Rollouts of a prompt", "G = 4", {}, num_rollouts=4),
    "rollouts_16": _ablation("Rollouts of a prompt", "G = 16", {}, num_rollouts=16),
}

# Whose curves of the mechanism are drawn.
SHOWN = (GRPO, CARE, EQUAL, "care_no_rgr", "reflect_no_cue", "reflect_scratch")


def get_config(run: str = f"{FIRST_TASK}/{CARE}") -> ml_collections.ConfigDict:
    """The config of TASK/ARM or TASK/cold_start.

    Raises:
        ValueError: there is no such task or arm.
    """
    task, _, name = run.partition("/")
    if task not in TASKS or name not in (*ARMS, COLD_START):
        raise ValueError(f"{run!r} is no run of the study: give TASK/ARM, TASK one of {', '.join(TASKS)}")
    if name == COLD_START:
        c = demo_cold_start.get_config()
        c.train.steps = TASKS[task].cold_start_steps
    else:
        arm = ARMS[name]
        c = demo.with_objective(arm.make_objective())
        c.objective.update_from_flattened_dict({"kl_coef": 0.0, **_UNIFORM, **arm.changes})
        # A constant learning rate: a curve may be cut anywhere and be that of a shorter run.
        c.optimizer.schedule = "constant"
        c.optimizer.lr = 5e-5
        c.train.steps = 120
        c.train.prompts = 32
        c.train.minibatches = 2  # the second is off-policy by one update
        c.train.eval_every = 12
        c.train.eval_examples = 0
        c.train.checkpoint_every = 60
        c.train.samples_every = 50
        c.rollout.num_rollouts = arm.num_rollouts
    c.rollout.response_len = 56  # room for a task's longest rationale twice: a failed one, and its repair
    c.update_from_flattened_dict(TASKS[task].changes)
    return c
