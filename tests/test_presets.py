"""Every preset trains through the same entry point, and so do the ways to correct for the sampler."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest

from care_jax import train
from care_jax.configs import demo
from care_jax.method import objectives
from tests.end_to_end import SmallTask, apply, final_params, metrics, small
from tests.marks import slow_but

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


@pytest.mark.parametrize("preset", slow_but(["grpo"], objectives.PRESETS))
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


@pytest.mark.slow
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


@pytest.mark.slow
def test_care_draws_until_each_group_has_a_contrast(cached: SmallTask, tmp_path: Path) -> None:
    """Catches all-wrong groups that a draw drops under a rescue, and surrogates or weights that do not run."""
    config = demo.get_config()
    apply(config, small(cached.model, cached.data, train__steps=2, model__weights=str(cached.cold_start)))
    config.objective.dynamic_sampling, config.objective.clip_high = True, 0.28
    config.objective.surrogate, config.objective.ratio = "cispo", "sequence_token"
    config.objective.region.unit, config.objective.region.after_divergence = "region", True
    train.run(config, tmp_path / "run")
    rows = [row for row in metrics(tmp_path / "run") if "loss" in row]
    assert all(math.isfinite(row["loss"]) and row["grad_norm"] > 0 for row in rows)
    events = [json.loads(line) for line in (tmp_path / "run" / "events.jsonl").read_text().splitlines()]
    outcomes = [event["outcome"] for event in events]
    assert {*outcomes} == {"MIXED", "ALL_WRONG"}


@pytest.mark.slow
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


@pytest.mark.slow
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
