"""The values that the host reads of a step are looked at when they come."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest

from care_jax.stages import compiled
from care_jax.stages.compiled import CompiledStages


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_loss_that_is_not_finite_stops_the_run(value: float) -> None:
    """Catches a run that trains on after NaN."""
    stages: Any = SimpleNamespace(_objective=None, _copies_to_all={}, _given_by={"update_metrics": "update"}, step=7)
    sound = {"loss": jnp.float32(0.5), "grad_norm": jnp.float32(2.0)}
    assert CompiledStages.fetch(stages, "update_metrics", sound) == {"loss": 0.5, "grad_norm": 2.0}
    with pytest.raises(FloatingPointError, match="step 7, stage update: not finite: 1 of 1 in grad_norm"):
        CompiledStages.fetch(stages, "update_metrics", sound | {"grad_norm": jnp.float32(value)})


def test_what_is_not_finite_in_the_rows_of_one_process_stops_all(monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches processes that wait for one that has stopped, until they are told that it is gone and not why."""
    stages: Any = SimpleNamespace(_objective=None, _copies_to_all={}, _given_by={}, step=7)
    monkeypatch.setattr(compiled, "exchange", lambda told: [told, "step 7, stage score: not finite"])
    with pytest.raises(FloatingPointError, match="step 7, stage score: not finite"):
        CompiledStages.fetch(stages, "update_metrics", {"loss": jnp.float32(0.5)})
