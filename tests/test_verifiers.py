"""The verifiers as text in, verdict out: what they must read, what they must never accept, and that they stay quick."""

from __future__ import annotations

import subprocess
import sys
import time

import pytest

from care_jax.data import records
from care_jax.verifiers import ANSWER_KINDS, check_gold, verify_answer
from care_jax.verifiers.verdict import MAX_ANSWER_LEN

FOUR = ("35", "red", r"5\sqrt{3}", "None of the above")
RIGHT, WRONG, UNREAD = (True, True), (False, True), (False, False)

# fmt: off
INTEGERS = [
    # gold, response, (correct, parsed)
    ("5", "5", RIGHT), ("5", " 5\n", RIGHT), ("5", "6", WRONG), ("5", "-5", WRONG), ("-5", "-5", RIGHT),
    ("-5", "−5", RIGHT), ("-5", "- 5", RIGHT), ("5", "+5", RIGHT), ("0", "-0", RIGHT), ("5", "05", RIGHT),
    ("5", "5.0", RIGHT), ("5", "5.", RIGHT), ("5", "5.5", WRONG), ("5", "5.0000001", WRONG), ("1234", "1,234", RIGHT),
    ("1,234", "1234", RIGHT), ("1234567", "1,234,567", RIGHT), ("1234", "1{,}234", RIGHT),
    ("1234", r"1,\!234", RIGHT), ("12", "1,2", UNREAD), ("1234", "12,34", UNREAD), ("12345", "12,345", RIGHT),
    ("12345", "1,2345", UNREAD), ("1000", "1e3", RIGHT), ("60", "60°", RIGHT), ("60", r"60^\circ", RIGHT),
    ("60", r"$60^{\circ}$", RIGHT), ("60", "60 degrees", RIGHT), ("60°", "60", RIGHT),
    ("60", r"\boxed{60^\circ}", RIGHT), ("60", r"\boxed{60}^\circ", RIGHT), ("12", "12 cm", RIGHT),
    ("12", r"12\text{ cm}", RIGHT), ("12", r"12\,\mathrm{cm}^2", RIGHT), ("12", r"$12$ cm", RIGHT),
    ("12 cm", "12 centimeters", RIGHT), ("12 cm^2", "12 square centimeters", RIGHT), ("12 cm", "12 m", WRONG),
    ("12 cm", "12 cm^2", WRONG), ("12", "12 km/h", RIGHT), ("50", "50%", RIGHT), ("5", "$5", RIGHT),
    ("5", r"\$5", RIGHT), ("-5", "-$5", RIGHT), ("5", "$5$", RIGHT), ("5", "$$5$$", RIGHT), ("5", r"\(5\)", RIGHT),
    ("5", r"\boxed{5}", RIGHT), ("5", r"$\boxed{\text{5}}$.", RIGHT), ("5", "**5**", RIGHT), ("5", "x=5", RIGHT),
    ("5", "x = 5", RIGHT), ("5", r"x_{1} = \boxed{5}", RIGHT), ("60", r"m\angle ABC = 60^\circ", RIGHT),
    ("5", "The answer is 5.", RIGHT), ("5", "Final answer: 5", RIGHT), ("5", "5 or 6", UNREAD), ("5", "5, 6", UNREAD),
    ("5", "6 5", UNREAD), ("5", "5 and 5", UNREAD), ("5", "5 or six", UNREAD), ("5", "not 5", UNREAD),
    ("5", "not = 5", UNREAD), ("5", "5 thousand", UNREAD), ("5", "5 K", UNREAD), ("5", "5 M", UNREAD),
    ("5", "5!", UNREAD),
    ("5", "5²", UNREAD), ("10", "10^2", UNREAD), ("5", "5x", UNREAD), ("5", r"5\pi", UNREAD),
    ("5", r"5\sqrt{2}", UNREAD), ("5", "2x = 5", UNREAD), ("5", "4 = 5", UNREAD), ("5", r"x \not= 5", UNREAD),
    ("5", r"x \neq 5", UNREAD), ("5", "x = 4 = 5", UNREAD), ("5", "10/2", UNREAD),
    ("5", r"\boxed{5}, \boxed{6}", UNREAD), ("5", r"\boxed{5", UNREAD), ("56", r"\boxed{5}6", UNREAD),
    ("56", "$5$6", UNREAD), ("5", "± 5", UNREAD), ("5", "--5", UNREAD), ("5", "five", UNREAD), ("5", "٥", UNREAD),
    ("5", "５", UNREAD), ("5", "", UNREAD), ("5", "nan", UNREAD), ("5", "0x5", UNREAD), ("5", "1_0", UNREAD),
]

