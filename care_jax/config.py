"""Every default in one place, each with its unit; a config file changes only what differs."""

from __future__ import annotations

import functools
import inspect
import re
from collections.abc import Callable, Collection, Iterator
from typing import Any

from ml_collections import ConfigDict

from care_jax import options
from care_jax.config_rules import RULES, is_path_or_mixture, key_problems, type_problem
from care_jax.errors import InputError, shown
from care_jax.method import objectives
from care_jax.rewards import terms


def base() -> ConfigDict:
    """Returns the defaults: full CARE with the paper's values (docs/method.md section 7)."""
    c = ConfigDict()
    c.seed = 0
    # Where curves go besides metrics.jsonl: tensorboard | wandb | mlflow | trackio, or several as "tensorboard,wandb".
    c.tracker = "tensorboard"

    c.model = ConfigDict()
    c.model.folder = ""  # Hugging Face folder: config, tokenizer, chat template, processor and generation config
    c.model.weights = "random"  # random | the run folder or checkpoint folder to start from, local or gs://
    c.model.compute_dtype = "bfloat16"  # float32 | bfloat16; parameters and softmax stay float32
    c.model.attention = "auto"  # auto | xla; auto takes splash on a TPU, and cuDNN on a GPU in bfloat16
    # Parts that are not trained, some of vision, merger, decoder and head; a head that is tied is the embedding table.
    c.model.freeze = ()
    c.model.remat = "full"  # what the backward pass recomputes: full (each layer) | dots (all but its products) | none
    c.model.logits_chunk = 256  # tokens of one chunk of the LM head, on GPUs rather 2048; [tokens, V] never exists
    # Adapters beside linears (LoRA, arXiv 2106.09685). They alone are trained; all else stays as it was loaded, in
    # model.compute_dtype and without optimizer state. Checkpoints hold the adapters and name the weights beneath them.
    c.model.lora = ConfigDict()
    c.model.lora.rank = 0  # 0: no adapters
    c.model.lora.alpha = 64.0  # an adapter's output is multiplied by alpha / rank
    c.model.lora.rank_stabilised = False  # by alpha / sqrt(rank) instead (rsLoRA, arXiv 2312.03732)
    c.model.lora.targets = ("layers.*",)  # patterns of the linears' names; layers.* are those of the decoder

    # Devices along each axis of the mesh; one may be -1, which takes all that the others leave. sharding.py says what
    # each axis divides.
    c.mesh = ConfigDict()
    c.mesh.data = 1
    c.mesh.fsdp = -1
    c.mesh.tensor = 1

    c.data = ConfigDict()
    c.data.format = "jsonl"  # jsonl | mini_vqa | prepared
    # jsonl: a file, images beside it; mini_vqa: the folder it is built into; prepared: a folder of
    # care_jax.data.prepare, or several to mix as ((folder, weight), ...): set under `with c.ignore_type()`, as in
    # configs/data_care_49k.py.
    c.data.train = ""
    c.data.eval = ""  # the held-out data, in the same format, one file or folder; mini_vqa: the same folder
    # The knobs of the embedded task; each setting is a data set of its own, built on first use.
    c.data.mini_vqa = ConfigDict()
    c.data.mini_vqa.skills = options.SKILLS  # some of digits, chart, geometry, columns, options, series, triangles
    c.data.mini_vqa.num_digits = 3  # scans in an image of digits or options, 2 to 9
    c.data.mini_vqa.min_bars = 3  # letters below a chart, 2 to 5
    c.data.mini_vqa.max_bars = 5
    c.data.mini_vqa.num_levels = 9  # values go from 1 to this, 3 to 21
    c.data.mini_vqa.angle_step = 5  # degrees, 1, 5 or 10; printed angles are multiples of it
    c.data.mini_vqa.num_train = 40_000  # records, spread evenly over the skills
    c.data.mini_vqa.num_heldout = 1_500
    c.data.mini_vqa.seed = 0
    # Others of its source take the turns that a prompt loses. Verdicts count here, not rewards.
    c.data.turns_if_all_correct = 1.0  # share of its turns that a prompt keeps while its last group was all correct
    c.data.turns_if_all_wrong = 1.0  # and while it was all wrong
    c.data.strict = False  # refuse a file with broken rows instead of dropping them
    c.data.overlong = "drop"  # drop | shrink | error, for prompts past the largest bucket; never truncated
    c.data.prompt_buckets = (1024, 2048)  # tokens, the static prompt lengths
    c.data.patch_buckets = (1024, 4096)  # patches of a prompt's images, the static sizes of the vision tower
    c.data.max_image_tokens = 1024  # tokens of one image; larger ones are scaled down
    c.data.min_image_tokens = 4  # tokens of one image; smaller ones are scaled up
    c.data.videos = False  # rows may have videos: all frames of each patch travel to the devices, of pictures too
    c.data.response_format = "answer_tags"  # answer_tags | boxed: what is asked for and read, see response_format.py
    # Of chat templates with such a switch; False puts an empty rationale before the response (inputs/prompts.py).
    c.data.thinking = True
    c.data.ask_for_format = True  # append the format's request to every question; False: the cold start teaches it

    c.rollout = ConfigDict()
    c.rollout.num_rollouts = 8  # G
    c.rollout.response_len = 2048  # R, tokens
    c.rollout.temperature = 1.0  # above 0
    # Devices, neighbours along fsdp, that divide the model among them while decoding, best those of a host; 0: as
    # mesh.tensor says, which must be 1 otherwise.
    c.rollout.tensor = 0
    # Shares of all branches, descending. Once no more than a share is still decoding, the batch shrinks to it.
    c.rollout.compact_shares = (0.25, 0.0625)
    # The type of the decoder's kernels while sampling: auto (model.compute_dtype) | int8, which halves what a token
    # reads of them. The sampler is then not quite the policy, so set loss.tis_cap. Evaluations are not affected.
    c.rollout.weights = "auto"

    c.score = ConfigDict()
    # Where old log-probs and think states come from: a pass of their own, or kept while sampling. `logprob_gap` shows
    # how close the sampler is; with "sampler" and several minibatches it holds the policy's own movement too.
    c.score.old_from = "pass"  # pass | sampler

    c.verify = ConfigDict()
    c.verify.workers = 2  # processes
    c.verify.deadline = 5.0  # seconds an answer, or a call of a reward function, may take before its worker is killed
    c.verify.tolerance = 0.01  # relative error allowed for answer_kind "number", and the numbers of a "list"
    # Functions "module:function" that the data may name as answer_kind; no other module is imported.
    c.verify.allow = ()
    # More parts of the reward, "NAME=WEIGHT" each: iou, repetition, length, or a "module:function" of yours; see
    # rewards/functions.py. Each has a curve.
    c.verify.rewards = ()
    c.verify.correct_when = ""  # "NAME>=NUMBER": a part that says which responses are correct; "": the verifiers
    c.verify.correct_weight = 0.9  # reward of a correct answer
    c.verify.format_weight = 0.1  # reward of a well-formed response

    c.objective = objectives.care()

    # Corrects the update for a sampler that is not quite the policy, by the ratio of what the two give to the sampled
    # tokens (docs/method.md section 5). Levels: token | sequence (product over a row) | geometric (mean over a row).
    c.loss = ConfigDict()
    c.loss.tis_cap = 0.0  # the policy loss is weighted by the ratio, but by no more than this; 0: no weights
    c.loss.tis_level = "token"  # of the weights
    c.loss.mask_level = "sequence"  # of the ratio that is held against the bounds
    c.loss.mask_low = 0.0  # tokens with a lower ratio are left out of the loss; 0: none
    c.loss.mask_high = 0.0  # tokens with a higher ratio are left out of the loss; 0: none

    c.train = ConfigDict()
    c.train.steps = 1000  # batches of prompts
    c.train.prompts = 512  # B, prompts of a step over all processes
    c.train.minibatches = 4  # optimizer updates a step
    # Tokens of a stream of prompts and rows that lie behind each other: what a device scores, or adds the gradients of,
    # at a time. At least a prompt of the largest bucket and a whole response. Longer ones leave less padding at their
    # ends, until a shard has too few groups to fill one.
    c.train.stream_len = 8192
    c.train.eval_every = 50  # steps; 0: only at the end
    c.train.eval_examples = 0  # held-out examples of an evaluation, the same each time; 0: all
    c.train.checkpoint_every = 50  # steps
    c.train.keep_last = 2  # checkpoints kept besides the best
    c.train.samples_every = 10  # steps between sample groups written for the report
    # Seconds without progress (a stage of a step, a batch of an evaluation, a compilation) after which the process
    # prints all its stacks and exits, so that a supervisor restarts it; 0: never.
    c.train.hang_after = 1800.0
    c.train.max_logprob_gap = 1.0  # nats, mean sampler-to-scorer gap that stops the run

    c.optimizer = ConfigDict()
    c.optimizer.lr = 1e-6  # peak
    c.optimizer.warmup_steps = 0  # optimizer updates
    c.optimizer.schedule = "constant"  # constant | cosine | linear, over all updates after the warm-up
    c.optimizer.final_lr_ratio = 0.0  # of the peak, where cosine and linear end
    c.optimizer.b1 = 0.9
    c.optimizer.b2 = 0.999
    c.optimizer.eps = 1e-8
    c.optimizer.weight_decay = 1e-2  # on matrices only
    c.optimizer.clip_norm = 1.0  # global norm

    c.eval = ConfigDict()
    # Prompts of a batch at most, rounded up to what the mesh divides; 0: as many as take the memory of a rollout.
    c.eval.batch_size = 0
    c.eval.num_samples = 1  # k of pass@k; 1 decodes greedily
    c.eval.temperature = 1.0  # of the samples when num_samples > 1
    c.eval.benchmarks = "data/benchmarks"  # the folder that holds the prepared benchmarks, each under its name
    return c


