"""The progress of a run: a bar on a terminal or in a notebook, else a line on stderr every ten seconds."""

from __future__ import annotations

import logging
import sys
from collections.abc import Mapping

from tqdm_loggable.auto import tqdm


class _StepBar(tqdm):
    """Shows steps as they are: 1234/5000, not 1.23k/5.00k."""

    monitor_interval = 0  # no thread: every update draws or logs what is due

    @staticmethod
    def format_sizeof(num: float, suffix: str = "", divisor: float = 1000) -> str:
        """The number of steps; the unit is in the rate."""
        return f"{num:g}"


class Progress:
    """Shows the steps done and the figures that matter.

    The bar begins at the first step shown, since what comes before it is compilation: its time is not in the rate, and
    the time left is unknown at that step.

    Args:
        stage: what is shown before the steps.
        total_steps: the step at which the run ends.
        enabled: False on every process but the first, which shows nothing.
    """

    def __init__(self, stage: str, total_steps: int, *, enabled: bool = True) -> None:
        """Shows nothing before the first `show`."""
        self._stage, self._total_steps, self._is_enabled = stage, total_steps, enabled
        self._bar: _StepBar | None = None
        self._log, self._handler = logging.getLogger("tqdm_loggable"), logging.StreamHandler()

    def show(self, step: int, figures: Mapping[str, float | str]) -> None:
        """Moves on to `step`; `figures` are floats and ints by name, or texts."""
        if not self._is_enabled:
            return
        shown = {name: f"{value:.4g}" if isinstance(value, float) else value for name, value in figures.items()}
        text = ", ".join(f"{name}={value}" for name, value in shown.items())
        if self._bar is None:
            # The lines of a log go through `logging`, where absl lets only warnings pass.
            self._log.addHandler(self._handler)
            self._log.setLevel(logging.INFO)
            self._log.propagate = False
            self._bar = _StepBar(
                desc=self._stage,
                total=self._total_steps,
                initial=step,
                unit="step",
                postfix=text,
                file=sys.stdout,  # by which tqdm_loggable tells a terminal from a log
                dynamic_ncols=True,
                mininterval=0,
                miniters=1,
            )
            return
        self._bar.set_postfix_str(text, refresh=False)
        if step < self._total_steps:
            self._bar.update(step - self._bar.n)
        else:
            self._bar.n = step  # which `close` shows

    def close(self) -> None:
        """Shows the last step, whenever the one before was shown."""
        if self._bar is not None:
            self._bar.close()
            self._log.removeHandler(self._handler)
