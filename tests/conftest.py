"""Before jax is imported anywhere: several fake CPU devices, strict promotion, no hub."""

from __future__ import annotations

import os
from pathlib import Path

os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=4 " + os.environ.get("XLA_FLAGS", "")
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"

import jax  # noqa: E402
import pytest  # noqa: E402

jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")


@pytest.fixture(scope="session")
def tiny_folder() -> Path:
    """The Hugging Face folder of the tiny Qwen2.5-VL: config, tokenizer and processor files, no weights."""
    return Path(__file__).parents[1] / "care_jax" / "models" / "tiny_qwen2_5_vl"
