"""Model folders without weights: Qwen2.5-VL and Qwen3.5 of any size, all families at a tiny one; and their prompts."""

from __future__ import annotations

import dataclasses
import io
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

import care_jax
from care_jax.inputs.batch import collate
from care_jax.inputs.processor import Processor, load_processor
from care_jax.inputs.prompts import encode_prompt
from care_jax.rewards.response_format import ANSWER_TAGS
from care_jax.structs import Prompts, Record

_TOKENIZER_FOLDER = Path(care_jax.__file__).parent / "models" / "tiny_qwen2_5_vl"
FACTOR = {"qwen2_5_vl": 28, "qwen3_vl": 32, "qwen3_5": 32}  # pixels a side of one image token
IMAGE_UNIT = FACTOR["qwen2_5_vl"]
_QWEN3_TOWER = {
    "depth": 4,
    "hidden_act": "gelu_pytorch_tanh",
    "hidden_size": 64,
    "in_channels": 3,
    "initializer_range": 0.02,
    "intermediate_size": 112,
    "num_heads": 4,
    "num_position_embeddings": 25,
    "out_hidden_size": 96,
    "patch_size": 16,
    "spatial_merge_size": 2,
    "temporal_patch_size": 2,
}
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
    "vision_config": {**_QWEN3_TOWER, "model_type": "qwen3_vl", "deepstack_visual_indexes": [0, 2]},
    "vision_end_token_id": 276,
    "vision_start_token_id": 275,
}
# One period of layers; more channels a value than a key head, each key head with two value heads.
_QWEN3_5 = {
    "architectures": ["Qwen3_5ForConditionalGeneration"],
    "image_token_id": 278,
    "model_type": "qwen3_5",
    "text_config": {
        "attention_bias": False,
        "attention_dropout": 0.0,
        "attn_output_gate": True,
        "dtype": "float32",
        "eos_token_id": 274,
        "full_attention_interval": 4,
        "head_dim": 64,
        "hidden_act": "silu",
        "hidden_size": 96,
        "initializer_range": 0.02,
        "intermediate_size": 192,
        "layer_types": ["linear_attention", "linear_attention", "linear_attention", "full_attention"],
        "linear_conv_kernel_dim": 4,
        "linear_key_head_dim": 16,
        "linear_num_key_heads": 2,
        "linear_num_value_heads": 4,
        "linear_value_head_dim": 24,
        "max_position_embeddings": 2048,
        "model_type": "qwen3_5_text",
        "mtp_num_hidden_layers": 1,
        "num_attention_heads": 4,
        "num_hidden_layers": 4,
        "num_key_value_heads": 2,
        "rms_norm_eps": 1e-06,
        "rope_parameters": {
            "mrope_interleaved": True,
            "mrope_section": [3, 3, 2],
            "partial_rotary_factor": 0.25,
            "rope_theta": 2.0,
            "rope_type": "default",
        },
        "use_cache": True,
        "vocab_size": 288,
    },
    "tie_word_embeddings": True,
    "video_token_id": 279,
    "vision_config": {**_QWEN3_TOWER, "model_type": "qwen3_5_vision"},
    "vision_end_token_id": 276,
    "vision_start_token_id": 275,
}
_CONFIGS = {"qwen3_vl": _QWEN3, "qwen3_5": _QWEN3_5}
SIZED = ("qwen2_5_vl", "qwen3_5")  # what `write_folder` writes