# Checks of one key against another: each returns its problem, or "".
Check = Callable[[ConfigDict], str]


def _batches_divide(c: ConfigDict) -> str:
    train = c.train
    if train.minibatches >= 1 and train.prompts > 0 and train.prompts % train.minibatches == 0:
        return ""
    return f"train.prompts={train.prompts}: must divide by train.minibatches={train.minibatches}"


def _streams_hold_a_row(c: ConfigDict) -> str:
    needed = max(c.data.prompt_buckets, default=0) + c.rollout.response_len
    if c.train.stream_len >= needed:
        return ""
    return (
        f"train.stream_len={c.train.stream_len}: must hold a prompt of the largest of data.prompt_buckets and a "
        f"response of rollout.response_len, {needed} tokens"
    )


def _warmup_ends(c: ConfigDict) -> str:
    warmup, updates = c.optimizer.warmup_steps, c.train.steps * c.train.minibatches
    if 0 <= warmup < updates:
        return ""
    return f"optimizer.warmup_steps={warmup}: must be below the run's steps * minibatches = {updates} updates"


def _samples_differ(c: ConfigDict) -> str:
    if c.eval.num_samples == 1 or c.eval.temperature > 0:
        return ""
    return f"eval.temperature={c.eval.temperature}: must be above 0 with eval.num_samples={c.eval.num_samples}"


