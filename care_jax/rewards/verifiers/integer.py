"""Answers that are whole numbers, compared exactly."""

from __future__ import annotations

from care_jax.errors import InputError
from care_jax.rewards.verifiers.reading.quantity import Quantity, agree, read_quantity, read_stated, unread
from care_jax.rewards.verifiers.verdict import CORRECT, WRONG, WRONG_UNIT, Verdict, refusal


def verify(given: str, gold: str) -> Verdict:
    """Compare an answer with the gold, both as whole numbers with an optional unit.

    "5.0" equals 5 and "5.5" is a wrong answer; a fraction is not read. A percent sign on one side alone may be left out
    or mean hundredths. Units are compared only if both sides have one.

    Raises:
        InputError: the gold is not a whole number.
    """
    wanted = read_gold(gold)
    refused = refusal(given)
    if refused:
        return refused
    found = read_stated(given, fractions_allowed=False)
    if found is None:
        return unread(given)
    if found.unit and wanted.unit and found.unit != wanted.unit:
        return WRONG_UNIT
    return CORRECT if agree(found, wanted, 0.0) else WRONG


def read_gold(gold: str) -> Quantity:
    """Return the gold as a quantity.

    Raises:
        InputError: it is not a whole number.
    """
    wanted = None if refusal(gold) else read_quantity(gold, fractions_allowed=False)
    if wanted is None or wanted.value.denominator != 1:
        raise InputError(
            f'the gold {gold[:80]!r} is not a whole number; write it like "1234" or "12 cm", '
            'or use answer_kind "number" or "text"'
        )
    return wanted
