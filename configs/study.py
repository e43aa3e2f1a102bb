r"""The runs that CARE is compared by: two tasks, and the arms in which one thing differs from another.

    python -m benchmarks.study --config=configs/study.py --out=docs/study        # all of them, hours on two CPU cores
    python -m care_jax.train --config=configs/study.py:five_digits/grpo --workdir=runs/mine --config.seed=3 \
        --config.data.train=runs/data --config.model.weights=COLD_START      # one of them
    python -m care_jax.cold_start --config=configs/study.py:five_digits/cold_start --workdir=COLD_START \
        --config.seed=3 --config.data.train=runs/data

All arms of a seed start from one cold start and see the prompts in one order; none has a KL term. Most ablations change
one thing of "CARE, equal weights": all tokens weigh the same there, since in these tasks the rationale decides the
answer and the paper's weights leave it almost no credit. "CARE" has the paper's weights. Both are trained on rewritten
repairs, as the demo: a continuation needs room for two rationales in every row of an update, and has an arm of its own.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import ml_collections

from care_jax.configs import demo
from care_jax.method import objectives

GRPO, CARE, EQUAL = "grpo", "care", "care_equal"
COLD_START = "cold_start"
FIRST_TASK, SECOND_TASK = "three_skills", "five_digits"


@dataclasses.dataclass(frozen=True)
class Task:
    """A task and its cold start, whose length is here chosen to reach 50 to 80 % accuracy."""

    title: str
    cold_start_steps: int
    trace_len: int  # tokens of the longest trace: a wrong draft, the cue, and a rationale with its answer
    changes: Mapping[str, Any] = dataclasses.field(default_factory=dict)  # of all its runs, by dotted key
    cold_start: Mapping[str, Any] = dataclasses.field(default_factory=dict)  # of its cold start alone: easier data
    response_len: int = 32  # tokens, room for any rationale and its answer


TASKS: Mapping[str, Task] = {
    FIRST_TASK: Task("three skills", 600, 46),
    SECOND_TASK: Task("five digits", 450, 50, {"data.mini_vqa.skills": ("digits",), "data.mini_vqa.num_digits": 5}),
}


@dataclasses.dataclass(frozen=True)
class Arm:
    """One configuration to train for some seeds, and the arm it is compared with."""

    title: str
    section: str
    make_objective: Callable[[], ml_collections.ConfigDict]
    changes: Mapping[str, Any] = dataclasses.field(default_factory=dict)  # of the objective, by dotted key
    config: Mapping[str, Any] = dataclasses.field(default_factory=dict)  # other changes, by dotted key
    num_rollouts: int = 8
    holds_failure: bool = False  # a response has room for a failed rationale before its repair
    lr: float = 5e-5  # of Adam, the same for all but the arms that ask what it decides
    num_steps: int = 96
    seeds: range = range(3)
    tasks: tuple[str, ...] = (FIRST_TASK,)
    baseline: str = EQUAL  # the arm that differences are taken to
    num_probes: int = 0  # first seeds for which noise, repairs and times are measured at the cold start


BOTH = (FIRST_TASK, SECOND_TASK)
OBJECTIVES, _LR, _LONG = "Objectives", "Learning rate", "Three times the steps"


def _objective(title: str, make: Callable[[], ml_collections.ConfigDict], num_seeds: int, **changes: Any) -> Arm:
    return Arm(
        title,
        OBJECTIVES,
        make,
        changes,
        seeds=range(num_seeds),
        tasks=BOTH,
        baseline=GRPO,
        num_probes=3,
    )


def _ablation(section: str, title: str, changes: Mapping[str, Any], **fields: Any) -> Arm:
    return Arm(title, section, objectives.care, changes, **fields)


_UNIFORM = {"region.gamma_pos": 1.0, "region.gamma_neg": 1.0, "region.format_weight": 1.0}
_PAPER = {"region.gamma_pos": 0.005, "region.gamma_neg": 0.0, "region.format_weight": 0.0}

_THREE_TIMES: Mapping[str, Any] = {"num_steps": 288, "seeds": range(2, 5)}

# The first named are run first.
ARMS: Mapping[str, Arm] = {
    GRPO: _objective("GRPO", objectives.grpo, 5),
    CARE: _objective("CARE", objectives.care, 5, **_PAPER),
    "paper_no_rgr": _objective("CARE, no reflection", objectives.care_no_rgr, 3, **_PAPER),
    EQUAL: _objective("CARE, equal weights", objectives.care, 5),
    "care_no_rgr": _objective("CARE, equal weights, no reflection", objectives.care_no_rgr, 3),
    "subgroup": _objective(
        "Anchored subgroup alone, equal weights", objectives.care_no_rgr, 3, **{"rescue.enabled": False}
    ),
    "dapo": _objective("DAPO", objectives.dapo, 3, overlong_buffer_len=2),
    "gspo": _objective("GSPO", objectives.gspo, 3),
    "dr_grpo": _objective("Dr. GRPO", objectives.dr_grpo, 3),
    "rescue_off": _ablation("Rescue", "off", {"rescue.enabled": False}),
    "rescue_delta": _ablation("Rescue", "scale delta, rank by sum", {"rescue.scale": "delta"}, tasks=BOTH),
    "rescue_mean": _ablation("Rescue", "scale z-score, rank by mean", {"rescue.rank_by": "mean"}, tasks=BOTH),
    "reflect_continuation": _ablation(
        "Reflection",
        "trained on the continuation, R = 56",
        {"reflect.train_on": "continuation"},
        tasks=BOTH,
        holds_failure=True,
        num_probes=3,
    ),
    # Without a cue a failed rationale stays as it is, and only an answer is sampled: a rewrite would hold no rationale.
    "reflect_no_cue": _ablation(
        "Reflection",
        "without a cue, trained on the continuation, R = 56",
        {"reflect.cue": "", "reflect.train_on": "continuation"},
        holds_failure=True,
        baseline="reflect_continuation",
        num_probes=3,
    ),
    "reflect_scratch": _ablation("Reflection", "from scratch", {"reflect.source": "scratch"}, num_probes=3),
    "aggregate_token": _ablation("Mean of the loss", "over tokens", {"aggregate": "token"}, tasks=BOTH),
    "aggregate_constant": _ablation("Mean of the loss", "over a constant", {"aggregate": "constant"}),
    "weights_answer": _ablation("Weights", "answer only", _PAPER | {"region.gamma_pos": 0.0}, baseline=CARE),
    "weights_format": _ablation(
        "Weights", "format weight 1", _PAPER | {"region.format_weight": 1.0}, tasks=BOTH, baseline=CARE
    ),
    "weights_005": _ablation("Weights", "gamma_pos 0.05", _PAPER | {"region.gamma_pos": 0.05}, baseline=CARE),
    "weights_failing": _ablation(
        "Weights", "failing rationales unmasked", _PAPER | {"region.gamma_neg": 1.0}, baseline=CARE
    ),
    "selector_nearest": _ablation("Selector", "nearest", {"selector": "nearest"}),
    "selector_random": _ablation("Selector", "random", {"selector": "random"}),
    "selector_mixed": _ablation("Selector", "mixed", {"selector": "mixed"}),
    "selector_farthest": _ablation("Selector", "farthest", {"selector": "farthest"}),
    "scale_025": _ablation(
        "Scale of negatives", "s = 0.25", {"negative_scale": 0.25, "reflected_scale": 0.125}, num_probes=3
    ),
    "scale_1": _ablation("Scale of negatives", "s = 1", {"negative_scale": 1.0, "reflected_scale": 0.5}, num_probes=3),
    "equalise_off": _ablation("Equalisation", "off", {"equalise": False}),
    "rollouts_4": _ablation("Rollouts of a prompt", "G = 4", {}, num_rollouts=4),
    "rollouts_16": _ablation("Rollouts of a prompt", "G = 16", {}, num_rollouts=16),
    "grpo_lr_low": Arm("GRPO, a half", _LR, objectives.grpo, lr=2.5e-5, baseline=GRPO),
    "grpo_lr_high": Arm("GRPO, twice", _LR, objectives.grpo, lr=1e-4, baseline=GRPO),
    "care_lr_low": _ablation(_LR, "CARE, a half", _PAPER, lr=2.5e-5, baseline=CARE),
    "care_lr_high": _ablation(_LR, "CARE, twice", _PAPER, lr=1e-4, baseline=CARE),
    "equal_lr_low": _ablation(_LR, "CARE, equal weights, a half", {}, lr=2.5e-5),
    "equal_lr_high": _ablation(_LR, "CARE, equal weights, twice", {}, lr=1e-4),
    "grpo_long": Arm("GRPO", _LONG, objectives.grpo, **_THREE_TIMES, baseline=GRPO),
    "care_long": _ablation(_LONG, "CARE", _PAPER, **_THREE_TIMES, baseline="grpo_long"),
    "equal_long": _ablation(_LONG, "CARE, equal weights", {}, **_THREE_TIMES, baseline="grpo_long"),
}

# What the page says of the runs.
ABOUT = (
    "A Qwen2.5-VL of 1 M parameters that starts from random weights: a cold start on traces with a rationale, stopped "
    "early, and then RL: 96 steps of 24 prompts with 8 rollouts, 2 updates a step, Adam at 5e-5, except where an arm "
    "says otherwise. Three skills: the sum or the range of three handwritten digits, the sum, the difference or the "
    "largest of values in a chart, and a triangle's third or exterior angle. Five digits: the sum or the range of five "
    "of them. 750 held-out questions are answered greedily at the cold start and eight times in a run. CARE has the "
    "paper's token weights: 1 for the answer, 0.005 for a correct rationale, 0 for a failing one and for tags. With "
    "equal weights all tokens count the same, since in these tasks the rationale decides the answer. Both are trained "
    "on rewritten repairs, responses that hold the repaired rationale alone, as the demo is; one arm is trained on the "
    "published continuation of the failure, which needs room for two rationales. Without a cue the failed rationale "
    "stays as it is and only an answer is sampled. Times are with GLIBC_TUNABLES=glibc.malloc.hugetlb=1."
)

# Whose curves of the mechanism are drawn.
SHOWN = (GRPO, CARE, EQUAL, "care_no_rgr", "reflect_no_cue", "reflect_scratch")


def get_config(run: str = f"{FIRST_TASK}/{CARE}") -> ml_collections.ConfigDict:
    """The config of TASK/ARM or TASK/cold_start.

    Raises:
        ValueError: there is no such task or arm.
    """
    return config_of(run, TASKS, ARMS)


def config_of(run: str, tasks: Mapping[str, Task], arms: Mapping[str, Arm]) -> ml_collections.ConfigDict:
    """The config of a run of a study with other tasks and arms, as `get_config`."""
    task, _, name = run.partition("/")
    if task not in tasks or name not in (*arms, COLD_START):
        raise ValueError(f"{run!r} is not a run of the study: give TASK/ARM, TASK one of {', '.join(tasks)}")
    c = _cold_start(tasks[task]) if name == COLD_START else _training(arms[name])
    # Charts have more levels and bars, and images more digits, than the demo's.
    c.data.mini_vqa.num_levels, c.data.mini_vqa.max_bars, c.data.mini_vqa.num_digits = 9, 5, 3
    c.data.mini_vqa.num_train = 40_000
    c.data.mini_vqa.num_heldout = 750  # they are asked nine times in a run
    c.update_from_flattened_dict(tasks[task].changes)
    if name == COLD_START:
        c.update_from_flattened_dict(tasks[task].cold_start)
    else:
        forced = c.objective.reflect.max_rationale_len if arms[name].holds_failure else 0
        c.rollout.response_len = tasks[task].response_len + forced
    return c


def _cold_start(task: Task) -> ml_collections.ConfigDict:
    c = demo.cold_start()
    c.train.steps = task.cold_start_steps
    c.optimizer.lr = 2e-3
    c.train.eval_every, c.train.eval_examples, c.train.checkpoint_every = 0, 0, 200
    c.rollout.response_len = task.trace_len
    return c


def _training(arm: Arm) -> ml_collections.ConfigDict:
    c = demo.with_objective(arm.make_objective())
    c.objective.update_from_flattened_dict({"kl_coef": 0.0, "reflect.train_on": "rewrite", **_UNIFORM, **arm.changes})
    # A constant learning rate: a curve may be cut anywhere and be that of a shorter run.
    c.optimizer.schedule = "constant"
    c.optimizer.lr = arm.lr
    # Without clipping Adam's step does not depend on the scale of a loss, which differs between the arms.
    c.optimizer.clip_norm = 1e9
    c.train.steps = arm.num_steps
    c.train.prompts = 24
    c.train.minibatches = 2  # the second is off-policy by one update
    c.train.eval_every = arm.num_steps // 8
    c.train.eval_examples = 0
    c.train.checkpoint_every = 48
    c.train.samples_every = 50
    c.rollout.num_rollouts = arm.num_rollouts
    c.score.old_from = "sampler"  # the same log-probs up to rounding, without the time of a scoring pass
    c.update_from_flattened_dict(arm.config)
    return c
