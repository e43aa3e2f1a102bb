"""Reads the JSON files of a Hugging Face model folder, whatever they hold: a field is right or refused in one line."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

from care_jax import files
from care_jax.errors import InputError, shown

_COPY = "copy the file from the source checkpoint"
_MOST_BYTES = 64 * 2**20  # of a JSON file; a large tokenizer.json has 12 MB
_MOST, _LARGEST = 2**20, 1e30  # bounds of a count (several times the largest vocabulary) and of a number


def require_file(path: Path) -> Path:
    """`path`, which must be a regular file of a reasonable size.

    Raises:
        InputError: there is none, it is a folder, a pipe or a device, or has more than 64 MiB.
    """
    try:
        if path.is_file():
            size = path.stat().st_size
            if size > _MOST_BYTES:
                raise InputError(f"{path} has {size:,} bytes, allowed are {_MOST_BYTES:,}; {_COPY}")
            return path
        is_there = path.exists() or path.is_symlink()
    except OSError as error:
        raise InputError(f"{path} cannot be read ({shown(error.strerror)}); {_COPY}") from error
    if is_there:
        raise InputError(f"{path} is not a regular file, or a link to nowhere; {_COPY}")
    raise InputError(f"{path.parent} has no {path.name}; give the complete folder of a Hugging Face checkpoint")


def read_bytes(path: Path) -> bytes:
    """The bytes of a file of the model folder.

    Raises:
        InputError: it is missing, no regular file, too large or unreadable.
    """
    try:
        return require_file(path).read_bytes()
    except OSError as error:
        raise InputError(f"{path} cannot be read ({shown(error.strerror)}); {_COPY}") from error


def read_fields(path: Path, *names: str) -> dict[str, Any]:
    """Reads the JSON object in a file of the model folder.

    Args:
        path: the file.
        names: fields that it must have.

    Returns:
        All its fields.

    Raises:
        InputError: the file or one of the fields is missing, or the file does not hold a JSON object.
    """
    fields = files.parse_object(read_bytes(path), str(path), remedy=_COPY)
    for name in names:
        if name not in fields:
            raise InputError(f"{path} has no field {name!r}; {_COPY}")
    return fields


class Fields:
    """Reads fields of a JSON object; one that is missing or of another kind is an error that names file and field."""

    def __init__(self, values: dict[str, Any], where: str, defaults: Mapping[str, Any] = MappingProxyType({})):
        """Takes the object, its name in errors, and the values of fields that it leaves out."""
        self.values, self.where = {**defaults, **values}, where

    def has(self, name: str) -> bool:
        """True if the field is there and not null."""
        return self.values.get(name) is not None

    def sub(self, *names: str, defaults: Mapping[str, Any] = MappingProxyType({})) -> Fields:
        """The JSON object in a field, under the first of its names that is there."""
        name = next((name for name in names if self.has(name)), names[0])
        values = self._typed(name, "an object", lambda x: isinstance(x, dict))
        return Fields(values, f"{self.where} ({name})", defaults)

    def count(self, name: str, *, least: int = 1, most: int = _MOST) -> int:
        """A whole number from `least` to `most`."""
        kind = f"a whole number from {least} to {most}"
        return self._typed(name, kind, lambda x: type(x) is int and least <= x <= most)

    def real(self, name: str) -> float:
        """A number above 0, and at most 1e30."""
        return float(self._typed(name, "a number above 0", lambda x: type(x) in (int, float) and 0 < x <= _LARGEST))

    def reals(self, name: str, length: int) -> list[float]:
        """A list of `length` numbers, each at most 1e30 in size."""
        return self._list(name, f"{length} numbers", lambda x: type(x) in (int, float) and abs(x) <= _LARGEST, length)

    def indexes(self, name: str) -> tuple[int, ...]:
        """A list of whole numbers from 0 up."""
        return tuple(self._list(name, f"whole numbers up to {_MOST}", lambda x: type(x) is int and 0 <= x <= _MOST))

    def words(self, name: str, allowed: tuple[str, ...]) -> tuple[str, ...]:
        """A list of words from `allowed`."""
        return tuple(
            self._list(name, f"words from {', '.join(allowed)}", lambda x: isinstance(x, str) and x in allowed)
        )

    def one_of(self, name: str, allowed: tuple[Any, ...]) -> Any:
        """A field that must have one of the values `allowed`; it may be missing if None is one."""
        if None in allowed and not self.has(name):
            return None
        if not any(type(self._value(name)) is type(each) and self.values[name] == each for each in allowed):
            supported = ", ".join(repr(each) for each in allowed if each is not None)
            raise InputError(f"{self.where} has {name} {shown(self.values[name])}; supported: {supported}")
        return self.values[name]

    def _list(self, name: str, kind: str, is_kind: Callable[[Any], bool], length: int | None = None) -> list[Any]:
        def is_list(x: Any) -> bool:
            return isinstance(x, list) and all(map(is_kind, x)) and length in (None, len(x))

        return self._typed(name, f"a list of {kind}", is_list)

    def _typed(self, name: str, kind: str, is_kind: Callable[[Any], bool]) -> Any:
        if not is_kind(self._value(name)):
            raise InputError(f"{self.where} has {name} {shown(self.values[name])}; it must be {kind}")
        return self.values[name]

    def _value(self, name: str) -> Any:
        if name not in self.values:
            raise InputError(f"{self.where} has no field {name!r}; it is needed to build the model")
        return self.values[name]
