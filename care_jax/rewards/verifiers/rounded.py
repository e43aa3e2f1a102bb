"""Answers that are numbers rounded to the decimals of the gold, as the question asks for them."""

from __future__ import annotations

from fractions import Fraction

from care_jax.rewards.verifiers import number
from care_jax.rewards.verifiers.reading.numerals import NUMERAL, to_fraction
from care_jax.rewards.verifiers.reading.quantity import read_stated
from care_jax.rewards.verifiers.verdict import CORRECT, Verdict


def verify(given: str, gold: str) -> Verdict:
    """Compare as `number` does, without tolerance; a gold with a decimal point also accepts numbers that round to it.

    "1.2" accepts 1.15 to 1.25, ends included, and "1.20" accepts 1.195 to 1.205; "1", "6/5" and "1.2%" accept their own
    value alone.

    Raises:
        InputError: the gold is not a number.
    """
    verdict = number.verify(given, gold, tolerance=0.0)
    if verdict.reason != "wrong":
        return verdict
    found = read_stated(given, fractions_allowed=True)
    wanted = number.read_number(gold)
    assert found  # a wrong number is one that was read
    assert wanted
    place = Fraction(0) if wanted.unit == "%" else _half_a_place(gold, wanted.value)
    return CORRECT if abs(found.value - wanted.value) <= place else verdict


def _half_a_place(gold: str, value: Fraction) -> Fraction:
    """Return half a unit of the last decimal of a gold that is one decimal and nothing else, or 0."""
    decimal = next((numeral for numeral in NUMERAL.findall(gold) if "." in numeral), "0")
    if "." not in decimal or to_fraction(decimal) != abs(value):
        return Fraction(0)
    return Fraction(1, 2) / 10 ** len(decimal.partition(".")[2])
