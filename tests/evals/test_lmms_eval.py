"""lmms-eval's rules: what they accept, right or not, and what of them is left out."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from care_jax.evals import lmms_eval
from care_jax.rewards.judge import Verifier
from care_jax.structs import Record

FOUR = ("red", "dark blue", "green", "none of these")
TWELVE = tuple(f"option {n}" for n in range(12))

# fmt: off
CHOICES = [
    # gold, response, options, score
    ("(B)", "B", FOUR, 1), ("(B)", "(B)", FOUR, 1), ("(B)", "B. dark blue", FOUR, 1),
    ("(B)", "The answer is B.", FOUR, 1),
    ("(B)", "(A) is not it, so (B)", FOUR, 1), ("(A)", "(B) or rather (A)", FOUR, 1), ("(B)", "(A) so B", FOUR, 0),
    ("(B)", "I say that it must be dark blue", FOUR, 1), ("(B)", "it is dark blue", FOUR, 0.25),
    ("(B)", "it could be red or green but it is dark blue", FOUR, 1), ("(C)", "I think", FOUR, 0.25),
    ("(A)", "USA today", FOUR, 1),  # the end of a word is a letter
    ("(B)", "<think>A </think><answer>B</answer>", FOUR, 1), ("(B)", "A \\boxed{B}", FOUR, 1),
    ("(B)", "<answer>A</answer><answer>B</answer>", FOUR, 0), ("(J)", "(J)", TWELVE, 1), ("(L)", "L.", TWELVE, 1),
    ("(C)\n(D)", "D", FOUR, 1), ("A, C", "A", FOUR, 0), ("(B)", "(B)", None, 1), ("(B)", "I", None, 0),
    ("(B)", "what now and then and so on", None, 0), ("(C)", "C", ("C", "A", "B"), 1),
]
CHARTS = [
    # gold, response, score
    ("14", "14.7", 1), ("14", "14.8", 0), ("2020", "1950", 1), ("0", "0.0", 0), ("0", "0", 1), ("50%", "0.5", 1),
    ("50%", "50", 0), ("1234", "1,234", 0), ("Yes", "yes", 1), ("Yes", "<answer> yes </answer>", 1), ("Yes", "Yes.", 0),
]
FREE = [
    # kind, gold, response, score
    ("integer", "5", "<answer>5</answer>", 1), ("integer", "5", "So it is\n5.", 1), ("integer", "5", "It is 5 or 6", 0),
    ("integer", "5", "It is five.", 0), ("text", "5 apples", "<answer>5 pears</answer>", 1),
    ("text", "transformation", r"\boxed{transformatio}", 1), ("text", "embryonic", r"\boxed{embryo}", 0),
    ("latex", r"\frac{1}{2}", r"\boxed{0.5}", 1), ("rounded", "1.2", "<answer>1.23</answer>", 0),
    ("text", "Tampa\nFlorida", "<answer>Tampa</answer>", 1), ("text", "Tampa\nFlorida", "<answer>Florida</answer>", 1),
    ("integer", "5", "", 0),
]
# fmt: on


@pytest.fixture(scope="module")
def verifier() -> Iterator[Verifier]:
    """A pool of one worker."""
    with Verifier(workers=1, deadline=30.0, tolerance=0.0) as pool:
        yield pool


def _record(kind: str, gold: str, choices: tuple[str, ...] | None = None) -> Record:
    return Record("id", "source", "?", (), gold, kind, choices)


def test_choices(verifier: Verifier) -> None:
    """Catches a ladder in another order, the first mention for the last, and a random guess."""
    asked = [(_record("choice", gold, choices), response) for gold, response, choices, _ in CHOICES]
    scores = lmms_eval.score(verifier, asked)
    assert [(r, s) for (_, r), s in zip(asked, scores, strict=True)] == [(r, s) for _, r, _, s in CHOICES]


def test_charts_and_free_answers(verifier: Verifier) -> None:
    """Catches its rules mended in silence, scores in another order than the responses, and one gold of several."""
    asked = [(_record("chart_relaxed", gold), response) for gold, response, _ in CHARTS]
    asked += [(_record(kind, gold), response) for kind, gold, response, _ in FREE]
    scores = lmms_eval.score(verifier, asked)
    expected = [score for *_, score in CHARTS] + [score for *_, score in FREE]
    assert [(r, s) for (_, r), s in zip(asked, scores, strict=True)] == [
        (r, s) for (_, r), s in zip(asked, expected, strict=True)
    ]
