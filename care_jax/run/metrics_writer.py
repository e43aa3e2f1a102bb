"""Writes the files of a run folder that grow with the run, and tells its trackers.

The files are plain JSON lines (folder.py says of what), so a run can be read while it is written.

In a bucket (gs://) nothing can be appended to: there the files are kept on the local disk, and copied at every flush,
which comes before every checkpoint. A kill loses only lines that the resumed run writes again.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import math
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

from absl import logging
from etils import epath

from care_jax import files
from care_jax.parallel.processes import ALL_ROWS, HostShare, together
from care_jax.run.folder import EVENTS_FILE, HELD_OUT_FILE, METRICS_FILE, SAMPLES_FILE, Event, HeldOutAnswer, Sample
from care_jax.run.trackers import open_trackers


class MetricsWriter:
    """Appends to metrics, events, samples and held_out.jsonl of a run folder; trackers get the metrics too.

    Args:
        workdir: the run folder; made if it is missing.
        resume_step: the last step whose lines stay: the step of the restored checkpoint, or -1 for a run that starts
            from nothing. Lines past it, and a line that a kill left torn, are cut off: they will come again.
        enabled: False on every process but the first: nothing is written.
        share: the rows of a batch whose groups this process tells of; the first writes those of all.
        settings: of the run, by dotted key: `tracker` lists the trackers, which show the others.
    """

    def __init__(
        self,
        workdir: epath.PathLike,
        *,
        resume_step: int,
        enabled: bool = True,
        share: HostShare = ALL_ROWS,
        settings: Mapping[str, Any] = MappingProxyType({"tracker": "tensorboard"}),
    ) -> None:
        """Cuts the files back to `resume_step` and opens them.

        Raises:
            InputError: a tracker does not start; the files are as they were.
        """
        self.evaluated_steps: set[int] = set()  # steps whose evaluation is in metrics.jsonl
        self._enabled, self._share = enabled, share
        self._workdir = files.anywhere(workdir)
        if enabled:
            self._workdir.mkdir(parents=True, exist_ok=True)
            self._local = Path(tempfile.mkdtemp() if files.in_bucket(workdir) else workdir)
        self._trackers = together(
            lambda: open_trackers(self._workdir, self._local, settings, resume_step=resume_step) if enabled else []
        )
        if not enabled:
            return
        self._files = {}
        for name in (METRICS_FILE, EVENTS_FILE, SAMPLES_FILE, HELD_OUT_FILE):
            if files.in_bucket(workdir) and (self._workdir / name).exists():
                (self._local / name).write_bytes((self._workdir / name).read_bytes())
            cut_after(self._local / name, resume_step)
            # Line-buffered: what was written before a kill is on its way to the disk.
            self._files[name] = open(self._local / name, "a", encoding="utf-8", buffering=1)  # noqa: SIM115
        for row in self.past_rows():
            if any(name.startswith("eval/") for name in row):
                self.evaluated_steps.add(row["step"])

    def past_rows(self, name: str = METRICS_FILE) -> Iterator[dict[str, Any]]:
        """The lines of a file so far; none on a process that writes nothing."""
        if self._enabled:
            with open(self._local / name, encoding="utf-8") as lines:
                yield from map(json.loads, lines)

    def first_verdicts(self) -> dict[tuple[int, str], bool]:
        """The verdicts of the run's first evaluation, by index and id, as held_out.jsonl has them."""
        rows = list(self.past_rows(HELD_OUT_FILE))
        step = min((row["step"] for row in rows), default=0)
        types = {"index": int, "id": str, "correct": bool}  # lines of another shape are not this run's
        sound = [row for row in rows if all(type(row.get(name)) is kind for name, kind in types.items())]
        return {(row["index"], row["id"]): row["correct"] for row in sound if row["step"] == step}

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Writes one line of metrics.jsonl and gives the same scalars to the trackers.

        Args:
            step: the step the values belong to.
            values: Python floats and ints by name ("time/rollout"). A non-finite one becomes null in the file, and
                trackers do not get it.
        """
        if self._enabled:
            self._append(METRICS_FILE, [_line(step, values)])
            finite = {name: x for name, x in values.items() if math.isfinite(x)}
            for tracker in self._trackers:
                tracker.add(finite, step)

    def events(self, step: int, events: Sequence[Event]) -> None:
        """Appends one line of events.jsonl for each group's outcome, in the batch's order; every process calls it."""
        lines = [_line(step, event) for event in events]
        told = self._share.exchange([self._share.rows_of(len(lines)), lines])
        in_order = dict(sorted(itertools.chain.from_iterable(zip(*part, strict=True) for part in told)))
        self._append(EVENTS_FILE, list(in_order.values()))

    def samples(self, step: int, samples: Sequence[Sample]) -> None:
        """Appends one line of samples.jsonl for each group that the report shows in full; every process calls it."""
        told = self._share.exchange([_line(step, sample) for sample in samples])
        self._append(SAMPLES_FILE, list(itertools.chain.from_iterable(told)))

    def held_out(self, step: int, answers: Sequence[HeldOutAnswer]) -> None:
        """Appends one line of held_out.jsonl for each answer; every process has the same."""
        self._append(HELD_OUT_FILE, [_line(step, answer) for answer in answers])

    def require_folder(self) -> None:
        """Looks whether the files are still in the run folder, where an open file goes on without a name.

        Raises:
            FileNotFoundError: the folder was deleted or moved, or another file has the name.
        """
        for name, file in self._files.items() if self._enabled else ():
            with contextlib.suppress(FileNotFoundError):
                if os.path.samestat(os.fstat(file.fileno()), os.stat(self._local / name)):
                    continue
            raise FileNotFoundError(
                f"{self._local / name} is no longer what this run writes: the run folder was deleted, moved or replaced"
            )

    def flush(self) -> None:
        """Puts everything written so far on the disk; call it before a checkpoint of the same step is saved."""
        if self._enabled:
            self._flush()

    def _flush(self) -> None:
        for file in self._files.values():
            file.flush()
            os.fsync(file.fileno())
        for tracker in self._trackers:
            tracker.flush()
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
        with contextlib.ExitStack() as closed:  # all of it, whatever fails
            self._enabled, is_copy = False, files.in_bucket(self._workdir)
            if is_copy:
                closed.callback(shutil.rmtree, self._local)
            for tracker in self._trackers:
                closed.callback(tracker.close)
            for file in self._files.values():
                closed.callback(file.close)
            self._flush()

    def _append(self, name: str, lines: Sequence[str]) -> None:
        if self._enabled:
            self._files[name].write("".join(lines))


def _line(step: int, fields: Mapping[str, object]) -> str:
    row = {"step": step} | dict(fields) | {"step": step}
    return json.dumps(_finite(row), allow_nan=False) + "\n"


def cut_after(path: Path, step: int) -> None:
    """Drops the JSON lines of `path` that are past `step` or no such lines, in one rename; a missing file is fine.

    The last line may be torn by a kill; if others cannot be read, a line on stderr counts them.

    Args:
        path: a file of JSON objects, one a line, each with an integer "step".
        step: the last step whose lines stay.
    """
    if not path.exists():
        return
    num_cut = num_broken = 0
    is_last_torn = False
    with files.written_whole(path) as unfinished, open(path, "rb") as source, open(unfinished, "wb") as target:
        for line in source:
            found = _step_of(line)
            num_broken += found is None
            is_last_torn = found is None and not line.endswith(b"\n")
            if found is not None and found <= step:
                target.write(line if line.endswith(b"\n") else line + b"\n")
            else:
                num_cut += 1
        num_broken -= is_last_torn
        target.flush()
        os.fsync(target.fileno())
    if num_cut:
        logging.info("%s: %d lines past step %d cut off", path, num_cut, step)
    if num_broken:
        print(f"warning: {path}: {num_broken} broken lines are cut off", file=sys.stderr)


def _step_of(line: bytes) -> int | None:
    """The step of a JSON line; None for anything else. No proper prefix of a JSON object is valid JSON."""
    try:
        row = json.loads(line.decode())  # json itself would take UTF-16 too
    except (ValueError, RecursionError):
        return None
    step = row.get("step") if isinstance(row, dict) else None
    return step if type(step) is int else None


def _finite(value: object) -> object:
    """`value` with null for every NaN and infinity, which JSON cannot hold."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return value
