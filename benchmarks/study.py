"""The study: every arm and seed of a config trained from a shared cold start, and what came of it as a page.

    python -m benchmarks.study --config=configs/study.py --out=docs/study              # hours on two CPU cores
    python -m benchmarks.study --config=configs/study.py --out=docs/study --page_only  # the page of the runs there are

Each run is a process of its own, whose command stands in its record and can be given by hand. OUT gets runs.jsonl, a
line a run, from which index.html and README.md are made in the end. Stopped at any moment, the same command goes on:
runs in runs.jsonl are not made again, and one that was under way resumes from its run folder under --work.

--config is a Python file with `ARMS`, `TASKS` and `get_config("TASK/ARM")`, as configs/study.py. --jobs=N makes N runs
at once, each with its share of the cores; times of steps are then those of a shared machine. For several machines or
accelerators, give each an --only of its own, a regular expression on TASK/ARM/SEED, and an --out, and join the files.
"""

from __future__ import annotations

import concurrent.futures
import importlib.util
import json
import os
import queue
import re
import shlex
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from absl import app, flags

from benchmarks import child, study_page, study_record
from care_jax import cli

RUNS_FILE = "runs.jsonl"
# A policy that stands still: gradients as they are, equally weighted in Adam's moments.
NOISE_DECAY, NOISE_STEPS = 0.999, 50
NOISE_FLAGS = (
    f"--config.train.steps={NOISE_STEPS}",
    f"--config.train.checkpoint_every={NOISE_STEPS}",
    "--config.train.eval_every=0",
    "--config.optimizer.lr=1e-30",
    "--config.optimizer.warmup_steps=0",
    "--config.optimizer.clip_norm=1e9",
    f"--config.optimizer.b1={NOISE_DECAY}",
    f"--config.optimizer.b2={NOISE_DECAY}",
)


class Run(NamedTuple):
    """One of the study's runs."""

    task: str
    arm: str
    seed: int
    kind: str  # training | noise


def plan(study: Any) -> list[Run]:
    """All runs of a study, seed after seed, so that one that is stopped early can compare all arms."""
    runs = []
    for seed in range(max(arm.num_seeds for arm in study.ARMS.values())):
        for task in study.TASKS:
            arms = [(name, arm) for name, arm in study.ARMS.items() if task in arm.tasks and seed < arm.num_seeds]
            runs += [Run(task, name, seed, "training") for name, _ in arms]
            runs += [Run(task, name, seed, "noise") for name, arm in arms if arm.has_noise]
    return runs


def key(record: dict[str, Any]) -> Run:
    """The run that a record is of."""
    return Run(*(record[field] for field in Run._fields))


def read_records(out: Path) -> list[dict[str, Any]]:
    """What was recorded so far; a line that a kill left torn is dropped."""
    path = out / RUNS_FILE
    lines = path.read_text().splitlines(keepends=True) if path.exists() else []
    return [json.loads(line) for line in lines if line.endswith("\n")]


class Runner:
    """Makes runs as processes, and cold starts when the first run needs them."""

    def __init__(self, study: Any, config_file: str, work: Path) -> None:
        self._study, self._config_file, self._work = study, config_file, work
        self._cold_starts: dict[tuple[str, int], threading.Lock] = {
            (task, seed): threading.Lock()
            for task in study.TASKS
            for seed in range(max(arm.num_seeds for arm in study.ARMS.values()))
        }

    def record(self, run: Run) -> dict[str, Any]:
        """Trains, or resumes, and reads what came of it."""
        with self._cold_starts[run.task, run.seed]:
            cold_start = self._work / run.task / "cold_start" / f"seed{run.seed}"
            if not (cold_start / "done").exists():
                child.run(self._command("care_jax.cold_start", run.task, "cold_start", run.seed, cold_start))
                (cold_start / "done").touch()
        workdir = self._work / run.task / run.arm / (f"seed{run.seed}" + ("_noise" if run.kind == "noise" else ""))
        command = self._command("care_jax.train", run.task, run.arm, run.seed, workdir)
        command += [f"--config.model.weights={cold_start}", *(NOISE_FLAGS if run.kind == "noise" else ())]
        usage = child.run(command)
        config = self._study.get_config(f"{run.task}/{run.arm}")
        if run.kind == "noise":
            found = study_record.of_noise(
                workdir, step=NOISE_STEPS, num_updates=NOISE_STEPS * config.train.minibatches, decay=NOISE_DECAY
            )
            found["num_prompts"] = config.train.prompts // config.train.minibatches
        else:
            found = study_record.of_training(workdir) | {"peak_gib": usage.peak_gib}
        manifest = json.loads((workdir / "manifest.json").read_text())
        command[0] = "python"
        return run._asdict() | found | {"command": shlex.join(map(str, command)), "manifest": manifest}

    def _command(self, module: str, task: str, arm: str, seed: int, workdir: Path) -> list[str | Path]:
        return [
            sys.executable,
            "-m",
            module,
            f"--config={self._config_file}:{task}/{arm}",
            f"--workdir={workdir}",
            f"--config.seed={seed}",
            f"--config.data.train={self._work / 'data'}",
        ]


