"""Speed of the pool of verifier processes, in verdicts a second for each kind of answer.

    python -m benchmarks.verify --items 20000 --workers 1

Half of the answers are right; the verdicts are checked before anything is timed. Of the LaTeX answers one in ten is
hard: an expression with letters, an equation, a set, a tuple or an interval, right ones in another spelling than the
gold. Whole batches are timed, from the call to the last verdict: the parent's work, the pipes and the worker. The last
line is one JSON object, whose verdicts_per_s is for integers and one worker.
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
HARD_SHARE = 10  # one LaTeX answer in so many is hard
# Hard LaTeX: gold, a right answer, a wrong one.
HARD_LATEX = (
    (r"x^2+{0}x", r"x(x+{0})", r"x(x+{1})"),
    (r"\{{{0}, x+1\}}", r"\{{1+x, {0}\}}", r"\{{1+x, {1}\}}"),
    (r"(\frac{{y}}{{2}}, {0})", r"(0.5y, {0})", r"({0}, 0.5y)"),
    (r"y={0}x+1", r"y-1={0}x", r"y-1={1}x"),
    (r"(-\infty,{0})\cup({1},\infty)", r"({1},\infty)\cup(-\infty,{0})", r"(-\infty,{1}]\cup({1},\infty)"),
    (r"\sin x+{0}", r"{0}+\sin(x)", r"{0}+\cos(x)"),
    (r"[-1,{0}]", r"-1\le x\le {0}", r"-1\le x\le {1}"),
)


def make_items(kind: str, count: int) -> list[Item]:
    """Makes answers of a kind: right ones at even indices, wrong ones at odd indices; no two hard ones are the same."""
    size, spelling, choices = KINDS[kind]
    items = []
    for n in range(count):
        gold = n % size
        answer = gold if n % 2 == 0 else (gold + size // 2) % size
        items.append(Item(kind, spelling.format(answer), spelling.format(gold), choices))
    if kind == "latex":
        for n in [n for n in range(count) if n // 2 % HARD_SHARE == 0]:  # pairs, a right one and a wrong one
            wanted, right, wrong = (
                text.format(n + 2, n + 3) for text in HARD_LATEX[n // 2 // HARD_SHARE % len(HARD_LATEX)]
            )
            items[n] = Item(kind, right if n % 2 == 0 else wrong, wanted, None)
    return items


def time_kind(kind: str, verifier: Verifier, *, count: int, repeats: int) -> float:
    """Verdicts a second, the median over the repeats, each with hard answers of its own: none is in a cache.

    Raises:
        ValueError: a verdict is wrong.
    """
    items = make_items(kind, count * (repeats + 1))
    if [verdict.correct for verdict in verifier.check(items[:count])] != [n % 2 == 0 for n in range(count)]:
        raise ValueError(f"the verdicts on {kind} are not those that the answers were made for")
    seconds = []
    for repeat in range(1, repeats + 1):
        start = time.perf_counter()
        verifier.check(items[repeat * count : (repeat + 1) * count])
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
