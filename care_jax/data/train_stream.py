"""The stream of a run's training batches: each row of a batch has its own, so that a process reads its rows alone.

The records of the source, shuffled anew each epoch, are dealt to the rows in turn: of batches of 4 rows, row 0 gets
those at positions 0, 4, 8 ... A record that the encoder drops, that cannot be read, or whose turn is passed over
(outcomes.py) is made up for by the next of its row. So a batch does not depend on which process reads which rows, and
nobody has to look at the rows of others.
"""

from __future__ import annotations

import functools
import itertools
import math
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Generic, NamedTuple, Protocol, TypeVar

import grain
import numpy as np
from absl import logging
from jaxtyping import Bool

from care_jax.data.outcomes import Outcomes, Turns, outcome_of
from care_jax.data.prefetch import Prefetch
from care_jax.errors import BadRowError, InputError
from care_jax.structs import Record

_FEW_LOST, _MOST_LOST = 8, 0.05  # records of a source, share of it, that may become unreadable while a run goes on

Example = TypeVar("Example")


class RecordSource(Protocol):
    """Random access to records."""

    def __len__(self) -> int:
        """Returns the number of records."""

    def __getitem__(self, index: int, /) -> Record:
        """Reads a record."""


class LostRecords:
    """Counts the records that could be read when a run started and cannot be any more. Thread-safe.

    A warning names each of the first ones. More than 8 of a source, and more than 5 % of it, end the run. One alone
    does if `is_alone` is False: other processes read the same rows, and would draw different batches.
    """

    def __init__(self, *, is_alone: bool = True) -> None:
        """Starts without any; `is_alone` says that no other process reads the same rows."""
        self._is_alone = is_alone
        self._lock = threading.Lock()
        self._lost: dict[int, set[int]] = {}  # id of a source -> indices

    def add(self, source: RecordSource, index: int, error: BadRowError | OSError) -> None:
        """Counts one record.

        Raises:
            OSError: too many are lost.
        """
        with self._lock:
            lost = self._lost.setdefault(id(source), set())
            if index not in lost and len(lost) < _FEW_LOST:
                logging.warning("%r: a record is left out, which can no longer be read: %s", source, error)
            lost.add(index)
            if len(lost) > max(_FEW_LOST, _MOST_LOST * len(source)) * self._is_alone:
                raise OSError(f"{len(lost)} records of {source!r} can no longer be read; the last: {error}")

    def __len__(self) -> int:
        """Returns the number of different records lost so far."""
        with self._lock:
            return sum(map(len, self._lost.values()))


class _Loaded(NamedTuple, Generic[Example]):
    """The next example of a row."""

    example: Example
    record: int  # its number among those of all parts
    position: int
    left_out: list[tuple[int, str | None]]  # before it: a position, and the record's id if it was dropped and not lost


class Moved(NamedTuple):
    """What a row has passed before its example."""

    position: int  # of the example
    left_out: Sequence[tuple[int, str | None]]  # as of _Loaded


