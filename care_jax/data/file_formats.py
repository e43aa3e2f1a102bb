"""Rows of parquet files, JSON arrays and JSON lines, none of which is read whole, and of JSON objects by key."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any, TextIO

import pyarrow as pa
import pyarrow.parquet as pq

from care_jax.errors import BadRowError, InputError, shown

Numbered = Iterator[tuple[int, dict[str, Any] | BadRowError]]  # row numbers from 1

_BATCH_ROWS = 32  # rows of a parquet file that are in memory at a time
_CHUNK = 1 << 20  # characters of a JSON array read at a time
_LONGEST_ROW = 64 << 20  # characters of an entry, bytes of a line
_MOST_DIGITS = 4000  # of an integer; Python's own limit is 4,300
_BETWEEN = re.compile(r"[\s,]*")
# What tells an entry's end: a string, which the buffer may cut off, or a bracket or comma.
_TOKEN = re.compile(r'"[^"\\]*(?:\\.[^"\\]*)*"?|[\[\]{},]', re.DOTALL)


def split_files(root: Path, split: str, *endings: str) -> list[Path]:
    """Lists the files of a split on the hub: [data/]<split>[-00000-of-00002].<ending>, for the first ending found.

    `root` is their folder, or the one file.
    """
    names = ("val", "validation") if split in ("val", "validation") else (split,)
    if root.is_file():
        return [root] if root.stem.partition("-")[0] in names and root.suffix[1:] in endings else []
    for ending in endings:
        for folder in (root / "data", root):
            for name in names:
                if files := sorted({*folder.glob(f"{name}.{ending}"), *folder.glob(f"{name}-*.{ending}")}):
                    return files
    return []


def parquet_rows(path: Path, *required: str, optional: Collection[str] = ()) -> Numbered:
    """Yields the rows of a parquet file with the columns that are asked for, and all plain numbers, to filter by.

    Other columns are not read, so their damage does no harm; a cell that cannot be read costs its row alone.

    Args:
        path: the file.
        required: columns that it must have.
        optional: columns to read if it has them.

    Raises:
        InputError: the file is damaged, or lacks a required column.
    """
    try:
        with pq.ParquetFile(path, pre_buffer=False) as file:
            schema = file.schema_arrow
            if missing := [name for name in required if name not in schema.names]:
                raise InputError(f"{path} has no column {', '.join(missing)}, only {', '.join(schema.names)}")
            wanted = {*required, *optional}
            columns = [field.name for field in schema if field.name in wanted or _is_number(field.type)]
            number = 0
            for batch in file.iter_batches(batch_size=_BATCH_ROWS, columns=columns, use_threads=False):
                for row in range(batch.num_rows):
                    number += 1
                    yield number, _parquet_row(batch, row)
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:  # the last: of a column's name
        raise InputError(f"{path} is not a readable parquet file: {shown(str(error))}") from None


def _is_number(type_: pa.DataType) -> bool:
    return pa.types.is_integer(type_) or pa.types.is_floating(type_)


def _parquet_row(batch: pa.RecordBatch, row: int) -> dict[str, Any] | BadRowError:
    values = {}
    for name, column in zip(batch.schema.names, batch.columns, strict=True):
        try:
            values[name] = _present(column[row].as_py())
        except Exception as error:  # texts that are not UTF-8, times that Python has no date for
            return BadRowError(f"the cell of {name} cannot be read: {shown(str(error))}", "unreadable cell")
    return values


def array_rows(path: Path) -> Numbered:
    """Yields the objects of a file that holds one JSON array, or the error of an entry that is none.

    Raises:
        InputError: the file does not hold an array, ends too early, or goes on behind the array.
    """
    buffer, at, number = "", 0, 1
    with path.open(encoding="utf-8-sig", errors="surrogateescape") as file:
        if _first_visible(file) != "[":
            raise InputError(f"{path} is not a JSON array; it must start with [")
        while True:
            at = _BETWEEN.match(buffer, at).end()  # type: ignore[union-attr]  # it matches anything
            if buffer.startswith("]", at):
                if buffer[at + 1 :].strip() or _first_visible(file):  # such as a second array, whose rows would be lost
                    raise InputError(f"{path} goes on behind its JSON array, after row {number - 1}; make it one array")
                return
            row: dict[str, Any] | BadRowError | None
            try:
                value, end = _DECODER.raw_decode(buffer, at)
                row = _object(value)
            except (ValueError, RecursionError) as error:
                end = _end_of_entry(buffer, at)
                row = _not_json(error)
            if end == len(buffer):  # there may be more of this entry
                more = file.read(max(_CHUNK, len(buffer) - at))
                if not more or len(buffer) - at > _LONGEST_ROW:
                    raise InputError(f"{path} is damaged at row {number}: it ends too early; fetch it again")
                buffer, at = buffer[at:] + more, 0
                continue
            yield number, row
            at, number = end, number + 1


def object_rows(path: Path, key_field: str) -> Numbered:
    """Yields the objects in a file's one JSON object, with their keys as `key_field`, or the error of an entry.

    Raises:
        InputError: the file does not hold an object.
    """
    try:
        whole = _DECODER.decode(path.read_text(encoding="utf-8-sig"))
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path} is damaged, fetch it again: {_not_json(error)}") from error
    if not isinstance(whole, dict):
        raise InputError(f"{path} is not a JSON object; it must start with {{")
    for number, (key, value) in enumerate(whole.items(), start=1):
        row = _object(value)
        yield number, row if isinstance(row, BadRowError) else {key_field: key, **row}


def _end_of_entry(buffer: str, at: int) -> int:
    """Finds where an entry of an array ends that is not JSON, by its brackets alone; the buffer's end if it goes on.

    A bracket that closes nothing is an entry by itself.
    """
    depth = 0
    for token in _TOKEN.finditer(buffer, at):
        depth += {"[": 1, "{": 1, "]": -1, "}": -1}.get(token[0], 0)
        if depth < 0 and token.start() == at:
            return token.end()
        if depth < 0 or (depth == 0 and token[0] == ","):
            return token.start()
        if depth == 0 and token[0] in ("]", "}"):
            return token.end()
    return len(buffer)


def line_rows(path: Path) -> Numbered:
    """Yields the objects of a file with one JSON object a line, or the error of a bad line; skips empty lines."""
    with path.open("rb") as lines:
        number = 0
        while line := lines.readline(_LONGEST_ROW):
            number += 1
            if len(line) == _LONGEST_ROW and not line.endswith(b"\n"):
                while (rest := lines.readline(_LONGEST_ROW)) and not rest.endswith(b"\n"):
                    pass
                yield number, BadRowError(f"longer than {_LONGEST_ROW >> 20} MiB", "too long")
            elif line.strip():
                yield number, _line(line)


def _line(line: bytes) -> dict[str, Any] | BadRowError:
    try:
        return _object(_DECODER.decode(line.decode("utf-8-sig")))
    except UnicodeDecodeError:
        return BadRowError("not UTF-8")
    except (ValueError, RecursionError) as error:
        return _not_json(error)


def file_rows(path: Path, *required: str, optional: Collection[str] = ()) -> Numbered:
    """Yields the rows of a parquet file, of a JSON array (.json) or, whatever its name, of JSON lines."""
    if path.suffix == ".parquet":
        return parquet_rows(path, *required, optional=optional)
    if path.suffix == ".json":
        with path.open(encoding="utf-8-sig", errors="surrogateescape") as file:
            is_array = _first_visible(file) == "["
        return array_rows(path) if is_array else line_rows(path)
    return line_rows(path)


def _first_visible(file: TextIO) -> str:
    """Reads up to the first character that is no white space, and returns it; empty at the end."""
    while (first := file.read(1)).isspace():
        pass
    return first


def _not_json(error: ValueError | RecursionError) -> BadRowError:
    return BadRowError(f"not JSON: {shown(str(error))}", "not JSON")


def _object(value: Any) -> dict[str, Any] | BadRowError:
    if isinstance(value, dict):
        return {key: _present(cell) for key, cell in value.items()}
    return BadRowError(f"a JSON object is needed, not {type(value).__name__}", "no JSON object")


def _present(cell: Any) -> Any:
    """Returns a cell, None for NaN, as which pandas and others write a missing one."""
    return None if isinstance(cell, float) and math.isnan(cell) else cell


def _whole_number(digits: str) -> int | float:
    """Reads an integer; one that Python refuses to read becomes infinite, which no field takes."""
    return int(digits) if len(digits) <= _MOST_DIGITS else math.inf


_DECODER = json.JSONDecoder(parse_int=_whole_number)