def write_folder(folder: Path, *, num_layers: int, width: int, vocab_size: int, model_type: str = "qwen2_5_vl") -> Path:
    """Writes a Hugging Face folder: the embedded tokenizer, and config.json of a published model scaled down.

    That is Qwen2.5-VL-3B-Instruct, whose heads have 128 channels in the decoder and 80 in the tower, or Qwen3.5-4B,
    with 256, in linear attention 128, and 80; fewer if `width` has no room for two such heads. The tokenizer uses few
    of the `vocab_size` ids, but all of them cost what they cost in a real model.
    """
    if model_type == "qwen3_5":
        return _write_qwen3_5(folder, num_layers=num_layers, width=width, vocab_size=vocab_size)
    folder = Path(shutil.copytree(_TOKENIZER_FOLDER, folder, dirs_exist_ok=True))
    path = folder / "config.json"
    config: dict[str, Any] = json.loads(path.read_text())
    heads = max(2, width // 128)
    channels = width // heads
    config.update(
        hidden_size=width,
        intermediate_size=width * 11008 // 2048,
        num_hidden_layers=num_layers,
        num_attention_heads=heads,
        num_key_value_heads=2,
        rope_theta=1e6,
        rope_scaling={"type": "mrope", "mrope_section": [channels // 8, channels * 3 // 16, channels * 3 // 16]},
        tie_word_embeddings=True,
        vocab_size=vocab_size,
    )
    config["vision_config"].update(
        depth=num_layers,
        fullatt_block_indexes=[num_layers - 1],
        hidden_size=width * 1280 // 2048,
        intermediate_size=width * 3420 // 2048,
        num_heads=heads,
        out_hidden_size=width,
        window_size=112,
    )
    path.write_text(json.dumps(config))
    return folder


def _write_qwen3_5(folder: Path, *, num_layers: int, width: int, vocab_size: int) -> Path:
    folder = write_tiny(folder, "qwen3_5")
    config: dict[str, Any] = json.loads(json.dumps(_QWEN3_5))
    heads, key_heads = max(2, width * 16 // 2560), max(2, width * 16 // 2560)
    channels, key_channels = min(256, width * 8 // 5 // heads // 8 * 8), min(128, width * 4 // 5 // key_heads // 8 * 8)
    kinds = [
        "full_attention" if (i + 1) % 4 == 0 or i + 1 == num_layers else "linear_attention" for i in range(num_layers)
    ]
    turned = channels // 8  # frequencies
    config["text_config"].update(
        head_dim=channels,
        hidden_size=width,
        intermediate_size=width * 9216 // 2560,
        layer_types=kinds,
        linear_key_head_dim=key_channels,
        linear_num_key_heads=key_heads,
        linear_num_value_heads=2 * key_heads,
        linear_value_head_dim=key_channels,
        num_attention_heads=heads,
        num_hidden_layers=num_layers,
        num_key_value_heads=heads if heads % 2 else heads // 2,
        vocab_size=vocab_size,
    )
    sections = [turned - 2 * (turned // 3), turned // 3, turned // 3]
    config["text_config"]["rope_parameters"].update(rope_theta=1e7, mrope_section=sections)
    tower_heads = max(2, width // 128)
    config["vision_config"].update(
        depth=num_layers,
        hidden_size=width * 1280 // 2048,
        intermediate_size=width * 5120 // 2048,
        num_heads=tower_heads,
        num_position_embeddings=2304,
        out_hidden_size=width,
    )
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def image_unit(folder: Path) -> int:
    """Pixels a side of one image token of a folder's model."""
    return FACTOR[json.loads((folder / "config.json").read_text())["model_type"]]


def write_tiny(folder: Path, model_type: str, *, source: Path = _TOKENIZER_FOLDER) -> Path:
    """Writes a Hugging Face folder of a family without weights; images have from 1 to 4096 tokens."""
    folder = Path(shutil.copytree(source, folder, dirs_exist_ok=True))
    path, factor = folder / "preprocessor_config.json", FACTOR[model_type]
    image = {
        **json.loads(path.read_text()),
        "size": {"shortest_edge": factor**2, "longest_edge": 4096 * factor**2},
    }
    if model_type in _CONFIGS:
        (folder / "config.json").write_text(json.dumps(_CONFIGS[model_type]))
        image |= {"patch_size": 16, "image_mean": [0.5] * 3, "image_std": [0.5] * 3}
        video = {**image, "size": {"shortest_edge": 4096, "longest_edge": 25165824}}
        (folder / "video_preprocessor_config.json").write_text(json.dumps(video))
    path.write_text(json.dumps(image))
    return folder


def make_prompts(folder: Path, *, num_prompts: int, prompt_len: int, image_side: int) -> tuple[Processor, Prompts]:
    """Loads the processor of a folder and makes prompts for it.

    Args:
        folder: of `write_folder`.
        num_prompts: how many.
        prompt_len: tokens of each prompt, exactly.
        image_side: pixels of the square image in each prompt, a multiple of `image_unit`; 0: text alone.

    Returns:
        The processor, and the prompts as NumPy arrays.

    Raises:
        ValueError: `image_side` is no such multiple, or the image leaves no room for text.
    """
    unit = image_unit(folder)
    if image_side < 0 or image_side % unit:
        raise ValueError(f"the image's side is {image_side} pixels; give a multiple of {unit}")
    num_image = (image_side // unit) ** 2
    processor = load_processor(
        folder,
        response_format=dataclasses.replace(ANSWER_TAGS, request=""),
        prompt_buckets=(prompt_len,),
        patch_buckets=(4 * num_image or 4,),
        max_image_tokens=num_image or 4,
        min_image_tokens=num_image or 4,
        overlong="error",
    )
    rng = np.random.default_rng(0)

    def record(text_len: int) -> Record:
        images = (_noise(rng, image_side),) if image_side else ()
        digits = "".join(map(str, rng.integers(0, 10, text_len)))  # one token each
        return Record(
            id="made",
            source="made",
            answer="0",
            answer_kind="integer",
            prompt="<image>" * len(images) + digits,
            images=images,
        )

    shortest = encode_prompt(processor, record(0))
    room = prompt_len - (len(shortest.token_ids) if shortest else prompt_len)
    if room < 1:
        raise ValueError(f"a prompt of {prompt_len} tokens has no room for {num_image} image tokens and a text")
    examples = [encode_prompt(processor, record(room)) for _ in range(num_prompts)]
    prompts = collate(processor, [example for example in examples if example is not None])
    return processor, prompts


def _noise(rng: np.random.Generator, side: int) -> bytes:
    """A square PNG of random pixels."""
    pixels = io.BytesIO()
    Image.fromarray(rng.integers(0, 256, (side, side, 3), np.uint8)).save(pixels, "PNG")
    return pixels.getvalue()
