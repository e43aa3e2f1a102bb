"""Statistics of prepared data: counts of rows read, kept and dropped, as report.json holds them, and as a table."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from care_jax.data.validation import Dropped
from care_jax.errors import InputError
from care_jax.files import read_object
from care_jax.structs import Record

REPORT_FILE = "report.json"  # in the prepared folder
_EXAMPLES = 3  # rows spelled out for each reason
_MAX_DETAIL = 200  # characters


def new(settings: dict[str, Any]) -> dict[str, Any]:
    """Returns the report before any row is counted."""
    return {
        "settings": settings,
        "rows": 0,  # read so far
        "shards": [],  # records of each
        "images": {},  # number of images -> records
        "kinds": {},  # answer kind -> records
        "tokens": {},  # tokens of the prompt -> records; empty without --model
        "dropped": {},  # reason -> rows
        "examples": {},  # reason -> [[where, detail]]
        "duplicates": [],  # [where, id in the benchmark, reason]
    }


def count_kept(report: dict[str, Any], record: Record, num_tokens: int | None) -> None:
    """Counts a row that became a record."""
    report["rows"] += 1
    _add(report["images"], str(len(record.images)))
    _add(report["kinds"], record.answer_kind)
    if num_tokens is not None:
        _add(report["tokens"], str(num_tokens))


def count_dropped(report: dict[str, Any], row: Dropped) -> None:
    """Counts a row that was left out."""
    report["rows"] += 1
    _add(report["dropped"], row.reason)
    if row.repeats:
        report["duplicates"].append([row.where, row.repeats, row.reason])
    examples = report["examples"].setdefault(row.reason, [])
    if len(examples) < _EXAMPLES:
        examples.append([row.where, row.detail[:_MAX_DETAIL]])


def table(report: dict[str, Any]) -> str:
    """Formats the counts as a table."""
    settings, images, tokens = report["settings"], report["images"], report["tokens"]
    kept = sum(report["shards"])
    several = sum(count for number, count in images.items() if int(number) > 1)
    kinds = sorted(report["kinds"].items(), key=lambda item: -item[1])
    lines = [
        f"{settings['source']} {settings['split']}",
        f"  read       {report['rows']:>9,}",
        f"  kept       {kept:>9,} in {len(report['shards'])} shards",
        f"  text-only  {images.get('0', 0):>9,}",
        f"  one image  {images.get('1', 0):>9,}",
        f"  several    {several:>9,}",
        "  answers    " + ", ".join(f"{kind} {count:,}" for kind, count in kinds),
        "  tokens     " + (_token_line(tokens) if tokens else "not counted; --model=FOLDER counts them"),
        f"  dropped    {sum(report['dropped'].values()):>9,}",
    ]
    for reason, count in sorted(report["dropped"].items(), key=lambda item: -item[1]):
        where, detail = report["examples"][reason][0]
        lines.append(f"  {count:>9,}  {reason}; first {where}" + (f": {detail}" if detail else ""))
    return "\n".join(lines)


def _token_line(tokens: dict[str, int]) -> str:
    """Formats mean, median, 95th percentile and maximum of the prompts' lengths."""
    lengths = sorted((int(length), count) for length, count in tokens.items())
    total = sum(count for _, count in lengths)
    mean = sum(length * count for length, count in lengths) / total
    return (
        f"a prompt: mean {mean:.0f}, median {_quantile(lengths, total, 0.5)}, "
        f"95 % up to {_quantile(lengths, total, 0.95)}, longest {lengths[-1][0]}"
    )


def _quantile(lengths: list[tuple[int, int]], total: int, share: float) -> int:
    seen = 0
    for length, count in lengths:
        seen += count
        if seen >= share * total:
            return length
    return lengths[-1][0]


def _add(counts: dict[str, int], key: str) -> None:
    counts[key] = counts.get(key, 0) + 1


def kinds_in(folder: Path) -> list[str]:
    """Returns the answer kinds that the report of a prepared folder counts; none if it has no report.

    Raises:
        InputError: the report is damaged.
    """
    path = folder / REPORT_FILE
    if not path.is_file():
        return []
    remedy = "prepare the folder again"
    kinds = read_object(path, remedy=remedy).get("kinds")
    if not isinstance(kinds, dict):
        raise InputError(f"{path} counts no kinds of answers; {remedy}")
    return list(kinds)
