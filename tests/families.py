"""The two model families at a tiny size: folders as on the hub, and transformers' own models with random weights."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
import transformers

from benchmarks.made_model import write_tiny

FAMILIES = ("qwen2_5_vl", "qwen3_vl")
# The families' chat templates, in our own words: Qwen2.5-VL's puts a system turn first.
SYSTEM = {"qwen2_5_vl": "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n", "qwen3_vl": ""}
_TURNS = (
    "{% for turn in messages %}<|im_start|>{{ turn.role ~ '\\n' }}{% for part in turn.content %}"
    "{{ '<|vision_start|><|' ~ part.type ~ '_pad|><|vision_end|>' if part.type != 'text' else part.text }}"
    "{% endfor %}<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant{{ '\\n' }}{% endif %}"
)
CHAT_TEMPLATE = {family: system + _TURNS for family, system in SYSTEM.items()}


def read_json(path: Path) -> dict[str, Any]:
    """The fields of a JSON file."""
    return json.loads(path.read_text())


def edit_json(path: Path, **changes: Any) -> None:
    """Changes fields of a JSON file; None removes a field."""
    fields = {**read_json(path), **changes}
    path.write_text(json.dumps({key: value for key, value in fields.items() if value is not None}))


def make_folder(family: str, tiny_folder: Path, target: Path) -> Path:
    """A folder of the family with the tiny tokenizer; images have from 1 to 4096 merged tokens."""
    return write_tiny(target, family, source=tiny_folder)


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
