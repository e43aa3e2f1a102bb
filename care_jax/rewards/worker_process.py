"""One process of the pool as its parent sees it: requests on their way in, answers on their way out."""

from __future__ import annotations

import collections
import os
import pathlib
import selectors
import subprocess
import sys
import time
from collections.abc import Sequence

_IMPORT_ROOT = str(pathlib.Path(__file__).resolve().parents[2])
_READ_SIZE = 1 << 16  # bytes


class WorkerProcess:
    """One process, the requests that it holds, and the bytes in flight in both directions."""

    def __init__(self, command: Sequence[str], selector: selectors.BaseSelector) -> None:
        """Start the process and register its output with the selector."""
        # Workers import this care_jax, and a user's verifier, from any folder.
        path = os.pathsep.join(filter(None, [_IMPORT_ROOT, *sys.path]))
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            bufsize=0,
            env=os.environ | {"PYTHONPATH": path},
        )
        assert self._process.stdin
        assert self._process.stdout
        self._stdin, self._stdout = self._process.stdin, self._process.stdout
        # Neither end may block: a parent waiting to write to a worker that waits to write is a deadlock.
        os.set_blocking(self._stdin.fileno(), False)
        os.set_blocking(self._stdout.fileno(), False)
        self._selector = selector
        selector.register(self._stdout, selectors.EVENT_READ, self)
        self._writing = False
        self._unsent = bytearray()
        self._unread = bytearray()
        self.requests: collections.deque[int] = collections.deque()  # request numbers, the one in work first
        self.has_started = self.ready = False
        self.last_progress = time.monotonic()

    def send(self, numbers: Sequence[int], lines: bytes) -> None:
        """Hand over requests; bytes that the pipe does not take now are sent when it has room."""
        if not self.requests:
            self.last_progress = time.monotonic()
        self.requests.extend(numbers)
        self._unsent += lines
        self.flush()

    def flush(self) -> None:
        """Write as much as the pipe takes, and watch the pipe for room if something is left."""
        try:
            while self._unsent:
                del self._unsent[: os.write(self._stdin.fileno(), self._unsent)]
        except BlockingIOError:
            pass  # the pipe is full
        except BrokenPipeError:
            self._unsent.clear()  # the worker died; `receive` will see the end of its output
        if bool(self._unsent) != self._writing:
            self._writing = bool(self._unsent)
            if self._writing:
                self._selector.register(self._stdin, selectors.EVENT_WRITE, self)
            else:
                self._selector.unregister(self._stdin)

    def receive(self) -> tuple[list[bytes], bool]:
        """Return the complete lines that have come, and whether the process still lives."""
        data = os.read(self._stdout.fileno(), _READ_SIZE)
        self._unread += data
        *lines, rest = self._unread.split(b"\n")
        self._unread = bytearray(rest)
        if lines:
            self.last_progress = time.monotonic()
        return [bytes(line) for line in lines], bool(data)

    def has_ended(self) -> bool:
        """Return whether the process is gone."""
        return self._process.poll() is not None

    def kill(self) -> None:
        """End the process and wait for it."""
        self._selector.unregister(self._stdout)
        if self._writing:
            self._selector.unregister(self._stdin)
        self._process.kill()
        self._process.wait()
        self._stdin.close()
        self._stdout.close()
