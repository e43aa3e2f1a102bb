"""Answers that are decimals, fractions, percentages, roots or multiples of pi, compared within a relative tolerance."""

from __future__ import annotations

from care_jax.errors import InputError
from care_jax.rewards.verifiers.reading.quantity import Quantity, agree, read_quantity, read_stated, unread
from care_jax.rewards.verifiers.verdict import CORRECT, WRONG, WRONG_UNIT, Verdict, refusal


def verify(given: str, gold: str, *, tolerance: float) -> Verdict:
    """Compare an answer with the gold: correct if |given - gold| <= tolerance * |gold|.

    A percent sign on one side alone may be left out or mean hundredths: "50%" equals "50", "0.5" and "1/2". A gold of
    zero needs zero, and "3:4" is 3/4. Units are compared only if both sides have one.

    Raises:
        InputError: the gold is not a number.
    """
    wanted = read_number(gold)
    if wanted is None:
        raise InputError(
            f'the gold {gold[:80]!r} is not a number; write it like "1.5", "3/4", "50%", "1.5e3" or "5\\sqrt{{3}}", '
            'or use answer_kind "latex" or "text"'
        )
    refused = refusal(given)
    if refused:
        return refused
    found = read_stated(given, fractions_allowed=True)
    if found is None:
        return unread(given)
    if found.unit and wanted.unit and found.unit != wanted.unit:
        return WRONG_UNIT
    return CORRECT if agree(found, wanted, tolerance) else WRONG


def read_number(text: str) -> Quantity | None:
    """Return the quantity that the text is, or None."""
    return None if refusal(text) else read_quantity(text, fractions_allowed=True)
