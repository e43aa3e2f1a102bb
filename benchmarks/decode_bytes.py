"""Bytes that the compiled decode step and update move on a TPU slice; nothing is run and no TPU is needed.

    python -m benchmarks.decode_bytes [--config=configs/F.py --topology=v5p:4x4x4 --tensor=0 --weights=int8]

A decode step is bound by its reads from HBM: the weights once, each prompt's keys and values once for all of its
branches, and the branches' own. `decode_share` is the size of these over the bytes that the compiled step reads and
writes, on one chip and averaged over a response of full length. A share of 1 means that the step moves nothing else.

An update on many chips is bound by what they receive: `update_links` is the bytes that the compiled update receives
over those that ZeRO-3 with recomputed layers, and Megatron's halves of a layer over tensor, need (flops.py). The last
line is one JSON object.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Sequence
from typing import Any

import jax

from benchmarks.config_file import load_config
from care_jax.options import SAMPLER_WEIGHTS
from care_jax.parallel.mesh import create_device_mesh
from care_jax.planning import hlo
from care_jax.planning.chips import devices_of
from care_jax.planning.estimate import make_plan, planned_calls, planned_model
from care_jax.planning.sizes import Sizes
from care_jax.stages.compiled import all_buckets
from care_jax.stages.model import mesh_sizes


def needed_bytes(sizes: Sizes) -> dict[str, float]:
    """Bytes that a chip must read for one token of every branch, averaged over a response, by what they hold."""
    own = sizes.num_rollouts * sizes.key_bytes(sizes.response_len + 1) / 2
    return {
        "weights": sizes.decode_bytes / sizes.decode_tensor,
        "prompt_kv": sizes.prompts * sizes.key_bytes(sizes.bucket[0]) / sizes.num_chips,
        "own_kv": sizes.prompts * own / sizes.num_chips,
    }


def decode_step(program: hlo.HloModule) -> str:
    """The name of the body of the loop over tokens: the outer loop with a loop over layers in it and the most trips."""
    outer = [loop for loop in program.loops() if program.loops(loop.calls["body"])]
    return max(outer, key=lambda loop: program.trips(program.entry, loop)).calls["body"]


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """Reads the flags."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", default="configs/qwen2_5_vl.py:7b")
    parser.add_argument("--weights", choices=SAMPLER_WEIGHTS, help="rollout.weights (the config's)")
    parser.add_argument("--topology", default="v5p:4x4x4", help="a TPU slice (v5p:4x4x4)")
    parser.add_argument("--tensor", type=int, help="rollout.tensor (the config's)")
    parser.add_argument("--top", type=int, default=8, help="how many of the instructions that move most to list (8)")
    parser.add_argument("--skip-update", action="store_true", help="only the decode step")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    """Compiles both programs and returns the figures that it prints."""
    args = parse(argv)
    jax.config.update("jax_platforms", "cpu")
    config = load_config(args.config)
    given = {"weights": args.weights, "tensor": args.tensor}
    config.rollout.update({name: value for name, value in given.items() if value is not None})
    model = planned_model(config)
    chip, devices = devices_of(args.topology)

    # One loop over tokens without a smaller one for the tail, so that there is one step to count.
    decoding = config.copy_and_resolve_references()
    decoding.rollout.compact_shares = ()
    mesh = create_device_mesh(mesh_sizes(decoding, model, len(devices)), devices)
    bucket = max(all_buckets(decoding))
    sizes = Sizes.of(decoding, model, bucket, dict(mesh.shape))
    started = time.time()
    call = next(call for call in planned_calls(decoding, model, mesh, bucket) if call.stage.name == "rollout")
    step = hlo.HloModule(str(call.program.lower(*call.args).compile().as_text()))
    moved = step.hbm_bytes(decode_step(step))
    needed = needed_bytes(sizes)
    share = sum(needed.values()) / moved.total()
    seconds = time.time() - started
    print(f"a decode step of {sizes.prompts} prompts on {args.topology}, a chip, compiled in {seconds:.0f} s")
    for name, size in needed.items():
        print(f"  must read   {size / 1e6:>10.1f} MB  {name}")
    print(f"  moves       {moved.total() / 1e6:>10.1f} MB: {share:.3f} of it must be read; the most of it in")
    for name, size in moved.most_common(args.top):
        print(f"              {size / 1e6:>10.1f} MB  {name}")

    figures: dict[str, Any] = {
        "benchmark": "decode_bytes",
        "config": args.config,
        "weights": config.rollout.weights,
        "topology": args.topology,
        "mesh": sizes.mesh,
        "decode_tensor": sizes.decode_tensor,
        "prompts": sizes.prompts,
        "needed_bytes": {name: round(size) for name, size in needed.items()},
        "moved_bytes": moved.total(),
        "decode_share": round(share, 4),
        "step_floor_ms": round(1e3 * sum(needed.values()) / chip.hbm_bytes_per_s, 3),
    }
    if not args.skip_update:
        plan = make_plan(config, args.topology, only=("update",)).to_json()
        figures |= {
            "update_received_bytes": plan["update_collective_bytes"],
            "update_minimum_bytes": plan["update_minimum_bytes"],
            "update_links": round(plan["update_collective_bytes"] / plan["update_minimum_bytes"], 4),
            "update_kinds": plan["collective_bytes"],
        }
        print(
            f"an update, a chip: receives {figures['update_received_bytes'] / 1e9:.2f} GB, at the least "
            f"{figures['update_minimum_bytes'] / 1e9:.2f}: {figures['update_links']:.3f} times"
        )
    print(json.dumps(figures))
    return figures


if __name__ == "__main__":
    main(sys.argv[1:])
