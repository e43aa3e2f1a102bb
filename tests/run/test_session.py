"""A session between its steps, with stand-ins for its parts; its lock, and what training imports."""

from __future__ import annotations

import contextlib
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from etils import epath

from care_jax.config import base
from care_jax.run.session import Session, _lock
from care_jax.run.stage_timer import StageTimer

PROGRAM = """
import sys
import care_jax.train, care_jax.cold_start
refused = ("care_jax.data.readers", "care_jax.evals.test_sets", "care_jax.evals.lmms_eval", "care_jax.evals.responses")
print(sorted(name for name in sys.modules if name.startswith(refused)))
"""


def test_training_loads_no_reader_of_benchmarks() -> None:
    """Catches a training that imports the evaluation's command, and through it every reader of a data set."""
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_one_process_trains_in_a_folder(tmp_path: Path) -> None:
    """Catches a run that is started again while the first still writes, and a lock that outlives its holder."""
    with contextlib.ExitStack() as first, contextlib.ExitStack() as second:
        _lock(epath.Path(tmp_path), first)
        with pytest.raises(ValueError, match="another process trains in it"):
            _lock(epath.Path(tmp_path), second)
        first.close()
        _lock(epath.Path(tmp_path), second)


def stand_in(step: int, eval_examples: int) -> Any:
    """The parts that `Session`'s methods read, of a session of 10 steps that evaluates every 5."""
    config = base()
    config.train.update(steps=10, eval_every=5, checkpoint_every=5, eval_examples=eval_examples)
    told: list[Any] = []
    return SimpleNamespace(
        step=step,
        config=config,
        supervisor=SimpleNamespace(
            stop=SimpleNamespace(is_set=False),
            watchdog=SimpleNamespace(beat=lambda doing: None),
            timer=StageTimer(),
            wait=None,
        ),
        state=SimpleNamespace(params=None),
        data=SimpleNamespace(iterator=None),
        checkpointer=SimpleNamespace(
            latest_step=None, save=lambda state, iterator, metrics, sums: told.append(metrics)
        ),
        sums=None,
        writer=SimpleNamespace(
            flush=lambda: None, evaluated_steps=set(), scalars=lambda step, values: told.append(values)
        ),
        evaluator=SimpleNamespace(run=lambda params, limit, wait: {"eval/accuracy/mean": 0.5}),
        told=told,
    )


@pytest.mark.parametrize(("eval_examples", "ranked"), [(0, True), (3, False)])
def test_only_evaluations_of_the_same_records_are_ranked(eval_examples: int, ranked: bool) -> None:
    """Catches a best checkpoint that is best on other questions than those it is compared on."""
    for step, expected in ((5, True), (10, ranked)):
        session = stand_in(step, eval_examples)
        Session.checkpoint_if_due(session, {"eval/accuracy/mean": 0.5})
        assert session.told == [{"eval/accuracy/mean": 0.5} if expected else None]


def test_the_time_of_an_evaluation_is_told_with_it() -> None:
    """Catches a time that is added to the next step's, and lost after the last."""
    session = stand_in(10, 0)
    assert Session.evaluate_if_due(session) == {"eval/accuracy/mean": 0.5}
    assert session.told[0].keys() == {"eval/accuracy/mean", "time/evaluate"}
    assert not session.supervisor.timer.take()
    assert session.held_out == "0.500 at step 10"
