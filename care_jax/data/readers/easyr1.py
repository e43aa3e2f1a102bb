"""Sets in EasyR1's form: parquet, JSON lines or a JSON array with problem, answer and images.

As in EasyR1, every answer is a LaTeX or number gold, unless a column `answer_kind` names another kind; `choices` are
then a list of texts or a string that spells one. Vision-R1-rl, PAPO_ViRL39K_train and many others have this form.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from care_jax.data.file_formats import Numbered, file_rows, split_files
from care_jax.data.image_column import images_of
from care_jax.data.parsing import Row, gold_field, option_texts, place_marks, text_field, unbox
from care_jax.errors import BadRowError, InputError
from care_jax.structs import Record

_QUESTION_KEYS = ("problem", "prompt", "question")
_OPTIONAL = ("id", "images", "videos", "source", "answer_kind", "choices")
_ENDINGS = (".parquet", ".jsonl", ".json")


def files(root: Path, split: str) -> list[Path]:
    """Lists the split's files, or `root` itself if it is a file."""
    return [root] if root.is_file() else split_files(root, split, "parquet", "jsonl", "json")


def rows(path: Path) -> Numbered:
    """Yields the rows; the file's ending names its format."""
    if path.suffix not in _ENDINGS:
        raise InputError(f"{path} ends in {path.suffix!r}; give a file that ends in {', '.join(_ENDINGS)}")
    return file_rows(path, "answer", optional=(*_QUESTION_KEYS, *_OPTIONAL))


def parse(where: str, raw: dict[str, Any], folder: Path) -> Row:
    """Parses one question, under any of EasyR1's names for it."""
    if raw.get("videos"):
        raise BadRowError("a video; only images can be read", "video")
    key = next((key for key in _QUESTION_KEYS if key in raw), _QUESTION_KEYS[0])
    images = images_of(raw.get("images"), folder)
    record = Record(
        id=str(where if raw.get("id") is None else raw["id"]),
        source=str(raw.get("source") or "easyr1"),
        prompt=place_marks(text_field(raw, key), len(images)),
        images=(),
        answer=unbox(gold_field(raw, "answer")),
        answer_kind=str(raw.get("answer_kind") or "latex"),
        choices=option_texts(raw.get("choices")) if raw.get("answer_kind") == "choice" else None,
    )
    return Row(where, record, images)
