r"""Reads one quantity, a number with at most one unit, from a short text; nothing is ever evaluated."""

from __future__ import annotations

import functools
import re
from fractions import Fraction
from typing import NamedTuple

from care_jax.rewards.verifiers.reading.numerals import (
    NUMERAL,
    count_numbers,
    flatten_fractions,
    read_rational,
    spell_out,
)
from care_jax.rewards.verifiers.reading.sentences import stated_value
from care_jax.rewards.verifiers.reading.surds import holds_surd, read_surd
from care_jax.rewards.verifiers.reading.units import read_unit
from care_jax.rewards.verifiers.reading.wrapping import unwrap, unwrap_head
from care_jax.rewards.verifiers.verdict import AMBIGUOUS, UNPARSED, Verdict


class Quantity(NamedTuple):
    """A value and its unit in one spelling, "" if none was given. A percentage is the plain value with unit "%"."""

    value: Fraction
    unit: str
    slack: Fraction = Fraction(0)  # by how much the value may differ from another that it stands for


# A share of the value. Roots and pi are known to 50 digits, so two spellings of one number differ by less.
_ROUNDING = Fraction(1, 10**40)
_SIMPLE = re.compile(r"-?[0-9]+")
_LETTERS = r"(?:\\?[A-Za-z]{1,8}|\\(?:angle|widehat|overline|overarc|triangle)\s?\{?[A-Za-z\s]{1,9}\}?)"
_INDEX = r"(?:_[A-Za-z0-9]|_\{\s?(?:\\triangle\s?)?[A-Za-z0-9]{1,8}\s?\})?"
# What may stand before "=" for the value: x, m\angle ABC, S_{\triangle ABC}, m \widehat{AB}, f(x), |AB|, A:B, (p,q).
_NAME = re.compile(
    rf"(?!not?\b)(?:(?:m?\s?(?:\\angle|∠)\s?)?[A-Za-z][A-Za-z0-9]{{0,7}}{_INDEX}'?|(?:m\s?)?{_LETTERS}{_INDEX}"
    r"|[A-Za-z]\([A-Za-z0-9]{1,3}\)|\|[A-Za-z]{1,2}\||[A-Za-z]{1,2}\s?:\s?[A-Za-z]{1,2}"
    r"|\(\s?[A-Za-z]\s?(?:,\s?[A-Za-z]\s?){1,5}\))",
    re.IGNORECASE,
)
_RELATION = re.compile(r"=|≈|\\approx(?![A-Za-z])")
_CURRENCY = r"\\?\$|€|£"
_PREFIX = re.compile(rf"(?P<before>{_CURRENCY})?\s*(?P<sign>[-+])?\s*(?P<after>{_CURRENCY})?\s*")
_MINUS = str.maketrans("−–﹣－", "----")  # noqa: RUF001
_BRACKET_COMMAND = re.compile(r"\\(?:left|right)\s*(?=[()])")
_LOST_FRAC = re.compile(r"^(?=\{[0-9]{1,9}\}\{[0-9]{1,9}\})")
_DECIMALS = re.compile(r"\.([0-9]{2,9})(?![0-9])")
_GROUP_MARK = re.compile(r"\{,\}|(?<=[0-9])(?:\\[,;:! ]|[\u2009\u202f\u00a0])(?=[0-9]{3}(?![0-9]))")
_LONG_DECIMAL = re.compile(r"-?[0-9]*\.[0-9]{11,}")


@functools.lru_cache(maxsize=8192)
def read_quantity(text: str, *, fractions_allowed: bool) -> Quantity | None:
    r"""Return the one quantity that the whole text states, or None.

    It reads signs, thousands separators, decimals, 1.5e3, 1.5 \times 10^3, a name before ("x = 5"), a working that
    leads to its result ("24*24 = 576"), wrappers (unwrap) and units; with `fractions_allowed` also a/b, \frac{a}{b},
    4 1/2, 10^3, roots and pi. The result is None for everything else: no number, several, other words, a zero
    denominator.
    """
    if _SIMPLE.fullmatch(text):
        return Quantity(Fraction(int(text)), "")
    plain = _GROUP_MARK.sub(",", spell_out(text.translate(_MINUS)))
    plain = without_name(unwrap(plain))
    plain = _LOST_FRAC.sub(r"\\frac", _BRACKET_COMMAND.sub("", unwrap_head(plain)))
    quantity = _read_plain(plain, fractions_allowed=fractions_allowed)
    if quantity is None and plain.startswith("(") and plain.find(")") == len(plain) - 1:
        return _read_plain(plain[1:-1].strip(), fractions_allowed=fractions_allowed)
    return quantity or _read_working(plain, fractions_allowed=fractions_allowed)


