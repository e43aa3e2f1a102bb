"""The settings for images and videos of a model folder, in the layouts of transformers 4 and 5."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from PIL import Image

from care_jax import files
from care_jax.errors import InputError, shown
from care_jax.inputs.images import RESCALE_FACTOR, ImageSpec
from care_jax.inputs.positions import PatchLayout
from care_jax.models.model_folder import Fields, read_fields

if TYPE_CHECKING:
    from care_jax.models.model_config import VisionConfig

_NESTED_FILE = "processor_config.json"  # of transformers 5, which puts all settings into this one file
_IMAGE_FILE, _VIDEO_FILE = "preprocessor_config.json", "video_preprocessor_config.json"
_MOST_PIXELS = 2**31
_LIMITS = (("min_pixels", "shortest_edge"), ("max_pixels", "longest_edge"))  # the hub's names, transformers 5's
# The defaults of Qwen2VLImageProcessor for fields that its file may leave out; another value is refused, not ignored.
_FIXED_FIELDS = {
    "do_resize": True,
    "do_rescale": True,
    "do_normalize": True,
    "do_convert_rgb": True,
    "resample": int(Image.Resampling.BICUBIC),
    "rescale_factor": RESCALE_FACTOR,
}


def read_image_spec(folder: Path, vision: VisionConfig, min_image_tokens: int, max_image_tokens: int) -> ImageSpec:
    """Reads the settings for images, and those for videos if the folder has some; otherwise the first hold for both.

    They are in processor_config.json as transformers 5 writes it, or else in preprocessor_config.json and
    video_preprocessor_config.json. Source: `get_image_processor_dict` and `get_video_processor_dict` of transformers.

    Args:
        folder: the model folder.
        vision: the vision tower, whose sizes must agree with the files.
        min_image_tokens: prompt tokens that an image has at least; tightens the limit in the file.
        max_image_tokens: prompt tokens that an image, or `temporal_patch_size` frames of a video, have at most.

    Returns:
        The settings.

    Raises:
        InputError: a field is missing or has an unsupported value, sizes differ from those of the vision tower, or the
            limits leave no size.
    """
    image, video = _find_settings(folder)
    mean, std = _check(image, vision)
    if _check(video, vision) != (mean, std):
        raise InputError(f"{video.where} has another image_mean or image_std than {image.where}; they must be the same")
    area = (vision.patch_size * vision.spatial_merge_size) ** 2
    least, most = (_pixel_limit(image, *names) for names in _LIMITS)
    video_least, video_most = (_pixel_limit(video, *names) for names in _LIMITS)
    low, high = max(least, min_image_tokens * area), min(most, max_image_tokens * area)
    if not 1 <= min_image_tokens * area <= low <= high:
        raise InputError(
            f"no image size is allowed: data.min_image_tokens={min_image_tokens}, data.max_image_tokens="
            f"{max_image_tokens} and {image.where} leave {low / area:g} to {high / area:g} tokens; "
            "lower the minimum (at least 1) or raise the maximum"
        )
    return ImageSpec(
        patch_size=vision.patch_size,
        temporal_patch_size=vision.temporal_patch_size,
        layout=PatchLayout(
            merge=vision.spatial_merge_size,
            window=vision.window_size // vision.spatial_merge_size // vision.patch_size,
            side=vision.grid_side,
        ),
        min_pixels=low,
        max_pixels=high,
        video_min_pixels=video_least,
        video_max_pixels=video_most,
        tokens_per_second=vision.tokens_per_second,
        mean=mean,
        std=std,
    )


def write_pixel_limits(folder: Path, spec: ImageSpec) -> None:
    """Writes the pixel limits of `spec` into the files of a model folder, under the names that they have there.

    A video's limits stay, except that a frame has no more pixels than an image, as `media.video_grid` counts them for
    families with a limit a frame (those with `tokens_per_second`). Files that have these limits already stay as they
    are.

    Args:
        folder: a folder that `read_image_spec` has read.
        spec: the settings of the run.
    """
    image, video = _find_settings(folder)
    wanted = (spec.min_pixels, spec.max_pixels)
    low, high = spec.video_min_pixels, spec.video_max_pixels
    if spec.tokens_per_second:
        low, high = min(low, spec.max_pixels), min(high, spec.max_pixels)
    if video is image and wanted != (low, high):  # so far one file holds for both
        files.write_text(folder / _VIDEO_FILE, _as_json(_with_limits(image.values, low, high)))
    elif video is not image:
        _write_limits(folder, "video_processor", folder / _VIDEO_FILE, low, high)
    _write_limits(folder, "image_processor", folder / _IMAGE_FILE, *wanted)


def _write_limits(folder: Path, group: str, own_file: Path, low: int, high: int) -> None:
    """Writes limits to the place where `_find_settings` finds them: a group of the nested file, or `own_file`."""
    path = folder / _NESTED_FILE
    nested = read_fields(path) if path.exists() else {}
    if isinstance(nested.get(group), dict):
        before, after = nested, nested | {group: _with_limits(nested[group], low, high)}
    else:
        path = own_file
        before = read_fields(path)
        after = _with_limits(before, low, high)
    if after != before:
        files.write_text(path, _as_json(after))


def _with_limits(values: dict[str, Any], low: int, high: int) -> dict[str, Any]:
    """The settings with other limits, under every name that they have for them."""
    changed = copy.deepcopy(values)
    size = changed.get("size")
    for (name, edge), limit in zip(_LIMITS, (low, high), strict=True):
        if changed.get(name) is not None:
            changed[name] = limit
        if isinstance(size, dict) and edge in size:
            size[edge] = limit
    return changed


def _as_json(values: dict[str, Any]) -> str:
    return json.dumps(values, indent=2) + "\n"


def _find_settings(folder: Path) -> tuple[Fields, Fields]:
    """Those for images, and those for videos."""
    nested = Fields({}, "")
    if (path := folder / _NESTED_FILE).exists():
        nested = Fields(read_fields(path), str(path))
    image_path, video_path = folder / _IMAGE_FILE, folder / _VIDEO_FILE
    if nested.has("image_processor"):
        image = nested.sub("image_processor")
    else:
        image = Fields(read_fields(image_path), str(image_path))
    if nested.has("video_processor"):
        return image, nested.sub("video_processor")
    return image, Fields(read_fields(video_path), str(video_path)) if video_path.exists() else image


def _check(fields: Fields, vision: VisionConfig) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """The mean and deviation of each channel; all other fields must agree with this code and the vision tower."""
    for name, supported in _FIXED_FIELDS.items():
        if fields.values.get(name, supported) != supported:
            raise InputError(f"{fields.where} has {name} {shown(fields.values[name])}; only {supported!r} is supported")
    needed = {
        "patch_size": vision.patch_size,
        "merge_size": vision.spatial_merge_size,
        "temporal_patch_size": vision.temporal_patch_size,
    }
    for name, size in needed.items():
        if (found := fields.count(name)) != size:
            raise InputError(f"{fields.where} has {name} {found}, config.json {size}; take both from one checkpoint")
    mean = fields.reals("image_mean", vision.in_channels)
    std = fields.reals("image_std", vision.in_channels)
    if min(std) <= 0:
        raise InputError(f"{fields.where} has image_std {std}; give image_std above 0")
    return tuple(mean), tuple(std)


def _pixel_limit(fields: Fields, name: str, edge: str) -> int:
    """A limit in pixels, under the hub's name or inside `size`, where transformers 5 writes it."""
    if fields.has(name):
        return fields.count(name, most=_MOST_PIXELS)
    size: Any = fields.values.get("size")
    if isinstance(size, dict) and edge in size:
        return fields.sub("size").count(edge, most=_MOST_PIXELS)
    raise InputError(
        f"{fields.where} has neither {name!r} nor {edge!r} in 'size'; copy the file from the source checkpoint"
    )
