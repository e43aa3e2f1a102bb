"""Answers that are whole numbers, compared exactly."""

from __future__ import annotations

from care_jax.rewards.verifiers.quantity import Quantity, read_quantity, unread
from care_jax.rewards.verifiers.verdict import CORRECT, WRONG, WRONG_UNIT, Verdict, refusal


def verify(response_answer: str, answer: str) -> Verdict:
    """Compare an answer with the gold, both as whole numbers with an optional unit.

    "5.0" equals 5 and "5.5" is a wrong answer; a fraction is not read. "%" counts as a unit, so "50%" equals 50. Units
    are compared only if both sides have one.

    Raises:
        ValueError: the gold is not a whole number.
    """
    gold = read_gold(answer)
    refused = refusal(response_answer)
    if refused:
        return refused
    given = read_quantity(response_answer, fractions_allowed=False)
    if given is None:
        return unread(response_answer)
    if given.unit and gold.unit and given.unit != gold.unit:
        return WRONG_UNIT
    return CORRECT if given.value == gold.value else WRONG


def read_gold(answer: str) -> Quantity:
    """Return the gold as a quantity.

    Raises:
        ValueError: it is not a whole number.
    """
    gold = None if refusal(answer) else read_quantity(answer, fractions_allowed=False)
    if gold is None or gold.value.denominator != 1:
        raise ValueError(
            f'the gold {answer[:80]!r} is not a whole number; write it like "1234" or "12 cm", '
            'or use answer_kind "number" or "text"'
        )
    return gold
