"""SIGTERM: a run that is asked to stop saves and leaves, on all processes at the same place."""

from __future__ import annotations

import signal
import time
from types import FrameType
from typing import Any

import jax

from care_jax.parallel.processes import exchange, is_alone

EXIT_CODE = 4  # of a run that a SIGTERM ended: it has saved, and the same command resumes


class Stopped(Exception):  # noqa: N818 (a request, not an error)
    """The run was asked to stop: the step under way is given up."""


class StopFlag:
    """Notes a SIGTERM (a preemption notice) to any process; the loop polls it, saves and leaves with exit code 4.

    Several processes agree on it at every poll, so that all leave at the same place. JAX's own
    `reached_preemption_sync_point` does not serve: it counts its calls by one number, which Orbax sets to the training
    step at every save, and a poll within a step never hears of a notice that comes then.
    With several flags, one inside the other, the signal reaches all. `close` restores what the signal did before.
    """

    def __init__(self) -> None:
        """Listens from here on."""
        self.is_set = False
        self._was_signalled = False
        self._previous = signal.signal(signal.SIGTERM, self._on_signal)

    def _on_signal(self, signum: int, frame: FrameType | None) -> None:
        self._was_signalled = True
        if callable(self._previous):
            self._previous(signum, frame)

    def close(self) -> None:
        """Puts the earlier handler back."""
        signal.signal(signal.SIGTERM, self._previous)

    def poll(self) -> bool:
        """True when the run is to stop, on all processes alike; each has to ask equally often."""
        self.is_set = self.is_set or any(exchange(self._was_signalled))
        return self.is_set

    def wait(self, arrays: Any) -> None:
        """Waits until `arrays` are computed. A process that is alone leaves at once, whatever its device still does.

        Raises:
            Stopped: the run was asked to stop.
        """
        pause = 1e-4  # seconds
        while is_alone() and not all(x.is_ready() for x in jax.tree.leaves(arrays)):
            if self.poll():
                raise Stopped
            time.sleep(pause)
            pause = min(1.5 * pause, 0.02)
        jax.block_until_ready(arrays)
        if self.poll():
            raise Stopped
