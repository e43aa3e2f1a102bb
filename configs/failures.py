r"""Tasks for questions about failures: RL begins where most groups have no right answer.

    python -m benchmarks.study --config=configs/failures.py --out=docs/study/failures --only=nine/  # hours on two cores
    python -m care_jax.cold_start --config=configs/failures.py:nine/cold_start --workdir=COLD_START \
        --config.data.train=runs/data                                                    # one of its runs
    python -m care_jax.train --config=configs/failures.py:nine/care@0.0001 --workdir=runs/mine \
        --config.data.train=runs/data --config.model.weights=COLD_START

Each task is a skill of mini_vqa (care_jax/data/mini_vqa/skills.py), and is hard in another way. Sizes in tokens, the
largest and its room; P is the prompt, I the patches, R a rationale with its answer, "trace" that with a draft:

    nine       nine digits, of which the cold start has seen six      P 23 of 28  I 36  R 48 of 56  trace 60
    columns    nine scans read, a rationale of 61 to 70, an answer    P 23 of 28  I 36  R 79 of 80  trace 150
               that stands nowhere in it
    options    the sum must be mapped to one of twelve letters        P 70 of 72  I 36  R 27 of 32  trace 49
    series     a chart read twice, on axes of 21 levels               P 25 of 28  I 36  R 39 of 40  trace 72
    triangles  two images, whose results are compared                 P 38 of 40  I 72  R 56 of 56  trace 105

A task is of use if the policy can do each step and seldom all of them. That is meant by nine, whose cold start reads
digits and has never seen so many: with seed 0 it begins at 26.4 % of 750, 53 to 72 % of the groups are all wrong, and
GRPO at 1e-4 ends at 28.0 % (--only='nine/grpo@0.0001/0/training', R of 64). It is not so where a cold start has not
learnt to read: what is right there is guessed, and RL makes the guesses surer. In that state were columns, options and
series after all cold starts that were tried: with --config.train.steps=900 and --config.train.eval_every=50 at most one
of 250 answers of columns was right up to step 550, with 400 and 40 from 5 to 10 % of 300 answers of options (a guess of
twelve), and 11 to 14 % of series from step 80 on, while the loss on its few tables went to 0.1. GRPO at 5e-5 and at
1e-4 gained less than a point on options and series in 96 steps from 60 of the cold start. Triangles are right in 8.1 %
of 750 after 200 steps and in 16.9 % after 240; no RL was finished on them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import ml_collections

from care_jax.configs import study
from care_jax.configs.study import Arm, Task
from care_jax.method import objectives

TASKS: Mapping[str, Task] = {
    "nine": Task(
        "nine digits",
        450,
        60,
        {
            "data.mini_vqa.skills": ("digits",),
            "data.mini_vqa.num_digits": 9,
            "objective.reflect.max_rationale_len": 41,
            "train.stream_len": 512,
        },
        {"data.mini_vqa.num_digits": 6, "train.stream_len": 4096},
        response_len=56,
    ),
    "columns": Task(
        "column addition",
        400,
        150,
        {"data.mini_vqa.skills": ("columns",), "objective.reflect.max_rationale_len": 70},
        response_len=80,
    ),
    "options": Task(
        "twelve options",
        60,
        49,
        {"data.mini_vqa.skills": ("options",), "data.mini_vqa.num_digits": 5, "data.prompt_buckets": (72,)},
    ),
    "series": Task(
        "two series",
        60,
        72,
        {
            "data.mini_vqa.skills": ("series",),
            "data.mini_vqa.num_levels": 21,
            "objective.reflect.max_rationale_len": 32,
        },
        response_len=40,
    ),
    "triangles": Task(
        "two triangles",
        200,
        105,
        {
            "data.mini_vqa.skills": ("triangles",),
            "data.prompt_buckets": (40,),
            "data.patch_buckets": (72,),
            "objective.reflect.max_rationale_len": 50,
        },
        response_len=56,
    ),
}


class Variant(NamedTuple):
    """An objective, and what else a run with it changes."""

    title: str
    make: Callable[[], ml_collections.ConfigDict]
    changes: Mapping[str, Any] = {}  # of the objective, by dotted key
    config: Mapping[str, Any] = {}  # of the rest


_TURNS = {"data.turns_if_all_correct": 0.25, "data.turns_if_all_wrong": 0.5}
_REPAIR = {"rescue.enabled": False, "reflect.all_wrong": True}
# A subgroup of all rollouts, whose advantages are GRPO's.
_ALL_ROWS = {"num_positives": 8, "num_negatives": 8, "num_neighbours": 8, "negative_scale": 1.0, "equalise": False}

# CARE's tokens weigh the same in all but "care".
VARIANTS: Mapping[str, Variant] = {
    study.GRPO: Variant("GRPO", objectives.grpo),
    "dapo": Variant("DAPO", objectives.dapo, {"overlong_buffer_len": 2}),
    "gspo": Variant("GSPO", objectives.gspo),
    "dr_grpo": Variant("Dr. GRPO", objectives.dr_grpo),
    "virtual": Variant("GRPO with a virtual reward", objectives.grpo, {"virtual_reward": 1.0}),
    "grpo_turns": Variant("GRPO, turns by outcome", objectives.grpo, {}, _TURNS),
    study.CARE: Variant("CARE", objectives.care, study.ARMS[study.CARE].changes),
    study.EQUAL: Variant("CARE, equal weights", objectives.care),
    "repair": Variant("CARE, all-wrong groups repaired, not rescued", objectives.care, _REPAIR),
    "all_rows": Variant("GRPO with repairs", objectives.care, {**_REPAIR, **_ALL_ROWS}),
    "all_rows_turns": Variant("GRPO with repairs, turns by outcome", objectives.care, {**_REPAIR, **_ALL_ROWS}, _TURNS),
}
RATES = (5e-5, 1e-4, 2e-4)  # learning rates; an arm is compared with GRPO at the same one

ARMS: Mapping[str, Arm] = {
    f"{name}@{lr:g}": Arm(
        f"{variant.title}, {lr:g}",
        study.OBJECTIVES,
        variant.make,
        variant.changes,
        variant.config,
        lr=lr,
        tasks=tuple(TASKS),
        baseline=f"{study.GRPO}@{lr:g}",
    )
    for name, variant in VARIANTS.items()
    for lr in RATES
}

ABOUT = (
    "A Qwen2.5-VL of 1 M parameters that starts from random weights: a cold start on traces with a rationale, and then "
    "RL: 96 steps of 24 prompts with 8 rollouts, three epochs of 768 prompts, 4 updates a step. Nine digits: the sum "
    "or the range of nine handwritten digits, of which the cold start has seen six. Column addition: three "
    "handwritten numbers of three digits. Twelve options: the letter of the sum of five handwritten digits. Two "
    "series: where the dark bars of a chart peak, and the sum or the difference of both bars there. Two triangles: the "
    "difference of their third, or exterior, angles. 750 held-out questions are answered greedily at the cold start "
    "and eight times in a run. CARE has the paper's token weights; with equal weights all tokens count the same. Both "
    "are trained on rewritten repairs."
)
OBJECTIVES, SHOWN = study.OBJECTIVES, tuple(f"{name}@0.0001" for name in (study.GRPO, study.EQUAL, "all_rows"))


def get_config(run: str = f"nine/{study.CARE}@0.0001") -> ml_collections.ConfigDict:
    """The config of TASK/ARM or TASK/cold_start.

    Raises:
        ValueError: there is no such task or arm.
    """
    c = study.config_of(run, TASKS, ARMS)
    if not run.endswith(f"/{study.COLD_START}"):
        # The policy comes back to a prompt and moves between the updates of a step, so that clipping acts.
        c.data.mini_vqa.num_train = 768
        c.train.minibatches = 4
    return c
