"""Answers that are numbers as a question asks for them: rounded to the decimals in which the gold is written."""

from __future__ import annotations

from fractions import Fraction

from care_jax.rewards.verifiers import number
from care_jax.rewards.verifiers.numerals import NUMERAL, to_fraction
from care_jax.rewards.verifiers.verdict import CORRECT, Verdict


def verify(response_answer: str, answer: str) -> Verdict:
    """Compare as `number` does, without tolerance; a gold with a decimal point also takes what rounds to it.

    "1.2" takes 1.15 to 1.25, ends included, and "1.20" takes 1.195 to 1.205; "1", "6/5" and "1.2%" take their own value
    alone. Raises ValueError for a gold that is no number.
    """
    verdict = number.verify(response_answer, answer, tolerance=0.0)
    if verdict.reason != "wrong":
        return verdict
    given, gold = number.read_number(response_answer), number.read_number(answer)
    assert given and gold  # a wrong number is one that was read
    return CORRECT if abs(given.value - gold.value) <= _half_a_place(answer, gold.value) else verdict


def _half_a_place(answer: str, value: Fraction) -> Fraction:
    """Return half a unit of the last decimal of a gold that is one decimal and nothing else, or 0."""
    decimal = next((numeral for numeral in NUMERAL.findall(answer) if "." in numeral), "0")
    if "." not in decimal or to_fraction(decimal) != abs(value):
        return Fraction(0)
    return Fraction(1, 2) / 10 ** len(decimal.partition(".")[2])
