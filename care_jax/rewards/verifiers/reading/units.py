"""The units that an answer may carry, each in one spelling.

The list is closed: with free words after the number, "5 or six", "5 thousand" and "5 factorial" would all read as 5.
"""

from __future__ import annotations

from care_jax.rewards.verifiers.reading.wrapping import without_command

_SYNONYMS = {
    "°": r"º ˚ ∘ ^\circ ^{\circ} \circ \degree ^\degree *\degree ^o ^{o} deg degs degree degrees {degrees} "
    r"度 ^\circT °T",
    "°C": r"℃ °c ^\circC ^{\circ}C degreescelsius degreecelsius celsius 摄氏度",
    "°F": r"℉ °f ^\circF ^{\circ}F degreesfahrenheit fahrenheit",
    "%": r"\% percent",
    "$": r"\$ dollar dollars usd",
    "¢": "cent cents",
    "€": "euro euros eur",
    "£": "gbp",
    "unit": "units",
    "mm": "millimeter millimeters millimetre millimetres 毫米",
    "cm": "centimeter centimeters centimetre centimetres 厘米",
    "m": "meter meters metre metres 米",
    "km": "kilometer kilometers kilometre kilometres 千米 公里",
    "in": "inch inches",
    "ft": "foot feet",
    "yd": "yard yards",
    "mi": "mile miles",
    "nmi": "nauticalmile nauticalmiles 海里",
    "mg": "milligram milligrams",
    "g": "gram grams 克",
    "kg": "kilogram kilograms 千克 公斤",
    "lb": "lbs pound pounds",
    "oz": "ounce ounces",
    "mL": "ml milliliter milliliters millilitre millilitres",
    "L": "l liter liters litre litres",
    "s": "sec secs second seconds 秒",
    "min": "mins minute minutes 分钟",
    "h": "hr hrs hour hours 小时",
    "day": "days 天",
    "week": "weeks",
    "month": "months",
    "year": "years yr yrs 年 岁",
    "rad": "radian radians",
    "m/s": "mps",
    "km/h": "kph kmh",
    "mi/h": "mph",
    "N": "newton newtons",
    "J": "joule joules",
    "W": "watt watts",
    "V": "volt volts",
    "Hz": "hertz",
    "kN": "kilonewton kilonewtons",
    "kJ": "kilojoule kilojoules",
    "kW": "kilowatt kilowatts",
    "MW": "megawatt megawatts",
    "mV": "millivolt millivolts",
    "amp": "ampere amperes amps",
    "mA": "milliampere milliamperes",
    "kHz": "kilohertz",
    "MHz": "megahertz",
    "Pa": "pascal pascals",
    "kPa": "kilopascal kilopascals",
    "MPa": "megapascal megapascals",
    "Ω": r"ohm ohms \Omega",
    "mol": "mole moles",
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
    spelling = text.replace(" ", "")
    unit = _UNITS.get(text) or _UNITS.get(spelling) or (_UNITS.get(spelling.casefold()) if len(text) > 2 else None)
    if unit is None or (power and unit not in _LENGTHS):
        return None
    return f"{unit}^{power}" if power else unit
