"""Answers read off a chart: ChartQA's relaxed accuracy (Masry et al. 2022, section 5), without its known false accepts.

Numbers may be 5 % off, words must be equal. There are two differences to the published rule: years and small counts are
compared exactly (1950 is within 5 % of 2020, and 0 is a count), and "1,234", "$5" and "12%" are read.
"""

from __future__ import annotations

from care_jax.rewards.verifiers import number, sequence, text
from care_jax.rewards.verifiers.reading.quantity import Quantity, read_quantity, unread
from care_jax.rewards.verifiers.verdict import CORRECT, WRONG, WRONG_UNIT, Verdict, refusal

TOLERANCE = 0.05
YEARS = range(1000, 2101)
COUNTS = range(10)


def verify(given: str, gold: str) -> Verdict:
    """Compare an answer with the gold: as numbers if the gold is one, "[2014, 2016]" as a list, else as words.

    A percent sign on one side alone is read either way, for charts print the sign on the axis only: "57%" equals 57
    and 0.57.

    Raises:
        InputError: the gold is empty, too long or a nested list.
    """
    wanted = None if refusal(gold) else read_quantity(gold, fractions_allowed=True)
    if wanted is None and gold.strip().startswith("["):
        return sequence.verify(given, gold, tolerance=TOLERANCE)
    if wanted is None:
        return text.verify(given, gold)
    refused = refusal(given)
    if refused:
        return refused
    found = read_quantity(given, fractions_allowed=True)
    if found is None:
        return unread(given)
    units = {found.unit, wanted.unit} - {""}
    if len(units) > 1:
        return WRONG_UNIT
    tolerance = 0.0 if _is_exact(wanted, gold) else TOLERANCE
    readings = [found.value]
    if units == {"%"} and found.unit != wanted.unit:
        readings.append(found.value / 100 if found.unit else found.value * 100)
    return CORRECT if any(number.is_close(value, wanted.value, tolerance) for value in readings) else WRONG


def _is_exact(wanted: Quantity, gold: str) -> bool:
    """Return whether the gold is a year or a small count: a bare whole number, written without a decimal point."""
    whole = wanted.value.denominator == 1 and not wanted.unit and "." not in gold
    return whole and (wanted.value in YEARS or abs(wanted.value) in COUNTS)
