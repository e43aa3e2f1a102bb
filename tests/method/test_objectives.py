"""Every preset is the same record with other values, and trains through the same entry point."""

from __future__ import annotations

import dataclasses
import functools
import math
import re
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import pytest

from care_jax import train
from care_jax.config import flat
from care_jax.configs import demo
from care_jax.method import objectives
from care_jax.method.objectives import Objective
from tests.end_to_end import SmallTask, apply, final_params, metrics, small

NAMES = {
    *("accuracy/train", "format_rate", "unparsed_rate", "groups/mixed", "groups/all_wrong", "groups/all_correct"),
    *("advantage/failure_share", "entropy", "clip_fraction", "response_len/mean", "truncated_rate"),
    *("logprob_gap/mean", "logprob_gap/max", "grad_norm", "loss", "policy_loss", "lr"),
    *(f"time/{stage}" for stage in ("rollout", "verify", "score", "select", "update", "step")),
    *("tokens_per_s/rollout", "tokens_per_s/update"),
    *(f"padding/{name}" for name in ("prompt_tokens", "patches", "update_tokens")),
}
ANCHORED_NAMES = {"subgroup/num_negatives_3", "advantage/anchor", "advantage/negative", "rescue/rate"}
REFLECTION_NAMES = {"reflect/tried", "time/reflect"}
STEPS = 3


# What each preset is: GRPO's values whole, and the others by what differs from it.
GRPO: dict[str, Any] = {
    "anchored": False,
    "num_negatives": 4,
    "num_neighbours": 6,
    "selector": "farthest_first",
    "normalise_std": True,
    "negative_scale": 0.5,
    "reflected_scale": 0.25,
    "equalise": True,
    "rescue.enabled": False,
    "rescue.rank_by": "sum",
    "rescue.delta": 0.1,
    "rescue.scale": "zscore",
    "reflect.enabled": False,
    "reflect.cue": " Wait, the reasoning above contains an error. Find the wrong step, fix it and derive the answer "
    "again, concisely.\n",
    "reflect.max_rationale_len": 1024,
    "reflect.source": "rationale",
    "reflect.train_on": "continuation",
    "region.enabled": False,
    "region.gamma_pos": 0.005,
    "region.gamma_neg": 0.0,
    "region.format_weight": 0.0,
    "ratio": "token",
    "clip_low": 0.2,
    "clip_high": 0.2,
    "aggregate": "sequence",
    "kl_coef": 0.01,
    "dynamic_sampling": False,
    "max_draws": 10,
    "overlong_buffer_len": 0,
    "overlong_penalty": 1.0,
}
_NO_RGR = {"anchored": True, "rescue.enabled": True, "region.enabled": True}
CHANGES: dict[str, dict[str, Any]] = {
    "grpo": {},
    "dapo": {
        "clip_high": 0.28,
        "aggregate": "token",
        "kl_coef": 0.0,
        "dynamic_sampling": True,
        "overlong_buffer_len": 512,
    },
    "gspo": {"ratio": "sequence", "clip_low": 3e-4, "clip_high": 4e-4, "kl_coef": 0.0},
    "dr_grpo": {"normalise_std": False, "aggregate": "constant", "kl_coef": 0.0},
    "care_no_rgr": _NO_RGR,
    "care": _NO_RGR | {"reflect.enabled": True},
}


@pytest.mark.parametrize("preset", CHANGES)
def test_presets_have_the_published_values(preset: str) -> None:
    """Catches a default that moves under every run, and a field that one objective has and another lacks."""
    config = getattr(objectives, preset)()
    expected = GRPO | CHANGES[preset]
    assert flat(config) == expected
    assert {key: type(value) for key, value in flat(config).items()} == {k: type(v) for k, v in expected.items()}
    assert Objective.from_config(config).to_config().to_dict() == config.to_dict()


