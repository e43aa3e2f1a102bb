"""Sends a run's scalars to experiment trackers: TensorBoard, Weights & Biases, MLflow, Trackio.

`tracker` in the config lists them. All but TensorBoard are packages of their own, imported only if listed, and set up
by their own environment variables: WANDB_PROJECT, WANDB_MODE=offline, MLFLOW_TRACKING_URI, MLFLOW_EXPERIMENT_NAME,
TRACKIO_PROJECT, TRACKIO_SPACE_ID and so on.

A run folder is one run of each tracker, which a resumed run goes on with. After a kill it repeats the steps behind its
newest checkpoint and sends them again, with the same values; Weights & Biases ignores steps that it already has.
"""

from __future__ import annotations

import importlib.util
import json
import os
import posixpath
import re
import secrets
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

from etils import epath

from care_jax import files
from care_jax.errors import InputError, one_line, raised
from care_jax.options import tracker_names
from care_jax.run.folder import TRACKER_FILE, read_object

_PROJECT = "care_jax"  # of a run whose environment names none
_MODULES = {"tensorboard": "tensorboardX"}  # if it is not the tracker's name


class Tracker(Protocol):
    """Takes a run's scalars."""

    def add(self, values: Mapping[str, float], step: int) -> None:
        """Records finite values of a step, by name."""

    def flush(self) -> None:
        """Puts everything on the disk, if that is where it goes."""

    def close(self) -> None:
        """Ends the recording."""


def require_packages(tracker: str) -> None:
    """Looks whether the packages of the config's `tracker` are installed, without importing them.

    Raises:
        InputError: one is not.
    """
    for name in tracker_names(tracker):
        package = _MODULES.get(name, name)
        if importlib.util.find_spec(package) is None:
            raise InputError(f"tracker={name} needs the package {package}: pip install {package}, or leave it out")


def open_trackers(workdir: epath.Path, local: Path, settings: Mapping[str, Any], *, resume_step: int) -> list[Tracker]:
    """Opens the trackers of the run in `workdir`.

    Args:
        workdir: the run folder.
        local: the same, or its copy on the local disk if it lies in a bucket.
        settings: of the run, by dotted key: `tracker` lists the trackers, which show the others beside the curves.
        resume_step: the last step that stays recorded; -1 for a run that starts from nothing.

    Raises:
        InputError: a tracker does not start and never has for this run. If it did before, its server may be down, and
            the run goes on without it.
    """
    names = tracker_names(settings["tracker"])
    services = [name for name in names if name in _SERVICES]
    known = _read_known(workdir) if services else {}
    opened: list[Tracker] = []
    for name in services:
        try:
            opened.append(_Service(name, *_SERVICES[name](known, settings)))
        except Exception as error:  # of a foreign package, its configuration or its server
            why = f"tracker={name} does not start: it {one_line(raised(error))}"
            if name not in known["started"]:
                for tracker in opened:
                    tracker.close()
                raise InputError(f"{why}; mend its configuration, or leave it out") from error
            _warn(f"{why}; the run goes on without it")
    if services:
        known["started"] = sorted({*known["started"], *services})
        files.write_text(workdir / TRACKER_FILE, json.dumps(known, indent=1, sort_keys=True) + "\n")
    if "tensorboard" in names:
        opened.append(_TensorBoard(local / "tensorboard", purge_step=resume_step + 1))
    return opened


def _read_known(workdir: epath.Path) -> dict[str, Any]:
    """The names that trackers have for the run in `workdir`: id, name, and `started`, those that recorded it."""
    if (workdir / TRACKER_FILE).is_file():
        known = read_object(workdir / TRACKER_FILE)
        if {"id", "name", "started"} <= known.keys():
            return known
        raise InputError(f"{workdir / TRACKER_FILE} names no run; remove it, and the trackers begin a new one")
    return {"id": secrets.token_hex(4), "name": "/".join(workdir.parts[-2:]), "started": []}


def _warn(text: str) -> None:
    print(f"warning: {text}", file=sys.stderr)


