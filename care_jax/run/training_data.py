"""The batches a run trains on, and the position in them that belongs to its state."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from jaxtyping import Bool

from care_jax.data import loader
from care_jax.data.outcomes import ALL_TURNS, Turns
from care_jax.data.train_stream import Moved, TrainStream
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

    def __next__(self) -> list[Any]:
        """The examples of this process's rows of the next step."""
        examples = together(lambda: next(self.iterator))
        own = self.iterator.moved
        for told in self._share.exchange(list(own.items())):
            others = {row: Moved(*moved) for row, moved in told if row not in own}
            self.iterator.follow(others)
            self._encoder.add(name for moved in others.values() for _, name in moved.left_out if name is not None)
        return examples

    def tell(self, correct: Bool[np.ndarray, "rows G"]) -> None:
        """Takes in which rollouts of the newest examples are right, so that prompts may be passed over for that."""
        if self.iterator.outcomes.are_used:
            for outcomes in self._share.exchange(self.iterator.outcomes_of(correct)):
                self.iterator.outcomes.tell(outcomes)

    def counts(self) -> dict[str, float]:
        """The different records left out so far, and the turns passed over before the last batch."""
        counts: dict[str, float] = {
            "data/num_dropped": self._encoder.num_dropped,
            "data/num_unreadable": len(self._lost),
        }
        if self.iterator.outcomes.are_used:
            counts["data/num_passed_over"] = self.iterator.num_passed_over
        return counts

    def mark(self) -> None:
        """Remembers the current position; `rewind` returns to it."""
        self._marked = self.iterator.get_state()

    def rewind(self) -> None:
        """Returns to the marked position, so later batches are drawn again."""
        self.iterator.set_state(self._marked)

    def close(self) -> None:
        """Ends the threads that read ahead."""
        self.iterator.close()
