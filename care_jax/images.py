"""Pixels to patches on the host, with the tables that say where each patch lies.

Patches of an image leave here in window order, in units of one merged token (merge * merge patches),
so that no device ever permutes them. A 6 x 6 grid with merge 2 and windows of 2 x 2 merged tokens:

    merged tokens, reading order      window order            window_ids of the merged tokens
        0 1 | 2                       0 1 3 4 | 2 5 | 6 7 | 8        1 1 1 1 2 2 3 3 4
        3 4 | 5
        ---------
        6 7 | 8
"""

from __future__ import annotations

import dataclasses
import functools
import io
import json
import math
import struct
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import numpy.typing as npt
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError

if TYPE_CHECKING:
    from care_jax.models.model_config import VisionConfig

Grid = tuple[int, int, int]  # (frames, height, width) in patches

_MAX_ASPECT_RATIO = 200  # of the Qwen2-VL image processor
_RESCALE_FACTOR = 1 / 255
# What the class Qwen2VLImageProcessor does where its file does not say; another value is refused, not ignored.
_FIXED_FIELDS = {
    "do_resize": True,
    "do_rescale": True,
    "do_normalize": True,
    "do_convert_rgb": True,
    "resample": int(Image.Resampling.BICUBIC),
    "rescale_factor": _RESCALE_FACTOR,
}


@dataclasses.dataclass(frozen=True)
class ImageSpec:
    """What preprocessor_config.json and the vision part of config.json say about images."""

    patch_size: int  # pixels
    merge_size: int  # patches a side of one merged token
    temporal_patch_size: int  # frames of a patch; a still image is repeated to fill them
    window_size: int  # merged tokens a side of one attention window
    min_pixels: int
    max_pixels: int
    mean: tuple[float, ...]  # a channel
    std: tuple[float, ...]  # a channel

    @property
    def factor(self) -> int:
        """Pixels a side of one merged token."""
        return self.patch_size * self.merge_size

    @property
    def patch_values(self) -> int:
        """F, values of one patch."""
        return len(self.mean) * self.temporal_patch_size * self.patch_size**2


def read_fields(path: Path, *names: str) -> dict[str, Any]:
    """The JSON object in a file of the model folder. Raises ValueError without the file or one of the fields."""
    if not path.is_file():
        raise ValueError(f"{path.parent} has no {path.name}; give the complete folder of a Hugging Face checkpoint")
    fields: dict[str, Any] = json.loads(path.read_text())
    for name in names:
        if name not in fields:
            raise ValueError(f"{path} has no field {name!r}; copy the file from the source checkpoint")
    return fields


def read_image_spec(folder: Path, vision: VisionConfig, min_image_tokens: int, max_image_tokens: int) -> ImageSpec:
    """Reads preprocessor_config.json; the limits, in prompt tokens an image, tighten its own.

    Raises ValueError for a missing field, one this code does not follow, sizes that differ from those of the vision
    tower, and limits that leave no size.
    """
    path = folder / "preprocessor_config.json"
    fields = read_fields(path, "patch_size", "merge_size", "temporal_patch_size", "image_mean", "image_std")
    for name, value in _FIXED_FIELDS.items():
        if name in fields and fields[name] != value:
            raise ValueError(f"{path} has {name} {fields[name]!r}; only {value!r} is supported")
    for name, value in (
        ("patch_size", vision.patch_size),
        ("merge_size", vision.spatial_merge_size),
        ("temporal_patch_size", vision.temporal_patch_size),
    ):
        if fields[name] != value:
            raise ValueError(f"{path} has {name} {fields[name]}, config.json {value}; take both from one checkpoint")
    area = (vision.patch_size * vision.spatial_merge_size) ** 2
    low = max(_pixel_limit(path, fields, "min_pixels", "shortest_edge"), min_image_tokens * area)
    high = min(_pixel_limit(path, fields, "max_pixels", "longest_edge"), max_image_tokens * area)
    if not 1 <= min_image_tokens * area <= low <= high:
        raise ValueError(
            f"images must have {low / area:g} to {high / area:g} tokens after data.min_image_tokens {min_image_tokens},"
            f" data.max_image_tokens {max_image_tokens} and the limits in {path}; widen the first two, from 1 up"
        )
    return ImageSpec(
        patch_size=vision.patch_size,
        merge_size=vision.spatial_merge_size,
        temporal_patch_size=vision.temporal_patch_size,
        window_size=vision.window_size // vision.spatial_merge_size // vision.patch_size,
        min_pixels=low,
        max_pixels=high,
        mean=tuple(fields["image_mean"]),
        std=tuple(fields["image_std"]),
    )


def _pixel_limit(path: Path, fields: dict[str, Any], name: str, edge: str) -> int:
    """A limit in pixels, under the hub's name or inside `size`, where transformers 5 writes it."""
    if name in fields and fields[name] is not None:
        return fields[name]
    if "size" in fields and edge in fields["size"]:
        return fields["size"][edge]
    raise ValueError(f"{path} has neither {name!r} nor {edge!r} in 'size'; copy the file from the source checkpoint")


