"""Reads the drawings of mini_vqa by their pixels alone."""

from __future__ import annotations

import io

import numpy as np
from PIL import Image

from care_jax.data.mini_vqa import drawing


def pixels_of(png: bytes) -> np.ndarray:
    """The grey values of an image, [84, 84], after a check of its kind and size."""
    image = Image.open(io.BytesIO(png))
    assert (image.format, image.mode, image.size) == ("PNG", "RGB", (84, 84))
    return np.asarray(image)[:, :, 0]


def count_letters(pixels: np.ndarray) -> int:
    """The number of letters below a chart, a patch each, after a check that nothing else stands there."""
    (count,) = [n for n in (3, 4, 5) if _labels_fit(pixels, n)]
    return count


def _labels_fit(pixels: np.ndarray, count: int) -> bool:
    lefts = [14 * i for i in range(count)]
    letters = [np.asarray(drawing._glyph("ABCDE"[i], 14))[:13] for i in range(count)]
    return all(
        np.array_equal(pixels[71:84, x : x + 14], letter) for x, letter in zip(lefts, letters, strict=True)
    ) and sum(int((letter < 128).sum()) for letter in letters) == int((pixels[71:84] < 128).sum())


def read_chart(pixels: np.ndarray, count: int) -> list[float]:
    """The values of a chart of 9 levels, as bars or as a line."""
    values = []
    for i in range(count):
        x = 14 * i + 7
        top = int(np.argmax(pixels[:, x] == 40))
        is_bar = pixels[top, x + 4] == 40
        values.append((70 - top - (0 if is_bar else 3)) / 7)
    return values


def read_two_series(pixels: np.ndarray, count: int, num_levels: int) -> tuple[list[float], list[float]]:
    """The values of the dark and of the light bars."""
    pitch = 63 // num_levels
    dark, light = (
        [(70 - int(np.argmax(pixels[:, 14 * i + 7 + x] == shade))) / pitch for i in range(count)]
        for x, shade in ((-3, 40), (3, 130))
    )
    return dark, light


def read_digits(pixels: np.ndarray, scans: np.ndarray) -> list[float]:
    """Correlates the ink of each cell with its scan of `scans` [n, 8, 8]. Three cells make a row.

    Scans that were not turned fill a cell but for 2 pixels at each edge.
    """
    top = 28 if len(scans) <= 3 else 0
    found = []
    for i, scan in enumerate(scans):
        y, x = top + i // 3 * 28 + 2, i % 3 * 28 + 2
        blocks = (255 - pixels[y : y + 24, x : x + 24].astype(float)).reshape(8, 3, 8, 3).mean(axis=(1, 3))
        found.append(float(np.corrcoef(blocks.ravel(), scan.ravel())[0, 1]))
    return found


def read_angles(pixels: np.ndarray) -> list[int]:
    """Numbers printed on the 7-pixel grid, by their left edge, then their top."""
    glyphs = {digit: np.asarray(drawing._glyph(digit, 7)) for digit in "0123456789"}
    digits = {}
    for x in range(0, 84, 7):
        for y in range(0, 71, 7):
            for digit, glyph in glyphs.items():
                if np.array_equal(pixels[y : y + 14, x : x + 7], glyph):
                    digits[x, y] = digit
    numbers = []
    for x, y in sorted(digits):
        if (x - 7, y) not in digits:
            number = digits[x, y]
            while (x := x + 7, y)[0] and (x, y) in digits:
                number += digits[x, y]
            numbers.append(int(number))
    return numbers