WRONG: dict[str, tuple[str, Any, str]] = {
    "a word": ("selector", "closest", "objective.selector='closest': choose one of farthest_first, nearest, random"),
    "a word of rescue": ("rescue.scale", "none", "objective.rescue.scale='none': choose one of zscore, delta"),
    "a rank": ("rescue.rank_by", "median", "objective.rescue.rank_by='median': choose one of sum, mean"),
    "a source": ("reflect.source", "cue", "objective.reflect.source='cue': choose one of rationale, scratch"),
    "a context": ("reflect.train_on", "all", "objective.reflect.train_on='all': choose one of continuation, rewrite"),
    "a ratio": ("ratio", "mean", "objective.ratio='mean': choose one of token, sequence"),
    "an aggregate": ("aggregate", "mean", "objective.aggregate='mean': choose one of sequence, token, constant"),
    "a field": ("batch", 0.2, "objective.batch: no such field; the fields are anchored"),
    "a misspelt field": ("clip_hihg", 0.2, "objective.clip_hihg: no such field; did you mean clip_high?"),
    "a field of reflect": ("reflect.cues", "", "objective.reflect.cues: no such field; did you mean cue?"),
    "a text for a number": ("kl_coef", "0.1", "objective.kl_coef='0.1': must be of type float"),
    "a flag for a number": ("num_negatives", True, "objective.num_negatives=True: must be of type int"),
    "a fraction of rows": ("num_negatives", 2.5, "objective.num_negatives=2.5: must be of type int"),
    "a number for a flag": ("region.enabled", 1, "objective.region.enabled=1: must be of type bool"),
    "a value for a group": ("region", 0.5, "objective.region=0.5: must be of type Region"),
}


@pytest.mark.parametrize("name", WRONG)
def test_the_record_refuses(name: str) -> None:
    """Catches a typing error in a config or a test that trains another objective."""
    key, value, message = WRONG[name]
    group, _, field = key.rpartition(".")
    values = objectives.care().to_dict()
    (values[group] if group else values)[field] = value
    with pytest.raises(ValueError, match=f"^{re.escape(message)}.*$"):  # one line
        Objective.from_config(ml_collections.ConfigDict(values))


@pytest.mark.parametrize("field", ["kl_coef", "rescue", "reflect.cue"])
def test_a_missing_field_is_refused(field: str) -> None:
    """Catches an objective of an older run that silently gets the default of today."""
    config = objectives.care()
    group, _, name = field.rpartition(".")
    with config.unlocked():
        del (config[group] if group else config)[name]
    with pytest.raises(ValueError, match=re.escape(f"objective.{field} is missing; start from a preset")):
        Objective.from_config(config)


def test_the_record_refuses_without_a_config_too() -> None:
    """Catches a record changed in code that is checked only when it comes from a config."""
    with pytest.raises(ValueError, match=re.escape("objective.ratio='mean': choose one of token, sequence")):
        dataclasses.replace(Objective(), ratio="mean")


def test_the_record_is_static_under_jit() -> None:
    """Catches an objective that jit cannot hash, or that compiles again although nothing in it changed."""
    traced = []

    @functools.partial(jax.jit, static_argnames="objective")
    def scaled(x: jax.Array, objective: Objective) -> jax.Array:
        traced.append(objective.ratio)
        return x * objective.clip_low

    for preset in (objectives.care, objectives.care, objectives.gspo):
        scaled(jnp.ones(2), objective=Objective.from_config(preset()))
    assert traced == ["token", "sequence"]


