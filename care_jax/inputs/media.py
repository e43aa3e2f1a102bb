"""The images and videos of a record, in the order of their marks in the prompt: frames, grids, and their text.

A grid is (frames, height, width) in patches, Hugging Face's `grid_thw`. The families differ in videos. Qwen2.5-VL has
one run of vision tokens a video, whose M-RoPE positions encode the time, and limits the pixels of a frame. Qwen3-VL has
one run for each patch in time, writes the time into the text before it, and limits the pixels of all frames together.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Callable, Sequence

from PIL import Image

from care_jax.errors import BadRowError, InputError, shown
from care_jax.inputs.images import ImageSpec, decode_image, image_grid, smart_resize
from care_jax.inputs.positions import GridTHW, count_tokens
from care_jax.structs import Record, Video

MARKS = ("<image>", "<video>")
MARK_PATTERN = re.compile("(" + "|".join(MARKS) + ")")


@dataclasses.dataclass(frozen=True)
class VisionItem:
    """A decoded still image (fps 0), or the decoded frames of a video, all of one size."""

    frames: tuple[Image.Image, ...]
    fps: float = 0.0  # frames a second, of the frames that are here

    @property
    def height(self) -> int:
        """Pixels."""
        return self.frames[0].height

    @property
    def width(self) -> int:
        """Pixels."""
        return self.frames[0].width


def decode_items(
    record: Record, spec: ImageSpec, decode: Callable[[bytes], Image.Image] = decode_image
) -> list[VisionItem]:
    """Decodes the record's images and videos, in the order of their marks.

    `decode` may be `images.open_image`, for their sizes alone.

    Raises:
        BadRowError: the marks do not agree with the images and videos, or one of these cannot be read; the message
            names the record.
    """
    marks = MARK_PATTERN.findall(record.prompt)
    for mark, name, count in (("<image>", "images", len(record.images)), ("<video>", "videos", len(record.videos))):
        if marks.count(mark) != count:
            raise BadRowError(
                f"record {shown(record.id)} has {marks.count(mark)} {mark} marks in its prompt and {count} {name}; "
                f"give one mark for each of its {name}"
            )
    encoded, videos = iter(record.images), iter(record.videos)
    try:
        return [
            VisionItem((decode(next(encoded)),)) if mark == "<image>" else _decode_video(next(videos), spec, decode)
            for mark in marks
        ]
    except InputError as error:
        raise BadRowError(f"record {shown(record.id)}: {error}", "unusable image") from error


def _decode_video(video: Video, spec: ImageSpec, decode: Callable[[bytes], Image.Image]) -> VisionItem:
    at_least = 1 if spec.tokens_per_second else spec.temporal_patch_size  # as the families' video processors have it
    if len(video.frames) < at_least or not 0 < video.fps < math.inf:
        raise InputError(
            f"a video of {len(video.frames)} frames at {video.fps} a second; give {at_least} or more, at a finite rate "
            "above 0"
        )
    decoded = tuple(decode(frame) for frame in video.frames)
    sizes = {frame.size for frame in decoded}
    if len(sizes) > 1:
        raise InputError(f"the frames of a video have sizes {sorted(sizes)}; give frames of one size")
    return VisionItem(decoded, video.fps)


def video_grid(num_frames: int, height: int, width: int, spec: ImageSpec, max_pixels: int) -> GridTHW:
    """Computes the grid of a video with frames of the given size in pixels; `max_pixels` is the limit of a frame."""
    together = 1
    if not spec.tokens_per_second:
        together = num_frames
        if min(height, width) < spec.factor:
            scale = max(spec.factor / height, spec.factor / width)
            height, width = int(height * scale), int(width * scale)
    limit = min(spec.video_max_pixels, max_pixels * together)
    new_height, new_width = smart_resize(
        height,
        width,
        factor=spec.factor,
        min_pixels=min(spec.video_min_pixels, limit),
        max_pixels=limit,
        num_frames=together,
        frame_step=1 if spec.tokens_per_second else spec.temporal_patch_size,
    )
    times = -(-num_frames // spec.temporal_patch_size)
    return times, new_height // spec.patch_size, new_width // spec.patch_size


def item_grid(item: VisionItem, spec: ImageSpec, max_pixels: int) -> GridTHW:
    """Computes the grid of an image or a video; `max_pixels` is the limit of an image or of a frame."""
    if item.fps:
        return video_grid(len(item.frames), item.height, item.width, spec, max_pixels)
    return image_grid(item.height, item.width, spec, max_pixels)


def fit_grids(items: Sequence[VisionItem], spec: ImageSpec, room: int) -> list[GridTHW] | None:
    """Shrinks images and videos until they take at most `room` tokens together.

    The same limit of tokens an image or frame, the largest that fits, holds for all, so the largest shrink first.

    Returns:
        Their grids, or None if even images of `min_pixels` take more.
    """
    low, high = math.ceil(spec.min_pixels / spec.factor**2), spec.max_pixels // spec.factor**2
    best = None
    while low <= high:
        limit = (low + high) // 2
        grids = [item_grid(item, spec, limit * spec.factor**2) for item in items]
        if count_tokens(grids, spec.layout.merge) <= room:
            best, low = grids, limit + 1
        else:
            high = limit - 1
    return best


def video_texts(item: VisionItem, spec: ImageSpec, token_text: str) -> list[str]:
    """Returns the text in the prompt for each run of vision tokens of a video; `token_text` stands for the run itself.

    Source of the times: Qwen3-VL's processor in transformers 4.57, where they and their runs replace the template's
    vision tokens. transformers 5.23 keeps the template's tokens around the whole, which the checkpoints have never
    seen.
    """
    if spec.tokens_per_second:
        return [token_text]
    span, last = spec.temporal_patch_size, len(item.frames) - 1
    spans = [(first, min(first + span - 1, last)) for first in range(0, last + 1, span)]
    # Each division before the sum, as in the reference: the printed digit may depend on it.
    return [f"<{(first / item.fps + end / item.fps) / 2:.1f} seconds>{token_text}" for first, end in spans]


def token_runs(item: VisionItem, grid: GridTHW, spec: ImageSpec) -> list[tuple[GridTHW, float]]:
    """Returns the grid of each run of vision tokens, and its M-RoPE positions from one patch in time to the next."""
    if not item.fps or not spec.tokens_per_second:
        return [((1, *grid[1:]), 1.0)] * grid[0]
    return [(grid, spec.tokens_per_second * (spec.temporal_patch_size / item.fps))]