class _Service:
    """A tracker of another program: from its first failure on, the run goes on without it."""

    def __init__(self, name: str, log: Callable[[dict[str, float], int], Any], finish: Callable[[], Any]) -> None:
        self._name, self._log, self._finish = name, log, finish
        self._has_failed = False

    def add(self, values: Mapping[str, float], step: int) -> None:
        self._try(lambda: self._log(dict(values), step))

    def flush(self) -> None:
        """Does nothing: a service sends in its own time."""

    def close(self) -> None:
        self._try(self._finish)

    def _try(self, call: Callable[[], Any]) -> None:
        if self._has_failed:
            return
        try:
            call()
        except Exception as error:
            self._has_failed = True
            _warn(f"tracker={self._name} {one_line(raised(error))}; the run goes on without it")


# Starts or resumes a run; returns what logs values of a step, and what ends it.
_Opened = tuple[Callable[[dict[str, float], int], Any], Callable[[], Any]]


def _open_wandb(known: dict[str, Any], settings: Mapping[str, Any]) -> _Opened:
    import wandb

    run = wandb.init(
        project=os.environ.get("WANDB_PROJECT", _PROJECT),
        id=known["id"],
        name=known["name"],
        resume="allow",
        config=dict(settings),
    )
    return lambda values, step: run.log(values, step=step), run.finish


def _open_mlflow(known: dict[str, Any], settings: Mapping[str, Any]) -> _Opened:
    import mlflow

    if "mlflow" in known:
        mlflow.start_run(run_id=known["mlflow"])
    else:
        if not {"MLFLOW_EXPERIMENT_NAME", "MLFLOW_EXPERIMENT_ID"} & os.environ.keys():
            mlflow.set_experiment(_PROJECT)
        known["mlflow"] = mlflow.start_run(run_name=known["name"]).info.run_id
        mlflow.log_params(dict(settings))

    def log(values: dict[str, float], step: int) -> None:
        named = {_mlflow_name(name): value for name, value in values.items()}
        mlflow.log_metrics(named, step=step, run_id=known["mlflow"])

    return log, mlflow.end_run


def _mlflow_name(name: str) -> str:
    """`name` as MLflow takes it: a normal relative path of letters, digits and few signs."""
    path = posixpath.normpath(re.sub(r"[^\w.\- /:]", "_", name)).lstrip("./")
    return path[:250] or "_"


def _open_trackio(known: dict[str, Any], settings: Mapping[str, Any]) -> _Opened:
    import trackio

    run = trackio.init(
        project=os.environ.get("TRACKIO_PROJECT", _PROJECT),
        name=f"{known['name']}-{known['id']}",  # which is all that tells runs apart
        resume="allow",
        config=dict(settings),
        embed=False,
    )
    return lambda values, step: run.log(values, step=step), run.finish


_SERVICES: dict[str, Callable[[dict[str, Any], Mapping[str, Any]], _Opened]] = {
    "wandb": _open_wandb,
    "mlflow": _open_mlflow,
    "trackio": _open_trackio,
}


class _TensorBoard:
    """Writes scalars for TensorBoard, each when it is added. A full disk ends the run, as in metrics.jsonl.

    tensorboardX's own SummaryWriter does so in a thread that reads the clock: it waits for a month if that is set back
    by one. On a full disk it dies, and the next scalar waits for ever.
    """

    def __init__(self, folder: Path, *, purge_step: int) -> None:
        """Opens a new file in `folder`; TensorBoard will forget what earlier ones have from `purge_step` on."""
        # Imported here: tensorboardX imports torch, if that is installed (it is for the tests).
        from tensorboardX.event_file_writer import EventsWriter
        from tensorboardX.proto import event_pb2, summary_pb2

        folder.mkdir(parents=True, exist_ok=True)
        self._event, self._summary = event_pb2.Event, summary_pb2.Summary
        self._writer = EventsWriter(str(folder / "events"))
        log = event_pb2.SessionLog(status=event_pb2.SessionLog.START)
        self._writer.write_event(event_pb2.Event(wall_time=time.time(), step=purge_step, session_log=log))

    def add(self, values: Mapping[str, float], step: int) -> None:
        """Writes finite scalars of a step."""
        scalars = [self._summary.Value(tag=name, simple_value=float(value)) for name, value in values.items()]
        self._writer.write_event(self._event(wall_time=time.time(), step=step, summary=self._summary(value=scalars)))
        self.flush()

    def flush(self) -> None:
        """Hands everything to the operating system."""
        self._writer.flush()

    def close(self) -> None:
        """Flushes and closes the file."""
        self._writer.close()
