"""The verdict on an answer, and the contract of every verifier, `verify(given, gold, ...) -> Verdict`.

`given` is the text that the model wrote, `gold` the right answer as the data has it. In this order, a verifier

1. reads the gold (`wanted`), and raises InputError if it is not of the kind: bad data, not a wrong answer;
2. returns `refusal(given)` if that is a verdict, so that overlong, empty or invisible texts are never read;
3. reads `given` (`found`), and returns UNPARSED or AMBIGUOUS if it is not one answer of the kind;
4. compares, and returns CORRECT, WRONG or WRONG_UNIT. `reason` is one of the fixed phrases below,
   except for a user's function, which gives its own.
"""

from __future__ import annotations

import unicodedata
from typing import NamedTuple

MAX_ANSWER_LEN = 256  # characters of an answer; longer ones are refused unread


class Verdict(NamedTuple):
    """One judged answer. `reason` is one of a small set of fixed phrases, fit to be counted."""

    correct: bool  # the answer equals the gold
    parsed: bool  # the answer could be read as its kind
    reason: str


CORRECT = Verdict(True, True, "correct")
WRONG = Verdict(False, True, "wrong")
WRONG_UNIT = Verdict(False, True, "wrong unit")
AMBIGUOUS = Verdict(False, False, "more than one answer")
UNPARSED = Verdict(False, False, "unparsed")
EMPTY = Verdict(False, False, "empty")
TOO_LONG = Verdict(False, False, "too long")
UNPRINTABLE = Verdict(False, False, "control characters")


def refusal(text: str, *, control_allowed: bool = False) -> Verdict | None:
    """Return the verdict on a text that is refused unread, or None for one that should be read.

    Control and format characters are refused because they make an answer look like another: with a
    right-to-left override "51" is displayed as "15".
    """
    if len(text) > MAX_ANSWER_LEN:
        return TOO_LONG
    if not text.strip():
        return EMPTY
    if not control_allowed and not text.isprintable() and any(_is_control(c) for c in text):
        return UNPRINTABLE
    return None


def _is_control(character: str) -> bool:
    return character not in "\t\n\r" and unicodedata.category(character) in ("Cc", "Cf", "Cn", "Co", "Cs")
