"""Two processes with two devices each, over sockets of this machine: they train as one with four."""

from __future__ import annotations

import contextlib
import json
import pickle
import re
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from care_jax import evaluate
from care_jax.errors import InputError
from care_jax.parallel import processes
from tests.benchmark_sets import prepare_all
from tests.end_to_end import (
    SmallTask,
    final_params,
    finish,
    flags,
    metrics,
    saved_steps,
    small,
    start,
    train_steps,
)
from tests.on_processes import BENCHMARKS, benchmark_config

STEPS = 4
DEADLINE = 60  # seconds in which a process ends when another one is gone, on a machine with other work


def arguments(task: SmallTask, workdir: Path) -> list[str]:
    """Command line of a short training."""
    overrides = small(
        task.model,
        task.data,
        model__weights=str(task.cold_start),
        train__steps=STEPS,
        train__checkpoint_every=1,
        train__eval_every=2,
        eval__batch_size=6,  # which four shards do not divide
        optimizer__lr=1e-3,
    )
    return ["--config=configs/demo.py", f"--workdir={workdir}", *flags(overrides)]


def devices(count: int) -> dict[str, str]:
    """Environment of a process with so many fake devices."""
    return {"XLA_FLAGS": f"--xla_force_host_platform_device_count={count}"}


@contextlib.contextmanager
def two(
    task: SmallTask, *argument_lists: list[str], module: str = "care_jax.train"
) -> Iterator[list[subprocess.Popen[str]]]:
    """Process 0 and process 1, each with its arguments; none is left at the end."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        address = f"localhost:{free.getsockname()[1]}"
    started = []
    try:
        for index, args in enumerate(argument_lists):
            extra = {"JAX_COORDINATOR_ADDRESS": address, "JAX_NUM_PROCESSES": "2", "JAX_PROCESS_ID": str(index)}
            started.append(start(module, *args, cache=task.cache, extra=extra | devices(2)))
        yield started
    finally:
        for process in started:
            process.kill()
            process.wait()


def finish_all(started: list[subprocess.Popen[str]], *, seconds: float = 240) -> list[tuple[int, str, str]]:
    """(exit code, stdout, stderr) of each."""
    ended = [finish(process, seconds=seconds) for process in started]
    return [(done.returncode, done.stdout, done.stderr) for done in ended]


def untimed(row: dict[str, Any]) -> dict[str, Any]:
    """Metrics of a step but those that tell times."""
    return {name: value for name, value in row.items() if not name.startswith(("time/", "tokens_per_s/", "speed/"))}


@pytest.fixture(scope="module")
def alone(small_task: SmallTask, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run folder of one process with four devices."""
    workdir = tmp_path_factory.mktemp("alone") / "run"
    ended = finish(start("care_jax.train", *arguments(small_task, workdir), cache=small_task.cache, extra=devices(4)))
    assert ended.returncode == 0, ended.stderr
    return workdir


def kill_one(task: SmallTask, workdir: Path, *, killed: int, after: int) -> None:
    """Starts or resumes the run, and kills one process once the checkpoint of step `after` is there."""
    with two(task, *[arguments(task, workdir)] * 2) as started:
        patience = time.monotonic() + 240
        while after not in saved_steps(workdir):
            assert all(process.poll() is None for process in started), finish_all(started, seconds=10)
            assert time.monotonic() < patience
            time.sleep(0.005)
        started[killed].send_signal(signal.SIGKILL)
        since = time.monotonic()
        code, _, told = finish_all(started, seconds=DEADLINE)[1 - killed]
    assert time.monotonic() - since < DEADLINE
    assert code not in (0, 2, -signal.SIGKILL), told  # 2 would tell a supervisor to give up
    ours = [line for line in told.splitlines() if "another one is gone; started again on all, the same command" in line]
    # JAX is told of it too, and ends a process that has not noticed by then.
    assert ours or "most likely indicates that another task died" in told, told
    assert [line.startswith(f"error: process {1 - killed} of 2") for line in ours] == [True] * len(ours), told


