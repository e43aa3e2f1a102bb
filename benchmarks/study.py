"""Trains every arm and seed of a study from a shared cold start, and writes the results as a page.

    python -m benchmarks.study --config=configs/study.py --out=docs/study              # hours on two CPU cores
    python -m benchmarks.study --config=configs/study.py --out=docs/study --page_only  # the page alone

Each run is a process of its own; its record has the command, which can also be run by hand. OUT gets runs.jsonl, with a
line for each run; index.html and README.md are made from it at the end. Interrupt the command at any time: rerunning it
resumes. Runs in runs.jsonl are not repeated, and an unfinished run continues from its run folder under --work.

--config is a Python file with ABOUT, ARMS, TASKS, OBJECTIVES, SHOWN and get_config("TASK/ARM"), which must also accept
"TASK/cold_start"; tests/small_study.py is a small example. The claims on the page are about the arms of
configs/study.py. --jobs=N makes N runs at once on a CPU, each with its share of the cores. --only is a regular
expression that selects runs by TASK/ARM/SEED/KIND, KIND being training or probe: the page shows times of the probes, so
make those one at a time after the trainings.

For several machines or accelerators, start the command once for each, with seeds of its own (--only), an --out and a
--work, and join the runs.jsonl files: all runs of a seed must start from one cold start. Set the runtime's variable, as
CUDA_VISIBLE_DEVICES, to choose a device. Do not change the code meanwhile: each run imports it anew.
"""

from __future__ import annotations

import concurrent.futures
import hashlib
import importlib.util
import json
import os
import queue
import re
import shlex
import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple, cast

import ml_collections
from absl import flags

from benchmarks import child, study_page, study_record
from benchmarks.study_record import Record
from care_jax import cli
from care_jax.config import flat
from care_jax.errors import InputError, one_line

RUNS_FILE = "runs.jsonl"
WORK = "runs/study"  # the default of --work, the folder of the run folders
_MEND = "remove it, or choose another --out"
# A probe's policy does not move: Adam's moments weigh its unclipped gradients almost equally.
PROBE_DECAY, PROBE_STEPS = 0.999, 50
PROBE_FLAGS = (
    f"--config.train.steps={PROBE_STEPS}",
    f"--config.train.checkpoint_every={PROBE_STEPS}",
    "--config.train.eval_every=0",
    "--config.score.old_from=pass",  # the page shows their times, and a run has a scoring pass by default
    "--config.optimizer.lr=1e-30",
    "--config.optimizer.warmup_steps=0",
    "--config.optimizer.clip_norm=1e9",
    f"--config.optimizer.b1={PROBE_DECAY}",
    f"--config.optimizer.b2={PROBE_DECAY}",
)


class Run(NamedTuple):
    """One of the study's runs."""

    task: str
    arm: str
    seed: int
    kind: str  # training | probe

    @property
    def name(self) -> str:
        """TASK/ARM/SEED/KIND."""
        return "/".join(map(str, self))


def plan(study: Any) -> list[Run]:
    """All runs of a study, seed by seed, so that a study that is stopped early has every arm for its first seeds."""
    runs = []
    for seed in _seeds(study):
        arms = [
            (task, name, arm)
            for name, arm in study.ARMS.items()
            for task in study.TASKS  # in turn, so that two jobs do not wait for one cold start
            if task in arm.tasks and seed in arm.seeds
        ]
        runs += [Run(task, name, seed, "training") for task, name, _ in arms]
        # The probes of a seed follow each other: their times are compared, and the machine's load changes slowly.
        runs += [Run(task, name, seed, "probe") for task, name, arm in arms if seed < arm.num_probes]
    return runs


def _seeds(study: Any) -> list[int]:
    return sorted({seed for arm in study.ARMS.values() for seed in arm.seeds})


def run_of(record: Record) -> Run:
    """The run that a record describes."""
    return Run(record["task"], record["arm"], record["seed"], record["kind"])


def read_records(out: Path) -> list[Record]:
    """Reads runs.jsonl; a last line that a kill left incomplete is removed from the file.

    Raises:
        InputError: another line is not JSON.
    """
    path = out / RUNS_FILE
    records: list[Record] = []
    text = path.read_text() if path.exists() else ""
    lines = text.splitlines(keepends=True)
    for number, line in enumerate(lines, 1):
        try:
            records.append(json.loads(line))
        except json.JSONDecodeError:
            if number < len(lines):
                raise InputError(f"{path}:{number} is not a record: {_MEND}") from None
            path.write_text(text.removesuffix(line))
        else:
            if not line.endswith("\n"):
                path.write_text(text + "\n")
    return records


