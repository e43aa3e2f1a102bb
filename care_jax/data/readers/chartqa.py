"""ChartQA: parquet files of the hub or the folder of the original release (vis-nlp/ChartQA).

The hub has HuggingFaceM4/ChartQA and ahmed-masry/ChartQA with all splits, and lmms-lab/ChartQA with test alone.

Train, val and test have 7,398, 960 and 1,250 questions by people, and 20,901, 960 and 1,250 by a machine.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from care_jax.data.file_formats import Numbered, array_rows, parquet_rows, split_files
from care_jax.data.image_column import image_of
from care_jax.data.parsing import Row, gold_field, place_marks, text_field
from care_jax.errors import BadRowError, InputError
from care_jax.structs import Record

WRITERS = ("human", "machine")  # the order of the hub's class label human_or_machine
_JSON_NAMES = {"human": "human", "machine": "augmented"}
_NAMES = {"question": "query", "answer": "label", "type": "human_or_machine"}  # of other hub sets -> HuggingFaceM4's


def files(root: Path, split: str, writers: Sequence[str] = WRITERS) -> list[Path]:
    """Lists the parquet files, or a JSON array for each of the `writers`."""
    if parquet := split_files(root, split, "parquet"):
        return parquet
    for folder in (root / split, root / "ChartQA Dataset" / split):
        if folder.is_dir():
            return [path for w in writers if (path := folder / f"{split}_{_JSON_NAMES[w]}.json").is_file()]
    return []


def rows(path: Path, writers: Sequence[str] = WRITERS) -> Numbered:
    """Yields the rows of either layout under the hub's names, without those of other writers."""
    if path.suffix == ".parquet":
        for number, raw in parquet_rows(path, "image", optional=(*_NAMES, *_NAMES.values())):
            raw = _under_one_name(path, raw) if isinstance(raw, dict) else raw
            if isinstance(raw, BadRowError) or _writer(raw) in writers:
                yield number, raw
        return
    (writer,) = (w for w in WRITERS if path.stem.endswith(_JSON_NAMES[w]))
    for number, raw in array_rows(path):
        if not isinstance(raw, BadRowError):
            image = str(path.parent / "png" / raw["imgname"]) if raw.get("imgname") else None
            raw = {**raw, "image": image, "human_or_machine": WRITERS.index(writer)}
        yield number, raw


def parse(where: str, raw: dict[str, Any], folder: Path) -> Row:
    """Parses one question, whose "label" is a text or a list with it first. The id has the image's name, if known."""
    label = raw.get("label")
    writer = _writer(raw)
    file, _, number = where.rpartition(":")
    record = Record(
        id=f"chartqa/{writer}/{raw.get('imgname') or file}:{number}",
        source=f"chartqa_{writer}",
        prompt=place_marks(text_field(raw, "query"), 1),
        images=(),
        answer=gold_field({"label": label[0] if isinstance(label, list) and label else label}, "label"),
        answer_kind="chart_relaxed",
    )
    return Row(where, record, (image_of(raw.get("image"), folder),))


def _under_one_name(path: Path, raw: dict[str, Any]) -> dict[str, Any]:
    raw = {_NAMES.get(name, name): value for name, value in raw.items()}
    if missing := [name for name in ("query", "label", "human_or_machine") if name not in raw]:
        raise InputError(f"{path} has no column {', '.join(missing)}, only {', '.join(raw)}")
    return raw


def _writer(raw: dict[str, Any]) -> str:
    """Returns the writer by the class label, or by "human", "augmented", "human_test", "augmented_test"."""
    number = raw["human_or_machine"]
    if isinstance(number, str):
        number = next((n for n, writer in enumerate(WRITERS) if number.startswith(_JSON_NAMES[writer])), None)
    return WRITERS[number] if number in (0, 1) else "unknown"
