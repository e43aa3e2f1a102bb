"""Memory and least time of a run on a TPU slice, before the slice is rented: its programs, compiled without a TPU.

    python -m care_jax.plan --config=configs/F.py --topology=v5p:2x2x2 [--json=FILE] [--sweep] [--config.a.b=v]

Every program of a step (step.py) is compiled for the largest bucket, from shapes: neither weights nor data are
needed, and of a published model not even its folder. Needs libtpu (pip install -e '.[libtpu]').

Printed is, for each program in the order of a step, what a chip holds while it runs, in GiB:

    params      parameters, float32                 prompt_kv    keys and values of the prompts
    optimizer   Adam's moments                      branch_kv    of the rollouts, or of the reflection
    reference   the KL's reference parameters       activations  what the backward pass keeps of the forward pass
    sampler     the copy that decoding reads        batch        prompts with their patches, responses, scores
    gradients   of a minibatch, float32             temporaries  all else that the compiler allots, and padding

The peak is the compiler's own, with what lives beside the program added. Then the tokens and FLOPs of a step, the least
seconds that its arithmetic, its reads of HBM and its transfers take on that chip, and the bytes of each kind of
collective. Exit code 0: the run fits; 1: it does not, and what would change that is listed; 2: bad input.

--sweep tries the meshes, the config's prompts and fewer, and shorter streams, from the lowest floor up, until one
fits.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import jax
import ml_collections
from absl import flags

from care_jax import cli
from care_jax import config as config_lib
from care_jax.errors import InputError
from care_jax.planning import flops, hlo
from care_jax.planning.advice import changes, sweep
from care_jax.planning.chips import GIB
from care_jax.planning.estimate import PARTS, Plan, make_plan


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
    lines += ["", f"{'least seconds':<26}" + "".join(f"{name:>12}" for name in ("tokens", "TFLOP", *flops.BOUNDS))]
    for name, work in plan.work.items():
        floors = "".join(f"{plan.floors[name][bound]:>12.3f}" for bound in flops.BOUNDS)
        lines.append(f"{name:<26}{work.tokens:>12,}{work.flops / 1e12:>12,.0f}{floors}")
    figures = plan.to_json()
    lines.append(
        f"{'a step':<26}{figures['tokens_per_step']:>12,}{figures['flops_per_step'] / 1e12:>12,.0f}"
        + "".join(f"{sum(floor[bound] for floor in plan.floors.values()):>12.3f}" for bound in flops.BOUNDS)
    )
    lines += ["", f"{'GiB a chip receives':<26}" + "".join(f"{kind:>20}" for kind in hlo.COLLECTIVES)]
    for stage in plan.stages:
        if any(stage.collective_bytes.values()):
            cells = "".join(f"{stage.collective_bytes[kind] / GIB:>20.3f}" for kind in hlo.COLLECTIVES)
            lines.append(f"{stage.name:<26}{cells}")
    verdict = "fits" if plan.fits else "does not fit"
    lines += ["", f"{verdict}: the peak is {plan.peak.peak / GIB:.2f} of {limit} GiB, in {plan.peak.name}"]
    if not plan.fits:
        lines.append("what would take less there, about:")
        lines += [f"  {c.saves / GIB:>7.2f} GiB  {c.setting:<44}{c.why}" for c in changes(plan) if c.saves > 0]
    return "\n".join(lines)


def main(config: ml_collections.ConfigDict) -> None:
    """Prints the plan and exits with its code."""
    jax.config.update("jax_platforms", "cpu")  # a plan takes no device, even where there is one
    config_lib.validate(config)
    topology, path = flags.FLAGS.topology, flags.FLAGS.json
    if topology is None:
        raise InputError("--topology=NAME is needed, as v5p:2x2x2 or v6e:8x8")
    plan = sweep(config, topology) if flags.FLAGS.sweep else make_plan(config, topology)
    print(table(plan))
    if path is not None:
        Path(path).write_text(json.dumps(plan.to_json(), indent=1) + "\n")
    sys.exit(0 if plan.fits else 1)


if __name__ == "__main__":
    flags.DEFINE_string("topology", None, "The slice: v4, v5e, v5p, v6e or tpu7x and its chips along each axis.")
    flags.DEFINE_string("json", None, "A file for the same figures.")
    flags.DEFINE_boolean("sweep", False, "Try meshes, prompts and streams; print the best that fits.")
    cli.run_config(main)