def _buffer_fits(c: ConfigDict) -> str:
    buffer_len = c.objective.overlong_buffer_len
    fits = 0 <= buffer_len <= c.rollout.response_len
    return "" if fits else f"objective.overlong_buffer_len={buffer_len}: must lie in 0 .. rollout.response_len"


_NEEDS = {
    "reflect.enabled": (("anchored",), "reflection repairs a subgroup's negative"),
    "region.after_divergence": (("anchored",), "a rationale has its credit from where it parts from the anchor's"),
    "reflect.all_wrong": (("reflect.enabled",), "that switches repairs on"),
}


def _has_what_it_needs(c: ConfigDict) -> str:
    values = flat(c.objective)
    for key, (needs, why) in _NEEDS.items():
        if values[key] and (missing := [need for need in needs if not values[need]]):
            return f"objective.{key} needs objective.{missing[0]}=True: {why}"
    return ""


def _virtual_reward_counts(c: ConfigDict) -> str:
    if not (c.objective.virtual_reward > 0 and c.objective.anchored):
        return ""
    return (
        f"objective.virtual_reward={c.objective.virtual_reward}: it has an effect only without anchors; set it to 0 or "
        "objective.anchored=False"
    )


def _repair_has_room(c: ConfigDict) -> str:
    reflect, limit = c.objective.reflect, c.rollout.response_len
    if not (reflect.enabled and objectives.keeps_forced(c.objective)) or reflect.max_rationale_len < limit:
        return ""
    return (
        f"objective.reflect.max_rationale_len={reflect.max_rationale_len}: must be below rollout.response_len={limit}, "
        "or no repair has room"
    )


_MIXTURES = ("data.train", "data.eval")  # paths, or mixtures, which `is_path_or_mixture` looks at


