"""The share of useful tokens in the streams of an update, by their length, with and without moving groups.

    python -m benchmarks.packing
    python -m benchmarks.packing --shards=8 --mean_len=1000 --json=packing.json

It needs no device: lengths of a run that is made up (care_jax/planning/workload.py says how) are packed as a
step packs them. What is no useful token is the end of a stream, or a stream in which a shard waits for another one.
"unmoved" is each shard with the groups that it sampled. The last line is one JSON object.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from care_jax.planning import workload
from care_jax.stages.packing import PromptLengths, StreamSizes, pack, padding_share, shorter_len

_PROMPT_SHARE, _ACCURACY = 0.625, 0.6  # prompts are of a quarter of the longest and more


def draw(args: argparse.Namespace, seed: int) -> tuple[PromptLengths, npt.NDArray[np.int32]]:
    """Lengths of the prompts, and of the rows that a step of CARE updates [B, K + 1]; 0 where there is none."""
    rng = np.random.default_rng(seed)
    mean_prompt = _PROMPT_SHARE * args.prompt_len
    tokens = workload.draw_prompts(rng, args.prompts, mean_prompt, args.prompt_len).astype(np.int32)
    correct = workload.draw_correct(rng, (args.prompts, args.rollouts), _ACCURACY)
    num_wrong = np.sum(~correct, axis=1)
    num_rows = np.where(num_wrong > 0, np.minimum(num_wrong, args.negatives) + 1, 0)
    length = workload.draw_lengths(rng, (args.prompts, args.negatives + 1), args.mean_len, args.response_len)
    return PromptLengths(tokens, tokens), np.where(np.arange(args.negatives + 1) < num_rows[:, None], length, 0)


def sizes_of(args: argparse.Namespace, stream_len: int, num_prompts: int, shards: int) -> StreamSizes:
    """The shape of a packing."""
    return StreamSizes.make(
        num_prompts=num_prompts,
        num_rows=args.negatives + 1,
        bucket=(args.prompt_len, args.prompt_len),
        row_len=args.response_len,
        stream_len=stream_len,
        shards=shards,
        parts=args.minibatches,
    )


def useful_unmoved(
    args: argparse.Namespace, stream_len: int, prompts: PromptLengths, row_len: npt.NDArray[np.int32]
) -> float:
    """The useful share if every shard packs its own groups."""
    size = args.prompts // args.shards
    sizes = sizes_of(args, stream_len, size, 1)
    filled = []
    for first in range(0, args.prompts, size):
        own = slice(first, first + size)
        streams = pack(sizes, PromptLengths(prompts.tokens[own], prompts.patches[own]), row_len[own]).streams
        filled.append((np.asarray(streams.group) > 0).sum(axis=1))
    longest, shorter = np.max(filled, axis=0), shorter_len(stream_len)  # by turn
    computed = np.where(longest > shorter, stream_len, np.where(longest > 0, shorter, 0)).sum() * args.shards
    return float(np.sum(filled) / computed)


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    """Prints a table and returns its figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    sizes = {
        "prompts": (512, "B, prompts of a step"),
        "rollouts": (8, "G, rollouts of a prompt"),
        "negatives": (4, "K, negatives of a subgroup"),
        "prompt_len": (2048, "P, tokens of the longest prompt"),
        "response_len": (2048, "R, tokens of the longest response"),
        "mean_len": (500, "tokens of a response on average"),
        "shards": (64, "data * fsdp"),
        "minibatches": (4, "updates of a step"),
        "steps": (4, "made-up steps whose shares are averaged"),
    }
    for name, (default, text) in sizes.items():
        parser.add_argument(f"--{name}", type=int, default=default, help=f"{text} ({default})")
    parser.add_argument("--json", type=Path, help="a file for the figures")
    args = parser.parse_args(argv)
    if min(getattr(args, name) for name in sizes) < 1:
        parser.error("every size must be at least 1")
    if args.prompts % (args.shards * args.minibatches):
        parser.error("--prompts must divide by --shards times --minibatches")

    shortest = args.prompt_len + args.response_len
    lengths = [shortest, 3 * shortest // 2, 2 * shortest, 3 * shortest, 4 * shortest]
    shares: dict[int, dict[str, float]] = {}
    print(f"{'stream_len':>12}{'unmoved':>10}{'moved':>8}")
    for stream_len in lengths:
        found = []
        for seed in range(args.steps):
            prompts, row_len = draw(args, seed)
            shape = sizes_of(args, stream_len, args.prompts, args.shards)
            moved = 1 - padding_share(pack(shape, prompts, row_len), shape)
            found.append((useful_unmoved(args, stream_len, prompts, row_len), moved))
        unmoved, moved = np.mean(found, axis=0)
        shares[stream_len] = {"unmoved": round(float(unmoved), 3), "moved": round(float(moved), 3)}
        print(f"{stream_len:>12}{unmoved:>10.3f}{moved:>8.3f}", flush=True)
    figures = {"benchmark": "packing", **{name: getattr(args, name) for name in sizes}, "useful_token_share": shares}
    if args.json:
        args.json.write_text(json.dumps(figures) + "\n")
    print(json.dumps(figures))
    return figures


if __name__ == "__main__":
    main(sys.argv[1:])
