"""Image files that break readers: deep samples, damage of every kind, sizes and formats that are refused."""

from __future__ import annotations

import struct
import tracemalloc
import zlib

import numpy as np
import pytest
from PIL import Image

from care_jax.errors import InputError
from care_jax.inputs import images
from tests.pictures import encode, picture

RAMP = np.linspace(0, 255, 256).astype(np.uint8).reshape(16, 16)  # every grey level once


def decoded(encoded: bytes) -> np.ndarray:
    """The pixels, [height, width, 3]."""
    return np.asarray(images.decode_image(encoded))


def tiff(bits: int, samples: bytes, *, sample_format: int = 1, photometric: int = 1, endian: str = "<") -> bytes:
    """A hand-made grey TIFF of 16 x 16 pixels in one strip."""
    fields = [(256, 16), (257, 16), (258, bits), (259, 1), (262, photometric), (277, 1), (278, 16), (279, len(samples))]
    fields += [(273, 8), (339, sample_format)]
    directory = struct.pack(endian + "H", len(fields))
    for tag, value in sorted(fields):
        directory += struct.pack(endian + "HHII", tag, 4, 1, value)
    mark = b"II*\0" if endian == "<" else b"MM\0*"
    return mark + struct.pack(endian + "I", 8 + len(samples)) + samples + directory + bytes(4)


def grey(samples: np.ndarray) -> np.ndarray:
    """Grey samples as RGB."""
    return np.repeat(samples[..., None], 3, axis=2)


def twelve_bits(values: np.ndarray) -> bytes:
    """Two samples in three bytes, the high bits first."""
    first, second = values.reshape(-1, 2).T
    return np.stack([first >> 4, (first & 15) << 4 | second >> 8, second & 255], axis=1).astype(np.uint8).tobytes()


def deep_png(colour_type: int, samples: np.ndarray) -> bytes:
    """A hand-made PNG of 16 x 16 pixels with 16-bit samples, [16, samples of a row]."""
    chunks = {
        b"IHDR": struct.pack(">IIBBBBB", 16, 16, 16, colour_type, 0, 0, 0),
        b"IDAT": zlib.compress(b"".join(b"\0" + line.astype(">u2").tobytes() for line in samples)),
        b"IEND": b"",
    }
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
        for name, data in chunks.items()
    )


DEEP = RAMP.astype(np.uint16) * 256 + 99
DEEP_FILES = {
    "png": encode(Image.fromarray(DEEP)),
    "tiff": encode(Image.fromarray(DEEP), "TIFF"),
    "tiff, big-endian": tiff(16, DEEP.astype(">u2").tobytes(), endian=">"),
    "tiff, compressed": encode(Image.fromarray(DEEP), "TIFF", compression="tiff_lzw"),
    "tiff, 12 bits": tiff(12, twelve_bits(RAMP.astype(np.uint16) * 16 + 9)),
    "pgm": encode(Image.fromarray(DEEP), "PPM"),
    "pgm up to 1023": b"P5 16 16 1023\n" + np.round(RAMP.astype(float) * 1023 / 255).astype(">u2").tobytes(),
}


@pytest.mark.parametrize("name", DEEP_FILES)
def test_deep_samples_keep_their_brightness(name: str) -> None:
    """Catches 16-bit grey cut off at 255, which is white, and 12 bits taken for 16, which is black."""
    assert np.array_equal(decoded(DEEP_FILES[name]), grey(RAMP))


def test_a_deep_photo_lies_on_its_side() -> None:
    """Catches an orientation that is lost where samples are scaled."""
    exif = Image.Exif()
    exif[0x0112] = 6
    assert np.array_equal(decoded(encode(Image.fromarray(DEEP), exif=exif)), np.rot90(grey(RAMP), -1))


_FLOATS = RAMP.astype(np.float32) / 255


