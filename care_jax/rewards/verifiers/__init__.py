"""The verifiers, which compare an answer with the gold as texts and never evaluate one as code.

Each kind has a file (`list` is in sequence.py, `chart_relaxed` in chart.py); own.py calls the users' functions.
verdict.py has the contract, reading/ the readers of text that the kinds share, symbolic.py the use of math-verify. The
worker processes import this package, so nothing in it imports JAX or NumPy.
"""

from __future__ import annotations

from collections.abc import Callable

from care_jax.errors import InputError
from care_jax.rewards.verifiers import chart, choice, integer, latex, number, own, rounded, sequence, symbolic, text
from care_jax.rewards.verifiers.own import answer_verifier, require_allowed
from care_jax.rewards.verifiers.verdict import Verdict

__all__ = ["ANSWER_KINDS", "answer_verifier", "check_gold", "load_kind", "require_allowed", "verify_answer"]

# One row a kind; `load_kind` has the kinds whose verifier needs slow imports.
_VERIFIERS: dict[str, Callable[[str, str, tuple[str, ...] | None, float], Verdict]] = {
    "integer": lambda given, gold, choices, tolerance: integer.verify(given, gold),
    "number": lambda given, gold, choices, tolerance: number.verify(given, gold, tolerance=tolerance),
    "rounded": lambda given, gold, choices, tolerance: rounded.verify(given, gold),
    "latex": lambda given, gold, choices, tolerance: latex.verify(given, gold),
    "choice": lambda given, gold, choices, tolerance: choice.verify(given, [gold], choices=choices),
    "text": lambda given, gold, choices, tolerance: text.verify(given, gold),
    "list": lambda given, gold, choices, tolerance: sequence.verify(given, gold, tolerance=tolerance),
    "chart_relaxed": lambda given, gold, choices, tolerance: chart.verify(given, gold),
}
ANSWER_KINDS = tuple(_VERIFIERS)


def verify_answer(kind: str, given: str, gold: str, choices: tuple[str, ...] | None, tolerance: float) -> Verdict:
    """Judge the text of an answer span against the gold with the verifier of its kind.

    Args:
        kind: one of ANSWER_KINDS, or "module:function" for one of the user's own (own.py).
        given: the answer as the model wrote it.
        gold: the right answer, readable as `kind`. Several lines list several accepted answers.
        choices: the option texts, for "choice"; None if they are unknown.
        tolerance: relative error allowed, for "number" and the numbers of a "list".

    Returns:
        The verdict; with several accepted answers, the best one.

    Raises:
        InputError: an unknown kind, or a gold that is not of its kind.
    """
    if kind == "choice":
        return choice.verify(given, _alternatives(gold), choices=choices)
    verdicts = [_verify(kind, given, line, choices, tolerance) for line in _alternatives(gold)]
    return max(verdicts, key=lambda verdict: (verdict.correct, verdict.parsed))


def check_gold(kind: str, gold: str, choices: tuple[str, ...] | None = None) -> None:
    """Check that a gold can be read as its kind; the readers call this before anything is trained on it.

    Raises:
        InputError: the gold cannot be read, or its own verifier rejects it.
    """
    for line in _alternatives(gold):
        if not _verify(kind, line, line, choices, 0.0).correct:
            raise InputError(
                f"verifier {kind!r} rejects the gold {line[:80]!r} as an answer to itself; correct the answer or its "
                "answer_kind"
            )


def load_kind(kind: str) -> None:
    """Import what the verifier of a kind needs beyond this package.

    Raises:
        InputError: the kind names a function that cannot be imported or is not marked as a verifier.
    """
    if kind == "latex":
        symbolic.load()
    elif ":" in kind:
        own.load(kind)


def _alternatives(gold: str) -> list[str]:
    return [line for line in gold.splitlines() if line.strip()] or [gold]


def _verify(kind: str, given: str, gold: str, choices: tuple[str, ...] | None, tolerance: float) -> Verdict:
    if kind in _VERIFIERS:
        return _VERIFIERS[kind](given, gold, choices, tolerance)
    if ":" in kind:
        return own.verify(kind, given, gold)
    raise InputError(
        f"answer_kind {kind!r} is unknown; it is one of {', '.join(ANSWER_KINDS)}, or module:function for your own"
    )