class GridTables(NamedTuple):
    """Tables of one grid; all in window order but `vision_index`."""

    order: npt.NDArray[np.int32]  # [n] reading-order index of each merged token
    vision_index: npt.NDArray[np.int32]  # [n] row, in window order, of each merged token in reading order
    patch_position_ids: npt.NDArray[np.int32]  # [n * merge**2, 2] (height, width) of each patch
    window_ids: npt.NDArray[np.int32]  # [n * merge**2] from 1
    frame_ids: npt.NDArray[np.int32]  # [n * merge**2] from 1


def smart_resize(height: int, width: int, *, factor: int, min_pixels: int, max_pixels: int) -> tuple[int, int]:
    """The (height, width) an image is resized to: multiples of `factor`, area within the limits.

    Takes sizes and areas in pixels. Rounds halves to the even multiple, as Python's `round` does and the
    checkpoints were trained with. Raises ValueError past an aspect ratio of 200.
    Source: `smart_resize` of transformers' Qwen2-VL image processor; qwen_vl_utils differs at tiny sides.
    """
    if height < 1 or width < 1:
        raise ValueError(f"an image of {height} x {width} pixels has no area; drop it from the data")
    ratio = max(height, width) / min(height, width)
    if ratio > _MAX_ASPECT_RATIO:
        raise ValueError(
            f"an image of {height} x {width} pixels has aspect ratio {ratio:.1f}, allowed is {_MAX_ASPECT_RATIO}; "
            "crop or pad it"
        )
    new_height, new_width = round(height / factor) * factor, round(width / factor) * factor
    if new_height * new_width > max_pixels:
        # The order of the divisions is transformers'; another order floors differently at exact multiples.
        scale = math.sqrt((height * width) / max_pixels)
        new_height = max(factor, math.floor(height / scale / factor) * factor)
        new_width = max(factor, math.floor(width / scale / factor) * factor)
    elif new_height * new_width < min_pixels:
        scale = math.sqrt(min_pixels / (height * width))
        new_height = math.ceil(height * scale / factor) * factor
        new_width = math.ceil(width * scale / factor) * factor
    return new_height, new_width


def decode_image(encoded: bytes) -> Image.Image:
    """An encoded image (PNG, JPEG, ...) as upright 8-bit RGB.

    EXIF orientation is applied, as transformers 5 does to a file; transparency is laid over white, as it does to a
    PIL image; samples deeper than 8 bits are converted as Pillow converts them (16-bit grey saturates at 255).
    Raises ValueError when the bytes are no readable image.
    """
    try:
        image: Image.Image = Image.open(io.BytesIO(encoded))
        image.load()
        if image.getexif().get(ExifTags.Base.Orientation, 1) != 1:
            image = ImageOps.exif_transpose(image)
        # Dropping the alpha channel instead would turn the black-on-transparent drawings of geometry sets all black.
        if "A" in image.getbands() or image.info.get("transparency") is not None:
            image = image.convert("RGBA")
            white = Image.new("RGBA", image.size, (255, 255, 255, 255))
            image = Image.alpha_composite(white, image)
        return image if image.mode == "RGB" else image.convert("RGB")
    except UnidentifiedImageError as error:
        raise ValueError(f"{len(encoded)} bytes are no readable image (unknown format); give PNG or JPEG") from error
    except (OSError, SyntaxError, EOFError, struct.error, ValueError, Image.DecompressionBombError) as error:
        raise ValueError(f"{len(encoded)} bytes are no readable image ({error}); give PNG or JPEG") from error


def image_grid(height: int, width: int, spec: ImageSpec, max_pixels: int) -> Grid:
    """The grid (frames, height, width) in patches of a still image of the given size in pixels."""
    new_height, new_width = smart_resize(
        height, width, factor=spec.factor, min_pixels=spec.min_pixels, max_pixels=max_pixels
    )
    return 1, new_height // spec.patch_size, new_width // spec.patch_size


