"""What the last group of each record came to, and which of the record's turns are passed over for that.

Groups whose rollouts are all right, or all wrong, mostly have no gradient, and a prompt that had one often has another:
its turns are better given to others. A turn is passed over before the record is read, so it costs nothing.
"""

from __future__ import annotations

import base64
import zlib
from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool

from care_jax.errors import InputError

# Outcomes of a group: mixed, or the record was never asked; all its rollouts wrong; all right.
_OPEN, _ALL_WRONG, _ALL_CORRECT = range(3)
_TOLD = 4  # times an outcome and 1: what has been told, and does not count yet


class Turns(NamedTuple):
    """The share of its turns that a record keeps while its last group was uniform, above 0."""

    all_wrong: float = 1.0
    all_correct: float = 1.0


ALL_TURNS = Turns()


def outcome_of(correct: Bool[np.ndarray, "G"]) -> int:
    """The outcome of a group, from which of its rollouts are right."""
    return _ALL_CORRECT if correct.all() else _OPEN if correct.any() else _ALL_WRONG


class Outcomes:
    """The outcomes of a stream's records. What a step tells counts from the step after the next one.

    The next step's prompts are read while the step is under way. A run that resumes draws the same prompts for that.
    """

    def __init__(self, num_records: int, turns: Turns, *, seed: int) -> None:
        """Begins with every record open; `seed` says which turns are passed over."""
        self._codes = np.zeros(num_records, np.uint8)
        self._shares, self._seed = (1.0, *turns), seed

    @property
    def are_used(self) -> bool:
        """True if any turn may be passed over."""
        return min(self._shares) < 1.0

    def passes_over(self, record: int, position: int) -> bool:
        """True if the turn at this position of the stream, which is this record's, is passed over."""
        share = self._shares[self._codes[record] % _TOLD]
        return share < 1.0 and zlib.crc32(f"{self._seed} {position}".encode()) >= share * 2**32

    def tell(self, outcomes: Iterable[tuple[int, int]]) -> None:
        """Takes in pairs of a record and its newest outcome."""
        for record, outcome in outcomes:
            self._codes[record] = self._codes[record] % _TOLD + _TOLD * (outcome + 1)

    def settle(self) -> None:
        """Lets count what has been told."""
        told = self._codes // _TOLD
        self._codes = np.where(told > 0, told - 1, self._codes).astype(np.uint8)

    def to_text(self) -> str:
        """All that is known, for a checkpoint; "" if that is nothing."""
        return base64.b64encode(zlib.compress(self._codes.tobytes())).decode() if self._codes.any() else ""

    def set_text(self, text: str) -> None:
        """Returns to what `to_text` has given.

        Raises:
            InputError: it is of another number of records.
        """
        codes = np.frombuffer(zlib.decompress(base64.b64decode(text)), np.uint8) if text else 0 * self._codes
        if codes.shape != self._codes.shape:
            raise InputError(f"the outcomes are of {len(codes)} records, and the training data have {len(self._codes)}")
        self._codes = codes.copy()
