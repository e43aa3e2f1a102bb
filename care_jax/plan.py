"""Memory and least time of a run on a TPU slice, before the slice is rented: its programs, compiled without a TPU.

    python -m care_jax.plan --config=configs/F.py --topology=v5p:2x2x2 [--json=FILE] [--sweep] [--config.a.b=v]
        [--mean_len=500 --accuracy=0.6 [--mean_prompt_len=700] | --metrics=RUN] [--price=4.2]

Every program of a step (step.py) is compiled for the largest bucket, from shapes alone: this needs no weights and no
data, and for a published model not even its folder. It needs libtpu (pip install -e '.[tpu]').

The plan lists the programs in the order of a step, with what a chip holds while each one runs, in GiB:

    params      parameters, float32 if trained      prompt_kv    keys and values of the prompts
    optimizer   Adam's moments                      branch_kv    of the rollouts, or of the reflection
    reference   the KL's reference parameters       activations  what the backward pass keeps of the forward pass
    sampler     the copy that decoding reads        batch        prompts with their patches, responses, scores
    gradients   of a minibatch, float32             temporaries  all else that the compiler allots, and padding

The peak is the compiler's own figure plus what lives beside the program. Below the table are the tokens and FLOPs of a
full step, the least seconds that its arithmetic, its reads of HBM and its transfers take on that chip, and the bytes of
each kind of collective, with the bytes for which the chip waits. Stages run one after another, so a step takes at least
the sum of what bounds each most ("least"). Exit code 0: the run fits; 1: it does not, and the settings that would
change that are listed; 2: bad input.

With --mean_len and --accuracy, or with --metrics of a run, the plan adds the seconds that a step is expected to take
(planning/expected.py says how), what each stage moves against what it must, and the share of the chips' FLOP/s that
does useful work. --price adds the response tokens for a dollar. "padded" are the seconds if prefill, score, reference
and update computed every prompt, and every row of every group, in its full length.

--sweep tries the meshes, the config's prompts and fewer, and shorter streams, from the lowest floor up, until one
fits.
"""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path

import jax
import ml_collections
from absl import flags

from care_jax import cli, files
from care_jax import config as config_lib
from care_jax.errors import InputError
from care_jax.planning import flops, hlo
from care_jax.planning.advice import changes, sweep
from care_jax.planning.chips import GIB, expected_rates
from care_jax.planning.estimate import PARTS, Plan, make_plan
from care_jax.planning.expected import Expected, expect
from care_jax.planning.workload import Averages
from care_jax.stages.compiled import all_buckets


def table(plan: Plan) -> str:
    """The plan as text."""
    sizes, limit = plan.sizes, plan.chip.hbm_gib
    shown = [part for part in PARTS if any(stage.parts[part] for stage in plan.stages)]
    tokens, patches = sizes.bucket
    mesh = " x ".join(f"{axis} {size}" for axis, size in sizes.mesh.items())
    lines = [
        f"{plan.config.model.folder} on {plan.topology}: {mesh}; B {sizes.prompts}, "
        f"streams of {sizes.stream_len} tokens, G {sizes.num_rollouts}, rows of an update {sizes.num_rows}, "
        f"P {tokens} tokens with {patches} patches, "
        f"R {sizes.response_len}",
        "",
        f"GiB of a chip's {limit}".ljust(26) + "".join(f"  {part}" for part in [*shown, " peak"]),
    ]
    for stage in plan.stages:
        cells = "".join(f"{stage.parts[part] / GIB:>{len(part) + 2}.2f}" for part in shown)
        mark = "  no room" if stage.refused else "  too much" if stage.peak > limit * GIB else ""
        lines.append(f"{stage.name:<26}{cells}{stage.peak / GIB:>7.2f}{mark}")
    bounds = ("tokens", "TFLOP", *flops.BOUNDS, "least")
    lines += ["", f"{'least seconds':<26}" + "".join(f"{name:>12}" for name in bounds)]
    for name, work in plan.work.items():
        floors = [plan.floors[name][bound] for bound in flops.BOUNDS]
        cells = "".join(f"{seconds:>12.3f}" for seconds in (*floors, max(floors)))
        lines.append(f"{name:<26}{work.tokens:>12,}{work.flops / 1e12:>12,.0f}{cells}")
    figures = plan.to_json()
    sums = [sum(floor[bound] for floor in plan.floors.values()) for bound in flops.BOUNDS]
    lines.append(
        f"{'a step':<26}{figures['tokens_per_step']:>12,}{figures['flops_per_step'] / 1e12:>12,.0f}"
        + "".join(f"{seconds:>12.3f}" for seconds in (*sums, plan.least_seconds))
    )
    kinds = (*hlo.COLLECTIVES, "waited for")
    lines += ["", f"{'GiB a chip receives':<26}" + "".join(f"{kind:>20}" for kind in kinds)]
    for stage in plan.stages:
        if any(stage.collective_bytes.values()):
            received = [stage.collective_bytes[kind] for kind in hlo.COLLECTIVES]
            cells = "".join(f"{size / GIB:>20.3f}" for size in (*received, stage.waited_bytes.of(stage.streams)))
            lines.append(f"{stage.name:<26}{cells}")
    verdict = "fits" if plan.fits else "does not fit"
    lines += ["", f"{verdict}: the peak is {plan.peak.peak / GIB:.2f} of {limit} GiB, in {plan.peak.name}"]
    if not plan.fits:
        lines.append("what would take less there, about:")
        lines += [f"  {c.saves / GIB:>7.2f} GiB  {c.setting:<44}{c.why}" for c in changes(plan) if c.saves > 0]
    return "\n".join(lines)


