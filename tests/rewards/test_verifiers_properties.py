"""Judging ignores the format of an answer, and always sees a second answer."""

from __future__ import annotations

import re
import string

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from care_jax.rewards.verifiers import check_gold, verify_answer
from tests.adversaries import JOINTS

FORMATS = (
    " {}\n", "${}$", "$${}$$", r"\({}\)", r"\[{}\]", r"\boxed{{{}}}", r"$\boxed{{{}}}$.", r"\fbox{{{}}}", "**{}**",
    "{}.", "The answer is {}.", "the answer is: {}", "Final answer: {}", "**The final answer is {}**", r"\mathrm{{{}}}",
)  # fmt: skip
JOINED = (
    *JOINTS, ". This is because it is ", ", corresponding to option ", ", or ", " but also ", " (or maybe ",
    ". The answer is ", " is ", " - no, ", " und ",
)  # fmt: skip

WHOLE = st.integers(-(10**7), 10**7).map(str)
COUNT = st.integers(10**2, 10**7).map(str)
DECIMAL = st.decimals(-9999, 9999, places=2, allow_nan=False, allow_infinity=False).map(str)
FRACTION = st.tuples(st.integers(1, 999), st.integers(2, 999)).map("{0[0]}/{0[1]}".format)
LATEX_FRACTION = st.tuples(st.integers(1, 999), st.integers(2, 999)).map(r"\frac{{{0[0]}}}{{{0[1]}}}".format)
SURD = st.tuples(st.integers(2, 99), st.sampled_from([2, 3, 5, 6, 7, 10, 11])).map(r"{0[0]}\sqrt{{{0[1]}}}".format)
MULTIPLE_OF_PI = st.integers(2, 999).map(r"{}\pi".format)
WORD = st.sampled_from(
    ["red", "blue", "dark green", "Paris", "New York", "circle", "a polynomial", "decrease", "oxygen", "Mozart", "wolf"]
)
POLYNOMIAL = st.tuples(st.integers(2, 99), st.sampled_from("xyab"), st.integers(1, 99)).map(
    "{0[0]}{0[1]}+{0[2]}".format
)
PAIR = st.tuples(st.integers(-99, 99), st.integers(-99, 99)).map("({0[0]}, {0[1]})".format)
NUMBERS = (WHOLE, DECIMAL, FRACTION, LATEX_FRACTION, SURD, MULTIPLE_OF_PI)
KINDS = {
    "integer": (WHOLE,),
    "number": NUMBERS,
    "rounded": (WHOLE, DECIMAL, FRACTION),
    "latex": (*NUMBERS, POLYNOMIAL, PAIR),
    "text": (WORD,),
    "list": (PAIR,),
    "chart_relaxed": (COUNT, DECIMAL, WORD),
}
# Kind, gold, and another answer of its sort: "red = 5" names one number, not two.
ANSWERS = st.sampled_from([(kind, sort) for kind, sorts in KINDS.items() for sort in sorts]).flatmap(
    lambda pair: st.tuples(st.just(pair[0]), pair[1], pair[1])
)
OPTIONS = st.lists(st.one_of(WORD, WHOLE, SURD, LATEX_FRACTION), min_size=2, max_size=6, unique=True).map(tuple)
LETTERS = string.ascii_uppercase


def correct(kind: str, answer: str, gold: str, options: tuple[str, ...] | None = None) -> bool:
    """The verdict, without tolerance."""
    return verify_answer(kind, answer, gold, options, 0.0).correct


@settings(max_examples=400, deadline=None, derandomize=True, database=None)
@given(ANSWERS, st.sampled_from(FORMATS), st.booleans())
def test_the_format_of_an_answer_never_changes_its_verdict(answer, layout, is_right):
    """Catches a wrapper that makes a right answer wrong, or a wrong one right."""
    kind, gold, other = answer
    text = gold if is_right else other
    assume("$" not in layout or "$" not in text)
    check_gold(kind, gold)
    if is_right:
        assert correct(kind, text, gold)
    assert correct(kind, layout.format(text), gold) == correct(kind, text, gold)


@settings(max_examples=400, deadline=None, derandomize=True, database=None)
@given(OPTIONS, st.data())
def test_every_way_to_name_an_option_names_it(options, data):
    """Catches a way to write a letter, with its text or without, that is refused or names another option."""
    index = data.draw(st.integers(0, len(options) - 1))
    other = data.draw(st.integers(0, len(options) - 1))
    letter, text = LETTERS[index], options[index]
    layout = data.draw(st.sampled_from((
        "{0}", "({0})", "{0}.", "{0})", "option {0}", "{1}", "{0}. {1}", "({0}) {1}", "{0}: {1}", "{0} ({1})",
        r"\textbf{{({0}) }}{1}", r"\text{{({0}) }}{1}", r"\mathrm{{({0})}}\ {1}", r"\( \text{{{0}}} \) {1}",
        "**{0}. {1}**",
        "**{0}** {1}", "So the answer must be ({0}).", "({0}). {1}", "{0}, because {1} fits",
        "{1} ({0})", '({0}) "{1}"', "It is {1} ({0})", "the value is {1}, corresponding to option {0}",
    )))  # fmt: skip
    layout = data.draw(st.sampled_from(("{}", "{}", r"\boxed{{{}}}", "The answer is {}."))).format(
        layout.format(letter, text)
    )
    assert correct("choice", layout, f"({letter})", options)
    assert correct("choice", layout, f"({LETTERS[other]})", options) == (index == other)


