"""Every preset is the same record with other values, and trains through the same entry point."""

from __future__ import annotations

import importlib
import math
from pathlib import Path

import numpy as np
import pytest

from care_jax import train
from care_jax.method import objectives
from tests.end_to_end import SmallTask, apply, final_params, metrics, small

ANCHORED = ("demo", "demo_care_no_rgr")
PRESETS = (*ANCHORED, "demo_grpo", "demo_dapo", "demo_gspo", "demo_dr_grpo")
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


def _leaves(config) -> set[str]:
    return {
        f"{key}.{name}" if name else key
        for key, value in config.items()
        for name in (_leaves(value) if hasattr(value, "items") else {""})
    }


def test_presets_differ_in_values_only() -> None:
    """Catches a field that one objective has and another lacks: code below would have to ask which one runs."""
    presets = [getattr(objectives, name)() for name in ("grpo", "dapo", "gspo", "dr_grpo", "care_no_rgr", "care")]
    assert len(_leaves(presets[0])) > 25
    for preset in presets[1:]:
        assert _leaves(preset) == _leaves(presets[0])
        assert preset.to_dict() != presets[0].to_dict()


@pytest.mark.parametrize("preset", PRESETS)
def test_preset_trains(preset: str, cached: SmallTask, tmp_path: Path) -> None:
    """Catches a preset that does not load, compile or learn, and a metric that is lost, renamed or not a number."""
    config = importlib.import_module(f"configs.{preset}").get_config()
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
        assert kl[:2] == pytest.approx([0, 0], abs=1e-6) and 1e-6 < kl[2] < 10
        assert rows[2]["kl_loss"] == pytest.approx(config.objective.kl_coef * kl[2], rel=0.5)

    before, after = final_params(cached.cold_start), final_params(tmp_path / "run")
    moved = [name for name in before if not np.array_equal(before[name], after[name])]
    assert len(moved) == len(before)


def test_the_samplers_scores_train_too(cached: SmallTask, tmp_path: Path) -> None:
    """Catches a step that still needs the scoring pass, and a gap that is no longer measured."""
    config = importlib.import_module("configs.demo").get_config()
    apply(config, small(cached.model, cached.data, train__steps=2, model__weights=str(cached.cold_start)))
    config.score.old_from = "sampler"
    config.rollout.compact_shares = (0.5,)
    train.run(config, tmp_path / "run")
    rows = [row for row in metrics(tmp_path / "run") if "loss" in row]
    assert sum(row["groups/mixed"] for row in rows) > 0
    for row in rows:
        assert row["entropy"] > 0 and "logprob_gap/max" not in row
        assert 0 < row["logprob_gap/mean"] <= 1e-5
