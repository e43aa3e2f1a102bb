"""The plan against a real run, at a size of seconds."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import jax
import pytest

from benchmarks import plan_check
from care_jax import train
from care_jax.configs import demo
from tests.end_to_end import SmallTask, apply, small


@pytest.fixture
def promotion() -> Iterator[None]:
    """Standard promotion in all threads: optax's Adam computes b1**count with an integer count."""
    jax.config.update("jax_numpy_dtype_promotion", "standard")
    yield
    jax.config.update("jax_numpy_dtype_promotion", "strict")


@pytest.mark.slow
@pytest.mark.usefixtures("promotion")
def test_a_small_run_is_compared_stage_by_stage(
    cached: SmallTask, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Catches a stage that is predicted and not measured, rates of nothing, and a last line that is no JSON."""
    changes = {"train__steps": 4, "model__weights": str(cached.cold_start)}
    config = apply(demo.get_config(), small(cached.model, cached.data, **changes))
    train.run(config, tmp_path / "care")
    capsys.readouterr()
    expected, figures = plan_check.compare(config, tmp_path / "care")
    plan_check.show(expected, figures)
    assert json.loads(capsys.readouterr().out.splitlines()[-1]) == figures
    names = ["rollout", "verify", "score", "select", "reflect", "update", "step"]
    assert list(figures["predicted_s"]) == list(figures["measured_s"]) == names
    assert all(seconds > 0 for seconds in figures["measured_s"].values())
    assert all(figures["predicted_s"][name] > 0 for name in names)
    for name, share in figures["predicted_share"].items():
        assert share == pytest.approx(figures["predicted_s"][name] / figures["measured_s"][name], rel=0.1, abs=1e-3)
    assert figures["gflop_per_s"] > 0 < figures["gb_per_s"]
    stages = {cost.name: cost for cost in expected.costs}
    assert stages["score"].turns > 0 < stages["update"].turns
    assert 0 < stages["rollout"].turns <= 16


def test_medians_leave_out_the_first_steps_and_evaluations(tmp_path: Path) -> None:
    """Catches a first step, whose threads and caches are cold, and lines without a step that are counted."""
    rows = [{"step": n, "time/step": seconds, "time/score": 1.0} for n, seconds in enumerate((90, 80, 3, 1, 2))]
    lines = [*rows, {"step": 5, "time/evaluate": 7.0}]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert plan_check.measured_seconds(tmp_path) == {"step": 2, "score": 1.0}


@pytest.mark.parametrize("bad", ["--steps=2", "--cold_start=runs/none"])
def test_bad_arguments_are_refused(bad: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Catches a run of minutes that ends without a step to compare, and a traceback for a folder that is not there."""
    with pytest.raises(SystemExit):
        plan_check.main([bad])
    assert bad.split("=")[0] in capsys.readouterr().err
