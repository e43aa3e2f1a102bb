"""Stops a run whose steps compile after the warm-up: a shape that is in no bucket costs minutes each time."""

from __future__ import annotations

import collections
import time
from collections.abc import Callable
from typing import Self

import jax.monitoring


class CompileGuard:
    """Counts the programs XLA was asked for since the warm-up, those found in the persistent cache included.

    A program that comes from the cache today is a compilation on the next machine. A guard listens from its
    construction to `close`; use it in a `with` block or keep one for the life of the process.

    Args:
        on_compile: called with the name of each function when it has been compiled.
    """

    def __init__(self, on_compile: Callable[[str], None] = lambda name: None) -> None:
        """Listens from here on; `check` stays quiet until `arm`."""
        self._on_compile, self.started = on_compile, time.perf_counter()
        self.compiled: list[str] = []  # names of the functions, in order, since the guard was made
        self._cache_hits: list[str] = []
        self._num_allowed: int | None = None
        jax.monitoring.register_event_duration_secs_listener(self._listen)
        jax.monitoring.register_event_listener(self._listen_for_hits)

    @property
    def num_cached(self) -> int:
        """The number of `compiled` that came from the persistent cache."""
        return len(self._cache_hits)

    def _listen(self, event: str, duration_secs: float, **kwargs: str | int) -> None:
        # jax/_src/dispatch.py, BACKEND_COMPILE_EVENT: recorded around compile_or_get_cached, so for a cache hit too.
        if event == "/jax/core/compile/backend_compile_duration":
            name = str(kwargs["fun_name"])
            self.compiled.append(name)
            self._on_compile(name)

    def _listen_for_hits(self, event: str, **kwargs: str | int) -> None:
        if event == "/jax/compilation_cache/cache_hits":
            self._cache_hits.append(event)  # which several threads may do at once

    def arm(self) -> None:
        """Ends the warm-up. Arming again forgives what was compiled since (an evaluation's first run, say)."""
        self._num_allowed = len(self.compiled)

    def check(self, step: int) -> None:
        """Does nothing before `arm`.

        Raises:
            RuntimeError: something was compiled since `arm`; names the functions.
        """
        if self._num_allowed is None or len(self.compiled) == self._num_allowed:
            return
        counts = collections.Counter(self.compiled[self._num_allowed :])
        names = ", ".join(f"{name} ({count}x)" if count > 1 else name for name, count in counts.items())
        raise RuntimeError(
            f"step {step}: {counts.total()} compilation(s) after the warm-up: {names}. Every shape must be one that "
            "was compiled at the start: pad to a bucket, or warm that shape up as well"
        )

    def close(self) -> None:
        """Stops listening; `compiled` stays readable. Closing twice is an error of the caller."""
        jax.monitoring.unregister_event_duration_listener(self._listen)
        jax.monitoring.unregister_event_listener(self._listen_for_hits)

    def __enter__(self) -> Self:
        """Listens already."""
        return self

    def __exit__(self, *exc_info: object) -> None:
        """Stops listening."""
        self.close()
