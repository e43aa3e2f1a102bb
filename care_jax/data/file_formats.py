"""Rows of parquet files, JSON arrays and JSON lines; no file is read whole into memory."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from care_jax.data.validation import BadRowError
from care_jax.errors import InputError

Numbered = Iterator[tuple[int, dict[str, Any] | BadRowError]]  # row numbers from 1

_BATCH_ROWS = 32  # rows of a parquet file that are in memory at a time
_CHUNK = 1 << 20  # characters of a JSON array read at a time
_LONGEST_ROW = 64 << 20  # characters
_BETWEEN = re.compile(r"[\s,]*")


def split_files(root: Path, split: str, *endings: str) -> list[Path]:
    """Lists the files of a split on the hub: [data/]<split>[-00000-of-00002].<ending>, for the first ending found."""
    names = ("val", "validation") if split in ("val", "validation") else (split,)
    for ending in endings:
        for folder in (root / "data", root):
            for name in names:
                if files := sorted({*folder.glob(f"{name}.{ending}"), *folder.glob(f"{name}-*.{ending}")}):
                    return files
    return []


def parquet_rows(path: Path, *required: str) -> Numbered:
    """Yields the rows of a parquet file.

    Raises:
        InputError: the file is damaged, or lacks a column.
    """
    try:
        with pq.ParquetFile(path, pre_buffer=False) as file:
            columns = file.schema_arrow.names
            if missing := [name for name in required if name not in columns]:
                raise InputError(f"{path} has no column {', '.join(missing)}, only {', '.join(columns)}")
            number = 0
            for batch in file.iter_batches(batch_size=_BATCH_ROWS, use_threads=False):
                for row in batch.to_pylist():
                    number += 1
                    yield number, row
    except (pa.ArrowException, OSError) as error:
        raise InputError(f"{path} is not a readable parquet file: {error}") from None


def array_rows(path: Path) -> Numbered:
    """Yields the objects of a file that holds one JSON array.

    Raises:
        InputError: the file does not hold an array, or is damaged.
    """
    decoder, buffer, at, number = json.JSONDecoder(), "", 0, 1
    with path.open(encoding="utf-8-sig", errors="replace") as file:
        while (first := file.read(1)).isspace():
            pass
        if first != "[":
            raise InputError(f"{path} is not a JSON array; it must start with [")
        while True:
            at = _BETWEEN.match(buffer, at).end()  # type: ignore[union-attr]  # it matches anything
            if buffer.startswith("]", at):
                return
            problem = "it ends too early"
            try:
                value, end = decoder.raw_decode(buffer, at)
            except json.JSONDecodeError as error:
                end, problem = len(buffer), error.msg
            if end == len(buffer):  # there may be more of this value
                more = file.read(_CHUNK)
                if not more or len(buffer) - at > _LONGEST_ROW:
                    raise InputError(f"{path} is damaged at row {number}: {problem}; fetch it again")
                buffer, at = buffer[at:] + more, 0
                continue
            yield number, _object(value)
            at, number = end, number + 1


def line_rows(path: Path) -> Numbered:
    """Yields the objects of a file with one JSON object a line, or the error of a bad line; skips empty lines."""
    with path.open("rb") as lines:
        for number, line in enumerate(lines, start=1):
            if not line.strip():
                continue
            try:
                yield number, _object(json.loads(line.decode("utf-8-sig")))
            except UnicodeDecodeError:
                yield number, BadRowError("not UTF-8")
            except json.JSONDecodeError as error:
                yield number, BadRowError(f"not JSON: {error}", "not JSON")


def _object(value: Any) -> dict[str, Any] | BadRowError:
    if isinstance(value, dict):
        return value
    return BadRowError(f"a JSON object is needed, not {type(value).__name__}", "no JSON object")
