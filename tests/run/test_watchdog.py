"""The watchdog: what hangs is ended and told where, and what only takes long, or was suspended, is left alone."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from care_jax.run.watchdog import EXIT_CODE

PROGRAM = """
import sys, threading, time
from care_jax.run.watchdog import Watchdog

def waits_for_ever(lock):
    with lock:
        pass

def works():
    for _ in range({steps}):
        time.sleep({seconds_a_step})
        watchdog.beat("the next step")

lock = threading.Lock()
with Watchdog({hang_after}, sys.argv[1], process_index=3) as watchdog:
    print("started", flush=True)
    works()
    if {hangs}:
        lock.acquire()
        threading.Thread(target=waits_for_ever, args=(lock,)).start()
        waits_for_ever(lock)
time.sleep({afterwards})
"""


def start(folder: Path, **fields: object) -> subprocess.Popen[str]:
    """Starts the program, and waits until it says so."""
    fields = {"steps": 0, "seconds_a_step": 0.0, "hang_after": 1.0, "hangs": False, "afterwards": 0} | fields
    command = [sys.executable, "-c", PROGRAM.format(**fields), str(folder)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "started\n"
    return process


def test_what_hangs_is_ended_and_told(tmp_path):
    """Catches a pod that waits for ever, stacks that name the wrong place or one thread, and a success."""
    folder = tmp_path / "run"
    process = start(folder, steps=2, hangs=True)
    _, err = process.communicate(timeout=60)
    assert process.returncode == EXIT_CODE not in (0, 2)  # 2 is bad input: no supervisor starts that again
    assert err.count("in waits_for_ever") == 2
    last = err.splitlines()[-1]
    assert last.startswith("error: no progress for 1 s (train.hang_after) in the next step;")
    assert str(folder / "stacks_3.txt") in last
    written = (folder / "stacks_3.txt").read_text()
    assert written.startswith("error: no progress for 1 s")
    assert written.count("in waits_for_ever") == 2


def test_what_cannot_be_written_is_ended_too(tmp_path):
    """Catches a watchdog that hangs or dies with the folder that it writes to."""
    (tmp_path / "file").touch()
    process = start(tmp_path / "file" / "run", hangs=True)
    _, err = process.communicate(timeout=60)
    assert process.returncode == EXIT_CODE
    assert "in waits_for_ever" in err
    assert err.splitlines()[-1].startswith("error: no progress for 1 s")
    assert "stacks_3.txt" not in err


def test_what_makes_progress_is_left_alone(tmp_path):
    """Catches a limit on the whole run, a watch that outlives its block, and one that 0 does not turn off."""
    processes = [
        start(tmp_path / "a", steps=14, seconds_a_step=0.1, afterwards=1.5),
        start(tmp_path / "b", steps=1, seconds_a_step=1.5, hang_after=0),
    ]
    for process in processes:
        assert process.communicate(timeout=60)[1] == ""
        assert process.returncode == 0
    assert not list(tmp_path.iterdir())


def test_a_suspended_process_has_not_hung(tmp_path):
    """Catches a healthy run that Ctrl-Z, or a machine that was moved, ends."""
    process = start(tmp_path / "run", steps=6, seconds_a_step=0.1)
    os.kill(process.pid, signal.SIGSTOP)
    time.sleep(2)
    os.kill(process.pid, signal.SIGCONT)
    assert process.communicate(timeout=60)[1] == ""
    assert process.returncode == 0
