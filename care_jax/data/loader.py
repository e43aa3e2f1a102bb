"""Opens the data that a config names, and makes batches: a train stream that resumes, and a fixed order for eval."""

from __future__ import annotations

import dataclasses
import math
import threading
from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from typing import Generic, Protocol, TypeVar

import grain
import ml_collections
from absl import logging

from care_jax.data import statistics
from care_jax.data.array_records import open_folder
from care_jax.data.mini_vqa import builder as mini_vqa
from care_jax.data.mini_vqa.questions import Difficulty
from care_jax.data.own_data import listing, read_jsonl
from care_jax.errors import BadRowError, InputError
from care_jax.options import DATA_FORMATS, choose_one
from care_jax.rewards.verifiers import require_allowed
from care_jax.structs import Record

NUM_THREADS = 4  # threads that encode ahead, a process
_FEW_LOST, _MOST_LOST = 8, 0.05  # records of a source, share of it, that may become unreadable while a run goes on

Example = TypeVar("Example")


class RecordSource(Protocol):
    """Random access to records."""

    def __len__(self) -> int:
        """Returns the number of records."""

    def __getitem__(self, index: int, /) -> Record:
        """Reads a record."""


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
    """Wraps an encoder and counts the different records that it drops. Thread-safe.

    A warning names the first one.
    """

    def __init__(self, encode: Callable[[Record], Example | None]) -> None:
        """Takes the encoder, which returns None for a record that it drops."""
        self._encode = encode
        self._lock = threading.Lock()
        self._dropped_ids: set[str] = set()

    def __call__(self, record: Record) -> Example | None:
        """Encodes a record; returns None if the encoder drops it."""
        example = self._encode(record)
        if example is None:
            with self._lock:
                if not self._dropped_ids:
                    logging.warning(
                        "record %r is left out: too long for the config's limits, or a field that this stage needs is "
                        "missing; data/num_dropped counts such records",
                        record.id,
                    )
                self._dropped_ids.add(record.id)
        return example

    @property
    def num_dropped(self) -> int:
        """The number of different records dropped so far."""
        return len(self._dropped_ids)


class LostRecords:
    """Counts the records that could be read when a run started and cannot be any more. Thread-safe.

    A warning names each of the first ones. More than 8 of a source, and more than 5 % of it, end the run. One alone
    does if `is_alone` is False: the processes of a run read the same stream, and would draw different batches.
    """

    def __init__(self, *, is_alone: bool = True) -> None:
        """Starts without any; `is_alone` says that no other process reads the stream."""
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
        return sum(map(len, self._lost.values()))


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
    lost: LostRecords | None = None,
) -> grain.DatasetIterator[list[Example]]:
    """Makes an endless stream of batches, shuffled anew each epoch.

    The parts of a Mixture have epochs of their own and take turns by weight: among any n records drawn, each part has
    its share of n, to within one record for each part. (Records that `encode` drops count as drawn.)

    Every process of a run reads the whole stream and takes its rows of each batch, so batches do not depend on the
    number of processes. `get_state` and `set_state` resume with exactly the batch that would have come next, as do
    grain.checkpoint.CheckpointSave and CheckpointRestore. Records that `encode` drops or that cannot be read are
    skipped.

    Args:
        source: the records.
        encode: record -> example, or None to drop it; called from several threads.
        batch_size: examples of a batch.
        seed: determines the order.
        lost: counts the records that cannot be read.

    Returns:
        Iterator over lists of `batch_size` examples.

    Raises:
        InputError: the source is too small for a batch; from the iterator, when the encoder dropped so many records
            that it is.
        OSError: from the iterator, when too many records can no longer be read.
    """
    lost = LostRecords() if lost is None else lost
    if batch_size < 1:
        raise InputError(f"batch_size={batch_size}: must be at least 1")
    parts = source.parts if isinstance(source, Mixture) else ((source, 1.0),)
    total = sum(weight for _, weight in parts)
    streams = []
    for number, (part, weight) in enumerate(parts):
        needed = math.ceil(batch_size * weight / total)
        shuffled = grain.MapDataset.range(len(part)).seed(seed + number).shuffle()
        epochs = shuffled.repeat(reseed_each_epoch=True)
        streams.append(epochs.map(_example_or_refuse(part, encode, needed, lost)))
    mixed = streams[0] if len(streams) == 1 else grain.MapDataset.mix(streams, [weight for _, weight in parts])
    examples = mixed.to_iter_dataset(  # grain skips None
        grain.ReadOptions(num_threads=NUM_THREADS, prefetch_buffer_size=max(batch_size, NUM_THREADS))
    )
    batches = examples.batch(batch_size, drop_remainder=True, batch_fn=list)
    # A separate thread assembles the batches; in the training loop's thread they would wait for the encoders' GIL.
    return iter(grain.experimental.ThreadPrefetchIterDataset(batches, prefetch_buffer_size=1))


