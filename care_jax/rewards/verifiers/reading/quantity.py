r"""Reads one quantity, a number with at most one unit, from a short text; nothing is ever evaluated."""

from __future__ import annotations

import re
from fractions import Fraction
from typing import NamedTuple

from care_jax.rewards.verifiers.reading.numerals import count_numbers, flatten_fractions, read_rational, spell_out
from care_jax.rewards.verifiers.reading.sentences import stated_number
from care_jax.rewards.verifiers.reading.surds import holds_surd, read_surd
from care_jax.rewards.verifiers.reading.units import read_unit
from care_jax.rewards.verifiers.reading.wrapping import unwrap, unwrap_head
from care_jax.rewards.verifiers.verdict import AMBIGUOUS, UNPARSED, Verdict


class Quantity(NamedTuple):
    """A value and its unit in one spelling, "" if none was given. A percentage is the plain value with unit "%"."""

    value: Fraction
    unit: str


_SIMPLE = re.compile(r"-?[0-9]+")
_NAME = re.compile(
    r"(?!not?\b)(?:m?\s?(?:\\angle|∠)\s?)?[A-Za-z][A-Za-z0-9]{0,7}(?:_[A-Za-z0-9]|_\{[A-Za-z0-9]{1,8}\})?'?",
    re.IGNORECASE,
)
_RELATION = re.compile(r"=|≈|\\approx(?![A-Za-z])")
_CURRENCY = r"\\?\$|€|£"
_PREFIX = re.compile(rf"(?P<before>{_CURRENCY})?\s*(?P<sign>[-+])?\s*(?P<after>{_CURRENCY})?\s*")
_MINUS = str.maketrans("−–﹣－", "----")  # noqa: RUF001


def read_quantity(text: str, *, fractions_allowed: bool) -> Quantity | None:
    r"""Return the one quantity that the whole text states, or None.

    It reads signs, thousands separators, decimals, 1.5e3, 1.5 \times 10^3, a name before ("x = 5"), wrappers (unwrap)
    and units; with `fractions_allowed` also a/b, \frac{a}{b}, 4 1/2, 10^3, roots and pi. The result is None for
    everything else: no number, several, other words, a zero denominator.
    """
    if _SIMPLE.fullmatch(text):
        return Quantity(Fraction(int(text)), "")
    text = without_name(unwrap(spell_out(text.translate(_MINUS)).replace("{,}", ",")))
    text = unwrap_head(text)
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
    return Quantity(value, next(filter(None, units), ""))


def _read_signed(
    text: str, prefix: re.Match[str], *, fractions_allowed: bool, surd_allowed: bool
) -> tuple[Fraction, int] | None:
    negative = prefix["sign"] == "-"
    if surd_allowed:
        return read_surd(text, prefix.end(), negative=negative)
    number = read_rational(text, prefix.end(), fractions_allowed=fractions_allowed)
    return number and (-number[0] if negative else number[0], number[1])


def without_name(text: str) -> str:
    """Strip "x =" if the left side is one name; "5 = 6" and "2x = 5" stay whole and will not be read."""
    relation = _RELATION.search(text)
    if not relation:
        return text
    left = unwrap(text[: relation.start()]).strip()
    return unwrap(text[relation.end() :]) if not left or _NAME.fullmatch(left) else text


def read_stated(text: str, *, fractions_allowed: bool) -> Quantity | None:
    """Return the quantity that the text is, as `read_quantity` does, or that it states in one sentence; None without."""
    quantity = read_quantity(text, fractions_allowed=fractions_allowed)
    if quantity is None and (stated := stated_number(text)):
        return read_quantity(stated, fractions_allowed=fractions_allowed)
    return quantity


def unread(text: str) -> Verdict:
    """Return the verdict on a text that `read_quantity` does not read."""
    return AMBIGUOUS if count_numbers(text) > 1 else UNPARSED