@settings(max_examples=600, deadline=None, derandomize=True, database=None)
@given(ANSWERS, st.sampled_from(JOINED), st.sampled_from(FORMATS), st.sampled_from(FORMATS), st.booleans())
def test_a_second_different_answer_is_always_wrong(answer, joint, layout, other_layout, gold_first):
    """Catches a reading that picks the right one of two answers."""
    kind, gold, other = answer
    assume(not correct(kind, other, gold) and not correct(kind, gold, other))
    parts = [layout.format(gold), other_layout.format(other)]
    text = joint.join(parts if gold_first else reversed(parts))
    assume(not (kind == "list" and joint == " is "))
    assert not correct(kind, text, gold), text


SENTENCES = (
    "The value of the sum is {}.", r"The value of the sum is ${}$.", r"The slope of the line is \boxed{{{}}}.",
    "The length or width is {}.", "In the figure, the slope is {}.", "Since the line rises, the slope is {}.",
)  # fmt: skip
ANOTHER = (
    " or {}", ", {}", " and {}", " and the other is {}", ". The other is {}.", ", with {} also possible", ", not {}",
    ", maybe {}", ". This is because it is {}.", ", which is {}", "; {}", " = {}",
)  # fmt: skip
VALUES = st.sampled_from(
    [("number", sort) for sort in NUMBERS] + [("latex", sort) for sort in (*NUMBERS, POLYNOMIAL, PAIR)]
).flatmap(lambda pair: st.tuples(st.just(pair[0]), pair[1], pair[1]))


@settings(max_examples=400, deadline=None, derandomize=True, database=None)
@given(VALUES, st.sampled_from(SENTENCES), st.booleans())
def test_a_sentence_around_a_value_never_changes_its_verdict(answer, sentence, is_right):
    """Catches spellings of a number that are read alone and not in a sentence, and the reverse."""
    kind, gold, other = answer
    text = gold if is_right else other
    assert correct(kind, sentence.format(text), gold) == correct(kind, text, gold), sentence.format(text)


@settings(max_examples=600, deadline=None, derandomize=True, database=None)
@given(VALUES, st.sampled_from(SENTENCES), st.sampled_from(ANOTHER), st.booleans())
def test_a_second_value_behind_a_sentence_is_always_wrong(answer, sentence, another, gold_first):
    """Catches a sentence that is read up to its first value."""
    kind, gold, other = answer
    assume(not correct(kind, other, gold) and not correct(kind, gold, other))
    first, second = (gold, other) if gold_first else (other, gold)
    text = sentence.format(first).removesuffix(".") + another.format(second)
    assert not correct(kind, text, gold), text


@settings(max_examples=600, deadline=None, derandomize=True, database=None)
@given(OPTIONS, st.sampled_from(JOINED), st.data())
def test_a_second_option_is_always_wrong(options, joint, data):
    """Catches a mention of another option beside the right one, by letter or by text."""
    index, other = data.draw(st.permutations(range(len(options))))[:2]
    forms = (
        "({0})", "{0}.", "{1}", "{0}. {1}", "({0}) {1}", "**{0}**", r"\text{{({0}) }}{1}", "option {0}", "{0}",
        "{1} ({0})", '"{1}"', '"{0}."', "letter {0}", "It is {1} ({0})",
    )  # fmt: skip
    parts = [data.draw(st.sampled_from(forms)).format(LETTERS[i], options[i]) for i in (index, other)]
    text = joint.join(data.draw(st.permutations(parts)))
    assume(not re.match("A [a-z]", text))  # an article
    assert not correct("choice", text, f"({LETTERS[index]})", options), text


@settings(max_examples=400, deadline=None, derandomize=True, database=None)
@given(st.sampled_from(JOINED), st.data())
def test_a_second_letter_is_always_wrong(joint, data):
    """Catches the same where the options are unknown."""
    index, other = data.draw(st.permutations(range(12)))[:2]
    forms = (
        "({0})",
        "{0}.",
        "{0}",
        "**{0}**",
        r"\text{{({0}) }}",
        "option {0}",
        "{0}. 40",
        r"$\boxed{{{0}}}$",
        "({0}) red",
    )
    parts = [data.draw(st.sampled_from(forms)).format(LETTERS[i]) for i in (index, other)]
    text = joint.join(data.draw(st.permutations(parts)))
    assert not correct("choice", text, f"({LETTERS[index]})"), text


@pytest.mark.parametrize("kind", KINDS)
def test_a_sentence_states_its_number_and_only_one(kind):
    """Catches a sentence that is not read, and one of two numbers that is."""
    if kind in ("text", "list"):
        return
    assert correct(kind, "The bars of the chart add up to 417 in 2012.", "417")
    assert not correct(kind, "The bars of the chart add up to 417 or 418 in 2012.", "417")
    assert not correct(kind, "The bars of the chart do not add up to 417.", "417")
    assert not correct(kind, "The left bar is 417 and the right bar is 55.", "417")
    assert not correct(kind, "The left bar is 55 and the right bar is 417.", "417")
