"""Reading ahead: threads load the next batch while the current one is in use."""

from __future__ import annotations

import concurrent.futures
from collections.abc import Callable, Iterable
from typing import Generic, TypeVar

NUM_THREADS = 4  # that encode ahead, a process

Loaded = TypeVar("Loaded")


class Prefetch(Generic[Loaded]):
    """Loads the rows of one batch in threads; beside it, only the batch that was taken last need be in memory.

    Args:
        load: makes a row from its place; called in threads.
    """

    def __init__(self, load: Callable[[int], Loaded]) -> None:
        """Starts the threads at their first row."""
        self._load = load
        self._rows: list[concurrent.futures.Future[Loaded]] = []
        self._threads = concurrent.futures.ThreadPoolExecutor(NUM_THREADS, thread_name_prefix="encode")

    def start(self, places: Iterable[int]) -> None:
        """Begins to load the batch with the rows at these places; does nothing if one has been begun."""
        self._rows = self._rows or [self._threads.submit(self._load, place) for place in places]

    def take(self) -> list[Loaded]:
        """The rows of the batch that was begun; raises what `load` raised."""
        loaded = [row.result() for row in self._rows]
        self._rows = []
        return loaded

    def wait(self) -> None:
        """Waits until the batch that was begun has been loaded."""
        concurrent.futures.wait(self._rows)

    def drop(self) -> None:
        """Gives up the batch that was begun."""
        for row in self._rows:
            row.cancel()
        self._rows = []

    def close(self) -> None:
        """Ends the threads, each after the row it is at."""
        self.drop()
        self._threads.shutdown(wait=False)
