"""MathVista: the hub's parquet files (AI4Math/MathVista), or the original release (lupantech/MathVista).

Its testmini split has 1,000 questions; test has no answers. The prompt is the column `query`, which holds unit, options
and the requested form; the original release, testmini.json with the unpacked images, lacks it, and `_query` words it
anew. `question_type` and `answer_type` name the kind of the answer; a float is requested, and compared, with as many
decimals as the gold has.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from care_jax.data.file_formats import Numbered, object_rows, parquet_rows, split_files
from care_jax.data.image_column import released_images
from care_jax.data.parsing import Row, gold_field, option_gold, option_texts, place_marks, text_field
from care_jax.errors import BadRowError, shown
from care_jax.rewards.verifiers.reading.options import LETTERS
from care_jax.structs import Record

SPLIT = "testmini"
_KINDS = {"integer": "integer", "float": "rounded", "list": "list", "text": "text"}
# The requested form behind "Please answer the question", by kind and decimals.
_FORMS = {
    ("choice", None): "and provide the correct option letter, e.g., A, B, C, D",
    ("integer", None): "requiring an integer answer and provide the final value, e.g., 1, 2, 3",
    ("rounded", 1): "requiring a floating-point number with one decimal place and provide the final value, e.g., "
    "1.2, 1.3, 1.4",
    ("rounded", 2): "requiring a floating-point number with two decimal places and provide the final value, e.g., "
    "1.23, 1.34, 1.45",
    ("list", None): "requiring a Python list as an answer and provide the final list, e.g., [1, 2, 3], [1.2, 1.3, 1.4]",
}


def files(root: Path, split: str) -> list[Path]:
    """Lists data/<split>-*.parquet, or data/<split>.json."""
    return split_files(root, split, "parquet", "json")


def rows(path: Path) -> Numbered:
    """Yields the rows of either layout."""
    if path.suffix == ".json":
        return object_rows(path, "pid")
    return parquet_rows(path, "pid", "query", "decoded_image", "choices", "answer", "answer_type", "question_type")


def parse(where: str, raw: dict[str, Any], folder: Path) -> Row:
    """Parses one question. The gold of a choice is an option's text; a few questions have two options of equal text."""
    choices, answer_type = option_texts(raw.get("choices")), raw.get("answer_type")
    gold, kind = gold_field(raw, "answer"), _KINDS.get(answer_type) if isinstance(answer_type, str) else None
    if raw.get("question_type") == "multi_choice":
        kind, gold = "choice", option_gold(gold, choices or ())
    if kind is None:
        raise BadRowError(f"answer_type is {shown(answer_type)}, none of {', '.join(_KINDS)}", "unknown answer_type")
    images = released_images(raw.get("decoded_image") or raw.get("image"), folder)
    if "query" not in raw:
        raw = {**raw, "query": _query(raw, kind, choices)}
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


def _query(raw: dict[str, Any], kind: str, choices: tuple[str, ...] | None) -> str:
    """Words the prompt as the hub's column `query` does.

    Raises:
        BadRowError: no question, or decimals for which MathVista has no words.
    """
    decimals = raw.get("precision") if kind == "rounded" else None
    if decimals not in (None, 1, 2) or (kind, decimals) not in _FORMS:
        raise BadRowError(
            f"MathVista words no question for a {kind} answer of precision {shown(decimals)}: a choice, a whole number "
            "or a list has none, a decimal number 1 or 2",
            "unknown precision",
        )
    options = "".join(f"\n({letter}) {choice}" for letter, choice in zip(LETTERS, choices or (), strict=False))
    unit = f" (Unit: {text_field(raw, 'unit')})" if raw.get("unit") else ""
    text_field(raw, "question")  # the check alone: the column has white space around questions as it was
    hint = f"Please answer the question {_FORMS[kind, decimals]}, at the end."
    question = f"Hint: {hint}\nQuestion: {raw['question']}{unit}"
    return question + ("\nChoices:" + options if options else "")
