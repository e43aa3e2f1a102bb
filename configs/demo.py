"""The demo: mini_vqa with a model of 1 M parameters, on 2 CPU cores; CARE, its cold start, or another objective.

    make demo        # data, cold start, CARE, evaluation, export, report
    python -m care_jax.cold_start --config=configs/demo.py:cold_start --workdir=runs/cold_start
    python -m care_jax.train --config=configs/demo.py --workdir=runs/care
    python -m care_jax.train --config=configs/demo.py:grpo --workdir=runs/grpo

After the colon: care (the default), care_no_rgr, grpo, dapo, gspo, dr_grpo, lora, qwen3_5 or cold_start.
`care_for_tiny` says what differs from the paper's values, and why. lora and qwen3_5 are CARE, with adapters and with a
tiny Qwen3.5 in place of the tiny Qwen2.5-VL; the cold start of qwen3_5 has its --config.model.folder. This does both
stages of a run:

    python -m care_jax.demo --run=qwen3_5 --workdir=runs/demo-qwen3_5
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path

import ml_collections

import care_jax
from care_jax import config
from care_jax.method import objectives
from care_jax.options import choose_one

_MODELS = Path(care_jax.__file__).parent / "models"
TINY_MODEL, TINY_QWEN3_5 = str(_MODELS / "tiny_qwen2_5_vl"), str(_MODELS / "tiny_qwen3_5")


def get_config(run: str = "care") -> ml_collections.ConfigDict:
    """Returns the config of one run of the demo.

    Raises:
        ValueError: there is no such run.
    """
    if run not in RUNS:
        raise ValueError(f"the demo has no run {run!r}: {choose_one(RUNS)}")
    return RUNS[run]()


def cold_start() -> ml_collections.ConfigDict:
    """The cold start: a random model learns the form of mini_vqa's traces, but not all of the task.

    It stops before the task is solved and before its learning rate has come down, so that groups are mixed and RL has
    something to learn from. Part of what RL then gains, a decayed learning rate would have gained as well. Charts have
    fewer levels and bars than the task's default, and images fewer digits, so that a tiny model learns them in minutes.

    Traces with a wrong draft that pass 32 tokens, 7 % of all, are left out.
    """
    c = config.base()
    c.model.folder = TINY_MODEL
    c.model.compute_dtype = "float32"
    c.model.remat = "none"
    c.model.logits_chunk = 4096

    c.data.format = "mini_vqa"
    c.data.train = "runs/data"
    c.data.ask_for_format = False  # the traces teach it
    c.data.mini_vqa.num_digits = 2
    c.data.mini_vqa.num_levels = 6
    c.data.mini_vqa.max_bars = 4
    c.data.mini_vqa.num_train = 24_000  # about what the cold start reads
    c.data.prompt_buckets = (28,)
    c.data.patch_buckets = (36,)  # one 84 x 84 picture
    c.data.max_image_tokens = 9

    c.rollout.response_len = 32
    c.rollout.compact_shares = ()  # responses are about equally long, so there is no tail to save
    c.objective.reflect.cue = "!"  # one token; the traces with a draft teach what it asks for
    c.objective.reflect.max_rationale_len = 24

    c.train.steps = 400
    c.train.prompts = 64
    c.train.minibatches = 1
    c.train.stream_len = 4096
    c.train.eval_every = 200
    c.train.eval_examples = 375
    c.train.checkpoint_every = 200
    c.optimizer.lr = 1e-3
    c.optimizer.warmup_steps = 20
    c.optimizer.schedule = "constant"
    c.optimizer.b2 = 0.98
    c.eval.batch_size = 125
    return c


def with_objective(objective: ml_collections.ConfigDict) -> ml_collections.ConfigDict:
    """RL from the cold start with an objective; all else is the same for every objective.

    The learning rate ends at 0: a step's noise costs several points of accuracy, which the decay gives back. At 3e-4
    the policy falls apart.
    """
    c = cold_start()
    reflect = c.objective.reflect
    objective.reflect.cue, objective.reflect.max_rationale_len = reflect.cue, reflect.max_rationale_len
    c.objective = objective

    c.model.weights = "runs/cold_start"
    c.rollout.num_rollouts = 8
    c.score.old_from = "sampler"  # in float32 the scoring pass would give the same up to rounding
    c.train.steps = 340
    c.train.prompts = 16
    c.train.stream_len = 1024
    c.train.eval_every = 85
    c.train.checkpoint_every = 85
    c.train.samples_every = 10
    c.optimizer.lr = 2e-4
    c.optimizer.warmup_steps = 10
    c.optimizer.schedule = "linear"
    c.optimizer.final_lr_ratio = 0.0
    c.optimizer.b2 = 0.99
    c.optimizer.weight_decay = 0.0
    return c


def care_for_tiny(objective: ml_collections.ConfigDict) -> ml_collections.ConfigDict:
    """CARE's knobs for a task whose rationale decides the answer.

    * gamma_pos 1 (paper 0.005), gamma_neg 1 (paper 0) and format_weight 1 (paper 0): the answer repeats the last number
      of the rationale, so the tokens that can be wrong lie in the rationale; with the paper's weights they get almost
      no credit, and a failure pushes down nothing but a correct copy.
    * rescue.scale delta: a wrong answer is not pushed as hard as a verified one.
    * reflect.train_on rewrite: a repair is learned in the form that is needed at test time.
    * kl_coef 0: the cold start is far from good, and a reference pass costs time.
    """
    objective.region.gamma_pos = 1.0
    objective.region.gamma_neg = 1.0
    objective.region.format_weight = 1.0
    objective.rescue.scale = "delta"
    objective.reflect.train_on = "rewrite"
    objective.kl_coef = 0.0
    return objective


def lora() -> ml_collections.ConfigDict:
    """CARE that trains adapters beside the decoder's linears (LoRA) and leaves the cold start's weights as they are."""
    c = with_objective(care_for_tiny(objectives.care()))
    c.model.lora.rank = 8
    c.model.lora.alpha = 16.0
    c.optimizer.lr = 1.5e-3
    return c


def qwen3_5() -> ml_collections.ConfigDict:
    """CARE on the tiny Qwen3.5."""
    c = with_objective(care_for_tiny(objectives.care()))
    c.model.folder = TINY_QWEN3_5
    return c


def dapo_for_tiny() -> ml_collections.ConfigDict:
    """DAPO with a length penalty that fits responses of 32 tokens."""
    objective = objectives.dapo()
    objective.overlong_buffer_len = 8
    return objective


def _with_preset(make: Callable[[], ml_collections.ConfigDict]) -> ml_collections.ConfigDict:
    return with_objective(make())


# Every preset as it is published, but for those that this task changes.
OBJECTIVES = {
    **objectives.PRESETS,
    "care": lambda: care_for_tiny(objectives.care()),
    "care_no_rgr": lambda: care_for_tiny(objectives.care_no_rgr()),
    "dapo": dapo_for_tiny,
}
RUNS: dict[str, Callable[[], ml_collections.ConfigDict]] = {
    **{name: functools.partial(_with_preset, make) for name, make in OBJECTIVES.items()},
    "lora": lora,
    "qwen3_5": qwen3_5,
    "cold_start": cold_start,
}
