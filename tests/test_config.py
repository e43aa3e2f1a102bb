"""The config: every check speaks. What the command line makes of it is in test_cli.py."""

from __future__ import annotations

import functools
import itertools
import math
import operator
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import ml_collections
import pytest

from care_jax import config, options
from care_jax.config_rules import type_problem
from care_jax.configs import demo, qwen2_5_vl, qwen3_5, qwen3_vl
from care_jax.errors import InputError
from care_jax.method import objectives
from care_jax.models import published
from care_jax.rewards import functions, response_format
from care_jax.stages.optimizer import learning_rate

CONFIGS = Path(__file__).parents[1] / "configs"


def good() -> ml_collections.ConfigDict:
    """A config without a problem."""
    c = config.base()
    c.model.folder, c.data.train = "model", "data"
    return c


BAD = [
    ("data.overlong", "cut", "data.overlong='cut': choose one of drop, shrink, error"),
    ("data.format", "csv", "data.format='csv': choose one of jsonl, mini_vqa"),
    ("model.compute_dtype", "float16", "model.compute_dtype='float16': choose one of float32, bfloat16"),
    ("optimizer.schedule", "step", "optimizer.schedule='step': choose one of constant, cosine, linear"),
    ("objective.selector", "best", "objective.selector='best': choose one of farthest_first, nearest, random"),
    ("objective.ratio", "row", "objective.ratio='row': choose one of token, sequence"),
    ("objective.aggregate", "sum", "objective.aggregate='sum': choose one of sequence, token, constant"),
    ("objective.rescue.rank_by", "max", "objective.rescue.rank_by='max': choose one of sum, mean"),
    ("objective.rescue.scale", "one", "objective.rescue.scale='one': choose one of zscore, delta"),
    ("objective.reflect.source", "cue", "objective.reflect.source='cue': choose one of rationale, scratch"),
    ("objective.reflect.train_on", "all", "objective.reflect.train_on='all': choose one of continuation, rewrite"),
    ("objective.reflect.failure", "any", "objective.reflect.failure='any': choose one of nearest, likeliest, common"),
    ("objective.surrogate", "ppo", "objective.surrogate='ppo': choose one of clip, cispo, sapo"),
    ("objective.sapo_tau_neg", 0.0, "objective.sapo_tau_neg=0.0: must be above 0"),
    ("objective.region.unit", "row", "objective.region.unit='row': choose one of token, region"),
    ("model.folder", "", "model.folder='': name a folder with a config.json"),
    ("data.train", "", "data.train='': name the training data"),
    ("data.train", (("a", 1.0),), "data.train=(('a', 1.0),): give one path, or with data.format='prepared' ((folder"),
    ("data.eval", 3, "data.eval=3: give one path, or with"),
    ("train.steps", 0, "train.steps=0: must be at least 1"),
    ("train.prompts", 510, "train.prompts=510: must divide by train.minibatches=4"),
    ("train.prompts", 0, "train.prompts=0: must divide by"),
    ("train.minibatches", 0, "train.prompts=512: must divide by train.minibatches=0"),
    ("rollout.temperature", 0.0, "rollout.temperature=0.0: training needs more than 0"),
    ("rollout.num_rollouts", 1, "rollout.num_rollouts=1: a group needs at least 2"),
    ("rollout.response_len", 7, "rollout.response_len=7: must be at least 8 tokens"),
    ("objective.num_negatives", 0, "objective.num_negatives=0: must be at least 1"),
    ("objective.num_neighbours", 0, "objective.num_neighbours=0: must be at least 1"),
    ("objective.clip_low", 0.0, "objective.clip_low=0.0: must lie in (0, 1]"),
    ("objective.clip_low", 1.5, "objective.clip_low=1.5: must lie in (0, 1]"),
    ("objective.clip_high", -0.1, "objective.clip_high=-0.1: must be above 0"),
    ("objective.kl_coef", -0.01, "objective.kl_coef=-0.01: must be at least 0"),
    ("objective.max_draws", 0, "objective.max_draws=0: must be at least 1"),
    ("objective.overlong_penalty", -1.0, "objective.overlong_penalty=-1.0: must be at least 0"),
    ("objective.rescue.delta", -0.1, "objective.rescue.delta=-0.1: must be above 0"),
    ("rollout.weights", "int4", "rollout.weights='int4': choose one of auto, int8"),
    ("loss.tis_cap", 0.5, "loss.tis_cap=0.5: must be at least 1, or 0 for none"),
    ("loss.tis_cap", -1.0, "loss.tis_cap=-1.0: must be at least 1, or 0 for none"),
    ("loss.tis_level", "row", "loss.tis_level='row': choose one of token, sequence, geometric"),
    ("loss.mask_level", "group", "loss.mask_level='group': choose one of token, sequence, geometric"),
    ("loss.mask_low", 1.5, "loss.mask_low=1.5: must lie in [0, 1]"),
    ("loss.mask_low", -0.5, "loss.mask_low=-0.5: must lie in [0, 1]"),
    ("loss.mask_high", 0.9, "loss.mask_high=0.9: must be at least 1, or 0 for none"),
    ("model.remat", "some", "model.remat='some': choose one of full, dots, none"),
    ("model.logits_chunk", 0, "model.logits_chunk=0: must be at least 1"),
    ("verify.workers", 0, "verify.workers=0: must be at least 1"),
    ("verify.deadline", 0.0, "verify.deadline=0.0: must be above 0"),
    ("verify.tolerance", 2.0, "verify.tolerance=2.0: must lie in [0, 1)"),
    ("verify.allow", ("os",), "verify.allow=('os',): must name functions as"),
    ("verify.allow", ("a b:c",), "verify.allow=('a b:c',): must name functions as"),
    ("verify.allow", "a:b", "verify.allow='a:b': must be a tuple"),
    ("verify.allow", (1,), "verify.allow=(1,): each must be text"),
    ("eval.batch_size", -1, "eval.batch_size=-1: must be at least 0"),
    ("optimizer.clip_norm", 0.0, "optimizer.clip_norm=0.0: must be above 0"),
    ("objective.overlong_buffer_len", -1, "objective.overlong_buffer_len=-1: must lie in 0 .. rollout.response_len"),
    ("objective.overlong_buffer_len", 2049, "objective.overlong_buffer_len=2049: must lie in 0 .."),
    ("objective.num_positives", 0, "objective.num_positives=0: must be at least 1"),
    ("objective.virtual_reward", -1.0, "objective.virtual_reward=-1.0: must be at least 0"),
    ("objective.virtual_reward", 1.0, "objective.virtual_reward=1.0: it has an effect only without anchors"),
    ("objective.anchored", False, "objective.reflect.enabled needs objective.anchored=True"),
    ("objective.reflect.max_rationale_len", 2048, "max_rationale_len=2048: must be below rollout.response_len=2048"),
    ("objective.reflect.max_rationale_len", 0, "objective.reflect.max_rationale_len=0: must be"),
    ("eval.num_samples", 0, "eval.num_samples=0: must be at least 1"),
    ("optimizer.lr", 0.0, "optimizer.lr=0.0: must be above 0"),
    ("optimizer.warmup_steps", 4000, "optimizer.warmup_steps=4000: must be below the run's steps * minibatches = 4000"),
    ("optimizer.warmup_steps", -1, "optimizer.warmup_steps=-1: must be"),
    ("train.checkpoint_every", 0, "train.checkpoint_every=0: must be at least 1 step"),
    ("train.samples_every", 0, "train.samples_every=0: must be at least 1 step"),
]


