"""The responses to a benchmark: asked of a model and kept batch by batch, or read from somebody else's file.

responses.jsonl has one line a question, in the order in which they were answered:

    {"id": "mathvista/17", "responses": ["<think>..</think><answer>3</answer>"]}      [] for a prompt that is too long
"""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import json
import math
import os
from collections.abc import Callable, Generator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from absl import logging
from tqdm import tqdm

from care_jax import files
from care_jax.data.file_formats import Numbered, line_rows
from care_jax.data.parsing import is_number
from care_jax.data.readers.mathverse import TEXT_ONLY
from care_jax.errors import BadRowError, InputError, printable, shown
from care_jax.evals.matching import LEFT_OUT, WAYS, Questions, has_question
from care_jax.parallel.processes import by_first, is_first
from care_jax.structs import Record

if TYPE_CHECKING:
    from care_jax.data.loader import RecordSource

Responses = dict[str, list[str]]  # id -> responses
# Asks the records of a source, batch after batch, and leaves out prompts that are too long. The number is that of the
# answers so far.
Ask = Callable[["RecordSource", int], Generator[Responses]]

RESPONSES_FILE = "responses.jsonl"
SETTINGS_FILE = "settings.json"


@dataclasses.dataclass(frozen=True)
class _Part:
    """Some of the records of a source."""

    source: RecordSource
    indices: list[int]

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, index: int) -> Record:
        return self.source[self.indices[index]]


def answer_all(folder: Path, source: RecordSource, ask: Ask, settings: dict[str, Any]) -> Responses:
    """Asks the questions that `folder` has no answer to yet, and returns the responses to all records.

    After a kill, the same call continues with the first question that has no answer. Process 0 alone reads and writes
    `folder`.

    Args:
        folder: holds the answers so far, and gets the new ones.
        source: the questions.
        ask: asks a model.
        settings: what the answers depend on.

    Raises:
        InputError: the answers in `folder` were given under other settings.
    """
    path = folder / RESPONSES_FILE
    by_first(lambda: check_settings(folder, settings))
    responses: Responses = by_first(lambda: _read_answered(path))
    ids = [source[index].id for index in range(len(source))]
    missing = _Part(source, [index for index, record_id in enumerate(ids) if record_id not in responses])
    if missing:
        with (
            contextlib.closing(ask(missing, len(responses))) as batches,
            tqdm(total=len(ids), initial=len(responses), unit=" items", disable=not is_first()) as shown,
        ):
            for answered in batches:
                _append(path, answered)
                responses |= answered
                shown.update(len(answered))
        too_long: Responses = {record_id: [] for record_id in ids if record_id not in responses}
        _append(path, too_long)
        responses |= too_long
    return responses


def read_responses(path: Path, questions: Questions, *, id_field: str, response_field: str) -> Responses:
    """Responses from a file as models' makers publish them. One line says how their questions were found.

    Args:
        path: the file: an object a line (MMMU-Pro), one array of objects (MMMU, ChartQA), which may stand in an object
            beside a summary, or one object that has the objects, or the responses themselves, by id (MathVista). A row
            may have its question in "doc", as in lmms-eval's logs.
        questions: those of the benchmark.
        id_field: the key of the id, "benchmark/id" or "id"; rows with other ids, or none, have their question.
        response_field: the key of the response, a text, a number or a list of them; anything else counts as no
            response.

    Raises:
        InputError: no such file, a line or an entry that is not a JSON object, a missing key, two responses to a
            question, none of the benchmark's questions, or as `Questions.match`.
    """
    numbered = _checked_rows(path, id_field, response_field)
    rows = [one for one in numbered if one[1].get("problem_version") != TEXT_ONLY]
    if numbered and not rows:
        raise InputError(
            f"{path} answers MathVerse's version {TEXT_ONLY}, which is not of the benchmark; give the file that "
            "answers its five versions with a picture"
        )
    responses: Responses = {}
    found = questions.match(path, rows, id_field)
    names = [str(row.get(id_field, f"row {number}")) for number, row in rows]
    for (number, row), name, one in zip(rows, names, found, strict=True):
        if one.id in responses:
            raise InputError(f"{path}:{number} is the second response to {name!r}; one a question is needed")
        if one.id is not None:
            responses[one.id] = _texts(row[response_field])
    if not responses:
        raise InputError(
            f"no id in {path} matches this benchmark (found {printable(', '.join(names[:2])) or 'none'}, expected e.g. "
            f"{', '.join(questions.ids[:2])}), nor does a question with its picture; check --benchmark and --id_field"
        )
    first = {one.how: name for one, name in reversed(list(zip(found, names, strict=True)))}
    counts = collections.Counter(one.how for one in found)
    ways = [f"{counts[how]} {how}" for how in WAYS if how in counts]
    left_out = [f"left out {counts[how]} {how}, as {first[how]}" for how in LEFT_OUT if how in counts]
    if text_only := len(numbered) - len(rows):
        left_out.append(f"left out {text_only} of MathVerse's version {TEXT_ONLY}")
    logging.warning("%s", printable(f"{path}: responses found {'; '.join([', '.join(ways), *left_out])}"))
    return responses


