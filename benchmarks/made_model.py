"""A Qwen2.5-VL of any size with the proportions of Qwen2.5-VL-3B and random weights, and prompts with an image."""

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
IMAGE_UNIT = 28  # pixels a side of one image token


def write_folder(folder: Path, *, num_layers: int, width: int, vocab_size: int) -> Path:
    """Writes a Hugging Face folder: the embedded tokenizer, and config.json of Qwen2.5-VL-3B-Instruct scaled down.

    Heads have 128 channels in the decoder and 80 in the tower, fewer if `width` has no room for two such heads. The
    tokenizer uses few of the `vocab_size` ids, but all of them cost what they cost in a real model.
    """
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


def make_prompts(folder: Path, *, num_prompts: int, prompt_len: int, image_side: int) -> tuple[Processor, Prompts]:
    """Loads the processor of a folder and makes prompts for it.

    Args:
        folder: of `write_folder`.
        num_prompts: how many.
        prompt_len: tokens of each prompt, exactly.
        image_side: pixels of the square image in each prompt, a multiple of 28; 0: text alone.

    Returns:
        The processor, and the prompts as NumPy arrays.

    Raises:
        ValueError: `image_side` is not a multiple of 28, or the image leaves no room for text.
    """
    if image_side < 0 or image_side % IMAGE_UNIT:
        raise ValueError(f"the image's side is {image_side} pixels; give a multiple of {IMAGE_UNIT}")
    num_image = (image_side // IMAGE_UNIT) ** 2
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
