r"""Answers that are LaTeX: numbers, expressions, equations, intervals; compared exactly.

A gold that our own grammar reads as a number is compared as one, and the answer must then be a number too:
"17 \cdot 23" does not answer a product. Otherwise the spellings are compared, and if they differ, math-verify decides,
provided that both sides are expressions it can be trusted with (`symbolic.is_safe`).
"""

from __future__ import annotations

import re
import unicodedata

from care_jax.errors import InputError
from care_jax.rewards.verifiers import number, symbolic
from care_jax.rewards.verifiers.reading.quantity import without_name
from care_jax.rewards.verifiers.reading.wrapping import unwrap
from care_jax.rewards.verifiers.verdict import CORRECT, MAX_ANSWER_LEN, UNPARSED, WRONG, Verdict, refusal

_UNICODE = str.maketrans(
    {
        "π": r"\pi ", "√": r"\sqrt ", "∞": r"\infty ", "≤": r"\leq ", "≥": r"\geq ", "≠": r"\neq ",
        "∪": r"\cup ", "∩": r"\cap ", "∈": r"\in ", "±": r"\pm ", "·": r"\cdot ", "×": r"\times ",  # noqa: RUF001
        "÷": r"\div ", "°": r"^{\circ}", "∠": r"\angle ", "θ": r"\theta ", "α": r"\alpha ",  # noqa: RUF001
        "β": r"\beta ", "−": "-", "²": "^2", "³": "^3",  # noqa: RUF001
    }
)  # fmt: skip
_SPELLINGS = (
    (re.compile(r"\\(?:left|right|displaystyle|,|;|:|!)(?![A-Za-z])\.?"), " "),
    (re.compile(r"\\(?:text|mathrm|mathbf|mbox|textbf)\s*\{([^{}]*)\}"), r" \1 "),
    (re.compile(r"\\[dtc]frac(?![A-Za-z])"), r"\\frac"),
    (re.compile(r"\\le(?![A-Za-z])"), r"\\leq"),
    (re.compile(r"\\ge(?![A-Za-z])"), r"\\geq"),
    (re.compile(r"\\frac\s*([0-9])\s*([0-9])"), r"\\frac{\1}{\2}"),
    (re.compile(r"\\sqrt\s*([0-9A-Za-z])"), r"\\sqrt{\1}"),
    (re.compile(r"([_^])\s*\{\s*(\w)\s*\}"), r"\1\2"),
    # White space carries no meaning, but "5 6" is not 56, and "a b" in words is not "ab".
    (re.compile(r"(?<![0-9A-Za-z])\s+|\s+(?![0-9A-Za-z])"), ""),
    (re.compile(r"\s+"), " "),
)  # fmt: skip


def verify(given: str, gold: str) -> Verdict:
    """Compare an answer with the gold.

    Raises:
        InputError: the gold is empty or too long.
    """
    refused = refusal(gold)
    if refused:
        raise InputError(
            f"the gold {gold[:80]!r} is {refused.reason}; a LaTeX gold has 1 to {MAX_ANSWER_LEN} characters"
        )
    refused = refusal(given)
    if refused:
        return refused
    if number.read_number(gold):
        return number.verify(given, gold, tolerance=0.0)
    if len(given.strip().splitlines()) > 1:
        return UNPARSED  # two lines are two expressions, which would run together into a product
    found, wanted = canonical(given), canonical(gold)
    if ("=" in found) != ("=" in wanted):
        found, wanted = without_name(found), without_name(wanted)
    if found == wanted:
        return CORRECT
    if not symbolic.is_safe(found):
        return UNPARSED
    return CORRECT if symbolic.is_safe(wanted) and symbolic.is_equal(found, wanted) else WRONG


def canonical(answer: str) -> str:
    r"""Return one common spelling of LaTeX that looks the same: \dfrac12 as \frac{1}{2}, no \left, no extra spaces."""
    text = unwrap(unicodedata.normalize("NFC", answer).translate(_UNICODE))
    for pattern, spelling in _SPELLINGS:
        text = pattern.sub(spelling, text)
    return text.strip()
