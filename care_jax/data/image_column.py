"""Columns of images: the forms in which data sets write an image, and its bytes."""

from __future__ import annotations

import base64
import binascii
import os
import re
import stat
import urllib.parse
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from care_jax import files
from care_jax.errors import BadRowError, shown

MAX_BYTES = 1 << 28  # of an image file
_URI = re.compile(r"data:(?P<head>[^,]{0,200}),", re.IGNORECASE)
_WEB = re.compile(r"[a-z][a-z0-9+.-]*://", re.IGNORECASE)
_FORMS = "a path, a data: URI, or an object with bytes or path"


def image_of(value: Any, folder: Path) -> bytes | Path:
    """Reads an entry of an image column.

    Args:
        value: a path relative to `folder`, a file:// address, a data: URI, bytes, or an object of "bytes" (in JSON
            their base64) and "path", of which one may be None.
        folder: the folder of paths.

    Raises:
        BadRowError: something else.
    """
    if isinstance(value, Mapping):
        inside = value.get("bytes")
        if isinstance(inside, str):
            return _from_base64(inside)
        value = inside if inside is not None else value.get("path")
    if isinstance(value, bytes):
        return value
    if not isinstance(value, str) or not value:
        raise BadRowError(
            f"an image has neither bytes nor path, but {shown(value)}; give {_FORMS}", "image without bytes and path"
        )
    if uri := _URI.match(value):
        if uri["head"].lower().endswith(";base64"):
            return _from_base64(value[uri.end() :])
        return urllib.parse.unquote_to_bytes(value[uri.end() :])
    if value.startswith("file://"):
        return Path(urllib.parse.unquote(value.removeprefix("file://")))
    if _WEB.match(value):
        raise BadRowError(f"an image at {shown(value)}: nothing is downloaded; give {_FORMS}", "image on the web")
    return folder / value


def images_of(value: Any, folder: Path) -> tuple[bytes | Path, ...]:
    """Reads an image column: a list in the prompt's order, one image alone, or None for a text-only row."""
    if value is None or value == "":
        return ()
    return tuple(image_of(image, folder) for image in (value if isinstance(value, list) else [value]))


def released_images(value: Any, folder: Path) -> tuple[bytes | Path, ...]:
    """Reads the image column of a release, whose archive of images was unpacked in `folder` or in its data/.

    The archive may have its files in images/, which paths then do not name. As `images_of`.
    """
    for place in (folder, folder / "data", folder / "images", folder / "data/images"):
        images = images_of(value, place)
        if all(isinstance(image, bytes) or os.path.exists(image) for image in images):
            return images
    return images_of(value, folder)


def image_bytes(image: bytes | Path) -> bytes:
    """Reads an image as it is stored.

    Raises:
        BadRowError: its file is missing, is no regular file, or is larger than MAX_BYTES.
        OSError: the machine is at fault, so that another try may succeed.
    """
    if isinstance(image, bytes):
        return image
    name = shown(str(image), 300)  # its end tells most
    try:
        # Without waiting: a pipe without a writer would block. The file is asked, not its name, which may change hands.
        descriptor = os.open(image, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            found = os.fstat(descriptor)
            if not stat.S_ISREG(found.st_mode):
                raise BadRowError(f"{name} is not a regular file", "no image file")
            if found.st_size > MAX_BYTES:
                raise BadRowError(f"{name} has more than {MAX_BYTES >> 20} MiB", "image file too large")
            with open(descriptor, "rb", closefd=False) as file:
                return file.read(found.st_size)  # a file of /proc says 0, and may be endless
        finally:
            os.close(descriptor)
    except BadRowError:
        raise
    except (OSError, ValueError) as error:  # ValueError: NUL, or characters that no file name has
        if files.is_of_the_machine(error):
            raise
        reason = error.strerror if isinstance(error, OSError) else error
        raise BadRowError(f"no image {name}: {reason}", "no image file") from None


def _from_base64(text: str) -> bytes:
    try:
        return base64.b64decode("".join(text.split()), validate=True)
    except (binascii.Error, ValueError) as error:
        raise BadRowError(f"the image {shown(text)} is not base64: {error}", "image is not base64") from None
