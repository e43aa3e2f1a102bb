"""Passes over turns of records whose last group was uniform, and gives them to other records of their source.

Where all rollouts are right, or all are wrong, there is mostly no gradient, and a prompt that had such a group often
has another. A turn is passed over before its record is read.
"""

from __future__ import annotations

import base64
import hashlib
import zlib
from collections.abc import Iterable
from typing import NamedTuple

import numpy as np

from care_jax.errors import InputError
from care_jax.structs import Outcome

_MOST_TRIES = 64  # records that are looked at for one turn; where most lose their turns, the last of these is asked
_UNTOLD = 3  # in the place of an Outcome


class Turns(NamedTuple):
    """The share of its turns that a record keeps while its last group was uniform, above 0."""

    all_wrong: float = 1.0
    all_correct: float = 1.0


ALL_TURNS = Turns()


class Outcomes:
    """The outcome of each record's last group.

    A step reads the next batch before it knows its own outcomes. They therefore count only from the batch after that,
    so that a resumed run draws the same records.
    """

    def __init__(self, num_records: int, turns: Turns, *, seed: int) -> None:
        """Begins as if all groups had been mixed; `seed` decides which turns are passed over."""
        self._shares = {Outcome.ALL_WRONG: turns.all_wrong, Outcome.ALL_CORRECT: turns.all_correct}
        self.are_used = min(turns) < 1.0  # else no turn is passed over, and nothing is kept
        self._seed = seed
        self._counted = np.full(num_records, Outcome.MIXED, np.uint8)
        self._told = np.full(num_records, _UNTOLD, np.uint8)

    def record_of_turn(self, position: int, record: int, source: range) -> tuple[int, int]:
        """The record that has the turn at a position of the stream, and how many were passed over for it.

        Args:
            position: of the turn.
            record: whose turn it is.
            source: the records that may take its place, those of its own source.
        """
        if not self.are_used:
            return record, 0
        for tries in range(_MOST_TRIES):
            draw = hashlib.blake2b(f"{self._seed} {position} {tries}".encode(), digest_size=16).digest()
            if int.from_bytes(draw[:8]) < self._shares.get(Outcome(self._counted[record]), 1.0) * 2**64:
                return record, tries
            record = source[int.from_bytes(draw[8:]) % len(source)]
        return record, _MOST_TRIES

    def tell(self, outcomes: Iterable[tuple[int, int]]) -> None:
        """Stores the Outcome of each record of a batch; a record with two groups that differ is MIXED."""
        if not self.are_used:
            return
        told = dict[int, int]()
        for record, outcome in outcomes:
            told[record] = outcome if told.get(record, outcome) == outcome else Outcome.MIXED
        for record, outcome in told.items():
            self._told[record] = outcome

    def count(self) -> None:
        """Lets the stored outcomes count from now on."""
        is_told = self._told != _UNTOLD
        self._counted = np.where(is_told, self._told, self._counted)
        self._told = np.full_like(self._told, _UNTOLD)

    def to_text(self) -> str:
        """Everything that is known, for a checkpoint; "" if no group has been uniform."""
        both = self._counted + 4 * self._told
        if np.all(both == Outcome.MIXED + 4 * _UNTOLD):
            return ""
        return base64.b64encode(zlib.compress(both.tobytes(), level=1)).decode()

    def set_text(self, text: str) -> None:
        """Returns to what `to_text` has given.

        Raises:
            InputError: it is of another number of records.
        """
        unknown = np.full_like(self._told, Outcome.MIXED + 4 * _UNTOLD)
        both = np.frombuffer(zlib.decompress(base64.b64decode(text)), np.uint8) if text else unknown
        if both.shape != unknown.shape:
            raise InputError(f"the outcomes are of {len(both)} records, and the training data have {len(unknown)}")
        self._counted, self._told = both % 4, both // 4
