"""Opens the data that a config names, and makes batches: a train stream that resumes, and a fixed order for eval."""

from __future__ import annotations

import contextlib
import dataclasses
import threading
from collections.abc import Callable, Collection, Generator, Iterable, Sequence
from pathlib import Path
from typing import Generic, NamedTuple, Protocol

import ml_collections
from absl import logging

from care_jax.data import statistics
from care_jax.data.array_records import open_folder
from care_jax.data.mini_vqa import builder as mini_vqa
from care_jax.data.mini_vqa.difficulty import Difficulty
from care_jax.data.outcomes import ALL_TURNS, Turns
from care_jax.data.own_data import listing, read_jsonl
from care_jax.data.prefetch import Prefetch
from care_jax.data.train_stream import Example, LostRecords, RecordSource, TrainStream
from care_jax.errors import BadRowError, InputError
from care_jax.options import DATA_FORMATS, choose_one
from care_jax.parallel.processes import ALL_ROWS, HostShare, together
from care_jax.rewards.verifiers import require_allowed
from care_jax.structs import Record


class DataSource(RecordSource, Protocol):
    """Records that a config names."""

    def fingerprint(self) -> str:
        """Returns a digest of the content, which tells a resumed run that its data are others."""


@dataclasses.dataclass(frozen=True)
class Mixture:
    """Several sources, one after the other; training draws from each in proportion to its weight, whatever its size."""

    parts: tuple[tuple[DataSource, float], ...]  # (source, weight above 0)

    def __len__(self) -> int:
        """Returns the number of records of all sources."""
        return sum(len(source) for source, _ in self.parts)

    def __getitem__(self, index: int) -> Record:
        """Reads a record; indices count through the sources in order."""
        index = range(len(self))[index]  # IndexError past the end, as iteration needs
        for source, _ in self.parts:
            if index < len(source):
                return source[index]
            index -= len(source)
        raise IndexError(index)

    def fingerprint(self) -> str:
        """Returns the digests of the parts, with their weights."""
        return " ".join(f"{source.fingerprint()}*{weight:g}" for source, weight in self.parts)


class DropCounter(Generic[Example]):
    """Wraps an encoder and counts the different records that it drops; accounting.py says why. Thread-safe."""

    def __init__(self, encode: Callable[[Record], Example | None]) -> None:
        """Takes the encoder, which returns None for a record that it drops."""
        self._encode = encode
        self._lock = threading.Lock()
        self._dropped_ids: set[str] = set()

    def __call__(self, record: Record) -> Example | None:
        """Encodes a record; returns None if the encoder drops it."""
        example = self._encode(record)
        if example is None:
            self.add([record.id])
        return example

    def add(self, record_ids: Iterable[str]) -> None:
        """Counts records that another process dropped."""
        with self._lock:
            self._dropped_ids.update(record_ids)

    @property
    def num_dropped(self) -> int:
        """The number of different records dropped so far."""
        return len(self._dropped_ids)


def open_source(config: ml_collections.ConfigDict, split: str) -> DataSource:
    """Opens the records that a config names; mini_vqa is built on first use, in seconds.

    Args:
        config: data.format, data.train, data.eval, data.strict, data.mini_vqa and verify.allow are read. With mini_vqa,
            an empty data.eval means data.train.
        split: "train" or "eval".

    Returns:
        Random access to the records.

    Raises:
        InputError: the split or format is unknown, no path is given, or the data cannot be used.
    """
    if split not in ("train", "eval"):
        raise InputError(f"unknown split {split!r}; choose train or eval")
    data = config.data
    if data.format not in DATA_FORMATS:
        raise InputError(f"data.format={data.format!r}: {choose_one(DATA_FORMATS)}")
    path = data.train if split == "train" else data.eval
    if data.format == "mini_vqa":
        folder = path or data.train
        if not folder:
            raise InputError("data.train is empty: name the folder to build mini_vqa in")
        difficulty = Difficulty(**data.mini_vqa)
        mini_vqa.build(Path(folder), difficulty)
        return mini_vqa.open_split(Path(folder), "train" if split == "train" else "heldout", difficulty)
    if not path:
        wanted = (
            "a folder of care_jax.data.prepare" if data.format == "prepared" else "a file with one JSON object a line"
        )
        raise InputError(f"data.{split} is empty: name {wanted}")
    if data.format == "prepared":
        allow = config.verify.allow
        if isinstance(path, str):
            return _open_prepared(Path(path), allow)
        return Mixture(tuple((_open_prepared(Path(folder), allow), float(weight)) for folder, weight in path))
    source = read_jsonl(Path(path), strict=data.strict, allow=config.verify.allow)
    if source.problems:
        logging.warning("%s: dropped %s", path, listing(source.problems))
    return source


