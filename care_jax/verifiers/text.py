"""Answers that are words, compared for equality."""

from __future__ import annotations

import unicodedata

from care_jax.verifiers.verdict import CORRECT, MAX_ANSWER_LEN, WRONG, Verdict, refusal


def verify(response_answer: str, answer: str) -> Verdict:
    """Compare an answer with the gold after `normalise`. Raises ValueError for a gold that is empty or too long."""
    refused = refusal(response_answer, control_allowed=True)
    if refused:
        return refused
    return CORRECT if normalise(response_answer) == read_gold(answer) else WRONG


def normalise(text: str) -> str:
    """Return the text case-folded, composed (NFC), with runs of white space as one space; nothing else is taken off."""
    return " ".join(unicodedata.normalize("NFC", text).casefold().split())


def read_gold(answer: str) -> str:
    """Return the normalised gold, or raise ValueError where no answer could ever equal it."""
    refused = refusal(answer, control_allowed=True)
    if refused:
        raise ValueError(
            f"the gold {answer[:80]!r} is {refused.reason}; a text gold has 1 to {MAX_ANSWER_LEN} characters"
        )
    return normalise(answer)
