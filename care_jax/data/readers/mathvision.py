r"""MATH-Vision: the hub's parquet files (MathLLMs/MathVision) or test.jsonl of the original release (mathllm/MATH-V).

Test has 3,040 questions, testmini 304 of them. Each has one picture, even if it contains several marks <image1>,
<image2> ..: several pictures were drawn into one. So the picture comes first, and several marks stay in the text. An
answer without options has no column for its kind: one number is kind "rounded", everything else LaTeX.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from care_jax.data.file_formats import Numbered, file_rows, split_files
from care_jax.data.image_column import images_of
from care_jax.data.parsing import (
    PLACEHOLDER,
    Row,
    ask_for_letter,
    gold_field,
    letter_gold,
    number_or,
    option_texts,
    text_field,
)
from care_jax.errors import BadRowError
from care_jax.structs import Record

SPLIT = "test"
_MARK = re.compile(r"<image[0-9]*>")


def files(root: Path, split: str) -> list[Path]:
    """Parquet files, or JSON lines with images/ beside them."""
    return split_files(root, split, "parquet") or split_files(root, split, "jsonl")


def rows(path: Path) -> Numbered:
    """Yields the rows of either layout."""
    return file_rows(path, "id", "question", "options", "answer", optional=("decoded_image", "image"))


def parse(where: str, raw: dict[str, Any], folder: Path) -> Row:
    """Parses one question."""
    images = images_of(raw.get("decoded_image") or raw.get("image"), folder)
    if len(images) != 1:
        raise BadRowError(f"{len(images)} images; a question has one", "not one image")
    question, choices = text_field(raw, "question"), option_texts(raw.get("options"))
    if len(around := _MARK.split(question)) == 2:
        question = f"{around[0].rstrip()} {around[1].lstrip()}".strip()
    answer = raw.get("answer")
    if isinstance(answer, str):
        answer = answer.replace("\f", "\\f")  # of one "\frac", read as a form feed
    gold = gold_field({"answer": answer}, "answer")
    kind = "choice" if choices else number_or("latex", gold)
    record = Record(
        id=f"mathvision/{text_field(raw, 'id')}",
        source="mathvision",
        prompt=PLACEHOLDER + (ask_for_letter(question, choices) if choices else question),
        images=(),
        answer=letter_gold(gold, choices) if choices else gold,
        answer_kind=kind,
        choices=choices,
    )
    return Row(where, record, images)