@pytest.mark.slow
def test_two_processes_train_as_one_through_kills(small_task: SmallTask, alone: Path, tmp_path: Path) -> None:
    """Catches processes that train on other examples, parameters or random keys than one alone.

    Also metrics, events or a sample of one process's rows alone, a process that waits for ever for one that is gone,
    steps or lines that are lost or come twice, and a process that writes beside the first.
    """
    workdir = tmp_path / "run"
    kill_one(small_task, workdir, killed=1, after=1)
    kill_one(small_task, workdir, killed=0, after=2)
    with two(small_task, *[arguments(small_task, workdir)] * 2) as started:
        ended = finish_all(started)
    assert [code for code, _, _ in ended] == [0, 0], ended
    ours, theirs = final_params(workdir), final_params(alone)
    assert max(np.abs(ours[name] - theirs[name]).max() for name in theirs) <= 1e-6
    start_params = final_params(small_task.cold_start)
    assert max(np.abs(start_params[name] - theirs[name]).max() for name in theirs) > 1e-4  # or nothing was shown
    assert train_steps(workdir) == train_steps(alone) == list(range(1, STEPS + 1))
    evaluated = [[row["step"] for row in metrics(run) if "eval/accuracy/mean" in row] for run in (workdir, alone)]
    assert evaluated[0] == evaluated[1] == [0, 2, 4]
    # A start has a line of its own, and these runs started three times and once.
    starts = [[row for row in metrics(run) if "start/seconds" in row] for run in (workdir, alone)]
    assert [len(rows) for rows in starts] == [3, 1]
    ours, theirs = ([untimed(row) for row in metrics(run) if "start/seconds" not in row] for run in (workdir, alone))
    assert [row.keys() for row in ours] == [row.keys() for row in theirs]
    for our_row, their_row in zip(ours, theirs, strict=True):
        assert our_row == pytest.approx(their_row, rel=1e-4, abs=1e-5)
    # Which of equal rollouts comes first is a matter of rounding.
    of_event = ("step", "id", "outcome", "num_negatives")
    for name, told in (
        ("events.jsonl", of_event),
        ("samples.jsonl", ("step", "id")),
        ("held_out.jsonl", ("step", "id")),
    ):
        lines = [
            [[json.loads(line)[key] for key in told] for line in (run / name).read_text().splitlines()]
            for run in (workdir, alone)
        ]
        assert lines[0] == lines[1], name
    # Process 0 is the one that shows; Gloo's lines may come in pieces.
    shown = [line for text in ended[1][1:] for line in text.splitlines()]
    assert [line for line in shown if "[Gloo]" not in line and "connected peer ranks" not in line] == []


