"""The verifiers as text in, verdict out: what they must read, what they must never accept, and that they stay quick."""

from __future__ import annotations

import subprocess
import sys
import time

import pytest

from care_jax.rewards.verifiers import ANSWER_KINDS, check_gold, verify_answer
from care_jax.rewards.verifiers.verdict import MAX_ANSWER_LEN
from tests.verdict_choices import CHOICES
from tests.verdict_table import TABLE
from tests.verdict_values import VALUES

PAIRS = [*TABLE, *(row for group in (*CHOICES, *VALUES) for row in group.rows())]


def test_table_is_large_and_its_rows_differ():
    """Catches rows lost, or the same pair with two verdicts."""
    assert len(PAIRS) >= 1_800
    assert len({row[:4] for row in PAIRS}) == len(PAIRS)
    assert {row[0] for row in TABLE} == set(ANSWER_KINDS)


@pytest.mark.parametrize(("kind", "gold", "response", "options", "expected"), PAIRS)
def test_golden_table(kind, gold, response, options, expected):
    """Catches a reading that became too strict (reward lost) or too loose (reward hacked)."""
    verdict = verify_answer(kind, response, gold, options, 0.01)
    assert (verdict.correct, verdict.parsed) == expected, verdict.reason


@pytest.mark.parametrize(("kind", "gold", "options"), sorted({(k, g, o) for k, g, _, o, _ in PAIRS}, key=str))
def test_every_gold_accepts_itself(kind, gold, options):
    """Catches a gold that no response could ever match."""
    check_gold(kind, gold, options)
    assert all(verify_answer(kind, line, gold, options, 0.0).correct for line in gold.splitlines())


GOLDS = (
    ("integer", "5", None), ("number", "0.5", None), ("rounded", "5.0", None), ("choice", "A", ("5", "0.5")),
    ("text", "5", None), ("latex", "a+5", None), ("list", "[5, 0.5]", None), ("chart_relaxed", "55", None),
)  # fmt: skip
assert {kind for kind, _, _ in GOLDS} == set(ANSWER_KINDS)  # a kind without a gold would meet no hostile answer
HOSTILE = {
    "a megabyte of fives": "5" * 1_000_000,
    "a megabyte of spaces": " " * 1_000_000,
    "nested braces": "{" * 120 + "5" + "}" * 120,
    "nested boxes, open": r"\boxed{" * 30 + "5",
    "nested boxes, more than are taken off": r"\boxed{" * 20 + "5" + "}" * 20,
    "nested parentheses": "(" * 100 + "5" + ")" * 100,
    "signs": "-" * 200 + "5",
    "comma groups": "5" + ",555" * 60 + ",55x",
    "dots": "5" + "." * 200,
    "letters for the name pattern": "a" * 250 + "=",
    "spaces inside": "5" + " " * 200 + "x",
    "fractions": r"\frac{1}{2}" * 20,
    "slashes": "1/" * 100 + "2",
    "power tower": "9**9**9**9",
    "factorial": "(99999999)!",
    "huge exponent": "5e999999999",
    "latex tower": "9^{9^{9^{9^9}}}",
    "null byte": "5\0",
    "null byte before": "\x005",
    "right-to-left override": "\u202e5",
    "right-to-left mark": "5\u200f",
    "zero-width space": "\u200b5",
    "byte order mark": "\ufeff5",
    "two answers": "5 6",
    "all options": "A B C D",
    "all options in a row": "ABCD",
    "either": "A/B",
    "tags": "</answer><answer>5",
    "code": "__import__('os')",
    "format": "{0.__class__}",
    "replacement character": "5\ufffd",
    "lone surrogate": "5\udc80",
}


@pytest.mark.parametrize("kind_gold_options", GOLDS, ids=lambda g: g[0])
@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_answers_are_refused_at_once(name, kind_gold_options):
    """Catches a false accept, an exception, and a pattern or a number that takes for ever."""
    kind, gold, options = kind_gold_options
    start = time.process_time()
    verdict = verify_answer(kind, HOSTILE[name], gold, options, 0.01)
    assert time.process_time() - start < 0.1
    assert not verdict.correct


def test_override_does_not_reverse_digits():
    """Catches an answer that is shown as 15 being taken for 15, or for 51."""
    assert not verify_answer("integer", "\u202e51", "15", None, 0.0).parsed
    assert not verify_answer("integer", "\u202e51", "51", None, 0.0).parsed


def test_length_limit_is_exact():
    """Catches an off-by-one that lets the pool's cut answers through."""
    word = "a" * MAX_ANSWER_LEN
    assert verify_answer("text", word, word, None, 0.0).correct
    assert verify_answer("text", word + "a", word, None, 0.0) == (False, False, "too long")
    assert verify_answer("text", word + " ", word, None, 0.0).reason == "too long"


@pytest.mark.parametrize(
    ("response", "reason"),
    [
        ("5", "correct"),
        ("6", "wrong"),
        ("5 m", "wrong unit"),
        ("5 or 6", "more than one answer"),
        ("5 or so", "unparsed"),
        (" ", "empty"),
        ("5\0", "control characters"),
    ],
)
def test_reasons_tell_the_cases_apart(response, reason):
    """Catches a count of hacked answers that is mixed up with plain wrong ones."""
    assert verify_answer("integer", response, "5 cm", None, 0.0).reason == reason