def _images_have_sizes(c: ConfigDict) -> str:
    least, most = c.data.min_image_tokens, c.data.max_image_tokens
    return "" if least <= most else f"data.min_image_tokens={least}: must be at most data.max_image_tokens={most}"


def _rewards_are_known(c: ConfigDict) -> str:
    try:
        terms.read_threshold(c.verify.correct_when, terms.read_terms(c.verify.rewards))
    except InputError as error:
        return str(error)
    return ""


def _something_is_trained(c: ConfigDict) -> str:
    rank, frozen = c.model.lora.rank, f"model.freeze={c.model.freeze}"
    if rank > 0 and c.model.weights == "random":
        return f"model.lora.rank={rank} needs model.weights: name the checkpoint that the adapters lie beside"
    if rank > 0 and c.model.freeze:
        return f"{frozen}: adapters alone are trained with model.lora.rank above 0; leave it empty"
    return f"{frozen}: leaves nothing to train" if set(options.GROUPS) <= set(c.model.freeze) else ""


CHECKS: tuple[Check, ...] = (
    _something_is_trained,
    _rewards_are_known,
    functools.partial(is_path_or_mixture, split="train"),
    functools.partial(is_path_or_mixture, split="eval"),
    _images_have_sizes,
    _batches_divide,
    _streams_hold_a_row,
    _warmup_ends,
    _samples_differ,
    _buffer_fits,
    _has_what_it_needs,
    _virtual_reward_counts,
    _repair_has_room,
)


def validate(config: ConfigDict, *, unused: Collection[str] = ()) -> None:
    """Checks what can be checked without data or devices; comes before anything else reads the config.

    The command does not need the keys in `unused`: they may keep an empty default.

    Raises:
        InputError: listing every problem, each with the value, what is allowed and how to mend it.
    """
    known = base()
    problems = list(key_problems(config, known))
    if not problems:
        values, defaults = flat(config), flat(known)
        mistyped = {
            key: wanted
            for key, default in defaults.items()
            if key not in _MIXTURES and (wanted := type_problem(values[key], default))
        }
        problems = [f"{key}={shown(values[key])}: {wanted}" for key, wanted in mistyped.items()]
        problems += [
            f"{key}={shown(values[key])}: {wanted}"
            for key, rule in RULES.items()
            if key not in mistyped and (values[key] or key not in unused) and (wanted := rule(values[key]))
        ]
        if not mistyped:
            problems += [problem for check in CHECKS if (problem := check(config))]
    if problems:
        raise InputError("bad config: " + "; ".join(problems))
    objectives.Objective.from_config(config.objective)


def flat(config: ConfigDict) -> dict[str, Any]:
    """Returns the values by dotted key, in the form that `--config.` takes them."""
    values: dict[str, Any] = {}
    for key, value in config.items():  # sorted by key
        if isinstance(value, ConfigDict):
            values |= {f"{key}.{name}": leaf for name, leaf in flat(value).items()}
        else:
            values[key] = value
    return values


_SET = re.compile(r"    c\.([\w.]+) = (?!ConfigDict)(.*?)(?:  # (.*))?")  # a line of `base`
_FIELD = re.compile(r"    (\w+): [^=]*? = .*?(?:  # (.*))?")  # a line of an objective's dataclass


def described() -> Iterator[str]:
    """A line for each key: KEY=DEFAULT, and the comment that stands behind or above it in the source."""
    comments = _comments(inspect.getsource(base), _SET)
    for group in (objectives.Objective, objectives.Rescue, objectives.Reflect, objectives.Region):
        name = "" if group is objectives.Objective else f"{group.__name__.lower()}."
        found = _comments(inspect.getsource(group), _FIELD)
        comments |= {f"objective.{name}{field}": comment for field, comment in found.items()}
    for key, value in flat(base()).items():
        told = comments.get(key, "")
        yield f"{key}={value!r}" + (f"  # {told}" if told else "")


def _comments(source: str, line_of_key: re.Pattern[str]) -> dict[str, str]:
    """The comment of each key in a source: the one behind its value, after those in the lines above it."""
    comments: dict[str, str] = {}
    above: list[str] = []
    for line in source.splitlines():
        if line.strip().startswith("# "):
            above.append(line.strip()[2:])
            continue
        if (found := line_of_key.fullmatch(line)) is not None:
            comments[found[1]] = " ".join([*above, found[found.re.groups] or ""]).strip()
        above = []
    return comments
