r"""Equality of two expressions of LaTeX: by their values at a few points, and where they have none, by math-verify.

math-verify takes words for products of letters ("listen" is "silent"), folds case (A is a), picks an expression out of
a sentence ("B. 35" is 35), takes the last side of "4 = 5", and computes expressions of any size, in 15 to 60 ms. So it
is asked only about two short texts that are one expression from end to end, with the same letters and equally many
relations and commas, if their values don't decide; and about a pair only once.
"""

from __future__ import annotations

import functools
import logging
import re
import types

from care_jax.rewards.verifiers.reading.evaluation import are_close, values

Values = tuple[complex, ...] | None  # of a part at each point; None if it has none

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
_SEPARATOR = re.compile(r"([,=<>]|\\(?:leq|geq|neq|in|cup|cap)(?![A-Za-z])|\\[{}])")
_MATHEMATICS = re.compile(r"[0-9\\\\+*/^=<>-]")
_BRACKETS = {"(": ")", "[": "]"}
_EXTREME = re.compile(r"[0-9]{7}|[0-9]\s*\^")  # floats can't tell x from x + x/10^{12}
_DOUBTFUL = re.compile(r"[0-9]{13}|(?<!_)[0-9] +[0-9]|\*\s*\*|\^\s*[0-9]{2}")  # read in more than one way, or huge


def is_safe(text: str) -> bool:
    """Return whether the text is one small expression and nothing else; letters alone are a word."""
    if len(text) > MAX_LEN or _TOKEN.sub("", text) or not _MATHEMATICS.search(text):
        return False
    if _WORD.search(text) or _DOUBTFUL.search(text):
        return False
    return _depth(text) <= MAX_DEPTH and all(_is_small(braced or bare) for braced, bare in _POWER.findall(text))


@functools.lru_cache(maxsize=4096)
def is_equal(given: str, gold: str) -> bool:
    """Return whether two safe texts are equal. It may take long: call it in a process that can be killed."""
    if _letters(given) != _letters(gold) or _shape(given) != _shape(gold):
        return False
    by_values = _equal_by_values(given, gold)
    if by_values is not None:
        return by_values
    verifier = load()
    # The worker's parent keeps the time; math-verify's own alarm is for the main thread alone.
    expressions = [verifier.parse(f"${text}$", parsing_timeout=None) for text in (gold, given)]
    return all(expressions) and verifier.verify(*expressions, float_rounding=12, timeout_seconds=None)


def load() -> types.ModuleType:
    """Return the module math_verify, which takes a second or more to import."""
    import math_verify

    logging.getLogger("math_verify").setLevel(logging.ERROR)  # it warns at every call without its alarm
    return math_verify


def _equal_by_values(given: str, gold: str) -> bool | None:
    """Return whether the values of the parts make two expressions equal or different; None if they don't decide."""
    if _EXTREME.search(given) or _EXTREME.search(gold):
        return None
    pieces, others = gold.split(r"\cup"), given.split(r"\cup")
    if len(pieces) == len(others) > 1 and all(any(_equal_by_values(x, y) for y in others) for x in pieces):
        return True if len(set(pieces)) == len(pieces) else None
    (marks, found), (gold_marks, wanted) = _parts(given), _parts(gold)
    if len(found) != len(wanted) or None in found or None in wanted:
        return None
    if marks == gold_marks and all(map(_are_equal, found, wanted)):
        return True
    is_equation = marks == gold_marks == ["="]
    if not _are_permuted([part and part[:-1] for part in found], [part and part[:-1] for part in wanted]):
        # The sides of a relation may be moved or multiplied; one of a single letter is to be solved.
        if len(found) != 2 or not _RELATION.search(gold) or not _are_proportional(found, wanted):
            return False
        return len(_letters(gold)) > 1 if is_equation else None
    if not _are_permuted(found, wanted):
        return None  # at the last point letters are negative, and roots of squares differ
    is_set = marks == gold_marks == [r"\{", *[","] * (len(found) - 1), r"\}"]
    if is_equation or is_set:
        return True
    return False if set(marks + gold_marks) <= set("()[],") else None


def _are_permuted(found: list[Values], wanted: list[Values]) -> bool:
    """Return whether the parts are the same ones in any order."""
    left = list(found)
    for part in wanted:
        match = next((index for index, other in enumerate(left) if _are_equal(other, part)), None)
        if match is None:
            return False
        del left[match]
    return True


def _are_equal(one: Values, other: Values) -> bool:
    return one is not None and other is not None and all(map(are_close, one, other))


def _are_proportional(found: list[Values], wanted: list[Values]) -> bool:
    """Return whether the differences of two sides keep one ratio at all points."""
    above, below = (
        [left - right for left, right in zip(parts[0] or (), parts[1] or (), strict=True)] for parts in (found, wanted)
    )
    if are_close(above[0] + 1, 1) or are_close(below[0] + 1, 1):
        return False  # an identity, "x + y = y + x", holds everywhere
    return all(are_close(above[0] * other, one * below[0]) for one, other in zip(above, below, strict=True))


def _parts(text: str) -> tuple[list[str], list[Values]]:
    """Return the marks that make a tuple, set, interval or relation of its parts, and the values of each part."""
    pieces = _SEPARATOR.split(text)
    marks, parts = [], []
    for separator, piece in zip(["", *pieces[1::2]], pieces[::2], strict=True):
        inside = piece.strip()
        while inside[:1] in _BRACKETS and inside.count(inside[0]) > inside.count(_BRACKETS[inside[0]]):
            inside = inside[1:]
        while inside[-1:] in _BRACKETS.values() and _lacks_opening(inside):
            inside = inside[:-1]
        before, _, behind = piece.partition(inside) if inside else (piece, "", "")
        marks += [separator, before.strip(), behind.strip()]
        parts += [values(inside)] if inside else []
    return [mark for mark in marks if mark], parts


def _lacks_opening(text: str) -> bool:
    opening = next(opening for opening, closing in _BRACKETS.items() if closing == text[-1])
    return text.count(text[-1]) > text.count(opening)


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