NUMBERS = [
    ("0.5", "0.5", RIGHT), ("0.5", ".5", RIGHT), ("0.5", "1/2", RIGHT), ("1/2", "2/4", RIGHT), ("0.5", "-1/2", WRONG),
    ("-0.5", r"-\frac{1}{2}", RIGHT), ("-0.5", r"\frac{-1}{2}", RIGHT), ("0.5", r"\frac12", RIGHT),
    ("0.5", r"$\dfrac{1}{2}$", RIGHT), ("4.5", r"4\frac{1}{2}", RIGHT), ("4.5", "4 1/2", RIGHT),
    ("4.5", "9/2", RIGHT), ("4.5", "4 3/2", UNREAD), ("0.5", "50%", RIGHT), ("50%", "0.5", RIGHT),
    ("50%", r"50\%", RIGHT), ("50%", "50 percent", RIGHT), ("50", "50%", WRONG), ("50%", "50", WRONG),
    ("1500", "1.5e3", RIGHT), ("1500", r"1.5 \times 10^{3}", RIGHT), ("1500", "1.5×10^3", RIGHT),
    ("0.0015", "1.5E-3", RIGHT), ("100", "101", RIGHT), ("100", "101.1", WRONG), ("100", "99", RIGHT),
    ("-100", "-101", RIGHT), ("-100", "100", WRONG), ("0", "0", RIGHT), ("0", "0.0", RIGHT), ("0", "1e-300", WRONG),
    ("1,250.5", "1250.5", RIGHT), ("3.14", "x ≈ 3.14", RIGHT), ("2.5", "2.5 cm", RIGHT), ("2.5", "$2.50", RIGHT),
    ("0.5", "1/0", UNREAD), ("0.5", "1/2/1", UNREAD), ("0.5", "0.5 or 0.6", UNREAD), ("0.5", "0,5", UNREAD),
    ("0.5", r"\frac{1}{2}\frac{1}{1}", UNREAD), ("0.5", r"\frac{1}{2}3", UNREAD), ("1.2", "1.2.3", UNREAD),
    ("5", "5e9999", UNREAD), ("5", "inf", UNREAD),
]

CHOICES = [
    # gold, response, options, (correct, parsed)
    ("B", "B", FOUR, RIGHT), ("B", "b", FOUR, RIGHT), ("B", "(B)", FOUR, RIGHT), ("B", "[b]", FOUR, RIGHT),
    ("B", "B.", FOUR, RIGHT), ("B", "B)", FOUR, RIGHT), ("B", "B. red", FOUR, RIGHT), ("B", "(B) Red", FOUR, RIGHT),
    ("B", "B: red.", FOUR, RIGHT), ("B", "B red", FOUR, RIGHT), ("B", "option B", FOUR, RIGHT),
    ("B", "Choice (B): red", FOUR, RIGHT), ("B", "The answer is B.", FOUR, RIGHT),
    ("B", r"\boxed{\text{B}}", FOUR, RIGHT), ("B", "red", FOUR, RIGHT), ("red", "B", FOUR, RIGHT),
    ("red", "RED", FOUR, RIGHT), ("A", "$35$", FOUR, RIGHT), ("C", r"5 \sqrt { 3 }", FOUR, RIGHT),
    ("C", r"C. $5\sqrt{3}$", FOUR, RIGHT), ("D", "none of the above", FOUR, RIGHT), ("B", "A", FOUR, WRONG),
    ("B", "35", FOUR, WRONG), ("B", "A. 35", FOUR, WRONG), ("B", "B. 35", FOUR, UNREAD), ("A", "B. 35", FOUR, UNREAD),
    ("A", "A or B", FOUR, UNREAD), ("A", "A or B or C", FOUR, UNREAD), ("A", "A, B", FOUR, UNREAD),
    ("A", "A. 35 or B. red", FOUR, UNREAD), ("A", "AB", FOUR, UNREAD), ("A", "A A", FOUR, UNREAD),
    ("A", "not A", FOUR, UNREAD), ("A", "A. not A", FOUR, UNREAD), ("A", "A. not A", None, UNREAD),
    ("A", "A. A is wrong", None, UNREAD),
    ("A", "A? no", FOUR, UNREAD), ("A", "-A", FOUR, UNREAD), ("A", "A. no, another one", FOUR, UNREAD),
    ("A", "Apple", FOUR, UNREAD), ("A", "E", FOUR, UNREAD), ("A", "blue", FOUR, UNREAD), ("L", "L", None, RIGHT),
    ("A", "M", None, UNREAD), ("B", "B. 35", None, RIGHT), ("B", "(B) 35", None, RIGHT), ("B", "B 35", None, UNREAD),
    ("B", "B. 35, C. 40", None, UNREAD), ("B", "B. 35 or the third", None, UNREAD),
    # Two options of one text: only the letter tells them apart.
    ("A", "same", ("same", "same"), UNREAD), ("A", "A. same", ("same", "same"), RIGHT),
    ("B", "A. same", ("same", "same"), WRONG),
    # An option whose text is another option's letter.
    ("B", "A", ("x", "A", "y"), UNREAD), ("A", ".", ("", "red"), UNREAD),
]

