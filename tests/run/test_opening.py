"""The run folder of a start that is refused, and options that reach what a run reads."""

from __future__ import annotations

import contextlib
from pathlib import Path

import numpy as np
import pytest
from etils import epath

from care_jax import files
from care_jax.configs import demo
from care_jax.errors import InputError
from care_jax.run import opening
from care_jax.structs import Outcome
from tests.end_to_end import SmallTask, apply, small


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


@pytest.mark.parametrize("stage", ["train", "cold_start"])
def test_options_reach_the_stream(stage: str, small_task: SmallTask, tmp_path: Path) -> None:
    """Catches shares of turns that change places, and a cold start, which has no groups, that keeps outcomes."""
    changes = {"data__turns_if_all_correct": 0.3, "data__turns_if_all_wrong": 0.7}
    config = apply(demo.get_config(), small(small_task.model, small_task.data, **changes))
    inputs = opening.open_inputs(
        config, epath.Path(tmp_path / "run"), stage, lambda processor: lambda record: record.id, allow_change=False
    )
    with contextlib.closing(inputs.data):
        outcomes = inputs.data.iterator.outcomes
        outcomes.tell([(0, Outcome.ALL_CORRECT), (1, Outcome.ALL_WRONG)])
        outcomes.count()
        turns = [[outcomes.record_of_turn(turn, i, range(48))[1] == 0 for turn in range(2000)] for i in range(3)]
    expected = [0.3, 0.7, 1] if stage == "train" else [1, 1, 1]
    np.testing.assert_allclose(np.mean(turns, axis=1), expected, atol=0.04)
