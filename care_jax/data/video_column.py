"""Columns of videos: frames that were sampled from a recording, with their rate. No recording is decoded here."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from care_jax.data.image_column import image_of
from care_jax.data.parsing import VideoFiles, is_number
from care_jax.errors import BadRowError, shown

_ENDINGS = {".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff", ".ppm", ".avif"}  # of frames in a folder
_FORM = 'give {"frames": [images] or a folder of them, "fps": frames a second}'
_MOST_FRAMES = 4096


def videos_of(value: Any, folder: Path) -> tuple[VideoFiles, ...]:
    """Reads a column of videos: a list in the prompt's order, one video alone, or None.

    Raises:
        BadRowError: an entry is no video, or a recording that would have to be decoded.
    """
    if value is None or value == "":
        return ()
    return tuple(_video_of(video, folder) for video in (value if isinstance(value, list) else [value]))


def _video_of(value: Any, folder: Path) -> VideoFiles:
    """Reads {"frames" or "video", "fps" or "sample_fps"}, of which qwen_vl_utils takes the second names."""
    fields = value if isinstance(value, Mapping) else {"frames": value}
    frames = fields.get("frames") if fields.get("frames") is not None else fields.get("video")
    fps = fields.get("fps") if fields.get("fps") is not None else fields.get("sample_fps")
    if isinstance(frames, str) and (folder / frames.removeprefix("file://")).is_dir():
        place = folder / frames.removeprefix("file://")
        frames = [str(path) for path in sorted(place.iterdir()) if path.suffix.lower() in _ENDINGS]
    if isinstance(frames, str):
        raise BadRowError(
            f"the recording {shown(frames)} cannot be decoded here; sample it, as with "
            f"ffmpeg -i VIDEO -vf fps=2 FOLDER/%05d.jpg, and {_FORM}",
            "recordings are not decoded",
        )
    if not isinstance(frames, list) or not 1 <= len(frames) <= _MOST_FRAMES:
        raise BadRowError(
            f"a video has the frames {shown(frames)}; {_FORM}, 1 to {_MOST_FRAMES}", "video without frames"
        )
    if not is_number(fps) or not 0 < fps < math.inf:
        raise BadRowError(f"a video has the fps {shown(fps)}; {_FORM}, above 0", "video without fps")
    return VideoFiles(tuple(image_of(frame, folder) for frame in frames), float(fps))
