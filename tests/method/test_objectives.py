"""Every preset is the same record with other values."""

from __future__ import annotations

import dataclasses
import functools
import re
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import pytest

from care_jax.config import flat
from care_jax.method import objectives
from care_jax.method.objectives import Objective

# What each preset is: GRPO's values whole, and the others by what differs from it.
GRPO: dict[str, Any] = {
    "anchored": False,
    "num_positives": 1,
    "num_negatives": 4,
    "num_neighbours": 6,
    "selector": "farthest_first",
    "normalise_std": True,
    "virtual_reward": 0.0,
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
    "reflect.failure": "nearest",
    "reflect.all_wrong": False,
    "reflect.train_on": "continuation",
    "region.enabled": False,
    "region.gamma_pos": 0.005,
    "region.gamma_neg": 0.0,
    "region.format_weight": 0.0,
    "region.unit": "token",
    "region.after_divergence": False,
    "ratio": "token",
    "surrogate": "clip",
    "sapo_tau_pos": 1.0,
    "sapo_tau_neg": 1.05,
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
    "a failure": (
        "reflect.failure",
        "any",
        "objective.reflect.failure='any': choose one of nearest, likeliest, common",
    ),
    "a context": ("reflect.train_on", "all", "objective.reflect.train_on='all': choose one of continuation, rewrite"),
    "a unit": ("region.unit", "row", "objective.region.unit='row': choose one of token, region"),
    "a ratio": ("ratio", "mean", "objective.ratio='mean': choose one of token, sequence"),
    "a surrogate": ("surrogate", "ppo", "objective.surrogate='ppo': choose one of clip, cispo, sapo"),
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