@pytest.mark.parametrize("preset", objectives.PRESETS)
def test_preset_trains(preset: str, cached: SmallTask, tmp_path: Path) -> None:
    """Catches a preset that does not load, compile or learn, and a metric that is lost, renamed or not a number."""
    config = demo.get_config(preset)
    overrides = small(cached.model, cached.data, train__steps=STEPS, model__weights=str(cached.cold_start))
    apply(config, overrides | {"optimizer.lr": 1e-3, "optimizer.schedule": "linear", "optimizer.final_lr_ratio": 0.1})
    state = train.run(config, tmp_path / "run")
    assert int(state.step) == STEPS

    rows = [row for row in metrics(tmp_path / "run") if "loss" in row]
    assert [row["step"] for row in rows] == [1, 2, 3]
    wanted = set(NAMES)
    wanted |= {"kl", "kl_loss"} if config.objective.kl_coef > 0 else set()
    wanted |= ANCHORED_NAMES if config.objective.anchored else set()
    wanted |= REFLECTION_NAMES if config.objective.reflect.enabled else set()
    for row in rows:
        assert wanted <= row.keys()
        assert all(isinstance(value, int | float) and math.isfinite(value) for value in row.values())
        assert row["logprob_gap/max"] <= 1e-5
        assert row["groups/mixed"] + row["groups/all_wrong"] + row["groups/all_correct"] == pytest.approx(1)
        assert ("reflect/success_rate" in row) == (row.get("reflect/tried", 0) > 0)
        assert ("kl" in row) == (config.objective.kl_coef > 0)
        assert ("advantage/anchor" in row) == config.objective.anchored
    assert sum(row["groups/mixed"] for row in rows) > 0
    # One update of warm-up from 0, then a linear decay to a tenth over the other two.
    assert [row["lr"] for row in rows] == pytest.approx([0.0, 1e-3, 5.5e-4])
    if config.objective.kl_coef > 0:  # the policy is the reference until it has moved, after the second update
        kl = [row["kl"] for row in rows]
        assert kl[:2] == pytest.approx([0, 0], abs=1e-6)
        assert 1e-6 < kl[2] < 10
        assert rows[2]["kl_loss"] == pytest.approx(config.objective.kl_coef * kl[2], rel=0.5)

    before, after = final_params(cached.cold_start), final_params(tmp_path / "run")
    moved = [name for name in before if not np.array_equal(before[name], after[name])]
    assert len(moved) == len(before)


@pytest.mark.parametrize(("old_from", "train_on"), [("pass", "continuation"), ("sampler", "rewrite")])
def test_importance_weights_train(old_from: str, train_on: str, cached: SmallTask, tmp_path: Path) -> None:
    """Catches sampler's log-probs that do not reach the loss or are another row's, and a gap that is not measured."""
    config = demo.get_config()
    apply(config, small(cached.model, cached.data, train__steps=2, model__weights=str(cached.cold_start)))
    config.score.old_from, config.objective.reflect.train_on = old_from, train_on
    config.loss.tis_cap, config.loss.tis_level = 2.0, "sequence"
    config.loss.mask_low, config.loss.mask_high, config.loss.mask_level = 0.5, 2.0, "geometric"
    train.run(config, tmp_path / "run")
    rows = [row for row in metrics(tmp_path / "run") if "loss" in row]
    assert len(rows) == 2
    assert sum(row["reflect/tried"] for row in rows) > 0
    for row in rows:  # sampler and policy are one up to rounding, so another row's log-probs would be far off
        assert row["tis/weight"] == pytest.approx(1, abs=1e-4)
        assert row["tis/masked"] == row["tis/truncated"] == 0
        assert 0 < row["logprob_gap/mean"] <= 1e-5


def test_an_int8_sampler_trains(cached: SmallTask, tmp_path: Path) -> None:
    """Catches int8 kernels that no stage samples with, or that scoring and the update see, and weights of 1."""
    config = demo.get_config()
    apply(config, small(cached.model, cached.data, train__steps=2, model__weights=str(cached.cold_start)))
    config.rollout.weights, config.loss.tis_cap = "int8", 1.001
    train.run(config, tmp_path / "run")
    rows = [row for row in metrics(tmp_path / "run") if "loss" in row]
    assert sum(row["groups/mixed"] for row in rows) > 0
    for row in rows:
        assert 1e-4 < row["logprob_gap/mean"] < 0.1
        assert abs(row["log_ratio"]) < 0.1 * row["logprob_gap/mean"] or row["step"] > 1  # scored and updated are one
        assert 0 < row["tis/truncated"] < 1
        assert 0.9 < row["tis/weight"] < 1


def test_the_samplers_scores_train_too(cached: SmallTask, tmp_path: Path) -> None:
    """Catches a step that still needs the scoring pass, and a gap that is no longer measured."""
    config = demo.get_config()
    apply(config, small(cached.model, cached.data, train__steps=2, model__weights=str(cached.cold_start)))
    config.score.old_from = "sampler"
    config.rollout.compact_shares = (0.5,)
    train.run(config, tmp_path / "run")
    rows = [row for row in metrics(tmp_path / "run") if "loss" in row]
    assert sum(row["groups/mixed"] for row in rows) > 0
    for row in rows:
        assert row["entropy"] > 0
        assert "logprob_gap/max" not in row
        assert 0 < row["logprob_gap/mean"] <= 1e-5
