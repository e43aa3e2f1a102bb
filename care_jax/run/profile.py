"""A jax.profiler trace of some steps of a run: `--profile_steps=10:12`."""

from __future__ import annotations

import contextlib
import re
import sys
from collections.abc import Iterator

import jax
from etils import epath

from care_jax import files
from care_jax.errors import InputError, shown
from care_jax.parallel.processes import is_first

FLAG = "profile_steps"
FOLDER = "profile"  # of a run folder


class StepProfile:
    """Traces the steps FIRST to LAST of a run; every process its own devices.

    Args:
        steps: "FIRST:LAST", counted from 1; None traces nothing.
        workdir: the run folder.
        total_steps: the step at which the run ends.

    Raises:
        InputError: `steps` is no such range or not within the run, or the run folder lies in a bucket.
    """

    def __init__(self, steps: str | None, workdir: epath.Path, total_steps: int) -> None:
        """Reads the range; nothing is traced yet."""
        self._steps = _read_range(steps, total_steps)
        self._folder, self._is_tracing = str(workdir / FOLDER), False
        if self._steps:
            files.on_disk(workdir, f"--{FLAG} with --workdir")

    def warn_if_past(self, step: int) -> None:
        """Says so if the run goes on behind the last step to trace."""
        if self._steps and step >= self._steps[-1] and is_first():
            told = f"--{FLAG}={self._steps[0]}:{self._steps[-1]}"
            print(f"warning: {told}: the run goes on with step {step + 1}, so nothing is traced", file=sys.stderr)

    @contextlib.contextmanager
    def around(self, step: int) -> Iterator[None]:
        """Traces the block, which is a step, if it is among those to trace."""
        if not self._is_tracing and step in self._steps:
            jax.profiler.start_trace(self._folder)
            self._is_tracing = True
        try:
            with jax.profiler.StepTraceAnnotation("step", step_num=step):
                yield
        except BaseException:
            self.close()
            raise
        if step + 1 not in self._steps:
            self.close()

    def close(self) -> None:
        """Writes the trace, if one is under way, and says where."""
        if self._is_tracing:
            self._is_tracing = False
            jax.profiler.stop_trace()
            if is_first():
                print(f"profile of steps {self._steps[0]} to {self._steps[-1]}: {self._folder}", file=sys.stderr)


def _read_range(steps: str | None, total_steps: int) -> range:
    if steps is None:
        return range(0)
    found = re.fullmatch(r"([0-9]{1,9}):([0-9]{1,9})", steps)
    first, last = (int(found[1]), int(found[2])) if found else (0, 0)
    if not 1 <= first <= last <= total_steps:
        raise InputError(
            f"--{FLAG}={shown(steps)}: give FIRST:LAST, two steps from 1 to train.steps={total_steps}, as 10:12"
        )
    return range(first, last + 1)
