"""The questions that a published file's rows answer, found by image and question where its ids are others.

A row's question is the benchmark's if the two texts are equal: white space counts as one space, image marks like
<image 1> as none, and what a benchmark puts around a question, the hint before and the options behind, may be left out.
Pictures are the same if their bytes are, or if the question's id ends in the picture's name. A row whose question
several of the benchmark have, or several rows of the file, needs the picture; nothing is guessed.
"""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import hashlib
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path, PurePath
from typing import Any, NamedTuple

from care_jax.data.decontamination import bare_question
from care_jax.data.image_column import image_bytes, images_of
from care_jax.errors import BadRowError, InputError, shown
from care_jax.structs import Record

_QUESTION_FIELDS = ("question", "query", "prompt", "input", "query_cot", "query_wo", "question_for_eval")
_IMAGE_FIELDS = ("image", "images", "imgname", "image_path", "image_name", "image_file", "figure_id", "img")
_MARK = re.compile(r"<image ?[0-9]*>")

Row = tuple[int, Mapping[str, Any]]  # its number, for messages

BY_ID, BY_ID_ALONE = "by id", "by id though worded otherwise"
BY_PICTURE, BY_QUESTION = "by image and question", "by question alone"
WAYS = (BY_ID, BY_ID_ALONE, BY_PICTURE, BY_QUESTION)
UNKNOWN_ID, UNKNOWN_QUESTION = "ids that the benchmark does not have", "whose question the benchmark does not have"
AMBIGUOUS = "whose question is there with several pictures, or several times in the file"
OTHER_PICTURE = "whose question has another picture in the benchmark"
LEFT_OUT = (UNKNOWN_ID, UNKNOWN_QUESTION, AMBIGUOUS, OTHER_PICTURE)


@dataclasses.dataclass(frozen=True)
class Question:
    """A question of a benchmark, as rows of a file may name it."""

    id: str
    whole: str  # the prompt
    bare: str  # without hint and options
    images: frozenset[bytes]  # digests
    name: str  # the end of the id, without its ending
    is_picture: bool  # the name is that of the picture


class Found(NamedTuple):
    """The question that a row answers, or None, and how it was found or why not."""

    id: str | None
    how: str


class _Clue(NamedTuple):
    """The questions that a row may answer."""

    by_id: str | None  # the one with the row's id
    agrees: bool | None  # True if the row has its text, too; None if either has no text of its own
    by_text: set[str]  # those with the row's text

    @property
    def is_reworded(self) -> bool:
        """True if the row has the id of a question, and the text of none."""
        return self.agrees is False and not self.by_text


