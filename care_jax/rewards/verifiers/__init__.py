"""The verifiers, one file for each answer kind: they compare texts and never evaluate one as code.

The worker processes import this package, so nothing in it imports JAX or NumPy.
"""

from __future__ import annotations

from care_jax.rewards.verifiers import chart, choice, integer, latex, number, own, rounded, sequence, symbolic, text
from care_jax.rewards.verifiers.own import answer_verifier
from care_jax.rewards.verifiers.verdict import Verdict

__all__ = ["ANSWER_KINDS", "answer_verifier", "check_gold", "load_kind", "verify_answer"]

ANSWER_KINDS = ("integer", "number", "rounded", "latex", "choice", "text", "list", "chart_relaxed")


def verify_answer(kind: str, extracted: str, gold: str, choices: tuple[str, ...] | None, tolerance: float) -> Verdict:
    """Judge the text of an answer span against the gold with the verifier of its kind.

    Args:
        kind: one of ANSWER_KINDS, or "module:function" for one of the user's own (own.py).
        extracted: the answer as the model wrote it.
        gold: the right answer, readable as `kind`. Several lines list several accepted answers.
        choices: the option texts, for "choice"; None if they are unknown.
        tolerance: relative error allowed, for "number" and the numbers of a "list".

    Returns:
        The verdict; with several accepted answers, the best one.

    Raises:
        ValueError: an unknown kind, or a gold that is not of its kind.
    """
    verdicts = [_verify(kind, extracted, line, choices, tolerance) for line in _alternatives(gold)]
    return max(verdicts, key=lambda verdict: (verdict.correct, verdict.parsed))


def check_gold(kind: str, gold: str, choices: tuple[str, ...] | None = None) -> None:
    """Check that a gold can be read as its kind; the readers call this before anything is trained on it.

    Raises:
        ValueError: the gold cannot be read, or its own verifier rejects it.
    """
    for line in _alternatives(gold):
        if not _verify(kind, line, line, choices, 0.0).correct:
            raise ValueError(f"the gold {line[:80]!r} is not right by its own verifier, {kind}")


def load_kind(kind: str) -> None:
    """Import what the verifier of a kind needs beyond this package.

    Raises:
        ValueError: the kind names a function that cannot be imported or is not marked as a verifier.
    """
    if kind == "latex":
        symbolic.load()
    elif ":" in kind:
        own.load(kind)


def _alternatives(gold: str) -> list[str]:
    return [line for line in gold.splitlines() if line.strip()] or [gold]


def _verify(kind: str, extracted: str, gold: str, choices: tuple[str, ...] | None, tolerance: float) -> Verdict:
    match kind:
        case "integer":
            return integer.verify(extracted, gold)
        case "number":
            return number.verify(extracted, gold, tolerance=tolerance)
        case "rounded":
            return rounded.verify(extracted, gold)
        case "latex":
            return latex.verify(extracted, gold)
        case "choice":
            return choice.verify(extracted, gold, choices=choices)
        case "text":
            return text.verify(extracted, gold)
        case "list":
            return sequence.verify(extracted, gold, tolerance=tolerance)
        case "chart_relaxed":
            return chart.verify(extracted, gold)
    if ":" in kind:
        return own.verify(kind, extracted, gold)
    raise ValueError(
        f"answer_kind {kind!r} is unknown; it is one of {', '.join(ANSWER_KINDS)}, or module:function for your own"
    )
