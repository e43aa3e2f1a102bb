"""The weights of Qwen3.5: those of Qwen3-VL, with layers of two kinds and without deepstack."""

from __future__ import annotations

from care_jax.convert.qwen3_vl import LAYOUT, weights

__all__ = ["CARRIED", "LAYOUT", "weights"]

# The head that predicts several tokens at once: no stage of training uses it, and transformers leaves it out.
CARRIED = ("mtp.",)
