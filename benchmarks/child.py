"""Runs a command in a process of its own and measures its time and memory."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

# The peak of a process includes its parent's memory at the fork, so a small process forks the command.
_MEASURE = """
import json, os, signal, subprocess, sys, time
start = time.perf_counter()
child, stopped = None, False
def stop(*_):
    global stopped
    stopped = True
    if child:
        child.terminate()
signal.signal(signal.SIGTERM, stop)
child = subprocess.Popen(sys.argv[1:], stdout=subprocess.DEVNULL)
if stopped:
    child.terminate()
_, status, usage = os.wait4(child.pid, 0)
print(json.dumps([time.perf_counter() - start, usage.ru_utime + usage.ru_stime, usage.ru_maxrss]))
sys.exit(os.waitstatus_to_exitcode(status))
"""

_STOPPED = 4  # care_jax.run.stop.EXIT_CODE, whose module takes seconds to import
_running: set[subprocess.Popen[str]] = set()


class Usage(NamedTuple):
    """Time and memory of a process and the children it waited for; the peak is that of the largest of them."""

    seconds: float  # wall time, its start included
    cpu_seconds: float
    peak_gib: float  # resident


def run(command: Sequence[str | Path], *, cwd: Path | None = None) -> Usage:
    """Runs a command and drops its stdout.

    Raises:
        ValueError: it failed; its own message has been printed. A run that was stopped has not: its folder tells.
    """
    words = [str(word) for word in command]
    command = [sys.executable, "-c", _MEASURE, *words]
    with subprocess.Popen(command, cwd=cwd, stdout=subprocess.PIPE, text=True) as process:
        _running.add(process)
        try:
            measured, _ = process.communicate()
        finally:
            _running.discard(process)
    if process.returncode not in (0, _STOPPED):
        raise ValueError(f"{' '.join(words)} ended with exit code {process.returncode}")
    seconds, cpu_seconds, peak_kib = json.loads(measured)
    return Usage(seconds, cpu_seconds, peak_kib / 2**20)


def terminate_all() -> None:
    """Sends SIGTERM to every command that is running, whichever thread started it."""
    for process in tuple(_running):
        process.terminate()