class Questions:
    """The questions of a benchmark, by id and by text."""

    def __init__(self, records: Iterable[Record]) -> None:
        """Takes them from the prepared records; of pictures it keeps digests."""
        self._by_id = {record.id: _question(record) for record in records}
        self._by_whole: dict[str, list[str]] = collections.defaultdict(list)
        self._by_bare: dict[str, list[str]] = collections.defaultdict(list)
        for question in self._by_id.values():
            self._by_whole[question.whole].append(question.id)
            self._by_bare[question.bare].append(question.id)
        self._ids = {
            short: record_id for record_id in self._by_id for short in (record_id, record_id.partition("/")[2])
        }

    @property
    def ids(self) -> list[str]:
        """The ids, "benchmark/id"."""
        return list(self._by_id)

    def match(self, path: Path, rows: Sequence[Row], id_field: str) -> list[Found]:
        """The question of each row.

        An id counts if the row's text is not that of another question, and if most ids of the file come with the text
        of their question: numbers may begin elsewhere. For that it is enough that one text is in the other, since
        prompts are wrapped in all ways; rows without a text have only their id.

        Args:
            path: the file; image paths count from its folder.
            rows: all its rows, with their numbers.
            id_field: the key of the id, which may be missing.

        Raises:
            InputError: most rows with an id of the benchmark have a text that it does not have.
        """
        clues = [self._clue(row, id_field) for _, row in rows]
        told = [clue.agrees for clue in clues if clue.agrees is not None]
        reworded = [index for index, clue in enumerate(clues) if clue.is_reworded]
        if 2 * len(reworded) > len(told):
            number, row = rows[reworded[0]]
            raise InputError(
                f"{path} has ids of this benchmark with other questions: row {number}, {shown(str(row[id_field]))}, "
                f"asks {shown(_texts(row)[0][0])}; check --benchmark"
            )
        ids_are_sound = 2 * sum(told) >= len(told)
        known = [
            clue.by_id if ids_are_sound and (clue.agrees is not False or clue.is_reworded) else None for clue in clues
        ]
        unknown = [clue for clue, record_id in zip(clues, known, strict=True) if record_id is None]
        num_rows = collections.Counter(record_id for clue in unknown for record_id in clue.by_text)
        found = []
        for (_, row), record_id, clue in zip(rows, known, clues, strict=True):
            if record_id:
                found.append(Found(record_id, BY_ID_ALONE if clue.is_reworded else BY_ID))
            elif clue.by_text:
                found.append(self._by_text_and_picture(row, path.parent, clue.by_text, num_rows))
            else:
                found.append(Found(None, UNKNOWN_ID if id_field in row else UNKNOWN_QUESTION))
        return found

    def _clue(self, row: Mapping[str, Any], id_field: str) -> _Clue:
        by_id = self._ids.get(str(row[id_field])) if id_field in row else None
        return _Clue(by_id, self._agrees(row, by_id) if by_id else None, self._with_text(row))

    def _agrees(self, row: Mapping[str, Any], record_id: str) -> bool | None:
        """True if a row has the text of the question with this id, or False; None if either has no text of its own."""
        question, texts = self._by_id[record_id], _texts(row)
        if not texts or len(self._by_bare) == 1:
            return None
        return any(
            question.bare in whole or whole in question.whole or bare in (question.whole, question.bare)
            for whole, bare in texts
        )

    def _with_text(self, row: Mapping[str, Any]) -> set[str]:
        """The ids of the questions whose prompt the row has; if there are none, whose bare question."""
        texts = _texts(row)
        found = {record_id for whole, _ in texts for record_id in self._by_whole.get(whole, ())}
        return found or {record_id for pair in texts for text in pair for record_id in self._by_bare.get(text, ())}

    def _by_text_and_picture(
        self, row: Mapping[str, Any], folder: Path, ids: set[str], num_rows: Mapping[str, int]
    ) -> Found:
        """The question of a row whose text the questions with these ids have; num_rows counts the rows of each."""
        questions = [self._by_id[record_id] for record_id in ids]
        images, names = _pictures(row, folder)
        pictured = [one.id for one in questions if one.name in names or (images and images <= one.images)]
        if len(pictured) == 1:
            return Found(pictured[0], BY_PICTURE)
        if not pictured and (images or (names and all(one.is_picture for one in questions))):
            return Found(None, OTHER_PICTURE)
        if len(ids) == 1 and num_rows[questions[0].id] == 1:
            return Found(questions[0].id, BY_QUESTION)
        return Found(None, AMBIGUOUS)


def has_question(row: Mapping[str, Any]) -> bool:
    """True if a row can be matched without an id."""
    return bool(_texts(row))


def _question(record: Record) -> Question:
    end = PurePath(record.id.rpartition("/")[2].partition(":")[0])  # "41.png" of "chartqa/human/41.png:7"
    return Question(
        id=record.id,
        whole=_normalise(record.prompt),
        bare=_normalise(bare_question(record.prompt)),
        images=frozenset(map(_digest, record.images)),
        name=end.stem,
        is_picture=end.suffix.lower() in (".png", ".jpg", ".jpeg"),
    )


def _texts(row: Mapping[str, Any]) -> list[tuple[str, str]]:
    """The texts of a row that may hold its question, whole and bare; none is empty."""
    texts = [row[field] for field in _QUESTION_FIELDS if isinstance(row.get(field), str)]
    pairs = [(_normalise(text), _normalise(bare_question(text))) for text in texts]
    return [(whole, bare) for whole, bare in pairs if whole and bare]


def _normalise(text: str) -> str:
    return " ".join(_MARK.sub(" ", text).split())


def _pictures(row: Mapping[str, Any], folder: Path) -> tuple[set[bytes], set[str]]:
    """The digests of a row's pictures that can be read, and the names of those that have one, without endings."""
    value = next((row[field] for field in _IMAGE_FIELDS if row.get(field)), None)
    digests, names = set(), set()
    for one in value if isinstance(value, list) else [value]:
        named = one.get("path") if isinstance(one, dict) else one
        if isinstance(named, str) and not named.startswith("data:"):
            names.add(PurePath(named).stem)
        with contextlib.suppress(BadRowError):  # a name alone: files seldom come with their pictures
            digests |= {_digest(image_bytes(image)) for image in images_of(one, folder)}
    return digests, names


def _digest(image: bytes) -> bytes:
    return hashlib.sha256(image).digest()
