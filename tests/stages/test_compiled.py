"""The values that the host reads of a step are looked at when they come."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest

from care_jax.stages.compiled import CompiledStages


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_loss_that_is_not_finite_stops_the_run(value: float) -> None:
    """Catches a run that trains on after NaN; every process fetches the whole value, so all stop together."""
    stages: Any = SimpleNamespace(_objective=None, _copies_to_all={}, _given_by={"update_metrics": "update"}, step=7)
    sound = {"loss": jnp.float32(0.5), "grad_norm": jnp.float32(2.0)}
    assert CompiledStages.fetch(stages, "update_metrics", sound) == {"loss": 0.5, "grad_norm": 2.0}
    with pytest.raises(FloatingPointError, match="step 7, stage update: not finite: 1 of 1 in grad_norm"):
        CompiledStages.fetch(stages, "update_metrics", sound | {"grad_norm": jnp.float32(value)})
