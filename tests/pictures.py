"""Pictures and videos to encode, questions about them, and transformers' patches of them in its models' order."""

from __future__ import annotations

import io

import numpy as np
import torch
from PIL import Image
from transformers.image_processing_utils import BaseImageProcessor
from transformers.vision_utils import get_vision_window_index

from care_jax.inputs.images import ImageSpec
from care_jax.models.vision import pixels
from care_jax.structs import Record


def picture(height: int, width: int, mode: str = "RGB") -> Image.Image:
    """A random image, the same for equal sizes and modes."""
    channels = {"L": (), "I;16": (), "LA": (2,), "RGB": (3,), "RGBA": (4,), "CMYK": (4,)}[mode]
    high, dtype = (65536, np.uint16) if mode == "I;16" else (256, np.uint8)
    values = np.random.default_rng(height * width).integers(0, high, (height, width, *channels), dtype=dtype)
    if mode == "CMYK":
        return Image.frombytes("CMYK", (width, height), values.tobytes())
    return Image.fromarray(values)


def encode(image: Image.Image, file_format: str = "PNG", **options) -> bytes:
    """The image as the bytes of a file."""
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


def normalised(patches: np.ndarray, spec: ImageSpec) -> np.ndarray:
    """The values that the devices make of patches [I, F] of bytes."""
    norm = np.array([[spec.mean, spec.std]], np.float32)
    return np.asarray(pixels(patches[None], norm, patch_size=spec.patch_size, num_frames=spec.temporal_patch_size)[0])


def frames_of(num_frames: int, height: int, width: int) -> list[Image.Image]:
    """Frames of a video, each another picture."""
    whole = picture(num_frames * height, width)
    return [whole.crop((0, n * height, width, (n + 1) * height)) for n in range(num_frames)]


def hub_video(pixels_of: BaseImageProcessor, frames: list[Image.Image]) -> tuple[torch.Tensor, list[int]]:
    """Patches and grid of a video out of transformers' patches of its frames, each of which holds one frame twice."""
    outputs = pixels_of(images=frames + frames[-1:] * (len(frames) % 2), return_tensors="pt")
    _, height, width = outputs["image_grid_thw"][0].tolist()
    patches = outputs["pixel_values"].reshape(-1, 2, height * width, 3, 2, pixels_of.patch_size**2)
    merged = torch.stack([patches[:, 0, :, :, 0], patches[:, 1, :, :, 0]], dim=3)
    return merged.reshape(-1, outputs["pixel_values"].shape[1]), [len(patches), height, width]


def hub_order(grids: list[tuple[int, int, int]], unit: int = 1) -> np.ndarray:
    """Window order of transformers' vision model, in merged tokens or (unit 4) in patches."""
    index, _ = get_vision_window_index(torch.tensor(grids), 2, 56, 14)
    return (index.numpy()[:, None] * unit + np.arange(unit)).ravel()


def segments(lengths: np.ndarray) -> np.ndarray:
    """Ids from 1, each repeated by its length."""
    return np.repeat(np.arange(1, len(lengths) + 1), lengths)