@pytest.mark.parametrize(("field", "value", "message"), BAD, ids=[f"{field}={value}" for field, value, _ in BAD])
def test_every_check_speaks(field, value, message):
    """Catches a check that never fires, fires on another field, or does not name the value."""
    c = good()
    with c.unlocked(), c.ignore_type():
        c.update_from_flattened_dict({field: value})
    with pytest.raises(ValueError, match=re.escape(message)):
        config.validate(c)
    config.validate(good())


def test_samples_need_a_temperature():
    """Catches k greedy samples of each question, which are all the same."""
    c = good()
    c.eval.num_samples, c.eval.temperature = 4, 0.0
    with pytest.raises(ValueError, match=r"eval.temperature=0.0: must be above 0 with eval.num_samples=4"):
        config.validate(c)
    c.eval.num_samples = 1
    config.validate(c)


@pytest.mark.parametrize("part", ["reflect.enabled", "region.after_divergence"])
def test_what_needs_an_anchor_is_refused_without_one(part: str) -> None:
    """Catches a part of CARE that silently does nothing in a group objective."""
    c = good()
    c.objective = objectives.grpo()
    config.validate(c)
    c.objective.update_from_flattened_dict({part: True})
    with pytest.raises(InputError, match=re.escape(f"objective.{part} needs objective.anchored=True: ")):
        config.validate(c)


