r"""One common spelling of LaTeX that looks the same, so that most right answers are recognised without mathematics."""

from __future__ import annotations

import functools
import re
import unicodedata

from care_jax.rewards.verifiers.reading.wrapping import unwrap

_UNICODE = str.maketrans(
    {
        "π": r"\pi ", "√": r"\sqrt ", "∞": r"\infty ", "≤": r"\leq ", "≥": r"\geq ", "≠": r"\neq ",
        "∪": r"\cup ", "∩": r"\cap ", "∈": r"\in ", "±": r"\pm ", "·": r"\cdot ", "×": r"\times ",  # noqa: RUF001
        "÷": r"\div ", "°": r"^{\circ}", "∠": r"\angle ", "△": r"\triangle ", "θ": r"\theta ",
        "α": r"\alpha ", "β": r"\beta ", "−": "-", "²": "^2", "³": "^3",  # noqa: RUF001
    }
)  # fmt: skip
_SPELLINGS = (
    (re.compile(r"\\(?:left|right|displaystyle|,|;|:|!)(?![A-Za-z])\.?"), " "),
    (re.compile(r"\\(?:text|mathrm|mathbf|mbox|textbf)\s*\{([^{}]*)\}"), r" \1 "),
    (re.compile(r"\\[dtc]frac(?![A-Za-z])"), r"\\frac"),
    (re.compile(r"<=|\\le(?![A-Za-z])|\\leqslant(?![A-Za-z])"), r"\\leq "),
    (re.compile(r">=|\\ge(?![A-Za-z])|\\geqslant(?![A-Za-z])"), r"\\geq "),
    (re.compile(r"!=|\\ne(?![A-Za-z])"), r"\\neq "),
    (re.compile(r"\\lt(?![A-Za-z])"), "<"),
    (re.compile(r"\\gt(?![A-Za-z])"), ">"),
    (re.compile(r"\\frac\s*([0-9])\s*([0-9])"), r"\\frac{\1}{\2}"),
    (re.compile(r"\\sqrt\s*([0-9A-Za-z])"), r"\\sqrt{\1}"),
    (re.compile(r"([_^])\s*\{\s*(\w)\s*\}"), r"\1\2"),
    # White space carries no meaning, but "5 6" is not 56, and "a b" in words is not "ab".
    (re.compile(r"\s+"), " "),
    (re.compile(r"(?<![0-9A-Za-z]) | (?![0-9A-Za-z])"), ""),
)  # fmt: skip


@functools.lru_cache(maxsize=4096)
def canonical(answer: str) -> str:
    r"""Return one common spelling of LaTeX that looks the same: \dfrac12 as \frac{1}{2}, no \left, no extra spaces."""
    text = unwrap(unicodedata.normalize("NFC", answer).translate(_UNICODE))
    for pattern, spelling in _SPELLINGS:
        text = pattern.sub(spelling, text)
    return text.strip()
