r"""Reads one quantity, a number with at most one unit, from a short text; nothing is ever evaluated.

Units come from a closed list: with free words after the number, "5 or six", "5 thousand" and "5 factorial" would all
read as 5. Every pattern is linear in the text, and exponents have at most three digits, so no input is slow to read.
"""

from __future__ import annotations

import re
from fractions import Fraction
from typing import NamedTuple

from care_jax.verifiers.wrapping import unwrap, unwrap_head, without_command


class Quantity(NamedTuple):
    """A value and its unit in one spelling, "" where none was given. A percentage is the plain value with unit "%"."""

    value: Fraction
    unit: str


_SYNONYMS = {
    "°": r"º ^\circ ^{\circ} \degree ^\degree deg degs degree degrees",
    "°C": r"℃ °c ^\circC ^{\circ}C",
    "°F": r"℉ °f ^\circF ^{\circ}F",
    "%": r"\% percent",
    "$": r"\$ dollar dollars usd",
    "¢": "cent cents",
    "€": "euro euros eur",
    "£": "gbp",
    "unit": "units",
    "mm": "millimeter millimeters millimetre millimetres",
    "cm": "centimeter centimeters centimetre centimetres",
    "m": "meter meters metre metres",
    "km": "kilometer kilometers kilometre kilometres",
    "in": "inch inches",
    "ft": "foot feet",
    "yd": "yard yards",
    "mi": "mile miles",
    "mg": "milligram milligrams",
    "g": "gram grams",
    "kg": "kilogram kilograms",
    "lb": "lbs pound pounds",
    "oz": "ounce ounces",
    "mL": "ml milliliter milliliters millilitre millilitres",
    "L": "l liter liters litre litres",
    "s": "sec secs second seconds",
    "min": "mins minute minutes",
    "h": "hr hrs hour hours",
    "day": "days",
    "week": "weeks",
    "month": "months",
    "year": "years yr yrs",
    "rad": "radian radians",
    "m/s": "mps",
    "km/h": "kph kmh",
    "mi/h": "mph",
    "N": "newton newtons",
    "J": "joule joules",
    "W": "watt watts",
    "V": "volt volts",
    "Hz": "hertz",
}
_UNITS = {spelling: unit for unit, spellings in _SYNONYMS.items() for spelling in (unit, *spellings.split())}
_LENGTHS = frozenset(("mm", "cm", "m", "km", "in", "ft", "yd", "mi", "unit"))
_POWERS = {"²": "2", "^2": "2", "^{2}": "2", "³": "3", "^3": "3", "^{3}": "3"}
_POWER_WORDS = {"square": "2", "sq": "2", "sq.": "2", "cubic": "3"}

_PLAIN = r"(?:[0-9]{1,3}(?:,[0-9]{3})+(?![0-9])|[0-9]+)(?:\.[0-9]+)?|\.[0-9]+"
_NUMERAL = re.compile(_PLAIN)
_SIMPLE = re.compile(r"-?[0-9]+")
_EXPONENT = re.compile(
    r"[eE](?P<e>[-+]?[0-9]{1,3})(?![0-9])"
    r"|\s*(?:\\times|\\cdot|[×·*x])\s*10\s*\^\s*(?:\{\s*(?P<braced>[-+]?[0-9]{1,3})\s*\}|(?P<bare>[-+]?[0-9]{1,3})(?![0-9]))"
)
_DENOMINATOR = re.compile(rf"\s*/\s*(?P<below>{_PLAIN})")
_MIXED = re.compile(r"(?P<whole>[0-9]+)\s+(?P<above>[0-9]+)\s*/\s*(?P<below>[0-9]+)")
_FRAC = re.compile(
    rf"\\[dt]?frac\s*(?:\{{\s*(?P<above>-?(?:{_PLAIN}))\s*\}}|(?P<digit_above>[0-9]))"
    rf"\s*(?:\{{\s*(?P<below>{_PLAIN})\s*\}}|(?P<digit_below>[0-9]))"
)
_NAME = re.compile(
    r"(?!not?\b)(?:m?\s?(?:\\angle|∠)\s?)?[A-Za-z][A-Za-z0-9]{0,7}(?:_[A-Za-z0-9]|_\{[A-Za-z0-9]{1,8}\})?'?",
    re.IGNORECASE,
)
_RELATION = re.compile(r"=|≈|\\approx(?![A-Za-z])")
_CURRENCY = r"\\?\$|€|£"
_PREFIX = re.compile(rf"(?P<before>{_CURRENCY})?\s*(?P<sign>[-+])?\s*(?P<after>{_CURRENCY})?\s*")
_MINUS = str.maketrans("−–﹣－", "----")


