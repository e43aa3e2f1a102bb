"""A session between its steps, with stand-ins for its parts; its lock, and what training imports."""

from __future__ import annotations

import contextlib
import errno
import os
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from etils import epath

from care_jax.config import base
from care_jax.errors import InputError
from care_jax.run import manifest
from care_jax.run import session as session_lib
from care_jax.run.opening import lock, open_inputs
from care_jax.run.session import Session
from care_jax.run.stage_timer import StageTimer
from tests.pictures import question

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
        lock(epath.Path(tmp_path), first)
        with pytest.raises(ValueError, match="another process trains in it"):
            lock(epath.Path(tmp_path), second)
        first.close()
        lock(epath.Path(tmp_path), second)


EVALUATION = {"eval/accuracy/mean": 0.5, "eval/interval/mean": 0.04, "eval/n/mean": 600.0}


def stand_in(step: int, eval_examples: int) -> Any:
    """The parts that `Session`'s methods read, of a session of 10 steps that evaluates every 5."""
    config = base()
    config.train.update(steps=10, eval_every=5, checkpoint_every=5, eval_examples=eval_examples)
    told: list[Any] = []
    asked: list[Any] = []
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
            flush=lambda: None,
            evaluated_steps=set(),
            scalars=lambda step, values: told.append(values),
            first_verdicts=dict,
            held_out=lambda step, answers: None,
        ),
        evaluator=SimpleNamespace(
            run=lambda params, limit, whole, write, wait: (
                asked.append({"limit": limit, "whole": whole}) or {**EVALUATION}
            ),
            source=[],
            majority=lambda train, limit: asked.append({"majority": limit}) or {"baseline/majority/mean": 0.4},
        ),
        train=None,
        told=told,
        asked=asked,
    )


@pytest.mark.parametrize(("step", "whole"), [(0, False), (5, False), (10, True)])
def test_every_evaluation_asks_the_same_records(step: int, whole: bool) -> None:
    """Catches accuracies of two held-out sets on one curve, and a majority answer that is asked at every step."""
    session = stand_in(step, eval_examples=3)
    found = Session.evaluate_if_due(session)
    assert session.asked == [{"limit": 3, "whole": whole}, *([{"majority": 3}] if step == 0 else [])]
    Session.checkpoint_if_due(session, found)
    assert session.told[1:] == ([found] if step else [])  # what ranks the checkpoint


def test_answers_that_changed_are_written_before_the_metrics() -> None:
    """Catches changes that no metric counts, and a kill between the two after which the answers never come."""
    session = stand_in(5, 0)
    item = {"id": "q", "source": "count", "prompt": "?", "answer": "3"}
    item |= {"responses": ["3"], "extracted": ["3"], "correct": [True]}
    session.evaluator.run = lambda params, limit, whole, write, wait: write(0, item) or {**EVALUATION}
    session.evaluator.source = [question("?")]
    session.writer.first_verdicts = lambda: {(0, "q"): False}
    session.writer.held_out = lambda step, answers: session.told.append((step, [one["id"] for one in answers]))
    Session.evaluate_if_due(session)
    assert session.told[0] == (5, ["q"])
    assert (session.told[1]["eval/newly_right"], session.told[1]["eval/newly_wrong"]) == (1.0, 0.0)


def test_the_time_of_an_evaluation_is_told_with_it() -> None:
    """Catches a time that is added to the next step's, and lost after the last."""
    session = stand_in(10, 0)
    assert Session.evaluate_if_due(session) == EVALUATION
    assert session.told[0].keys() == {*EVALUATION, "time/evaluate"}
    assert not session.supervisor.timer.take()
    assert session.held_out == "0.500 ± 0.040 of 600 at step 10"


@pytest.mark.parametrize("error", [InputError("no image images/3.png"), InputError("the data have run dry")])
def test_input_that_breaks_in_mid_run_is_no_bad_input(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: InputError
) -> None:
    """Catches a supervisor that gives up with restarts left, since the run ends with the code of bad input."""
    closed: list[str] = []
    opened = SimpleNamespace(close=lambda: closed.append("session"))
    monkeypatch.setattr(session_lib, "_open", lambda *_, **__: opened)
    config = base()
    config.model.folder, config.data.train = "model", "data"

    def run() -> None:
        with session_lib.open_session(config, tmp_path, stage="train", make_encoder=lambda processor: None):
            raise error

    with pytest.raises(RuntimeError, match=f"the run in {tmp_path} ends: {error}"):
        run()
    assert closed == ["session"]
    monkeypatch.setattr(session_lib, "_open", lambda *_, **__: (_ for _ in ()).throw(error))
    with pytest.raises(InputError, match=str(error)):  # before the session is open it is
        run()


