"""The verifiers, one file for each answer kind: pure text, no evaluation.

The worker processes import this package, so nothing in it imports JAX or NumPy.
"""

from __future__ import annotations

from care_jax.verifiers import choice, integer, number, text
from care_jax.verifiers.verdict import Verdict

ANSWER_KINDS = ("integer", "number", "choice", "text")


def verify_answer(kind: str, extracted: str, gold: str, choices: tuple[str, ...] | None, tolerance: float) -> Verdict:
    """Judge the text of an answer span against the gold with the verifier of its kind.

    Args:
        kind: one of ANSWER_KINDS.
        extracted: the answer as the model wrote it.
        gold: the right answer, readable as `kind`.
        choices: the option texts, for "choice"; None where they are unknown.
        tolerance: relative error allowed, for "number".
    Raises:
        ValueError: for an unknown kind and for a gold that is not of its kind.
    """
    if kind == "integer":
        return integer.verify(extracted, gold)
    if kind == "number":
        return number.verify(extracted, gold, tolerance=tolerance)
    if kind == "choice":
        return choice.verify(extracted, gold, choices=choices)
    if kind == "text":
        return text.verify(extracted, gold)
    raise ValueError(_unknown(kind))


def check_gold(kind: str, gold: str, choices: tuple[str, ...] | None = None) -> None:
    """Raise ValueError where the gold cannot be read as its kind; for the readers, before anything is trained on it."""
    if kind == "integer":
        integer.read_gold(gold)
    elif kind == "number":
        number.read_gold(gold)
    elif kind == "choice":
        choice.read_gold(gold, choices)
    elif kind == "text":
        text.read_gold(gold)
    else:
        raise ValueError(_unknown(kind))


def _unknown(kind: str) -> str:
    return f"answer_kind {kind!r} is unknown; it is one of {', '.join(ANSWER_KINDS)}"
