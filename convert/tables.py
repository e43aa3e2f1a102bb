"""The table of weights of a model's family."""

from __future__ import annotations

from care_jax.models import ModelConfig
from convert import qwen2_5_vl, qwen3_vl
from convert.mapping import Layout, Weight

_TABLES = {"qwen2_5_vl": qwen2_5_vl.table, "qwen3_vl": qwen3_vl.table}
_LAYOUTS: dict[str, Layout] = {"qwen2_5_vl": "hub", "qwen3_vl": "nested"}


def table(config: ModelConfig) -> list[Weight]:
    """All weights of the model, in the order they are written."""
    return _TABLES[config.model_type](config)


def usual_layout(config: ModelConfig) -> Layout:
    """The key layout of the family's published files."""
    return _LAYOUTS[config.model_type]