def test_a_rewrite_has_room_for_every_rationale():
    """Catches a limit of continuations that is held against rewrites, whose forced tokens lie elsewhere."""
    c = good()
    c.objective.reflect.max_rationale_len = c.rollout.response_len
    c.objective.reflect.train_on = "rewrite"
    config.validate(c)
    c.objective.reflect.max_rationale_len = 0
    with pytest.raises(ValueError, match=r"objective\.reflect\.max_rationale_len=0: must be"):
        config.validate(c)


@pytest.mark.parametrize("train", [("a", 1.0), (("a", 1.0), "b"), (("", 1.0),), (("a", 0.0),), (("a", "b"),), (1, 2)])
def test_mixtures_are_checked(train):
    """Catches a mixture that only fails when the run opens it, and a sound one that is refused."""
    c = good()
    c.data.format = "prepared"
    with c.ignore_type():
        c.data.train = (("a", 1.0), ("b", 2))
    config.validate(c)
    c.data.train = train
    with pytest.raises(ValueError, match="weights above 0"):
        config.validate(c)


def test_all_problems_are_told_at_once():
    """Catches a check that hides the ones behind it."""
    c = good()
    c.train.steps, c.optimizer.lr, c.data.overlong = 0, -1.0, "cut"
    with pytest.raises(ValueError, match=r"^bad config: .*; .*; .*$") as error:
        config.validate(c)
    for field in ("train.steps=0", "optimizer.lr=-1.0", "data.overlong='cut'"):
        assert field in str(error.value)


# Values that a type or a range refuses, for keys of every kind.
BAD_VALUES: list[tuple[str, Any]] = [
    *itertools.product(
        ["seed", "train.prompts", "train.keep_last", "mesh.fsdp", "data.mini_vqa.num_train", "objective.num_negatives"],
        [True, 1.0, "3", None, 2**31, 10**400, -2, (1,), [1], {}, math.nan, b"1"],
    ),
    *itertools.product(
        ["optimizer.lr", "optimizer.weight_decay", "verify.deadline", "objective.region.gamma_pos", "train.hang_after"],
        [True, "1e-3", None, math.nan, math.inf, -math.inf, -1.0, 1e300, (0.1,), 10**400],
    ),
    *itertools.product(
        ["loss.tis_cap", "loss.mask_low", "loss.mask_high"], [True, "2", None, math.nan, math.inf, -1.0]
    ),
    *itertools.product(["optimizer.b1", "optimizer.b2", "verify.tolerance"], [1.5, 1.0, -0.5, math.nan, "0.9"]),
    *itertools.product(
        ["model.lora.rank_stabilised", "data.strict", "objective.region.enabled"], [1, 0, "True", None, 1.0, ()]
    ),
    *itertools.product(["model.folder", "model.weights", "eval.benchmarks"], [3, None, (), "a\0b", "\ud800", "", b"x"]),
    *itertools.product(
        ["data.prompt_buckets", "data.patch_buckets"],
        [(), (128.0,), ("128",), (True,), [128], 128, (0,), (-4, 8), (64, 32), (32, 32), (None,), ((32,),), (2**40,)],
    ),
    *itertools.product(["rollout.compact_shares"], [(1.5,), (0.1, 0.5), (math.nan,), ("a",), 0.5, [0.5], (True,)]),
    *itertools.product(["data.mini_vqa.skills"], [(), ("digit",), (1,), "digits", None]),
    *itertools.product(["data.train"], [3, None, (), (("a", math.inf),), (("a", True),), "a\0", {"a": 1.0}]),
    *itertools.product(["model.freeze"], ["vision", ("tower",), (1,), None, options.GROUPS]),
    *itertools.product(["model.lora.targets"], [(), "layers.*", (1,), None]),
    *itertools.product(["model.lora.alpha"], [0.0, -1.0, math.inf, "64"]),
    ("model.lora.rank", -1),
    ("train.steps", 10**8),
    ("train.minibatches", -2),
    ("data.min_image_tokens", 2000),
]


