"""The run folder of a start that is refused."""

from __future__ import annotations

import contextlib
from pathlib import Path

from care_jax import files
from care_jax.errors import InputError
from care_jax.run import opening


def _refused(workdir: Path, *, began: bool = False) -> None:
    """Locks a run folder and refuses the run, before or after its config has been written."""
    with contextlib.suppress(InputError), contextlib.ExitStack() as held:
        opening.lock(files.anywhere(workdir), held)
        if began:
            (workdir / "config.json").write_text("{}")
        raise InputError("a tracker does not start")


def test_refused_input_leaves_no_run_folder(tmp_path: Path) -> None:
    """Catches a folder with a lock and nothing else beside a message that says nothing was written."""
    _refused(tmp_path / "run")
    assert list(tmp_path.iterdir()) == []


def test_a_folder_with_something_in_it_stays(tmp_path: Path) -> None:
    """Catches a run, or somebody's folder, that is removed because a later start was refused."""
    _refused(tmp_path / "run", began=True)
    assert (tmp_path / "run/config.json").exists()
    (tmp_path / "theirs").mkdir()
    _refused(tmp_path / "theirs")
    assert (tmp_path / "theirs").exists()
