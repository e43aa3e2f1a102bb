"""math-verify: what it says about the table of verdicts, and what it is asked as a second opinion."""

from __future__ import annotations

import logging
import time

import pytest

from care_jax.rewards.verifiers import latex, symbolic, verify_answer
from tests.math_verify_rows import DISAGREEMENTS, ENDLESS, PUBLISHED
from tests.verdict_table import TABLE


def math_verify_says(gold: str, response: str) -> bool:
    """Its verdict as its users ask for it; the alarm is far off."""
    expressions = [
        symbolic.load().parse(text if "$" in text or r"\boxed" in text else f"${text}$", parsing_timeout=60)
        for text in (gold, response)
    ]
    return symbolic.load().verify(*expressions, timeout_seconds=60)


def test_every_disagreement_with_math_verify_is_known_and_explained():
    """Catches a verdict of ours that turned wrong unseen, and a release of math-verify that reads differently."""
    logging.getLogger("math_verify").setLevel(logging.CRITICAL)
    differ = set()
    for kind, gold, response, _, (correct, _) in TABLE:
        if (kind, gold, response) not in ENDLESS:
            accepted = any(math_verify_says(line, response) for line in gold.splitlines())
            if accepted != correct:
                differ.add((kind, gold, response))
    explained = [row for rows in DISAGREEMENTS.values() for row in rows]
    assert differ == set(explained)
    assert len(explained) == len(set(explained))


def test_every_published_disagreement_is_on_the_table():
    """Catches a known fault of one of the two checkers that nobody looks at here."""
    rows = {row[:3] for row in TABLE}
    assert not [row for listed in PUBLISHED.values() for row in listed if row not in rows]


@pytest.mark.parametrize(
    "text",
    [
        "listen", "no", "A", "ab cd", "B. 35", "5 6", "x! + 1", "9**9**9**9", "x^{9^{9}}", "x^{21}", "x^99",
        "12345678901234", "x+" * 61 + "x", "(" * 6 + "x+1" + ")" * 6, r"\input{x}", r"\boxed{x}", "x;y", "x'", "x\n",
        "sin(x)+word", "2x and", "1.2.3",
    ],
)  # fmt: skip
def test_second_opinion_is_not_asked(text):
    """Catches words, sentences and towers of powers that reach a parser which computes what it is given."""
    assert not symbolic.is_safe(text)


def test_second_opinion_wants_the_same_letters_and_relations(monkeypatch):
    """Catches A taken for a, and one of two solutions taken for both, without asking anybody."""
    monkeypatch.setattr(symbolic, "load", lambda: pytest.fail("asked"))
    for given, gold in [("2A", "2a"), ("x+y", "x+z"), ("x=5", "5x"), ("2x,3x", "2x"), ("x<3", "x-3")]:
        assert symbolic.is_safe(given)
        assert symbolic.is_safe(gold)
        assert not symbolic.is_equal(given, gold)


def test_second_opinion_is_asked_for_latex_alone(monkeypatch):
    """Catches a symbolic check of words or plain numbers."""
    monkeypatch.setattr(symbolic, "load", lambda: pytest.fail("asked"))
    for kind, gold, response, options, (correct, _) in TABLE:
        if kind != "latex" or latex.number.read_number(gold):
            assert verify_answer(kind, response, gold, options, 0.01).correct is correct


def test_safe_expressions_are_quick():
    """Catches a limit under which an expression still takes the whole deadline of an item."""
    symbolic.load()
    for given, gold in [
        ("(x+1)^{20}", "(1+x)^{19}x"),
        ("(x+y+1)^{20}-(x+y)^{20}", "(x+y+1)^{20}"),
        (r"\sqrt{\sqrt{\sqrt{x+1}}}+" * 3 + "x", r"x^{20}"),
        (r"\sin(\cos(\tan(\ln(x))))", r"\cos(\sin(\tan(\ln(x))))"),
        ("x/" * 50 + "x", "x"),
    ]:
        assert symbolic.is_safe(given)
        start = time.process_time()
        symbolic.is_equal(given, gold)
        assert time.process_time() - start < 5.0