def test_other_settings_are_refused_by_all(small_task: SmallTask, tmp_path: Path) -> None:
    """Catches processes of different configs that train on, or of which one waits for one that has ended."""
    workdir = tmp_path / "run"
    same = arguments(small_task, workdir)
    with two(small_task, same, [*same, "--config.optimizer.lr=0.5"]) as started:
        ended = finish_all(started)
    for code, out, told in ended:
        lines = [line for line in told.splitlines() if "optimizer.lr" in line]
        assert (code, len(lines)) == (2, 1), (out, told)
        assert all(word in lines[0] for word in ("0.5", "0.001", "process 1"))
        assert "Traceback" not in told
    assert not workdir.exists()


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The fixtures of benchmarks, prepared."""
    return prepare_all(tmp_path_factory.mktemp("benchmarks"))


@pytest.mark.slow
def test_processes_tell_each_other(cached: SmallTask, prepared: Path, tmp_path: Path) -> None:
    """Catches values of the wrong process or cut off, work left out or done twice, and an error that only one knows.

    Also an evaluation that two processes answer, judge or write otherwise than one, that they encode twice, or whose
    answers before a kill only one of them knows. The second batch of mathverse has one question, which process 0 asks.
    """
    whole, workdir = tmp_path / "whole", tmp_path / "run"
    for folder in (whole, workdir):
        folder.mkdir()
        (folder / "checkpoints").symlink_to(cached.cold_start / "checkpoints")
    config = benchmark_config(cached, prepared)
    results = evaluate.run_benchmarks(config, whole, BENCHMARKS)
    evaluate.run(config, whole)
    answered, before_kill = (folder / "benchmarks/mmmu/responses.jsonl" for folder in (whole, workdir))
    before_kill.parent.mkdir(parents=True)
    shutil.copy(answered.with_name("settings.json"), before_kill.parent)
    before_kill.write_bytes(answered.read_bytes().splitlines(keepends=True)[0] + b'{"id": "torn')
    arguments = [str(cached.folder), str(prepared), str(workdir)]
    with two(cached, arguments, arguments, module="tests.on_processes") as started:
        ended = finish_all(started)
    encoded = [json.loads(out.splitlines()[-1])["encoded"] for _, out, _ in ended]
    assert [len(some) for some in encoded] == [5, 3]  # of mathverse's five, and three of mmmu's four
    assert len({*encoded[0], *encoded[1]}) == 8
    samples = [(folder / "eval_samples.jsonl").read_text() for folder in (whole, workdir)]
    assert samples[0] == samples[1]
    summaries = [json.loads((folder / "eval_results.json").read_text()) for folder in (whole, workdir)]
    assert summaries[0] == summaries[1]
    for name in (
        "results.json",
        "results.md",
        *(f"{name}/{file}.jsonl" for name in BENCHMARKS for file in ("responses", "items")),
    ):
        assert (workdir / "benchmarks" / name).read_text() == (whole / "benchmarks" / name).read_text(), name
    for code, out, told in ended:
        assert code == 0, told
        found = json.loads(out.splitlines()[-1])
        assert found["lengths"] == [3, 200_000]  # of which the second is more than one frame
        assert found["shared"] == [[0, 0], [1, 10], [2, 20], [3, 30], [4, 40]]
        assert found["shared_none"] == []
        # In rounds of 128 each, so that both meet while one of them is slow.
        assert found["shared_many"] == [[n, 128 if n < 256 else 23 - n % 2] for n in range(301)]
        # In as many rounds as the one with most work has, so that neither hangs to the other's watchdog.
        assert (found["own"], found["own_rounds"]) == (True, [[3, 0, 0], [128, 128, 44]][found["index"]])
        assert (found["own_bad"], found["own_told"]) == ("process 1: no data", [0, 1])
        assert found["own_rows"] == [[0, 1, 2, 3], [4, 5, 6, 7]][found["index"]]
        assert found["done_here"] == ([0, 2, 4] if found["index"] == 0 else [1, 3])
        assert found["one_bad"] == "process 1: no data"
        assert found["both_bad"] == "no data at all"
        assert found["stopped"] == [False, True]  # process 1 was told
        assert found["eval_bad"] == "process 1: too long"
        assert found["results"] == json.loads(json.dumps(results))
        assert found["differing"].startswith("process 1: a is 2 here and 1 on process 0")


def test_one_process_is_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches a run of one process that looks for others, and half a description of them that is taken for none."""
    monkeypatch.setattr(jax.distributed, "initialize", lambda *_, **__: pytest.fail("looked for others"))
    processes.connect()
    assert processes.exchange("a") == ["a"]
    assert processes.share(lambda items: items, [1, 2]) == [1, 2]
    for name, value in (("JAX_PROCESS_ID", "0"), ("JAX_NUM_PROCESSES", "two"), ("JAX_COORDINATOR_ADDRESS", "a:1")):
        monkeypatch.setenv(name, value)
        with pytest.raises(ValueError, match="must all be given"):
            processes.connect()


@pytest.mark.parametrize(
    ("holders", "process", "shards"),
    [
        ([[0], [0], [1], [1]], 1, (2, 3)),
        ([[0], [1], [0], [1]], 0, (0, 2)),  # a mesh may lie so over the hosts
        ([[0, 1], [0, 1], [2, 3], [2, 3]], 2, (0, 1, 2, 3)),  # `tensor` goes over two hosts
        ([[0], [0, 1], [1], [1]], 1, (0, 1, 2, 3)),
        ([[0], [0]], 0, (0, 1)),
    ],
)
def test_the_share_of_a_process(holders: list[list[int]], process: int, shards: tuple[int, ...]) -> None:
    """Catches a row that two processes judge each for itself, whose devices may then hold different verdicts."""
    share = processes.HostShare.of_process(process, holders)
    assert (share.shards, share.num_shards, share.is_whole) == (shards, len(holders), len(shards) == len(holders))
    wanted = [row for shard in shards for row in (2 * shard, 2 * shard + 1)]
    assert share.rows(2 * len(holders)) == share.rows_of(2 * len(shards)) == wanted


