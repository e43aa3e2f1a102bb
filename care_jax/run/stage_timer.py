"""Wall time by stage of a step."""

from __future__ import annotations

import collections
import contextlib
import time
from collections.abc import Callable, Iterator


class StageTimer:
    """Adds up the wall time of a step's stages: `with timer("rollout"): ...`.

    JAX dispatches asynchronously: a stage's block must end in something that waits for its result
    (`jax.block_until_ready`, `np.asarray`), or its time is counted in the next one.

    Args:
        on_enter: called with the name of each stage before it begins.
    """

    def __init__(self, on_enter: Callable[[str], None] = lambda stage: None) -> None:
        """Starts from nothing."""
        self._on_enter = on_enter
        self._seconds: dict[str, float] = collections.defaultdict(float)

    @contextlib.contextmanager
    def __call__(self, stage: str) -> Iterator[None]:
        """Counts the block's seconds for `stage`, also when it raises; entering a stage again adds to it."""
        self._on_enter(stage)
        start = time.perf_counter()
        try:
            yield
        finally:
            self._seconds[stage] += time.perf_counter() - start

    def take(self) -> dict[str, float]:
        """Seconds since the last take, {"time/rollout": 4.2, ...}, and starts again from nothing."""
        taken = {f"time/{stage}": seconds for stage, seconds in self._seconds.items()}
        self._seconds.clear()
        return taken
