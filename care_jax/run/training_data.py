"""The batches a run trains on, and the position in them that belongs to its state."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from care_jax.data import loader
from care_jax.data.train_stream import TrainStream
from care_jax.parallel.processes import HostShare, is_alone, together
from care_jax.structs import Record

Encoder = Callable[[Record], Any]  # makes an example of a record, or None to drop it


class TrainingData:
    """Lists of examples without end, one a step; each process has those of its own rows.

    Attributes:
        iterator: yields the lists; a checkpoint saves and sets its position.
    """

    def __init__(
        self, source: loader.RecordSource, encode: Encoder, *, batch_size: int, seed: int, share: HostShare
    ) -> None:
        """Opens the stream at its start; `loader.make_train_iterator` says what the arguments mean."""
        self._share, self._encoder = share, loader.DropCounter(encode)
        self._lost = loader.LostRecords(is_alone=is_alone() or not share.is_whole)
        self.iterator: TrainStream[Any] = loader.make_train_iterator(
            source, self._encoder, batch_size=batch_size, seed=seed, rows=share.rows(batch_size), lost=self._lost
        )
        self._marked: Any = None

    def __next__(self) -> list[Any]:
        """The examples of this process's rows of the next step."""
        examples = together(lambda: next(self.iterator))
        for skipped in self._share.exchange(list(self.iterator.skipped.items())):
            others = {row: ids for row, ids in skipped if row not in self.iterator.skipped}
            self.iterator.skip(others)
            self._encoder.add(record_id for ids in others.values() for record_id in ids if record_id is not None)
        return examples

    def counts(self) -> dict[str, float]:
        """The different records left out so far: dropped by the encoder, and those that can no longer be read."""
        return {"data/num_dropped": self._encoder.num_dropped, "data/num_unreadable": len(self._lost)}

    def mark(self) -> None:
        """Remembers the current position; `rewind` returns to it."""
        self._marked = self.iterator.get_state()

    def rewind(self) -> None:
        """Returns to the marked position, so later batches are drawn again."""
        self.iterator.set_state(self._marked)

    def close(self) -> None:
        """Ends the threads that read ahead."""
        self.iterator.close()
