"""Speed of the pool of verifier processes, in verdicts a second for each kind of answer.

    python -m benchmarks.verify --items 20000 --workers 1

Half of the answers are right; the verdicts are checked before anything is timed. Whole batches are timed, from the call
to the last verdict: the parent's work, the pipes and the worker. The last line is one JSON object, whose
verdicts_per_s is for integers and one worker.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Sequence

from care_jax.rewards.judge import Item, Verifier

OPTIONS = tuple(f"option {n}" for n in range(10))
# By kind: how many different answers are made, how they are written, and the options.
KINDS: dict[str, tuple[int, str, tuple[str, ...] | None]] = {
    "integer": (1000, "{}", None),
    "number": (1000, r"\frac{{{}}}{{7}}", None),
    "rounded": (1000, "{}.25", None),
    "latex": (1000, r"{}\sqrt{{3}}", None),
    "choice": (10, "option {}", OPTIONS),
    "text": (1000, "number {}", None),
    "list": (1000, "[{}, 5]", None),
    "chart_relaxed": (1000, "{}", None),
}


def make_items(kind: str, count: int) -> list[Item]:
    """Makes answers of a kind: right ones at even indices, wrong ones at odd indices."""
    size, spelling, choices = KINDS[kind]
    golds = [n % size for n in range(count)]
    answers = [gold if n % 2 == 0 else (gold + size // 2) % size for n, gold in enumerate(golds)]
    return [
        Item(kind, spelling.format(answer), spelling.format(gold), choices)
        for answer, gold in zip(answers, golds, strict=True)
    ]


def time_kind(kind: str, verifier: Verifier, *, count: int, repeats: int) -> float:
    """Verdicts a second, the median over the repeats.

    Raises:
        ValueError: a verdict is wrong.
    """
    items = make_items(kind, count)
    if [verdict.correct for verdict in verifier.check(items)] != [n % 2 == 0 for n in range(count)]:
        raise ValueError(f"the verdicts on {kind} are not those that the answers were made for")
    seconds = []
    for _ in range(repeats):
        start = time.perf_counter()
        verifier.check(items)
        seconds.append(time.perf_counter() - start)
    return count / statistics.median(seconds)


def main(argv: Sequence[str]) -> dict[str, object]:
    """Times every kind, prints a line for each and the figures as JSON; returns the figures."""
    parser = argparse.ArgumentParser(description="Verdicts a second of the pool of worker processes.")
    parser.add_argument("--items", type=int, default=20_000, help="answers of a batch")
    parser.add_argument("--workers", type=int, default=1, help="processes")
    parser.add_argument("--repeats", type=int, default=3)
    args = parser.parse_args(argv)
    if min(args.items, args.workers, args.repeats) < 1:
        parser.error("--items, --workers and --repeats must be at least 1")
    with Verifier(workers=args.workers, deadline=60.0, tolerance=0.0) as verifier:
        rates = {kind: time_kind(kind, verifier, count=args.items, repeats=args.repeats) for kind in KINDS}
    figures: dict[str, object] = {
        "benchmark": "verify",
        "items": args.items,
        "workers": args.workers,
        "pool_verdicts_per_s": {kind: round(rate) for kind, rate in rates.items()},
        "verdicts_per_s": round(rates["integer"] / args.workers),
    }
    print(f"batches of {args.items}, {args.workers} workers; medians of {args.repeats}")
    for kind, rate in rates.items():
        print(f"{kind:<16}{rate:>10,.0f} verdicts/s")
    print(json.dumps(figures))
    return figures


if __name__ == "__main__":
    main(sys.argv[1:])
