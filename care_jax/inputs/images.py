"""Pixels to patches on the host: decoding images, resizing them, and cutting them into patches.

A still image has one frame, which the devices repeat to fill a patch in time; a video with an odd number of frames
repeats the last one.
"""

from __future__ import annotations

import dataclasses
import io
import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from PIL import ExifTags, Image, UnidentifiedImageError, features

from care_jax.errors import InputError, shown
from care_jax.inputs import image_samples
from care_jax.inputs.positions import GridTHW, PatchLayout, patch_tables

# Formats that are decoded, by Pillow's names: no EPS or PDF, which other programs draw. Some builds have no AVIF.
FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "PPM", *(("AVIF",) if features.check("avif") else ()))
MAX_PIXELS = 1 << 26  # of an image as it is stored; 8192 x 8192, which takes up to 0.6 GB while it is decoded
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}  # EXIF orientation -> what undoes it
_MAX_ASPECT_RATIO = 200  # of the Qwen2-VL image processor
RESCALE_FACTOR = 1 / 255  # of a byte


@dataclasses.dataclass(frozen=True)
class ImageSpec:
    """The settings for images and videos in the preprocessor files and the vision part of config.json."""

    patch_size: int  # pixels
    temporal_patch_size: int  # frames of a patch
    layout: PatchLayout
    min_pixels: int  # of a still image
    max_pixels: int  # of a still image, and of a frame of a video
    # Limits of a video: for each frame if `tokens_per_second` is not 0, else for all its frames together.
    video_min_pixels: int
    video_max_pixels: int
    tokens_per_second: float  # M-RoPE positions of a second of video; 0: the prompt's text gives the time of each frame
    mean: tuple[float, ...]  # a channel
    std: tuple[float, ...]  # a channel

    @property
    def factor(self) -> int:
        """Pixels a side of one merged token."""
        return self.patch_size * self.layout.merge

    @property
    def frame_values(self) -> int:
        """Values of one frame of a patch."""
        return len(self.mean) * self.patch_size**2

    @property
    def patch_values(self) -> int:
        """Values of one flattened patch with all its frames."""
        return self.frame_values * self.temporal_patch_size

    @property
    def grid_cells(self) -> int:
        """Cells of the learned position grid that a patch takes its position from."""
        return 4 if self.layout.side else 0


def smart_resize(
    height: int, width: int, *, factor: int, min_pixels: int, max_pixels: int, num_frames: int = 1, frame_step: int = 1
) -> tuple[int, int]:
    """Computes the size an image or frame is resized to: multiples of `factor`, with an area within the limits.

    Halves are rounded to the even multiple, as Python's `round` does and as the checkpoints were trained. Source:
    `smart_resize` of transformers' Qwen2-VL image and Qwen3-VL video processors; qwen_vl_utils differs at tiny sides.

    Args:
        height: pixels.
        width: pixels.
        factor: pixels a side of one merged token.
        min_pixels: lower limit of the area of `num_frames` frames together.
        max_pixels: upper limit, likewise.
        num_frames: frames of a video; 1 for an image.
        frame_step: frames of a patch; the limits count `num_frames` as its nearest multiple.

    Returns:
        (height, width) in pixels.

    Raises:
        InputError: the image has no area, or its aspect ratio is above 200.
    """
    if height < 1 or width < 1:
        raise InputError(f"an image of {height} x {width} pixels has no area; drop it from the data")
    ratio = max(height, width) / min(height, width)
    if ratio > _MAX_ASPECT_RATIO:
        raise InputError(
            f"an image of {height} x {width} pixels has aspect ratio {ratio:.1f}, allowed is {_MAX_ASPECT_RATIO}; "
            "crop or pad it"
        )
    new_height, new_width = round(height / factor) * factor, round(width / factor) * factor
    area = round(num_frames / frame_step) * frame_step * new_height * new_width
    if area > max_pixels:
        # The order of the divisions is transformers'; another order floors differently at exact multiples.
        scale = math.sqrt((num_frames * height * width) / max_pixels)
        new_height = max(factor, math.floor(height / scale / factor) * factor)
        new_width = max(factor, math.floor(width / scale / factor) * factor)
    elif area < min_pixels:
        scale = math.sqrt(min_pixels / (num_frames * height * width))
        new_height = math.ceil(height * scale / factor) * factor
        new_width = math.ceil(width * scale / factor) * factor
    return new_height, new_width