def expected_table(expected: Expected, price: float | None) -> str:
    """The expected step as text."""
    columns = ("seconds", "compute", "memory", "links", "turns", "padded", "moved GB", "needed GB")
    lines = [f"{'expected seconds':<26}" + "".join(f"{name:>10}" for name in columns)]
    for cost in expected.costs:
        seconds = "".join(f"{value:>10.3f}" for value in (cost.seconds, cost.compute, cost.memory, cost.links))
        moved = "".join(f"{size / 1e9:>10,.1f}" if size else f"{'':>10}" for size in (cost.moved, cost.needed))
        lines.append(f"{cost.name:<26}{seconds}{cost.turns or '':>10}{cost.padded:>10.3f}{moved}".rstrip())
    figures = expected.to_json(price)
    lines += [
        f"a step: {expected.seconds:.1f} s, {figures['useful_mfu']:.1%} of the chips' FLOP/s useful; padded "
        f"{expected.padded_seconds:.1f} s, {figures['padded_useful_mfu']:.1%}",
        f"{figures['response_tokens']:,} response tokens a step, {figures['tokens_per_chip_hour']:,} a chip and hour"
        + (f", {figures['tokens_per_dollar']:,} for a dollar" if price is not None else ""),
    ]
    return "\n".join(lines)


def averages_of(config: ml_collections.ConfigDict) -> Averages | None:
    """The averages that the flags give; None without them.

    Raises:
        InputError: one line: flags that do not go together, or values that cannot be.
    """
    values, bucket = flags.FLAGS, max(all_buckets(config))
    given = [name for name in ("mean_len", "accuracy", "mean_prompt_len") if values[name].value is not None]
    if values.price is not None and not 0 < values.price < math.inf:
        raise InputError(f"--price={values.price}: give dollars of a chip and hour, above 0")
    if values.metrics is not None:
        if given:
            raise InputError(f"--{given[0]} and --metrics both say what steps are like; give one of them")
        return Averages.of_run(config, bucket, files.anywhere(values.metrics))
    if not given and values.price is None:
        return None
    if values.mean_len is None or values.accuracy is None:
        what = f"--{given[0]}" if given else "--price"
        raise InputError(f"{what} needs --mean_len=TOKENS and --accuracy=SHARE, or --metrics=RUN, to expect a step")
    return Averages.make(
        config,
        bucket,
        mean_len=values.mean_len,
        accuracy=values.accuracy,
        mean_prompt_len=values.mean_prompt_len,
    )


def main(config: ml_collections.ConfigDict) -> None:
    """Prints the plan and exits with its code."""
    jax.config.update("jax_platforms", "cpu")  # a plan takes no device, even where there is one
    config_lib.validate(config)
    topology, path = flags.FLAGS.topology, flags.FLAGS.json
    if topology is None:
        raise InputError("--topology=NAME is needed, as v5p:2x2x2 or v6e:8x8")
    averages, price = averages_of(config), flags.FLAGS.price
    plan = sweep(config, topology) if flags.FLAGS.sweep else make_plan(config, topology)
    figures = plan.to_json()
    print(table(plan))
    if averages is not None:
        expected = expect(plan, averages, expected_rates(plan.chip))
        figures["expected"] = expected.to_json(price)
        print(f"\n{expected_table(expected, price)}")
    if path is not None:
        Path(path).write_text(json.dumps(figures, indent=1) + "\n")
    sys.exit(0 if plan.fits else 1)


if __name__ == "__main__":
    flags.DEFINE_string(
        "topology", None, "The slice: v4, v5e, v5p, v6e or tpu7x, and its chips along each axis, as v5p:4x4x4."
    )
    flags.DEFINE_string("json", None, "A file to write the same figures to.")
    flags.DEFINE_float("mean_len", None, "Mean tokens of a response.")
    flags.DEFINE_float("accuracy", None, "Share of right answers, 0 to 1.")
    flags.DEFINE_float("mean_prompt_len", None, "Mean tokens of a prompt; by default half of the largest bucket.")
    flags.DEFINE_string("metrics", None, "A run folder or its metrics.jsonl, to take these means from its last steps.")
    flags.DEFINE_float("price", None, "Dollars for a chip and hour.")
    flags.DEFINE_boolean("sweep", False, "Try meshes, prompts and streams; print the best that fits.")
    cli.run_config(main)
