"""The rollout benchmark and the comparison with Tunix at tiny sizes."""

from __future__ import annotations

import json
from pathlib import Path

import jax
import numpy as np
import pytest

from benchmarks import peer_tunix, rollout
from benchmarks.made_model import write_folder
from care_jax import models

TINY_TUNIX = [
    "--layers=1", "--width=128", "--vocabulary=288", "--rollouts=2", "--prompt_len=24", "--response_len=8",
    "--chunk=16", "--repeats=1",
]  # fmt: skip


@pytest.mark.slow
def test_figures_of_tiny_rollouts(capsys: pytest.CaptureFixture[str]) -> None:
    """Catches a side that cannot run, responses that do not end on their own, and a last line that is no JSON."""
    sizes = {"layers": 1, "width": 128, "vocab": 288, "prompt_len": 40, "response_len": 32, "tail_prompts": 2}
    figures = rollout.main(
        [*(f"--{name}={value}" for name, value in sizes.items()), "--growth", "32", "48", "--repeats=1"]
    )
    assert json.loads(capsys.readouterr().out.splitlines()[-1]) == figures
    assert 1 < figures["tail_mean_len"] < 16
    assert min(value for name, value in figures.items() if name.endswith(("ratio", "_ms"))) > 0


@pytest.mark.slow
def test_our_side_of_the_comparison_with_tunix(tmp_path: Path) -> None:
    """Catches a job of another size than theirs, and an update that changes nothing."""
    args = peer_tunix.parse(TINY_TUNIX)
    folder = write_folder(tmp_path / "made", num_layers=1, width=128, vocab_size=288)
    with jax.numpy_dtype_promotion("standard"):  # optax's Adam
        jobs = peer_tunix.make_jobs(args, models.load_model_config(folder), folder)
        rollouts = jobs["rollout"]()
        before = jax.tree.map(np.array, jobs["update"]().params)
        after = jobs["update"]().params
    assert rollouts.token_ids.shape == (1, 2, 8)
    assert (np.asarray(rollouts.response_len) == 8).all()
    moved = jax.tree.map(lambda x, y: bool((x != np.asarray(y)).any()), before.layers, after.layers)
    assert all(jax.tree.leaves(moved))


@pytest.mark.slow
def test_a_peer_that_cannot_be_installed_is_reported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Catches a figure without the other side, and a traceback if its package cannot be installed."""
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    figures = peer_tunix.main([*TINY_TUNIX, f"--env={tmp_path / 'env'}"])
    assert json.loads(capsys.readouterr().out.splitlines()[-1]) == figures
    assert figures["rollout_ratio"] is None
    assert figures["update_ratio"] is None
    assert "google-tunix==0.1.7 cannot be installed" in figures["why"]