def count_tokens(grids: Sequence[Grid], merge: int) -> int:
    """Merged tokens of several grids."""
    return sum(t * (h // merge) * (w // merge) for t, h, w in grids)


def fit_grids(sizes: Sequence[tuple[int, int]], spec: ImageSpec, room: int) -> list[Grid] | None:
    """The grids of still images, (height, width) in pixels, that together take at most `room` tokens.

    One limit of tokens an image, the largest that fits, holds for all, so the largest images shrink first. None
    where even the limit of `min_pixels` takes more.
    """
    low, high = math.ceil(spec.min_pixels / spec.factor**2), spec.max_pixels // spec.factor**2
    best = None
    while low <= high:
        limit = (low + high) // 2
        grids = [image_grid(height, width, spec, limit * spec.factor**2) for height, width in sizes]
        if count_tokens(grids, spec.merge_size) <= room:
            best, low = grids, limit + 1
        else:
            high = limit - 1
    return best


def patchify(image: Image.Image, grid: Grid, spec: ImageSpec) -> npt.NDArray[np.float32]:
    """Resizes an RGB image to its grid, normalises it and cuts it into patches in window order.

    Returns [I, F] float32; the values of a patch are (channel, time, height, width), equal bit for bit to
    transformers' `Qwen2VLImageProcessorPil` after the window permutation of its vision model.
    """
    _, grid_h, grid_w = grid
    size, merge, channels = spec.patch_size, spec.merge_size, len(spec.mean)
    pixels = np.asarray(image.resize((grid_w * size, grid_h * size), Image.Resampling.BICUBIC))
    blocks = pixels.reshape(grid_h // merge, merge, size, grid_w // merge, merge, size, channels)
    merged = blocks.transpose(0, 3, 1, 4, 6, 2, 5).reshape(-1, merge * merge, channels, size * size)
    order = grid_tables(grid, merge, spec.window_size).order
    values = merged[order].reshape(-1, channels, size * size)
    table = _pixel_table(spec.mean, spec.std)
    patches = np.empty((len(values), channels, spec.temporal_patch_size, size * size), np.float32)
    for channel in range(channels):
        patches[:, channel] = table[channel][values[:, channel]][:, None]
    return patches.reshape(len(values), -1)


@functools.lru_cache(maxsize=8)
def _pixel_table(mean: tuple[float, ...], std: tuple[float, ...]) -> npt.NDArray[np.float32]:
    """[C, 256] the normalised value of each byte: the product in float64, the rest in float32, as transformers."""
    scaled = (np.arange(256, dtype=np.float64) * _RESCALE_FACTOR).astype(np.float32)
    return (scaled - np.asarray(mean, np.float32)[:, None]) / np.asarray(std, np.float32)[:, None]


@functools.lru_cache(maxsize=4096)
def grid_tables(grid: Grid, merge: int, window: int) -> GridTables:
    """The tables of a grid (frames, height, width) in patches, for windows of `window` merged tokens a side.

    A frame's windows are never shared with another frame; windows at the right and lower edge are smaller.
    Source: Qwen2.5-VL technical report (arXiv 2502.13923) section 2.1, checked against transformers.
    """
    frames, height, width = grid[0], grid[1] // merge, grid[2] // merge
    t, h, w = (axis.ravel() for axis in np.indices((frames, height, width)))
    windows_h, windows_w = -(-height // window), -(-width // window)
    window_of = (t * windows_h + h // window) * windows_w + w // window
    order = np.argsort(window_of, kind="stable")
    in_h, in_w = (axis.ravel() for axis in np.indices((merge, merge)))
    positions = np.stack([h[order, None] * merge + in_h, w[order, None] * merge + in_w], axis=-1)
    tables = GridTables(
        order=order.astype(np.int32),
        vision_index=np.argsort(order).astype(np.int32),
        patch_position_ids=positions.reshape(-1, 2).astype(np.int32),
        window_ids=np.repeat(window_of[order] + 1, merge * merge).astype(np.int32),
        frame_ids=np.repeat(t[order] + 1, merge * merge).astype(np.int32),
    )
    for table in tables:
        table.setflags(write=False)  # shared by every example with this grid
    return tables


def mrope_position_ids(
    vision_mask: npt.NDArray[np.bool_],
    grids: list[Grid],
    time_steps: list[float],
    *,
    merge: int,
) -> npt.NDArray[np.int32]:
    """M-RoPE positions [3, P] (time, height, width) of a prompt whose vision tokens lie where the mask is True.

    `grids` holds (frames, height, width) in patches, one a vision item in order; `time_steps` the positions from
    one frame to the next, rounded down a frame (1 for images; tokens_per_second * seconds for videos). Text counts
    on all three axes alike and continues after an item at the largest position over all axes plus one.
    Source: Qwen2-VL (arXiv 2409.12191) section 2.1. Raises ValueError when mask and grids disagree.
    """
    tokens = [t * (h // merge) * (w // merge) for t, h, w in grids]
    if sum(tokens) != int(vision_mask.sum()):
        raise ValueError(f"{int(vision_mask.sum())} vision tokens given for grids {grids} that need {sum(tokens)}")
    positions = np.empty((3, len(vision_mask)), np.int32)
    starts = np.flatnonzero(vision_mask)[np.cumsum([0, *tokens[:-1]])] if grids else []
    done, position = 0, 0
    for start, count, (t, h, w), step in zip(starts, tokens, grids, time_steps, strict=True):
        positions[:, done:start] = np.arange(position, position + start - done)
        position += start - done
        time, row, column = np.indices((t, h // merge, w // merge)).reshape(3, -1)
        positions[:, start : start + count] = np.stack([np.floor(time * step).astype(int), row, column]) + position
        done, position = start + count, int(positions[:, start : start + count].max()) + 1
    positions[:, done:] = np.arange(position, position + len(vision_mask) - done)
    return positions
