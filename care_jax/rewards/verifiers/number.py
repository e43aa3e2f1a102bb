"""Answers that are decimals, fractions, percentages, roots or multiples of pi, compared within a relative tolerance."""

from __future__ import annotations

from fractions import Fraction

from care_jax.errors import InputError
from care_jax.rewards.verifiers.reading.quantity import Quantity, read_stated, unread
from care_jax.rewards.verifiers.verdict import CORRECT, WRONG, WRONG_UNIT, Verdict, refusal

# A share of the gold. Roots and pi are known to 50 digits, so two spellings of one number differ by less.
_ROUNDING = Fraction(1, 10**40)


def verify(given: str, gold: str, *, tolerance: float) -> Verdict:
    """Compare an answer with the gold: correct if |given - gold| <= tolerance * |gold|.

    A percentage is its hundredth: "50%" equals "0.5" and "1/2", never "50". A gold of zero needs zero. Units are
    compared only if both sides have one.

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
    found = read_number(given)
    if found is None:
        return unread(given)
    if found.unit and wanted.unit and found.unit != wanted.unit:
        return WRONG_UNIT
    return CORRECT if is_close(found.value, wanted.value, tolerance) else WRONG


def read_number(text: str) -> Quantity | None:
    """Return the quantity that the text states, percentages as their hundredth, or None."""
    quantity = None if refusal(text) else read_stated(text, fractions_allowed=True)
    if quantity is not None and quantity.unit == "%":
        return Quantity(quantity.value / 100, "")
    return quantity


def is_close(found: Fraction, wanted: Fraction, tolerance: float) -> bool:
    """Return whether the relative error is within the tolerance, or exactly at it."""
    # The tolerance as the decimal that was written, not its binary neighbour: with 3 % of 100, 103 is exactly at it.
    return abs(found - wanted) <= (Fraction(str(tolerance)) + _ROUNDING) * abs(wanted)