class TrainStream(grain.DatasetIterator[list[Example]], Generic[Example]):
    """Endless batches of a mixture of sources; the examples of the next batch are encoded ahead.

    Its state is the position of each row, those of other processes included, which `follow` tells of, and what is
    known of the records' last groups.
    """

    def __init__(
        self,
        parts: Sequence[tuple[RecordSource, float]],
        encode: Callable[[Record], Example | None],
        *,
        batch_size: int,
        seed: int,
        rows: Sequence[int] | None,
        lost: LostRecords,
        turns: Turns,
    ) -> None:
        """Checks that each source, given with its weight, is large enough. The rest: `loader.make_train_iterator`."""
        super().__init__()
        self._encode, self._lost = encode, lost
        self._rows = list(range(batch_size) if rows is None else rows)
        self._positions = list(range(batch_size))
        self._ahead = Prefetch(self._load)
        total = sum(weight for _, weight in parts)
        self._parts = [_Part(source, math.ceil(batch_size * weight / total)) for source, weight in parts]
        streams = []
        for number, (source, _) in enumerate(parts):
            shuffled = grain.MapDataset.range(len(source)).seed(seed + number).shuffle()
            epochs = shuffled.repeat(reseed_each_epoch=True)
            streams.append(epochs.map(functools.partial(_place, number)))
        self._places = streams[0] if len(streams) == 1 else grain.MapDataset.mix(streams, [w for _, w in parts])
        self._first = [0, *itertools.accumulate(len(source) for source, _ in parts)]  # record of each part
        self.outcomes = Outcomes(self._first[-1], turns, seed=seed)
        self._taken = list[int]()  # the records of the last batch, in the order of the rows
        self.moved: dict[int, Moved] = {}  # of the last batch, by row, as in `follow`
        self.num_passed_over = 0  # turns, between the last batch and the one before

    def __next__(self) -> list[Example]:
        """The examples of this process's rows of the next batch."""
        self.start_prefetch()
        loaded = self._ahead.take()
        places = list(zip(self._rows, loaded, strict=True))
        self.moved = {
            row: Moved(one.position, one.left_out) for row, one in places if one.position != self._positions[row]
        }
        self._taken = [one.record for one in loaded]
        self._positions = [position + len(self._positions) for position in self._positions]
        self.num_passed_over = 0
        self._advance(self.moved)
        self.outcomes.settle()
        self.start_prefetch()
        return [one.example for one in loaded]

    def follow(self, moved: Mapping[int, Moved]) -> None:
        """Takes in what another process passed in its rows of the batch that it has just read.

        Raises:
            OSError: with those too many records are lost.
        """
        self._advance(moved)
        for position, record_id in (left_out for one in moved.values() for left_out in one.left_out):
            if record_id is None:
                number, index = self._places[position]
                self._lost.add(self._parts[number].source, index, OSError("another process cannot read it"))

    def outcomes_of(self, correct: Bool[np.ndarray, "rows G"]) -> list[tuple[int, int]]:
        """The records of the last batch with their outcomes, for `outcomes.tell` of every process."""
        return [(record, outcome_of(group)) for record, group in zip(self._taken, correct, strict=True)]

    def get_state(self) -> dict[str, Any]:
        """The position of each row in the stream of records, and the records' outcomes."""
        return {"positions": list(self._positions), "outcomes": self.outcomes.to_text()}

    def set_state(self, state: Mapping[str, Any]) -> None:
        """Returns to a state of `get_state`."""
        self._ahead.drop()
        self.outcomes.set_text(state["outcomes"])
        self._positions = list(state["positions"])

    def start_prefetch(self) -> None:
        """Starts to read and encode the next batch."""
        self._ahead.start(self._positions[row] for row in self._rows)

    def wait(self) -> None:
        """Waits until the next batch has been read and encoded."""
        self._ahead.wait()

    def close(self) -> None:
        """Ends the threads."""
        self._ahead.close()
        super().close()

    def _advance(self, moved: Mapping[int, Moved]) -> None:
        for row, (position, left_out) in moved.items():
            expected, self._positions[row] = self._positions[row], position + len(self._positions)
            self.num_passed_over += (self._positions[row] - expected) // len(self._positions) - len(left_out)

    def _load(self, position: int) -> _Loaded[Example]:
        """The first usable example of a row from `position` on."""
        left_out = list[tuple[int, str | None]]()
        while True:
            number, index = self._places[position]
            record_number = self._first[number] + index
            if self.outcomes.passes_over(record_number, position):
                position += len(self._positions)
                continue
            part = self._parts[number]
            try:
                record = part.source[index]
                example = self._encode(record)
                if example is not None:
                    return _Loaded(example, record_number, position, left_out)
                left_out.append((position, record.id))
            except (BadRowError, OSError) as error:
                self._lost.add(part.source, index, error)
                left_out.append((position, None))
            part.leave_out(index, num_lost=len(self._lost))
            position += len(self._positions)


def _place(number: int, index: int) -> tuple[int, int]:
    """The place of a record: the number of its source, and its index there."""
    return number, index


class _Part:
    """A source, and the records of it that are left out."""

    def __init__(self, source: RecordSource, needed: int) -> None:
        """Takes the number of different examples that a step needs; raises InputError if there are fewer records."""
        self.source = source
        self._spare = len(source) - needed
        self._left_out: set[int] = set()
        self._wanted = f"a step needs {needed} different examples, more than the "
        if self._spare < 0:
            raise InputError(self._wanted + f"{len(source)} records in {source!r}; lower the batch size")

    def leave_out(self, index: int, *, num_lost: int) -> None:
        """Counts a record that was dropped or lost; raises once fewer are left than a step needs."""
        self._left_out.add(index)
        if len(self._left_out) <= self._spare:
            return
        message = self._wanted + f"usable ones in {self.source!r}: "
        if num_lost:
            raise OSError(message + f"{num_lost} can no longer be read, {len(self._left_out)} are left out in all")
        raise InputError(
            message + f"the encoder dropped {len(self._left_out)} of {len(self.source)}; lower the batch size or raise "
            "the length limits"
        )
