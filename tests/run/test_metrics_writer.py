"""The files of a run folder that grow with every step."""

from __future__ import annotations

import json
import math
from pathlib import Path

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
    writer.close()
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
    for name in ("metrics.jsonl", "events.jsonl", "samples.jsonl"):
        whole = "".join(json.dumps({"step": step, "x": step / 2}) + "\n" for step in (0, 1, 2, 2, 3))
        (tmp_path / name).write_text(whole + '{"step": 2, "x": 1')
    writer = open_writer(tmp_path, resume_step=2)
    writer.scalars(3, {"x": 7.0})
    writer.close()
    assert [(row["step"], row["x"]) for row in lines(tmp_path / "metrics.jsonl")] == [
        (0, 0.0), (1, 0.5), (2, 1.0), (2, 1.0), (3, 7.0)
    ]  # fmt: skip
    for name in ("events.jsonl", "samples.jsonl"):
        assert [row["step"] for row in lines(tmp_path / name)] == [0, 1, 2, 2]
    assert not list(tmp_path.glob("*.unfinished"))


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


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("enabled", [True, False])
def test_non_finite_loss_stops_the_run_on_every_process(tmp_path, value, enabled):
    """Catches a run that trains on after NaN, and other processes that hang because only the first one raised."""
    writer = open_writer(tmp_path, enabled=enabled)
    with pytest.raises(FloatingPointError, match=r"step 7: grad_norm = (nan|inf), must be finite"):
        writer.scalars(7, {"loss": 0.5, "grad_norm": value})
    writer.close()


def test_other_non_finite_values_become_null(tmp_path):
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
