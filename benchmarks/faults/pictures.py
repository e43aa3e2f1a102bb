"""Damaged pictures of eight formats: read as Pillow itself reads the same bytes, or refused."""

from __future__ import annotations

import functools
import io
import random
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps

from benchmarks.faults import damage
from benchmarks.faults.outcomes import Case
from care_jax.inputs.images import decode_image

_HEIGHT, _WIDTH = 18, 26
_MODES = {
    "png": ("1", "L", "LA", "P", "RGB", "RGBA", "I;16", "P transparent", "RGB transparent"),
    "jpeg": ("L", "RGB", "CMYK"),
    "webp": ("RGB", "RGBA"),
    "gif": ("L", "P", "P transparent"),
    "bmp": ("1", "L", "P", "RGB"),
    "tiff": ("1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "I;16"),
    "ppm": ("1", "L", "RGB", "I;16"),
    "avif": ("RGB", "RGBA"),
}
_DAMAGES = {"flipped": damage.flip, "cut": damage.cut, "inserted": damage.insert}
_BIT_DEPTH_OF_PNG = 24  # the byte that holds it
_BITS_OF_TIFF = 258  # the tag that holds them


def pictures(folder: Path, num_cases: int, seed: int) -> Iterator[Case]:
    """Yields the damages of every format and mode in turn; nothing is written to `folder`."""
    warnings.simplefilter("ignore")  # Pillow's, of files that it takes for damaged
    sound = list(_sound_files(np.random.default_rng(seed)))
    for number in range(num_cases):
        name, encoded = sound[number % len(sound)]
        kind, change = list(_DAMAGES.items())[number // len(sound) % len(_DAMAGES)]
        damaged = change(encoded, random.Random(f"{seed} {number}"))
        yield Case(f"{name} {kind} ({number}, seed {seed})", functools.partial(_is_read_right, damaged))


def _sound_files(rng: np.random.Generator) -> Iterator[tuple[str, bytes]]:
    """Yields name and bytes of a picture of each format and mode, some of them lying on their side."""
    ramp = np.linspace(0, 1, _WIDTH) * np.linspace(0.2, 1, _HEIGHT)[:, None]
    deep = (ramp * 60_000 + rng.integers(0, 5_000, ramp.shape)).astype(np.uint16)
    colours = np.stack([deep >> 8, 255 - (deep >> 8), rng.integers(0, 256, ramp.shape)], axis=-1).astype(np.uint8)
    coloured, alpha = Image.fromarray(colours), Image.fromarray((deep >> 8).astype(np.uint8))
    for file_format, modes in _MODES.items():
        for number, mode in enumerate(modes):
            plain, _, is_transparent = mode.partition(" ")
            image = Image.fromarray(deep) if mode == "I;16" else coloured.convert(plain)
            if plain in ("LA", "RGBA"):
                image.putalpha(alpha)
            options: dict[str, Any] = {}
            if is_transparent:
                options["transparency"] = 3 if plain == "P" else image.getpixel((4, 4))
            if file_format in ("png", "jpeg", "webp", "tiff") and number % 2:
                exif = Image.Exif()
                exif[0x0112] = 6
                options["exif"] = exif
            if file_format == "tiff" and number % 3 == 0:
                options["compression"] = "tiff_adobe_deflate"
            file = io.BytesIO()
            image.save(file, file_format, **options)
            yield f"{mode} {file_format}", file.getvalue()


def _is_read_right(encoded: bytes) -> bool:
    """Reads a picture both ways; raises InputError if the project's reader refuses it."""
    return np.array_equal(np.asarray(decode_image(encoded)), _pixels(encoded))


def _pixels(encoded: bytes) -> npt.NDArray[np.uint8]:
    """Reads a picture with Pillow: upright, the high byte of deep samples, laid over white."""
    image: Image.Image = Image.open(io.BytesIO(encoded))
    image.load()
    bits = 8
    if image.format == "PNG":
        bits = encoded[_BIT_DEPTH_OF_PNG]
    elif image.format == "TIFF":
        bits = image.tag_v2.get(_BITS_OF_TIFF, (1,))[0]  # type: ignore[attr-defined]
    elif image.mode == "I":
        bits = 16
    image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I"):
        grey = np.asarray(image) // 2 ** (bits - 8)
        return np.stack([grey] * 3, axis=-1).astype(np.uint8)
    if "A" in image.getbands() or "transparency" in image.info:
        drawn = np.asarray(image.convert("RGBA")).astype(int)
        alpha = drawn[..., 3:]
        return np.rint((drawn[..., :3] * alpha + 255 * (255 - alpha)) / 255).astype(np.uint8)
    return np.asarray(image.convert("RGB"))
