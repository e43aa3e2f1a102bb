"""Writes a run folder's metrics.jsonl, events.jsonl, samples.jsonl and TensorBoard events as the run goes.

The files are plain JSON lines (folder.py says of what), so a run can be read while it is written.

In a bucket (gs://) nothing can be appended to: there the files are kept on the local disk, and copied at every flush,
which comes before every checkpoint. A kill loses only lines that the resumed run writes again.
"""

from __future__ import annotations

import json
import math
import os
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from absl import logging
from etils import epath

from care_jax import files
from care_jax.run.folder import EVENTS_FILE, METRICS_FILE, SAMPLES_FILE, Event, Sample


class MetricsWriter:
    """Appends to metrics.jsonl, events.jsonl, samples.jsonl and tensorboard/ of a run folder.

    Args:
        workdir: the run folder; made if it is missing.
        resume_step: the last step whose lines stay: the step of the restored checkpoint, or -1 for a run that starts
            from nothing. Lines past it, and a line that a kill left torn, are cut off: they will come again.
        enabled: False on every process but the first: nothing is written, but `scalars` still raises, so that all
            processes stop together.
        must_be_finite: metrics whose non-finite value stops the run.
    """

    def __init__(
        self,
        workdir: epath.PathLike,
        *,
        resume_step: int,
        enabled: bool = True,
        must_be_finite: Sequence[str] = ("loss", "grad_norm"),
    ) -> None:
        """Cuts the files back to `resume_step` and opens them."""
        self.evaluated_steps: set[int] = set()  # steps whose evaluation is in metrics.jsonl
        self._enabled = enabled
        self._must_be_finite = frozenset(must_be_finite)
        if not enabled:
            return
        self._workdir = files.anywhere(workdir)
        self._workdir.mkdir(parents=True, exist_ok=True)
        self._local = Path(tempfile.mkdtemp() if files.in_bucket(workdir) else workdir)
        self._files = {}
        for name in (METRICS_FILE, EVENTS_FILE, SAMPLES_FILE):
            if files.in_bucket(workdir) and (self._workdir / name).exists():
                (self._local / name).write_bytes((self._workdir / name).read_bytes())
            cut_after(self._local / name, resume_step)
            # Line-buffered: what was written before a kill is on its way to the disk.
            self._files[name] = open(self._local / name, "a", encoding="utf-8", buffering=1)  # noqa: SIM115
        # Imported here: tensorboardX imports torch, if that is installed (it is for the tests).
        import tensorboardX

        for line in (self._local / METRICS_FILE).read_text(encoding="utf-8").splitlines():
            row = json.loads(line)
            if any(name.startswith("eval/") for name in row):
                self.evaluated_steps.add(row["step"])
        # purge_step tells TensorBoard to forget what an earlier process wrote past the checkpoint.
        self._tensorboard = tensorboardX.SummaryWriter(str(self._local / "tensorboard"), purge_step=resume_step + 1)

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Writes one line of metrics.jsonl and the same scalars to TensorBoard.

        Args:
            step: the step the values belong to.
            values: Python floats and ints by name ("time/rollout"). A non-finite one becomes null in the file and is
                left out of TensorBoard.

        Raises:
            FloatingPointError: a value named in `must_be_finite` is not finite; the line is written first.
        """
        bad = sorted(name for name in self._must_be_finite & values.keys() if not math.isfinite(values[name]))
        if self._enabled:
            self._write(METRICS_FILE, step, values)
            for name, value in values.items():
                if math.isfinite(value):
                    self._tensorboard.add_scalar(name, value, step)
        if bad:
            shown = ", ".join(f"{name} = {values[name]}" for name in bad)
            raise FloatingPointError(
                f"step {step}: {shown}, must be finite; the last checkpoint is from before this step: "
                "start from it with a lower learning rate or a smaller optimizer.clip_norm"
            )

    def events(self, step: int, events: Sequence[Event]) -> None:
        """Appends one line of events.jsonl for each group's outcome."""
        for event in events:
            self._write(EVENTS_FILE, step, event)

    def samples(self, step: int, samples: Sequence[Sample]) -> None:
        """Appends one line of samples.jsonl for each group that the report shows in full."""
        for sample in samples:
            self._write(SAMPLES_FILE, step, sample)

    def flush(self) -> None:
        """Puts everything written so far on the disk; call it before a checkpoint of the same step is saved."""
        if not self._enabled:
            return
        for file in self._files.values():
            file.flush()
            os.fsync(file.fileno())
        self._tensorboard.flush()
        if files.in_bucket(self._workdir):
            for path in self._local.rglob("*"):
                if path.is_file():
                    copy = self._workdir / path.relative_to(self._local)
                    copy.parent.mkdir(parents=True, exist_ok=True)
                    epath.Path(path).copy(copy, overwrite=True)

    def close(self) -> None:
        """Flushes and closes all files. Nothing may be written afterwards; closing twice is fine."""
        if not self._enabled:
            return
        self.flush()
        for file in self._files.values():
            file.close()
        self._tensorboard.close()
        if files.in_bucket(self._workdir):
            shutil.rmtree(self._local)
        self._enabled = False

    def _write(self, name: str, step: int, fields: Mapping[str, object]) -> None:
        if self._enabled:
            row = {"step": step} | dict(fields) | {"step": step}
            self._files[name].write(json.dumps(_finite(row), allow_nan=False) + "\n")


def cut_after(path: Path, step: int) -> None:
    """Drops the JSON lines of `path` that are past `step` or torn, in one rename; a missing file is fine.

    Args:
        path: a file of JSON objects, one a line, each with an integer "step".
        step: the last step whose lines stay.
    """
    if not path.exists():
        return
    num_cut = 0
    with files.written_whole(path) as unfinished, open(path, "rb") as source, open(unfinished, "wb") as target:
        for line in source:
            if _step_of(line) <= step:
                target.write(line if line.endswith(b"\n") else line + b"\n")
            else:
                num_cut += 1
        target.flush()
        os.fsync(target.fileno())
    if num_cut:
        logging.info("%s: %d lines past step %d cut off", path, num_cut, step)


def _step_of(line: bytes) -> float:
    """The step of a JSON line; infinity for a torn one (no proper prefix of a JSON object is valid JSON)."""
    try:
        return json.loads(line)["step"]
    except ValueError:
        return math.inf


def _finite(value: object) -> object:
    """`value` with null for every NaN and infinity, which JSON cannot hold."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return value
