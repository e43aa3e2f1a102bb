r"""math-verify as a second opinion on two expressions of LaTeX, and the limits within which it is used.

It takes words for products of letters ("listen" is "silent"), folds case (A is a), picks an expression out of a
sentence ("B. 35" is 35), takes the last side of "4 = 5", and computes expressions of any size. So it is used only on
two short texts that are one expression from end to end, with the same letters and equally many relations and commas.
"""

from __future__ import annotations

import logging
import re
import types

MAX_LEN = 120  # characters
MAX_DEPTH = 5  # brackets within brackets
MAX_EXPONENT = 20
_COMMANDS = (
    "frac sqrt pi cdot times div pm mp sin cos tan cot sec csc arcsin arccos arctan log ln exp infty cup cap in "
    "leq geq neq alpha beta gamma delta theta lambda mu phi omega circ angle"
)
_TOKEN = re.compile(
    rf"\\(?:{'|'.join(_COMMANDS.split())})(?![A-Za-z])|\\[{{}}]|[0-9]+(?:\.[0-9]+)?|[A-Za-z]|[-+*/^_=<>|,()\[\]{{}} ]"
)
_WORD = re.compile(r"(?<![\\A-Za-z])[A-Za-z]{2,}(?= )|(?<= )[A-Za-z]{2,}|(?<![\\A-Za-z])[A-Za-z]{4,}")
_COMMAND = re.compile(r"\\[A-Za-z]+")
_POWER = re.compile(r"\^\s*(?:\{([^{}]*)\}|(.))")
_RELATION = re.compile(r"[=<>]|\\(?:leq|geq|neq|in)(?![A-Za-z])")
_MATHEMATICS = re.compile(r"[0-9\\\\+*/^=<>-]")
_DOUBTFUL = re.compile(r"[0-9]{13}|(?<!_)[0-9] +[0-9]|\*\s*\*|\^\s*[0-9]{2}")  # read in more than one way, or huge


def is_safe(text: str) -> bool:
    """Return whether the text is one small expression and nothing else; letters alone are a word."""
    if len(text) > MAX_LEN or _TOKEN.sub("", text) or not _MATHEMATICS.search(text):
        return False
    if _WORD.search(text) or _DOUBTFUL.search(text):
        return False
    return _depth(text) <= MAX_DEPTH and all(_is_small(braced or bare) for braced, bare in _POWER.findall(text))


def is_equal(given: str, gold: str) -> bool:
    """Return math-verify's judgement on two safe texts. It may take long: call it in a process that can be killed."""
    if _letters(given) != _letters(gold) or _shape(given) != _shape(gold):
        return False
    verifier = load()
    # The worker's parent keeps the time; math-verify's own alarm is for the main thread alone.
    expressions = [verifier.parse(f"${text}$", parsing_timeout=None) for text in (gold, given)]
    return all(expressions) and verifier.verify(*expressions, float_rounding=12, timeout_seconds=None)


def load() -> types.ModuleType:
    """Return the module math_verify, which takes a second or more to import."""
    import math_verify

    logging.getLogger("math_verify").setLevel(logging.ERROR)  # it warns at every call without its alarm
    return math_verify


def _depth(text: str) -> int:
    depth = deepest = 0
    for character in text:
        depth += (character in "([{") - (character in ")]}")
        deepest = max(deepest, depth)
    return deepest


def _is_small(exponent: str) -> bool:
    return (
        "^" not in exponent
        and exponent != "{"
        and all(int(digits) <= MAX_EXPONENT for digits in re.findall("[0-9]+", exponent))
    )


def _letters(text: str) -> set[str]:
    return set(re.findall("[A-Za-z]", _COMMAND.sub("", text)))


def _shape(text: str) -> tuple[int, int]:
    return len(_RELATION.findall(text)), text.count(",")
