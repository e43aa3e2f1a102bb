"""A folder that appears whole or not at all, whatever ends the process that writes it."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterator
from pathlib import Path

from care_jax import files
from care_jax.errors import InputError


@contextlib.contextmanager
def new_folder(out: Path, *, num_bytes: int, replace: bool = False) -> Iterator[Path]:
    """A folder to fill with about `num_bytes`; it is renamed to `out` when the block ends without an exception.

    Until then everything lies in a work folder beside it, `out`.partial. After a kill the next process clears that
    folder, and puts back an `out` that the killed one had moved away.

    Raises:
        InputError: `out` exists and is not to be replaced, another process is writing it, or it cannot be written
            (a full disk, no permission).
    """
    work = out.with_name(out.name + ".partial")
    new, old = work / "new", work / "old"
    try:
        work.mkdir(parents=True, exist_ok=True)
        with files.locked(work / "lock", f"another process is writing {out}; wait for it, or name another folder"):
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
        raise InputError(f"{out} was not written: {error}") from error


def _check(out: Path, num_bytes: int, *, replace: bool) -> None:
    if out.exists() and not replace:
        raise InputError(f"--out={out} exists already; name a new folder or remove it")
    free = shutil.disk_usage(out.parent).free
    if num_bytes > free:
        raise InputError(
            f"--out={out} needs {num_bytes / 1e9:.1f} GB and {free / 1e9:.1f} GB are free; free some or name a folder"
            " on another disk"
        )