@pytest.mark.parametrize(("key", "value"), BAD_VALUES, ids=lambda x: repr(x)[:20])
def test_every_value_is_of_its_type_and_in_its_range(key: str, value: Any) -> None:
    """Catches a value that only fails, or silently does something else, when the run has begun."""
    whole = good().to_dict()
    *groups, last = key.split(".")
    functools.reduce(operator.getitem, groups, whole)[last] = value
    with pytest.raises(InputError) as error:
        config.validate(ml_collections.ConfigDict(whole))
    assert key in str(error.value)
    assert len(str(error.value).splitlines()) == 1
    assert str(error.value).isprintable()


def test_adapters_need_weights_and_train_alone() -> None:
    """Catches adapters beside random weights, and groups that somebody believes to be trained beside them."""
    c = good()
    c.model.lora.rank = 4
    with pytest.raises(InputError, match=r"model\.lora\.rank=4 needs model\.weights: name the checkpoint"):
        config.validate(c)
    c.model.weights = "weights/base"
    config.validate(c)
    c.model.freeze = ("vision",)
    with pytest.raises(InputError, match=r"model\.freeze=\('vision',\): adapters alone are trained"):
        config.validate(c)


def test_every_key_has_a_type_and_every_number_a_range() -> None:
    """Catches a new key that may hold anything."""
    for key, default in config.flat(config.base()).items():
        assert isinstance(default, bool | int | float | str | tuple), key
        if default == ():
            assert type_problem(("text",), default) == "" != type_problem((1,), default)
        if isinstance(default, int | float) and not isinstance(default, bool):
            assert key in config.RULES


UNKNOWN = [
    ({"train.stpes": 3}, "train.stpes: no such key; did you mean train.steps?"),
    ({"lr": 1e-3}, "lr: no such key; did you mean optimizer.lr?"),
    ({"optimizer.learning_rate": 1e-3}, "optimizer.learning_rate: no such key; optimizer has b1, b2, clip_norm"),
    ({"zzz": 1}, "zzz: no such key; a config has data, eval, loss, mesh"),
    ({"data.mini_vqa.num_digit": 3}, "data.mini_vqa.num_digit: no such key; did you mean data.mini_vqa.num_digits?"),
    ({"objective.clip_hi": 0.2}, "objective.clip_hi: no such key; did you mean objective.clip_high?"),
    ({"objective.rescue.detla": 0.2}, "objective.rescue.detla: no such key; did you mean objective.rescue.delta?"),
    ({"evil\x1b[2J": 1}, "no such key"),
    ({"train": 3}, "train=3: is a group of the keys"),
    ({"mesh": None}, "mesh=None: is a group of the keys"),
    ({"seed": ml_collections.ConfigDict({"a": 1})}, "seed: takes a value and has no keys of its own"),
]