class Runner:
    """Makes runs as processes, and each cold start when the first run needs it."""

    def __init__(self, study: Any, config_file: str, work: Path) -> None:
        """Makes nothing yet.

        Args:
            study: the module of `load_study`.
            config_file: its file, for the commands.
            work: the folder of the run folders.
        """
        self._study, self._config_file, self._work = study, config_file, work
        self._cold_starts = {(task, seed): threading.Lock() for task in study.TASKS for seed in _seeds(study)}

    def settings(self, run: Run) -> dict[str, Any]:
        """All that decides the result of a run except seed, code and versions.

        Returns:
            Its config by dotted key, its cold start's under "cold_start.", and a probe's flags.
        """
        ours, cold = (_portable(self._config(f"{run.task}/{name}")) for name in (run.arm, "cold_start"))
        cold = {f"cold_start.{key}": value for key, value in cold.items()}
        return ours | cold | ({"flags": list(PROBE_FLAGS)} if run.kind == "probe" else {})

    def _config(self, name: str) -> ml_collections.ConfigDict:
        try:
            config: ml_collections.ConfigDict = self._study.get_config(name)
        except Exception as error:  # of the study's own code
            told = f"{type(error).__name__}: {error}"
            raise InputError(f"--config={self._config_file}, get_config({name!r}): {one_line(told)}") from error
        return config

    def difference(self, record: Record) -> str | None:
        """The first setting with another value in a record than in the study, if there is one.

        A setting that only one of them has does not count: it came with a later version of the code.
        """
        recorded, wanted = record["settings"], self.settings(run_of(record))
        shared = recorded.keys() & wanted.keys()
        return min((key for key in shared if recorded[key] != wanted[key]), default=None)

    def record(self, run: Run) -> Record:
        """Trains, or resumes, a run and makes its record."""
        cold_start = self._cold_start(run.task, run.seed)
        settings = self.settings(run)
        workdir = self._work / run.task / run.arm / f"{run.kind}{run.seed}_{_digest(settings)}"
        command = self._command("care_jax.train", run.task, run.arm, run.seed, workdir)
        command += [f"--config.model.weights={cold_start}", *(PROBE_FLAGS if run.kind == "probe" else ())]
        usage = child.run(command)
        found = study_record.of_run(workdir)
        if run.kind == "probe":
            train = self._study.get_config(f"{run.task}/{run.arm}").train
            found["noise"] = study_record.of_gradients(
                workdir, step=PROBE_STEPS, num_updates=PROBE_STEPS * train.minibatches, decay=PROBE_DECAY
            )
            found["noise"]["num_prompts"] = train.prompts // train.minibatches
        about = {
            "peak_gib": usage.peak_gib,
            "settings": settings,
            "cold_start": study_record.digest_of_params(cold_start),
            "command": shlex.join(["python", *map(str, command[1:])]).replace(str(self._work), WORK),
            "machine": machine(),
            "manifest": json.loads((workdir / "manifest.json").read_text()),
        }
        return cast(Record, run._asdict() | found | about)

    def _cold_start(self, task: str, seed: int) -> Path:
        config = self._study.get_config(f"{task}/cold_start")
        workdir = self._work / task / "cold_start" / f"training{seed}_{_digest(_portable(config))}"
        with self._cold_starts[task, seed]:
            last = workdir / "checkpoints" / str(config.train.steps)
            if not last.is_dir():
                child.run(self._command("care_jax.cold_start", task, "cold_start", seed, workdir))
            if not last.is_dir():
                raise InputError(f"{workdir} was stopped before its end; run the same command again")
        return workdir

    def _command(self, module: str, task: str, arm: str, seed: int, workdir: Path) -> list[str | Path]:
        words: list[str | Path] = [sys.executable, "-m", module, f"--config={self._config_file}:{task}/{arm}"]
        words += [f"--workdir={workdir}", f"--config.seed={seed}"]
        if self._study.get_config(f"{task}/{arm}").data.format == "mini_vqa":  # built there on first use
            words.append(f"--config.data.train={self._work / 'data'}")
        return words


def _portable(config: ml_collections.ConfigDict) -> dict[str, Any]:
    """A config by dotted key as it comes back from JSON, without the path of this checkout."""
    values: dict[str, Any] = json.loads(json.dumps(flat(config)))
    return values | {"model.folder": Path(values["model.folder"]).name}


def _digest(settings: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:12]


def machine() -> str:
    """The name of the processor, and the number of cores that a run may use."""
    info = Path("/proc/cpuinfo")
    names = re.findall(r"model name\s*: (.*)", info.read_text()) if info.exists() else []
    return f"{names[0] if names else 'unknown processor'}, {len(os.sched_getaffinity(0))} cores"


