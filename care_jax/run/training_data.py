"""The batches a run trains on, and the position in them that belongs to its state."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import numpy as np
from jaxtyping import Bool

from care_jax.data import loader
from care_jax.data.outcomes import ALL_TURNS, Turns
from care_jax.data.train_stream import TrainStream
from care_jax.method.subgroup import classify
from care_jax.parallel.processes import HostShare, is_alone, together
from care_jax.structs import Record

Encoder = Callable[[Record], Any]  # makes an example of a record, or None to drop it


class TrainingData:
    """Lists of examples without end, one a step; each process has those of its own rows.

    Attributes:
        iterator: yields the lists; a checkpoint saves and sets its position.
    """

    def __init__(
        self,
        source: loader.RecordSource,
        encode: Encoder,
        *,
        batch_size: int,
        seed: int,
        share: HostShare,
        turns: Turns = ALL_TURNS,
    ) -> None:
        """Opens the stream at its start; `loader.make_train_iterator` says what the arguments mean."""
        self._share, self._encoder = share, loader.DropCounter(encode)
        self._lost = loader.LostRecords(is_alone=is_alone() or not share.is_whole)
        self.iterator: TrainStream[Any] = loader.make_train_iterator(
            source,
            self._encoder,
            batch_size=batch_size,
            seed=seed,
            rows=share.rows(batch_size),
            lost=self._lost,
            turns=turns,
        )
        self._marked: Any = None
        self._num_passed_over = 0

    def __next__(self) -> list[Any]:
        """The examples of this process's rows of the next step."""
        examples = together(lambda: next(self.iterator))
        own = self.iterator.skipped
        told: Any = [list(own.items()), self.iterator.num_passed_over]
        for skipped, num_passed_over in self._share.exchange(told):
            others = {row: records for row, records in skipped if row not in own}
            self.iterator.skip(others)
            self._encoder.add(name for records in others.values() for name in records if isinstance(name, str))
            self._num_passed_over += num_passed_over
        return examples

    def tell(self, correct: Bool[np.ndarray, "rows G"]) -> None:
        """Stores the outcomes of the newest examples, so that those with a uniform group lose turns."""
        if self.iterator.outcomes.are_used:
            told = self._share.exchange(list(zip(self.iterator.taken, classify(correct).tolist(), strict=True)))
            self.iterator.outcomes.tell(itertools.chain.from_iterable(told))

    def counts(self) -> dict[str, float]:
        """The different records left out so far, and the turns passed over since the last call."""
        counts: dict[str, float] = {
            "data/num_dropped": self._encoder.num_dropped,
            "data/num_unreadable": len(self._lost),
        }
        if self.iterator.outcomes.are_used:
            counts["data/num_passed_over"], self._num_passed_over = self._num_passed_over, 0
        return counts

    def mark(self) -> None:
        """Remembers the current position; `rewind` returns to it."""
        self._marked = self.iterator.get_state()

    def rewind(self) -> None:
        """Returns to the marked position, so later batches are drawn again."""
        self._num_passed_over = 0
        self.iterator.set_state(self._marked)

    def close(self) -> None:
        """Ends the threads that read ahead."""
        self.iterator.close()
