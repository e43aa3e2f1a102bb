"""The files of a run folder that grow with every step."""

from __future__ import annotations

import errno
import json
import math
import os
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tensorboardX.proto import event_pb2

from care_jax.run.metrics_writer import MetricsWriter, cut_after


def lines(path: Path) -> list[dict]:
    """The JSON lines of a file."""
    return [json.loads(line) for line in path.read_text().splitlines()]


def open_writer(workdir: Path, resume_step: int = 0, **kwargs) -> MetricsWriter:
    """The writer of a run that resumes at a step."""
    return MetricsWriter(workdir, resume_step=resume_step, **kwargs)


def tensorboard_events(workdir: Path) -> list[event_pb2.Event]:
    """All events, oldest file first: records of length (8 bytes), its checksum (4), data, the data's checksum (4)."""
    events = []
    for path in sorted((workdir / "tensorboard").iterdir()):
        data = path.read_bytes()
        while data:
            length = int.from_bytes(data[:8], "little")
            events.append(event_pb2.Event.FromString(data[12 : 12 + length]))
            data = data[16 + length :]
    return events


def test_each_stream_goes_to_its_own_file(tmp_path):
    """Catches events written among the metrics, and a line that has lost its step or has the event's own."""
    writer = open_writer(tmp_path / "run")
    writer.scalars(1, {"loss": 0.5, "num": 3})
    writer.events(1, [{"id": "a", "step": 99}, {"id": "b"}])
    writer.samples(1, [{"id": "c", "rollouts": [{"text": "<b>\u2028\n"}]}])
    writer.held_out(1, [{"id": "d", "correct": True}])
    writer.close()
    assert lines(tmp_path / "run/held_out.jsonl") == [{"step": 1, "id": "d", "correct": True}]
    assert lines(tmp_path / "run/metrics.jsonl") == [{"step": 1, "loss": 0.5, "num": 3}]
    assert lines(tmp_path / "run/events.jsonl") == [{"step": 1, "id": "a"}, {"step": 1, "id": "b"}]
    assert lines(tmp_path / "run/samples.jsonl") == [{"step": 1, "id": "c", "rollouts": [{"text": "<b>\u2028\n"}]}]


def test_lines_can_be_read_before_the_writer_is_closed(tmp_path):
    """Catches block buffering: a killed run would lose the steps that its checkpoint holds."""
    writer = open_writer(tmp_path)
    writer.scalars(1, {"loss": 0.5})
    assert lines(tmp_path / "metrics.jsonl") == [{"step": 1, "loss": 0.5}]
    writer.close()


def test_resume_cuts_what_the_killed_run_wrote_past_its_checkpoint(tmp_path):
    """Catches doubled steps after a resume, and a new line glued to the torn one of a SIGKILL."""
    for name in ("metrics.jsonl", "events.jsonl", "samples.jsonl", "held_out.jsonl"):
        whole = "".join(json.dumps({"step": step, "x": step / 2}) + "\n" for step in (0, 1, 2, 2, 3))
        (tmp_path / name).write_text(whole + '{"step": 2, "x": 1')
    writer = open_writer(tmp_path, resume_step=2)
    writer.scalars(3, {"x": 7.0})
    writer.close()
    assert [(row["step"], row["x"]) for row in lines(tmp_path / "metrics.jsonl")] == [
        (0, 0.0), (1, 0.5), (2, 1.0), (2, 1.0), (3, 7.0)
    ]  # fmt: skip
    for name in ("events.jsonl", "samples.jsonl", "held_out.jsonl"):
        assert [row["step"] for row in lines(tmp_path / name)] == [0, 1, 2, 2]
    assert not list(tmp_path.glob("*.unfinished"))


