"""Answers read off a chart: ChartQA's relaxed accuracy (Masry et al. 2022, section 5), without its known false accepts.

Numbers may be 5 % off, words must be equal. There are two differences to the published rule: years and small counts are
compared exactly (1950 is within 5 % of 2020, and 0 is a count), and "1,234", "$5" and "12%" are read.
"""

from __future__ import annotations

from care_jax.rewards.verifiers import number, sequence, text
from care_jax.rewards.verifiers.quantity import Quantity, read_quantity, unread
from care_jax.rewards.verifiers.verdict import CORRECT, WRONG, WRONG_UNIT, Verdict, refusal

TOLERANCE = 0.05
YEARS = range(1000, 2101)
COUNTS = range(10)


def verify(response_answer: str, answer: str) -> Verdict:
    """Compare an answer with the gold: as numbers if the gold is one, "[2014, 2016]" as a list, else as words.

    A percent sign on one side alone is read either way, for charts print the sign on the axis only: "57%" equals 57
    and 0.57.

    Raises:
        ValueError: the gold is empty, too long or a nested list.
    """
    gold = None if refusal(answer) else read_quantity(answer, fractions_allowed=True)
    if gold is None and answer.strip().startswith("["):
        return sequence.verify(response_answer, answer, tolerance=TOLERANCE)
    if gold is None:
        return text.verify(response_answer, answer)
    refused = refusal(response_answer)
    if refused:
        return refused
    given = read_quantity(response_answer, fractions_allowed=True)
    if given is None:
        return unread(response_answer)
    units = {given.unit, gold.unit} - {""}
    if len(units) > 1:
        return WRONG_UNIT
    tolerance = 0.0 if _is_exact(gold, answer) else TOLERANCE
    readings = [given.value]
    if units == {"%"} and given.unit != gold.unit:
        readings.append(given.value / 100 if given.unit else given.value * 100)
    return CORRECT if any(number.is_close(value, gold.value, tolerance) for value in readings) else WRONG


def _is_exact(gold: Quantity, answer: str) -> bool:
    """Return whether the gold is a year or a small count: a bare whole number, written without a decimal point."""
    whole = gold.value.denominator == 1 and not gold.unit and "." not in answer
    return whole and (gold.value in YEARS or abs(gold.value) in COUNTS)
