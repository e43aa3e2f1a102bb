"""Pixels and tables against transformers' own image processor and modelling code, and by hand."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps
from transformers import AutoImageProcessor
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import smart_resize as smart_resize_hf
from transformers.vision_utils import get_vision_cu_seqlens, get_vision_position_ids, get_vision_window_index

from care_jax import images
from care_jax.models.model_config import load_model_config
from tests.pictures import encode, hub_order, picture, segments

# Heights and widths in pixels: one window, less than one, many, odd grids, halves that round to even, slim ones.
SIZES = [(84, 84), (56, 56), (28, 112), (140, 84), (196, 252), (42, 70), (20, 300), (13, 9), (500, 333)]
# Grids in patches, windows of 2 x 2 merged tokens: exact multiples, smaller than a window, odd remainders.
GRIDS = [(1, 4, 4), (1, 2, 2), (1, 6, 6), (1, 2, 10), (1, 10, 6), (1, 8, 14), (3, 6, 4)]


@pytest.fixture(scope="module")
def spec(tiny_folder: Path) -> images.ImageSpec:
    return images.read_image_spec(tiny_folder, load_model_config(tiny_folder).vision, 4, 64)


@pytest.fixture(scope="module")
def hub(tiny_folder: Path, spec: images.ImageSpec) -> Qwen2VLImageProcessorPil:
    size = {"shortest_edge": spec.min_pixels, "longest_edge": spec.max_pixels}
    return AutoImageProcessor.from_pretrained(tiny_folder, backend="pil", size=size)


def assert_equal_to_hub(encoded: bytes, image: Image.Image, spec: images.ImageSpec, hub: Qwen2VLImageProcessorPil):
    """Our patches of the file are, bit for bit, the hub's of the image, in window order."""
    wanted = hub(image, return_tensors="np")
    decoded = images.decode_image(encoded)
    grid = images.image_grid(decoded.height, decoded.width, spec, spec.max_pixels)
    patches = images.patchify(decoded, grid, spec)
    assert wanted["image_grid_thw"].tolist() == [list(grid)]
    assert patches.dtype == np.float32
    assert np.array_equal(patches, wanted["pixel_values"][hub_order([grid], 4)])


@pytest.mark.parametrize(("factor", "low", "high"), [(28, 3136, 200704), (28, 3136, 50176), (32, 65536, 16777216)])
def test_smart_resize_equals_transformers(factor, low, high):
    """Catches half-up rounding (42 px must go to 56, 70 px to 56 too) and another order of the divisions."""
    sides = [1, 9, 13, 14, 28, 41, 42, 43, 70, 84, 98, 126, 199, 333, 448, 777, 2000]
    for height in sides:
        for width in sides:
            if max(height, width) / min(height, width) <= 200:
                limits = {"factor": factor, "min_pixels": low, "max_pixels": high}
                assert images.smart_resize(height, width, **limits) == smart_resize_hf(height, width, **limits)


def test_smart_resize_refuses_slim_images():
    assert images.smart_resize(1, 200, factor=28, min_pixels=784, max_pixels=78400) == (28, 420)
    with pytest.raises(ValueError, match="1 x 201 pixels has aspect ratio 201.0, allowed is 200"):
        images.smart_resize(1, 201, factor=28, min_pixels=784, max_pixels=78400)


@pytest.mark.parametrize("size", SIZES)
def test_patches_equal_transformers_bit_for_bit(spec, hub, size):
    """Catches a wrong layout inside a patch, a wrong resampling filter and another order of float operations."""
    image = picture(*size)
    assert_equal_to_hub(encode(image), image, spec, hub)


def palette_png(transparent: bool) -> bytes:
    image = picture(60, 80).quantize(16)
    return encode(image, transparency=3) if transparent else encode(image)


