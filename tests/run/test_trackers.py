"""Trackers: stand-ins for the packages note every call, so that no account, server or network is needed.

test_real_trackers.py does the same with the packages themselves.
"""

from __future__ import annotations

import functools
import json
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from care_jax import cold_start
from care_jax.config import base, validate
from care_jax.configs import demo
from care_jax.errors import InputError
from care_jax.run import trackers
from care_jax.run.metrics_writer import MetricsWriter
from tests.end_to_end import SmallTask, apply, metrics, small

SERVICES = ("wandb", "mlflow", "trackio")


class StandIns:
    """The three packages: `calls` has (tracker, what, arguments); `broken` names calls that raise."""

    def __init__(self) -> None:
        """Starts without calls."""
        self.calls: list[tuple[str, str, Any]] = []
        self.broken: set[str] = set()
        self._num_runs = 0

    def note(self, name: str, what: str, arguments: Any = None) -> None:
        """Notes a call, or raises."""
        if f"{name} {what}" in self.broken:
            raise ConnectionError("no route to host")
        self.calls.append((name, what, arguments))

    def of(self, name: str, what: str) -> list[Any]:
        """The arguments of one kind of call."""
        return [arguments for tracker, kind, arguments in self.calls if (tracker, kind) == (name, what)]

    def _init(self, package: str, /, **arguments: Any) -> Any:
        self.note(package, "init", arguments)
        log = lambda values, step: self.note(package, "log", (step, values))  # noqa: E731
        return SimpleNamespace(log=log, finish=lambda: self.note(package, "finish"))

    def _start_run(self, run_id: str | None = None, run_name: str | None = None) -> Any:
        self.note("mlflow", "init", {"run_id": run_id, "run_name": run_name})
        self._num_runs += 1
        return SimpleNamespace(info=SimpleNamespace(run_id=run_id or f"run{self._num_runs}"))

    def modules(self) -> dict[str, ModuleType]:
        """The packages by name."""
        made = {name: ModuleType(name) for name in SERVICES}
        for name in ("wandb", "trackio"):
            vars(made[name])["init"] = functools.partial(self._init, name)
        vars(made["mlflow"]).update(
            set_experiment=lambda name: self.note("mlflow", "experiment", name),
            start_run=self._start_run,
            log_params=lambda values: self.note("mlflow", "params", values),
            log_metrics=lambda values, step, run_id: self.note("mlflow", "log", (step, values)),
            end_run=lambda: self.note("mlflow", "finish"),
        )
        return made


@pytest.fixture
def services(monkeypatch: pytest.MonkeyPatch) -> StandIns:
    """Stand-ins in the packages' places."""
    stand_ins = StandIns()
    for name, module in stand_ins.modules().items():
        monkeypatch.setitem(sys.modules, name, module)
    for name in ("WANDB_PROJECT", "MLFLOW_EXPERIMENT_NAME", "MLFLOW_EXPERIMENT_ID", "TRACKIO_PROJECT"):
        monkeypatch.delenv(name, raising=False)
    return stand_ins


def open_writer(workdir: Path, tracker: str, *, resume_step: int = -1) -> MetricsWriter:
    """The writer of a run with two settings."""
    return MetricsWriter(workdir, resume_step=resume_step, settings={"tracker": tracker, "optimizer.lr": 1e-6})


def test_several_trackers_get_the_finite_scalars(services: StandIns, tmp_path: Path) -> None:
    """Catches a tracker that is left out, gets NaN, another step, or a curve without the run's settings."""
    writer = open_writer(tmp_path / "demo" / "care", "tensorboard, wandb,mlflow,trackio")
    writer.scalars(3, {"loss": 0.5, "kl": float("nan"), "eval/accuracy/a (b)": 1.0})
    writer.close()
    for name in SERVICES:
        (finite,) = services.of(name, "log")
        key = "eval/accuracy/a _b_" if name == "mlflow" else "eval/accuracy/a (b)"
        assert finite == (3, {"loss": 0.5, key: 1.0})
        assert len(services.of(name, "finish")) == 1
    for name in ("wandb", "trackio"):
        (init,) = services.of(name, "init")
        assert init["project"] == "care_jax"
        assert init["name"].startswith("demo/care")
        assert init["config"]["optimizer.lr"] == 1e-6
    assert services.of("mlflow", "experiment") == ["care_jax"]
    assert services.of("mlflow", "params")[0]["optimizer.lr"] == 1e-6
    assert len(list((tmp_path / "demo/care/tensorboard").iterdir())) == 1


