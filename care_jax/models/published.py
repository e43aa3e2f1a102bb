"""config.json of the published models, for a plan of a run whose model folder is not at hand.

The values are those of the hub's files; tests/test_model_config.py holds them against the parameter counts of
transformers' models. The Thinking checkpoints of Qwen3-VL have the configs of the Instruct ones; Qwen3.6-27B and
Qwen3.8-27B have the sizes of Qwen3.5-27B.
"""

from __future__ import annotations

from typing import Any

# hidden, intermediate, layers, heads, key/value heads, vocabulary, tied head, the vision tower's intermediate.
_QWEN2_5 = {
    "Qwen2.5-VL-3B": (2048, 11008, 36, 16, 2, 151936, True, 3420),
    "Qwen2.5-VL-7B": (3584, 18944, 28, 28, 4, 152064, False, 3420),
    "Qwen2.5-VL-32B": (5120, 27648, 64, 40, 8, 152064, False, 3456),
    "Qwen2.5-VL-72B": (8192, 29568, 80, 64, 8, 152064, False, 3456),
}
# hidden, intermediate, layers, heads, tied head, the vision tower's depth, hidden, intermediate, deepstack blocks.
_SMALL, _LARGE = (24, 1024, 4096, [5, 11, 17]), (27, 1152, 4304, [8, 16, 24])
_QWEN3 = {
    "Qwen3-VL-2B": (2048, 6144, 28, 16, True, *_SMALL),
    "Qwen3-VL-4B": (2560, 9728, 36, 32, True, *_SMALL),
    "Qwen3-VL-8B": (4096, 12288, 36, 32, False, *_LARGE),
    "Qwen3-VL-32B": (5120, 25600, 64, 64, False, *_LARGE),
}
# hidden, intermediate, layers, heads, key/value heads, value heads of linear attention, tied head, the vision tower's
# depth, hidden, intermediate, heads.
_QWEN3_5 = {
    "Qwen3.5-0.8B": (1024, 3584, 24, 8, 2, 16, True, 12, 768, 3072, 12),
    "Qwen3.5-2B": (2048, 6144, 24, 8, 2, 16, True, 24, 1024, 4096, 16),
    "Qwen3.5-4B": (2560, 9216, 32, 16, 4, 32, True, 24, 1024, 4096, 16),
    "Qwen3.5-9B": (4096, 12288, 32, 16, 4, 32, False, 27, 1152, 4304, 16),
    "Qwen3.5-27B": (5120, 17408, 64, 24, 4, 48, False, 27, 1152, 4304, 16),
}
PUBLISHED = (*_QWEN2_5, *_QWEN3, *_QWEN3_5)


def published_config(name: str) -> dict[str, Any]:
    """The fields of the hub's config.json that make the model called `name` in PUBLISHED, in the hub's layout."""
    if name in _QWEN2_5:
        return _qwen2_5(name)
    return _qwen3(name) if name in _QWEN3 else _qwen3_5(name)


def _qwen2_5(name: str) -> dict[str, Any]:
    hidden, intermediate, layers, heads, kv_heads, vocab, tied, vision_intermediate = _QWEN2_5[name]
    return {
        "model_type": "qwen2_5_vl",
        "hidden_act": "silu",
        "hidden_size": hidden,
        "intermediate_size": intermediate,
        "num_attention_heads": heads,
        "num_hidden_layers": layers,
        "num_key_value_heads": kv_heads,
        "rms_norm_eps": 1e-6,
        "rope_scaling": {"type": "mrope", "mrope_section": [16, 24, 24]},
        "rope_theta": 1000000.0,
        "tie_word_embeddings": tied,
        "use_sliding_window": False,
        "vocab_size": vocab,
        "vision_config": {
            "depth": 32,
            "fullatt_block_indexes": [7, 15, 23, 31],
            "hidden_act": "silu",
            "hidden_size": 1280,
            "in_chans": 3,
            "intermediate_size": vision_intermediate,
            "num_heads": 16,
            "out_hidden_size": hidden,
            "patch_size": 14,
            "spatial_merge_size": 2,
            "temporal_patch_size": 2,
            "tokens_per_second": 2,
            "window_size": 112,
        },
    }


def _qwen3(name: str) -> dict[str, Any]:
    hidden, intermediate, layers, heads, tied, depth, width, vision_intermediate, deepstack = _QWEN3[name]
    return {
        "model_type": "qwen3_vl",
        "text_config": {
            "attention_bias": False,
            "head_dim": 128,
            "hidden_act": "silu",
            "hidden_size": hidden,
            "intermediate_size": intermediate,
            "num_attention_heads": heads,
            "num_hidden_layers": layers,
            "num_key_value_heads": 8,
            "rms_norm_eps": 1e-6,
            "rope_scaling": {"mrope_interleaved": True, "mrope_section": [24, 20, 20], "rope_type": "default"},
            "rope_theta": 5000000,
            "vocab_size": 151936,
        },
        "tie_word_embeddings": tied,
        "vision_config": _qwen3_tower(hidden, depth, width, vision_intermediate, 16, deepstack),
    }


def _qwen3_5(name: str) -> dict[str, Any]:
    hidden, intermediate, layers, heads, kv_heads, value_heads, tied, *tower = _QWEN3_5[name]
    depth, width, vision_intermediate, vision_heads = tower
    return {
        "model_type": "qwen3_5",
        "text_config": {
            "attention_bias": False,
            "attn_output_gate": True,
            "full_attention_interval": 4,
            "head_dim": 256,
            "hidden_act": "silu",
            "hidden_size": hidden,
            "intermediate_size": intermediate,
            "layer_types": ["linear_attention", "linear_attention", "linear_attention", "full_attention"]
            * (layers // 4),
            "linear_conv_kernel_dim": 4,
            "linear_key_head_dim": 128,
            "linear_num_key_heads": 16,
            "linear_num_value_heads": value_heads,
            "linear_value_head_dim": 128,
            "num_attention_heads": heads,
            "num_hidden_layers": layers,
            "num_key_value_heads": kv_heads,
            "rms_norm_eps": 1e-6,
            "rope_parameters": {
                "mrope_interleaved": True,
                "mrope_section": [11, 11, 10],
                "partial_rotary_factor": 0.25,
                "rope_theta": 10000000,
                "rope_type": "default",
            },
            "vocab_size": 248320,
        },
        "tie_word_embeddings": tied,
        "vision_config": _qwen3_tower(hidden, depth, width, vision_intermediate, vision_heads, []),
    }


def _qwen3_tower(
    hidden: int, depth: int, width: int, intermediate: int, heads: int, deepstack: list[int]
) -> dict[str, Any]:
    return {
        "deepstack_visual_indexes": deepstack,
        "depth": depth,
        "hidden_act": "gelu_pytorch_tanh",
        "hidden_size": width,
        "in_channels": 3,
        "intermediate_size": intermediate,
        "num_heads": heads,
        "num_position_embeddings": 2304,
        "out_hidden_size": hidden,
        "patch_size": 16,
        "spatial_merge_size": 2,
        "temporal_patch_size": 2,
    }