@pytest.mark.parametrize(
    "encoded",
    [
        encode(picture(60, 80, "RGBA")),
        encode(picture(60, 80, "L")),
        encode(picture(60, 80, "LA")),
        encode(picture(60, 80, "I;16")),
        encode(picture(60, 80, "L").convert("1")),
        encode(picture(60, 80, "CMYK"), "JPEG"),
        palette_png(False),
        palette_png(True),
    ],
    ids=["RGBA", "L", "LA", "I;16", "1", "CMYK", "P", "P-transparent"],
)
def test_image_modes_equal_transformers(spec, hub, encoded):
    """Catches transparency dropped instead of laid over white, and modes that reach the resize unconverted."""
    assert_equal_to_hub(encoded, Image.open(io.BytesIO(encoded)), spec, hub)


def test_exif_orientation_is_applied(spec, hub):
    """Catches photos read lying on their side: a photo 140 wide and 60 high tagged "rotate 90" stands upright."""
    exif = Image.Exif()
    exif[0x0112] = 6
    encoded = encode(picture(60, 140), "JPEG", exif=exif.tobytes())
    upright = ImageOps.exif_transpose(Image.open(io.BytesIO(encoded)))
    assert upright.size == (60, 140)
    assert_equal_to_hub(encoded, upright, spec, hub)


def test_transparent_drawing_stays_visible():
    """Catches black lines on transparent ground read as an all-black picture."""
    drawing = Image.new("RGBA", (4, 4), (0, 0, 0, 0))
    drawing.putpixel((1, 2), (0, 0, 0, 255))
    pixels = np.asarray(images.decode_image(encode(drawing)))
    assert pixels[2, 1].tolist() == [0, 0, 0]
    assert pixels.sum() == 15 * 3 * 255


@pytest.mark.parametrize("grid", GRIDS)
def test_window_order_and_positions_equal_transformers(grid):
    """Catches windows cut in patches instead of merged tokens, edge windows dropped, frames sharing a window."""
    tables = images.grid_tables(grid, 2, 2)
    tensor = torch.tensor([grid])
    index, cumulative = get_vision_window_index(tensor, 2, 56, 14)
    assert np.array_equal(tables.order, index.numpy())
    assert np.array_equal(tables.vision_index, torch.argsort(index).numpy())
    positions = get_vision_position_ids(tensor, 2).numpy()
    assert np.array_equal(tables.patch_position_ids, positions[hub_order([grid], 4)])
    assert np.array_equal(tables.window_ids, segments(np.diff(cumulative.numpy())))
    assert np.array_equal(tables.frame_ids, segments(np.diff(get_vision_cu_seqlens(tensor).numpy())))


def test_window_order_by_hand():
    """The picture at the top of images.py: 3 x 3 merged tokens, windows of 2 x 2."""
    tables = images.grid_tables((1, 6, 6), 2, 2)
    assert tables.order.tolist() == [0, 1, 3, 4, 2, 5, 6, 7, 8]
    assert tables.window_ids[::4].tolist() == [1, 1, 1, 1, 2, 2, 3, 3, 4]
    assert tables.patch_position_ids[16:20].tolist() == [[0, 4], [0, 5], [1, 4], [1, 5]]


def test_mrope_by_hand():
    """Two words, an image of 2 x 3 merged tokens, one word, a video of 3 frames of 1 x 2, one word."""
    mask = np.array([0, 0] + [1] * 6 + [0] + [1] * 6 + [0], bool)
    positions = images.mrope_position_ids(mask, [(1, 4, 6), (3, 2, 4)], [1.0, 1.5], merge=2)
    assert positions.tolist() == [
        [0, 1, 2, 2, 2, 2, 2, 2, 5, 6, 6, 7, 7, 9, 9, 10],  # frames at 0, 1.5 and 3, rounded down
        [0, 1, 2, 2, 2, 3, 3, 3, 5, 6, 6, 6, 6, 6, 6, 10],
        [0, 1, 2, 3, 4, 2, 3, 4, 5, 6, 7, 6, 7, 6, 7, 10],
    ]


def test_mrope_refuses_a_mask_that_misses_tokens():
    with pytest.raises(ValueError, match="3 vision tokens given for grids .* that need 4"):
        images.mrope_position_ids(np.array([0, 1, 1, 1], bool), [(1, 4, 4)], [1.0], merge=2)
