"""Every default in one place, each with its unit; a config file changes only what differs."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import ml_collections

from care_jax import files
from care_jax.data import loader
from care_jax.data.mini_vqa.questions import Difficulty
from care_jax.inputs.processor import OVERLONG
from care_jax.method import loss, objectives, reflect, rescue, subgroup
from care_jax.method.advantage import SCALES
from care_jax.rewards.response_format import FORMATS


def base() -> ml_collections.ConfigDict:
    """The defaults: full CARE with the paper's values (method.md section 7)."""
    c = ml_collections.ConfigDict()
    c.seed = 0

    c.model = ml_collections.ConfigDict()
    c.model.folder = ""  # Hugging Face folder: config, tokenizer, chat template, processor and generation config
    c.model.weights = "random"  # random | a run folder or checkpoint folder to start from, local or gs://
    c.model.compute_dtype = "bfloat16"  # float32 | bfloat16; parameters and softmax stay float32
    c.model.attention = "auto"  # auto | xla; auto takes the splash kernel on a TPU
    c.model.freeze_vision = False  # no gradient into the vision tower
    c.model.remat = True  # recompute each layer in the backward pass
    c.model.logits_chunk = 256  # tokens of one chunk of the LM head; [tokens, V] is never materialised

    # Devices along each axis of the mesh; one may be -1: what the others leave. See sharding.py for what they divide.
    c.mesh = ml_collections.ConfigDict()
    c.mesh.data = 1
    c.mesh.fsdp = -1
    c.mesh.tensor = 1

    c.data = ml_collections.ConfigDict()
    c.data.format = "jsonl"  # jsonl | mini_vqa | prepared
    # jsonl: a file, images beside it; mini_vqa: the folder it is built into; prepared: a folder of
    # care_jax.data.prepare, or several to mix as ((folder, weight), ...): set under `with c.ignore_type()`, as in
    # configs/data_care_49k.py.
    c.data.train = ""
    c.data.eval = ""  # the same for held-out data, one file or folder; mini_vqa: the same folder
    c.data.mini_vqa = ml_collections.ConfigDict(dataclasses.asdict(Difficulty()))  # knobs of the embedded task
    c.data.strict = False  # refuse a file with broken rows instead of dropping them
    c.data.overlong = "drop"  # drop | shrink | error, for prompts past the largest bucket; never truncated
    c.data.prompt_buckets = (1024, 2048)  # tokens, the static prompt lengths
    c.data.patch_buckets = (1024, 4096)  # patches of a prompt's images, the static sizes of the vision tower
    c.data.max_image_tokens = 1024  # tokens of one image; larger ones are scaled down
    c.data.min_image_tokens = 4  # tokens of one image; smaller ones are scaled up
    c.data.response_format = "answer_tags"  # answer_tags | boxed: what is asked for and read, see response_format.py
    c.data.ask_for_format = True  # append the format's request to every question; False: the cold start teaches it

    c.rollout = ml_collections.ConfigDict()
    c.rollout.num_rollouts = 8  # G
    c.rollout.response_len = 2048  # R, tokens
    c.rollout.temperature = 1.0  # above 0
    # Shares of all branches, descending: when no more are alive, they are decoded as a batch of that size.
    c.rollout.compact_shares = (0.25, 0.0625)

    c.score = ml_collections.ConfigDict()
    # Old log-probs and think states: a pass of their own, or kept while sampling. `logprob_gap` says whether the
    # sampler is close enough; with several minibatches it then holds the policy's own movement too.
    c.score.old_from = "pass"  # pass | sampler

    c.verify = ml_collections.ConfigDict()
    c.verify.workers = 2  # processes
    c.verify.deadline = 5.0  # seconds an item may take before its worker is killed
    c.verify.tolerance = 0.01  # relative error allowed for answer_kind "number", and the numbers of a "list"
    c.verify.correct_weight = 0.9  # reward of a correct answer
    c.verify.format_weight = 0.1  # reward of a well-formed response

    c.objective = objectives.care()

    c.train = ml_collections.ConfigDict()
    c.train.steps = 1000  # batches of prompts
    c.train.prompts = 512  # B, prompts of a step over all processes
    c.train.minibatches = 4  # optimizer updates a step
    c.train.microbatches = 4  # pieces of a minibatch whose gradients are added up
    c.train.eval_every = 50  # steps; 0: only at the end
    c.train.eval_examples = 0  # held-out examples of a periodic evaluation; 0: all
    c.train.checkpoint_every = 50  # steps
    c.train.keep_last = 2  # checkpoints kept besides the best
    c.train.samples_every = 10  # steps between sample groups written for the report
    # Seconds without progress (a stage of a step, a batch of an evaluation, a compilation) after which the process
    # shows all its stacks and ends, for a supervisor to start it again; 0: never.
    c.train.hang_after = 1800.0
    c.train.max_logprob_gap = 1.0  # nats, mean sampler-to-scorer gap that stops the run

    c.optimizer = ml_collections.ConfigDict()
    c.optimizer.lr = 1e-6  # peak
    c.optimizer.warmup_steps = 0  # optimizer updates
    c.optimizer.schedule = "constant"  # constant | cosine | linear, over all updates after the warm-up
    c.optimizer.final_lr_ratio = 0.0  # of the peak, where cosine and linear end
    c.optimizer.b1 = 0.9
    c.optimizer.b2 = 0.999
    c.optimizer.eps = 1e-8
    c.optimizer.weight_decay = 1e-2  # on matrices only
    c.optimizer.clip_norm = 1.0  # global norm

    c.eval = ml_collections.ConfigDict()
    c.eval.batch_size = 64  # prompts; rounded up to what the mesh divides
    c.eval.num_samples = 1  # k of pass@k; 1 decodes greedily
    c.eval.temperature = 1.0  # of the samples when num_samples > 1
    c.eval.benchmarks = "data/benchmarks"  # the folder that holds the prepared benchmarks, each under its name
    return c


