r"""ViRL39K (TIGER-Lab): 39Krelease.parquet and the unpacked images.zip beside it; 38,870 rows, train only.

A row has one image, several, or none. Answers are boxed and of mixed kinds, and no column names the kind, so it is
inferred from the question and the box: a letter is a choice if the question lists that option, words without a digit or
a sign are text, and everything else is LaTeX. The columns PassRate_32BTrained and PassRate_7BBase (-1: not measured)
can be used as filters.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from care_jax.data.file_formats import Numbered, parquet_rows
from care_jax.data.image_column import images_of
from care_jax.data.parsing import Row, gold_field, place_marks, text_field, unbox
from care_jax.errors import BadRowError, InputError, shown
from care_jax.structs import Record

_FILE = "39Krelease.parquet"
_LETTER = re.compile(r"(?:\\text\{)?\(?([A-L])\)?\.?\}?")
_OPTION = r"(?:^|[\s(（]){letter}\s?[.):：．、)）]"  # noqa: RUF001
_WORDS = re.compile(r"\\text\{([^{}]*)\}")
_WORD_CHARACTERS = re.compile(r"[^\W\d_][\s,.'’-]*(?:[^\W\d_][\s,.'’-]*)+")  # noqa: RUF001


def files(root: Path, split: str) -> list[Path]:
    """Lists the one parquet file; raises InputError if the images are still packed."""
    if split != "train":
        return []
    if (root / "images.zip").is_file() and not (root / "images").is_dir():
        raise InputError(f"{root}/images.zip is still packed; unpack it there: unzip images.zip")
    return [path] if (path := root / _FILE).is_file() else []


def rows(path: Path) -> Numbered:
    """Yields the rows, which include the pass rates."""
    return parquet_rows(path, "question", "answer", "qid", "image")


def parse(where: str, raw: dict[str, Any], folder: Path) -> Row:
    """Parses one question; image paths are relative to the folder of the parquet file."""
    images = images_of(raw["image"], folder)
    question = place_marks(text_field(raw, "question"), len(images), mend_up_to=1)
    answer = gold_field(raw, "answer")
    if r"\boxed" not in answer:
        raise BadRowError(f"the answer {shown(answer)} is not boxed", r"no \boxed")
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
    """Returns the gold and its kind."""
    if letter := _LETTER.fullmatch(boxed):
        listed = re.search(_OPTION.format(letter=letter[1]), question, re.MULTILINE)
        if listed:
            return letter[1], "choice"
    words = whole[1] if (whole := _WORDS.fullmatch(boxed)) else boxed
    if _WORD_CHARACTERS.fullmatch(words):
        return words.strip(), "text"
    return boxed, "latex"
