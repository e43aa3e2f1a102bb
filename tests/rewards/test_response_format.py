"""Spans of the two layouts of a response: what is the rationale, what the answer, is the layout kept."""

from __future__ import annotations

import random
import time

import pytest

from care_jax.rewards.response_format import ANSWER_TAGS, ANY, BOXED, FORMATS, TAGS, ParsedResponse

WELL_FORMED = b"<think>1+1</think><answer>2</answer>"


def contents(text: bytes) -> tuple[bytes | None, bytes | None, bool]:
    """The spans as the text that they hold."""
    parsed = ANSWER_TAGS.parse(text)
    think, answer = (None if span is None else text[slice(*span)] for span in (parsed.think, parsed.answer))
    return think, answer, parsed.format_ok


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (WELL_FORMED, (b"1+1", b"2", True)),
        (b"\n <think>1+1</think>\n\n<answer>2</answer>\t\n", (b"1+1", b"2", True)),
        (b"<think></think><answer></answer>", (b"", b"", True)),
        (b"<think>a<b</think><answer></x></answer>", (b"a<b", b"</x>", True)),
        (b"", (None, None, False)),
        (b"2", (None, None, False)),
        (b"Well: " + WELL_FORMED, (b"1+1", b"2", False)),
        (WELL_FORMED + b".", (b"1+1", b"2", False)),
        (b"<think>1+1</think> so <answer>2</answer>", (b"1+1", b"2", False)),
        (b"\0" + WELL_FORMED, (b"1+1", b"2", False)),
        ("\u00a0".encode() + WELL_FORMED, (b"1+1", b"2", False)),
        (WELL_FORMED * 2, (b"1+1", b"2", False)),
        (WELL_FORMED + b"<answer>3</answer>", (b"1+1", b"3", False)),
        (WELL_FORMED + b"<answer>3", (b"1+1", b"2", False)),
        (WELL_FORMED + b"</answer>", (b"1+1", b"2", False)),
        (b"<think>" + WELL_FORMED, (b"<think>1+1", b"2", False)),
        (b"<answer>2</answer><think>1+1</think>", (b"1+1", b"2", False)),
        (b"</think><think>1+1<answer>2</answer>", (b"1+1", b"2", False)),
        (b"<think>1+1<answer>2</answer></think>", (b"1+1<answer>2</answer>", b"2", False)),
        (b"<think>1+1", (b"1+1", None, False)),
        (b"<think>1+1</think><answer>2", (b"1+1", None, False)),
        (b"<think>1+1<answer>2", (b"1+1", None, False)),
        (b"<think>1+1</think></answer>2<answer>", (b"1+1", None, False)),
        (b"<think>1+1</think><answer>2<answer>3</answer>", (b"1+1", b"3", False)),
        (b"<Think>1+1</Think><answer>2</answer>", (None, b"2", False)),
        (b"<think >1+1</think><answer>2</answer>", (None, b"2", False)),
        (b"<think><think>1+1</think></think><answer>2</answer>", (b"<think>1+1", b"2", False)),
        (b"<<think>1+1</think><answer>2</answer>>", (b"1+1", b"2", False)),
    ],
)
def test_spans_and_format(text, expected):
    """Catches a format reward for text outside the tags, and a second or unclosed answer taken for the answer."""
    assert contents(text) == expected


def reference(text: bytes) -> ParsedResponse:
    """The definition once more: one byte at a time, no pattern, no search."""
    found, i = [], 0
    while i < len(text):
        here = [tag for tag in TAGS if text[i : i + len(tag)] == tag]
        if here:
            found.append((here[0], i, i + len(here[0])))
            i += len(here[0])
        else:
            i += 1
    think = answer = None
    for tag, _, end in found:
        if tag == b"<think>" and think is None:
            closings = [start for name, start, _ in found if name == b"</think>" and start >= end]
            answers = [start for name, start, _ in found if name == b"<answer>" and start >= end]
            think = (end, (closings or answers or [len(text)])[0])
    opened, given = None, []
    for tag, start, end in found:
        if tag in (b"<answer>", b"</answer>") and given and given[-1][1] is None:
            given[-1][1] = start
        if tag == b"<answer>":
            opened = end
            given.append([end, None])
        elif tag == b"</answer>" and opened is not None:
            answer, opened = (opened, start), None
    skeleton, position = [], 0
    for tag, start, end in [*found, (b"", len(text), len(text))]:
        between = text[position:start]
        inside = tag in (b"</think>", b"</answer>")
        skeleton.append(b"" if inside or not between.strip() else b"text")
        skeleton.append(tag)
        position = end
    different = {text[start:end].strip() for start, end in given if text[start:end].strip()}
    return ParsedResponse(think, answer, len(different) > 1, b"".join(skeleton) == b"<think></think><answer></answer>")


