"""Answers that are decimals, fractions or percentages, compared within a relative tolerance."""

from __future__ import annotations

from fractions import Fraction

from care_jax.verifiers.quantity import Quantity, count_numbers, read_quantity
from care_jax.verifiers.verdict import AMBIGUOUS, CORRECT, UNPARSED, WRONG, WRONG_UNIT, Verdict, refusal


def verify(response_answer: str, answer: str, *, tolerance: float) -> Verdict:
    """Compare an answer with the gold: correct where |given - gold| <= tolerance * |gold|.

    A percentage is its hundredth: "50%" equals "0.5" and "1/2", never "50". A gold of zero needs zero. Units are
    compared only where both sides have one. Raises ValueError for a gold that is no number.
    """
    refused = refusal(response_answer)
    if refused:
        return refused
    gold = read_gold(answer)
    given = _read(response_answer)
    if given is None:
        return AMBIGUOUS if count_numbers(response_answer) > 1 else UNPARSED
    if given.unit and gold.unit and given.unit != gold.unit:
        return WRONG_UNIT
    # The decimal that was written, not its binary neighbour: at 3 % of 100, 103 lies on the border and counts.
    allowed = Fraction(str(tolerance)) * abs(gold.value)
    return CORRECT if abs(given.value - gold.value) <= allowed else WRONG


def read_gold(answer: str) -> Quantity:
    """Return the gold as a quantity, or raise ValueError where it is no number."""
    gold = None if refusal(answer) else _read(answer)
    if gold is None:
        raise ValueError(
            f'the gold {answer[:80]!r} is no number; write it like "1.5", "3/4", "50%" or "1.5e3", '
            'or use answer_kind "text"'
        )
    return gold


def _read(text: str) -> Quantity | None:
    quantity = read_quantity(text, fractions_allowed=True)
    if quantity is not None and quantity.unit == "%":
        return Quantity(quantity.value / 100, "")
    return quantity
