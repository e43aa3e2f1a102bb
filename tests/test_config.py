"""The config: every check speaks. What the command line makes of it is in test_cli.py."""

from __future__ import annotations

import importlib
from pathlib import Path

import ml_collections
import pytest

from care_jax import config
from care_jax.method import objectives


def good() -> ml_collections.ConfigDict:
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
    ("model.folder", "", "model.folder='': name a folder with a config.json"),
    ("data.train", "", "data.train='': name the training data"),
    ("data.train", (("a", 1.0),), "data.train=(('a', 1.0),): give one path, or with data.format='prepared' ((folder"),
    ("data.eval", 3, "data.eval=3: give one path, or with"),
    ("train.steps", 0, "train.steps=0: must be at least 1"),
    ("train.prompts", 500, "train.prompts=500: must divide by minibatches * microbatches = 16"),
    ("train.prompts", 0, "train.prompts=0: must divide by"),
    ("train.minibatches", 0, "train.prompts=512: must divide by minibatches * microbatches = 0"),
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
    ("model.logits_chunk", 0, "model.logits_chunk=0: must be at least 1"),
    ("verify.workers", 0, "verify.workers=0: must be at least 1"),
    ("verify.deadline", 0.0, "verify.deadline=0.0: must be above 0"),
    ("verify.tolerance", 2.0, "verify.tolerance=2.0: must lie in [0, 1)"),
    ("eval.batch_size", 0, "eval.batch_size=0: must be at least 1"),
    ("optimizer.clip_norm", 0.0, "optimizer.clip_norm=0.0: must be above 0"),
    ("objective.overlong_buffer_len", -1, "objective.overlong_buffer_len=-1: must lie in 0 .. rollout.response_len"),
    ("objective.overlong_buffer_len", 2049, "objective.overlong_buffer_len=2049: must lie in 0 .."),
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
    with pytest.raises(ValueError) as error:
        config.validate(c)
    assert message in str(error.value)
    config.validate(good())


def test_samples_need_a_temperature():
    """Catches k greedy samples of each question, which are all the same."""
    c = good()
    c.eval.num_samples, c.eval.temperature = 4, 0.0
    with pytest.raises(ValueError, match=r"eval.temperature=0.0: must be above 0 with eval.num_samples=4"):
        config.validate(c)
    c.eval.num_samples = 1
    config.validate(c)


def test_a_rewrite_has_room_for_every_rationale():
    """Catches a limit of continuations that is held against rewrites, whose forced tokens lie elsewhere."""
    c = good()
    c.objective.reflect.max_rationale_len = c.rollout.response_len
    c.objective.reflect.train_on = "rewrite"
    config.validate(c)
    c.objective.reflect.max_rationale_len = 0
    with pytest.raises(ValueError, match="objective.reflect.max_rationale_len=0: must be"):
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
    with pytest.raises(ValueError) as error:
        config.validate(c)
    for field in ("train.steps=0", "optimizer.lr=-1.0", "data.overlong='cut'"):
        assert field in str(error.value)


@pytest.mark.parametrize("name", ["grpo", "dapo", "gspo", "dr_grpo", "care_no_rgr", "care"])
def test_presets_are_valid_and_have_the_same_fields(name):
    """Catches a preset with a field of its own, which an override on the command line could not reach."""
    c = good()
    c.objective = {
        "care": objectives.care,
        "care_no_rgr": objectives.care_no_rgr,
        "grpo": objectives.grpo,
        "dapo": objectives.dapo,
        "gspo": objectives.gspo,
        "dr_grpo": objectives.dr_grpo,
    }[name]()
    config.validate(c)
    fields = ml_collections.FrozenConfigDict(c.objective).to_dict().keys()
    assert fields == objectives.grpo().to_dict().keys()


@pytest.mark.parametrize(
    "path", sorted((Path(__file__).parents[1] / "configs").glob("care_*.py")), ids=lambda path: path.stem
)
def test_configs_of_real_models_are_valid(path: Path) -> None:
    """Catches a key that has gone, and a value that is refused only after the weights were converted."""
    c = importlib.import_module(f"configs.{path.stem}").get_config()
    config.validate(c)
    assert c.model.weights == "weights/" + path.stem.removeprefix("care_")
    assert f"--out={c.model.weights}" in path.read_text() and f"--config=configs/{path.name}" in path.read_text()
