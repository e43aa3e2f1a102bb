"""Reads the files of a run folder as they are found: what has another shape is left out, and counted in a notice.

A run may be writing them, a kill may have torn them, and anything may have been put in their place.
"""

from __future__ import annotations

import functools
import json
import types
import typing
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

from etils import epath

from care_jax import files
from care_jax.errors import printable
from care_jax.run import folder

Line = TypeVar("Line")

RUN_NAMES = {
    folder.CONFIG_FILE,
    folder.HISTORY_FILE,
    folder.MANIFEST_FILE,
    folder.METRICS_FILE,
    folder.EVENTS_FILE,
    folder.SAMPLES_FILE,
    folder.HELD_OUT_FILE,
    "checkpoints",
    "tensorboard",
    ".lock",
}
_DEEPEST = 20  # objects within objects
_LARGEST = 1e100  # of a number: sums of many such are still finite
_LARGEST_INT = 2**53  # JavaScript has no larger exact one


def is_run(workdir: epath.Path) -> bool:
    """True for a run folder, and for an empty folder, in which a run may be about to start."""
    names = {path.name for path in workdir.iterdir()}
    return not names or not names.isdisjoint(RUN_NAMES)


def read_object(path: epath.Path, notices: list[str]) -> dict[str, Any]:
    """The JSON object in a file; empty with a notice if there is none."""
    if not _is_there(path, notices, f"no {path.name}"):
        return {}
    try:
        value = json.loads(path.read_bytes().decode())
    except (ValueError, RecursionError):
        notices.append(f"{path.name} is not whole JSON")
        return {}
    if not isinstance(value, dict) or not _is_shallow(value, _DEEPEST):
        notices.append(f"{path.name} has another shape than a run's, and is left out")
        return {}
    return value


def read_lines(
    path: epath.Path, shape: type[Line], notices: list[str], *, is_sound: Callable[[Line], bool]
) -> list[Line]:
    """The JSON lines of a file.

    Args:
        path: the file, which may be growing.
        shape: the type of a line, for `shaped`.
        notices: gets one line if some were left out, and one if there is no line.
        is_sound: True for a line whose values fit each other.
    """
    rows: list[Line] = []
    num_torn = num_misshapen = 0
    if not _is_there(path, notices, f"no {path.name} yet"):
        return rows
    for line in _lines(path):
        try:
            value = json.loads(line.decode())
        except (ValueError, RecursionError):
            num_torn += 1
            continue
        try:
            row = shaped(value, shape)
        except _MisshapenError:
            num_misshapen += 1
            continue
        if is_sound(row):
            rows.append(row)
        else:
            num_misshapen += 1
    bad = [f"{num_torn} line(s) not whole"] if num_torn else []
    bad += [f"{num_misshapen} line(s) of another shape than a run's"] if num_misshapen else []
    if bad:
        notices.append(f"{path.name}: {' and '.join(bad)}, left out")
    if not rows:
        notices.append(f"{path.name} is empty so far")
    return rows


class _MisshapenError(Exception):
    """A JSON value that is not of its type."""


def shaped(value: Any, shape: Any) -> Any:
    """A JSON value that is known to be of a type: texts are made printable, other keys than the type's are left out.

    Args:
        value: as json.loads gives it.
        shape: a TypedDict, list[..], dict[str, ..], str, bool, int (up to 2**53), float (finite), or one of these and
            None.

    Raises:
        _MisshapenError: it is something else.
    """
    origin = typing.get_origin(shape)
    if typing.is_typeddict(shape) and isinstance(value, dict):
        hints = _hints(shape)
        if hints.keys() <= value.keys():
            return {key: shaped(value[key], one) for key, one in hints.items()}
    elif origin is types.UnionType:
        one, _ = typing.get_args(shape)
        return None if value is None else shaped(value, one)
    elif origin is list and isinstance(value, list):
        (one,) = typing.get_args(shape)
        return [shaped(element, one) for element in value]
    elif origin is dict and isinstance(value, dict):
        _, one = typing.get_args(shape)
        return {printable(key): shaped(element, one) for key, element in value.items()}
    elif shape is str and isinstance(value, str):
        return printable(value)
    elif shape is float and type(value) in (int, float) and abs(value) <= _LARGEST:  # NaN is not
        return float(value)
    elif shape in (int, bool) and type(value) is shape and abs(value) <= _LARGEST_INT:
        return value
    raise _MisshapenError


_hints = functools.cache(typing.get_type_hints)


def _is_there(path: epath.Path, notices: list[str], missing: str) -> bool:
    """True for a file that can be opened; else a notice says why it cannot."""
    try:
        # To epath a pipe is a file too, which would be waited for.
        if path.is_file() if files.in_bucket(path) else Path(path).is_file():
            with path.open("rb"):
                return True
        notices.append(f"{path.name} is not a file" if path.exists() else missing)
    except OSError as error:
        notices.append(f"{path.name} cannot be read: {error.strerror}")
    return False


def _lines(path: epath.Path) -> Iterator[bytes]:
    with path.open("rb") as file:
        yield from file


def _is_shallow(value: Any, depth: int) -> bool:
    if not isinstance(value, dict | list):
        return True
    inner = value.values() if isinstance(value, dict) else value
    return depth > 0 and all(_is_shallow(element, depth - 1) for element in inner)
