"""Programs are kept in the run folder, and whatever is wrong with what is kept there, the run goes on.

A whole run that is killed and starts again is in test_pinned_run.py.
"""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np
import pytest
from etils import epath

from care_jax.run.compilation_cache import FOLDER, WarmUp, opened
from care_jax.run.compile_guard import CompileGuard


def compile_three(workdir: Path, *, write: bool = True) -> WarmUp:
    """Compiles three programs as a new process would, with the cache of `workdir`."""
    jax.clear_caches()
    with CompileGuard() as guard, opened(epath.Path(workdir), guard) as warm_up:
        if write:
            warm_up.write_cache()
        for factor in (2.0, 3.0, 4.0):
            program = jax.jit(lambda x, factor=factor: x * factor + 1.0).lower(np.ones(7, np.float32)).compile()
            np.testing.assert_array_equal(program(np.ones(7, np.float32)), np.full(7, factor + 1.0, np.float32))
    return warm_up


def counts(warm_up: WarmUp) -> tuple[int, int]:
    """Programs compiled, and programs from the cache."""
    figures = warm_up.figures()
    return int(figures["start/num_compiled"]), int(figures["start/num_cached"])


def entries(workdir: Path) -> list[Path]:
    """The files of the cache."""
    return sorted((workdir / FOLDER).iterdir())


def test_a_second_start_compiles_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Catches programs that are not kept, however quickly they compile, and a line that says something else."""
    first = compile_three(tmp_path)
    assert counts(first) == (3, 0)
    second = compile_three(tmp_path)
    assert counts(second) == (0, 3)
    second.tell()
    assert f"0 programs compiled, 3 read from {tmp_path / FOLDER})" in capsys.readouterr().err
    assert jax.config.values["jax_compilation_cache_dir"] is None  # what a caller of `opened` has


def test_a_folder_may_be_moved(tmp_path: Path) -> None:
    """Catches a key with the cache's own path in it: a bucket is mounted elsewhere, and all compiles again."""
    compile_three(tmp_path / "here")
    (tmp_path / "here").rename(tmp_path / "there")
    assert counts(compile_three(tmp_path / "there")) == (0, 3)


def test_runs_may_share_a_folder(tmp_path: Path) -> None:
    """Catches a run that does not use the folder it was given, or that also fills its own."""
    jax.config.update("jax_compilation_cache_dir", str(tmp_path / "shared"))
    try:
        assert counts(compile_three(tmp_path / "a")) == (3, 0)
        assert counts(compile_three(tmp_path / "b")) == (0, 3)
    finally:
        jax.config.update("jax_compilation_cache_dir", None)
    assert [path.name for path in tmp_path.iterdir()] == ["shared"]


def test_a_refused_run_leaves_nothing(tmp_path: Path) -> None:
    """Catches programs that are written before the run is accepted; those that are accepted later are written then."""
    compile_three(tmp_path, write=False)
    assert list(tmp_path.iterdir()) == []
    with CompileGuard() as guard, opened(epath.Path(tmp_path), guard) as warm_up:
        jax.jit(lambda x: x * 5.0).lower(np.ones(7, np.float32)).compile()
        assert list(tmp_path.iterdir()) == []
        warm_up.write_cache()
        assert len(entries(tmp_path)) == 1


DAMAGE: dict[str, Callable[[bytes], bytes]] = {
    "empty": lambda entry: b"",
    "torn": lambda entry: entry[: len(entry) // 2],
    "the digest alone": lambda entry: entry[:32],
    "zeros": lambda entry: bytes(len(entry)),
    "other bytes": lambda entry: os.urandom(len(entry)),
    "a flipped bit": lambda entry: entry[:-40] + bytes([entry[-40] ^ 1]) + entry[-39:],
    "longer": lambda entry: entry + b"\0",
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_entry_is_told_and_replaced(damage: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Catches an entry that ends the run, that is loaded as it is, or that is compiled again at every start."""
    compile_three(tmp_path)
    broken = entries(tmp_path)[1]
    broken.write_bytes(DAMAGE[damage](broken.read_bytes()))
    assert counts(compile_three(tmp_path)) == (1, 2)
    assert capsys.readouterr().err == f"warning: {broken} is damaged; its program is compiled again\n"
    assert counts(compile_three(tmp_path)) == (0, 3)
    assert capsys.readouterr().err == ""


def test_an_entry_of_another_program_is_told_and_replaced(tmp_path: Path) -> None:
    """Catches a whole entry that JAX cannot load, and that would be compiled again at every start."""
    import hashlib

    compile_three(tmp_path)
    value = b"no program"
    entries(tmp_path)[0].write_bytes(hashlib.sha256(value).digest() + value)
    with pytest.warns(UserWarning, match="Error reading persistent compilation cache entry"):
        assert counts(compile_three(tmp_path)) == (1, 2)
    assert counts(compile_three(tmp_path)) == (0, 3)


def test_a_cache_that_is_no_folder_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Catches a run that ends because its programs cannot be kept, and a warning for each of them."""
    (tmp_path / FOLDER).write_text("a file")
    assert counts(compile_three(tmp_path)) == (3, 0)
    told = capsys.readouterr().err.splitlines()
    assert len(told) == 1
    assert told[0].startswith(f"warning: the compilation cache {tmp_path / FOLDER} cannot be written (")


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS, errno.EACCES, errno.EIO])
def test_a_folder_that_takes_nothing_more_is_told_once(
    number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Catches a full disk that ends a run, and half an entry that is left there."""
    write_bytes = type(epath.Path(tmp_path)).write_bytes

    def fail(path: epath.Path, data: bytes) -> None:
        write_bytes(path, data[:10])
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(type(epath.Path(tmp_path)), "write_bytes", fail)
    assert counts(compile_three(tmp_path)) == (3, 0)
    assert capsys.readouterr().err == (
        f"warning: the compilation cache {tmp_path / FOLDER} cannot be written ({os.strerror(number)}): the run goes "
        "on, and the next start compiles again\n"
    )
    assert entries(tmp_path) == []


def test_what_a_kill_left_is_removed_after_a_day(tmp_path: Path) -> None:
    """Catches a folder that grows with every kill, and a start that removes what another process is writing."""
    folder = tmp_path / FOLDER
    folder.mkdir()
    old, new = folder / "1.unfinished", folder / "2.unfinished"
    for path in (old, new):
        path.write_bytes(b"half")
    os.utime(old, (time.time() - 90_000,) * 2)
    compile_three(tmp_path)
    assert not old.exists()
    assert new.exists()
