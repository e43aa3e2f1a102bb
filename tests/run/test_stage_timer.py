"""Wall time by stage."""

from __future__ import annotations

import time

import pytest

from care_jax.run.stage_timer import StageTimer


def test_stage_timer_adds_up_and_starts_again():
    """Catches times that overwrite instead of adding, that a raising stage loses, and that leak into the next step."""
    timer = StageTimer()
    with timer("step"):
        for _ in range(2):
            with timer("rollout"):
                time.sleep(0.02)
        with pytest.raises(KeyError), timer("verify"):
            raise KeyError
    taken = timer.take()
    assert sorted(taken) == ["time/rollout", "time/step", "time/verify"]
    assert 0.04 <= taken["time/rollout"] <= taken["time/step"] < 1.0
    assert timer.take() == {}
