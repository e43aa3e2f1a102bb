r"""Answers that are LaTeX: numbers, expressions, equations, intervals; compared exactly.

A gold that our own grammar reads as a number is compared as one, and the answer must then be a number too:
"17 \cdot 23" does not answer a product. Otherwise the spellings are compared, and if they differ, math-verify decides,
provided that both sides are expressions it can be trusted with (`symbolic.is_safe`).
"""

from __future__ import annotations

from care_jax.errors import InputError
from care_jax.rewards.verifiers import number, symbolic
from care_jax.rewards.verifiers.reading.quantity import without_name
from care_jax.rewards.verifiers.reading.spelling import canonical
from care_jax.rewards.verifiers.verdict import CORRECT, MAX_ANSWER_LEN, UNPARSED, WRONG, Verdict, refusal


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
