"""Guards of a run against hanging, compiling in its loop, and ignoring a request to stop."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator
from typing import TypeVar

import jax
from etils import epath

from care_jax.run.compile_guard import CompileGuard
from care_jax.run.stage_timer import StageTimer
from care_jax.run.stop import StopFlag, Stopped
from care_jax.run.watchdog import Watchdog

Arrays = TypeVar("Arrays")


@dataclasses.dataclass(frozen=True)
class Supervisor:
    """The stop signal, the watchdog, the guard and the timer of one run, which know of each other."""

    stop: StopFlag
    watchdog: Watchdog  # hears of every stage, compilation and `wait`
    guard: CompileGuard
    timer: StageTimer  # entering a stage raises Stopped if the run is to stop

    def wait(self, arrays: Arrays) -> Arrays:
        """Waits until `arrays` are computed, then returns them.

        Raises:
            Stopped: the run is to stop; a process that is alone does not wait for its device first.
        """
        self.stop.wait(arrays)
        self.watchdog.beat()
        return arrays


@contextlib.contextmanager
def supervise(workdir: epath.Path, *, hang_after: float) -> Iterator[Supervisor]:
    """The supervisor of the run in `workdir` while the block runs; `hang_after` is in seconds, 0 for never."""
    with (
        contextlib.closing(StopFlag()) as stop,
        Watchdog(hang_after, workdir, process_index=jax.process_index()) as watchdog,
        CompileGuard(lambda name: watchdog.beat(f"what follows the compilation of {name}")) as guard,
    ):

        def enter(stage: str) -> None:
            watchdog.beat(f"stage {stage}")
            if stop.poll():
                raise Stopped

        yield Supervisor(stop, watchdog, guard, StageTimer(enter))
