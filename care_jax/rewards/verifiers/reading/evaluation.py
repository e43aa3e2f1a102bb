r"""Values of a LaTeX expression at a few fixed points, which tell different expressions apart in microseconds.

    expression = term (+- term)*
    term       = factor (times? factor | / factor)*
    factor     = base (^ argument)?
    base       = number | letter | pi | (expression) | {expression} | \frac.. | \sqrt.. | function argument

Letters stand for complex numbers, e and i for their own. What the grammar does not hold (\pm, degrees, unions) has no
value, and is left to others. Values are floats: nothing is large, exponents are limited by `symbolic.is_safe`.
"""

from __future__ import annotations

import cmath
import functools
import re
from collections.abc import Callable

_TOKEN = re.compile(r"\s*(\\[A-Za-z]+|\d+(?:\.\d+)?|[A-Za-z](?:_(?:\w|\{\w+\}))?|\S)")
_LETTER = re.compile(r"[A-Za-z]")
_FUNCTIONS: dict[str, Callable[[complex], complex]] = {
    r"\sin": cmath.sin, r"\cos": cmath.cos, r"\tan": cmath.tan, r"\ln": cmath.log, r"\log": cmath.log10,
    r"\exp": cmath.exp, r"\arcsin": cmath.asin, r"\arccos": cmath.acos, r"\arctan": cmath.atan,
    r"\cot": lambda x: 1 / cmath.tan(x), r"\sec": lambda x: 1 / cmath.cos(x), r"\csc": lambda x: 1 / cmath.sin(x),
}  # fmt: skip
_GREEK = (r"\alpha", r"\beta", r"\gamma", r"\delta", r"\theta", r"\lambda", r"\mu", r"\phi", r"\omega")
_CONSTANTS = {"e": cmath.e, "i": 1j, r"\pi": cmath.pi, r"\infty": 9.87654321e30}
_TIMES = ("*", r"\cdot", r"\times")
_OVER = ("/", r"\div")
_CLOSING = {"(": ")", "{": "}", "[": "]"}
NUM_POINTS = 3  # the last one has negative letters, where roots of squares differ


class _NoValueError(Exception):
    """The text is no expression of this grammar."""


@functools.lru_cache(maxsize=4096)
def values(text: str) -> tuple[complex, ...] | None:
    """Return the values of an expression at each point, or None if it has none there."""
    tokens = tuple(_TOKEN.findall(text))
    try:
        return tuple(_Reader(tokens, point).read() for point in range(NUM_POINTS))
    except (_NoValueError, ArithmeticError, ValueError):
        return None


def are_close(one: complex, other: complex) -> bool:
    """Return whether two values are equal up to rounding."""
    return abs(one - other) <= 1e-11 * max(abs(one), abs(other), 1e-3)


def _letter(name: str, point: int) -> complex:
    """Return a letter's value: irrational, between 0.3 and 1.7, and negative at the last point."""
    size = 0.3 + 1.4 * (
        (sum(ord(c) * 31**i for i, c in enumerate(name)) * 0.6180339887498949 + point * 0.414213562) % 1
    )
    return -size if point == NUM_POINTS - 1 else size


class _Reader:
    """A recursive-descent reader of one expression at one point."""

    def __init__(self, tokens: tuple[str, ...], point: int) -> None:
        """Begin at the first token."""
        self._tokens, self._point, self._position = tokens, point, 0

    def read(self) -> complex:
        """Return the value of the whole text."""
        value = self._read_sum()
        if self._next():
            raise _NoValueError
        return value

    def _next(self) -> str:
        return self._tokens[self._position] if self._position < len(self._tokens) else ""

    def _take(self, *tokens: str) -> str:
        token = self._next()
        if token not in tokens:
            return ""
        self._position += 1
        return token

    def _read_sum(self) -> complex:
        sign = self._take("+", "-")
        value = -self._read_term() if sign == "-" else self._read_term()
        while sign := self._take("+", "-"):
            term = self._read_term()
            value += -term if sign == "-" else term
        return value

    def _read_term(self, *, functions: bool = True) -> complex:
        """Read factors; those of a function's argument without brackets end at the next function."""
        value = self._read_factor()
        while True:
            if self._take(*_OVER):
                value /= self._read_factor()
            elif self._take(*_TIMES) or self._starts_factor(functions=functions):
                value *= self._read_factor()
            else:
                return value

    def _starts_factor(self, *, functions: bool) -> bool:
        token = self._next()
        if token in _FUNCTIONS:
            return functions
        return (
            token in _CLOSING
            or token in _GREEK
            or token in (r"\pi", r"\infty", r"\frac", r"\sqrt")
            or token[:1].isalnum()
        )

    def _read_factor(self) -> complex:
        value = self._read_base()
        return value ** self._read_argument() if self._take("^") else value

    def _read_base(self) -> complex:
        token = self._next()
        if token in _CLOSING:
            return self._read_group()
        self._position += 1
        if token in _CONSTANTS:
            return _CONSTANTS[token]
        if token in _GREEK or (token and _LETTER.match(token)):
            return _letter(token, self._point)
        if token[:1].isdigit():
            return complex(float(token))
        if token == r"\frac":
            return self._read_argument() / self._read_argument()
        if token == r"\sqrt":
            index = self._read_group() if self._next() == "[" else 2
            return self._read_argument() ** (1 / index)
        if token in _FUNCTIONS:
            return self._read_function(token)
        raise _NoValueError

    def _read_function(self, name: str) -> complex:
        base = self._read_argument() if name == r"\log" and self._take("_") else None
        power = self._read_argument() if self._take("^") else 1
        argument = self._read_group() if self._next() in _CLOSING else self._read_term(functions=False)
        value = cmath.log(argument) / cmath.log(base) if base is not None else _FUNCTIONS[name](argument)
        return value**power

    def _read_argument(self) -> complex:
        """Read a group, or one digit, letter or command, as LaTeX does."""
        token = self._next()
        if token.isdigit() and len(token) > 1:
            raise _NoValueError  # ^12 is read in more than one way
        return -self._read_argument() if self._take("-") else self._read_base()

    def _read_group(self) -> complex:
        closing = _CLOSING[self._next()]
        self._position += 1
        value = self._read_sum()
        if not self._take(closing):
            raise _NoValueError
        return value
