"""The conversion benchmark at a tiny size."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest

from benchmarks import child, convert
from care_jax.run.stop import EXIT_CODE


@pytest.mark.slow
def test_figures_are_the_last_line_and_nothing_is_left(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Catches a command that fails, a result that differs from the source, and gigabytes left behind."""
    figures = convert.main(["--folder", str(tmp_path), "--model", "tiny"])
    assert json.loads(capsys.readouterr().out.splitlines()[-1]) == figures
    assert 0 < figures["peak_rss_gib"] < 3
    assert figures["mb_per_s_in"] > 0
    assert figures["mb_per_s_out"] > 0
    assert not list(tmp_path.iterdir())


def test_memory_is_that_of_the_command_alone() -> None:
    """Catches a peak that includes this process's memory, which a command inherits when it is forked."""
    ballast = np.ones(2**26)
    assert child.run([sys.executable, "-c", "pass"]).peak_gib < 0.1 < ballast.nbytes / 2**30
    with pytest.raises(ValueError, match="ended with exit code 3"):
        child.run([sys.executable, "-c", "raise SystemExit(3)"])


def test_a_stopped_run_is_no_failure() -> None:
    """Catches a copy of the exit code that is no longer a stopped run's."""
    child.run([sys.executable, "-c", f"raise SystemExit({EXIT_CODE})"])


def test_a_difference_is_noticed(tmp_path: Path) -> None:
    """Catches a comparison of names and sizes only."""
    for name, text in (("a", "1"), ("b", "2")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "file").write_text(text)
    with pytest.raises(ValueError, match="differ in file"):
        convert.require_equal(tmp_path / "a", tmp_path / "b")