def _reader(
    source: RecordSource, encode: Callable[[Record], Example | None], lost: LostRecords
) -> Callable[[int], Example | None]:
    """Makes a function from index to example; None for a record that `encode` drops or that cannot be read."""

    def example(index: int) -> Example | None:
        try:
            return encode(source[index])
        except (BadRowError, OSError) as error:
            lost.add(source, index, error)
            return None

    return example


def _example_or_refuse(
    source: RecordSource, encode: Callable[[Record], Example | None], needed: int, lost: LostRecords
) -> Callable[[int], Example | None]:
    """Makes a function as `_reader` does that raises once fewer records are left than the `needed` ones of a step."""
    spare = len(source) - needed
    wanted = f"a step needs {needed} different examples, more than the "
    if spare < 0:
        raise InputError(wanted + f"{len(source)} records in {source!r}; lower the batch size")
    dropped: set[int] = set()
    read = _reader(source, encode, lost)

    def example_or_refuse(index: int) -> Example | None:
        example = read(index)
        if example is None:
            dropped.add(index)
            if len(dropped) > spare:
                message = wanted + f"usable ones in {source!r}: "
                if len(lost):
                    raise OSError(message + f"{len(lost)} can no longer be read, {len(dropped)} are left out in all")
                raise InputError(
                    message + f"the encoder dropped {len(dropped)} of {len(source)}; lower the batch size or raise the "
                    "length limits"
                )
        return example

    return example_or_refuse


def make_eval_batches(
    source: RecordSource,
    encode: Callable[[Record], Example | None],
    *,
    batch_size: int,
    limit: int,
    lost: LostRecords | None = None,
) -> Iterator[tuple[list[Example], int]]:
    """Yields batches in file order, none if every record is dropped; the last is filled up with its last example.

    Args:
        source: the records.
        encode: record -> example, or None to drop it.
        batch_size: examples of a batch.
        limit: records to take, evenly spread over the source; 0 takes all.
        lost: counts the records that cannot be read, which are left out.

    Yields:
        (examples, num_real): `batch_size` examples, of which the first `num_real` count.

    Raises:
        InputError: batch_size below 1 or limit below 0.
        OSError: too many records can no longer be read.
    """
    if batch_size < 1 or limit < 0:
        raise InputError(f"batch_size={batch_size}, limit={limit}: give at least 1, and 0 (all) or more")
    total = len(source)
    count = min(limit, total) or total
    example = _reader(source, encode, LostRecords() if lost is None else lost)
    return _eval_batches(map(example, [i * total // count for i in range(count)]), batch_size)


def _eval_batches(examples: Iterator[Example | None], batch_size: int) -> Iterator[tuple[list[Example], int]]:
    batch: list[Example] = []
    for example in examples:
        if example is None:
            continue
        batch.append(example)
        if len(batch) == batch_size:
            yield batch, batch_size
            batch = []
    if batch:
        yield batch + batch[-1:] * (batch_size - len(batch)), len(batch)
