r"""Tasks where failures rule: each starts at 5 to 20 % of right answers, and most groups are all wrong.

    python -m benchmarks.study --config=configs/failures.py --out=docs/study/failures     # hours on two CPU cores
    python -m care_jax.cold_start --config=configs/failures.py:columns/cold_start --workdir=COLD_START \
        --config.data.train=runs/data
    python -m care_jax.train --config=configs/failures.py:columns/care --workdir=runs/mine --config.data.train=runs/data \
        --config.model.weights=COLD_START
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import ml_collections

from care_jax.configs import study
from care_jax.configs.study import OBJECTIVES, Arm, Task

TASKS: Mapping[str, Task] = {
    "columns": Task(
        "column addition",
        600,
        148,
        {"data.mini_vqa.skills": ("columns",), "objective.reflect.max_rationale_len": 70},
        response_len=80,
    ),
    "options": Task(
        "options",
        600,
        49,
        {"data.mini_vqa.skills": ("options",), "data.mini_vqa.num_digits": 5, "data.prompt_buckets": (64,)},
    ),
    "series": Task("two series", 600, 56, {"data.mini_vqa.skills": ("series",), "data.mini_vqa.num_levels": 21}),
    "triangles": Task(
        "two triangles",
        600,
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

ARMS: Mapping[str, Arm] = {
    name: dataclasses.replace(study.ARMS[name], seeds=range(5), tasks=tuple(TASKS))
    for name in (study.GRPO, "dapo", "gspo", "dr_grpo", study.CARE, study.EQUAL)
}

ABOUT = "…"
SHOWN = (study.GRPO, study.CARE, study.EQUAL)


def get_config(run: str = "columns/care") -> ml_collections.ConfigDict:
    """The config of TASK/ARM or TASK/cold_start.

    Raises:
        ValueError: there is no such task or arm.
    """
    return study.config_of(run, TASKS, ARMS)
