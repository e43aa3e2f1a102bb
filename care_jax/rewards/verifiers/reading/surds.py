r"""Reads numbers with roots and pi, such as 5\sqrt{3}/2, \frac{\pi}{6} or 3 + 2\sqrt{5}, to 50 digits.

    sum      = product (+- product)*            at most one product is rational
    product  = factor (times? factor)* (/ factor)?    at most one factor is rational
    factor   = (numeral | root | pi | \frac{sum}{sum} | (sum) | {sum}) (^{1/n})?

The limits on rationals refuse answers that only repeat the question: "17 * 23" and "3 + 4" are not read. Values are
fractions of whole numbers, so nothing overflows; brackets are at most MAX_DEPTH deep.
"""

from __future__ import annotations

import math
import re
from fractions import Fraction
from typing import NamedTuple

from care_jax.rewards.verifiers.reading.numerals import NUMERAL, to_fraction

MAX_DEPTH = 6
_SCALE = 10**50  # irrational numbers are known to its digits
_PI = Fraction("3.14159265358979323846264338327950288419716939937511")
_MARKS = re.compile(
    r"\\sqrt|√|(?<![A-Za-z])sqrt(?=\s*\()|\\pi(?![A-Za-z])|π|(?<![A-Za-z\\])pi(?![A-Za-z])|\^\s*[{(]\s*1\s*/"
)
_ROOT = re.compile(r"\\sqrt\s*(?:\[\s*(?P<index>[234])\s*\]\s*)?|√\s*|sqrt\s*")
_SYMBOL = re.compile(r"\\pi(?![A-Za-z])|π|pi(?![A-Za-z])")
_FRAC = re.compile(r"\\[dtc]?frac\s*")
_ROOT_POWER = re.compile(r"\s*\^\s*(?:\{\s*1\s*/\s*([234])\s*\}|\(\s*1\s*/\s*([234])\s*\))")
_DIGIT = re.compile(r"[0-9]")
_LONE_DIGIT = re.compile(r"[0-9](?![0-9])")  # \sqrt12 is \sqrt{1}2 in LaTeX, but \sqrt{12} to its writer
_TIMES = re.compile(r"\s*(?:\\cdot(?![A-Za-z])|\\times(?![A-Za-z])|[*·×])\s*")  # noqa: RUF001
_OVER = re.compile(r"\s*/\s*")
_SIGN = re.compile(r"\s*([-+])\s*")
_SPACE = re.compile(r"\s*")
_CLOSING = {"(": ")", "{": "}"}


class _Value(NamedTuple):
    number: Fraction
    rational: bool


class _UnreadableError(Exception):
    """The text is not a number of this grammar."""


def holds_surd(text: str) -> bool:
    """Return whether the text mentions a root or pi."""
    return _MARKS.search(text) is not None


def read_surd(text: str, start: int, *, negative: bool, computes: bool = False) -> tuple[Fraction, int] | None:
    """Return the number that begins at `start` and the index behind it.

    Args:
        text: the text that holds the number.
        start: the index of its first character.
        negative: a minus precedes it.
        computes: read arithmetic such as "17 * 23" and "3 + 4" too.
    """
    reader = _Reader(text, start, computes=computes)
    try:
        return reader.read_sum(negative).number, reader.position
    except _UnreadableError:
        return None


class _Reader:
    """A recursive-descent reader of one text."""

    def __init__(self, text: str, start: int, *, computes: bool) -> None:
        """Begin reading at `start`; `computes` lifts the limits on rationals."""
        self._text, self.position, self._depth, self._computes = text, start, 0, computes

    def read_sum(self, negative: bool) -> _Value:
        """Read products and signs as far as they go; `negative` is the sign of the first one."""
        products: list[_Value] = []
        while True:
            product = self._read_product()
            products.append(_Value(-product.number if negative else product.number, product.rational))
            sign = self._take(_SIGN)
            if not sign:
                break
            negative = sign[1] == "-"
        if sum(product.rational for product in products) > 1 and not self._computes:
            raise _UnreadableError
        return _Value(sum((p.number for p in products), Fraction(0)), len(products) == 1 and products[0].rational)

    def _read_product(self) -> _Value:
        value = self._read_factor()
        while self._take(_TIMES) or self._at_symbol():
            factor = self._read_factor()
            if value.rational and factor.rational and not self._computes:
                raise _UnreadableError
            value = _Value(value.number * factor.number, False)
        if self._take(_OVER):
            value = _quotient(value, self._read_factor())
            if self._at_symbol():
                raise _UnreadableError  # 1/2\pi: is pi above or below?
        return value

    def _at_symbol(self) -> bool:
        """Return whether a factor follows without a sign; numerals do not count here, for "√3 5" is two numbers."""
        self._take(_SPACE)
        rest = self._text[self.position : self.position + 1]
        return rest in _CLOSING or any(p.match(self._text, self.position) for p in (_ROOT, _SYMBOL, _FRAC))

    def _read_factor(self) -> _Value:
        value = self._read_base()
        power = self._take(_ROOT_POWER)
        return _root(value, int(power[1] or power[2])) if power else value

    def _read_base(self) -> _Value:
        if numeral := self._take(NUMERAL):
            return _Value(to_fraction(numeral[0]), True)
        if self._take(_SYMBOL):
            return _Value(_PI, False)
        if root := self._take(_ROOT):
            bare = NUMERAL if root[0].startswith("√") else _LONE_DIGIT
            return _root(self._read_argument(bare), int(root["index"] or 2))
        if self._take(_FRAC):
            return _quotient(self._read_argument(_DIGIT), self._read_argument(_DIGIT))
        return self._read_group()

    def _read_argument(self, bare: re.Pattern[str]) -> _Value:
        """Read the argument of a command: a group, or a numeral of the form that is allowed without braces."""
        self._take(_SPACE)
        if numeral := self._take(bare):
            return _Value(to_fraction(numeral[0]), True)
        return self._read_group()

    def _read_group(self) -> _Value:
        closing = _CLOSING.get(self._text[self.position : self.position + 1])
        if closing is None or self._depth == MAX_DEPTH:
            raise _UnreadableError
        self.position += 1
        self._depth += 1
        self._take(_SPACE)
        sign = self._take(_SIGN)
        value = self.read_sum(negative=sign is not None and sign[1] == "-")
        self._take(_SPACE)
        if self._text[self.position : self.position + 1] != closing:
            raise _UnreadableError
        self.position += 1
        self._depth -= 1
        return value

    def _take(self, pattern: re.Pattern[str]) -> re.Match[str] | None:
        match = pattern.match(self._text, self.position)
        if match:
            self.position = match.end()
        return match


def _quotient(above: _Value, below: _Value) -> _Value:
    if below.number == 0:
        raise _UnreadableError
    return _Value(above.number / below.number, above.rational and below.rational)


def _root(value: _Value, index: int) -> _Value:
    """Return the root, exact if it is rational; (a/b)^(1/n) = (a b^(n-1))^(1/n) / b."""
    if value.number < 0:
        raise _UnreadableError
    above, below = value.number.numerator, value.number.denominator
    radicand = above * below ** (index - 1)
    return _Value(Fraction(_whole_root(radicand * _SCALE**index, index), below * _SCALE), False)


def _whole_root(number: int, index: int) -> int:
    """Return the largest whole number whose `index`-th power is not above `number` (Newton's method from above)."""
    if index == 2:
        return math.isqrt(number)
    guess = 1 << -(-number.bit_length() // index)
    while True:
        closer = ((index - 1) * guess + number // guess ** (index - 1)) // index
        if closer >= guess:
            return guess
        guess = closer
