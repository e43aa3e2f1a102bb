r"""Tasks for questions about failures: their cold starts are to end while most groups have no right answer.

    python -m benchmarks.study --config=configs/failures.py --out=docs/study/failures     # hours on two CPU cores
    python -m care_jax.cold_start --config=configs/failures.py:columns/cold_start --workdir=COLD_START \
        --config.data.train=runs/data                                                    # one of its runs
    python -m care_jax.train --config=configs/failures.py:columns/care --workdir=runs/mine \
        --config.data.train=runs/data --config.model.weights=COLD_START

Each task is a skill of mini_vqa (care_jax/data/mini_vqa/skills.py), and is hard in another way. Sizes in tokens, the
largest and its room; P is the prompt, I the patches, R a rationale with its answer, "trace" that with a draft:

    columns    nine scans read, a rationale of 61 to 70, an answer    P 23 of 28  I 36  R 79 of 80  trace 150
               that stands nowhere in it
    options    the sum must be mapped to one of twelve letters        P 70 of 72  I 36  R 27 of 32  trace 49
    series     a chart read twice, on axes of 21 levels               P 25 of 28  I 36  R 39 of 40  trace 72
    triangles  two images, whose results are compared                 P 38 of 40  I 72  R 56 of 56  trace 105

After 60 steps of options on 16,000 records (--config.data.mini_vqa.num_train) 9.6 ± 3.7 % of 250 held-out answers were
right, and 55 % of 120 groups had none: the letters are guesses, of which a twelfth is right. Of 750 held-out answers of
series 10.1 % were right after 60 steps, of triangles 8.1 % after 200 and 16.9 % after 240, of columns none after 400:
no cold start of columns is known yet from which RL could begin.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import ml_collections

from care_jax.configs import study
from care_jax.configs.study import Arm, Task

TASKS: Mapping[str, Task] = {
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

ARMS: Mapping[str, Arm] = {
    name: dataclasses.replace(study.ARMS[name], seeds=range(5), tasks=tuple(TASKS))
    for name in (study.GRPO, "dapo", "gspo", "dr_grpo", study.CARE, study.EQUAL)
}

ABOUT = (
    "A Qwen2.5-VL of 1 M parameters that starts from random weights: a cold start on traces with a rationale, stopped "
    "early, and then RL: 96 steps of 24 prompts with 8 rollouts, three epochs of 768 prompts, 4 "
    "updates a step, Adam at 5e-5. Column addition: three handwritten numbers of three digits. Twelve options: the "
    "letter of the sum of five handwritten digits. Two series: where the dark bars of a chart peak, and the sum or the "
    "difference of both bars there. Two triangles: the difference of their third, or exterior, angles. 750 held-out "
    "questions are answered greedily at the cold start and eight times in a run. CARE has the paper's token weights; "
    "with equal weights all tokens count the same. Both are trained on rewritten repairs."
)
OBJECTIVES, SHOWN = study.OBJECTIVES, (study.GRPO, study.CARE, study.EQUAL)


def get_config(run: str = f"columns/{study.CARE}") -> ml_collections.ConfigDict:
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
