"""A Qwen-VL model's architecture from a Hugging Face config.json, read as transformers reads it."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from care_jax.errors import InputError, shown
from care_jax.models.layers import ACTIVATIONS
from care_jax.models.model_config import LAYER_TYPES, MODEL_TYPES, ModelConfig, TextConfig, VisionConfig
from care_jax.models.model_folder import Fields, read_fields

_MOST_LAYERS, _MOST_PATCH = 1024, 1024  # bounds that keep a broken file from being built
# The values of fields that a file leaves out: transformers 4.49 leaves out those at their default. Source: the
# configuration files of transformers 4.49 to 5.23, which agree.
_QWEN3_TOWER: dict[str, Any] = {
    "depth": 27,
    "hidden_act": "gelu_pytorch_tanh",
    "hidden_size": 1152,
    "in_channels": 3,
    "intermediate_size": 4304,
    "num_heads": 16,
    "num_position_embeddings": 2304,
    "out_hidden_size": 3584,
    "patch_size": 16,
    "spatial_merge_size": 2,
    "temporal_patch_size": 2,
}
_VISION_DEFAULTS: dict[str, dict[str, Any]] = {
    "qwen2_5_vl": {
        "depth": 32,
        "fullatt_block_indexes": [7, 15, 23, 31],
        "hidden_act": "silu",
        "hidden_size": 3584,
        "in_channels": 3,
        "intermediate_size": 3420,
        "num_heads": 16,
        "out_hidden_size": 3584,
        "patch_size": 14,
        "spatial_merge_size": 2,
        "temporal_patch_size": 2,
        "tokens_per_second": 4,
        "window_size": 112,
    },
    "qwen3_vl": {**_QWEN3_TOWER, "deepstack_visual_indexes": [8, 16, 24]},
    "qwen3_5": _QWEN3_TOWER,
}
_TEXT_DEFAULTS: dict[str, dict[str, Any]] = {
    "qwen2_5_vl": {
        "hidden_act": "silu",
        "hidden_size": 8192,
        "intermediate_size": 29568,
        "num_attention_heads": 64,
        "num_hidden_layers": 80,
        "num_key_value_heads": 8,
        "rms_norm_eps": 1e-5,
        "rope_theta": 1e6,
        "tie_word_embeddings": False,
        "vocab_size": 152064,
    },
    "qwen3_vl": {
        "attention_bias": False,
        "head_dim": 128,
        "hidden_act": "silu",
        "hidden_size": 4096,
        "intermediate_size": 22016,
        "num_attention_heads": 32,
        "num_hidden_layers": 32,
        "num_key_value_heads": 32,
        "rms_norm_eps": 1e-6,
        "rope_theta": 5e5,
        "tie_word_embeddings": False,
        "vocab_size": 151936,
    },
    "qwen3_5": {
        "attention_bias": False,
        "full_attention_interval": 4,
        "head_dim": 256,
        "hidden_act": "silu",
        "hidden_size": 4096,
        "intermediate_size": 12288,
        "linear_conv_kernel_dim": 4,
        "linear_key_head_dim": 128,
        "linear_num_key_heads": 16,
        "linear_num_value_heads": 32,
        "linear_value_head_dim": 128,
        "num_attention_heads": 16,
        "num_hidden_layers": 32,
        "num_key_value_heads": 4,
        "partial_rotary_factor": 0.25,
        "rms_norm_eps": 1e-6,
        "rope_theta": 1e4,
        "tie_word_embeddings": False,
        "vocab_size": 248320,
    },
}
_ROPE_DEFAULTS: dict[str, dict[str, Any]] = {
    "qwen2_5_vl": {"mrope_interleaved": False, "mrope_section": [16, 24, 24]},
    "qwen3_vl": {"mrope_interleaved": True, "mrope_section": [24, 20, 20]},
    "qwen3_5": {"mrope_interleaved": True, "mrope_section": [11, 11, 10]},
}
_VISION_ROPE_DEFAULTS = {"rope_theta": 10000.0}  # fixed in Qwen's code; transformers 5 also writes it down


def load_model_config(folder: Path) -> ModelConfig:
    """Reads `folder/config.json`, in the hub's layout or in one that transformers 4 or 5 writes.

    Raises:
        InputError: no such file, no JSON, an unknown model_type or variant, a field (named) that is missing, of another
            type or out of bounds, or sizes that do not go together.
    """
    path = Path(folder) / "config.json"
    return parse_model_config(read_fields(path), str(path))


def parse_model_config(raw: dict[str, Any], where: str) -> ModelConfig:
    """Reads the object that a config.json holds; `where` names it in errors."""
    outer = Fields(raw, where)
    model_type = outer.one_of("model_type", MODEL_TYPES)
    vision, text = _read_vision(outer, model_type), _read_text(outer, model_type)
    has_windows = "window_size" in _VISION_DEFAULTS[model_type]
    laws = {
        "num_key_value_heads must divide num_attention_heads": text.num_attention_heads % text.num_key_value_heads == 0,
        "num_attention_heads must divide hidden_size": "head_dim" in _TEXT_DEFAULTS[model_type]
        or text.hidden_size % text.num_attention_heads == 0,
        "mrope_section must be three sizes that add up to half of a head's channels, or of those that turn": len(
            text.mrope_section
        )
        == 3
        and 2 * sum(text.mrope_section) == text.rotary_dim,
        "linear_num_key_heads must divide linear_num_value_heads": "linear_attention" not in text.period
        or text.linear_num_value_heads % text.linear_num_key_heads == 0,
        "some of layer_types must be full_attention": "full_attention" in text.period,
        "hidden_size of vision_config must be a multiple of 4 num_heads": vision.hidden_size % (4 * vision.num_heads)
        == 0,
        "out_hidden_size of vision_config must be hidden_size": vision.out_hidden_size == text.hidden_size,
        "window_size of vision_config must be at least a merged token": not has_windows
        or vision.window_size >= vision.patch_size * vision.spatial_merge_size,
    }
    if broken := [law for law, holds in laws.items() if not holds]:
        raise InputError(f"{where}: {'; '.join(broken)}; copy the file from the source checkpoint")
    return ModelConfig(model_type=model_type, vision=vision, text=text)


def _read_vision(outer: Fields, model_type: str) -> VisionConfig:
    vision = outer.sub("vision_config", defaults=_VISION_DEFAULTS[model_type])
    depth = vision.count("depth", most=_MOST_LAYERS)
    family: dict[str, Any]
    if "num_position_embeddings" in _VISION_DEFAULTS[model_type]:
        cells = vision.count("num_position_embeddings")
        has_deepstack = "deepstack_visual_indexes" in _VISION_DEFAULTS[model_type]
        indexes = vision.indexes("deepstack_visual_indexes") if has_deepstack else ()
        if list(indexes) != sorted(set(indexes)) or not all(index < depth for index in indexes):
            raise InputError(
                f"{vision.where} has deepstack_visual_indexes {shown(indexes)}; they must be ascending blocks"
            )
        if math.isqrt(cells) ** 2 != cells:
            raise InputError(f"{vision.where} has num_position_embeddings {cells}; it must be a square number")
        family = {"num_position_embeddings": cells, "deepstack_visual_indexes": indexes}
    else:
        family = {
            "window_size": vision.count("window_size"),
            "fullatt_block_indexes": vision.indexes("fullatt_block_indexes"),
            "tokens_per_second": vision.real("tokens_per_second"),
        }
    return VisionConfig(
        depth=depth,
        hidden_size=vision.count("hidden_size"),
        intermediate_size=vision.count("intermediate_size"),
        num_heads=vision.count("num_heads"),
        in_channels=vision.count("in_channels", most=_MOST_PATCH),
        patch_size=vision.count("patch_size", most=_MOST_PATCH),
        temporal_patch_size=vision.count("temporal_patch_size", most=_MOST_PATCH),
        spatial_merge_size=vision.count("spatial_merge_size", most=_MOST_PATCH),
        out_hidden_size=vision.count("out_hidden_size"),
        hidden_act=vision.one_of("hidden_act", tuple(ACTIVATIONS)),
        rope_theta=_rope_of(vision, _VISION_ROPE_DEFAULTS).real("rope_theta"),
        **family,
    )


def _read_text(outer: Fields, model_type: str) -> TextConfig:
    is_qwen3, defaults = model_type != "qwen2_5_vl", _TEXT_DEFAULTS[model_type]
    nested = is_qwen3 or outer.has("text_config")
    text = outer.sub("text_config", defaults=defaults) if nested else Fields(outer.values, outer.where, defaults)
    outside = {name: text.values[name] for name in ("rope_theta", "partial_rotary_factor") if text.has(name)}
    rope = _rope_of(text, {**outside, **_ROPE_DEFAULTS[model_type]})
    for name in ("rope_type", "type"):  # of transformers 5, and of the hub
        rope.one_of(name, ("default", "mrope", None))
    rope.one_of("mrope_interleaved", (is_qwen3,))
    text.one_of("use_sliding_window", (False, None))
    width, heads = text.count("hidden_size"), text.count("num_attention_heads")
    bias = text.one_of("attention_bias", (False, True)) if is_qwen3 else False
    # Nested text configs of some hub files contradict the outer flag; the outer one is right.
    tied = outer if outer.has("tie_word_embeddings") else text
    return TextConfig(
        vocab_size=text.count("vocab_size"),
        hidden_size=width,
        intermediate_size=text.count("intermediate_size"),
        num_hidden_layers=text.count("num_hidden_layers", most=_MOST_LAYERS),
        num_attention_heads=heads,
        num_key_value_heads=text.count("num_key_value_heads") if text.has("num_key_value_heads") else heads,
        head_dim=text.count("head_dim") if is_qwen3 else width // heads,
        hidden_act=text.one_of("hidden_act", tuple(ACTIVATIONS)),
        rms_norm_eps=text.real("rms_norm_eps"),
        rope_theta=rope.real("rope_theta"),
        mrope_section=rope.indexes("mrope_section"),
        mrope_interleaved=is_qwen3,
        qkv_bias=bias or not is_qwen3,  # Qwen2.5-VL's code has it whatever config.json says
        o_bias=bias,
        qk_norm=is_qwen3,
        tie_word_embeddings=tied.one_of("tie_word_embeddings", (False, True)),
        **(_read_hybrid(text, rope) if "linear_key_head_dim" in defaults else {}),
    )


def _read_hybrid(text: Fields, rope: Fields) -> dict[str, Any]:
    """The fields of a decoder whose layers are of two kinds, as Qwen3.5's."""
    text.one_of("attn_output_gate", (True, None))
    layers = text.count("num_hidden_layers", most=_MOST_LAYERS)
    if text.has("layer_types"):
        kinds = text.words("layer_types", LAYER_TYPES)
    else:
        interval = text.count("full_attention_interval")
        kinds = tuple("full_attention" if (i + 1) % interval == 0 else "linear_attention" for i in range(layers))
    if len(kinds) != layers:
        raise InputError(
            f"{text.where} has {len(kinds)} layer_types for num_hidden_layers {layers}; copy the file from the source "
            "checkpoint"
        )
    lengths = (length for length in range(1, layers + 1) if layers % length == 0)
    period = next(kinds[:length] for length in lengths if kinds == kinds[:length] * (layers // length))
    sizes = ("linear_conv_kernel_dim", "linear_key_head_dim", "linear_value_head_dim")
    heads = ("linear_num_key_heads", "linear_num_value_heads")
    return {
        "period": period,
        "zero_centered_norm": True,
        "output_gate": True,
        "partial_rotary_factor": rope.real("partial_rotary_factor"),
        **{name: text.count(name) for name in (*sizes, *heads)},
    }


def _rope_of(tower: Fields, defaults: dict[str, Any]) -> Fields:
    """The object with a tower's rotary settings, under the name of transformers 4 or 5; an empty one if it has none."""
    has_one = tower.has("rope_scaling") or tower.has("rope_parameters")
    return (
        tower.sub("rope_scaling", "rope_parameters", defaults=defaults)
        if has_one
        else Fields({}, tower.where, defaults)
    )
