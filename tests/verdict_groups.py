"""Verdicts grouped by gold: the answers that are right, those that are wrong, those that are not read.

Every group holds its near misses.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

Row = tuple[str, str, str, tuple[str, ...] | None, tuple[bool, bool]]


class Group(NamedTuple):
    """Answers to one gold."""

    kind: str
    gold: str
    options: tuple[str, ...] | None
    right: tuple[str, ...]
    wrong: tuple[str, ...] = ()  # read, and another answer than the gold
    unread: tuple[str, ...] = ()  # no answer of the kind, or more than one

    def rows(self) -> Iterator[Row]:
        """Kind, gold, answer, options, (correct, parsed) for each answer, as in verdict_table.py."""
        for answers, verdict in (
            (self.right, (True, True)),
            (self.wrong, (False, True)),
            (self.unread, (False, False)),
        ):
            for answer in answers:
                yield self.kind, self.gold, answer, self.options, verdict