def test_a_resumed_run_goes_on_in_each_tracker(services: StandIns, tmp_path: Path) -> None:
    """Catches a run that appears anew after each preemption, and a second run folder that is taken for the first."""
    for workdir in ("a", "a", "b"):
        open_writer(tmp_path / workdir, "wandb,mlflow,trackio").close()
    first, again, other = services.of("wandb", "init")
    assert first["id"] == again["id"] != other["id"]
    assert first["resume"] == "allow"
    first, again, other = services.of("trackio", "init")
    assert first["name"] == again["name"] != other["name"]
    assert [init["run_id"] for init in services.of("mlflow", "init")] == [None, "run1", None]
    assert len(services.of("mlflow", "params")) == 2  # MLflow refuses another value of a parameter


def test_without_services_nothing_is_named(tmp_path: Path) -> None:
    """Catches a file in every run folder, and "" that still writes TensorBoard's files."""
    open_writer(tmp_path / "a", "tensorboard").close()
    open_writer(tmp_path / "b", "").close()
    assert {path.name for path in (tmp_path / "a").iterdir()} - {path.name for path in (tmp_path / "b").iterdir()} == {
        "tensorboard"
    }


@pytest.mark.parametrize("name", SERVICES)
def test_a_tracker_that_fails_is_left_out(
    services: StandIns, tmp_path: Path, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Catches days of training that end because a dashboard's server is down, and a warning at each step of them."""
    writer = open_writer(tmp_path, "wandb,mlflow,trackio")
    services.broken = {f"{name} log"}
    for step in range(3):
        writer.scalars(step, {"loss": 0.5})
    writer.close()
    warned = capsys.readouterr().err.splitlines()
    assert warned == [f"warning: tracker={name} raised ConnectionError: 'no route to host'; the run goes on without it"]
    assert {other: len(services.of(other, "log")) for other in SERVICES} == {
        other: 0 if other == name else 3 for other in SERVICES
    }
    assert len((tmp_path / "metrics.jsonl").read_text().splitlines()) == 3


@pytest.mark.parametrize("name", SERVICES)
def test_a_tracker_that_does_not_start(
    services: StandIns, tmp_path: Path, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Catches a new run that trains unseen for want of a login, and a restart that ends since the server is down."""
    services.broken = {f"{name} init"}
    with pytest.raises(InputError, match=f"tracker={name} does not start: it raised ConnectionError"):
        open_writer(tmp_path, "tensorboard,wandb,mlflow,trackio")
    assert list(tmp_path.iterdir()) == []
    begun = {other for other in SERVICES if services.of(other, "init")}
    assert {other for other in SERVICES if services.of(other, "finish")} == begun
    services.broken = set()
    open_writer(tmp_path, "wandb,mlflow,trackio").close()
    services.broken = {f"{name} init"}
    open_writer(tmp_path, "wandb,mlflow,trackio", resume_step=3).close()
    assert f"warning: tracker={name} does not start" in capsys.readouterr().err


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches a traceback for a package that is not there, and one that is imported although nobody asked."""
    monkeypatch.setattr(trackers.importlib.util, "find_spec", lambda name: None if name == "wandb" else object())
    trackers.require_packages("tensorboard,mlflow")
    with pytest.raises(InputError, match=r"tracker=wandb needs the package wandb: pip install wandb"):
        trackers.require_packages("tensorboard,wandb")


def test_an_unknown_tracker_is_refused() -> None:
    """Catches a misspelt tracker that is passed over."""
    config = base()
    config.tracker = "tensorboard,wand"
    with pytest.raises(InputError, match="tracker='tensorboard,wand': choose some of tensorboard, wandb"):
        validate(config, unused=("model.folder", "data.train"))


@pytest.mark.parametrize("name", ["../a", "/a", "a//b", "..", "a/../../b", "", "naïve: 50%", "x" * 300])
def test_names_for_mlflow(name: str) -> None:
    """Catches a source of somebody's data that MLflow refuses, which would end the recording."""
    given = trackers._mlflow_name(name)
    assert 0 < len(given) <= 250
    assert given[0] not in "./"
    assert ".." not in given.split("/")
    assert set(given) & set("%()") == set()


@pytest.mark.slow
def test_a_run_tells_its_trackers(services: StandIns, cached: SmallTask, tmp_path: Path) -> None:
    """Catches a session that does not hand the config's trackers on."""
    config = apply(demo.cold_start(), small(cached.model, cached.data, train__steps=2, train__checkpoint_every=2))
    config.tracker = "wandb"
    sys.modules["wandb"].__spec__ = SimpleNamespace()  # type: ignore[assignment]
    cold_start.run(config, tmp_path / "run")
    logged = services.of("wandb", "log")
    assert [step for step, _ in logged] == [row["step"] for row in metrics(tmp_path / "run")]
    assert services.of("wandb", "init")[0]["config"]["train.steps"] == 2
    assert json.loads((tmp_path / "run/tracker.json").read_text())["started"] == ["wandb"]
    assert not (tmp_path / "run/tensorboard").exists()
