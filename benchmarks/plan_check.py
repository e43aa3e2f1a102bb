"""The expected seconds of a plan against those of a real run on this machine, by stage.

    python -m benchmarks.plan_check                                        # a cold start of its own, then CARE's steps
    python -m benchmarks.plan_check --cold_start=runs/demo-1/cold_start    # from the cold start of a demo

The demo's CARE config runs for --steps steps. Then the machine's rates are measured (matrix products of the model's own
shapes, and copies of as many bytes as the model has), the run's programs are compiled once more and counted, and the
step is predicted from its metrics as `python -m care_jax.plan --metrics=RUN` does for a TPU slice. Stages that share a
clock in the run's metrics (time/...) are added up. The last line is one JSON object.
"""

from __future__ import annotations

import argparse
import functools
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
from etils import epath

from benchmarks.accelerator import multiply, negate
from care_jax import cold_start, demo, train
from care_jax.parallel.mesh import create_device_mesh
from care_jax.plan import expected_table
from care_jax.planning import estimate
from care_jax.planning.chips import GIB, Chip, Rates
from care_jax.planning.estimate import Plan
from care_jax.planning.expected import Expected, expect
from care_jax.planning.sizes import Sizes
from care_jax.planning.workload import Averages
from care_jax.run.folder import METRICS_FILE
from care_jax.stages.compiled import all_buckets
from care_jax.stages.model import make_model_config, mesh_sizes

_FIRST_STEPS = 2  # that are not counted: caches and threads start


def median_seconds(run: Callable[[], jax.Array], repeats: int = 50) -> float:
    """Median seconds of a call, as of a step's: other work on the machine slows both."""
    run().block_until_ready()
    times = []
    for _ in range(repeats):
        started = time.perf_counter()
        run().block_until_ready()
        times.append(time.perf_counter() - started)
    return statistics.median(times)


def measure_rates(sizes: Sizes) -> Rates:
    """FLOP/s of a decoder layer's products over one stream's tokens, and bytes/s of a copy of the parameters."""
    text, tokens = sizes.model.text, sizes.stream_len
    dtype = jnp.dtype(sizes.model.compute_dtype)
    shapes = [(text.hidden_size, text.hidden_size), (text.hidden_size, text.intermediate_size)]
    shapes += [shape[::-1] for shape in shapes]
    seconds = 0.0
    for width, out in shapes:
        x, kernel = jnp.ones((tokens, width), dtype), jnp.ones((width, out), dtype)
        seconds += median_seconds(functools.partial(multiply, x, kernel))
    done = sum(2 * tokens * width * out for width, out in shapes)
    params = jnp.ones(sizes.num_params, dtype)
    copied = median_seconds(functools.partial(negate, params))
    return Rates(flops=done / seconds, bytes_per_s=2 * params.nbytes / copied, link_bytes_per_s=1e12)  # no links


def plan_here(config: ml_collections.ConfigDict, rates: Rates) -> Plan:
    """The plan of a run on the first device of this machine; its peaks are the measured rates."""
    device = jax.devices()[0]
    model = make_model_config(config, device.platform)
    mesh = create_device_mesh(mesh_sizes(config, model, 1), [device])
    sizes = Sizes.of(config, model, max(all_buckets(config)), dict(mesh.shape))
    chip = Chip(device.device_kind, 1024.0, rates.flops, rates.bytes_per_s, rates.link_bytes_per_s, axes=1)
    return Plan(config, device.device_kind, chip, sizes, estimate.measure(config, model, mesh, sizes), num_hosts=1)


def measured_seconds(run: Path) -> dict[str, float]:
    """Median seconds of a run's steps by timer, without the first steps."""
    rows = [json.loads(line) for line in (run / METRICS_FILE).read_text().splitlines()]
    steps = [row for row in rows if "time/step" in row][_FIRST_STEPS:]
    names = [name for name in steps[0] if name.startswith("time/")]
    return {
        name.removeprefix("time/"): statistics.median(step[name] for step in steps if name in step) for name in names
    }


def compare(config: ml_collections.ConfigDict, run: Path) -> tuple[Expected, dict[str, Any]]:
    """The expected step of a finished run, and the figures that the command prints."""
    model = make_model_config(config, jax.devices()[0].platform)
    bucket = max(all_buckets(config))
    rates = measure_rates(Sizes.of(config, model, bucket, {"data": 1, "fsdp": 1, "tensor": 1}))
    plan, averages = plan_here(config, rates), Averages.of_run(config, bucket, epath.Path(run))
    expected, measured = expect(plan, averages, rates), measured_seconds(run)
    predicted = {timer: seconds for timer, seconds in expected.by_timer().items() if timer in measured}
    predicted["step"] = sum(predicted.values())
    figures = {
        "benchmark": "plan_check",
        "device": jax.devices()[0].device_kind,
        "gflop_per_s": round(rates.flops / 1e9, 1),
        "gb_per_s": round(rates.bytes_per_s / 1e9, 2),
        "parameters_gib": round(plan.sizes.num_params * plan.sizes.weight_bytes / GIB, 4),
        "mean_len": round(averages.mean_len, 2),
        "accuracy": round(averages.accuracy, 3),
        "mixed": averages.mixed,
        "predicted_s": {timer: round(seconds, 6) for timer, seconds in predicted.items()},
        "measured_s": {timer: round(measured[timer], 6) for timer in predicted},
        "predicted_share": {timer: round(seconds / measured[timer], 3) for timer, seconds in predicted.items()},
    }
    return expected, figures


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    """Runs, compares, and returns the figures that it prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=20, help="steps of CARE (20)")
    parser.add_argument("--cold_start", type=Path, help="the run folder of a finished cold start (one is made)")
    args = parser.parse_args(argv)
    if args.steps <= _FIRST_STEPS:
        parser.error(f"--steps must be above {_FIRST_STEPS}, the first ones, which are not counted")
    if args.cold_start is not None and not args.cold_start.is_dir():
        parser.error(f"--cold_start={args.cold_start}: there is no such run folder")
    with tempfile.TemporaryDirectory() as made:
        workdir = Path(made)
        cold, care = demo.stage_configs(workdir, seed=1)
        care.train.steps, care.train.eval_every = args.steps, 0
        care.score.old_from = "pass"  # compares the scoring pass too, which the demo does without
        if args.cold_start is None:
            cold_start.run(cold, workdir / "cold_start")
        else:
            care.model.weights = str(args.cold_start)
        train.run(care, workdir / "care")
        expected, figures = compare(care, workdir / "care")
    show(expected, figures)
    return figures


def show(expected: Expected, figures: dict[str, Any]) -> None:
    """Prints the expected step, and the table of both."""
    print(expected_table(expected, None))
    print(f"\n{figures['gflop_per_s']} GFLOP/s, {figures['gb_per_s']} GB/s")
    print(f"{'seconds':<12}{'predicted':>12}{'measured':>12}{'share':>8}")
    for timer, predicted in figures["predicted_s"].items():
        share = figures["predicted_share"][timer]
        print(f"{timer:<12}{predicted:>12.4f}{figures['measured_s'][timer]:>12.4f}{share:>8.2f}")
    print(json.dumps(figures))


if __name__ == "__main__":
    main(sys.argv[1:])