def _read_plain(text: str, *, fractions_allowed: bool) -> Quantity | None:
    surd_allowed = fractions_allowed and holds_surd(text)
    if fractions_allowed and not surd_allowed:
        text = flatten_fractions(text)
    prefix = _PREFIX.match(text)
    assert prefix  # every part of it is optional
    number = _read_signed(text, prefix, fractions_allowed=fractions_allowed, surd_allowed=surd_allowed)
    if number is None:
        return None
    value, end = number
    units = [read_unit(prefix["before"] or ""), read_unit(prefix["after"] or ""), read_unit(text[end:])]
    if units[-1] is None or sum(bool(unit) for unit in units) > 1:
        return None
    # Eleven decimals are a computer's print of another number, 4/3 as 1.33333333333.
    is_print = _LONG_DECIMAL.fullmatch(text[:end].strip())
    slack = Fraction(2, 10 ** len(is_print[0].partition(".")[2])) if is_print else Fraction(0)
    return Quantity(value, next(filter(None, units), ""), slack)


def _read_signed(
    text: str, prefix: re.Match[str], *, fractions_allowed: bool, surd_allowed: bool
) -> tuple[Fraction, int] | None:
    negative = prefix["sign"] == "-"
    if surd_allowed:
        return read_surd(text, prefix.end(), negative=negative)
    number = read_rational(text, prefix.end(), fractions_allowed=fractions_allowed)
    return number and (-number[0] if negative else number[0], number[1])


def _read_working(text: str, *, fractions_allowed: bool) -> Quantity | None:
    r"""Return the result of "24*24 = 576" or "5\sqrt3 \approx 8.66", if both sides are one number; "4 = 5" is none."""
    sides = _RELATION.split(text)
    if len(sides) != 2:
        return None
    working, rounded = (unwrap(side).strip() for side in sides)
    negative = working.startswith("-")
    computed = read_surd(working, int(negative), negative=negative, computes=True)
    result = _read_plain(rounded, fractions_allowed=fractions_allowed)
    if result is None or computed is None or working[computed[1] :].strip():
        return None
    apart = abs(computed[0] - result.value)
    if "=" in text:
        return result if apart <= result.slack + abs(result.value) * _ROUNDING else None
    decimals = _DECIMALS.search(rounded)
    if NUMERAL.fullmatch(working) or not decimals or apart > Fraction(1, 2 * 10 ** len(decimals[1])):
        return None  # another number, not the same one rounded
    return Quantity(computed[0], result.unit, apart)


def without_name(text: str) -> str:
    """Strip "x =" if the left side is one name; "5 = 6" and "2x = 5" stay whole and will not be read."""
    relation = _RELATION.search(text)
    if not relation:
        return text
    left = unwrap(text[: relation.start()]).strip()
    return unwrap(text[relation.end() :]) if not left or _NAME.fullmatch(left) else text


def agree(found: Quantity, wanted: Quantity, tolerance: float) -> bool:
    """Return whether |found - wanted| <= tolerance * |wanted|; units are not compared.

    A percent sign on one side alone may be left out or mean hundredths: "50%" is 50 and 0.5.
    """
    if found.value == wanted.value:
        return True
    readings = [found.value]
    if found.unit != wanted.unit and "%" in (found.unit, wanted.unit):
        readings.append(found.value / 100 if found.unit == "%" else found.value * 100)
    allowed = _share(tolerance) * abs(wanted.value) + max(found.slack, wanted.slack)
    return any(abs(reading - wanted.value) <= allowed for reading in readings)


@functools.cache
def _share(tolerance: float) -> Fraction:
    # The decimal that was written, not its binary neighbour: with 3 % of 100, 103 is exactly at the tolerance.
    return Fraction(str(tolerance)) + _ROUNDING


def read_stated(text: str, *, fractions_allowed: bool) -> Quantity | None:
    """Return the quantity or ratio that the text is, or states in one sentence; None without.

    Args:
        text: the answer.
        fractions_allowed: as for `read_quantity`; ratios count as fractions.
    """
    found = _read_value(text, fractions_allowed=fractions_allowed)
    if found is None and (said := stated_value(text)):
        return _read_value(said, fractions_allowed=fractions_allowed)
    return found


def _read_value(text: str, *, fractions_allowed: bool) -> Quantity | None:
    quantity = read_quantity(text, fractions_allowed=fractions_allowed)
    return quantity or (read_ratio(text) if fractions_allowed else None)


def read_ratio(text: str) -> Quantity | None:
    """Return a ratio a:b of two numbers as the number a/b, or None."""
    sides = [read_quantity(side, fractions_allowed=True) for side in unwrap(text).split(":")]
    if len(sides) == 2 and sides[0] and sides[1] and sides[1].value:
        return Quantity(sides[0].value / sides[1].value, "")
    return None


def unread(text: str) -> Verdict:
    """Return the verdict on a text that `read_quantity` does not read."""
    return AMBIGUOUS if count_numbers(text) > 1 else UNPARSED