def test_verdicts_are_those_of_the_first_evaluation(tmp_path):
    """Catches a resumed run that compares with its last evaluation, and a traceback for a line of another shape."""
    writer = open_writer(tmp_path, resume_step=-1)
    assert writer.first_verdicts() == {}
    writer.held_out(0, [{"index": 3, "id": "a", "correct": True}, {"index": 9, "id": "b", "correct": False}])
    assert writer.first_verdicts() == {(3, "a"): True, (9, "b"): False}
    writer.held_out(4, [{"index": 9, "id": "b", "correct": True}])
    writer.close()
    with open(tmp_path / "held_out.jsonl", "a") as file:
        sound = {"index": 3, "id": "a", "correct": False}
        for wrong in ({"index": []}, {"index": True}, {"id": 7}, {"correct": None}, {"step": 9}):
            file.write(json.dumps({"step": 0, **sound, **wrong}) + "\n")
        file.write('{"step": 0}\n')
    writer = open_writer(tmp_path, resume_step=4)
    assert writer.first_verdicts() == {(3, "a"): True, (9, "b"): False}
    writer.close()


def test_cut_keeps_a_whole_last_line_without_its_newline(tmp_path):
    """Catches a kill between the line and its newline: the line counts, and the next one starts afresh."""
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1}\n{"step": 2}')
    cut_after(path, 2)
    assert path.read_text() == '{"step": 1}\n{"step": 2}\n'
    cut_after(path, -1)
    assert path.read_text() == ""
    cut_after(tmp_path / "missing.jsonl", 0)
    assert not (tmp_path / "missing.jsonl").exists()


def test_tensorboard_gets_the_scalars_and_forgets_past_the_checkpoint(tmp_path):
    """Catches curves that run backwards in TensorBoard after a resume, and a NaN point that hides a curve."""
    writer = open_writer(tmp_path, resume_step=4)
    writer.scalars(5, {"reward/mean": 0.25, "kl": math.nan})
    writer.close()
    events = tensorboard_events(tmp_path)
    assert {event.step for event in events if event.HasField("session_log")} == {5}
    scalars = [(event.step, value.tag, value.simple_value) for event in events for value in event.summary.value]
    assert scalars == [(5, "reward/mean", 0.25)]


def test_values_that_are_not_finite_become_null(tmp_path):
    """Catches `NaN` in the file, which is not JSON and which a browser refuses."""
    writer = open_writer(tmp_path)
    writer.scalars(1, {"loss": 0.5, "entropy": math.nan})
    writer.events(1, [{"advantages_raw": [1.0, -math.inf]}])
    writer.close()
    assert lines(tmp_path / "metrics.jsonl") == [{"step": 1, "loss": 0.5, "entropy": None}]
    assert lines(tmp_path / "events.jsonl") == [{"step": 1, "advantages_raw": [1.0, None]}]


def test_a_process_that_is_not_the_first_leaves_no_trace(tmp_path):
    """Catches two processes that write, and cut, one another's files."""
    writer = open_writer(tmp_path / "run", enabled=False)
    writer.scalars(1, {"loss": 0.5})
    writer.events(1, [{"id": "a"}])
    writer.flush()
    writer.close()
    assert not (tmp_path / "run").exists()


BROKEN_LINES = [
    *(b"null", b"[]", b"7", b'"step"', b"true", b"{}", b"NaN", b""),
    *(b'{"step": %s}' % value for value in (b"null", b'"2"', b"[2]", b"true", b"1.5", b"NaN")),
    '{"step": 1}'.encode("utf-16-le"),
    *(b"\xff\xfe\x00", b"\x00" * 20, b"[" * 100_000, b"9" * 5_000, b'{"step": 1'),
]


@pytest.mark.parametrize("line", BROKEN_LINES, ids=lambda line: repr(line[:12]))
@pytest.mark.parametrize("name", ["metrics.jsonl", "events.jsonl", "samples.jsonl", "held_out.jsonl"])
def test_a_broken_line_is_cut_off_and_counted(tmp_path: Path, name: str, line: bytes, capsys: Any) -> None:
    """Catches a run that cannot be resumed for a line that is no object with a step, or that keeps it."""
    sound = b'{"step": 1, "eval/accuracy/mean": 0.5}\n'
    (tmp_path / name).write_bytes(line + b"\n" + sound + line)
    writer = open_writer(tmp_path, resume_step=2)
    writer.close()
    assert (tmp_path / name).read_bytes() == sound
    assert writer.evaluated_steps == ({1} if name == "metrics.jsonl" else set())
    # The last one may be what a kill left; the empty one at the end is none.
    assert capsys.readouterr().err == f"warning: {tmp_path / name}: 1 broken lines are cut off\n"


