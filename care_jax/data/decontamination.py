"""Finds training rows that repeat a benchmark, by their pictures and their questions.

A question alone proves nothing (hundreds of drawings come with "Find x."), and a picture may have been saved again with
another compression. So a row repeats a benchmark if

* one of its pictures is the same pixel for pixel, reduced to 32 x 32, whatever is asked; or
* the question is the same and the pictures are nearly the same; or
* the question is the same and neither has a picture.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from PIL import Image

from care_jax.data.parsing import OPEN_REQUEST, PLACEHOLDER

Thumbnail = npt.NDArray[np.uint8]  # [SIDE, SIDE, 3]

SIDE = 32  # pixels
# Mean difference of two nearly equal thumbnails, in grey levels of 255. JPEG at quality 50 makes about 1; different
# drawings of one style differ by more than 5.
NEAR = 3.0
# Text that benchmarks put around a question: a hint before "Question:", and everything from the first option on.
_HINT = re.compile(r"\A.*?^Question:", re.DOTALL | re.MULTILINE)
_OPTIONS = re.compile(r"^[^\S\n]*(?:Choices?:\s*$|\(?A[).:]).*", re.DOTALL | re.MULTILINE)
_UNIT = re.compile(r"\s\(Unit: [^()\n]*\)\s*\Z")  # MathVista
_SPACING = re.compile(r"\\(?:left|right|displaystyle|mathrm|text|quad|[,;:! ])")
_IDLE = re.compile(r"[\s$.,;:?!'\"{}]+")


class Match(NamedTuple):
    """The benchmark question that a row repeats, and the evidence."""

    benchmark_id: str
    reason: str


def thumbnail(image: Image.Image) -> Thumbnail:
    """Reduces an RGB image by averaging."""
    return np.asarray(image.resize((SIDE, SIDE), Image.Resampling.BOX))


def bare_question(prompt: str) -> str:
    """Strips a question of the hint before it and of the unit, options or request for a form behind it."""
    return _UNIT.sub("", _OPTIONS.sub("", _HINT.sub("", prompt)).removesuffix(OPEN_REQUEST)) or prompt


def normalise_question(prompt: str) -> str:
    """Strips a question of hint, options, image marks, case, spacing, punctuation and LaTeX's layout commands."""
    text = unicodedata.normalize("NFKC", bare_question(prompt).replace(PLACEHOLDER, " ")).casefold()
    return _IDLE.sub("", _SPACING.sub("", text))


class Benchmarks:
    """The questions and pictures of the benchmarks that training rows must not repeat."""

    def __init__(self) -> None:
        """Starts without questions."""
        self._ids: list[str] = []
        self._thumbnails: list[Sequence[Thumbnail]] = []
        self._by_picture: dict[bytes, int] = {}
        self._by_question: dict[str, list[int]] = {}

    def __len__(self) -> int:
        """Returns the number of questions."""
        return len(self._ids)

    def add(self, record_id: str, prompt: str, thumbnails: Sequence[Thumbnail]) -> None:
        """Adds one question of a benchmark."""
        index = len(self._ids)
        self._ids.append(record_id)
        self._thumbnails.append(thumbnails)
        self._by_question.setdefault(normalise_question(prompt), []).append(index)
        for one in thumbnails:
            self._by_picture.setdefault(one.tobytes(), index)

    def match(self, prompt: str, thumbnails: Sequence[Thumbnail]) -> Match | None:
        """Returns what a row with this question and these pictures repeats, if anything."""
        for one in thumbnails:
            if (index := self._by_picture.get(one.tobytes())) is not None:
                return Match(self._ids[index], "picture of a benchmark")
        for index in self._by_question.get(normalise_question(prompt), []):
            theirs = self._thumbnails[index]
            if not thumbnails and not theirs:
                return Match(self._ids[index], "question of a benchmark, both without picture")
            if any(_difference(a, b) <= NEAR for a in thumbnails for b in theirs):
                return Match(self._ids[index], "question and nearly the picture of a benchmark")
        return None


def _difference(a: Thumbnail, b: Thumbnail) -> float:
    return float(np.abs(a.astype(np.int16) - b).mean())
