"""JAX's persistent compilation cache, kept in a run's folder: a run that starts again reads its programs from there.

JAX makes the keys. They cover the program, the versions of jax and of the compiler, XLA_FLAGS and LIBTPU_INIT_ARGS, the
compile options and the kind of the devices, so a change of any of them compiles again. With several processes all read
and process 0 writes, so the folder lies where all of them see it.

The entries are written here, not by JAX, which writes them in place: a kill in between leaves a torn entry that it
never replaces. Loading an entry runs code, so whoever may write the folder may run code in the run.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from typing import Any

import jax
from etils import epath
from jax._src import compilation_cache as jax_cache
from jax._src.compilation_cache_interface import CacheInterface

from care_jax import files
from care_jax.run.compile_guard import CompileGuard

FOLDER = "compilation_cache"  # of a run folder
_DIGEST_BYTES = 32
_STALE_SECONDS = 86_400.0  # after which an unfinished file is a killed process's
_SETTINGS = {
    "jax_persistent_cache_min_compile_time_secs": 0.0,  # the default leaves out all that compiles in a second
    # XLA's own cache for GPUs; its path would be part of the key, and a folder that is moved would be of no use.
    "jax_persistent_cache_enable_xla_caches": "none",
}


class _Entries(CacheInterface):
    """The entries of a folder, in the form that JAX calls a cache: each is written whole, and checked when it is read.

    Whatever is wrong with the folder, or with an entry, is a warning, and the program is compiled.
    """

    def __init__(self, folder: str) -> None:
        """Holds what it is given until `write` is called."""
        self._path: Any = files.anywhere(folder)
        self._has_warned = False
        self._held: dict[str, bytes] | None = {}

    def write(self) -> None:
        """Makes the folder, and writes what was held and what will come."""
        held, self._held = self._held or {}, None
        with self._warning_once("cannot be written"):
            self._path.mkdir(parents=True, exist_ok=True)
            for unfinished in self._path.glob("*.unfinished"):
                if time.time() - unfinished.stat().mtime > _STALE_SECONDS:
                    unfinished.unlink(missing_ok=True)
        for key, value in held.items():
            self.put(key, value)

    def get(self, key: str) -> bytes | None:
        """The entry of a key; None if there is none that can be used."""
        path = self._path / f"{key}.program"
        with self._warning_once("cannot be read"):
            if not path.exists():
                return None
            entry = path.read_bytes()
            if hashlib.sha256(entry[_DIGEST_BYTES:]).digest() == entry[:_DIGEST_BYTES]:
                return entry[_DIGEST_BYTES:]
            print(f"warning: {path} is damaged; its program is compiled again", file=sys.stderr, flush=True)
        return None

    def put(self, key: str, value: bytes) -> None:
        """Writes the entry of a key. JAX does so for a key without an entry, or one whose entry it could not use."""
        if self._held is not None:
            self._held[key] = value
            return
        unfinished = self._path / f"{uuid.uuid4().hex}.unfinished"  # other processes may write the same entry
        with self._warning_once("cannot be written"):
            try:
                unfinished.write_bytes(hashlib.sha256(value).digest() + value)
                unfinished.replace(self._path / f"{key}.program")
            except BaseException:
                with contextlib.suppress(OSError):
                    unfinished.unlink(missing_ok=True)
                raise

    @contextlib.contextmanager
    def _warning_once(self, problem: str) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            if not self._has_warned:
                self._has_warned = True
                print(
                    f"warning: the compilation cache {self._path} {problem} ({error.strerror or error}): the run goes "
                    "on, and the next start compiles again",
                    file=sys.stderr,
                    flush=True,
                )


@dataclasses.dataclass
class WarmUp:
    """The start of a command: what it has compiled, and what it has read from the cache."""

    guard: CompileGuard  # which counts
    folder: str  # of the cache; "" if it is switched off
    write_cache: Callable[[], None]  # nothing is written before it is called
    compile_seconds: float = 0.0

    @contextlib.contextmanager
    def compiling(self) -> Iterator[None]:
        """Counts the seconds of its block, in which programs are compiled or read from the cache."""
        started = time.perf_counter()
        yield
        self.compile_seconds += time.perf_counter() - started

    def figures(self) -> dict[str, float]:
        """The figures of the start until now, as metrics: seconds, and programs."""
        num_cached = self.guard.num_cached
        return {
            "start/seconds": time.perf_counter() - self.guard.started,
            "start/compile_seconds": self.compile_seconds,
            "start/num_compiled": len(self.guard.compiled) - num_cached,
            "start/num_cached": num_cached,
        }

    def tell(self) -> None:
        """Prints the figures in one line on stderr."""
        seconds, compile_seconds, num_compiled, num_cached = self.figures().values()
        programs = f"{num_compiled} programs compiled, "
        programs += f"{num_cached} read from {self.folder}" if self.folder else "and the cache is switched off"
        print(f"ready after {seconds:.0f} s ({compile_seconds:.0f} s: {programs})", file=sys.stderr, flush=True)


@contextlib.contextmanager
def opened(workdir: epath.Path, guard: CompileGuard) -> Iterator[WarmUp]:
    """Keeps what is compiled in the block in a folder of `workdir`.

    If JAX_COMPILATION_CACHE_DIR is given it is that folder instead, for runs that share their programs;
    JAX_ENABLE_COMPILATION_CACHE=false switches the cache off.
    """
    given = jax.config.values
    folder = str(given["jax_compilation_cache_dir"] or workdir / FOLDER)
    settings = {"jax_compilation_cache_dir": folder} | _SETTINGS
    before, make_entries = {name: given[name] for name in settings}, jax_cache.get_file_cache
    try:
        for name, value in settings.items():
            jax.config.update(name, value)
        entries = _Entries(folder)
        jax_cache.get_file_cache = lambda path: (entries, path)
        jax_cache.reset_cache()  # it may have noted that there is none
        if given["jax_enable_compilation_cache"]:
            yield WarmUp(guard, folder, entries.write)
        else:
            yield WarmUp(guard, "", lambda: None)
    finally:
        for name, value in before.items():
            jax.config.update(name, value)
        jax_cache.get_file_cache = make_entries
        jax_cache.reset_cache()
