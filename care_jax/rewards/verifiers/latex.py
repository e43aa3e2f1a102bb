r"""Answers that are LaTeX: numbers, expressions, equations, intervals; compared exactly.

A gold that our own grammar reads as a number is compared as one, and the answer must then be a number too:
"17 \cdot 23" does not answer a product. Otherwise the spellings are compared, and if they differ, math-verify decides,
provided that both sides are expressions it can be trusted with (`symbolic.is_safe`).
"""

from __future__ import annotations

import re

from care_jax.errors import InputError
from care_jax.rewards.verifiers import number, symbolic
from care_jax.rewards.verifiers.reading.quantity import agree, read_quantity, read_ratio, without_name
from care_jax.rewards.verifiers.reading.sentences import stated_value
from care_jax.rewards.verifiers.reading.spelling import canonical
from care_jax.rewards.verifiers.verdict import CORRECT, MAX_ANSWER_LEN, UNPARSED, WRONG, Verdict, refusal

_AND = re.compile(r",?\s*\band\b\s*", re.IGNORECASE)
_BETWEEN = re.compile(r"([^<>\\]+)(<|\\leq) ?([A-Za-z]) ?(<|\\leq) ?([^<>\\]+)")
_BOUND = re.compile(r"[A-Za-z] ?(<|>|\\leq|\\geq) ?([^<>=,]+)")
_LONE_CAPITAL = re.compile(r"[A-Z]|\([A-Z]\)")
_WORDS = re.compile(r"(?:yes|no|[a-z]{3,}(?: [a-z]+){0,5})", re.IGNORECASE)


def verify(given: str, gold: str) -> Verdict:
    """Compare an answer with the gold; "The slope is 2x." is 2x, but a word is compared without a sentence around it.

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
    verdict = _compare(given, gold)
    said = stated_value(given) if verdict is UNPARSED else None
    is_value = said is not None and (symbolic.is_safe(canonical(said)) or read_ratio(said) is not None)
    return _compare(said, gold) if said and is_value else verdict


def _compare(given: str, gold: str) -> Verdict:
    """Compare two expressions; a sentence is none."""
    first, *others = map(canonical, given.strip().splitlines())
    if any(line != first for line in others):
        return UNPARSED  # two lines are two expressions, which would run together into a product
    found, wanted = _AND.sub(",", first), _AND.sub(",", canonical(gold))
    if ("=" in found) != ("=" in wanted):
        found, wanted = without_name(found), without_name(wanted)
    if found == wanted or _same_word(found, wanted):
        return CORRECT
    if (ratio := read_ratio(gold)) and (value := read_quantity(given, fractions_allowed=True)):
        return CORRECT if agree(value, ratio, 0.0) else WRONG
    if wanted[:1] in "[(" and found[:1] not in "[(":
        found = as_interval(found)
    elif found[:1] in "[(" and wanted[:1] not in "[(":
        wanted = as_interval(wanted)
    if not symbolic.is_safe(found):
        return UNPARSED
    return CORRECT if found == wanted or (symbolic.is_safe(wanted) and symbolic.is_equal(found, wanted)) else WRONG


def as_interval(text: str) -> str:
    r"""Return the interval that an inequality of one letter describes: [-2,7] for "-2\leq x\leq7"; else the text."""
    if between := _BETWEEN.fullmatch(text):
        low, below, _, above, high = between.groups()
        return f"{'(' if below == '<' else '['}{low},{high}{')' if above == '<' else ']'}"
    if bound := _BOUND.fullmatch(text):
        relation, end = bound.groups()
        closed = relation.startswith("\\")
        if relation in (">", r"\geq"):
            return rf"{'[' if closed else '('}{end},\infty)"
        return rf"(-\infty,{end}{']' if closed else ')'}"
    return text.removeprefix(r"x\in")


def _same_word(found: str, wanted: str) -> bool:
    """Return whether two words are equal but for case, or two capitals but for brackets; letters of formulas differ."""
    if _LONE_CAPITAL.fullmatch(found) and _LONE_CAPITAL.fullmatch(wanted):
        return found.strip("()") == wanted.strip("()")
    return found.casefold() == wanted.casefold() and _WORDS.fullmatch(wanted) is not None