def _open_prepared(folder: Path, allow: Collection[str]) -> DataSource:
    """Opens a prepared folder; raises InputError if its report counts records of a kind that is not allowed."""
    source = open_folder(folder)
    for kind in statistics.kinds_in(folder):
        try:
            require_allowed(kind, allow)
        except InputError as error:
            raise InputError(f"{folder}: {error}") from None
    return source


def make_train_iterator(
    source: RecordSource,
    encode: Callable[[Record], Example | None],
    *,
    batch_size: int,
    seed: int,
    rows: Sequence[int] | None = None,
    lost: LostRecords | None = None,
    turns: Turns = ALL_TURNS,
) -> TrainStream[Example]:
    """Makes an endless stream of batches, shuffled anew each epoch.

    The parts of a Mixture have epochs of their own and take turns by weight: among any n records drawn, each part has
    its share of n, to within one record for each part. (Records that `encode` drops count as drawn.)

    Args:
        source: the records.
        encode: record -> example, or None to drop it; called from several threads.
        batch_size: examples of a batch, over all processes.
        seed: determines the order.
        rows: the rows of each batch that this process reads; None: all.
        lost: counts the records that cannot be read.
        turns: the shares of turns that records keep while their last groups were uniform.

    Returns:
        Iterator over lists of the examples in `rows`.

    Raises:
        InputError: the source is too small for a batch; from the iterator, when the encoder dropped so many records
            that it is.
        OSError: from the iterator, when too many records can no longer be read.
    """
    if batch_size < 1:
        raise InputError(f"batch_size={batch_size}: must be at least 1")
    parts = source.parts if isinstance(source, Mixture) else ((source, 1.0),)
    lost = LostRecords() if lost is None else lost
    return TrainStream(parts, encode, batch_size=batch_size, seed=seed, rows=rows, lost=lost, turns=turns)


class EvalRow(NamedTuple, Generic[Example]):
    """A row of a batch of an evaluation."""

    place: int  # of the record among those that are asked
    record: Record
    example: Example | None  # None: the encoder dropped the record


def make_eval_batches(
    source: RecordSource,
    encode: Callable[[Record], Example | None],
    *,
    batch_size: int,
    limit: int,
    share: HostShare = ALL_ROWS,
    lost: LostRecords | None = None,
) -> Generator[list[EvalRow[Example] | None]]:
    """Yields batches in file order; threads read and encode the next one while the current one is in use.

    The records of a batch are dealt to its shards in turn, so that each shard has its part of a batch that is not full.

    Args:
        source: the records.
        encode: record -> example, or None to drop it; called from several threads.
        batch_size: rows of a batch, over all processes; the shards divide it.
        limit: records to take, evenly spread over the source; 0 takes all.
        share: the rows that this process reads.
        lost: counts the records that cannot be read, which are left out.

    Yields:
        The rows of `share`, in order; None behind the last record, and in the place of a lost one. Close the generator
        to end its threads early.

    Raises:
        InputError: batch_size below 1 or limit below 0; from the generator, on all processes, if `encode` raises it.
        OSError: from the generator, when too many records can no longer be read.
    """
    if batch_size < 1 or limit < 0:
        raise InputError(f"batch_size={batch_size}, limit={limit}: give at least 1, and 0 (all) or more")
    total = len(source)
    count = min(limit, total) or total
    lost = LostRecords() if lost is None else lost

    def load(place: int) -> EvalRow[Example] | None:
        if place >= count:
            return None
        index = place * total // count
        try:
            record = source[index]
            return EvalRow(place, record, encode(record))
        except (BadRowError, OSError) as error:
            lost.add(source, index, error)
            return None

    def places(first: int) -> list[int]:
        size = batch_size // share.num_shards  # rows of a shard
        return [first + row % size * share.num_shards + row // size for row in share.rows(batch_size)]

    def batches() -> Generator[list[EvalRow[Example] | None]]:
        with contextlib.closing(Prefetch(load)) as ahead:
            for first in range(0, count, batch_size):
                ahead.start(places(first))  # later ones have been begun
                rows = together(ahead.take)
                ahead.start(places(first + batch_size))
                yield rows

    return batches()
