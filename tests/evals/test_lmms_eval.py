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
MONEY = ("$1,308,000", "$2,616,000", "$654,000", "$5,232,000")
# lmms-eval's own examples. The scores are what its code of release 0.7.2 gives, also where the words beside it differ.
EXAMPLES = [
    # source, kind, gold, options, response, score
    # the docstring of parse_mcq in _task_utils/reasoning_utils.py
    *[("mathvista", "choice", "(A)", FOUR, f"<answer>{given}</answer>", 1) for given in ("A", "A.", "A)", "(A)")],
    ("mathvista", "choice", "(A)", FOUR, "<answer>The answer is A</answer>", 1),
    ("mathverse_text_lite", "choice", "(A)", FOUR, "<answer>A: xxx</answer>", 1),
    # and that of extract_anwser_tag
    ("mathvista", "integer", "204", None, "The answer is 204", 1), ("mathvista", "integer", "204", None, "204", 1),
    ("mathvista", "integer", "204", None, "So\n204 .\nas was asked", 1),
    # the responses of DEMO_PROMPT in mathvista/mathvista_evals.py, which a model reads there
    ("mathvista", "integer", "14", None, "The number missing in the sequence is 14.", 1),
    ("mathvista", "rounded", "0.6", None, "The fraction of females facing the camera is 0.6, which means that six out "
     "of ten females in the group are facing the camera.", 0),
    ("mathvista", "rounded", "1.45", None, "Luca needs $1.45 to buy a sour apple candy and a butterscotch candy.", 0),
    ("mathvista", "list", "[2007, 2008]", None, "The line graph saw its maximum peak between 2007 and 2008.", 1),
    ("mathvista", "choice", "(B)", ("3/11", "8/11", "6/11", "3/5"), "The correct answer is (B) 8/11.", 0),
    # docs/advanced/mmmu-eval-discrepancy.md; the first has five words, so its code guesses
    ("mmmu", "choice", "(B)", MONEY, "Choose the option of $2,616,000", 0.25),
    ("mmmu", "choice", "(B)", MONEY, "Choose the option that says $2,616,000", 1),
    ("mmmu", "choice", "(C)", FOUR, "So the correct answer is C.", 1),
    ("mmmu", "choice", "(C)", ("1.57", "2.71", "3.14", "6.28"), "The answer is approximately 3.14", 0.25),
    ("mmmu", "rounded", "3.14", None, "The answer is approximately 3.14", 1),
    ("mmmu", "rounded", "3.14", None, "approximately three point one four", 0),
    # test/eval/test_reasoning.py
    ("mmmu", "text", "yes", None, "<think>\nreasoning\n</think>\n\nYes", 1),
    ("mmmu", "text", "no", None, "reasoning from completion only\n</think>\n\nNo", 1),
    ("mmmu", "choice", "(B)", FOUR, "<think>(A) or (C)?</think>B", 1),
    ("chartqa_human", "chart_relaxed", "14", None, "<analysis>15</analysis>\n14", 1),
]
# What else its code says.
BY_BENCHMARK = [
    # source, kind, gold, options, response, score
    ("mathvista", "choice", "(B)", FOUR, "B", 0),  # neither tags nor a box
    ("mathvision", "choice", "(B)", FOUR, "\\boxed{B}", 1), ("mathvision", "choice", "(B)", FOUR, "\\boxed{D} 5", 0),
    ("mathvista", "choice", "(A)", FOUR, "<answer>(B) or (A)</answer>", 0),  # the earlier one
    ("mathvista", "choice", "(B)", FOUR, "<answer>(B) or (A)</answer>", 1),
    ("mathvista", "choice", "(B)", FOUR, "<answer>Because of (C)</answer>", 1),  # a word's capital at the start
    ("mathvista", "choice", "(C)", FOUR, "<answer>not (B), i pick C or so</answer>", 1),
    ("mathvista", "choice", "(B)", FOUR, "<answer>it is 2. B, not (C) or so</answer>", 1),
    ("mathvista", "choice", "(A)", FOUR, "<answer>red</answer>", 0),  # a text is not read
    ("mathvista", "choice", "(A)", FOUR, "<answer>a</answer>", 0),
    ("mathvista", "choice", "(C)\n(D)", FOUR, "<answer>D</answer>", 0),  # of equal options the first
    ("mathverse_vision_only", "choice", "A, C", FOUR, "<answer>A</answer>", 1),
    ("mathvista", "integer", "5", None, "<answer></answer>\\boxed{5}", 0),
    ("mathvista", "integer", "5", None, "\\boxed{4} \\boxed{5", 0),
    ("mathvista", "integer", "5", None, "\\boxed{} 5", 1),
    ("mathvista", "integer", "5", None, "\\boxed{\\boxed{5} + 1}", 1),
    ("mathvista", "integer", "5", None, "<think><answer>4</answer></think><answer>5</answer>", 1),
    ("mmmu", "text", "Tampa\nFlorida", None, "It could be Tampa Bay.", 1),
    ("mmmu", "text", "b", None, "the answer is a b c", 1), ("mmmu", "text", "b", None, "the answer is abc", 0),
    ("mmmu", "text", "apple", None, "no apple is red", 0),  # only what stands behind "is"
    ("mmmu", "text", "red", None, "result :\nso red", 1), ("mmmu", "integer", "12", None, "x = 12%", 1),
    ("mmmu", "integer", "12", None, "x = 12%\ny", 1), ("mmmu", "integer", "1234", None, "It is 1,234 m", 1),
    ("mmmu", "integer", "234", None, "It is 1,234 m", 1), ("mmmu", "integer", "1000", None, "so 1e3", 1),
    ("mmmu", "rounded", "1.239", None, "1.236", 1), ("mmmu", "integer", "5", None, "it is 15", 0),
    ("mmmu_pro_vision", "choice", "(J)", TWELVE, "Answer: J", 1),
]
# fmt: on


@pytest.fixture(scope="module")
def verifier() -> Iterator[Verifier]:
    """A pool of one worker."""
    with Verifier(workers=1, deadline=30.0, tolerance=0.0) as pool:
        yield pool


def _record(kind: str, gold: str, choices: tuple[str, ...] | None = None, source: str = "source") -> Record:
    return Record("id", source, "?", (), gold, kind, choices)


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


@pytest.mark.parametrize("table", [EXAMPLES, BY_BENCHMARK])
def test_its_own_examples(verifier: Verifier, table: list[tuple]) -> None:
    """Catches another rule than that of the benchmark's own task, and reasoning that is read as the answer."""
    asked = [(_record(kind, gold, choices, source), response) for source, kind, gold, choices, response, _ in table]
    scores = lmms_eval.score(verifier, asked)
    expected = [row[-1] for row in table]
    assert [(r, s) for (_, r), s in zip(asked, scores, strict=True)] == [
        (r, s) for (_, r), s in zip(asked, expected, strict=True)
    ]