def model_named(path: Path, id_field: str, response_field: str) -> str | None:
    """The model that a file of responses names in its rows, if they name one.

    Raises:
        InputError: they name several, or as `read_responses`.
    """
    rows = _checked_rows(path, id_field, response_field)
    named = {
        row[key] for _, row in rows for key in ("model", "model_name", "model_id") if isinstance(row.get(key), str)
    }
    if len(named) > 1:
        raise InputError(f"{path} has responses of {len(named)} models, {shown(', '.join(sorted(named)))}; give one's")
    return named.pop() if named else None


def _checked_rows(path: Path, id_field: str, response_field: str) -> list[tuple[int, dict[str, Any]]]:
    """The rows of a file of responses with their numbers; each has a response and an id or a question.

    Raises:
        InputError: as `read_responses`.
    """
    files.require_readable(path, f"no file {path}; give one with JSON objects, a line each, in an array, or by id")
    rows: list[tuple[int, dict[str, Any]]] = []
    for number, row in _published_rows(path, id_field, response_field):
        if isinstance(row, BadRowError):
            raise InputError(f"{path}:{number} cannot be read: {row}")
        row = {**row["doc"], **row} if isinstance(row.get("doc"), dict) else row
        needed = [response_field] if has_question(row) else [id_field, response_field]
        if missing := [key for key in needed if key not in row]:
            raise InputError(
                f"{path}:{number} has no {' and no '.join(map(repr, missing))}, but {printable(', '.join(row))}; name "
                "the fields with --id_field and --response_field"
            )
        rows.append((number, row))
    return rows


def _published_rows(path: Path, id_field: str, response_field: str) -> Numbered:
    """The rows of a file in any form that `read_responses` takes, numbered from 1."""
    try:
        whole = json.loads(path.read_bytes().decode("utf-8-sig"))
    except (ValueError, RecursionError):  # several lines, or damaged, which is then said of its line
        yield from line_rows(path)
        return
    rows = whole if isinstance(whole, list) and whole else [whole]
    if isinstance(whole, dict) and id_field not in whole and response_field not in whole:
        arrays = [value for value in whole.values() if isinstance(value, list) and any(map(_is_object, value))]
        by_id = [
            {id_field: key, **value} if _is_object(value) else {id_field: key, response_field: value}
            for key, value in whole.items()
        ]
        rows = arrays[0] if len(arrays) == 1 else by_id
    for number, row in enumerate(rows, start=1):
        kind = type(row).__name__
        yield number, row if isinstance(row, dict) else BadRowError(f"a JSON object is needed, not {kind}")


def _is_object(value: Any) -> bool:
    return isinstance(value, dict)


def _texts(value: Any) -> list[str]:
    values = value if isinstance(value, list) else [value]
    numbers_too = (str(one) if is_number(one) and math.isfinite(one) else one for one in values)
    return [text for text in numbers_too if isinstance(text, str)]


def _read_answered(path: Path) -> Responses:
    """The answers so far; a line that a kill left torn is cut off.

    Raises:
        InputError: another line is not one of answers; names it.
    """
    if not path.is_file():
        return {}
    whole = path.read_bytes().rpartition(b"\n")[0]
    os.truncate(path, len(whole) + 1 if whole else 0)
    answered: Responses = {}
    for number, line in enumerate(whole.splitlines(), start=1):
        where, remedy = f"{path}, line {number}", "delete the line, and its question is asked again"
        row = files.parse_object(line, where, remedy=remedy)
        texts = row.get("responses")
        if not isinstance(row.get("id"), str) or not isinstance(texts, list) or _texts(texts) != texts:
            raise InputError(f'{where}: needs an "id" and "responses", a list of texts; {remedy}')
        answered[row["id"]] = texts
    return answered


def _append(path: Path, answered: Responses) -> None:
    if is_first():
        with path.open("a", encoding="utf-8") as file:
            file.writelines(json.dumps({"id": key, "responses": texts}) + "\n" for key, texts in answered.items())


def check_settings(folder: Path, settings: dict[str, Any]) -> None:
    """Keeps the settings that answers are given with, or compares them with those of the answers already there.

    Raises:
        InputError: they differ, or cannot be read; names the settings that do.
    """
    path = folder / SETTINGS_FILE
    settings = json.loads(json.dumps(settings))  # tuples become lists, as in the file
    if not path.is_file():
        folder.mkdir(parents=True, exist_ok=True)
        files.write_text(path, json.dumps(settings, indent=1) + "\n")
        return
    before = files.read_object(path, remedy=f"move {folder} away to ask anew")
    if differing := [key for key in settings if before.get(key) != settings[key]]:
        found = ", ".join(f"{key} {shown(before.get(key))} (now {shown(settings[key])})" for key in differing)
        raise InputError(f"{folder} holds answers given with {found}; move that folder away to ask anew")
