"""MathVista: the hub's parquet files (AI4Math/MathVista). Its testmini split has 1,000 questions; test has no answers.

The prompt is the column `query`, which holds unit, options and the requested form. `question_type` and `answer_type`
name the kind of the answer; a float is requested, and compared, with as many decimals as the gold has.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from care_jax.data.file_formats import Numbered, parquet_rows, split_files
from care_jax.data.image_column import images_of
from care_jax.data.parsing import Row, gold_field, option_gold, option_texts, place_marks, text_field
from care_jax.errors import BadRowError, shown
from care_jax.structs import Record

SPLIT = "testmini"
_KINDS = {"integer": "integer", "float": "rounded", "list": "list", "text": "text"}


def files(root: Path, split: str) -> list[Path]:
    """Lists data/<split>-*.parquet."""
    return split_files(root, split, "parquet")


def rows(path: Path) -> Numbered:
    """Yields the rows."""
    return parquet_rows(path, "pid", "query", "decoded_image", "choices", "answer", "answer_type", "question_type")


def parse(where: str, raw: dict[str, Any], folder: Path) -> Row:
    """Parses one question. The gold of a choice is an option's text; a few questions have two options of equal text."""
    choices = option_texts(raw["choices"])
    gold, kind = gold_field(raw, "answer"), _KINDS.get(raw["answer_type"])
    if raw["question_type"] == "multi_choice":
        kind, gold = "choice", option_gold(gold, choices or ())
    if kind is None:
        raise BadRowError(
            f"answer_type is {shown(raw['answer_type'])}, none of {', '.join(_KINDS)}", "unknown answer_type"
        )
    images = images_of(raw["decoded_image"], folder)
    record = Record(
        id=f"mathvista/{text_field(raw, 'pid')}",
        source="mathvista",
        prompt=place_marks(text_field(raw, "query"), len(images)),
        images=(),
        answer=gold,
        answer_kind=kind,
        choices=choices if kind == "choice" else None,
    )
    return Row(where, record, images)
