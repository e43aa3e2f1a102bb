"""The main job end to end: data, cold start, CARE, evaluation, export, report. `make demo` runs it.

    python -m care_jax.demo --workdir=runs/demo-1 --seed=1

Run again it resumes wherever it was. The last line is one JSON object with the figures.
"""

from __future__ import annotations

import contextlib
import json
import time
from pathlib import Path

import jax
import ml_collections
from absl import app, flags, logging

from care_jax import cli, cold_start, files, train
from care_jax.options import SKILLS
from care_jax.report import write_report
from care_jax.run.session import StopFlag
from care_jax.run.writers import METRICS_FILE
from configs import demo
from convert import jax_to_hf

_WORKDIR = flags.DEFINE_string("workdir", "runs/demo-1", "Where everything goes; an existing one is resumed.")
_SEED = flags.DEFINE_integer("seed", 1, "Of initialisation, data order and sampling.")


def stage_configs(workdir: Path, seed: int) -> tuple[ml_collections.ConfigDict, ml_collections.ConfigDict]:
    """Cold start and RL of one demo, with their folders under `workdir`."""
    cold, care = demo.cold_start(), demo.get_config()
    for config in (cold, care):
        config.seed = seed
        config.data.train = str(workdir / "data")
    care.model.weights = str(workdir / "cold_start")
    return cold, care


def accuracies(workdir: Path, step: int) -> dict[str, float]:
    """Held-out accuracy per skill and their mean, as logged by the stage in `workdir` at `step`."""
    for line in (workdir / METRICS_FILE).read_text().splitlines():
        row = json.loads(line)
        if row["step"] == step and "eval/accuracy/mean" in row:
            return {name: row[f"eval/accuracy/{name}"] for name in (*SKILLS, "mean")}
    raise ValueError(f"{workdir} has no evaluation at step {step}; run the same command again")


def run(workdir: Path, cold: ml_collections.ConfigDict, care: ml_collections.ConfigDict) -> dict | None:
    """Runs or resumes all stages; None when a SIGTERM stopped one of them (run again to go on).

    "seconds" of the figures is the time of this call alone.
    """
    started = time.time()
    jax.config.update("jax_compilation_cache_dir", str((workdir / "compilation_cache").absolute()))
    with contextlib.closing(StopFlag()) as stop:  # a signal may come between the last step of a stage and the next
        for stage, config, name in ((cold_start, cold, "cold_start"), (train, care, "care")):
            _announce(f"{name.replace('_', ' ')}: {config.train.steps} steps in {workdir / name}")
            state = stage.run(config, workdir / name)
            if int(state.step) < config.train.steps or stop.poll():
                return None

    exported = workdir / "export"
    _announce("export")
    jax_to_hf.convert(workdir / "care", Path(care.model.folder), exported, dtype="float32", overwrite=True)
    _announce("report")
    report = workdir / "report.html"
    write_report([workdir / "cold_start", workdir / "care"], report)
    return {
        "accuracy": {
            "init": accuracies(workdir / "cold_start", 0),
            "cold_start": accuracies(workdir / "cold_start", cold.train.steps),
            "care": accuracies(workdir / "care", care.train.steps),
        },
        "seconds": round(time.time() - started, 1),
        "report": str(report),
        "checkpoint": str(workdir / "care" / "checkpoints" / str(care.train.steps)),
        "export": str(exported),
    }


def show(result: dict) -> None:
    """The table for people, then the JSON line for programs."""
    stages = {"init": "random initialisation", "cold_start": "after the cold start", "care": "after CARE"}
    print(f"\n{'held-out accuracy':24}" + "".join(f"{name:>10}" for name in (*SKILLS, "mean")))
    for stage, title in stages.items():
        print(f"{title:24}" + "".join(f"{result['accuracy'][stage][name]:10.3f}" for name in (*SKILLS, "mean")))
    for name in ("report", "checkpoint", "export"):
        print(f"{name:12}{result[name]}")
    print(json.dumps(result), flush=True)


def _announce(text: str) -> None:
    print(f"== {text}", flush=True)


def main(argv: list[str]) -> None:
    """Runs the demo and shows its figures."""
    if len(argv) > 1:
        raise ValueError(f"unexpected argument {argv[1]!r}; options are --workdir and --seed")
    logging.set_verbosity(logging.WARNING)
    workdir = files.on_disk(_WORKDIR.value, "--workdir")  # data are built in it
    result = run(workdir, *stage_configs(workdir, _SEED.value))
    if result is not None:
        show(result)


if __name__ == "__main__":
    cli.exit_on_bad_input(lambda: app.run(main, flags_parser=cli.parse_flags))
