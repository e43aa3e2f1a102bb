"""Ends a process that makes no progress and dumps its stacks: a pod that waits costs as much as one that works."""

from __future__ import annotations

import contextlib
import faulthandler
import os
import tempfile
import threading
from typing import Self

from etils import epath

EXIT_CODE = 3
_GRACE = 10.0  # seconds in which the run folder must take the file; it may be what hangs


class Watchdog:
    """Kills the process if `beat` has not been called for some time. Use it in a `with` block, or call `close`.

    All threads' Python stacks go to stderr and to a file of the run folder; one line and exit code 3 follow, so that
    whatever started the command can start it again. The time is counted in short waits and not read from a clock: a
    process that was suspended has not hung.

    Args:
        seconds: allowed between two beats; 0: never fires.
        folder: the run folder.
        process_index: this process's number among those of the run, for the file's name.
    """

    def __init__(self, seconds: float, folder: epath.PathLike, *, process_index: int = 0) -> None:
        """Starts to watch."""
        self._seconds, self._tick = seconds, min(seconds / 20, 5.0)
        self._path = epath.Path(folder) / f"stacks_{process_index}.txt"
        self._waited, self._doing = 0.0, "the start"
        self._is_written = False
        self._closed = threading.Event()
        if seconds:
            threading.Thread(target=self._watch, name="watchdog", daemon=True).start()

    def beat(self, doing: str = "") -> None:
        """Reports progress; `doing` names the work that starts now, and the hang message shows the last one given."""
        self._waited, self._doing = 0.0, doing or self._doing

    def close(self) -> None:
        """Ends the watch."""
        self._closed.set()

    def __enter__(self) -> Self:
        """Watches already."""
        return self

    def __exit__(self, *exception: object) -> None:
        """Ends the watch."""
        self.close()

    def _watch(self) -> None:
        while not self._closed.wait(self._tick):
            self._waited += self._tick
            if self._waited > self._seconds:
                self._fire()

    def _fire(self) -> None:
        told = f"error: no progress for {self._seconds:g} s (train.hang_after) in {self._doing}"
        try:
            faulthandler.dump_traceback(2)
            writer = threading.Thread(target=self._write, args=(told,), daemon=True)
            writer.start()
            writer.join(_GRACE)
            place = f"above and in {self._path}" if self._is_written else "above"
            line = f"{told}; all stacks are {place}; leaving with exit code {EXIT_CODE}, the same command resumes\n"
            os.write(2, line.encode())
        finally:
            os._exit(EXIT_CODE)

    def _write(self, told: str) -> None:
        # faulthandler wants a file descriptor, which gs:// does not have.
        with contextlib.suppress(OSError), tempfile.TemporaryFile("w+") as stacks:
            faulthandler.dump_traceback(stacks)
            stacks.seek(0)
            self._path.parent.mkdir(parents=True, exist_ok=True)
            self._path.write_text(f"{told}\n{stacks.read()}")
            self._is_written = True
