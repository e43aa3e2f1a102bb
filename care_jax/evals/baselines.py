"""Baselines of a held-out accuracy: what a model gets that ignores the picture, or the question as well.

The majority answer is the commonest gold of the same question among the training data, or if the question is not among
them, of the same source and kind, or of the same kind. The model without its image sees a grey picture of the same
size in place of each image and frame, so that its prompts keep their length.
"""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import functools
import io
from collections.abc import Hashable, Iterator, Sequence

from PIL import Image

from care_jax.data.loader import RecordSource
from care_jax.data.parsing import letter_gold
from care_jax.errors import BadRowError
from care_jax.evals.judged_items import JudgedItem, judge_items
from care_jax.inputs.images import decode_image
from care_jax.parallel.processes import exchange
from care_jax.rewards.judge import Verifier
from care_jax.rewards.response_format import OPENING, ResponseFormat
from care_jax.structs import Record

_MOST_RECORDS = 5000  # of the training data that are counted; of more, as many, evenly spread
_AT_ONCE = 128  # records whose pictures are in memory
_GREY = (128, 128, 128)


def majority_items(
    verifier: Verifier,
    train: RecordSource,
    held_out: RecordSource,
    response_format: ResponseFormat,
    *,
    limit: int,
) -> list[JudgedItem]:
    """Judges the majority answer to each held-out question; every process calls it, and gets all items.

    Args:
        verifier: the pool that checks answers.
        train: what the majorities are counted in; at most 5,000 records of it are read.
        held_out: the questions.
        response_format: the layout that the answers are written in.
        limit: how many questions, evenly spread; 0 for all.

    Returns:
        The judged answers; questions that a process cannot read, or whose kind no training record has, are left out.
    """
    counts: dict[Hashable, collections.Counter[str]] = collections.defaultdict(collections.Counter)
    for record in _spread(train, _MOST_RECORDS):
        for key in _keys(record):
            counts[key][_gold(record)] += 1
    items: list[JudgedItem] = []
    asked: list[tuple[Record, Sequence[str]]] = []
    for record in _spread(held_out, limit):
        key = next((key for key in _keys(record) if key in counts), None)
        if key is not None:
            (answer, _), *_ = counts[key].most_common(1)
            asked.append((record, [OPENING + response_format.ending("", answer.splitlines()[0])]))
        if len(asked) == _AT_ONCE:
            items += judge_items(verifier, asked, response_format)
            asked = []
    return items + (judge_items(verifier, asked, response_format) if asked else [])


@dataclasses.dataclass(frozen=True)
class WithoutImages:
    """A source whose images and frames are grey."""

    source: RecordSource

    def __len__(self) -> int:
        """The number of records."""
        return len(self.source)

    def __getitem__(self, index: int) -> Record:
        """Reads a record and paints over what it shows."""
        record = self.source[index]
        return dataclasses.replace(
            record,
            images=tuple(map(_painted_over, record.images)),
            videos=tuple(
                dataclasses.replace(video, frames=tuple(map(_painted_over, video.frames))) for video in record.videos
            ),
        )


def _spread(source: RecordSource, limit: int) -> Iterator[Record]:
    """Reads records as `loader.make_eval_batches` spreads them; passes over those that a process cannot read."""
    total = len(source)
    count = min(limit, total) or total
    places = [place * total // count for place in range(count)]
    for some in (places[start : start + _AT_ONCE] for start in range(0, count, _AT_ONCE)):
        records: dict[int, Record] = {}
        for place in some:
            with contextlib.suppress(BadRowError, OSError):  # counted when the run reads it
                records[place] = source[place]
        lost = exchange([place for place in some if place not in records])
        yield from (record for place, record in records.items() if not any(place in part for part in lost))


def _keys(record: Record) -> list[Hashable]:
    """The keys that questions are grouped by, from the question itself to the kind of its answer."""
    kind = record.answer_kind
    return [(kind, record.source, record.prompt, record.choices), (kind, record.source), (kind,)]


def _gold(record: Record) -> str:
    """The gold; of a choice its letter, since options have other texts elsewhere."""
    if record.answer_kind != "choice":
        return record.answer
    try:
        return letter_gold(record.answer.splitlines()[0].strip(), record.choices or ())
    except BadRowError:
        return record.answer


def _painted_over(encoded: bytes) -> bytes:
    return _grey(*decode_image(encoded).size)


@functools.lru_cache(maxsize=256)
def _grey(width: int, height: int) -> bytes:
    stream = io.BytesIO()
    Image.new("RGB", (width, height), _GREY).save(stream, "PNG")
    return stream.getvalue()
