"""Geometry3K: the hub's parquet files (hiyouga/geometry3k) or the folders of the original release (InterGPS).

Train, val and test have 2,101, 300 and 601 rows, each with one drawing. The gold is the text of the right choice; the
question is asked without the choices, as is usual for RL.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from care_jax.data.file_formats import Numbered, parquet_rows, split_files
from care_jax.data.image_column import images_of
from care_jax.data.parsing import PLACEHOLDER, Row, gold_field, place_marks, text_field
from care_jax.errors import BadRowError, shown
from care_jax.structs import Record

_LETTERS = ("A", "B", "C", "D")


def files(root: Path, split: str) -> list[Path]:
    """Lists the parquet files, or one data.json a question."""
    if parquet := split_files(root, split, "parquet"):
        return parquet
    return sorted(root.glob(f"{split}/*/data.json"), key=lambda path: (len(path.parent.name), path.parent.name))


def rows(path: Path) -> Numbered:
    """Yields the rows of either layout, under the hub's names."""
    if path.suffix == ".parquet":
        return parquet_rows(path, "images", "problem", "answer", optional=("id",))
    return iter([(1, _from_folder(path))])


def parse(where: str, raw: dict[str, Any], folder: Path) -> Row:
    """Parses one question. The first release on the hub had no id."""
    images = images_of(raw["images"], folder)
    if len(images) != 1:
        raise BadRowError(f"{len(images)} images; a question has one", "not one image")
    record = Record(
        id=f"geometry3k/{where if raw.get('id') is None else raw['id']}",
        source="geometry3k",
        prompt=place_marks(text_field(raw, "problem"), 1),
        images=(),
        answer=gold_field(raw, "answer"),
        answer_kind="latex",
    )
    return Row(where, record, images)


def _from_folder(path: Path) -> dict[str, Any] | BadRowError:
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
        answer = data["choices"][_LETTERS.index(data["answer"])]
        problem = PLACEHOLDER + data["annotat_text"]
    except (ValueError, KeyError, IndexError, TypeError) as error:
        return BadRowError(f"{path} has no question, choices and answer letter: {shown(error)}", "unreadable data.json")
    return {
        "id": path.parent.name,
        "problem": problem,
        "answer": answer,
        "images": [str(path.parent / "img_diagram.png")],
    }
