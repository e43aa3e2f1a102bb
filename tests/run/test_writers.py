"""Files of a run folder, the progress line, stage times and the recompilation guard."""

from __future__ import annotations

import json
import math
import time
from pathlib import Path

import jax
import numpy as np
import pytest
from care_jax.run.writers import CompileGuard, MetricsWriter, StageTimer, cut_after
from tensorboardX.proto import event_pb2


def lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def open_writer(workdir: Path, resume_step: int = 0, **kwargs) -> MetricsWriter:
    return MetricsWriter(workdir, resume_step=resume_step, total_steps=10, **kwargs)


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
    assert not list(tmp_path.glob("*.tmp"))


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


def test_a_process_that_is_not_the_first_leaves_no_trace(tmp_path, capsys):
    """Catches two processes that write, and cut, one another's files."""
    writer = open_writer(tmp_path / "run", enabled=False, progress_interval=0.0)
    writer.scalars(1, {"loss": 0.5})
    writer.events(1, [{"id": "a"}])
    writer.progress(10, {"acc": 1.0})
    writer.flush()
    writer.close()
    assert not (tmp_path / "run").exists()
    assert capsys.readouterr().err == ""


def test_progress_in_a_log_is_rare_and_never_misses_the_last_step(tmp_path, capsys):
    """Catches a log of a thousand lines, carriage returns in a log, and a run whose last line is not its last step."""
    writer = open_writer(tmp_path, resume_step=3, progress_interval=1000.0)
    for step in range(4, 11):
        writer.progress(step, {"acc": 0.123456 * step, "groups": step})
    writer.close()
    shown = capsys.readouterr().err.splitlines()
    assert len(shown) == 2
    assert shown[0] == "step 4/10  acc 0.4938  groups 4"  # its time is that of compilations
    assert shown[1].startswith("step 10/10  acc 1.235  groups 10  ")
    assert shown[1].endswith(" s/step  0 min left")


def test_progress_interval_of_zero_shows_every_step(tmp_path, capsys):
    """Catches a throttle that holds lines back although the interval has passed."""
    writer = open_writer(tmp_path, progress_interval=0.0)
    for step in (1, 2, 3):
        writer.progress(step, {})
    writer.close()
    assert [line.split("  ")[0] for line in capsys.readouterr().err.splitlines()] == [
        "step 1/10", "step 2/10", "step 3/10"
    ]  # fmt: skip


def test_stage_timer_adds_up_and_starts_again():
    """Catches times that overwrite instead of adding, that a raising stage loses, and that leak into the next step."""
    timer = StageTimer()
    with timer("step"):
        for _ in range(2):
            with timer("rollout"):
                time.sleep(0.02)
        with pytest.raises(KeyError), timer("verify"):
            raise KeyError
    taken = timer.take()
    assert sorted(taken) == ["time/rollout", "time/step", "time/verify"]
    assert 0.04 <= taken["time/rollout"] <= taken["time/step"] < 1.0
    assert timer.take() == {}


def test_armed_guard_names_the_function_that_a_new_shape_compiled():
    """Catches a guard that is deaf (the event's name changed in jax) or that trips on cached calls."""

    @jax.jit
    def train_step(x):
        return x * 2.0

    with CompileGuard() as guard:
        train_step(np.ones(3, np.float32))
        guard.check(0)  # not armed: the warm-up may compile
        guard.arm()
        for step in (1, 2, 3):
            train_step(np.full(3, step, np.float32))
            guard.check(step)
        train_step(np.ones(4, np.float32))
        with pytest.raises(RuntimeError, match=r"step 4: 1 compilation\(s\) after the warm-up: .*train_step"):
            guard.check(4)
        guard.arm()
        guard.check(5)
    train_step(np.ones(5, np.float32))
    guard.check(6)  # closed: it no longer listens


def test_guard_counts_a_program_from_the_persistent_cache(tmp_path):
    """Catches a guard that is blind on the second run of a machine, where the cache answers."""
    from jax.experimental.compilation_cache import compilation_cache

    def compile_once() -> list[str]:
        with CompileGuard() as guard:
            jax.jit(lambda x: x * 3.0 + 1.0).lower(np.ones(7, np.float32)).compile()
        return guard.compiled

    settings = {
        "jax_compilation_cache_dir": str(tmp_path),
        "jax_persistent_cache_min_compile_time_secs": 0.0,
        "jax_persistent_cache_min_entry_size_bytes": 0,
    }
    seen: list[str] = []

    def listen(event: str, **kwargs: str | int) -> None:
        seen.append(event)

    before = {name: jax.config.values[name] for name in settings}
    compilation_cache.reset_cache()
    jax.monitoring.register_event_listener(listen)
    try:
        for name, value in settings.items():
            jax.config.update(name, value)
        assert len(compile_once()) == 1
        assert "/jax/compilation_cache/cache_hits" not in seen
        assert len(compile_once()) == 1
        assert "/jax/compilation_cache/cache_hits" in seen
    finally:
        jax.monitoring.unregister_event_listener(listen)
        for name, value in before.items():
            jax.config.update(name, value)
        compilation_cache.reset_cache()
