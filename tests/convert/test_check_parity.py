"""The comparison of a checkpoint with a Hugging Face folder: it sees a single bit, and says in which stage."""

from __future__ import annotations

import math

import jax
import numpy as np
import pytest
import torch

from care_jax.checkpoints import load
from care_jax.convert import check_parity, hf_to_jax
from tests import weights
from tests.families import FAMILIES
from tests.marks import slow_but


@pytest.mark.parametrize("family", slow_but(["qwen3_vl"], FAMILIES))
def test_each_difference_is_found_in_its_stage(tiny_folder, tmp_path, family):
    """Catches a comparison that skips tensors, rounds, forgets the sign of zero, or lets a NaN pass for 0."""
    source = weights.make_source(family, tiny_folder, tmp_path / "source", tied=False, dtype=torch.bfloat16)
    hf_to_jax.convert(source, tmp_path / "params")
    stages = check_parity.compare(source, tmp_path / "params")
    assert sum(stage.tensors for stage in stages.values()) == len(weights.load(source))
    assert not any(stage.differing or stage.max_difference for stage in stages.values())

    params = {name: np.array(value) for name, value in load.load_params(tmp_path / "params").items()}
    stack = "layers.linear_attention" if family == "qwen3_5" else "layers"
    up, head = params[f"{stack}.mlp.up_proj.kernel"], params["lm_head.kernel"]
    largest = np.abs(up[0]).argmax()
    up[0].flat[largest] = np.nextafter(up[0].flat[largest], np.float32(np.inf))
    up[2, 0, 0] += 0.25
    head[5, 7] = np.nan
    ours, theirs = ("fc1", "mlp.0") if family == "qwen2_5_vl" else ("linear_fc1", "linear_fc1")
    params[f"visual.merger.{ours}.bias"][3] = -0.0
    weights.save_params(tmp_path / "other", params)
    tensors = weights.load(source)
    tensors[f"visual.merger.{theirs}.bias"][3] = 0.0
    weights.write(source, tensors)

    stages = check_parity.compare(source, tmp_path / "other")
    assert {name: stage.differing for name, stage in stages.items() if stage.differing} == {
        stack: 2,
        "lm_head": 1,
        "visual.merger": 1,
    }
    assert stages[stack].max_difference == pytest.approx(0.25, rel=1e-2)
    assert math.isnan(stages["lm_head"].max_difference)
    assert stages["visual.merger"].max_difference == 0


def test_a_checkpoint_of_another_model_is_refused(tiny_folder, tmp_path):
    """Catches a table of zeros for what was not compared at all."""
    source = weights.make_source("qwen2_5_vl", tiny_folder, tmp_path / "source")
    weights.save_params(tmp_path / "params", {"norm.weight": jax.numpy.ones(3)})
    with pytest.raises(ValueError, match="parameters do not fit"):
        check_parity.compare(source, tmp_path / "params")
