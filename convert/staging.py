"""A folder that appears whole or not at all, whatever ends the process that writes it."""

from __future__ import annotations

import contextlib
import fcntl
import shutil
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def new_folder(out: Path, *, num_bytes: int, replace: bool = False) -> Iterator[Path]:
    """A folder to fill with about `num_bytes`; it is renamed to `out` when the block ends without an exception.

    Until then everything lies in a work folder beside it, `out`.partial. What a killed process left there is cleared
    by the next one, and an `out` that it had moved away comes back.

    Raises:
        ValueError: `out` exists and is not to be replaced, another process is writing it, or it cannot be written
            (a full disk, no permission).
    """
    work = out.with_name(out.name + ".partial")
    new, old = work / "new", work / "old"
    try:
        work.mkdir(parents=True, exist_ok=True)
        with _locked(work / "lock", out):
            if old.exists() and not out.exists():
                old.rename(out)
            try:
                _check(out, num_bytes, replace=replace)
                shutil.rmtree(new, ignore_errors=True)
                new.mkdir()
                yield new
                if out.exists():
                    out.rename(old)
                new.rename(out)
            finally:
                shutil.rmtree(work, ignore_errors=True)
    except OSError as error:
        raise ValueError(f"{out} was not written: {error}") from error


@contextlib.contextmanager
def _locked(file: Path, out: Path) -> Iterator[None]:
    """Holds a lock that ends with the process."""
    with file.open("w") as stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise ValueError(f"another process is writing {out}; wait for it, or name another folder") from error
        yield


def _check(out: Path, num_bytes: int, *, replace: bool) -> None:
    if out.exists() and not replace:
        raise ValueError(f"--out={out} exists already; name a new folder or remove it")
    free = shutil.disk_usage(out.parent).free
    if num_bytes > free:
        raise ValueError(
            f"--out={out} needs {num_bytes / 1e9:.1f} GB and {free / 1e9:.1f} GB are free; free some or name a folder"
            " on another disk"
        )
