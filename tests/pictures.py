"""Pictures to encode, questions about them, and the order transformers' vision model puts their patches in."""

from __future__ import annotations

import io

import numpy as np
import torch
from PIL import Image
from transformers.vision_utils import get_vision_window_index

from care_jax.data.records import Record


def picture(height: int, width: int, mode: str = "RGB") -> Image.Image:
    channels = {"L": (), "I;16": (), "LA": (2,), "RGB": (3,), "RGBA": (4,), "CMYK": (4,)}[mode]
    high, dtype = (65536, np.uint16) if mode == "I;16" else (256, np.uint8)
    values = np.random.default_rng(height * width).integers(0, high, (height, width, *channels), dtype=dtype)
    if mode == "CMYK":
        return Image.frombytes("CMYK", (width, height), values.tobytes())
    return Image.fromarray(values)


def encode(image: Image.Image, file_format: str = "PNG", **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, file_format, **options)
    return buffer.getvalue()


def question(prompt: str, *encoded: bytes, **fields) -> Record:
    """A record about encoded images, with an integer answer unless told otherwise."""
    return Record(
        **{"id": "row", "source": "test", "answer": "3", "answer_kind": "integer", **fields},
        prompt=prompt,
        images=encoded,
    )


def hub_order(grids: list[tuple[int, int, int]], unit: int = 1) -> np.ndarray:
    """Window order of transformers' vision model, in merged tokens or (unit 4) in patches."""
    index, _ = get_vision_window_index(torch.tensor(grids), 2, 56, 14)
    return (index.numpy()[:, None] * unit + np.arange(unit)).ravel()


def segments(lengths: np.ndarray) -> np.ndarray:
    return np.repeat(np.arange(1, len(lengths) + 1), lengths)
