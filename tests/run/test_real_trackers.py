"""The trackers' own packages, offline: python -m pytest -m integration, with wandb, mlflow and trackio installed."""

from __future__ import annotations

import sqlite3
from pathlib import Path
from typing import Any

import pytest

from care_jax.run.metrics_writer import MetricsWriter

pytestmark = [
    pytest.mark.integration,
    pytest.mark.filterwarnings("default"),  # theirs
]


def record(workdir: Path, tracker: str) -> None:
    """A run of three steps that is killed after two, and resumes."""
    settings: dict[str, Any] = {"tracker": tracker, "optimizer.lr": 1e-6, "data.train": "x" * 7000}
    settings |= {f"setting.{i}": i for i in range(150)}
    for resume_step, steps in ((-1, (0, 1)), (0, (1, 2))):
        writer = MetricsWriter(workdir, resume_step=resume_step, settings=settings)
        for step in steps:
            writer.scalars(step, {"loss": step / 2, "eval/accuracy/a (b)": 1.0})
        writer.close()


def test_mlflow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Catches calls that MLflow does not take: a name, many parameters, a long value, a run that is opened again."""
    import mlflow

    monkeypatch.setattr(mlflow.tracking._tracking_service.utils, "_tracking_uri", None)
    mlflow.set_tracking_uri(f"sqlite:///{tmp_path}/mlflow.db")
    record(tmp_path / "demo/run", "mlflow")
    assert "warning" not in capsys.readouterr().err
    client = mlflow.MlflowClient()
    (run,) = client.search_runs([client.get_experiment_by_name("care_jax").experiment_id])
    assert run.info.run_name == "demo/run"
    assert run.info.status == "FINISHED"
    assert run.data.params["optimizer.lr"] == "1e-06"
    assert {point.step: point.value for point in client.get_metric_history(run.info.run_id, "loss")} == {
        0: 0.0,
        1: 0.5,
        2: 1.0,
    }


def test_wandb(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Catches calls that wandb does not take."""
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_DIR", str(tmp_path))
    record(tmp_path / "demo/run", "wandb")
    assert "warning: tracker" not in capsys.readouterr().err
    runs = sorted((tmp_path / "wandb").glob("offline-run-*"))
    assert len({run.name.rpartition("-")[2] for run in runs}) == 1  # one id
    assert all(list(run.glob("run-*.wandb")) for run in runs)


def test_trackio(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Catches calls that trackio does not take, and a run that appears twice."""
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))  # read when it is imported
    record(tmp_path / "demo/run", "trackio")
    assert "warning: tracker" not in capsys.readouterr().err
    (database,) = (tmp_path / "trackio").glob("care_jax*.db")
    with sqlite3.connect(database) as connection:
        rows = connection.execute("select distinct run_name, step from metrics order by step").fetchall()
    assert [step for _, step in rows] == [0, 1, 2]
    assert len({run for run, _ in rows}) == 1
