"""The objective's record of a preset, with other values of some fields."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import ml_collections

from care_jax.method.objectives import Objective


def record(preset: Callable[[], ml_collections.ConfigDict], **changes: Any) -> Objective:
    """Makes the record; `reflect__source` stands for reflect.source."""
    config = preset()
    config.update_from_flattened_dict({name.replace("__", "."): value for name, value in changes.items()})
    return Objective.from_config(config)