@pytest.mark.parametrize("days", [-30, -1, 30, -20_000])
def test_the_clock_may_be_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, days: int) -> None:
    """Catches a writer that waits for as long as the clock was set back, so that the run hangs."""
    writer, now = open_writer(tmp_path), time.time()
    writer.scalars(1, {"loss": 0.5})
    monkeypatch.setattr(time, "time", lambda: now + 86_400 * days)

    def write() -> None:
        for step in range(2, 60):
            writer.scalars(step, {"loss": 1 / step, "reward": 0.5})
        writer.close()

    thread = threading.Thread(target=write, daemon=True)
    thread.start()
    thread.join(20)
    assert not thread.is_alive()
    scalars = [event for event in tensorboard_events(tmp_path) if event.summary.value]
    assert [event.step for event in scalars] == list(range(1, 60))


class FullDisk:
    """A file on a full disk."""

    closed = False

    def write(self, data: object) -> None:
        """Fails as a write to a full disk does."""
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def flush(self) -> None:
        """Fails as well: what could not be written is still to be."""
        self.write(b"")

    def close(self) -> None:
        """Notes it."""
        self.closed = True


def full_disk(writer: MetricsWriter, name: str) -> None:
    """One of the writer's files cannot grow any more."""
    if name == "tensorboard":
        record_writer = writer._trackers[0]._writer._py_recordio_writer
        record_writer._writer.close()
        record_writer._writer = FullDisk()
    else:
        writer._files[name].close()
        writer._files[name] = FullDisk()


@pytest.mark.parametrize("name", ["metrics.jsonl", "events.jsonl", "samples.jsonl", "held_out.jsonl", "tensorboard"])
def test_a_full_disk_ends_the_run_at_the_next_line(tmp_path: Path, name: str) -> None:
    """Catches a run that trains on without its metrics, and one that waits for a thread that has died."""
    writer = open_writer(tmp_path)
    full_disk(writer, name)
    write: Callable[[], None] = {
        "events.jsonl": lambda: writer.events(1, [{"id": "a"}]),
        "samples.jsonl": lambda: writer.samples(1, [{"id": "a"}]),
        "held_out.jsonl": lambda: writer.held_out(1, [{"id": "a"}]),
    }.get(name, lambda: writer.scalars(1, {"loss": 0.5}))
    with pytest.raises(OSError, match="No space left") as error:
        write()
    assert error.value.errno == errno.ENOSPC
    with pytest.raises(OSError, match="No space left"):  # what was not written is tried again
        writer.close()
    assert all(file.closed for file in writer._files.values())


def replace(folder: Path) -> None:
    """Another file in place of the one that is open."""
    (folder / "metrics.jsonl").unlink()
    (folder / "metrics.jsonl").write_text("")


@pytest.mark.parametrize(
    "lose",
    [
        lambda folder: folder.rename(folder.with_name("moved")),
        lambda folder: (folder / "metrics.jsonl").unlink(),
        lambda folder: (folder / "events.jsonl").unlink(),
        replace,
    ],
)
def test_a_folder_that_is_gone_is_noticed(tmp_path: Path, lose: Callable[[Path], object]) -> None:
    """Catches a run that goes on to its end and exit code 0 without leaving anything."""
    folder = tmp_path / "run"
    writer = open_writer(folder)
    writer.scalars(1, {"loss": 0.5})
    writer.require_folder()
    lose(folder)
    with pytest.raises(FileNotFoundError, match=r"the run folder was deleted, moved or replaced"):
        writer.require_folder()
    writer.close()
    other = open_writer(tmp_path / "none", enabled=False)
    other.require_folder()