@pytest.mark.parametrize(
    ("encoded", "reason"),
    [
        (encode(Image.fromarray(_FLOATS), "TIFF"), "signed or float samples"),
        (encode(Image.fromarray(RAMP.astype(np.int32) << 23), "TIFF"), "signed or float samples"),
        (tiff(8, RAMP.tobytes(), sample_format=2), "signed or float samples"),
        (tiff(16, DEEP.tobytes(), sample_format=2), "signed or float samples"),
        (tiff(16, DEEP.tobytes(), photometric=0), "16-bit samples with white as 0"),
        (b"Pf 16 16 -1.0\n" + _FLOATS.tobytes(), "32-bit or float samples"),
        (encode(Image.fromarray(DEEP), transparency=99), "16-bit samples and a transparent colour"),
        (encode(Image.fromarray(DEEP >> 4)), "all below 4096 of 65535"),
        (tiff(16, (DEEP >> 4).tobytes()), "all below 4096 of 65535"),
        (encode(Image.fromarray(DEEP >> 8)), "all below 4096 of 65535"),
        (b"P5 16 16 65535\n" + (DEEP >> 8).astype(">u2").tobytes(), "all below 4096 of 65535"),
        (deep_png(2, np.repeat(DEEP >> 8, 3, axis=1)), "all below 4096 of 65535"),
    ],
    ids=[
        *("float", "signed 32", "signed 8", "signed 16", "inverted", "pfm", "transparent"),
        *("12 in 16", "12 in 16, tiff", "8 in 16", "8 in 16, pgm", "8 in 16, colour"),
    ],
)
def test_samples_whose_white_is_unknown_are_refused(encoded: bytes, reason: str) -> None:
    """Catches pictures that turn white, black or inside out without a word."""
    with pytest.raises(InputError, match=reason) as error:
        images.decode_image(encoded)
    assert "8 bits a sample" in str(error.value)


def test_black_stays_black() -> None:
    """Catches a picture without any light taken for one with too few bits."""
    assert decoded(encode(Image.new("I;16", (4, 4)))).max() == 0
    # Black strokes on nothing, which are all that many a drawing has.
    strokes = np.stack([np.zeros_like(DEEP), DEEP], axis=2).reshape(16, 32)
    assert decoded(deep_png(4, strokes))[0, 0, 0] == 255 - (DEEP[0, 0] >> 8)


@pytest.mark.parametrize("error", [RuntimeError, NotImplementedError, TypeError, MemoryError, struct.error, EOFError])
def test_any_failure_of_a_decoder_is_the_pictures(monkeypatch: pytest.MonkeyPatch, error: type[Exception]) -> None:
    """Catches a traceback because a decoder raised what nobody foresaw."""

    def fail(self: Image.Image) -> None:
        raise error("strange\n" * 99)

    encoded = encode(picture(9, 9), "AVIF")
    monkeypatch.setattr(Image.Image, "getexif", fail)
    with pytest.raises(InputError, match=rf"not a readable image \({error.__name__} 'strange\\n") as found:
        images.decode_image(encoded)
    assert len(str(found.value)) < 250
    assert str(found.value).isprintable()


def _png_of(width: int, height: int) -> bytes:
    """A grey PNG with a transparent colour that says it has this size."""
    whole = encode(Image.new("L", (1, 1)), transparency=3)
    header = b"IHDR" + struct.pack(">II", width, height) + whole[24:29]
    return whole[:12] + header + struct.pack(">I", zlib.crc32(header)) + whole[33:]


@pytest.mark.parametrize("size", [(13_300, 13_300), (8193, 8192), (9500, 9500), (40_000, 40_000)])
def test_large_pictures_are_refused_by_their_header(size: tuple[int, int]) -> None:
    """Catches a file of 21 kB that takes gigabytes while it is decoded."""
    tracemalloc.start()
    with pytest.raises(InputError, match="more than 67,108,864 pixels"):
        images.decode_image(_png_of(*size))
    assert tracemalloc.get_traced_memory()[1] < 1 << 24
    tracemalloc.stop()


@pytest.mark.parametrize("file_format", ["EPS", "PDF", "DDS", "ICO", "SGI"])
def test_formats_outside_the_list_are_refused(file_format: str) -> None:
    """Catches decoders that start other programs (Ghostscript), or that nobody looks after."""
    encoded = encode(Image.new("RGB", (16, 16)), file_format)
    with pytest.raises(InputError, match="not a readable image; give one of PNG, JPEG"):
        images.decode_image(encoded)


@pytest.mark.parametrize("file_format", images.FORMATS)
def test_every_format_of_the_list_is_read(file_format: str) -> None:
    """Catches a format that the list names and Pillow calls otherwise."""
    close = np.abs(
        decoded(encode(Image.new("RGB", (16, 16), (200, 100, 50)), file_format)).astype(int) - (200, 100, 50)
    )
    assert close.max() <= 3


def test_only_the_first_frame_is_read() -> None:
    """Catches an animation that is refused, or shown by its last frame."""
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "blue", "green")]
    for file_format in ("GIF", "WEBP", "PNG", "TIFF"):
        options = {"lossless": True} if file_format == "WEBP" else {}
        encoded = encode(frames[0], file_format, save_all=True, append_images=frames[1:], **options)
        assert decoded(encoded)[0, 0].tolist() == [255, 0, 0]
