"""The benchmark of a host's work at a tiny size."""

from __future__ import annotations

import json

import pytest

from benchmarks import host

SIZES = {"prompts": 4, "hosts": 2, "rollouts": 4, "response_len": 1200, "steps": 1, "times": 2, "vocabulary": 3000}


@pytest.mark.slow
def test_figures_of_a_tiny_batch(capsys: pytest.CaptureFixture[str]) -> None:
    """Catches a stage that cannot run or does nothing, and a last line that is no JSON."""
    figures = host.main([f"--{name}={size}" for name, size in SIZES.items()])
    assert json.loads(capsys.readouterr().out.splitlines()[-1]) == figures
    assert (figures["prompts"], figures["hosts"]) == (4, 2)
    assert (figures["larger"]["prompts"], figures["larger"]["hosts"]) == (8, 4)
    stages = ("encode and pad", "judge", "force", "rewrite and judge", "log")
    assert min(figures["stages"][stage] for stage in stages) > 0
    # Two prompts of 3,996 patches of 588 bytes, three times: padded to 4,096, as they are, and ahead.
    assert figures["patches_gb"] == round(2 * 588 * (4096 + 2 * 3996) / 1e9, 3)