def run_all(runner: Runner, runs: list[Run], jobs: int) -> Iterator[Record]:
    """Yields the records of runs as they are made, `jobs` runs at once, each on its share of the cores.

    Raises:
        InputError: a run failed; those that have begun are finished, and no others begin.
    """
    cores = sorted(os.sched_getaffinity(0))
    shares: queue.Queue[int] = queue.Queue()
    for share in range(jobs):
        shares.put(share)

    def settle() -> None:
        os.sched_setaffinity(0, cores[shares.get() :: jobs])  # of this thread and the processes that it starts

    with concurrent.futures.ThreadPoolExecutor(jobs, initializer=settle) as pool:
        try:
            for done in concurrent.futures.as_completed([pool.submit(runner.record, run) for run in runs]):
                yield done.result()
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def require_one_study(records: Sequence[Record], runs: Sequence[Run], runner: Runner) -> None:
    """Checks that records belong on one page.

    Raises:
        InputError: a run is not in the study or has another config, or runs of one seed started from different
            policies, as when one was made elsewhere.
    """
    for record in records:
        name = run_of(record).name
        if run_of(record) not in runs:
            raise InputError(f"{RUNS_FILE} has {name}, which is not in the study: {_MEND}")
        if key := runner.difference(record):
            raise InputError(f"{RUNS_FILE} has {name} with another {key} than the study: {_MEND}")
        if other := of_another_start(record, records):
            raise InputError(f"{RUNS_FILE} has {name} from another cold start than {run_of(other).name}: {_MEND}")


def of_another_start(record: Record, records: Sequence[Record]) -> Record | None:
    """The first run of the same task and seed, if it started from another policy."""
    start = (record["task"], record["seed"])
    first = next((other for other in records if (other["task"], other["seed"]) == start), record)
    return first if first["cold_start"] != record["cold_start"] else None


def chosen(runs: Sequence[Run], only: str) -> list[Run]:
    """The runs that --only selects.

    Raises:
        InputError: it is not a regular expression, or selects none.
    """
    try:
        pattern = re.compile(only)
    except re.error as error:
        raise InputError(f"--only={only} is not a regular expression: {error}") from None
    found = [run for run in runs if pattern.search(run.name)]
    if not found:
        raise InputError(f"--only={only} selects none of the study's runs, for example {runs[0].name}")
    return found


def load_study(path: str) -> Any:
    """Imports a study's config file.

    Raises:
        InputError: there is no such file, or it lacks a name.
    """
    spec = importlib.util.spec_from_file_location("study_config", path)
    if spec is None or spec.loader is None or not Path(path).is_file():
        raise InputError(f"--config={path}: give a study's Python file, as configs/study.py")
    study = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = study  # where dataclasses look for it
    spec.loader.exec_module(study)
    if missing := sorted({"ABOUT", "ARMS", "TASKS", "OBJECTIVES", "SHOWN", "get_config"} - vars(study).keys()):
        raise InputError(f"--config={path} has no {', '.join(missing)}; see configs/study.py")
    return study


def main() -> None:
    """Makes the missing runs and the page."""
    f = flags.FLAGS
    study, out, work = load_study(f.config), Path(f.out), Path(f.work)
    num_cores = len(os.sched_getaffinity(0))
    if not 1 <= f.jobs <= num_cores:
        raise InputError(f"--jobs={f.jobs}: choose 1 to {num_cores}, the number of cores")
    os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str((work / "compilation_cache").absolute()))
    out.mkdir(parents=True, exist_ok=True)
    runs, runner, records = plan(study), Runner(study, f.config, work), read_records(out)
    done = {run_of(record) for record in records}
    require_one_study(records, runs, runner)
    missing = [] if f.page_only else [run for run in chosen(runs, f.only) if run not in done]
    for run in missing:
        runner.settings(run)  # finds a bad config before hours of other runs
    signal.signal(signal.SIGTERM, _stop)
    for number, record in enumerate(run_all(runner, missing, f.jobs), 1):
        if other := of_another_start(record, records):
            raise InputError(
                f"{run_of(record).name} is not kept: it started from another cold start than {run_of(other).name}; "
                "make all runs of a seed with one --work and as many cores a run"
            )
        records.append(record)
        with (out / RUNS_FILE).open("a") as file:
            file.write(json.dumps(record) + "\n")
        print(f"{number}/{len(missing)}  {' '.join(map(str, run_of(record)))}", flush=True)
    if not records:
        raise InputError(f"{out / RUNS_FILE} has no runs yet; run without --page_only")
    command = f"python -m benchmarks.study --config={f.config} --out={f.out}"
    study_page.write(out, study, records, command=command, num_planned=len(runs))
    print(f"{len(records)} of {len(runs)} runs are made: {out / 'index.html'}")


def _stop(*_: object) -> None:
    """Tells the runs to save and end, and ends."""
    child.terminate_all()
    sys.exit("stopped: run the same command again to resume")


if __name__ == "__main__":
    flags.DEFINE_string("config", "configs/study.py", "The study: its arms, and the config of each run.")
    flags.DEFINE_string("out", "docs/study", "The folder of runs.jsonl, index.html and README.md.")
    flags.DEFINE_string("work", WORK, "The folder of the run folders.")
    flags.DEFINE_integer("jobs", 1, "Runs at once.")
    flags.DEFINE_string("only", "", "A regular expression: makes only the runs whose TASK/ARM/SEED/KIND it matches.")
    flags.DEFINE_bool("page_only", False, "Writes the page of the recorded runs; makes none.")
    cli.run_flags(main)