TEXTS = [
    ("Blue", "blue", RIGHT), ("New York", "  new\n york ", RIGHT), ("café", "cafe\u0301", RIGHT),
    ("Straße", "STRASSE", RIGHT), ("Blue", "Black", WRONG), ("listen", "silent", WRONG), ("Blue", "Blue.", WRONG),
    ("Blue", "the blue", WRONG), ("Blue", "blue or red", WRONG), ("Blue", "bl\u200bue", WRONG), ("None", "", UNREAD),
]
# fmt: on

TABLE = [
    *[("integer", gold, response, None, verdict) for gold, response, verdict in INTEGERS],
    *[("number", gold, response, None, verdict) for gold, response, verdict in NUMBERS],
    *[("choice", gold, response, options, verdict) for gold, response, options, verdict in CHOICES],
    *[("text", gold, response, None, verdict) for gold, response, verdict in TEXTS],
]


@pytest.mark.parametrize(("kind", "gold", "response", "options", "expected"), TABLE)
def test_golden_table(kind, gold, response, options, expected):
    """Catches a reading that became too strict (reward lost) or too loose (reward hacked)."""
    verdict = verify_answer(kind, response, gold, options, 0.01)
    assert (verdict.correct, verdict.parsed) == expected, verdict.reason


@pytest.mark.parametrize(("kind", "gold", "options"), sorted({(k, g, o) for k, g, _, o, _ in TABLE}, key=str))
def test_every_gold_accepts_itself(kind, gold, options):
    """Catches a gold that no response could ever match."""
    check_gold(kind, gold, options)
    assert verify_answer(kind, gold, gold, options, 0.0).correct


GOLDS = (("integer", "5", None), ("number", "0.5", None), ("choice", "A", ("5", "0.5")), ("text", "5", None))
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
    start = time.perf_counter()
    verdict = verify_answer(kind, HOSTILE[name], gold, options, 0.01)
    assert time.perf_counter() - start < 0.1
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
        ("integer", "5.5", None, "no whole number"),
        ("integer", "five", None, "no whole number"),
        ("integer", "", None, "no whole number"),
        ("number", "2 or 3", None, "no number"),
        ("number", r"5\sqrt{3}", None, "no number"),
        ("choice", "E", ("x", "y"), "names none of the options"),
        ("choice", "M", None, "names none of the letters A to L"),
        ("choice", "same", ("same", "same"), "names more than one"),
        ("choice", "A", ("C", "A", "B"), "names more than one"),
        ("choice", "A", ("x",), "2 to 12"),
        ("choice", "A", tuple("abcdefghijklm"), "2 to 12"),
        ("text", " ", None, "is empty"),
        ("text", "a" * 257, None, "is too long"),
        ("latex", "5", None, "integer, number, choice, text"),
    ],
)
def test_bad_golds_are_errors(kind, gold, options, message):
    """Catches a gold that would make every response wrong in silence."""
    with pytest.raises(ValueError, match=message):
        check_gold(kind, gold, options)
    with pytest.raises(ValueError, match=message):
        verify_answer(kind, "5", gold, options, 0.0)


def test_kinds_are_those_of_the_records():
    """Catches a kind that the readers know and the verifiers do not."""
    assert records.ANSWER_KINDS == ANSWER_KINDS


def test_worker_imports_neither_jax_nor_numpy():
    """Catches an import that makes every worker take seconds and hundreds of megabytes to start."""
    code = "import sys, care_jax.verifiers.worker as w; print({'jax', 'numpy', 'flax'} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "set()"
