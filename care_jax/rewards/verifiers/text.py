"""Answers that are words, compared for equality."""

from __future__ import annotations

import unicodedata

from care_jax.errors import InputError
from care_jax.rewards.verifiers.reading.wrapping import unwrap
from care_jax.rewards.verifiers.verdict import CORRECT, MAX_ANSWER_LEN, WRONG, Verdict, refusal


def verify(given: str, gold: str) -> Verdict:
    """Compare an answer with the gold, both after `plain`.

    Raises:
        InputError: the gold is empty or too long.
    """
    wanted = read_gold(gold)
    refused = refusal(given, control_allowed=True)
    if refused:
        return refused
    return CORRECT if plain(given) == wanted else WRONG


def plain(text: str) -> str:
    r"""Return the text for comparing: wrappers stripped (r"\boxed{Blue}." gives "blue"), then `normalise`."""
    return normalise(unwrap(text)) or normalise(text)


def normalise(text: str) -> str:
    """Return the text case-folded, composed (NFC), with each run of white space as one space, otherwise unchanged."""
    return " ".join(unicodedata.normalize("NFC", text).casefold().split())


def read_gold(gold: str) -> str:
    """Return the gold for comparing.

    Raises:
        InputError: the gold is empty or too long, so that no answer could ever equal it.
    """
    refused = refusal(gold, control_allowed=True)
    if refused:
        raise InputError(
            f"the gold {gold[:80]!r} is {refused.reason}; a text gold has 1 to {MAX_ANSWER_LEN} characters"
        )
    return plain(gold)
