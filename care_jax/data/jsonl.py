"""Bring your own data: a file with one JSON object a line, and its images beside it."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

from PIL import Image

from care_jax.data.records import Record
from care_jax.verifiers import check_gold

PLACEHOLDER = "<image>"
REQUIRED = ("id", "images", "prompt", "answer", "answer_kind")
OPTIONAL = ("choices", "rationale", "source")
MAX_LISTED = 20  # problems spelled out in an error


@dataclasses.dataclass(frozen=True)
class _Row:
    """A checked row; `record` lacks only its images' bytes."""

    record: Record
    paths: tuple[Path, ...]


class JsonlSource:
    """Random access to the usable rows of a file, in file order; images are read on access. Picklable.

    `problems` lists the rows that were dropped: (line number from 1, reason).
    """

    def __init__(self, path: Path, rows: list[_Row], problems: list[tuple[int, str]]) -> None:
        self.path = path
        self.problems = problems
        self._rows = rows

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> Record:
        row = self._rows[index]
        return dataclasses.replace(row.record, images=tuple(path.read_bytes() for path in row.paths))

    def __repr__(self) -> str:
        return f"JsonlSource({self.path}, {len(self)} records, {len(self.problems)} broken rows dropped)"


def read_jsonl(path: Path, *, strict: bool) -> JsonlSource:
    """Checks every row of a file, and every image it names.

    A row: {"id", "images": [paths from the file's folder], "prompt", "answer", "answer_kind"}, all strings, and as
    options "choices" (strings; needed for the kind "choice", whose answer is a letter or one of their texts),
    "rationale" and "source" (else the file's name without its ending). The prompt holds one "<image>" an image, or none
    at all: then they are put first. UTF-8; empty lines are skipped.

    Args:
        path: the file.
        strict: refuse a file with broken rows instead of dropping them.

    Returns:
        The usable rows.

    Raises:
        ValueError: no such file, no usable row, or with `strict` any broken row; the text lists up to 20 of them.
    """
    if not path.is_file():
        raise ValueError(f"no data file {path}; give a file with one JSON object a line")
    rows: list[_Row] = []
    problems: list[tuple[int, str]] = []
    first_lines: dict[str, int] = {}  # id -> line
    verified: set[Path] = set()
    with path.open("rb") as lines:
        for number, line in enumerate(lines, start=1):
            if not line.strip():
                continue
            try:
                row = _parse(line, path, verified)
                if row.record.id in first_lines:
                    raise ValueError(f"id {row.record.id!r} was used in row {first_lines[row.record.id]}")
            except ValueError as error:
                problems.append((number, str(error)))
                continue
            first_lines[row.record.id] = number
            rows.append(row)
    if problems and strict:
        raise ValueError(f"{path}: {listing(problems)}\nmend them, or set data.strict to False to drop them")
    if not rows:
        raise ValueError(f"{path}: no usable row. {listing(problems)}")
    return JsonlSource(path, rows, problems)


def listing(problems: list[tuple[int, str]]) -> str:
    """Broken rows as text: their number, and line number and reason of the first MAX_LISTED."""
    lines = [f"\n  row {number}: {reason}" for number, reason in problems[:MAX_LISTED]]
    if len(problems) > MAX_LISTED:
        lines.append(f"\n  and {len(problems) - MAX_LISTED} more")
    return f"{len(problems)} broken row{'' if len(problems) == 1 else 's'}{''.join(lines)}"


def _parse(line: bytes, path: Path, verified: set[Path]) -> _Row:
    """One line to a row; a ValueError's text is the reason it cannot be used."""
    try:
        row = json.loads(line.decode("utf-8-sig"))
    except UnicodeDecodeError:
        raise ValueError("not UTF-8") from None
    except json.JSONDecodeError as error:
        raise ValueError(f"not JSON: {error}") from None
    if not isinstance(row, dict):
        raise ValueError(f"a JSON object is needed, not {type(row).__name__}")
    if missing := [key for key in REQUIRED if key not in row]:
        raise ValueError(f"missing {', '.join(missing)}")
    if unknown := sorted(set(row) - {*REQUIRED, *OPTIONAL}):
        raise ValueError(f"unknown key {', '.join(unknown)}; allowed: {', '.join((*REQUIRED, *OPTIONAL))}")
    for key in ("id", "prompt", "answer", "answer_kind", "rationale", "source"):
        if key in row and (not isinstance(row[key], str) or not row[key].strip()):
            raise ValueError(f"{key} must be a string that is not empty, not {row[key]!r}")
    for key in ("images", "choices"):
        if key in row and not (isinstance(row[key], list) and all(isinstance(x, str) and x for x in row[key])):
            raise ValueError(f"{key} must be a list of strings that are not empty, not {row[key]!r}")
    if row["answer_kind"] == "choice" and "choices" not in row:
        raise ValueError("answer_kind 'choice' needs choices, a list of texts")
    choices = tuple(row["choices"]) if "choices" in row else None
    check_gold(row["answer_kind"], row["answer"], choices)
    record = Record(
        id=row["id"],
        source=row.get("source", path.stem),
        prompt=_with_placeholders(row["prompt"], len(row["images"])),
        images=(),
        answer=row["answer"].strip(),
        answer_kind=row["answer_kind"],
        choices=choices,
        rationale=row.get("rationale"),
    )
    paths = tuple(path.parent / name for name in row["images"])
    for image_path in paths:
        _verify_image(image_path, verified)
    return _Row(record, paths)


def _with_placeholders(prompt: str, num_images: int) -> str:
    count = prompt.count(PLACEHOLDER)
    if count == 0:
        return PLACEHOLDER * num_images + prompt
    if count != num_images:
        raise ValueError(f"the prompt holds {count} {PLACEHOLDER} for {num_images} images; give one each, or none")
    return prompt


def _verify_image(path: Path, verified: set[Path]) -> None:
    """Opens the image and lets PIL check its structure; pixels are not decoded."""
    if path in verified:
        return
    if not path.is_file():
        raise ValueError(f"no image {path}")
    try:
        with Image.open(path) as image:
            image.verify()
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:  # PIL's ways to say: damaged
        raise ValueError(f"damaged image {path}: {error}") from None
    verified.add(path)
