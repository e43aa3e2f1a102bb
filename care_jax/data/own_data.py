"""Your own data: a file with one JSON object a line, and its images beside it (data.format "jsonl")."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Collection
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from tqdm import tqdm

from care_jax.data.file_formats import Numbered, line_rows, split_files
from care_jax.data.parsing import Row, image_bytes, place_marks
from care_jax.data.validation import BadRowError, check_gold_of, check_texts, decode_picture
from care_jax.errors import InputError
from care_jax.structs import Record

REQUIRED = ("id", "images", "prompt", "answer", "answer_kind")
OPTIONAL = ("choices", "rationale", "source")
MAX_LISTED = 20  # problems spelled out in an error


class JsonlSource:
    """Random access to the usable rows of a file, in file order; images are read on access. Picklable.

    `problems` lists the rows that were dropped: (line number from 1, reason).
    """

    def __init__(self, path: Path, rows: list[Row], problems: list[tuple[int, str]]) -> None:
        """Takes the rows that `read_jsonl` has checked."""
        self.path = path
        self.problems = problems
        self._rows = rows

    def __len__(self) -> int:
        """Returns the number of usable rows."""
        return len(self._rows)

    def __getitem__(self, index: int) -> Record:
        """Reads the images of a row and returns its record."""
        return self._rows[index].load()

    def fingerprint(self) -> str:
        """A digest of all texts of the rows, with the name and size of each image: other golds are other data."""
        digest = hashlib.blake2b(digest_size=16)
        for row in self._rows:
            digest.update(
                repr((row.record, [_name_and_size(image, self.path.parent) for image in row.images])).encode()
            )
        return digest.hexdigest()

    def __repr__(self) -> str:
        """Names the file, for error messages."""
        return f"JsonlSource({self.path}, {len(self)} records, {len(self.problems)} broken rows dropped)"


def read_jsonl(path: Path, *, strict: bool, allow: Collection[str] = ()) -> JsonlSource:
    """Checks every row of a file and decodes every image that it names, so that none can stop a run later.

    A row is {"id", "images": [paths relative to the file's folder], "prompt", "answer", "answer_kind"}, all strings.
    Optional keys are "choices" (strings; required for the kind "choice", whose answer is a letter or one of their
    texts), "rationale" and "source" (by default the file's name without its ending). The prompt has one "<image>" for
    each image; if it has none, they are put first. The file is UTF-8; empty lines are skipped.

    Args:
        path: the file.
        strict: refuse a file with broken rows instead of dropping them.
        allow: the functions "module:function" that a row may name as its answer_kind, the config's verify.allow.

    Returns:
        The usable rows.

    Raises:
        InputError: the file does not exist, no row is usable, or with `strict` any row is broken; the message lists up
            to 20 broken rows.
    """
    if not path.is_file():
        raise InputError(f"no data file {path}; give a file with one JSON object a line")
    usable: list[Row] = []
    problems: list[tuple[int, str]] = []
    first_lines: dict[str, int] = {}  # id -> line
    read = [(number, _read_row(raw, path.parent, allow)) for number, raw in rows(path)]
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
        raise InputError(f"{path}: {listing(problems)}\nmend them, or set data.strict to False to drop them")
    if not usable:
        raise InputError(f"{path}: no usable row. {listing(problems)}")
    return JsonlSource(path, usable, problems)


def listing(problems: list[tuple[int, str]]) -> str:
    """Formats broken rows: how many, and line number and reason of the first MAX_LISTED."""
    lines = [f"\n  row {number}: {reason}" for number, reason in problems[:MAX_LISTED]]
    if len(problems) > MAX_LISTED:
        lines.append(f"\n  and {len(problems) - MAX_LISTED} more")
    return f"{len(problems)} broken row{'' if len(problems) == 1 else 's'}{''.join(lines)}"


def files(root: Path, split: str) -> list[Path]:
    """Lists <split>.jsonl, or `root` itself if it is a file."""
    return [root] if root.is_file() else split_files(root, split, "jsonl")


def rows(path: Path) -> Numbered:
    """Yields the rows, with the file's name as the source of those that name none."""
    for number, raw in line_rows(path):
        yield number, raw if isinstance(raw, BadRowError) else {"source": path.stem} | raw


def parse(where: str, raw: dict[str, Any], folder: Path) -> Row:
    """Parses one row.

    Raises:
        BadRowError: the row cannot be used; the message says why.
    """
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
    return Row(where, record, tuple(folder / name for name in raw["images"]))


def _name_and_size(image: bytes | Path, folder: Path) -> tuple[str, int]:
    if isinstance(image, bytes):
        return hashlib.blake2b(image, digest_size=16).hexdigest(), len(image)
    return os.path.relpath(image, folder), image.stat().st_size if image.exists() else -1


def _read_row(raw: dict[str, Any] | BadRowError, folder: Path, allow: Collection[str]) -> Row | BadRowError:
    try:
        if isinstance(raw, BadRowError):
            return raw
        row = parse("", raw, folder)
        check_gold_of(row.record, allow)
        check_texts(row.record)
    except BadRowError as error:
        return error
    return row


def _unusable_images(images: Collection[bytes | Path]) -> dict[bytes | Path, BadRowError]:
    """Decodes images in threads, and returns the errors of those that cannot be used."""

    def problem(image: bytes | Path) -> BadRowError | None:
        try:
            decode_picture(image_bytes(image), str(image))
        except BadRowError as error:
            return error
        return None

    with ThreadPoolExecutor() as pool:
        found = tqdm(pool.map(problem, images), desc="checking images", total=len(images), delay=5, mininterval=1.0)
        return {image: error for image, error in zip(images, found, strict=True) if error is not None}
