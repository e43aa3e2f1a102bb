"""A run whose reward is the overlap of boxes: own data and flags alone."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.end_to_end import SmallTask, flags, metrics, run, small, write_small_model, write_squares


@pytest.mark.slow
def test_boxes_are_trained_with_flags_alone(small_task: SmallTask, tmp_path: Path) -> None:
    """Catches a reward that needs code, curves that are missing, and images that do not reach a function."""
    model, data = write_small_model(tmp_path / "model"), write_squares(tmp_path / "data")
    for name in ("train.jsonl", "heldout.jsonl"):
        rows = [json.loads(line) for line in (data / name).read_text().splitlines()]
        rows = [{**row, "answer": "[0, 0, 56, 56]", "answer_kind": "list", "meta": {"points": 3}} for row in rows]
        (data / name).write_text("".join(json.dumps(row) + "\n" for row in rows))
    overrides = small(model, data, model__weights="random", train__steps=2)
    overrides |= {
        "verify.rewards": "('iou=0.9','tests.own_rewards:sees.pixels=0.0001','repetition=0.1',"
        "'tests.own_rewards:reads_meta=0.0','tests.own_rewards:sizes=0.0')",
        "verify.correct_when": "iou>=0.5",
        "verify.correct_weight": "0.0",
    }
    arguments = ["--config=configs/own_data.py", *flags(overrides), f"--workdir={tmp_path / 'run'}"]
    trained = run("care_jax.train", *arguments, cache=small_task.cache)
    assert trained.returncode == 0, trained.stderr
    steps = [row for row in metrics(tmp_path / "run") if "loss" in row]
    assert [row["step"] for row in steps] == [1, 2]
    for row in steps:
        assert row["rewards/iou"] == 0.0  # of a model that has learnt nothing
        assert row["accuracy/train"] == 0.0
        assert row["rewards/tests.own_rewards:sees.pixels"] > 100
        assert -1.0 <= row["rewards/repetition"] <= 0.0
        assert row["rewards/tests.own_rewards:reads_meta"] == 3.0
        assert 1.0 < row["rewards/tests.own_rewards:sizes"] <= 4.0  # responses of a call
        assert row["rewards_failed/iou"] == row["rewards_failed/tests.own_rewards:sees.pixels"] == 0.0
        assert row["reward/mean"] > 0.01
