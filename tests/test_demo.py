"""The main job end to end, with a small model and few steps: its files, its figures, and a second run that resumes."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path
from types import SimpleNamespace

import ml_collections
import pytest

from care_jax import demo
from care_jax.errors import InputError
from care_jax.models import load_model_config
from care_jax.run.stop import EXIT_CODE, StopFlag
from tests import weights
from tests.end_to_end import SOURCES, SmallTask, apply, metrics, saved_steps, small, train_steps

STAGES = ("init", "cold_start", "care")


def _stages(task: SmallTask, workdir: Path) -> tuple[ml_collections.ConfigDict, ml_collections.ConfigDict]:
    """The demo's two stages on the small task; the weights of the second stay the first's."""
    cold, care = demo.stage_configs(workdir, seed=3)
    apply(cold, small(task.model, task.data, train__steps=20, train__prompts=16, optimizer__lr=1e-2))
    apply(care, small(task.model, task.data, train__steps=2))
    return cold, care


def test_stages_fit_together(tmp_path: Path) -> None:
    """Catches a second stage that starts from other weights, data or seed than the first left."""
    cold, care = demo.stage_configs(tmp_path, seed=7)
    assert care.model.weights == str(tmp_path / "cold_start")
    assert cold.data.train == care.data.train
    assert cold.data.format == care.data.format == "mini_vqa"
    assert cold.seed == care.seed == 7
    assert care.objective.reflect.enabled
    assert care.objective.anchored
    assert care.objective.rescue.enabled


def test_another_run_starts_from_a_cold_start_of_its_own_model(tmp_path: Path) -> None:
    """Catches a run whose first stage leaves weights of another architecture, and a table without its figures."""
    cold, after = demo.stage_configs(tmp_path, seed=7, name="qwen3_5")
    assert cold.model.folder == after.model.folder != demo.stage_configs(tmp_path, seed=7)[0].model.folder
    assert load_model_config(Path(cold.model.folder)).model_type == "qwen3_5"


def test_a_run_that_there_is_not_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Catches a misspelt run that is found out after the cold start, and the cold start as its own sequel."""
    for name in ("ppo", "cold_start"):
        monkeypatch.setattr(demo.flags, "FLAGS", SimpleNamespace(workdir=str(tmp_path), seed=1, run=name))
        with pytest.raises(InputError, match=f"^--run={name}: choose one of care, .*, lora, qwen3_5$"):
            demo.main()
    assert not list(tmp_path.iterdir())


def test_a_stop_at_the_end_of_a_stage_ends_the_demo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches a SIGTERM in the last step or the final evaluation that the next stage knows nothing of.

    Also a handler that stays and swallows the next signal.
    """
    before = signal.getsignal(signal.SIGTERM)

    def stopped_after_its_last_step(config: ml_collections.ConfigDict, workdir: Path) -> SimpleNamespace:
        stop = StopFlag()
        os.kill(os.getpid(), signal.SIGTERM)
        assert stop.poll()
        stop.close()
        return SimpleNamespace(step=config.train.steps)

    monkeypatch.setattr(demo.cold_start, "run", stopped_after_its_last_step)
    monkeypatch.setattr(demo.train, "run", lambda *_: pytest.fail("the next stage began"))
    with pytest.raises(SystemExit) as stopped:
        demo.run(tmp_path, *demo.stage_configs(tmp_path, seed=3))
    assert stopped.value.code == EXIT_CODE
    assert signal.getsignal(signal.SIGTERM) == before


def test_demo(cached: SmallTask, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Catches a stage that is left out or trained twice, an empty report, and a last line that programs cannot read."""
    first = demo.run(tmp_path, *_stages(cached, tmp_path))
    assert first.keys() == {"accuracy", "seconds", "report", "checkpoint", "export"}
    assert tuple(first["accuracy"]) == STAGES
    for stage, folder, step in (("init", "cold_start", 0), ("cold_start", "cold_start", 20), ("care", "care", 2)):
        logged = [row for row in metrics(tmp_path / folder) if row["step"] == step and "eval/accuracy/mean" in row]
        assert first["accuracy"][stage] == {name: logged[0][f"eval/accuracy/{name}"] for name in (*SOURCES, "mean")}
    assert first["accuracy"]["init"]["mean"] == 0

    assert (Path(first["checkpoint"]) / "params" / "_METADATA").is_file()
    assert saved_steps(tmp_path / "care") == [2]
    exported = Path(first["export"])
    assert weights.read_hf(exported).keys()
    assert load_model_config(exported).text.hidden_size == 32
    sample = json.loads((tmp_path / "care" / "samples.jsonl").read_text().splitlines()[0])
    page = Path(first["report"]).read_text()
    assert sample["id"] in page
    assert sample["images"][0] in page
    answers = [json.loads(line) for line in (tmp_path / "care" / "held_out.jsonl").read_text().splitlines()]
    assert len([answer for answer in answers if answer["step"] == 0]) == 12  # all that were asked

    demo.show(first)
    last = capsys.readouterr().out.splitlines()[-1]
    assert json.loads(last) == first

    # A mark in the log of each stage shows which one a figure is from, and that nothing is evaluated anew.
    marks = {"cold_start": 0.123, "care": 0.456}
    for name, mark in marks.items():
        path = tmp_path / name / "metrics.jsonl"
        *rows, last_row = metrics(tmp_path / name)
        rows.append(last_row | {"eval/accuracy/mean": mark})
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    written = [(tmp_path / name / "metrics.jsonl").read_bytes() for name in ("cold_start", "care")]
    second = demo.run(tmp_path, *_stages(cached, tmp_path))
    assert {stage: second["accuracy"][stage]["mean"] for stage in marks} == marks
    for stage in marks:
        second["accuracy"][stage]["mean"] = first["accuracy"][stage]["mean"]
    assert second | {"seconds": 0} == first | {"seconds": 0}
    assert [(tmp_path / name / "metrics.jsonl").read_bytes() for name in ("cold_start", "care")] == written
    assert train_steps(tmp_path / "care") == [1, 2]