def decode_image(encoded: bytes) -> Image.Image:
    """Decodes the bytes of an image file to upright 8-bit RGB; of several frames or pages, the first.

    EXIF orientation is applied, as transformers 5 does to a file; transparency is laid over white, as it does to a PIL
    image; 12-bit and 16-bit samples keep their high byte (`image_samples`).

    Raises:
        InputError: the bytes have another format than FORMATS, more than MAX_PIXELS pixels, samples that cannot be
            scaled, or damage of any kind.
    """
    try:
        image: Image.Image = Image.open(io.BytesIO(encoded), formats=FORMATS)
        if image.width * image.height > MAX_PIXELS:
            raise Image.DecompressionBombError
        bits = image_samples.sample_bits(image)
        image.load()
        image = image_samples.to_8_bits(_upright(image), bits)
        # Dropping the alpha channel instead would turn the black-on-transparent drawings of geometry sets all black.
        if "A" in image.getbands() or image.info.get("transparency") is not None:
            drawn = image.convert("RGBA")
            image = Image.new("RGB", image.size, "white")
            image.paste(drawn, mask=drawn)
        return image if image.mode == "RGB" else image.convert("RGB")
    except InputError:
        raise
    except UnidentifiedImageError:
        raise InputError(f"{len(encoded)} bytes are not a readable image; give one of {', '.join(FORMATS)}") from None
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise InputError(f"the image has more than {MAX_PIXELS:,} pixels; scale it down") from None
    except Exception as error:  # decoders raise RuntimeError, SyntaxError, MemoryError and more for damaged files
        reason = f"{type(error).__name__} {shown(str(error))}"
        raise InputError(f"{len(encoded)} bytes are not a readable image ({reason}); save it anew") from error


def open_image(encoded: bytes) -> Image.Image:
    """Opens the bytes of an image file for its size alone: no pixel is decoded, and EXIF orientation is not applied.

    Raises:
        InputError: the bytes have another format than FORMATS, or their header is damaged.
    """
    try:
        return Image.open(io.BytesIO(encoded), formats=FORMATS)
    except Exception as error:  # as `decode_image`
        raise InputError(f"{len(encoded)} bytes are not a readable image; give one of {', '.join(FORMATS)}") from error


def _upright(image: Image.Image) -> Image.Image:
    """Turns an image as its EXIF orientation says."""
    turn = _TURNS.get(image.getexif().get(ExifTags.Base.Orientation, 1))
    return image if turn is None else image.transpose(turn)


def image_grid(height: int, width: int, spec: ImageSpec, max_pixels: int) -> GridTHW:
    """Computes the grid (frames, height, width) in patches of a still image of the given size in pixels."""
    new_height, new_width = smart_resize(
        height, width, factor=spec.factor, min_pixels=spec.min_pixels, max_pixels=max_pixels
    )
    return 1, new_height // spec.patch_size, new_width // spec.patch_size


def patchify(frames: Sequence[Image.Image], grid: GridTHW, spec: ImageSpec) -> npt.NDArray[np.uint8]:
    """Resizes RGB frames to their grid and cuts them into patches, frame by frame in window order.

    Pillow resizes the frames of a video too; transformers' video processors use torchvision for that.

    Args:
        frames: one image, or the frames of a video.
        grid: their size in patches.
        spec: how to resize.

    Returns:
        [I, F] bytes; the values of a patch are (channel, frame, height, width), with one frame if only one is given.
        Normalised on the devices they are those of transformers' `Qwen2VLImageProcessorPil` after the window
        permutation of its vision model.
    """
    times, grid_h, grid_w = grid
    order = patch_tables((1, grid_h, grid_w), spec.layout).order
    span = spec.temporal_patch_size if len(frames) > 1 else 1
    patches = []
    for time in range(times):
        cut = [_cut(frame, grid_h, grid_w, spec)[order] for frame in frames[time * span : (time + 1) * span]]
        cut += cut[-1:] * (span - len(cut))
        patches.append(np.stack(cut, axis=3).reshape(grid_h * grid_w, -1))
    return np.concatenate(patches)


def with_frames(patches: npt.NDArray[np.uint8], values: int, spec: ImageSpec) -> npt.NDArray[np.uint8]:
    """Repeats the only frame of each patch, [I, F] -> [I, values], unless it has all of its frames already."""
    if patches.shape[1] == values:
        return patches
    frame = patches.reshape(len(patches), len(spec.mean), 1, spec.patch_size**2)
    return frame.repeat(values // spec.frame_values, axis=2).reshape(len(patches), values)


def _cut(image: Image.Image, grid_h: int, grid_w: int, spec: ImageSpec) -> npt.NDArray[np.uint8]:
    """Cuts a resized frame into bytes [merged tokens, patches of one, C, height * width], in reading order."""
    size, merge, channels = spec.patch_size, spec.layout.merge, len(spec.mean)
    pixels = np.asarray(image.resize((grid_w * size, grid_h * size), Image.Resampling.BICUBIC))
    blocks = pixels.reshape(grid_h // merge, merge, size, grid_w // merge, merge, size, channels)
    return blocks.transpose(0, 3, 1, 4, 6, 2, 5).reshape(-1, merge * merge, channels, size * size)
