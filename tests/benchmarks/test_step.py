"""The step benchmark at a tiny size."""

from __future__ import annotations

import json

import jax
import pytest

from benchmarks import step

pytestmark = pytest.mark.usefixtures("quick_to_compile")

TINY = {
    "prompts": 2, "memory_prompts": 2, "rollouts": 4, "negatives": 2, "prompt_len": 40, "image_side": 56,
    "response_len": 12, "forced_len": 4, "layers": 1, "width": 128, "vocabulary": 288, "chunk": 16, "repeats": 1,
}  # fmt: skip


def flags(**changes: int) -> list[str]:
    """The command's flags for a tiny step, with changes."""
    return [f"--{name}={value}" for name, value in {**TINY, **changes}.items()]


@pytest.mark.slow
def test_figures_of_a_tiny_step(capsys: pytest.CaptureFixture[str]) -> None:
    """Catches a side that leaves a stage out or computes other rows, and a last line that is no JSON."""
    with jax.numpy_dtype_promotion("standard"):  # optax's Adam
        figures = step.main(flags())
    assert json.loads(capsys.readouterr().out.splitlines()[-1]) == figures
    assert figures["predicted_update_ratio"] == round((40 + 3 * 12) / (4 * (40 + 12)), 4)
    for stage in step.STAGES:
        seconds = figures["figures"][f"{stage}, s"]
        assert seconds["care"] > 0
        assert (seconds["plain"] > 0) == (stage != "reflect")
    assert figures["update_memory_ratio"] == figures["update_memory_ratio_timed"] < 1
    assert min(figures["update_time_ratio"], figures["step_time_ratio"]) > 0


@pytest.mark.parametrize("changes", [{"negatives": 4}, {"forced_len": 12}, {"repeats": 0}])
def test_impossible_sizes_are_rejected(changes: dict[str, int], capsys: pytest.CaptureFixture[str]) -> None:
    """Catches sizes that contradict each other, and a traceback instead of one line."""
    with pytest.raises(SystemExit) as error:
        step.main(flags(**changes))
    assert error.value.code == 2
    assert "error: " in capsys.readouterr().err
