"""The stream of a run's training batches: each row of a batch has its own, so that a process reads its rows alone.

The records of the source, shuffled anew each epoch, are dealt to the rows in turn: of batches of 4 rows, row 0 gets
those at positions 0, 4, 8 ... A record that the encoder drops, or that cannot be read, is made up for by the next of
its row. So a batch does not depend on which process reads which rows, and nobody has to look at the rows of others.
The turn of a record may be passed to another of its source (outcomes.py).
"""

from __future__ import annotations

import functools
import itertools
import math
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Generic, NamedTuple, Protocol, TypeVar

import grain
from absl import logging

from care_jax.data.outcomes import Outcomes, Turns
from care_jax.data.prefetch import Prefetch
from care_jax.errors import BadRowError, InputError
from care_jax.structs import Record

_FEW_LOST, _MOST_LOST = 8, 0.05  # records of a source, share of it, that may become unreadable while a run goes on

Example = TypeVar("Example")
Skipped = str | Sequence[int]  # the id of a record that was dropped; of one that was lost, its source and index there


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
    record: int  # its number among those of all sources
    num_passed_over: int  # turns of other records
    skipped: list[Skipped]  # before it


class TrainStream(grain.DatasetIterator[list[Example]], Generic[Example]):
    """Endless batches of a mixture of sources; the examples of the next batch are encoded ahead.

    Its state is the position of each row, those of other processes included, which `skip` tells of, and the outcomes.

    Attributes:
        outcomes: of the records' last groups.
        taken: the records of the last batch, by their numbers among those of all sources.
        skipped: in the last batch, by row, as in `skip`.
        num_passed_over: turns that other records lost to those of the last batch.
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
        ends = itertools.accumulate(len(source) for source, _ in parts)
        self._records = [range(end - len(part.source), end) for part, end in zip(self._parts, ends, strict=True)]
        self.outcomes = Outcomes(self._records[-1].stop, turns, seed=seed)
        self.taken = list[int]()
        self.skipped: dict[int, list[Skipped]] = {}
        self.num_passed_over = 0

    def __next__(self) -> list[Example]:
        """The examples of this process's rows of the next batch."""
        self.start_prefetch()
        loaded = self._ahead.take()
        self.skipped = {row: one.skipped for row, one in zip(self._rows, loaded, strict=True) if one.skipped}
        self._positions = [position + len(self._positions) for position in self._positions]
        for row, skipped in self.skipped.items():
            self._positions[row] += len(skipped) * len(self._positions)
        self.taken = [one.record for one in loaded]
        self.num_passed_over = sum(one.num_passed_over for one in loaded)
        self.outcomes.count()
        self.start_prefetch()
        return [one.example for one in loaded]

    def skip(self, skipped: Mapping[int, Sequence[Skipped]]) -> None:
        """Takes in what another process passed over for its rows in the batch that it has just read.

        Raises:
            OSError: with those too many records are lost.
        """
        for row, records in skipped.items():
            self._positions[row] += len(records) * len(self._positions)
            for record in records:
                if not isinstance(record, str):
                    number, index = record
                    self._lost.add(self._parts[number].source, index, OSError("another process cannot read it"))

    def get_state(self) -> dict[str, Any]:
        """The position of each row in the stream of records, and the outcomes."""
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

    def _load(self, position: int) -> _Loaded[Example]:
        """The first usable example of a row from `position` on."""
        skipped: list[Skipped] = []
        num_passed_over = 0
        while True:
            number, index = self._places[position]
            part, records = self._parts[number], self._records[number]
            number_of_all, passed_over = self.outcomes.record_of_turn(position, records[index], records)
            index, num_passed_over = number_of_all - records.start, num_passed_over + passed_over
            try:
                record = part.source[index]
                example = self._encode(record)
                if example is not None:
                    return _Loaded(example, number_of_all, num_passed_over, skipped)
                skipped.append(record.id)
            except (BadRowError, OSError) as error:
                self._lost.add(part.source, index, error)
                skipped.append((number, index))
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
