"""The share of useful tokens in the streams of an update, by their length, with and without moving groups.

    python -m benchmarks.packing
    python -m benchmarks.packing --shards=8 --mean_len=1000 --json=packing.json

It needs no device: lengths of a run that is made up (care_jax/planning/workload.py says how) are packed as a
step packs them. What is no useful token is the end of a stream, or a stream in which a shard waits for another one.

    unmoved       each shard computes the groups that it sampled
    one_length    groups move, and every stream is computed in its whole length
    moved         groups move, and streams have two lengths, as in a step
    exact         groups move, and each turn is as long as its fullest stream

The last line is one JSON object.
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
from care_jax.stages.packing import PromptLengths, StreamSizes, computed_tokens, pack

COLUMNS = ("unmoved", "one_length", "moved", "exact")
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


def useful_shares(
    args: argparse.Namespace, stream_len: int, prompts: PromptLengths, row_len: npt.NDArray[np.int32]
) -> dict[str, float]:
    """The useful shares by what is done for them; see `COLUMNS`."""
    size = args.prompts // args.shards
    alone, filled = sizes_of(args, stream_len, size, 1), []
    for first in range(0, args.prompts, size):
        own = slice(first, first + size)
        packing = pack(alone, PromptLengths(prompts.tokens[own], prompts.patches[own]), row_len[own])
        filled.append((packing.streams.group > 0).sum(axis=1))
    moved = pack(sizes_of(args, stream_len, args.prompts, args.shards), prompts, row_len).streams.group > 0
    most, most_moved = (np.max(x, axis=0) for x in (filled, moved.sum(axis=1).reshape(args.shards, -1)))  # by turn
    computed = (
        computed_tokens(most, stream_len),
        np.sum(most_moved > 0) * stream_len,
        computed_tokens(most_moved, stream_len),
        np.sum(most_moved),
    )
    return dict(zip(COLUMNS, (float(moved.sum() / (args.shards * tokens)) for tokens in computed), strict=True))


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
    print(f"{'stream_len':>12}" + "".join(f"{name:>12}" for name in COLUMNS))
    for stream_len in lengths:
        found = [useful_shares(args, stream_len, *draw(args, seed)) for seed in range(args.steps)]
        shares[stream_len] = {name: round(float(np.mean([of[name] for of in found])), 3) for name in COLUMNS}
        print(f"{stream_len:>12}" + "".join(f"{share:>12.3f}" for share in shares[stream_len].values()), flush=True)
    figures = {"benchmark": "packing", **{name: getattr(args, name) for name in sizes}, "useful_token_share": shares}
    if args.json:
        args.json.write_text(json.dumps(figures) + "\n")
    print(json.dumps(figures))
    return figures


if __name__ == "__main__":
    main(sys.argv[1:])