def test_random_orders_of_tags_agree_with_the_reference():
    """Catches a wrong span for any order, number and nesting of tags."""
    rng = random.Random(0)
    parts = [*TAGS, *TAGS, b" ", b"\n", b"x", b"<", b"think>", "é".encode(), b"\xff"]
    well_formed = 0
    for _ in range(20_000):
        text = b"".join(rng.choices(parts, k=rng.randrange(9)))
        if rng.random() < 0.3:
            shuffled = [*TAGS, *rng.choices([b" ", b"x", b""], k=3)]
            rng.shuffle(shuffled)
            text = b"".join(shuffled)
        assert ANSWER_TAGS.parse(text) == reference(text), text
        well_formed += ANSWER_TAGS.parse(text).format_ok
    assert well_formed > 10  # the property is not empty


def test_parsing_is_linear():
    """Catches a pattern that needs quadratic time for many open tags: 1 MB would take minutes."""
    text = b"<answer>" * 130_000 + b"<think>" * 10
    assert ANSWER_TAGS.parse(text).answer is None


@pytest.mark.parametrize(
    ("text", "several"),
    [
        (WELL_FORMED, False),
        (WELL_FORMED * 2, False),  # one answer, said twice
        (WELL_FORMED + b"<answer> 2\n</answer>", False),
        (WELL_FORMED + b"<answer>3</answer>", True),
        (WELL_FORMED + b"<answer>3", True),
        (b"<answer>3<answer>2</answer>", True),
        (b"<think>1 <answer>3</answer></think><answer>2</answer>", True),
        (b"I use <answer> </answer>. " + WELL_FORMED, False),
        (b"3</answer>" + WELL_FORMED, False),
    ],
)
def test_two_answers_are_none(text, several):
    """Catches a reward for a response that gives several answers, of which the last one happens to be right."""
    assert ANSWER_TAGS.parse(text).several_answers is several


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (rb"<think>1+1</think>\boxed{2}", ("1+1", "2", False, True)),
        (b"\n<think>1+1</think>\nSo it is $\\boxed{2}$.\n", ("1+1", "2", False, True)),
        (rb"<think>1+1</think>\boxed {\frac{1}{2}}", ("1+1", r"\frac{1}{2}", False, True)),
        (rb"<think>1+1</think>\boxed{\{1, 2\}}", ("1+1", r"\{1, 2\}", False, True)),
        (rb"<think>1+1</think>\boxed{\text{a \} b}}", ("1+1", r"\text{a \} b}", False, True)),
        (rb"<think>\boxed{3}? no</think>\boxed{2}", (r"\boxed{3}? no", "2", False, True)),
        (rb"<think>1+1</think>\boxed{2} \boxed{2}", ("1+1", "2", False, False)),
        (rb"<think>1+1</think>\boxed{2} or \boxed{3}", ("1+1", "3", True, False)),
        (rb"<think>1+1</think>\boxed{2} or \boxed{3", ("1+1", "2", True, False)),
        (rb"<think>1+1</think>\boxed{2", ("1+1", None, False, False)),
        (rb"<think>1+1 \boxed{2}", ("1+1 ", "2", False, False)),
        (rb"\boxed{2}", (None, "2", False, False)),
        (rb"Well: <think>1+1</think>\boxed{2}", ("1+1", "2", False, False)),
        (rb"<think>1+1</think>\boxed{2}</think>", ("1+1", "2", False, False)),
        (rb"<think>1+1</think>\boxed{\boxed{2}}", ("1+1", r"\boxed{2}", False, True)),
        (rb"<think>1+1</think><answer>2</answer>", ("1+1", None, False, False)),
        (b"", (None, None, False, False)),
    ],
)
def test_boxed(text, expected):
    """Catches a box of the rationale taken for the answer, a brace miscounted, and a reward for two boxes."""
    parsed = BOXED.parse(text)
    think, answer = (None if span is None else text[slice(*span)].decode() for span in (parsed.think, parsed.answer))
    assert (think, answer, parsed.several_answers, parsed.format_ok) == expected