def test_every_part_is_closed_whatever_fails() -> None:
    """Catches workers that outlive a run whose last checkpoint met a full disk."""
    closed: list[str] = []

    def part(name: str) -> SimpleNamespace:
        def close() -> None:
            closed.append(name)
            raise OSError(errno.ENOSPC, name)

        return SimpleNamespace(close=close)

    names = ("checkpointer", "writer", "progress", "profile", "verifier")
    watchdog = SimpleNamespace(beat=lambda doing: None)
    session: Any = SimpleNamespace(
        **{name: part(name) for name in names}, supervisor=SimpleNamespace(watchdog=watchdog)
    )
    with pytest.raises(OSError, match="verifier"):
        Session.close(session)
    assert closed == list(names)


def test_a_reward_that_is_no_function_is_refused_at_the_start(tmp_path: Path) -> None:
    """Catches a misspelt name that ends the run at its first step, as a fault that a supervisor tries again."""
    config = base()
    config.verify.rewards = ("no_such_module:f=1",)
    with pytest.raises(InputError, match="reward 'no_such_module:f' cannot be imported"):
        open_inputs(config, epath.Path(tmp_path), "train", lambda processor: None, allow_change=False)


@pytest.mark.parametrize("below", ["file", "file/run"])
def test_a_folder_that_cannot_be_made_is_refused(tmp_path: Path, below: str) -> None:
    """Catches a traceback where one line says what to do."""
    (tmp_path / "file").write_text("")
    with contextlib.ExitStack() as held, pytest.raises(InputError, match=r"--workdir=.* cannot be written"):
        lock(epath.Path(tmp_path / below), held)


@pytest.mark.parametrize(
    ("number", "kind"),
    [
        (errno.EROFS, InputError),
        (errno.EACCES, InputError),
        (errno.EPERM, InputError),
        (errno.ENAMETOOLONG, InputError),
        (errno.ENOSPC, OSError),  # the same command may succeed later
        (errno.EDQUOT, OSError),
        (errno.EIO, OSError),
    ],
)
def test_a_folder_that_cannot_be_locked_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, kind: type[Exception]
) -> None:
    """Catches a read-only folder that ends in a traceback, and a full disk that no supervisor tries again."""

    def fail(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "open", fail)
    with contextlib.ExitStack() as held, pytest.raises(kind, match=os.strerror(number)):
        lock(epath.Path(tmp_path), held)


@pytest.mark.parametrize(
    "problem",
    [
        FileNotFoundError("git"),
        PermissionError("git"),
        subprocess.TimeoutExpired("git", 30),
        OSError(errno.ENOEXEC, "git"),
        UnicodeDecodeError("utf-8", b"\xff", 0, 1, "invalid start byte"),
    ],
)
def test_a_run_needs_no_git(monkeypatch: pytest.MonkeyPatch, problem: Exception) -> None:
    """Catches a container without git, in which no run begins."""

    def fail(*_: object, **__: object) -> None:
        raise problem

    monkeypatch.setattr(subprocess, "run", fail)
    assert manifest.make_manifest(base(), "train")["commit"] == "unknown"


def test_the_commit_is_of_this_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches an installed package that names the commit of the project whose folder its environment lies in."""

    def git(*words: str) -> str:
        named = ["git", "-C", str(tmp_path), "-c", "user.name=t", "-c", "user.email=t@t"]
        return subprocess.run([*named, *words], capture_output=True, text=True, check=True).stdout.strip()

    installed = tmp_path / ".venv/site-packages/care_jax/run/manifest.py"
    installed.parent.mkdir(parents=True)
    installed.touch()
    git("init", "-q")
    git("commit", "-q", "--allow-empty", "-m", "another project")
    monkeypatch.setattr(manifest, "__file__", str(installed))
    assert manifest.make_manifest(base(), "train")["commit"] == "unknown"
    git("add", "-f", str(installed))
    git("commit", "-qm", "a copy of the package")
    assert manifest.make_manifest(base(), "train")["commit"] == git("rev-parse", "HEAD")


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("", "manifest.json: not JSON"),
        ('{\n "stage": "train",\n', "manifest.json, line 3: not JSON"),
        ("null", "not a JSON object"),
        ('["stage"]', "not a JSON object"),
        ("{}", "names no stage"),
        ('{"stage": null}', "names no stage"),
        ('{"stage": 3}', "names no stage"),
        ('{"stage": "cold\\u001b[2J"}', r"a run of stage 'cold\x1b[2J', this is 'train'"),
        ("[" * 100_000, "not JSON (RecursionError)"),
        ("\ufeff{}", "not JSON"),
    ],
)
def test_a_broken_manifest_is_named(tmp_path: Path, text: str, told: str) -> None:
    """Catches a traceback that does not say which file is broken."""
    (tmp_path / "manifest.json").write_text(text)
    with pytest.raises(InputError, match=re.escape(told)) as error:
        manifest.require_stage(epath.Path(tmp_path), "train")
    assert str(error.value).isprintable()