def validate(config: ml_collections.ConfigDict) -> None:
    """Checks what can be checked without data or devices.

    Raises:
        ValueError: listing every problem, each with the value, what is allowed and how to mend it.
    """
    o, r, t, e, values = config.objective, config.rollout, config.train, config.eval, flat(config)
    pieces = t.minibatches * t.microbatches
    allowed = {
        "data.overlong": (config.data.overlong, OVERLONG),
        "data.format": (config.data.format, loader.FORMATS),
        "data.response_format": (config.data.response_format, tuple(FORMATS)),
        "model.compute_dtype": (config.model.compute_dtype, ("float32", "bfloat16")),
        "model.attention": (config.model.attention, ("auto", "xla")),
        "optimizer.schedule": (config.optimizer.schedule, ("constant", "cosine", "linear")),
        "objective.selector": (o.selector, subgroup.SELECTORS),
        "objective.ratio": (o.ratio, loss.RATIOS),
        "objective.aggregate": (o.aggregate, loss.AGGREGATES),
        "objective.rescue.rank_by": (o.rescue.rank_by, rescue.RANKS),
        "objective.rescue.scale": (o.rescue.scale, SCALES),
        "score.old_from": (config.score.old_from, ("pass", "sampler")),
        "objective.reflect.source": (o.reflect.source, reflect.SOURCES),
        "objective.reflect.train_on": (o.reflect.train_on, reflect.TRAINED_ON),
    }
    smallest = {
        "objective.num_negatives": 1,
        "objective.num_neighbours": 1,
        "objective.max_draws": 1,
        "objective.reflect.max_rationale_len": 1,
        "objective.overlong_penalty": 0,
        "objective.kl_coef": 0,
        "model.logits_chunk": 1,
        "verify.workers": 1,
        "eval.batch_size": 1,
        "eval.num_samples": 1,
    }
    above_0 = (
        "objective.clip_high",
        "objective.rescue.delta",
        "verify.deadline",
        "optimizer.lr",
        "optimizer.clip_norm",
    )
    problems = [
        f"{name}={value!r}: choose one of {', '.join(choices)}"
        for name, (value, choices) in allowed.items()
        if value not in choices
    ]
    checks = {
        f"model.folder={config.model.folder!r}: name a folder with a config.json": bool(config.model.folder),
        f"data.train={config.data.train!r}: name the training data": bool(config.data.train),
        **{
            f"data.{split}={config.data[split]!r}: give one path, or with data.format='prepared' "
            "((folder, weight), ...), weights above 0": _names_data(config.data[split], config.data.format)
            for split in ("train", "eval")
        },
        **{
            f"{name}={value!r}: {files.MUST_BE_LOCAL}": not files.in_bucket(str(value))
            for name, value in (
                ("model.folder", config.model.folder),
                ("data.train", config.data.train),
                ("data.eval", config.data.eval),
            )
        },
        f"train.steps={t.steps}: must be at least 1": t.steps >= 1,
        f"train.prompts={t.prompts}: must divide by minibatches * microbatches = {pieces}": pieces >= 1
        and t.prompts % pieces == 0
        and t.prompts > 0,
        f"rollout.temperature={r.temperature}: training needs more than 0": r.temperature > 0,
        f"rollout.num_rollouts={r.num_rollouts}: a group needs at least 2": r.num_rollouts >= 2,
        f"rollout.response_len={r.response_len}: must be at least 8 tokens": r.response_len >= 8,
        f"rollout.compact_shares={r.compact_shares}: must be shares between 0 and 1, descending": list(r.compact_shares)
        == sorted({share for share in r.compact_shares if 0 < share < 1}, reverse=True),
        **{f"{name}={values[name]}: must be at least {low}": values[name] >= low for name, low in smallest.items()},
        **{f"{name}={values[name]}: must be above 0": values[name] > 0 for name in above_0},
        f"verify.tolerance={config.verify.tolerance}: must lie in [0, 1)": 0 <= config.verify.tolerance < 1,
        f"eval.temperature={e.temperature}: must be above 0 with eval.num_samples={e.num_samples}": e.num_samples == 1
        or e.temperature > 0,
        f"objective.clip_low={o.clip_low}: must lie in (0, 1]": 0 < o.clip_low <= 1,
        f"objective.overlong_buffer_len={o.overlong_buffer_len}: must lie in 0 .. rollout.response_len": 0
        <= o.overlong_buffer_len
        <= r.response_len,
        "objective.reflect.enabled needs objective.anchored=True: reflection repairs a subgroup's negative": o.anchored
        or not o.reflect.enabled,
        f"objective.reflect.max_rationale_len={o.reflect.max_rationale_len}: must be below rollout.response_len="
        f"{r.response_len}, or no repair has room": not (o.reflect.enabled and reflect.keeps_forced(o))
        or o.reflect.max_rationale_len < r.response_len,
        f"optimizer.warmup_steps={config.optimizer.warmup_steps}: must be below the run's steps * minibatches = "
        f"{t.steps * t.minibatches} updates": 0 <= config.optimizer.warmup_steps < t.steps * t.minibatches,
        f"train.checkpoint_every={t.checkpoint_every}: must be at least 1 step": t.checkpoint_every >= 1,
        f"train.samples_every={t.samples_every}: must be at least 1 step": t.samples_every >= 1,
        f"train.hang_after={t.hang_after}: must be seconds, or 0 for never": t.hang_after >= 0,
    }
    problems += [message for message, holds in checks.items() if not holds]
    if problems:
        raise ValueError("bad config: " + "; ".join(problems))


def flat(config: ml_collections.ConfigDict) -> dict[str, Any]:
    """The values by dotted key, as `--config.` takes them."""
    leaves = jax.tree_util.tree_leaves_with_path(config.to_dict(), is_leaf=lambda x: not isinstance(x, dict))
    return {jax.tree_util.keystr(path, simple=True, separator="."): value for path, value in leaves}


def _names_data(value: object, data_format: str) -> bool:
    """Whether a value is one path or a mixture of prepared folders; an empty one is another check's matter."""
    if isinstance(value, str) or not isinstance(value, tuple | list):
        return isinstance(value, str)
    pairs = [pair for pair in value if isinstance(pair, tuple | list) and len(pair) == 2]
    return (
        data_format == "prepared"
        and len(pairs) == len(value)
        and all(isinstance(folder, str) and folder for folder, _ in pairs)
        and all(isinstance(weight, int | float) and weight > 0 for _, weight in pairs)
    )