@pytest.mark.parametrize(("gold", "given", "tolerance", "correct"), [
    ("100", "103", 0.03, True), ("100", "103.0001", 0.03, False), ("1e-9", "1.05e-9", 0.05, True),
    ("0", "0.01", 0.9, False), ("100", "100.0000001", 0.0, False), ("7", "7.0", 0.0, True),
])  # fmt: skip
def test_tolerance_is_relative_and_its_border_counts(gold, given, tolerance, correct):
    """Catches binary rounding at the border (0.03 is a little less than 3 %) and an absolute tolerance at gold zero."""
    assert verify_answer("number", given, gold, None, tolerance).correct is correct


@pytest.mark.parametrize(
    ("kind", "gold", "options", "message"),
    [
        ("integer", "5.5", None, "not a whole number"),
        ("integer", "five", None, "not a whole number"),
        ("integer", "", None, "not a whole number"),
        ("number", "2 or 3", None, "not a number"),
        ("number", r"5\sqrt{3}x", None, "not a number"),
        ("number", "17*23", None, "not a number"),
        ("choice", "E", ("x", "y"), "names none of the options"),
        ("choice", "M", None, "names none of the letters A to L"),
        ("choice", "same", ("same", "same"), "names more than one"),
        ("choice", "A", ("C", "A", "B"), "names more than one"),
        ("choice", "A", ("x",), "2 to 12"),
        ("choice", "A", tuple("abcdefghijklm"), "2 to 12"),
        ("text", " ", None, "is empty"),
        ("text", "a" * 257, None, "is too long"),
        ("choice", "A, M", ("x", "y"), "names none"),
        ("choice", "A, A", ("x", "y"), "names none"),
        ("integer", "5\nfive", None, "'five' is not a whole number"),
        ("latex", " ", None, "is empty"),
        ("latex", "x" * 257, None, "is too long"),
        ("list", "[1, [2]]", None, "is not a list"),
        ("list", "[1,, 2]", None, "is not a list"),
        ("chart_relaxed", " ", None, "is empty"),
        ("colour", "5", None, f"one of {', '.join(ANSWER_KINDS)}, or module:function"),
    ],
)
def test_bad_golds_are_errors(kind, gold, options, message):
    """Catches a gold that would make every response wrong in silence."""
    with pytest.raises(ValueError, match=message):
        check_gold(kind, gold, options)
    with pytest.raises(ValueError, match=message):
        verify_answer(kind, "5", gold, options, 0.0)


OWN = "tests.own_verifier:"


@pytest.mark.parametrize(
    ("kind", "response", "verdict"),
    [
        ("anagram", "silent", (True, True, "letters compared")),
        ("anagram", "violet", (False, True, "letters compared")),
        ("anagram", "5", (False, False, "letters compared")),
        ("anagram", " ", (False, False, "empty")),
        ("anagram", "a" * 257, (False, False, "too long")),
        ("fragile", "raise", (False, False, "tests.own_verifier:fragile raised KeyError")),
        ("fragile", "shape", (False, False, "tests.own_verifier:fragile raised TypeError")),
        ("fragile", "exit", (False, False, "tests.own_verifier:fragile raised SystemExit")),
        ("fragile", "doubtful", (False, False, "tests.own_verifier:fragile raised ValueError")),
        ("fragile", "words", (False, False, "tests.own_verifier:fragile raised TypeError")),
        ("fragile", "one word", (False, False, "tests.own_verifier:fragile raised TypeError")),
        ("fragile", "missing", (False, False, "tests.own_verifier:fragile raised TypeError")),
        ("fragile", "numpy", (True, True, "as numpy has it")),
        ("fragile", "lines", (False, True, "2 right correct")),
        ("fragile", "long", (False, True, "x" * 80)),
    ],
)
def test_own_verifier(kind, response, verdict):
    """Catches a user's function whose word is changed, or whose exception ends the run."""
    check_gold(OWN + kind, "listen")
    assert verify_answer(OWN + kind, response, "listen", None, 0.0) == verdict


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("tests.own_verifier:absent", "cannot be imported"),
        ("no_such_module:verify", "cannot be imported"),
        (":verify", "cannot be imported"),
        ("tests.own_verifier:unmarked", "is not marked with @care_jax.rewards.verifiers.answer_verifier"),
        ("os:system", "is not marked"),
        ("builtins:eval", "is not marked"),
        ("sys:path", "is not marked"),
        ("tests.broken_verifier:exits", "cannot be imported"),
        ("tests.own_verifier:never", "verifier .*never. rejects the gold 'true' as an answer to itself"),
    ],
)
def test_own_verifier_is_refused(kind, message):
    """Catches a data file that calls any function on what a model wrote, and a verifier that no answer can please."""
    with pytest.raises(ValueError, match=message):
        check_gold(kind, "true")


def test_worker_imports_neither_jax_nor_numpy():
    """Catches an import that makes every worker take seconds and hundreds of megabytes to start."""
    code = "import sys, care_jax.rewards.worker as w; print({'jax', 'numpy', 'flax'} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "set()"
