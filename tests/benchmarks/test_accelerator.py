"""The accelerator benchmark at a tiny size, and its arithmetic."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
import pytest

from benchmarks import accelerator
from care_jax.planning.flops import Work
from care_jax.stages.compiled import CompiledStages
from care_jax.stages.table import Bucket, DeviceStage

pytestmark = pytest.mark.usefixtures("quick_to_compile")

STAGES = [
    "the sampler's parameters",
    "prefill",
    "rollout",
    "score",
    "select",
    "reflect",
    "score of reflections",
    "assemble",
    "update",
]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["Qwen3-VL-2B", "Qwen2.5-VL-3B", "Qwen3.5-2B"])
def test_figures_of_a_tiny_step(name: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches a stage that is left out, a last line that is no JSON, and a step whose rows are not all full and taught.

    Such a step has a response that stops early, a group without failures, or a repair whose forced tokens are trained.
    """
    given: dict[str, Any] = {}
    run = CompiledStages.run

    def recorded(self: CompiledStages, stage: DeviceStage, bucket: Bucket, values: Mapping[str, Any]) -> dict[str, Any]:
        results = run(self, stage, bucket, values)
        given.update({name: jax.device_get(results[name]) for name in ("rollouts", "batch") if name in results})
        return results

    monkeypatch.setattr(CompiledStages, "run", recorded)
    with jax.numpy_dtype_promotion("standard"):  # optax's Adam
        figures = accelerator.main(["--tiny", f"--models={name}:2:200:dots"])
    assert json.loads(capsys.readouterr().out.splitlines()[-1]) == figures
    of_model = figures["models"][name]
    assert list(of_model["stages_ms"]) == STAGES
    assert min(of_model["stages_ms"].values()) > 0
    assert figures["parity"][name]["highest"] == {"same_tokens": 1.0, "largest_logprob_gap": 0.0}
    assert of_model["update"]["mfu"] is of_model["decode"]["bandwidth_share"] is None  # of an unknown chip

    rollouts, batch = given["rollouts"], given["batch"]
    assert np.all(rollouts.response_len == figures["response_len"])
    assert np.all(batch.row_mask)
    assert np.all(batch.advantages[:, :2] > 0)  # the right rollout and the repair
    assert np.all(batch.advantages[:, 2:] < 0)
    sampled = batch.sampled_mask.sum(-1)
    assert np.all(sampled[:, 1] == figures["response_len"] - figures["forced_len"])
    assert np.all(np.delete(sampled, 1, axis=1) == figures["response_len"])


def test_shares_of_the_peak() -> None:
    """Catches a share of the wrong peak, recomputed FLOPs that count as useful, and bytes that are not a token's."""
    work = Work(
        tokens=1000,
        flops=6e12,
        recomputed=2e12,
        parameter_bytes=30e9,
        state_bytes=7e9,
        cache_bytes=10e9,
        link_bytes=5e9,
    )
    peak = accelerator.Peak(flops=12e12, bytes_per_s=40e9)
    assert accelerator.compute_figures(work, 2.0, peak) == {
        "seconds": 2.0,
        "tokens_per_s": 500,
        "useful_tflop": 6.0,
        "tflop_per_s": 3.0,
        "mfu": 0.25,
    }
    assert accelerator.decode_figures(work, 2.0, branches=8, num_tokens=10, peak=peak) == {
        "ms_per_token": 200.0,
        "tokens_per_s": 40,
        "weights_gb_per_token": 3.0,
        "keys_gb_per_token": 1.0,
        "gb_per_s": 20.0,
        "bandwidth_share": 0.5,
    }


@pytest.mark.parametrize(
    ("flag", "message"),
    [
        ("--models=Qwen3-VL-2B:4:3:full", "streams of 3 tokens have no room"),
        ("--models=Qwen9:4:2:full", "NAME one of Qwen2.5-VL-3B"),
        ("--models=Qwen3-VL-2B:4:2:some", "remat one of full, dots, none"),
        ("--models=Qwen3-VL-2B:4:2", "give NAME:prompts:stream_len:remat"),
        ("--image_side=32", "has no room for 1024 image tokens"),
        ("--negatives=8", "--negatives must be below --rollouts"),
    ],
)
def test_impossible_sizes_are_rejected(flag: str, message: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Catches sizes that contradict each other, and a traceback instead of one line."""
    with pytest.raises(SystemExit) as error:
        accelerator.main([flag])
    assert error.value.code == 2
    assert message in capsys.readouterr().err