@pytest.mark.parametrize(
    ("address", "count", "index", "told"),
    [
        (
            "host:99999999",
            "2",
            "0",
            r"the port of JAX_COORDINATOR_ADDRESS='99999999': must be a number from 1 to 65535",
        ),
        ("host:0", "2", "1", "must be a number from 1 to 65535"),
        ("host:", "2", "1", "must be a number from 1 to 65535"),
        ("host:-1", "2", "1", "must be a number from 1 to 65535"),
        ("host:12x", "2", "1", "must be a number from 1 to 65535"),
        ("host", "2", "0", "give host:port of process 0"),
        (":1234", "2", "0", "give host:port of process 0"),
        ("a b:1234", "2", "0", "give host:port of process 0"),
        ("host:1234", "0", "0", "JAX_NUM_PROCESSES='0': must be a number from 1"),
        ("host:1234", "2", "2", "JAX_PROCESS_ID='2': must be a number from 0 to 1"),
        ("host:1234", "two", "0", "must all be given, the last two as numbers"),
        ("host:1234", "2", "\u00b2", "must all be given, the last two as numbers"),
        ("host:1234", "-2", "0", "must all be given, the last two as numbers"),
    ],
)
def test_a_place_that_cannot_be_is_refused_at_once(
    monkeypatch: pytest.MonkeyPatch, address: str, count: str, index: str, told: str
) -> None:
    """Catches a port or a number that JAX waits with for minutes, or that ends it in a traceback."""
    monkeypatch.setattr(jax.distributed, "initialize", lambda *_, **__: pytest.fail("tried to join"))
    for name, value in zip(
        ("COORDINATOR_ADDRESS", "NUM_PROCESSES", "PROCESS_ID"), (address, count, index), strict=True
    ):
        monkeypatch.setenv(f"JAX_{name}", value)
    with pytest.raises(InputError, match=re.escape(told)):
        processes.connect()


@pytest.mark.parametrize("seconds", ["0", "-1", "soon", "1e3"])
def test_a_wrong_time_to_join_is_refused(monkeypatch: pytest.MonkeyPatch, seconds: str) -> None:
    """Catches a time that is taken for another one."""
    monkeypatch.setenv(processes.JOIN_SECONDS, seconds)
    with pytest.raises(InputError, match=f"{processes.JOIN_SECONDS}='{seconds}'"):
        processes.connect()


def test_who_is_missing_is_said(tmp_path: Path) -> None:
    """Catches a process that waits for minutes for others that do not come, and ends with a stack of C++.

    Process 0 and process 1 alone, process 0 whose port another program has, and process 1 that meets this program.
    """
    with socket.socket() as free, socket.socket() as silent, socket.create_server(("localhost", 0)) as stranger:
        for place in (free, silent):
            place.bind(("localhost", 0))
        empty, nobody, taken = (f"localhost:{place.getsockname()[1]}" for place in (free, silent, stranger))
        free.close()
        silent.close()
        told = {
            (empty, 0, 3): "at least one of the processes 1, 2 has not joined",
            (nobody, 1, 2): "process 0 does not answer at",
            (taken, 0, 2): "process 0 cannot listen on port",
            (taken, 1, 2): f"what answers at {taken} is not process 0",
        }
        started = [
            start(
                "tests.on_processes",
                cache=tmp_path,
                extra={
                    "JAX_COORDINATOR_ADDRESS": address,
                    "JAX_NUM_PROCESSES": str(count),
                    "JAX_PROCESS_ID": str(index),
                    processes.JOIN_SECONDS: "2",
                },
            )
            for address, index, count in told
        ]
        for (code, _, err), text in zip(finish_all(started, seconds=DEADLINE), told.values(), strict=True):
            lines = [line for line in err.splitlines() if line.startswith("error: ")]
            assert (code, len(lines)) == (1, 1), err
            assert text in lines[0]
            assert "Traceback" not in err
            assert "Check failure" not in err


class Evil:
    """A value whose unpickling runs code."""

    def __reduce__(self) -> tuple:
        """Fails the test."""
        return pytest.fail, ("what a stranger sent was run",)


@pytest.mark.parametrize(
    "sent",
    [
        pickle.dumps(Evil()),
        pickle.dumps([1]),
        b"",
        b"\xff\xfe",
        b"[" * 100_000,
        b"__import__('os').system('id')",
        b"\x00" * 10,
    ],
)
def test_nothing_that_a_stranger_sends_is_run(monkeypatch: pytest.MonkeyPatch, sent: bytes) -> None:
    """Catches pickle between processes: whoever connects first would run commands as the run's user."""

    def gather(frame: np.ndarray) -> np.ndarray:
        message = len(sent).to_bytes(8, "little") + sent
        theirs = np.frombuffer(message[: len(frame)].ljust(len(frame), b"\0"), np.uint8)
        return np.stack([frame, theirs])

    monkeypatch.setattr(processes, "is_alone", lambda: False)
    monkeypatch.setattr(processes.multihost_utils, "process_allgather", gather)
    with pytest.raises(RuntimeError, match=r"process 1 sent .*not JSON"):
        processes.exchange(True)
    monkeypatch.setattr(
        processes.multihost_utils, "process_allgather", lambda frame: np.full((2, len(frame)), 255, np.uint8)
    )
    with pytest.raises(RuntimeError, match="it does not belong to this run"):
        processes.exchange(True)
