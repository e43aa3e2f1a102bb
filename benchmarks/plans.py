"""Writes the plans in docs/planning.md: what the configs of real models take of the slices they are set up for.

    python -m benchmarks.plans                                        # all of them, hours on two cores
    python -m benchmarks.plans --only=configs/qwen2_5_vl.py:7b        # one config's, some minutes

The document has a block for each plan. The line above a block is the command of care_jax.plan that made it, in a
comment; only what stands between that line and the next `<!-- end -->` is written.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Sequence
from pathlib import Path

import jax

from benchmarks.config_file import load_config
from care_jax.planning.chips import GIB
from care_jax.planning.estimate import PARTS, Plan, make_plan
from care_jax.planning.flops import BOUNDS
from care_jax.planning.sizes import Sizes

_BLOCK = re.compile(
    r"(?P<command><!-- python -m care_jax\.plan --config=(?P<config>\S+) --topology=(?P<topology>\S+) -->\n)"
    r".*?(?P<end><!-- end -->)",
    re.DOTALL,
)
_SHOWN = ("rollout", "score", "update")  # stages


def size_of(sizes: Sizes) -> str:
    """Returns the sentence about a model's size."""
    count, trained = sizes.num_params, sizes.num_trained
    if trained == count:
        what, num_bytes = "with Adam's two moments, all float32,", 12 * count
    else:
        what = f"{trained / 1e6:.0f} million of them trained; with Adam's two moments of these, float32,"
        num_bytes = sizes.weight_bytes * (count - trained) + 12 * trained
    return f"{count / 1e9:.2f} billion parameters; {what} {num_bytes / 1e9:.0f} GB of the slice."


def block(plan: Plan) -> str:
    """Returns the plan in Markdown: its size, three stages, least seconds and the peak."""
    sizes, limit = plan.sizes, plan.chip.hbm_gib
    mesh = " x ".join(f"{axis} {size}" for axis, size in sizes.mesh.items())
    lines = [
        size_of(sizes),
        "",
        "```",
        f"GiB of a chip's {limit}, mesh {mesh}:",
        " " * 9 + "".join(f" {part}" for part in PARTS) + "  peak",
    ]
    for stage in plan.stages:
        if stage.name in _SHOWN:
            cells = "".join(f"{stage.parts[part] / GIB:>{len(part) + 1}.2f}" for part in PARTS)
            lines.append(f"{stage.name:<9}{cells}{stage.peak / GIB:>6.2f}")
    figures = plan.to_json()
    seconds = (f"{bound} {sum(floor[bound] for floor in plan.floors.values()):.1f}" for bound in BOUNDS)
    lines += [
        f"a step of {figures['tokens_per_step']:,} tokens is {figures['flops_per_step'] / 1e12:,.0f} TFLOP; "
        f"least seconds: {', '.join(seconds)},",
        f"one stage after another {plan.least_seconds:.1f}",
        f"{'fits' if plan.fits else 'does not fit'}: the peak is {plan.peak.peak / GIB:.2f} of {limit} GiB, in "
        f"{plan.peak.name}",
        "```",
    ]
    return "\n".join(lines)


def rewrite(document: str, only: str = "") -> str:
    """Returns the document with its blocks written anew: all of them, or those of one config.

    Raises:
        ValueError: it has no such block.
    """
    blocks = [found for found in _BLOCK.finditer(document) if only in ("", found["config"])]
    if not blocks:
        raise ValueError(f"the document has no block of --config={only or '...'}")
    for found in reversed(blocks):  # from the end, so that the places of the others stay right
        plan = make_plan(load_config(found["config"]), found["topology"])
        written = f"{found['command']}\n{block(plan)}\n\n{found['end']}"
        document = document[: found.start()] + written + document[found.end() :]
        print(
            f"{found['config']} on {found['topology']}: {plan.peak.peak / GIB:.2f} GiB in {plan.peak.name}", flush=True
        )
    return document


def main(argv: Sequence[str] | None = None) -> None:
    """Rewrites the document in its place."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--document", type=Path, default=Path("docs/planning.md"))
    parser.add_argument("--only", default="", help="one config, as it stands in the document (all)")
    args = parser.parse_args(argv)
    jax.config.update("jax_platforms", "cpu")  # a plan takes no device
    args.document.write_text(rewrite(args.document.read_text(), args.only))


if __name__ == "__main__":
    main()
