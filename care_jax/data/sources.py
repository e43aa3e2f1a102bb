"""All data sets that can be prepared, by name, and `read`: from their files as they are downloaded to parsed rows.

A reader is three functions: one lists the files of a split, one yields the rows of a file, one parses a row.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from care_jax.data import own_data
from care_jax.data.file_formats import Numbered
from care_jax.data.parsing import Row
from care_jax.data.readers import (
    chartqa,
    easyr1,
    geometry3k,
    mathverse,
    mathvision,
    mathvista,
    mmmu,
    virl39k,
    vision_r1,
)
from care_jax.data.validation import Dropped, check_gold_of, check_texts, one_row
from care_jax.errors import BadRowError, InputError, shown
from care_jax.files import require_readable


class Reader(NamedTuple):
    """A data set's layout."""

    files: Callable[[Path, str], list[Path]]  # (root, split) -> the files that hold it; empty: no such split
    rows: Callable[[Path], Numbered]  # file -> its rows
    parse: Callable[[str, dict[str, Any], Path], Row]  # (file and number, row, folder of image paths)
    split: str = "train"  # the one that is read by default


def _chartqa(*writers: str) -> Reader:
    return Reader(
        functools.partial(chartqa.files, writers=writers),
        functools.partial(chartqa.rows, writers=writers),
        chartqa.parse,
    )


READERS: Mapping[str, Reader] = {
    "geometry3k": Reader(geometry3k.files, geometry3k.rows, geometry3k.parse),
    "chartqa": _chartqa("human", "machine"),
    "chartqa_human": _chartqa("human"),
    "chartqa_machine": _chartqa("machine"),
    "virl39k": Reader(virl39k.files, virl39k.rows, virl39k.parse),
    "vision_r1_cold": Reader(vision_r1.files, vision_r1.rows, vision_r1.parse),
    "mathvista": Reader(mathvista.files, mathvista.rows, mathvista.parse, mathvista.SPLIT),
    "mathverse": Reader(mathverse.files, mathverse.rows, mathverse.parse, mathverse.SPLIT),
    "mathvision": Reader(mathvision.files, mathvision.rows, mathvision.parse, mathvision.SPLIT),
    "mmmu": Reader(mmmu.files, mmmu.rows, mmmu.parse, mmmu.SPLIT),
    "mmmu_pro_standard": Reader(mmmu.standard_files, mmmu.standard_rows, mmmu.parse_standard, mmmu.PRO_SPLIT),
    "mmmu_pro_vision": Reader(mmmu.vision_files, mmmu.vision_rows, mmmu.parse_vision, mmmu.PRO_SPLIT),
    "easyr1": Reader(easyr1.files, easyr1.rows, easyr1.parse),
    "jsonl": Reader(own_data.files, own_data.rows, own_data.parse),
}


class ColumnRange(NamedTuple):
    """Keeps rows whose number in `column`, such as a pass rate, lies in low .. high, ends included."""

    column: str
    low: float
    high: float


def split_files(source: str, root: Path, split: str) -> list[Path]:
    """Lists the files that hold the rows of a split.

    Raises:
        InputError: the source, the folder or the split does not exist, or cannot be read.
    """
    if source not in READERS:
        raise InputError(f"no source {source!r}; choose one of {', '.join(READERS)}")
    try:
        if not root.exists():
            raise InputError(f"no {root}; give the folder that {source} was downloaded to")
        files = READERS[source].files(root, split)
    except OSError as error:
        raise InputError(f"{shown(str(root))} cannot be read: {error.strerror}") from error
    for path in files:
        require_readable(path, f"no file {path}; download it again")
    if not files:
        raise InputError(f"{root} holds no split {split!r} of {source}; the layouts are in care_jax/data/readers/")
    return files


def read(
    source: str,
    files: Sequence[Path],
    *,
    root: Path,
    images: Path,
    ranges: Sequence[ColumnRange] = (),
    allow: Collection[str] = (),
) -> Iterator[Row | Dropped]:
    """Yields every row of the files in order, without reading images.

    Args:
        source: a key of READERS.
        files: as `split_files` lists them.
        root: the folder that files are named from in messages.
        images: the folder that image paths are relative to.
        ranges: rows outside any of them are dropped.
        allow: the functions "module:function" that a row may name as its answer_kind.

    Raises:
        InputError: a file cannot be read at all, or lacks a column of `ranges`.
    """
    reader = READERS[source]
    first: dict[str, str] = {}  # id -> where
    for path in files:
        for number, raw in reader.rows(path):
            where = f"{path.relative_to(root) if path != root else path.name}:{number}"
            try:
                if isinstance(raw, BadRowError):
                    raise raw
                if outside := next(filter(None, (_outside(raw, r, path, number) for r in ranges)), None):
                    yield Dropped(where, outside, "", broken=False)
                    continue
                with one_row():
                    row = reader.parse(where, raw, images)
                    check_gold_of(row.record, allow)
                    check_texts(row.record)
                if (record_id := row.record.id) in first:
                    raise BadRowError(f"id {shown(record_id)} was used in {first[record_id]}", "id used before")
                first[record_id] = where
            except BadRowError as error:
                yield Dropped(where, error.reason, str(error))
            else:
                yield row


def _outside(raw: Mapping[str, Any], wanted: ColumnRange, path: Path, number: int) -> str | None:
    """Returns the reason to leave a row out, if there is one; a first row without the column ends the reading."""
    if wanted.column not in raw and number == 1:
        numbers = [name for name, value in raw.items() if isinstance(value, int | float)]
        raise InputError(
            f"{path} has no column {wanted.column!r} to filter by; columns of numbers: {', '.join(numbers) or 'none'}"
        )
    value = raw.get(wanted.column)
    inside = isinstance(value, int | float) and wanted.low <= value <= wanted.high
    return None if inside else f"{wanted.column} outside {wanted.low:g} .. {wanted.high:g}"
