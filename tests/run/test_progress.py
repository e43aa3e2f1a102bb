"""The progress of a run, in a log file and on a terminal."""

from __future__ import annotations

import datetime
import logging
import os
import pty
import subprocess
import sys
import termios
from pathlib import Path

import pytest
from absl import logging as absl_logging
from tqdm_loggable.tqdm_logging import tqdm_logging

from care_jax.run.progress import Progress


def test_a_log_gets_rare_lines_and_never_misses_the_last_step(capsys: pytest.CaptureFixture[str]) -> None:
    """Catches a log of a thousand lines, carriage returns in it, unknown figures shown as 0, and a lost last step."""
    handlers = [*logging.getLogger("tqdm_loggable").handlers]  # pytest has some of its own there
    progress = Progress("train", 5000)
    for step in range(1230, 1240):
        progress.show(step, {"acc": 0.123456, "groups": step, "held-out": "0.000 at step 0"})
    progress.close()
    shown = capsys.readouterr()
    first, last = shown.err.splitlines()
    assert shown.out == ""
    assert "train" in first
    assert "1230/5000 rate:- remaining:? " in first  # the time until here is that of compilations
    assert "1239/5000 rate:" in last
    assert "remaining:?" not in last
    assert last.endswith("acc=0.1235, groups=1239, held-out=0.000 at step 0")
    assert logging.getLogger("tqdm_loggable").handlers == handlers


def test_a_log_gets_a_line_whenever_the_time_between_two_has_passed(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Catches lines that are held back, and lines that absl takes for debugging messages and drops."""
    monkeypatch.setattr(tqdm_logging, "log_message_rate", datetime.timedelta(0))
    absl_logging.set_verbosity(absl_logging.WARNING)
    progress = Progress("train", 10)
    for step in (1, 2, 3):
        progress.show(step, {})
    lines = capsys.readouterr().err.splitlines()
    progress.close()
    assert [f" {step}/10 " in line for step, line in zip((1, 2, 3), lines, strict=True)] == [True] * 3


def test_a_process_that_is_not_the_first_shows_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    """Catches a progress line for every process of a pod."""
    progress = Progress("train", 10, enabled=False)
    progress.show(1, {"acc": 1.0})
    progress.close()
    assert capsys.readouterr() == ("", "")


PROGRAM = """
from care_jax.run.progress import Progress
progress = Progress("train", 3)
for step in (1, 2, 3):
    progress.show(step, {"acc": 0.25})
progress.close()
"""


def test_a_terminal_gets_a_bar_and_a_log_beside_it_stays_empty(tmp_path: Path) -> None:
    """Catches lines of a log on a terminal, and the bar's carriage returns in the file that stderr goes to."""
    ours, theirs = pty.openpty()
    termios.tcsetwinsize(theirs, (24, 100))
    environment = {name: value for name, value in os.environ.items() if name != "CI"} | {"TERM": "xterm"}
    with (tmp_path / "log").open("w") as log:
        subprocess.run([sys.executable, "-c", PROGRAM], stdout=theirs, stderr=log, check=True, env=environment)
    os.close(theirs)
    shown = os.read(ours, 1 << 16).decode()
    os.close(ours)
    assert "3/3" in shown
    assert "acc=0.25" in shown
    assert "\r" in shown
    assert (tmp_path / "log").read_text() == ""
