"""The batches a run trains on, and the position in them that belongs to its state."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import grain

from care_jax.data import loader
from care_jax.parallel.processes import is_alone
from care_jax.structs import Record

Encoder = Callable[[Record], Any]  # makes an example of a record, or None to drop it


class TrainingData:
    """Lists of examples without end, one a step.

    Attributes:
        iterator: yields the lists; a checkpoint saves and sets its position.
    """

    def __init__(self, source: loader.RecordSource, encode: Encoder, *, batch_size: int, seed: int) -> None:
        """Opens the stream at its start; `loader.make_train_iterator` says what the arguments mean."""
        self._encoder, self._lost = loader.DropCounter(encode), loader.LostRecords(is_alone=is_alone())
        self.iterator: grain.DatasetIterator[list[Any]] = loader.make_train_iterator(
            source, self._encoder, batch_size=batch_size, seed=seed, lost=self._lost
        )
        self._marked: Any = None

    def __next__(self) -> list[Any]:
        """The examples of the next step."""
        return next(self.iterator)

    def counts(self) -> dict[str, float]:
        """The different records left out so far: dropped by the encoder, and those that can no longer be read."""
        return {"data/num_dropped": self._encoder.num_dropped, "data/num_unreadable": len(self._lost)}

    def mark(self) -> None:
        """Remembers the current position; `rewind` returns to it."""
        self._marked = self.iterator.get_state()

    def rewind(self) -> None:
        """Returns to the marked position, so later batches are drawn again."""
        self.iterator.set_state(self._marked)
