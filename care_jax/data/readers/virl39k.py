r"""ViRL39K (TIGER-Lab): 39Krelease.parquet and the unpacked images.zip beside it; 38,870 rows, train only.

One image, several, or none. Answers are boxed and of mixed kinds, and no column names the kind, so it is read off the
question and the box: an option's letter where the question lists that option, words without a digit or a sign as text,
everything else as LaTeX. The columns PassRate_32BTrained and PassRate_7BBase (-1: not measured) can filter.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from care_jax.data.file_formats import Numbered, parquet_rows
from care_jax.data.parsing import Row, gold_field, images_of, place_marks, text_field, unbox
from care_jax.data.validation import BadRowError
from care_jax.structs import Record

_FILE = "39Krelease.parquet"
_LETTER = re.compile(r"(?:\\text\{)?\(?([A-L])\)?\.?\}?")
_OPTION = r"(?:^|[\s(（]){letter}\s?[.):：．、)）]"  # noqa: RUF001
_WORDS = re.compile(r"\\text\{([^{}]*)\}")
_WORD_CHARACTERS = re.compile(r"[^\W\d_][\s,.'’-]*(?:[^\W\d_][\s,.'’-]*)+")  # noqa: RUF001


def files(root: Path, split: str) -> list[Path]:
    """The one parquet file. Raises ValueError where the images are still packed."""
    if split != "train":
        return []
    if (root / "images.zip").is_file() and not (root / "images").is_dir():
        raise ValueError(f"{root}/images.zip is still packed; unpack it there: unzip images.zip")
    return [path] if (path := root / _FILE).is_file() else []


def rows(path: Path) -> Numbered:
    """Rows with the pass rates among their columns."""
    return parquet_rows(path, "question", "answer", "qid", "image")


def parse(where: str, raw: dict[str, Any], folder: Path) -> Row:
    """One question; image paths count from the folder of the parquet file."""
    images = images_of(raw["image"], folder)
    question = place_marks(text_field(raw, "question"), len(images), mend_up_to=1)
    answer = gold_field(raw, "answer")
    if r"\boxed" not in answer:
        raise BadRowError(f"the answer {answer[:80]!r} is not boxed", r"no \boxed")
    gold, kind = _gold(unbox(answer), question)
    record = Record(
        id=f"virl39k/{text_field(raw, 'qid')}",
        source="virl39k",
        prompt=question,
        images=(),
        answer=gold,
        answer_kind=kind,
    )
    return Row(where, record, images)


def _gold(boxed: str, question: str) -> tuple[str, str]:
    """The gold and its kind."""
    if letter := _LETTER.fullmatch(boxed):
        listed = re.search(_OPTION.format(letter=letter[1]), question, re.MULTILINE)
        if listed:
            return letter[1], "choice"
    words = whole[1] if (whole := _WORDS.fullmatch(boxed)) else boxed
    if _WORD_CHARACTERS.fullmatch(words):
        return words.strip(), "text"
    return boxed, "latex"
