r"""Reads rational numbers as they are written: 1,234.5, 1.5 \times 10^3, 3/4, \frac{3}{4}, 4 1/2.

Every pattern is linear in the text, and exponents have at most three digits, so no input is slow to read.
"""

from __future__ import annotations

import re
import unicodedata
from fractions import Fraction

# Groups of three may stand apart too: "1 234 567" and "10 000", but "100 200" may be two numbers.
_GROUPED = r"[0-9]{1,3}(?:(?:,[0-9]{3})+| 000| [0-9]{3}(?: [0-9]{3})+)(?![0-9])"
PLAIN = rf"(?:{_GROUPED}|[0-9]+)(?:\.[0-9]+)?|\.[0-9]+"
NUMERAL = re.compile(PLAIN)
_POWER_OF_TEN = r"10\s*(?:\^|\*\*)\s*(?:[{(]\s*(?P<braced>[-+]?[0-9]{1,3})\s*[})]|(?P<bare>[-+]?[0-9]{1,3})(?![0-9]))"
_BARE_POWER = re.compile(_POWER_OF_TEN)
_EXPONENT = re.compile(
    rf"[eE](?P<e>[-+]?[0-9]{{1,3}})(?![0-9])|\s*(?:\\times|\\cdot|[×·*x])\s*{_POWER_OF_TEN}"  # noqa: RUF001
)
_DENOMINATOR = re.compile(rf"\s*/\s*(?P<below>{PLAIN})")
_MIXED = re.compile(r"(?P<whole>[0-9]+)\s+(?P<above>[0-9]+)\s*/\s*(?P<below>[0-9]+)")
_FRAC = re.compile(
    rf"\\[dtc]?frac\s*(?:\{{\s*(?P<above>-?(?:{PLAIN}))\s*\}}|(?P<digit_above>[0-9]))"
    rf"\s*(?:\{{\s*(?P<below>{PLAIN})\s*\}}|(?P<digit_below>[0-9]))"
)
_RAISED = re.compile("(?<=10)[⁰¹²³⁴⁵⁶⁷⁸⁹⁻]+")
_VULGAR = re.compile("[¼½¾⅐-⅞]")


def read_rational(text: str, start: int, *, fractions_allowed: bool) -> tuple[Fraction, int] | None:
    """Return the unsigned number that begins at `start` and the index behind it; None if there is none."""
    if fractions_allowed and (mixed := _MIXED.match(text, start)):
        whole, above, below = (Fraction(mixed[part]) for part in ("whole", "above", "below"))
        return (whole + above / below, mixed.end()) if above < below else None
    if fractions_allowed and (power := _BARE_POWER.match(text, start)):
        return _power_of_ten(power), power.end()
    numeral = NUMERAL.match(text, start)
    if not numeral:
        return None
    value, end = to_fraction(numeral[0]), numeral.end()
    if exponent := _EXPONENT.match(text, end):
        return value * _power_of_ten(exponent), exponent.end()
    if fractions_allowed and (denominator := _DENOMINATOR.match(text, end)):
        below = to_fraction(denominator["below"])
        return (value / below, denominator.end()) if below else None
    return value, end


def to_fraction(numeral: str) -> Fraction:
    """Return the value of a text that PLAIN matches."""
    return Fraction(numeral.replace(",", "").replace(" ", ""))


def count_numbers(text: str) -> int:
    """Return how many different numbers the text holds, for the reason of a refusal."""
    return len({to_fraction(numeral) for numeral in NUMERAL.findall(text)})


def flatten_fractions(text: str) -> str:
    r"""Return the text with each \frac of two plain numbers as a/b."""
    # The spaces keep a number before or after from running into the fraction's digits.
    return _FRAC.sub(lambda f: f" {f['above'] or f['digit_above']}/{f['below'] or f['digit_below']} ", text).strip()


def spell_out(text: str) -> str:
    """Return the text with vulgar fractions and raised powers of ten in ASCII: "4½" as "4 1/2", "10⁻³" as "10^{-3}"."""
    if text.isascii():
        return text
    text = _VULGAR.sub(lambda sign: f" {unicodedata.normalize('NFKC', sign[0]).replace('⁄', '/')} ", text)  # noqa: RUF001
    raised = _RAISED.sub(lambda power: f"^{{{unicodedata.normalize('NFKC', power[0])}}}", text)
    return raised.replace("−", "-")  # noqa: RUF001


def _power_of_ten(match: re.Match[str]) -> Fraction:
    parts = match.groupdict()
    return Fraction(10) ** int(parts.get("e") or parts["braced"] or parts["bare"])
