"""The model families at a tiny size: folders as on the hub, and transformers' own models with random weights."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import torch
import transformers

from benchmarks.made_model import write_tiny
from care_jax.inputs.processor import Processor, load_processor
from care_jax.rewards.response_format import ANSWER_TAGS

FAMILIES = ("qwen2_5_vl", "qwen3_vl", "qwen3_5")
# The families' chat templates, in our own words: Qwen2.5-VL's puts a system turn first, Qwen3.5's opens a rationale.
SYSTEM = {"qwen2_5_vl": "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n", "qwen3_vl": "", "qwen3_5": ""}
_TURNS = (
    "{% for turn in messages %}<|im_start|>{{ turn.role ~ '\\n' }}{% for part in turn.content %}"
    "{{ '<|vision_start|><|' ~ part.type ~ '_pad|><|vision_end|>' if part.type != 'text' else part.text }}"
    "{% endfor %}<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant{{ '\\n' }}{% endif %}"
)
_THINKING = (
    "{% if add_generation_prompt %}{{ '<think>\n\n</think>\n\n' if enable_thinking is defined and not enable_thinking "
    "else '<think>\n' }}{% endif %}"
)
CHAT_TEMPLATE = {family: system + _TURNS for family, system in SYSTEM.items()}
CHAT_TEMPLATE["qwen3_5"] += _THINKING


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


def tiny_processor(folder: Path, bucket: tuple[int, int], *, max_image_tokens: int = 16) -> Processor:
    """The processor of a folder with one bucket (tokens, patches), and questions without a request for a format."""
    return load_processor(
        folder,
        response_format=dataclasses.replace(ANSWER_TAGS, request=""),
        prompt_buckets=bucket[:1],
        patch_buckets=bucket[1:],
        max_image_tokens=max_image_tokens,
        min_image_tokens=1,
        overlong="error",
    )


def random_oracle(folder: Path) -> transformers.PreTrainedModel:
    """Transformers' model of the folder, with weights at which every parameter matters and activations stay near 1."""
    torch.manual_seed(0)
    config = transformers.AutoConfig.from_pretrained(folder, attn_implementation="eager")
    oracle = transformers.AutoModelForImageTextToText.from_config(config).eval()
    for name, parameter in oracle.named_parameters():
        if parameter.ndim == 1:
            start = 0.0 if name.endswith("bias") or _is_zero_centered(name, oracle) else 1.0
            start = -2.0 if name.endswith("A_log") else start  # a state lasts for several tokens
            parameter.data.normal_(start, 0.2)
        else:
            embedding = 0.03 if config.model_type != "qwen3_5" else 0.2
            spread = (
                embedding if "embed_tokens" in name else 0.5 if "pos_embed" in name else parameter[0].numel() ** -0.5
            )
            # Linear attention's outputs have length 1, while full attention's are means.
            spread *= 0.5 if "visual" in name or "linear_attn.out_proj" in name else 1.0
            parameter.data.normal_(0.0, spread)
        if name.endswith(("in_proj_qkv.weight", "conv1d.weight")):
            _make_keys_like_queries(parameter.data, oracle.config.text_config)
    return oracle


def _make_keys_like_queries(rows: torch.Tensor, config: transformers.PretrainedConfig) -> None:
    """Turns the rows of keys towards those of queries.

    A query that has little in common with any key would read rounding errors, which the norm behind it makes as large
    as all else.
    """
    size = config.linear_num_key_heads * config.linear_key_head_dim
    rows[size : 2 * size] = 0.8 * rows[:size] + 0.2 * rows[size : 2 * size]


def _is_zero_centered(name: str, oracle: transformers.PreTrainedModel) -> bool:
    """True for the weight of a norm that multiplies by 1 + weight."""
    return type(oracle.get_submodule(name.rpartition(".")[0])).__name__ == "Qwen3_5RMSNorm"
