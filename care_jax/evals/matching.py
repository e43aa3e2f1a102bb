"""The questions that a published file's rows answer, found by image and question where its ids are others.

A row's question is the benchmark's if the two texts are equal: white space counts as one space, image marks like
<image 1> as none, and what a benchmark puts around a question, the hint before and the options behind, may be left out;
other options make another question. Pictures are the same if their bytes are, or, of a row without them, if the
question's id ends in the picture's name. A row whose question several of the benchmark have, or several rows of the
file, needs the picture; nothing is guessed.
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
_OPTION_FIELDS = ("choices", "options")
_LETTERS = frozenset("ABCDEFGHIJKL")
_MARK = re.compile(r"<image ?[0-9]*>")
_OPTION = re.compile(r"^[^\S\n]*\(?[A-L][).:][^\S\n]*(.*)", re.MULTILINE)

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
    options: tuple[str, ...]  # their texts, () without
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
        prompts are wrapped in all ways; rows without a text have only their id. The names of pictures count unless they
        are numbers that begin elsewhere too.

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
        names_are_sound = self._names_are_sound(rows, [clue.by_text for clue in clues])
        num_rows = collections.Counter(record_id for clue in unknown for record_id in clue.by_text)
        found = []
        for (_, row), record_id, clue in zip(rows, known, clues, strict=True):
            if record_id:
                found.append(Found(record_id, BY_ID_ALONE if clue.is_reworded else BY_ID))
            elif clue.by_text:
                found.append(self._by_text_and_picture(row, path.parent, clue.by_text, num_rows, names_are_sound))
            else:
                found.append(Found(None, UNKNOWN_ID if id_field in row else UNKNOWN_QUESTION))
        return found

    def _clue(self, row: Mapping[str, Any], id_field: str) -> _Clue:
        by_id = self._ids.get(str(row[id_field])) if id_field in row else None
        by_text = self._with_text(row)
        return _Clue(by_id, self._agrees(row, by_id, by_text) if by_id else None, by_text)

    def _agrees(self, row: Mapping[str, Any], record_id: str, by_text: set[str]) -> bool | None:
        """True if a row has the text of the question with this id, or False; None if either has no text of its own.

        by_text: the ids of the questions that have exactly the row's text.
        """
        question, texts = self._by_id[record_id], _texts(row)
        if not texts or len(self._by_bare) == 1:
            return None
        if any({whole, bare} & {question.whole, question.bare} for whole, bare in texts):
            return True
        return not by_text and any(question.bare in whole or whole in question.whole for whole, _ in texts)

    def _with_text(self, row: Mapping[str, Any]) -> set[str]:
        """The ids of the questions whose prompt the row has; if there are none, whose bare question, and options."""
        texts = _texts(row)
        found = {record_id for whole, _ in texts for record_id in self._by_whole.get(whole, ())}
        bare = {record_id for pair in texts for text in pair for record_id in self._by_bare.get(text, ())}
        options = _options_of(row)
        return found or {one for one in bare if not options or self._by_id[one].options in ((), options)}

    def _names_are_sound(self, rows: Sequence[Row], same_text: Sequence[set[str]]) -> bool:
        """False if most pictures are named like those of other questions, by the rows whose text only one has."""
        known = {question.name for question in self._by_id.values()}
        agreed = []
        for (_, row), ids in zip(rows, same_text, strict=True):
            if len(ids) == 1 and (names := _names(row) & known):
                agreed.append(self._by_id[next(iter(ids))].name in names)
        return 2 * agreed.count(True) >= len(agreed)

    def _by_text_and_picture(
        self,
        row: Mapping[str, Any],
        folder: Path,
        ids: set[str],
        num_rows: Mapping[str, int],
        names_are_sound: bool,
    ) -> Found:
        """The question of a row whose text the questions with these ids have; num_rows counts the rows of each."""
        questions = [self._by_id[record_id] for record_id in ids]
        images, names = _digests(row, folder), _names(row) if names_are_sound else set()
        pictured = [one.id for one in questions if (images <= one.images if images else one.name in names)]
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
        options=tuple(map(_normalise, record.choices or ())) or _options_in(record.prompt),
        images=frozenset(map(_digest, record.images)),
        name=end.stem,
        is_picture=end.suffix.lower() in (".png", ".jpg", ".jpeg"),
    )


def _texts(row: Mapping[str, Any]) -> list[tuple[str, str]]:
    """The texts of a row that may hold its question, whole and bare; none is empty."""
    texts = [row[field] for field in _QUESTION_FIELDS if _is_text(row, field)]
    pairs = [(_normalise(text), _normalise(bare_question(text))) for text in texts]
    return [(whole, bare) for whole, bare in pairs if whole and bare]


def _options_of(row: Mapping[str, Any]) -> tuple[str, ...]:
    """The texts of the options that a row lists or has in its question, () without."""
    for value in (row.get(field) for field in _OPTION_FIELDS):
        if isinstance(value, list) and all(isinstance(one, str) for one in value) and not set(value) <= _LETTERS:
            return tuple(_normalise(_OPTION.sub(r"\1", one)) for one in value)
    return next(filter(None, (_options_in(row[field]) for field in _QUESTION_FIELDS if _is_text(row, field))), ())


def _options_in(text: str) -> tuple[str, ...]:
    return tuple(map(_normalise, _OPTION.findall(text)))


def _is_text(row: Mapping[str, Any], field: str) -> bool:
    return isinstance(row.get(field), str)


def _normalise(text: str) -> str:
    return " ".join(_MARK.sub(" ", text).split())


def _images(row: Mapping[str, Any]) -> list[Any]:
    """The pictures of a row, as paths, URIs, or objects with bytes."""
    value = next((row[field] for field in _IMAGE_FIELDS if row.get(field)), None)
    return value if isinstance(value, list) else [value]


def _digests(row: Mapping[str, Any], folder: Path) -> set[bytes]:
    """The digests of a row's pictures that can be read."""
    digests = set()
    for one in _images(row):
        with contextlib.suppress(BadRowError):  # a name alone: files seldom come with their pictures
            digests |= {_digest(image_bytes(image)) for image in images_of(one, folder)}
    return digests


def _names(row: Mapping[str, Any]) -> set[str]:
    """The names of those of a row's pictures that have one, without endings."""
    named = [one.get("path") if isinstance(one, dict) else one for one in _images(row)]
    return {PurePath(name).stem for name in named if isinstance(name, str) and not name.startswith("data:")}


def _digest(image: bytes) -> bytes:
    return hashlib.sha256(image).digest()
