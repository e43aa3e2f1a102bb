"""Pixels against transformers' own image processor, and by hand."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageOps
from transformers import AutoImageProcessor
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import smart_resize as smart_resize_hf

from care_jax.inputs import images
from care_jax.inputs.positions import count_tokens
from care_jax.inputs.preprocessor import read_image_spec
from care_jax.models.config_json import load_model_config
from tests.families import FAMILIES, make_folder
from tests.pictures import encode, hub_order, normalised, picture

# Heights and widths in pixels: one window, less than one, many, odd grids, halves that round to even, slim ones.
# The last three in full: the slimmest that is allowed, lying and standing, and a photo.
SIZES = [(84, 84), (56, 56), (28, 112), (140, 84), (196, 252), (42, 70), (20, 300), (13, 9), (500, 333)]
SIZES += [(1, 200), (200, 1), (3000, 4000)]


@pytest.fixture(scope="module", params=FAMILIES)
def folder(request, tiny_folder, tmp_path_factory) -> Path:
    """A model folder of each family."""
    return make_folder(request.param, tiny_folder, tmp_path_factory.mktemp("images") / "model")


@pytest.fixture(scope="module")
def spec(folder) -> images.ImageSpec:
    """The folder's settings, with images of 4 to 64 tokens."""
    return read_image_spec(folder, load_model_config(folder).vision, 4, 64)


@pytest.fixture(scope="module")
def hub(folder, spec) -> Qwen2VLImageProcessorPil:
    """The processor of transformers for the folder, with the same limits."""
    size = {"shortest_edge": spec.min_pixels, "longest_edge": spec.max_pixels}
    return AutoImageProcessor.from_pretrained(folder, backend="pil", size=size)


def in_hub_order(patches: np.ndarray, grid: tuple[int, int, int], spec: images.ImageSpec) -> np.ndarray:
    """Patches in the order that transformers' vision model works on them."""
    return patches[hub_order([grid], 4)] if spec.layout.window else patches


def assert_equal_to_hub(encoded: bytes, image: Image.Image, spec: images.ImageSpec, hub: Qwen2VLImageProcessorPil):
    """Our patches of the file are, bit for bit, the hub's of the image, in window order."""
    wanted = hub(image, return_tensors="np")
    decoded = images.decode_image(encoded)
    grid = images.image_grid(decoded.height, decoded.width, spec, spec.max_pixels)
    patches = images.patchify([decoded], grid, spec)
    assert wanted["image_grid_thw"].tolist() == [list(grid)]
    assert (patches.dtype, patches.shape[1]) == (np.uint8, 3 * spec.patch_size**2)
    assert np.array_equal(normalised(patches, spec), in_hub_order(wanted["pixel_values"], grid, spec))


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
    """Catches an image that a checkpoint's own processor refuses, and a limit that is off by one."""
    assert images.smart_resize(1, 200, factor=28, min_pixels=784, max_pixels=78400) == (28, 420)
    with pytest.raises(ValueError, match=r"1 x 201 pixels has aspect ratio 201.0, allowed is 200"):
        images.smart_resize(1, 201, factor=28, min_pixels=784, max_pixels=78400)


@pytest.mark.parametrize("limits", [(4, 64), (1, 4096)], ids=["tight", "wide"])
def test_token_counts_from_the_size_alone(folder, limits):
    """Catches a count that only the decoded image would tell: transformers' own count of patches, without an image."""
    spec = read_image_spec(folder, load_model_config(folder).vision, *limits)
    hub = AutoImageProcessor.from_pretrained(folder, backend="pil")
    hub.size = {"shortest_edge": spec.min_pixels, "longest_edge": spec.max_pixels}
    for height in (1, 13, 28, 45, 333, 1080, 3000):
        for width in (2, 56, 100, 199, 640, 4000):
            if max(height, width) / min(height, width) <= 200:
                grid = images.image_grid(height, width, spec, spec.max_pixels)
                wanted = hub.get_number_of_image_patches(height, width)
                assert count_tokens([grid], spec.layout.merge) * 4 == wanted


@pytest.mark.parametrize("size", SIZES)
def test_patches_equal_transformers_bit_for_bit(spec, hub, size):
    """Catches a wrong layout inside a patch, a wrong resampling filter and another order of float operations."""
    image = picture(*size)
    assert_equal_to_hub(encode(image, "BMP"), image, spec, hub)


def palette_png(transparent: bool) -> bytes:
    """A PNG with a palette, one of whose colours may be transparent."""
    image = picture(60, 80).quantize(16)
    return encode(image, transparency=3) if transparent else encode(image)


@pytest.mark.parametrize(
    "encoded",
    [
        encode(picture(60, 80, "RGBA")),
        encode(picture(60, 80, "L")),
        encode(picture(60, 80, "LA")),
        encode(picture(60, 80, "L").convert("1")),
        encode(picture(60, 80, "CMYK"), "JPEG"),
        palette_png(False),
        palette_png(True),
    ],
    ids=["RGBA", "L", "LA", "1", "CMYK", "P", "P-transparent"],
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
