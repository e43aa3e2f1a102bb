"""Runs everything on a small task: data, cold start, CARE, evaluation, export, report. `make demo` runs it.

    python -m care_jax.demo --workdir=runs/demo-1 --seed=1

With --run it is another run of configs/demo.py than CARE, such as grpo, lora, or qwen3_5, which has another model.

Interrupt it at any time; the same command resumes. The last line is one JSON object with the figures.
"""

from __future__ import annotations

from absl import flags

from care_jax import cli

if __name__ == "__main__":
    flags.DEFINE_string("workdir", "runs/demo-1", "Where everything goes; an existing one is resumed.")
    flags.DEFINE_integer("seed", 1, "Seed of initialisation, data order and sampling.")
    flags.DEFINE_string("run", "care", "What follows the cold start, a run of configs/demo.py.")
    cli.read_first()  # the imports below take seconds

import contextlib
import json
import time
from pathlib import Path

import ml_collections

from care_jax import cold_start, files, train
from care_jax.configs import demo
from care_jax.convert import jax_to_hf
from care_jax.errors import InputError
from care_jax.options import SKILLS, choose_one
from care_jax.report import write_report
from care_jax.run.folder import METRICS_FILE
from care_jax.run.stop import EXIT_CODE, StopFlag


def stage_configs(
    workdir: Path, seed: int, name: str = "care"
) -> tuple[ml_collections.ConfigDict, ml_collections.ConfigDict]:
    """Cold start and the RL run `name` of one demo, with their folders under `workdir`."""
    cold, after = demo.cold_start(), demo.get_config(name)
    cold.model.folder = after.model.folder
    for config in (cold, after):
        config.seed = seed
        config.data.train = str(workdir / "data")
    after.model.weights = str(workdir / "cold_start")
    return cold, after


def accuracies(workdir: Path, step: int) -> dict[str, float]:
    """Accuracy on all held-out records per skill and their mean, as logged by the stage in `workdir` at `step`."""
    for line in (workdir / METRICS_FILE).read_text().splitlines():
        row = json.loads(line)
        if row["step"] == step and "eval/accuracy/mean" in row:
            group = "eval_all" if "eval_all/accuracy/mean" in row else "eval"
            return {name: row[f"{group}/accuracy/{name}"] for name in (*SKILLS, "mean")}
    raise InputError(f"{workdir} has no evaluation at step {step}; run the same command again")


def run(workdir: Path, cold: ml_collections.ConfigDict, after: ml_collections.ConfigDict, name: str = "care") -> dict:
    """Runs or resumes all stages; `name` is that of the second.

    Returns:
        The figures, whose "seconds" is the time of this call alone.

    Raises:
        SystemExit: a SIGTERM has stopped it, with run.stop.EXIT_CODE.
    """
    started = time.time()
    with contextlib.closing(StopFlag()) as stop:  # a signal may come between the last step of a stage and the next
        for stage, config, part in ((cold_start, cold, "cold_start"), (train, after, name)):
            _announce(f"{part.replace('_', ' ')}: {config.train.steps} steps in {workdir / part}")
            stage.run(config, workdir / part)
            if stop.poll():
                _announce(f"stopped after the stage {part}; run again to resume")
                raise SystemExit(EXIT_CODE)

    exported = workdir / "export"
    _announce("export")
    jax_to_hf.convert(workdir / name, Path(after.model.folder), exported, dtype="float32", overwrite=True)
    _announce("report")
    report = workdir / "report.html"
    write_report([workdir / "cold_start", workdir / name], report)
    return {
        "accuracy": {
            "init": accuracies(workdir / "cold_start", 0),
            "cold_start": accuracies(workdir / "cold_start", cold.train.steps),
            name: accuracies(workdir / name, after.train.steps),
        },
        "seconds": round(time.time() - started, 1),
        "report": str(report),
        "checkpoint": str(workdir / name / "checkpoints" / str(after.train.steps)),
        "export": str(exported),
    }


def show(result: dict) -> None:
    """The table for people, then the JSON line for programs."""
    known = {"init": "random initialisation", "cold_start": "after the cold start", "care": "after CARE"}
    stages = {stage: known.get(stage, f"after {stage}") for stage in result["accuracy"]}
    print(f"\n{'held-out accuracy':24}" + "".join(f"{name:>10}" for name in (*SKILLS, "mean")))
    for stage, title in stages.items():
        print(f"{title:24}" + "".join(f"{result['accuracy'][stage][name]:10.3f}" for name in (*SKILLS, "mean")))
    for name in ("report", "checkpoint", "export"):
        print(f"{name:12}{result[name]}")
    run = Path(result["checkpoint"]).parents[1]
    print(f"ask it      python -m care_jax.generate --workdir={run} --serve")
    print(json.dumps(result), flush=True)


def _announce(text: str) -> None:
    print(f"== {text}", flush=True)


def main() -> None:
    """Runs the demo and shows its figures."""
    workdir = files.on_disk(flags.FLAGS.workdir, "--workdir")  # data are built in it
    name, runs = flags.FLAGS.run, [name for name in demo.RUNS if name != "cold_start"]
    if name not in runs:
        raise InputError(f"--run={name}: {choose_one(runs)}")
    show(run(workdir, *stage_configs(workdir, flags.FLAGS.seed, name), name))


if __name__ == "__main__":
    cli.run_flags(main)
