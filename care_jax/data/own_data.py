"""Bring your own data: a file with one JSON object a line, and its images beside it."""

from __future__ import annotations

from collections.abc import Collection
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from tqdm import tqdm

from care_jax.data.file_formats import Numbered, line_rows, split_files
from care_jax.data.parsing import Row, image_bytes, place_marks
from care_jax.data.validation import BadRowError, check_gold_of, check_texts, decode_picture
from care_jax.structs import Record

REQUIRED = ("id", "images", "prompt", "answer", "answer_kind")
OPTIONAL = ("choices", "rationale", "source")
MAX_LISTED = 20  # problems spelled out in an error


class JsonlSource:
    """Random access to the usable rows of a file, in file order; images are read on access. Picklable.

    `problems` lists the rows that were dropped: (line number from 1, reason).
    """

    def __init__(self, path: Path, rows: list[Row], problems: list[tuple[int, str]]) -> None:
        self.path = path
        self.problems = problems
        self._rows = rows

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> Record:
        return self._rows[index].load()

    def __repr__(self) -> str:
        return f"JsonlSource({self.path}, {len(self)} records, {len(self.problems)} broken rows dropped)"


def read_jsonl(path: Path, *, strict: bool) -> JsonlSource:
    """Checks every row of a file, and decodes every image it names, so that none can stop a run later.

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
    usable: list[Row] = []
    problems: list[tuple[int, str]] = []
    first_lines: dict[str, int] = {}  # id -> line
    read = [(number, _read_row(raw, path.parent)) for number, raw in rows(path)]
    unusable = _unusable_images({image for _, row in read if isinstance(row, Row) for image in row.images})
    for number, row in read:
        try:
            if isinstance(row, BadRowError):
                raise row
            for image in unusable.keys() & row.images:
                raise unusable[image]
            if row.record.id in first_lines:
                raise BadRowError(f"id {row.record.id!r} was used in row {first_lines[row.record.id]}")
        except BadRowError as error:
            problems.append((number, str(error)))
            continue
        first_lines[row.record.id] = number
        usable.append(row)
    if problems and strict:
        raise ValueError(f"{path}: {listing(problems)}\nmend them, or set data.strict to False to drop them")
    if not usable:
        raise ValueError(f"{path}: no usable row. {listing(problems)}")
    return JsonlSource(path, usable, problems)


def listing(problems: list[tuple[int, str]]) -> str:
    """Broken rows as text: their number, and line number and reason of the first MAX_LISTED."""
    lines = [f"\n  row {number}: {reason}" for number, reason in problems[:MAX_LISTED]]
    if len(problems) > MAX_LISTED:
        lines.append(f"\n  and {len(problems) - MAX_LISTED} more")
    return f"{len(problems)} broken row{'' if len(problems) == 1 else 's'}{''.join(lines)}"


def files(root: Path, split: str) -> list[Path]:
    """<split>.jsonl, or `root` itself where it is a file."""
    return [root] if root.is_file() else split_files(root, split, "jsonl")


def rows(path: Path) -> Numbered:
    """Rows that carry the file's name as their source where they name none."""
    for number, raw in line_rows(path):
        yield number, raw if isinstance(raw, BadRowError) else {"source": path.stem} | raw


def parse(where: str, raw: dict[str, Any], folder: Path) -> Row:
    """One row; a BadRowError's text is the reason it cannot be used."""
    if missing := [key for key in REQUIRED if key not in raw]:
        raise BadRowError(f"missing {', '.join(missing)}")
    if unknown := sorted(set(raw) - {*REQUIRED, *OPTIONAL}):
        raise BadRowError(
            f"unknown key {', '.join(unknown)}; allowed: {', '.join((*REQUIRED, *OPTIONAL))}", "unknown key"
        )
    for key in ("id", "prompt", "answer", "answer_kind", "rationale", "source"):
        if key in raw and (not isinstance(raw[key], str) or not raw[key].strip()):
            wanted = f"{key} must be a string that is not empty"
            raise BadRowError(f"{wanted}, not {raw[key]!r}", wanted)
    for key in ("images", "choices"):
        if key in raw and not (isinstance(raw[key], list) and all(isinstance(x, str) and x for x in raw[key])):
            wanted = f"{key} must be a list of strings that are not empty"
            raise BadRowError(f"{wanted}, not {raw[key]!r}", wanted)
    if raw["answer_kind"] == "choice" and "choices" not in raw:
        raise BadRowError("answer_kind 'choice' needs choices, a list of texts")
    record = Record(
        id=raw["id"],
        source=raw["source"],
        prompt=place_marks(raw["prompt"], len(raw["images"]), mend_up_to=len(raw["images"])),
        images=(),
        answer=raw["answer"].strip(),
        answer_kind=raw["answer_kind"],
        choices=tuple(raw["choices"]) if "choices" in raw else None,
        rationale=raw.get("rationale"),
    )
    check_gold_of(record)
    return Row(where, record, tuple(folder / name for name in raw["images"]))


def _read_row(raw: dict[str, Any] | BadRowError, folder: Path) -> Row | BadRowError:
    try:
        if isinstance(raw, BadRowError):
            return raw
        row = parse("", raw, folder)
        check_texts(row.record)
    except BadRowError as error:
        return error
    return row


def _unusable_images(images: Collection[bytes | Path]) -> dict[bytes | Path, BadRowError]:
    """Why images cannot be used, of those that cannot."""

    def problem(image: bytes | Path) -> BadRowError | None:
        try:
            decode_picture(image_bytes(image), str(image))
        except BadRowError as error:
            return error
        return None

    with ThreadPoolExecutor() as pool:
        found = tqdm(pool.map(problem, images), desc="checking images", total=len(images), delay=5, mininterval=1.0)
        return {image: error for image, error in zip(images, found, strict=True) if error is not None}