def read_quantity(text: str, *, fractions_allowed: bool) -> Quantity | None:
    r"""Return the one quantity that the whole text says, or None.

    Read: signs, thousands separators, decimals, 1.5e3, 1.5 \times 10^3, a name before ("x = 5"), wrappers (unwrap)
    and units; with `fractions_allowed` also a/b, \frac{a}{b} and 4 1/2. None stands for everything else: no number,
    several, other words, a zero denominator.
    """
    if _SIMPLE.fullmatch(text):
        return Quantity(Fraction(int(text)), "")
    text = _without_name(unwrap(text.translate(_MINUS).replace("{,}", ",")))
    text = unwrap_head(text)
    if fractions_allowed:
        text = _FRAC.sub(_flat_fraction, text).strip()
    prefix = _PREFIX.match(text)
    number = prefix and _read_unsigned(text, prefix.end(), fractions_allowed)
    if not prefix or not number:
        return None
    value, end = number
    units = [_UNITS.get(prefix["before"]), _UNITS.get(prefix["after"]), read_unit(text[end:])]
    if units[-1] is None or sum(bool(unit) for unit in units) > 1:
        return None
    return Quantity(-value if prefix["sign"] == "-" else value, next(filter(None, units), ""))


def count_numbers(text: str) -> int:
    """Return how many different numbers the text holds, for the reason of a refusal."""
    return len({Fraction(numeral.replace(",", "")) for numeral in _NUMERAL.findall(text)})


def read_unit(text: str) -> str | None:
    r"""Return the unit in its one spelling ("cm^2" for "square cm"), "" for no text, None for no known unit."""
    text = without_command(text.strip())
    if not text:
        return ""
    power = ""
    for mark, exponent in _POWERS.items():
        if text.endswith(mark):
            text, power = without_command(text.removesuffix(mark).strip()), exponent
            break
    words = text.split()
    if len(words) == 2 and not power and words[0].casefold() in _POWER_WORDS:
        power, text = _POWER_WORDS[words[0].casefold()], words[1]
    # Short symbols keep their case: M is not m, and K or k would be thousands.
    unit = _UNITS.get(text if len(text) <= 2 else text.casefold()) or _UNITS.get(text.replace(" ", ""))
    if unit is None or (power and unit not in _LENGTHS):
        return None
    return f"{unit}^{power}" if power else unit


def _without_name(text: str) -> str:
    """Take "x =" off, where the left side is one name; "5 = 6" and "2x = 5" stay whole and will not be read."""
    relation = _RELATION.search(text)
    if not relation:
        return text
    left = unwrap(text[: relation.start()]).strip()
    return unwrap(text[relation.end() :]) if not left or _NAME.fullmatch(left) else text


def _flat_fraction(match: re.Match[str]) -> str:
    # The spaces keep a number before or after from running into the fraction's digits.
    return f" {match['above'] or match['digit_above']}/{match['below'] or match['digit_below']} "


def _read_unsigned(text: str, start: int, fractions_allowed: bool) -> tuple[Fraction, int] | None:
    """Return the number that begins at `start` and the index behind it."""
    if fractions_allowed and (mixed := _MIXED.match(text, start)):
        whole, above, below = (Fraction(mixed[part]) for part in ("whole", "above", "below"))
        return (whole + above / below, mixed.end()) if above < below else None
    numeral = _NUMERAL.match(text, start)
    if not numeral:
        return None
    value, end = Fraction(numeral[0].replace(",", "")), numeral.end()
    if exponent := _EXPONENT.match(text, end):
        power = int(exponent["e"] or exponent["braced"] or exponent["bare"])
        return value * Fraction(10) ** power, exponent.end()
    if fractions_allowed and (denominator := _DENOMINATOR.match(text, end)):
        below = Fraction(denominator["below"].replace(",", ""))
        return (value / below, denominator.end()) if below else None
    return value, end