@pytest.mark.parametrize(("changes", "message"), UNKNOWN, ids=lambda x: str(x)[:30])
def test_an_unknown_key_is_refused_with_the_nearest(changes: dict[str, Any], message: str) -> None:
    """Catches a misspelt key of a config file, which ml_collections takes without a word."""
    c = good()
    with c.unlocked(), c.ignore_type():
        for key, value in changes.items():
            *groups, last = key.split(".")
            functools.reduce(operator.getitem, groups, c)[last] = value
    with pytest.raises(InputError, match=re.escape(message)) as error:
        config.validate(c)
    assert str(error.value).isprintable()


def test_a_config_of_ones_own_is_compared_with_the_defaults() -> None:
    """Catches keys that a ConfigDict built by hand lacks, and that end the run with an AttributeError."""
    whole = config.base().to_dict()
    del whole["train"]["steps"], whole["objective"]["ratio"], whole["eval"]
    whole["train"]["epochs"] = 3
    with pytest.raises(InputError) as error:
        config.validate(ml_collections.ConfigDict(whole))
    for part in (
        "train.steps is missing",
        "objective.ratio is missing",
        "eval is missing",
        "train.epochs: no such key",
    ):
        assert part in str(error.value)
    c = good()
    with c.unlocked(), c.ignore_type():
        c.train.steps = ml_collections.config_dict.required_placeholder(int)
    with pytest.raises(InputError, match=r"train\.steps: needs a value"):
        config.validate(c)


def test_a_command_need_not_name_what_it_does_not_use() -> None:
    """Catches a file of responses that cannot be scored without a model, and a misspelt key that passes there."""
    c, unused = config.base(), ("model.folder", "data.train")
    config.validate(c, unused=unused)
    with pytest.raises(InputError, match=r"model\.folder='': name a folder .*data\.train='': name the training data"):
        config.validate(c)
    c.model.folder = "gs://bucket/model"
    with pytest.raises(InputError, match=r"model\.folder='gs://bucket/model': must be on a local disk"):
        config.validate(c, unused=unused)
    c.model.folder, c.verify.tolerence = "", 0.1
    with pytest.raises(InputError, match=r"verify\.tolerence: no such key; did you mean verify\.tolerance"):
        config.validate(c, unused=unused)


@pytest.mark.parametrize("preset", ["grpo", "dapo", "gspo", "dr_grpo", "care_no_rgr", "care"])
def test_presets_are_valid(preset: str) -> None:
    """Catches a preset that a check refuses."""
    c = good()
    c.objective = getattr(objectives, preset)()
    config.validate(c)


def test_words_of_a_rule_are_those_of_its_room() -> None:
    """Catches a word that a config may say and nothing understands, or one that is understood and may not be said."""
    assert tuple(response_format.FORMATS) == options.RESPONSE_FORMATS
    assert tuple(functions.BUILT_IN) == options.REWARDS
    assert set(options.SKILLS) == set(config.base().data.mini_vqa.skills)
    for schedule in options.SCHEDULES:
        c = good()
        c.optimizer.schedule = schedule
        assert learning_rate(c)(0) == pytest.approx(1e-6)


def test_rules_name_keys_that_exist() -> None:
    """Catches a rule for a key that was renamed."""
    keys = config.flat(config.base()).keys()
    assert keys >= config.RULES.keys()


def test_flat_names_every_leaf() -> None:
    """Catches a value that a comparison of two runs' settings does not see, and a tuple taken apart."""
    c = ml_collections.ConfigDict({"b": {"y": (1, 2), "x": {"z": None}}, "a": 1})
    assert list(config.flat(c).items()) == [("a", 1), ("b.x.z", None), ("b.y", (1, 2))]


