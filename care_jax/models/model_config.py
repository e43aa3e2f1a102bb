"""The architecture of a Qwen-VL model, read from a Hugging Face config.json. A missing key is an error."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any


@dataclasses.dataclass(frozen=True)
class VisionConfig:
    """The vision tower. Sizes are in patches or channels, `window_size` in pixels."""

    depth: int
    hidden_size: int
    intermediate_size: int
    num_heads: int
    in_channels: int
    patch_size: int
    temporal_patch_size: int
    spatial_merge_size: int
    window_size: int
    fullatt_block_indexes: tuple[int, ...]
    out_hidden_size: int

    @property
    def merge_unit(self) -> int:
        """Patches of one merged token."""
        return self.spatial_merge_size**2

    @property
    def patch_values(self) -> int:
        """F, values of one flattened patch."""
        return self.in_channels * self.temporal_patch_size * self.patch_size**2


@dataclasses.dataclass(frozen=True)
class TextConfig:
    """The decoder."""

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    rms_norm_eps: float
    rope_theta: float
    mrope_section: tuple[int, ...]
    tie_word_embeddings: bool

    @property
    def head_dim(self) -> int:
        """C, channels of a head."""
        return self.hidden_size // self.num_attention_heads


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """Both towers, and how they are computed (the last three come from the run's config, not from config.json)."""

    vision: VisionConfig
    text: TextConfig
    compute_dtype: str = "float32"
    remat: bool = False  # recompute each layer in the backward pass
    freeze_vision: bool = False  # no gradient into the vision tower


class _Fields:
    """Reads fields of a JSON object; a missing one is an error that names file and field."""

    def __init__(self, values: dict[str, Any], where: str):
        self.values, self.where = values, where

    def __getitem__(self, name: str) -> Any:
        if name not in self.values:
            raise ValueError(f"{self.where} has no field {name!r}; it is needed to build the model")
        return self.values[name]

    def first(self, *names: str) -> Any:
        """The field under the first of its names that is there (the hub and transformers 5 differ)."""
        for name in names:
            if name in self.values:
                return self.values[name]
        return self[names[0]]


def load_model_config(folder: Path) -> ModelConfig:
    """Reads `folder/config.json`, in the hub's flat layout or the nested one transformers 5 writes.

    Raises:
        ValueError: no such file, an unknown model_type, or a missing field (named).
    """
    path = Path(folder) / "config.json"
    if not path.is_file():
        raise ValueError(f"no config.json in {folder}; give the folder of a Hugging Face Qwen2.5-VL model")
    raw = json.loads(path.read_text())
    outer = _Fields(raw, str(path))
    if outer["model_type"] != "qwen2_5_vl":
        raise ValueError(f"{path} has model_type {outer['model_type']!r}; supported: 'qwen2_5_vl'")
    text = _Fields(raw["text_config"], f"{path} (text_config)") if "text_config" in raw else outer
    rope = _Fields(text.first("rope_scaling", "rope_parameters"), f"{path} (rope_scaling)")
    vision = _Fields(outer["vision_config"], f"{path} (vision_config)")
    return ModelConfig(
        vision=VisionConfig(
            depth=vision["depth"],
            hidden_size=vision["hidden_size"],
            intermediate_size=vision["intermediate_size"],
            num_heads=vision["num_heads"],
            in_channels=vision.first("in_channels", "in_chans"),
            patch_size=vision["patch_size"],
            temporal_patch_size=vision["temporal_patch_size"],
            spatial_merge_size=vision["spatial_merge_size"],
            window_size=vision["window_size"],
            fullatt_block_indexes=tuple(vision["fullatt_block_indexes"]),
            out_hidden_size=vision["out_hidden_size"],
        ),
        text=TextConfig(
            vocab_size=text["vocab_size"],
            hidden_size=text["hidden_size"],
            intermediate_size=text["intermediate_size"],
            num_hidden_layers=text["num_hidden_layers"],
            num_attention_heads=text["num_attention_heads"],
            num_key_value_heads=text["num_key_value_heads"],
            rms_norm_eps=text["rms_norm_eps"],
            rope_theta=rope["rope_theta"] if "rope_theta" in rope.values else text["rope_theta"],
            mrope_section=tuple(rope["mrope_section"]),
            # Nested text configs of some hub files contradict the outer flag; the outer one is right.
            tie_word_embeddings=outer["tie_word_embeddings"],
        ),
    )