def test_boxed_is_linear():
    """Catches a search for the end of every open box: 1 MB would take hours."""
    assert BOXED.parse(rb"\boxed{" * 150_000).answer is None
    assert BOXED.parse(rb"\boxed{}" * 150_000).answer is not None


@pytest.mark.parametrize(
    ("text", "answer", "several"),
    [
        (WELL_FORMED, "2", False),
        (WELL_FORMED + b"<answer>3</answer>", "3", True),
        (b"<answer>2</answer>\nAnswer: 3", "2", False),
        (b"It falls.\n\nAnswer: A", "A", False),
        (b"Answer: A is tempting.\n**Final Answer:** (B)\n", "(B)", False),
        (b"### The correct answer is:\n\n**B. red**", "B. red", False),
        (rb"So\n\[ \text{Answer: D} \]".replace(rb"\n", b"\n"), "D", False),
        (rb"Answer: \[ x^{2} \]", r"\[ x^{2} \]", False),
        (rb"\text{Answer: D}", "D", False),
        (rb"Answer: \frac{1}{2}", r"\frac{1}{2}", False),
        (rb"\boxed{3} is wrong, \boxed{4}", "4", False),
        (b"\\boxed{3}\nAnswer: 4", "4", False),
        (b"Answer: 4\nor \\boxed{3}", "3", False),
        (rb"Answer: \boxed{B}", "B", False),
        (b"The answer is unclear, yet the answer is 'B'", "B", False),
        (b"First.\nThus the correct option is **A**.\n", "A", False),
        (b" B. red\n", "B. red", False),
        (b"<think>x\nAnswer: 3</think> 4", "4", False),
        (b"<think>x</think>\nAnswer: 4", "4", False),
        (b"It is red.\nOr blue.", None, False),
        (b"Answer: .5.", ".5", False),
        (b" \n", None, False),
        (b"", None, False),
    ],
)
def test_responses_of_elsewhere(text, answer, several):
    """Catches the first answer taken for the last, a heading for an answer, and words of the rationale."""
    parsed = ANY.parse(text)
    assert (None if parsed.answer is None else text[slice(*parsed.answer)].decode()) == answer
    assert parsed.several_answers is several


@pytest.mark.parametrize(
    "piece", [b" ", b"\n", b"*", b"answer", b"Answer: ", b"answer is ", b"}", rb"\]", b"Answer:x*", b"x\n"]
)
def test_responses_of_elsewhere_are_read_in_linear_time(piece):
    """Catches a pattern that takes hours over a megabyte of stars behind an answer."""
    megabyte = piece * (1_000_000 // len(piece))
    start = time.process_time()
    for text in (megabyte, b"Answer: x" + megabyte + b"y", b"the answer is x" + megabyte + b"\ny"):
        ANY.parse(text)
    assert time.process_time() - start < 5.0


@pytest.mark.parametrize("name", FORMATS)
def test_what_is_written_is_read_and_what_is_asked_for_is_named(name):
    """Catches a prompt that asks for one layout and a reader of another, which makes every response wrong."""
    response_format = FORMATS[name]
    text = ("<think>" + response_format.ending("1+1", r"\frac{1}{2}")).encode()
    parsed = response_format.parse(text)
    assert parsed.format_ok
    assert not parsed.several_answers
    assert text[slice(*parsed.think)] == b"1+1"
    assert text[slice(*parsed.answer)] == rb"\frac{1}{2}"
    for mark in (*response_format.marks, *response_format.answer):
        assert mark in response_format.request
    assert [other.parse(text).answer for other in FORMATS.values() if other is not response_format] == [None]