def run_all(runner: Runner, runs: list[Run], jobs: int) -> Iterator[dict[str, Any]]:
    """The runs' records as they are made, `jobs` at once, each with its share of the cores."""
    cores = sorted(os.sched_getaffinity(0))
    shares: queue.Queue[int] = queue.Queue()
    for share in range(jobs):
        shares.put(share)

    def settle() -> None:
        os.sched_setaffinity(0, cores[shares.get() :: jobs])  # of this thread, and the processes that it starts

    with concurrent.futures.ThreadPoolExecutor(jobs, initializer=settle) as pool:
        for done in concurrent.futures.as_completed([pool.submit(runner.record, run) for run in runs]):
            yield done.result()


def load_study(path: str) -> Any:
    """The module of a study's config file.

    Raises:
        ValueError: there is no such file, or it describes no study.
    """
    spec = importlib.util.spec_from_file_location("study_config", path)
    if spec is None or spec.loader is None or not Path(path).is_file():
        raise ValueError(f"--config={path}: give a Python file with a study's ARMS, TASKS and get_config")
    study = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = study  # where dataclasses look for it
    spec.loader.exec_module(study)
    if missing := [name for name in ("ARMS", "TASKS", "get_config") if not hasattr(study, name)]:
        raise ValueError(f"--config={path} has no {', '.join(missing)}; see configs/study.py")
    return study


def main(argv: list[str]) -> None:
    """Makes the runs that are missing, and the page."""
    if len(argv) > 1:
        raise ValueError(f"unexpected argument {argv[1]!r}")
    f = flags.FLAGS
    study, out, work = load_study(f.config), Path(f.out), Path(f.work)
    if f.jobs < 1 or f.jobs > len(os.sched_getaffinity(0)):
        raise ValueError(f"--jobs={f.jobs}: choose 1 to {len(os.sched_getaffinity(0))}, the cores there are")
    os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str((work / "compilation_cache").absolute()))
    out.mkdir(parents=True, exist_ok=True)
    records = read_records(out)
    (out / RUNS_FILE).write_text("".join(json.dumps(record) + "\n" for record in records))
    done = {key(record) for record in records}
    wanted = [run for run in plan(study) if re.search(f.only, f"{run.task}/{run.arm}/{run.seed}")]
    missing = [] if f.page_only else [run for run in wanted if run not in done]
    for number, record in enumerate(run_all(Runner(study, f.config, work), missing, f.jobs), 1):
        records.append(record)
        with (out / RUNS_FILE).open("a") as file:
            file.write(json.dumps(record) + "\n")
        print(f"{number}/{len(missing)}  {' '.join(map(str, key(record)))}", flush=True)
    if not records:
        raise ValueError(f"{out / RUNS_FILE} has no runs yet; run without --page_only")
    study_page.write(out, study, records)


if __name__ == "__main__":
    flags.DEFINE_string("config", "configs/study.py", "The study: what is compared, and the config of each run.")
    flags.DEFINE_string("out", "docs/study", "The folder of runs.jsonl, index.html and README.md.")
    flags.DEFINE_string("work", "runs/study", "The folder of the run folders.")
    flags.DEFINE_integer("jobs", 1, "Runs at once.")
    flags.DEFINE_string("only", "", "Makes the runs whose TASK/ARM/SEED this regular expression finds.")
    flags.DEFINE_bool("page_only", False, "Makes no runs.")
    cli.exit_on_bad_input(lambda: app.run(main, flags_parser=cli.parse_flags))
