"""The time that reading a response takes grows as its length, whatever it holds: it is read where no deadline runs."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

import pytest

from care_jax.evals import lmms_eval
from care_jax.method.reflect import failed_rationale
from care_jax.rewards.judge import MAX_RESPONSE_LEN, judge_texts
from care_jax.rewards.response_format import ANSWER_TAGS, BOXED, READABLE
from care_jax.rewards.verifiers.verdict import CORRECT, TOO_LONG, Verdict
from care_jax.structs import Record
from tests.marks import slow_but

# fmt: off
PIECES = (
    " ", "\t", "\n", " \n", "\r\n", "1", "1 ", "1.", "1.1.", "1\n", "a", "A ", "(A) ", "A.", "(", ")", "[", "]",
    "{", "}", "<", ">", "<answer>", "</answer>", "<answer></answer>", "<answer>1</answer>", "<think>", "</think>",
    "<think></think>", "\\", "\\boxed", "\\boxed ", "\\boxed{", "\\boxed{}", "\\boxed{1}", "\\[", "\\]", "\\text{",
    "\\{", "$", "$$", "=", "= ", "a=", "-", "- ", "*", "**", "#", "# ", ":", ",", ";", "'", '"', "_", "`", "|",
    "^{", "\\frac{", "\\sqrt{", "answer", "answer ", "answer\n", "Answer:", "answer: ", "Answer:\n", "**Answer:**",
    "answer is", "answer is ", "the answer is:", "final answer ", "so the correct answer is ", "option ",
    "choice: A\n", "or ", "é", "答案是", "\ufeff", "1,111", "1e", "is ", "<analysis>", "print(", "print(x)\n",
    "x = 1\n", "Question: ", "\nHuman:", "This is because ", ". This is because it is. ", "- a\n", "```\n",
    "is option (A) ", "true. ", "\"A.\" B",
)
# fmt: on
FRAMES = (
    "{}",
    "{}x",
    "x{}\nx",
    "Answer: 1{}y",
    "<answer>{}",
    "<think>{}</think>\\boxed{{{}",
    "1{}.\n",
    "the answer is {}",
)
SIZE = 32 << 10  # characters
NOTICEABLE = 0.03  # seconds; at this size a linear reading takes less, one that is quadratic more


class Right:
    """A pool that takes every answer for right."""

    terms, correct_when = (), None

    def check(self, items: Sequence[object]) -> list[Verdict]:
        """One verdict an item."""
        return [CORRECT] * len(items)


def _lmms_eval(kind: str, choices: tuple[str, ...] | None = None, source: str = "") -> Callable[[str], object]:
    record = Record("", source, "", (), "A", kind, choices)
    return lambda text: lmms_eval.score(Right(), [(record, text)])  # type: ignore[arg-type]


READERS: dict[str, Callable[[str], object]] = {
    **{name: lambda text, parse=form.parse: parse(text.encode()) for name, form in READABLE.items()},  # type: ignore[misc]
    "rationale by tags": lambda text: failed_rationale(text, ANSWER_TAGS),
    "rationale by boxes": lambda text: failed_rationale(text, BOXED),
    "lmms-eval, text": _lmms_eval("text"),
    "lmms-eval, chart": _lmms_eval("chart_relaxed"),
    "lmms-eval, choice": _lmms_eval("choice", ("one", "x y z", "one or two", "answer")),
    "lmms-eval, MMMU's text": _lmms_eval("text", source="mmmu"),
    "lmms-eval, MathVista's choice": _lmms_eval("choice", ("one", "two"), source="mathvista"),
}


def seconds(read: Callable[[str], object], text: str) -> float:
    """Processor time of one reading."""
    start = time.process_time()
    read(text)
    return time.process_time() - start


SLOW = {"any", *(name for name in READERS if name.startswith("lmms-eval") and name != "lmms-eval, text")}


@pytest.mark.parametrize("name", slow_but(READERS.keys() - SLOW, READERS))
def test_twice_the_text_takes_twice_the_time(name):
    """Catches a pattern that tries every end for every start: 128 kB of spaces or of "<answer>" took seconds."""
    read = READERS[name]
    for frame in FRAMES:
        for piece in PIECES:
            half, whole = (frame.format(*[piece * (size // len(piece))] * 2) for size in (SIZE, 2 * SIZE))
            if seconds(read, half) > NOTICEABLE:
                first, second = (min(seconds(read, text) for _ in range(3)) for text in (half, whole))
                assert second < 3 * max(first, NOTICEABLE), (frame, piece)


def test_a_longer_response_is_not_read():
    """Catches a file of somebody's responses with one of a gigabyte, which no deadline would end."""
    text = "<think>" + "x" * MAX_RESPONSE_LEN + "</think><answer>5</answer>"
    record = Record("", "", "", (), "5", "integer")
    too_long, read = judge_texts(Right(), [(record, text), (record, text[-99:])], ANSWER_TAGS)  # type: ignore[arg-type]
    assert (too_long.extracted, too_long.format_ok, too_long.verdict) == (None, False, TOO_LONG)
    assert (read.extracted, read.verdict.correct) == ("5", True)
