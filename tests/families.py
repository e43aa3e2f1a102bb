"""The two model families at a tiny size: folders as on the hub, and transformers' own models with random weights."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import torch
import transformers

FAMILIES = ("qwen2_5_vl", "qwen3_vl")
FACTOR = {"qwen2_5_vl": 28, "qwen3_vl": 32}  # pixels a side of one merged token
# The families' chat templates, in our own words: Qwen2.5-VL's puts a system turn first.
SYSTEM = {"qwen2_5_vl": "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n", "qwen3_vl": ""}
_TURNS = (
    "{% for turn in messages %}<|im_start|>{{ turn.role ~ '\\n' }}{% for part in turn.content %}"
    "{{ '<|vision_start|><|' ~ part.type ~ '_pad|><|vision_end|>' if part.type != 'text' else part.text }}"
    "{% endfor %}<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant{{ '\\n' }}{% endif %}"
)
CHAT_TEMPLATE = {family: system + _TURNS for family, system in SYSTEM.items()}

# Heads wider than the stream, more layers than deepstack features, a position grid smaller and larger than pictures.
_QWEN3 = {
    "architectures": ["Qwen3VLForConditionalGeneration"],
    "image_token_id": 278,
    "model_type": "qwen3_vl",
    "text_config": {
        "attention_bias": False,
        "attention_dropout": 0.0,
        "dtype": "float32",
        "eos_token_id": 274,
        "head_dim": 32,
        "hidden_act": "silu",
        "hidden_size": 96,
        "initializer_range": 0.02,
        "intermediate_size": 192,
        "max_position_embeddings": 2048,
        "model_type": "qwen3_vl_text",
        "num_attention_heads": 4,
        "num_hidden_layers": 4,
        "num_key_value_heads": 2,
        "rms_norm_eps": 1e-06,
        "rope_scaling": {"mrope_interleaved": True, "mrope_section": [6, 5, 5], "rope_type": "default"},
        "rope_theta": 2.0,
        "use_cache": True,
        "vocab_size": 288,
    },
    "tie_word_embeddings": True,
    "video_token_id": 279,
    "vision_config": {
        "deepstack_visual_indexes": [0, 2],
        "depth": 4,
        "hidden_act": "gelu_pytorch_tanh",
        "hidden_size": 64,
        "in_channels": 3,
        "initializer_range": 0.02,
        "intermediate_size": 112,
        "model_type": "qwen3_vl",
        "num_heads": 4,
        "num_position_embeddings": 25,
        "out_hidden_size": 96,
        "patch_size": 16,
        "spatial_merge_size": 2,
        "temporal_patch_size": 2,
    },
    "vision_end_token_id": 276,
    "vision_start_token_id": 275,
}


def read_json(path: Path) -> dict[str, Any]:
    """The fields of a JSON file."""
    return json.loads(path.read_text())


def edit_json(path: Path, **changes: Any) -> None:
    """Changes fields of a JSON file; None removes a field."""
    fields = {**read_json(path), **changes}
    path.write_text(json.dumps({key: value for key, value in fields.items() if value is not None}))


def make_folder(family: str, tiny_folder: Path, target: Path) -> Path:
    """A folder of the family with the tiny tokenizer; images have from 1 to 4096 merged tokens."""
    folder = Path(shutil.copytree(tiny_folder, target))
    path, factor = folder / "preprocessor_config.json", FACTOR[family]
    limits = {"shortest_edge": factor**2, "longest_edge": 4096 * factor**2}
    if family == "qwen2_5_vl":
        edit_json(path, size=limits)
        return folder
    (folder / "config.json").write_text(json.dumps(_QWEN3))
    edit_json(path, size=limits, patch_size=16, image_mean=[0.5] * 3, image_std=[0.5] * 3)
    video = {**read_json(path), "size": {"shortest_edge": 4096, "longest_edge": 25165824}}
    (folder / "video_preprocessor_config.json").write_text(json.dumps(video))
    return folder


def random_oracle(folder: Path) -> transformers.PreTrainedModel:
    """Transformers' model of the folder, with weights at which every parameter matters and activations stay near 1."""
    torch.manual_seed(0)
    config = transformers.AutoConfig.from_pretrained(folder, attn_implementation="eager")
    oracle = transformers.AutoModelForImageTextToText.from_config(config).eval()
    for name, parameter in oracle.named_parameters():
        if parameter.ndim == 1:
            start = 0.0 if name.endswith("bias") else 1.0
            parameter.data.normal_(start, 0.2)
        else:
            spread = 0.03 if "embed_tokens" in name else 0.5 if "pos_embed" in name else parameter[0].numel() ** -0.5
            spread *= 0.5 if "visual" in name else 1.0
            parameter.data.normal_(0.0, spread)
    return oracle
