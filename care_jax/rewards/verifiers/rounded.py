"""Answers that are numbers rounded to the decimals of the gold, as the question asks for them."""

from __future__ import annotations

from fractions import Fraction

from care_jax.rewards.verifiers import number
from care_jax.rewards.verifiers.numerals import NUMERAL, to_fraction
from care_jax.rewards.verifiers.verdict import CORRECT, Verdict


def verify(response_answer: str, answer: str) -> Verdict:
    """Compare as `number` does, without tolerance; a gold with a decimal point also accepts numbers that round to it.

    "1.2" accepts 1.15 to 1.25, ends included, and "1.20" accepts 1.195 to 1.205; "1", "6/5" and "1.2%" accept their own
    value alone.

    Raises:
        ValueError: the gold is not a number.
    """
    verdict = number.verify(response_answer, answer, tolerance=0.0)
    if verdict.reason != "wrong":
        return verdict
    given, gold = number.read_number(response_answer), number.read_number(answer)
    assert given  # a wrong number is one that was read
    assert gold
    return CORRECT if abs(given.value - gold.value) <= _half_a_place(answer, gold.value) else verdict


def _half_a_place(answer: str, value: Fraction) -> Fraction:
    """Return half a unit of the last decimal of a gold that is one decimal and nothing else, or 0."""
    decimal = next((numeral for numeral in NUMERAL.findall(answer) if "." in numeral), "0")
    if "." not in decimal or to_fraction(decimal) != abs(value):
        return Fraction(0)
    return Fraction(1, 2) / 10 ** len(decimal.partition(".")[2])