def test_a_config_loads_only_words_and_defaults() -> None:
    """Catches an import that makes every config file, and every command's --help, wait for JAX or the data sets."""
    code = "import sys, care_jax.config; print(*sorted(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=CONFIGS.parent)
    loaded = set(done.stdout.split())
    assert {name for name in loaded if name.startswith("care_jax.")} == {
        "care_jax.config",
        "care_jax.config_rules",
        "care_jax.errors",
        "care_jax.files",
        "care_jax.method",
        "care_jax.method.objectives",
        "care_jax.options",
        "care_jax.rewards",
        "care_jax.rewards.terms",
    }
    assert not loaded & {"flax", "grain", "jax", "numpy", "tensorflow_datasets", "transformers"}


REAL = {"qwen2_5_vl": qwen2_5_vl, "qwen3_vl": qwen3_vl, "qwen3_5": qwen3_5}


@pytest.mark.parametrize(
    ("family", "size"), [(family, size) for family, module in REAL.items() for size in module.SIZES]
)
def test_configs_of_real_models_are_valid(family: str, size: str) -> None:
    """Catches a key that has gone, a value refused after the weights were converted, and a slice without a plan."""
    module = REAL[family]
    c = module.get_config(size)
    config.validate(c)
    assert c.model.weights == f"weights/{family}_{size.removesuffix('_lora')}"
    assert c.model.folder.removesuffix("-Instruct") in published.PUBLISHED
    document = (CONFIGS.parent / "docs" / "planning.md").read_text()
    for slice_name in module.SIZES[size].__doc__.removeprefix("For a ").rstrip(".").split(" or a "):
        assert (
            f"<!-- python -m care_jax.plan --config=configs/{family}.py:{size} --topology={slice_name} -->" in document
        )


@pytest.mark.parametrize("module", REAL.values())
def test_the_default_size_is_the_one_of_the_docstring(module: ModuleType) -> None:
    """Catches commands in a docstring that name other weights than the config reads."""
    c = module.get_config()
    size = c.model.weights.rpartition("_")[2]
    assert f"{size} (the default)" in module.__doc__
    assert f"--out={c.model.weights}\n" in module.__doc__
    assert f"--config=configs/{module.__name__.rpartition('.')[2]}.py:{size} " in module.__doc__


@pytest.mark.parametrize(
    ("get_config", "argument", "listed"),
    [
        (
            demo.get_config,
            "ppo",
            "'ppo': choose one of care, care_no_rgr, grpo, dapo, gspo, dr_grpo, lora, qwen3_5, cold_start",
        ),
        (qwen2_5_vl.get_config, "8b", "'8b': choose one of 3b, 7b, 32b, 72b, 7b_lora"),
        (qwen3_vl.get_config, "7b", "'7b': choose one of 4b, 8b, 32b"),
        (qwen3_5.get_config, "7b", "'7b': choose one of 9b, 9b_lora"),
    ],
)
def test_a_wrong_argument_lists_the_right_ones(get_config: Callable, argument: str, listed: str) -> None:
    """Catches a traceback, or another run than the one that was asked for."""
    with pytest.raises(ValueError, match=f"{re.escape(listed)}$"):
        get_config(argument)


@pytest.mark.parametrize("run", demo.RUNS)
def test_runs_of_the_demo_are_valid_and_start_from_its_cold_start(run: str) -> None:
    """Catches a run with other data, model or response length than the cold start that it begins with."""
    c, cold_start = demo.get_config(run), demo.cold_start()
    config.validate(c)
    assert c.data == cold_start.data
    assert c.model.folder == (demo.TINY_QWEN3_5 if run == "qwen3_5" else cold_start.model.folder)
    assert c.rollout.response_len == cold_start.rollout.response_len
    assert c.objective.reflect.cue == cold_start.objective.reflect.cue
    assert c.model.weights == ("random" if run == "cold_start" else "runs/cold_start")
    assert c.objective.anchored == (run not in ("grpo", "dapo", "gspo", "dr_grpo"))
    assert c.objective.reflect.enabled == (run in ("care", "lora", "qwen3_5", "cold_start"))
