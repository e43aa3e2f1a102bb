"""What a run says about itself: scalars, events, samples, a progress line, stage times, and compilations.

A run folder's files are plain JSON lines, so a run can be read while it is written:

    metrics.jsonl   {"step": 12, "loss": 0.31, "time/rollout": 4.2}     scalars; TensorBoard gets the same
    events.jsonl    {"step": 12, "id": "q17", "outcome": "MIXED", ...}  one line a group
    samples.jsonl   {"step": 10, "id": "q17", "rollouts": [...], ...}   one line a group that is shown in the report

In a bucket (gs://) nothing can be appended to: there the files are kept on the local disk, and copied at every flush,
which is before every checkpoint. What a kill loses of them is what the resumed run writes again.
"""

from __future__ import annotations

import collections
import contextlib
import json
import math
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import tqdm
from absl import logging
from etils import epath

from care_jax import files

METRICS_FILE = "metrics.jsonl"
EVENTS_FILE = "events.jsonl"
SAMPLES_FILE = "samples.jsonl"


class MetricsWriter:
    """Appends to a run folder's metrics.jsonl, events.jsonl, samples.jsonl and tensorboard/; shows the progress.

    Args:
      workdir: the run folder; made when it is missing.
      resume_step: the last step whose lines stay, which is the step of the restored checkpoint; -1 where a run
        starts from nothing. Lines past it, and a line that a kill left torn, are cut off: they will come again.
      total_steps: the step at which the run ends, for the progress line.
      enabled: False on every process but the first: nothing is written or shown, but `scalars` still raises, so
        that all processes stop together.
      must_be_finite: metrics whose non-finite value stops the run.
      progress_interval: seconds between two progress lines where stderr is no terminal.
    """

    def __init__(
        self,
        workdir: epath.PathLike,
        *,
        resume_step: int,
        total_steps: int,
        enabled: bool = True,
        must_be_finite: Sequence[str] = ("loss", "grad_norm"),
        progress_interval: float = 10.0,
    ) -> None:
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
        # Imported here: where torch is installed (it is for the tests), tensorboardX imports it on the way.
        import tensorboardX

        for line in (self._local / METRICS_FILE).read_text(encoding="utf-8").splitlines():
            row = json.loads(line)
            if any(name.startswith("eval/") for name in row):
                self.evaluated_steps.add(row["step"])
        # purge_step tells TensorBoard to forget what an earlier process wrote past the checkpoint.
        self._tensorboard = tensorboardX.SummaryWriter(str(self._local / "tensorboard"), purge_step=resume_step + 1)
        self._progress = _Progress(max(resume_step, 0), total_steps, progress_interval)

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

    def events(self, step: int, events: Sequence[Mapping[str, object]]) -> None:
        """Appends one line of events.jsonl for each group's outcome."""
        for event in events:
            self._write(EVENTS_FILE, step, event)

    def samples(self, step: int, samples: Sequence[Mapping[str, object]]) -> None:
        """Appends one line of samples.jsonl for each group that the report shows in full."""
        for sample in samples:
            self._write(SAMPLES_FILE, step, sample)

    def progress(self, step: int, figures: Mapping[str, float]) -> None:
        """Shows how far the run is, with the figures that matter: a bar on a terminal, else a line now and then."""
        if self._enabled:
            self._progress.show(step, figures)

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
        self._progress.close()
        if files.in_bucket(self._workdir):
            shutil.rmtree(self._local)
        self._enabled = False

    def _write(self, name: str, step: int, fields: Mapping[str, object]) -> None:
        if self._enabled:
            row = {"step": step} | dict(fields) | {"step": step}
            self._files[name].write(json.dumps(_finite(row), allow_nan=False) + "\n")


def cut_after(path: Path, step: int) -> None:
    """Drops the JSON lines of `path` that are past `step` or are not whole, in one rename; a missing file is fine.

    Args:
      path: a file of JSON objects, one a line, each with an integer "step".
      step: the last step whose lines stay.
    """
    if not path.exists():
        return
    temporary = path.with_name(path.name + ".tmp")
    num_cut = 0
    with open(path, "rb") as source, open(temporary, "wb") as target:
        for line in source:
            if _step_of(line) <= step:
                target.write(line if line.endswith(b"\n") else line + b"\n")
            else:
                num_cut += 1
        target.flush()
        os.fsync(target.fileno())
    os.replace(temporary, path)
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


