"""The units that an answer may carry, each in one spelling.

The list is closed: with free words after the number, "5 or six", "5 thousand" and "5 factorial" would all read as 5.
"""

from __future__ import annotations

from care_jax.rewards.verifiers.reading.wrapping import without_command

_SYNONYMS = {
    "°": r"º ˚ ∘ ^\circ ^{\circ} \circ \degree ^\degree ^o ^{o} deg degs degree degrees {degrees}",
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


def read_unit(text: str) -> str | None:
    r"""Return the unit in its one spelling ("cm^2" for "square cm"), "" for an empty text, None for an unknown unit."""
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
