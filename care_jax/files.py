"""Paths on a local disk or in a Google Cloud Storage bucket (gs://BUCKET/...), files written whole, and locks.

A run folder and the weights that a run starts from may lie in a bucket. Data are read here and there and models through
memory maps, so those are local.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TypeVar

import filelock
import fsspec
from etils import epath

from care_jax.errors import InputError, shown

MUST_BE_LOCAL = "must be on a local disk; copy it there, as with gcloud storage rsync --recursive"
_BUCKET = "gs://"
# Of a full or broken disk, a server that does not answer, a machine without memory: the same command may succeed later.
_OF_THE_MACHINE = {
    *(errno.ENOSPC, errno.EDQUOT, errno.EIO),
    *(errno.ESTALE, errno.ETIMEDOUT, errno.ENOTCONN, errno.EHOSTDOWN, errno.EHOSTUNREACH),
    *(errno.EMFILE, errno.ENFILE, errno.ENOMEM),
}

AnyPath = TypeVar("AnyPath", Path, epath.Path)


def is_of_the_machine(error: Exception) -> bool:
    """True for an OSError that the file or folder itself is not to blame for."""
    return isinstance(error, OSError) and error.errno in _OF_THE_MACHINE


def in_bucket(path: epath.PathLike) -> bool:
    """True if `path` lies in a bucket rather than on a local disk."""
    return "://" in os.fspath(path)


def anywhere(path: epath.PathLike) -> epath.Path:
    """`path`, absolute, with pathlib's methods.

    Raises:
        InputError: `path` is empty, or lies in a bucket that cannot be read, because gcsfs is missing or it is not
            gs://.
    """
    if not os.fspath(path):  # as --workdir=$UNSET gives it; the current folder has a name, "."
        raise InputError(f"a path is empty; give a local path or {_BUCKET}BUCKET/FOLDER")
    if not in_bucket(path):
        return epath.Path(path).absolute()
    if not os.fspath(path).startswith(_BUCKET):
        raise InputError(f"{path}: give a local path or {_BUCKET}BUCKET/FOLDER")
    try:
        fsspec.get_filesystem_class("gs")
    except ImportError as error:
        raise InputError(f"{path}: {_BUCKET} needs the package gcsfs: pip install 'care_jax[gcs]'") from error
    return epath.Path(path)


def on_disk(path: epath.PathLike, name: str) -> Path:
    """`path`, which must be local; `name` is the flag or config key that holds it, for the message.

    Raises:
        InputError: it lies in a bucket.
    """
    if in_bucket(path):
        raise InputError(f"{name}={path}: {MUST_BE_LOCAL}")
    return Path(path)


def require_readable(path: Path, missing: str) -> None:
    """Opens the local file at `path` once, before anything else is done.

    Raises:
        InputError: `missing` if there is nothing; or why it cannot be read: it is a folder or a device, or the system's
            reason, such as permissions.
    """
    try:
        if path.is_dir() or (path.exists() and not path.is_file()):
            found = "a folder" if path.is_dir() else "a device or a pipe"
            raise InputError(f"{shown(str(path))} is {found}; give a file")
        if path.is_file():
            with path.open("rb"):
                return
    except OSError as error:
        raise InputError(f"{shown(str(path))} cannot be read: {error.strerror}") from error
    raise InputError(missing)


@contextlib.contextmanager
def written_whole(path: AnyPath) -> Iterator[AnyPath]:
    """A temporary path beside `path`, renamed to `path` when the block ends.

    A reader sees the old file or the new one, never a part. If the block raises, the temporary file is removed and
    `path` stays as it was; if it writes nothing, `path` stays as it was too.
    """
    unfinished = path.with_name(path.name + ".unfinished")
    try:
        yield unfinished
    except BaseException:
        unfinished.unlink(missing_ok=True)
        raise
    if unfinished.exists():
        unfinished.replace(path)


def write_text(path: Path | epath.Path, text: str) -> None:
    """Writes `text` as UTF-8 to `path`, which never holds a part of it, not even if the machine goes down."""
    with written_whole(path) as unfinished:
        unfinished.write_text(text, encoding="utf-8")
        if not in_bucket(path):
            with open(unfinished, "rb") as file:
                os.fsync(file.fileno())  # or the new name may be on the disk before the text is


@contextlib.contextmanager
def locked(path: Path, message: str) -> Iterator[None]:
    """Holds a lock on `path` until the block ends, or the process ends in any way.

    `path` is a folder, or a file, which is made if it is missing and stays. A file system that has no locks is used
    without one.

    Raises:
        InputError: `message`, if another process holds the lock.
    """
    descriptor = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR | os.O_CREAT, 0o644)
    try:
        with contextlib.suppress(OSError):  # of a file system without locks
            if not filelock.lock_descriptor(descriptor, blocking=False):
                raise InputError(message)
        yield
    finally:
        os.close(descriptor)


def read_object(path: Path | epath.Path, *, remedy: str) -> dict[str, Any]:
    """The JSON object in a file.

    Raises:
        InputError: the file holds something else; names it, the line if there is one to name, and the remedy.
    """
    return parse_object(path.read_bytes(), str(path), remedy=remedy)


def parse_object(text: bytes, where: str, *, remedy: str) -> dict[str, Any]:
    """The JSON object in a text that lies at `where`.

    Raises:
        InputError: as `read_object`.
    """
    try:
        value = json.loads(text.decode())  # json itself would take UTF-16 too
    except json.JSONDecodeError as error:
        line = f", line {error.lineno}" if b"\n" in text else ""
        raise InputError(f"{where}{line}: not JSON ({error.msg}); {remedy}") from error
    except (ValueError, RecursionError) as error:  # no UTF-8, a number of thousands of digits, deep brackets
        raise InputError(f"{where}: not JSON ({type(error).__name__}); {remedy}") from error
    if not isinstance(value, dict):
        raise InputError(f"{where}: not a JSON object; {remedy}")
    return value
