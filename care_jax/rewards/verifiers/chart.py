"""Answers read off a chart: ChartQA's relaxed accuracy (Masry et al. 2022, section 5), without its known false accepts.

Numbers may be 5 % off, words must be equal. There are two differences to the published rule: years and small counts are
compared exactly (1950 is within 5 % of 2020, and 0 is a count) if the answer is a bare whole number too, and "1,234",
"$5", "12%" and sentences of one number are read.
"""

from __future__ import annotations

import re
from fractions import Fraction
from typing import NamedTuple

from care_jax.rewards.verifiers import sequence, text
from care_jax.rewards.verifiers.reading.quantity import Quantity, agree, read_quantity, unread
from care_jax.rewards.verifiers.reading.sentences import stated_value
from care_jax.rewards.verifiers.verdict import CORRECT, WRONG, WRONG_UNIT, Verdict, refusal

TOLERANCE = 0.05
YEARS = range(1000, 2101)
COUNTS = range(10)
_SCALES = {"thousand": 10**3, "million": 10**6, "billion": 10**9, "trillion": 10**12}
_SCALE = re.compile(r"(?<=[0-9])\s+(thousand|million|billion|trillion)\b", re.IGNORECASE)


class _Reading(NamedTuple):
    quantity: Quantity  # without the scale
    scale: int
    is_whole: bool  # a bare whole number: no unit, scale or decimal point


def verify(given: str, gold: str) -> Verdict:
    """Compare an answer with the gold: as numbers if the gold is one, "[2014, 2016]" as a list, else as words.

    Charts print a percent sign or "in millions" on the axis only. So a percent sign on one side alone is read either
    way, "57%" equals 57 and 0.57, and a scale on one side too, "187 million" equals 187 and 187000000.

    Raises:
        InputError: the gold is empty, too long or a nested list.
    """
    wanted = None if refusal(gold) else _read(gold)
    if wanted is None and gold.strip().startswith("["):
        return sequence.verify(given, gold, tolerance=TOLERANCE)
    if wanted is None:
        return text.verify(given, gold)
    refused = refusal(given)
    if refused:
        return refused
    found = _read(given)
    if found is None:
        return unread(given)
    units = {found.quantity.unit, wanted.quantity.unit} - {""}
    if len(units) > 1:
        return WRONG_UNIT
    tolerance = 0.0 if found.is_whole and wanted.is_whole and _is_year_or_count(wanted.quantity.value) else TOLERANCE
    readings = [found.quantity]
    if found.scale != wanted.scale:
        readings.append(found.quantity._replace(value=found.quantity.value * found.scale / wanted.scale))
    return CORRECT if any(agree(reading, wanted.quantity, tolerance) for reading in readings) else WRONG


def _read(text: str) -> _Reading | None:
    plain, scale, quantity = text, None, read_quantity(text, fractions_allowed=True)
    if quantity is None:
        plain = stated_value(text) or text
        scale = _SCALE.search(plain)
        quantity = read_quantity(_SCALE.sub(" ", plain, count=1), fractions_allowed=True)
    if quantity is None:
        return None
    is_whole = quantity.value.denominator == 1 and not quantity.unit and "." not in plain and not scale
    return _Reading(quantity, _SCALES[scale[1].casefold()] if scale else 1, is_whole)


def _is_year_or_count(value: Fraction) -> bool:
    return value in YEARS or abs(value) in COUNTS
