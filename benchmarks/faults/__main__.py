"""Damaged pictures, rows, model folders and run folders: each is used rightly or refused in one line.

    python -m benchmarks.faults                             # all sections
    python -m benchmarks.faults --section=pictures --cases=100

Each section damages good files with a seeded generator and gives them to the reader that a command uses. What is read
is compared with an independent reading of the same bytes, so that a damage which changes nothing counts as right. Bad
outcomes (traceback, wrong) are listed, a line each. The last line is one JSON object; exit code 1 if one was bad.
"""

from __future__ import annotations

import argparse
import collections
import json
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

from benchmarks.faults.models import model_folders
from benchmarks.faults.outcomes import Case, Outcome, run_cases
from benchmarks.faults.pictures import pictures
from benchmarks.faults.reports import reports
from benchmarks.faults.rows import rows
from benchmarks.faults.runs import runs

# A section takes an empty folder, the number of cases and a seed.
Section = Callable[[Path, int, int], Iterator[Case]]
# With the number of cases that are run when none is given.
SECTIONS: dict[str, tuple[Section, int]] = {
    "pictures": (pictures, 10_000),
    "rows": (rows, 2_000),
    "models": (model_folders, 600),
    "runs": (runs, 1_000),
    "reports": (reports, 2_000),
}
_MOST_LISTED = 20


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--section", choices=sorted(SECTIONS), action="append", help="one or more; else all")
    parser.add_argument("--cases", type=int, help="inputs of a section; else the section's own number")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    counts = {name: _run(name, options.cases, options.seed) for name in options.section or SECTIONS}
    print(json.dumps({"seed": options.seed, **counts}))
    sys.exit(any(count[Outcome.TRACEBACK] or count[Outcome.WRONG] for count in counts.values()))


def _run(name: str, cases: int | None, seed: int) -> dict[str, int]:
    """The number of each outcome; bad ones are printed."""
    section, usual = SECTIONS[name]
    counts: collections.Counter[str] = collections.Counter({outcome.value: 0 for outcome in Outcome})
    listed = 0
    with tempfile.TemporaryDirectory() as folder:
        for result in run_cases(section(Path(folder), cases or usual, seed)):
            counts[result.outcome.value] += 1
            if result.outcome in {Outcome.TRACEBACK, Outcome.WRONG} and listed < _MOST_LISTED:
                listed += 1
                print(f"{name}: {result.case}: {result.outcome.value}: {result.seen}")
    print(f"{name}: " + ", ".join(f"{outcome} {count}" for outcome, count in counts.items()), flush=True)
    return dict(counts)


if __name__ == "__main__":
    main()