class _Progress:
    """A tqdm bar where stderr is a terminal, else a plain line at most every `interval` seconds and at the end."""

    def __init__(self, first_step: int, total_steps: int, interval: float) -> None:
        self._first_step = first_step
        self._total_steps = total_steps
        self._interval = interval
        self._first_shown: tuple[int, float] | None = None  # step and time; what is before it are compilations
        self._last_shown = -math.inf
        self._bar = None
        if sys.stderr.isatty():
            self._bar = tqdm.tqdm(total=total_steps, initial=first_step, unit="step", dynamic_ncols=True)

    def show(self, step: int, figures: Mapping[str, float]) -> None:
        texts = {name: str(value) if isinstance(value, int) else f"{value:.4g}" for name, value in figures.items()}
        if self._bar is not None:
            self._bar.set_postfix(texts, refresh=False)
            self._bar.update(step - self._bar.n)
            return
        now = time.monotonic()
        if self._first_shown is None and step > self._first_step:
            self._first_shown = step, now
        if now - self._last_shown < self._interval and step != self._total_steps:
            return
        self._last_shown = now
        words = [f"step {step}/{self._total_steps}", *(f"{name} {text}" for name, text in texts.items())]
        if self._first_shown is not None and step > self._first_shown[0]:
            seconds = (now - self._first_shown[1]) / (step - self._first_shown[0])
            words.append(f"{seconds:.3g} s/step")
            words.append(f"{seconds * (self._total_steps - step) / 60:.0f} min left")
        print("  ".join(words), file=sys.stderr, flush=True)

    def close(self) -> None:
        if self._bar is not None:
            self._bar.close()


class StageTimer:
    """Adds up the wall time of a step's stages: `with timer("rollout"): ...`.

    JAX dispatches asynchronously: a stage's block must end in something that waits for its result
    (`jax.block_until_ready`, `np.asarray`), or its time is counted in the next one.

    Args:
        on_enter: called with the name of each stage before it begins.
    """

    def __init__(self, on_enter: Callable[[str], None] = lambda stage: None) -> None:
        self._on_enter = on_enter
        self._seconds: dict[str, float] = collections.defaultdict(float)

    @contextlib.contextmanager
    def __call__(self, stage: str) -> Iterator[None]:
        """Counts the block's seconds for `stage`, also when it raises; entering a stage again adds to it."""
        self._on_enter(stage)
        start = time.perf_counter()
        try:
            yield
        finally:
            self._seconds[stage] += time.perf_counter() - start

    def take(self) -> dict[str, float]:
        """Seconds since the last take, {"time/rollout": 4.2, ...}, and starts again from nothing."""
        taken = {f"time/{stage}": seconds for stage, seconds in self._seconds.items()}
        self._seconds.clear()
        return taken


class CompileGuard:
    """Stops a run whose step compiles after the warm-up: a shape that is in no bucket costs minutes each time.

    Counts the programs XLA was asked for, those found in the persistent compilation cache included: a program that
    comes from the cache today is a compilation on the next machine. One guard listens from its construction
    to `close`; use it in a `with` block or keep one for the life of the process.

    Args:
        on_compile: called with the name of each function when it has been compiled.
    """

    def __init__(self, on_compile: Callable[[str], None] = lambda name: None) -> None:
        import jax.monitoring

        self._on_compile = on_compile
        self.compiled: list[str] = []  # names of the functions, in order, since the guard was made
        self._num_allowed: int | None = None
        jax.monitoring.register_event_duration_secs_listener(self._listen)

    def _listen(self, event: str, duration_secs: float, **kwargs: str | int) -> None:
        # jax/_src/dispatch.py, BACKEND_COMPILE_EVENT: recorded around compile_or_get_cached, so for a cache hit too.
        if event == "/jax/core/compile/backend_compile_duration":
            self.compiled.append(str(kwargs["fun_name"]))
            self._on_compile(self.compiled[-1])

    def arm(self) -> None:
        """Ends the warm-up. Arming again forgives what was compiled since (an evaluation's first run, say)."""
        self._num_allowed = len(self.compiled)

    def check(self, step: int) -> None:
        """Raises RuntimeError when anything was compiled since `arm`, naming the functions; quiet before `arm`."""
        if self._num_allowed is None or len(self.compiled) == self._num_allowed:
            return
        counts = collections.Counter(self.compiled[self._num_allowed :])
        names = ", ".join(f"{name} ({count}x)" if count > 1 else name for name, count in counts.items())
        raise RuntimeError(
            f"step {step}: {counts.total()} compilation(s) after the warm-up: {names}. Every shape must be one that "
            "was compiled at the start: pad to a bucket, or warm that shape up as well"
        )

    def close(self) -> None:
        """Stops listening; `compiled` stays readable. Closing twice is an error of the caller."""
        import jax.monitoring

        jax.monitoring.unregister_event_duration_listener(self._listen)

    def __enter__(self) -> CompileGuard:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()
