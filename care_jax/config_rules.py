"""The type and the range of each key of a config. The type is that of its default.

A rule looks at one value. What one key asks of another is in config.py.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Any

from ml_collections import ConfigDict, config_dict

from care_jax import files, options
from care_jax.errors import shown

# Says what a value should be, or "" if it is fine.
Rule = Callable[[Any], str]

_MOST = 2**31 - 1  # of any integer: it becomes an int32 on the devices
_LARGEST_FLOAT32 = 3.4028234e38
_MOST_STEPS = 10_000_000  # the schedule is a table of all of them
_MOST_WORKERS = 1024
_FUNCTION = re.compile(r"\w+(\.\w+)*:\w+")
_DAY = 86_400.0  # seconds


def _one_of(words: Collection[str]) -> Rule:
    return lambda value: "" if value in words else options.choose_one(words)


def _at_least(low: float, unit: str = "") -> Rule:
    return lambda value: "" if value >= low else f"must be at least {low}{unit}"


def _at_most(high: float, unit: str = "") -> Rule:
    return lambda value: "" if value <= high else f"must be at most {high}{unit}"


def _above(low: float) -> Rule:
    return lambda value: "" if value > low else f"must be above {low}"


def _all_of(*rules: Rule) -> Rule:
    return lambda value: next(filter(None, (rule(value) for rule in rules)), "")


def _holds(condition: Callable[[Any], bool], wanted: str) -> Rule:
    return lambda value: "" if condition(value) else wanted


def _is_descending(shares: tuple[float, ...]) -> bool:
    return list(shares) == sorted({share for share in shares if 0 < share < 1}, reverse=True)


def _is_ascending(sizes: tuple[int, ...]) -> bool:
    return len(sizes) > 0 and list(sizes) == sorted({size for size in sizes if size >= 1})


def _are_functions(names: tuple[str, ...]) -> bool:
    return all(_FUNCTION.fullmatch(name) for name in names)


_local = _holds(lambda path: not files.in_bucket(str(path)), files.MUST_BE_LOCAL)
_share = _holds(lambda value: 0 <= value < 1, "must lie in [0, 1)")
_kept = _holds(lambda value: 0 < value <= 1, "must be above 0 and at most 1")
_axis = _holds(lambda size: size >= 1 or size == -1, "must be at least 1, or -1 for what the others leave")
_buckets = _holds(_is_ascending, "give one size or more, ascending and at least 1")
_skills = _holds(
    lambda skills: bool(skills) and set(skills) <= set(options.EVERY_SKILL),
    f"choose some of {', '.join(options.EVERY_SKILL)}",
)
_trackers = _holds(
    lambda tracker: set(options.tracker_names(tracker)) <= set(options.TRACKERS),
    f"choose some of {', '.join(options.TRACKERS)}, with commas between them",
)
_bound = _holds(lambda value: value == 0 or value >= 1, "must be at least 1, or 0 for none")
_seed = _at_least(0)
_count = _at_least(1)

# The range of each key whose type does not say it all.
RULES: Mapping[str, Rule] = {
    "seed": _seed,
    "tracker": _trackers,
    "model.folder": _all_of(_holds(bool, "name a folder with a config.json"), _local),
    "model.weights": _holds(bool, "give random, or the folder of a run or a checkpoint"),
    "model.compute_dtype": _one_of(options.COMPUTE_DTYPES),
    "model.attention": _one_of(options.ATTENTION),
    "model.freeze": _holds(
        lambda groups: set(groups) <= set(options.GROUPS), f"choose some of {', '.join(options.GROUPS)}"
    ),
    "model.remat": _one_of(options.REMAT),
    "model.logits_chunk": _count,
    "model.lora.rank": _at_least(0),
    "model.lora.alpha": _above(0),
    "model.lora.targets": _holds(bool, "name linears, as layers.* for all of the decoder"),
    "mesh.data": _axis,
    "mesh.fsdp": _axis,
    "mesh.tensor": _axis,
    "data.format": _one_of(options.DATA_FORMATS),
    "data.train": _all_of(_holds(bool, "name the training data"), _local),
    "data.eval": _local,
    "data.mini_vqa.skills": _skills,
    "data.mini_vqa.num_digits": _count,
    "data.mini_vqa.min_bars": _count,
    "data.mini_vqa.max_bars": _count,
    "data.mini_vqa.num_levels": _count,
    "data.mini_vqa.angle_step": _count,
    "data.mini_vqa.num_train": _count,
    "data.mini_vqa.num_heldout": _count,
    "data.mini_vqa.seed": _seed,
    "data.turns_if_all_correct": _kept,
    "data.turns_if_all_wrong": _kept,
    "data.overlong": _one_of(options.OVERLONG),
    "data.prompt_buckets": _buckets,
    "data.patch_buckets": _buckets,
    "data.max_image_tokens": _count,
    "data.min_image_tokens": _count,
    "data.response_format": _one_of(options.RESPONSE_FORMATS),
    "rollout.num_rollouts": _holds(lambda count: count >= 2, "a group needs at least 2"),
    "rollout.response_len": _at_least(8, " tokens"),
    "rollout.temperature": _holds(lambda value: value > 0, "training needs more than 0"),
    "rollout.tensor": _at_least(0, " devices; 0 is the mesh's own"),
    "rollout.compact_shares": _holds(_is_descending, "must be shares between 0 and 1, descending"),
    "rollout.weights": _one_of(options.SAMPLER_WEIGHTS),
    "score.old_from": _one_of(options.OLD_FROM),
    "verify.workers": _all_of(_count, _at_most(_MOST_WORKERS)),
    "verify.deadline": _all_of(_above(0), _at_most(_DAY, " seconds")),
    "verify.tolerance": _share,
    "verify.allow": _holds(_are_functions, 'must name functions as "module:function"'),
    "verify.correct_weight": _at_least(0),
    "verify.format_weight": _at_least(0),
    "objective.num_positives": _count,
    "objective.num_negatives": _count,
    "objective.num_neighbours": _count,
    "objective.virtual_reward": _at_least(0),
    "objective.selector": _one_of(options.SELECTORS),
    "objective.negative_scale": _at_least(0),
    "objective.reflected_scale": _at_least(0),
    "objective.rescue.rank_by": _one_of(options.RANKS),
    "objective.rescue.delta": _above(0),
    "objective.rescue.scale": _one_of(options.RESCUE_SCALES),
    "objective.reflect.max_rationale_len": _count,
    "objective.reflect.source": _one_of(options.REPAIR_SOURCES),
    "objective.reflect.failure": _one_of(options.REPAIRED_FAILURES),
    "objective.reflect.train_on": _one_of(options.TRAIN_ON),
    "objective.region.gamma_pos": _at_least(0),
    "objective.region.gamma_neg": _at_least(0),
    "objective.region.format_weight": _at_least(0),
    "objective.region.unit": _one_of(options.REGION_UNITS),
    "objective.ratio": _one_of(options.RATIOS),
    "objective.surrogate": _one_of(options.SURROGATES),
    "objective.sapo_tau_pos": _above(0),
    "objective.sapo_tau_neg": _above(0),
    "objective.clip_low": _holds(lambda value: 0 < value <= 1, "must lie in (0, 1]"),
    "objective.clip_high": _above(0),
    "objective.aggregate": _one_of(options.AGGREGATES),
    "objective.kl_coef": _at_least(0),
    "objective.max_draws": _count,
    "objective.overlong_buffer_len": _at_least(0, " tokens; it must lie in 0 .. rollout.response_len"),
    "objective.overlong_penalty": _at_least(0),
    "loss.tis_cap": _bound,
    "loss.tis_level": _one_of(options.RATIO_LEVELS),
    "loss.mask_level": _one_of(options.RATIO_LEVELS),
    "loss.mask_low": _holds(lambda value: 0 <= value <= 1, "must lie in [0, 1]"),
    "loss.mask_high": _bound,
    "train.steps": _all_of(_count, _at_most(_MOST_STEPS)),
    "train.prompts": _count,
    "train.minibatches": _count,
    "train.stream_len": _all_of(_count, _holds(lambda tokens: tokens % 2 == 0, "must be even")),
    "train.eval_every": _at_least(0, " steps"),
    "train.eval_examples": _at_least(0),
    "train.checkpoint_every": _at_least(1, " step"),
    "train.keep_last": _count,
    "train.samples_every": _at_least(1, " step"),
    "train.hang_after": _holds(lambda seconds: seconds >= 0, "must be seconds, or 0 for never"),
    "train.max_logprob_gap": _above(0),
    "optimizer.lr": _above(0),
    "optimizer.warmup_steps": _at_least(0),
    "optimizer.schedule": _one_of(options.SCHEDULES),
    "optimizer.final_lr_ratio": _at_least(0),
    "optimizer.b1": _share,
    "optimizer.b2": _share,
    "optimizer.eps": _above(0),
    "optimizer.weight_decay": _at_least(0),
    "optimizer.clip_norm": _above(0),
    "eval.batch_size": _at_least(0),
    "eval.num_samples": _count,
    "eval.temperature": _at_least(0),
    "eval.benchmarks": _all_of(_holds(bool, "name the folder of the prepared benchmarks"), _local),
}


def key_problems(given: ConfigDict, known: ConfigDict, prefix: str = "") -> Iterator[str]:
    """A line for each key of `given` that `known` does not have, and for each of `known` that is missing."""
    for key in given:
        name = prefix + (key if key.isprintable() else shown(key))
        try:
            value = given[key]
        except config_dict.RequiredValueError:
            yield f"{name}: needs a value"
            continue
        if key not in known:
            yield f"{name}: no such key; {_advice(key, known, prefix)}"
        elif isinstance(known[key], ConfigDict) and not isinstance(value, ConfigDict):
            yield f"{name}={shown(value)}: is a group of the keys {', '.join(known[key])}"
        elif isinstance(known[key], ConfigDict):
            yield from key_problems(value, known[key], f"{name}.")
        elif isinstance(value, ConfigDict):
            yield f"{name}: takes a value and has no keys of its own"
    yield from (f"{prefix}{key} is missing; start from care_jax.config.base()" for key in known if key not in given)


def _advice(key: str, known: ConfigDict, prefix: str) -> str:
    close = difflib.get_close_matches(key, list(known), n=1)
    if close:
        return f"did you mean {prefix}{close[0]}?"
    elsewhere = [name for name in RULES if name.rpartition(".")[2] == key]
    if elsewhere:
        return f"did you mean {elsewhere[0]}?"
    return f"{prefix.removesuffix('.') or 'a config'} has {', '.join(known)}"


def type_problem(value: Any, default: Any) -> str:
    """Says what a value of the type of `default` is, or "" if `value` is one."""
    if isinstance(default, tuple):
        if not isinstance(value, tuple):
            return f"must be a tuple, as {default!r}"
        return next((f"each must be {problem.removeprefix('must be ')}" for problem in _of_each(value, default)), "")
    if isinstance(default, bool):
        return "" if isinstance(value, bool) else "must be True or False"
    # bool is a subclass of int, and no number.
    if isinstance(default, int):
        return "" if type(value) is int and abs(value) <= _MOST else f"must be a whole number up to {_MOST}"
    if isinstance(default, float):
        is_number = type(value) in (int, float) and abs(value) <= _LARGEST_FLOAT32  # False for NaN
        return "" if is_number else "must be a finite number"
    return "" if isinstance(value, str) and _is_plain(value) else "must be text without NUL or lone surrogates"


def _of_each(values: tuple, default: tuple) -> Iterator[str]:
    one = default[0] if default else ""  # what is empty by default takes texts
    return filter(None, (type_problem(value, one) for value in values))


def _is_plain(text: str) -> bool:
    try:
        return b"\0" not in text.encode()
    except UnicodeEncodeError:
        return False


def is_path_or_mixture(c: ConfigDict, *, split: str) -> str:
    """The problem with data.train or data.eval, or ""."""
    value, is_prepared = c.data[split], c.data.format == "prepared"
    is_mixture = is_prepared and isinstance(value, tuple | list) and bool(value) and all(map(_is_part, value))
    if is_mixture or (isinstance(value, str) and not type_problem(value, "")):
        return ""
    wanted = "give one path, or with data.format='prepared' ((folder, weight), ...), weights above 0"
    return f"data.{split}={shown(value)}: {wanted}"


def _is_part(part: Any) -> bool:
    """True for (folder, weight) of a mixture."""
    if not (isinstance(part, tuple | list) and len(part) == 2):
        return False
    folder, weight = part
    return isinstance(folder, str) and bool(folder) and not type_problem(weight, 1.0) and weight > 0
