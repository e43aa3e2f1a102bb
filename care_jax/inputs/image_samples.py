"""Samples of more than 8 bits: scaled to 8 as the file's own depth says, or refused.

Pillow itself keeps the high byte of 16-bit colour, but cuts 16-bit grey off at 255, which turns most pictures white.
"""

from __future__ import annotations

import numpy as np
from PIL import Image

from care_jax.errors import InputError

_REMEDY = "save it with 8 bits a sample"
# Tags of TIFF.
_BITS, _PHOTOMETRIC, _SAMPLE_FORMAT = 258, 262, 339
_UNSIGNED = (1, 4)  # values of the last: unsigned, and "undefined", which readers take for unsigned
_WHITE_IS_ZERO = 0
_DARKEST = 16  # grey levels of 255; a 16-bit picture below them holds 12 bits or fewer


def sample_bits(image: Image.Image) -> int:
    """Reads the bits of a sample from the header of an image that is opened but not loaded yet: 8 or fewer, 12 or 16.

    Raises:
        InputError: the samples are signed, floats or longer, so that the file does not say which value is white.
    """
    bits = 8
    if image.format == "TIFF":
        tags = image.tag_v2  # type: ignore[attr-defined]
        bits = int(max(tags.get(_BITS, (1,))))
        if any(code not in _UNSIGNED for code in tags.get(_SAMPLE_FORMAT, (1,))):
            raise InputError(f"the image has signed or float samples; {_REMEDY}")
        if bits > 8 and tags.get(_PHOTOMETRIC) == _WHITE_IS_ZERO:
            raise InputError(f"the image has {bits}-bit samples with white as 0; {_REMEDY}")
    elif (image.format, image.mode) == ("PPM", "I") or (
        image.format == "PNG" and any(";16" in str(tile.args) for tile in image.tile)  # type: ignore[attr-defined]
    ):
        bits = 16
    if image.mode in ("I", "F") and (image.format, image.mode) != ("PPM", "I"):
        raise InputError(f"the image has 32-bit or float samples; {_REMEDY}")
    if bits > 8 and "transparency" in image.info:
        raise InputError(f"the image has {bits}-bit samples and a transparent colour; {_REMEDY}")
    return bits


def to_8_bits(image: Image.Image, bits: int) -> Image.Image:
    """Scales the samples of a loaded image: their high 8 of `bits`, as Pillow already does with colour.

    Raises:
        InputError: the picture would be black or all but black, since its samples use only the lowest of 16 bits.
    """
    if bits <= 8:
        return image
    if image.mode.startswith("I"):
        samples = np.asarray(image)
        is_dark = 0 < samples.max() < _DARKEST << 8
        image = Image.fromarray((samples >> (bits - 8)).astype(np.uint8))
    else:
        # Pillow has dropped the low bytes, so black may be 8 bits in 16. Behind transparency it is what is drawn.
        bands = image.getbands()
        brightest = max(np.asarray(image.getchannel(band)).max() for band in bands if band != "A")
        is_dark = brightest < _DARKEST and (brightest > 0 or "A" not in bands)
    if bits == 16 and is_dark:
        raise InputError(
            f"the image has 16-bit samples that are all below {_DARKEST << 8} of 65535, as 8-bit or 12-bit ones are; "
            f"scale them to the whole range, or {_REMEDY}"
        )
    return image
