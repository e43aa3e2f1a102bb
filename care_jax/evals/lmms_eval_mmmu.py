"""lmms-eval's rules for MMMU and MMMU-Pro, which MMMU's authors wrote: of a choice, and of an open question.

Source: its release 0.7.2, tasks/_task_utils/mmmu_mcq_utils.py and tasks/mmmu/utils.py.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from care_jax.rewards.verifiers import choice

_UNKNOWN_OPTIONS = ("",) * 8  # A to H
_LADDER = (("({})", "({})"), ("{} ", " {} "), ("{}.", " {} "))  # how a letter is found, and how its last place is
# Of these each line has its answer behind the one that leaves least; of the last line also behind "=".
_INDICATORS = ("could be ", "so ", "is ", "thus ", "therefore ", "final ", "answer ", "result ")
# "1,234", "1.5e3", and numbers that are neither. No number begins inside a row of digits, so that time stays linear.
_NUMBERS = (
    re.compile(r"-?\b\d{1,3}(?:,\d{3})+\b"),
    re.compile(r"-?(?<!\d)\d+(?:\.\d+)?[eE][+-]?\d+"),
    re.compile(r"-?(?:(?<!\d)\d+\.\d+|\.\d+|(?<!\d)\d+\b)(?![eE][+-]?\d+)(?![,\d])"),
)
_TRIVIAL = frozenset(":,.!?;'")


def score_choice(text: str, golds: Sequence[str], choices: tuple[str, ...] | None) -> float:
    """The score of an answer to a choice; one over the number of options, if they are known, where it names none.

    It reads "(B)", else "B ", else "B.", else the text of an option among more than five words; of several options the
    last one counts. "B " is also the end of a word.
    """
    found = _find_option(text, choices or _UNKNOWN_OPTIONS)
    wanted = [choice.read_gold(gold, choices) for gold in golds]
    if found is None:
        return sum(len(gold) == 1 for gold in wanted) / len(choices) if choices else 0.0
    return float({found} in wanted)


def _find_option(text: str, choices: Sequence[str]) -> int | None:
    for character in ",.!?;:'":
        text = text.strip(character)
    text = f" {text} "
    letters = choice.LETTERS[: len(choices)]
    for found_as, last_as in _LADDER:
        if found := [letter for letter in letters if found_as.format(letter) in text]:
            return letters.index(max(found, key=lambda letter: text.rfind(last_as.format(letter))))
    lowered = text.lower()
    options = [option.lower() for option in choices]
    if len(text.split()) > 5 and (mentioned := [i for i, option in enumerate(options) if option and option in lowered]):
        return max(mentioned, key=lambda i: lowered.rfind(options[i]))
    return None


def is_open_answer(text: str, golds: Sequence[str]) -> bool:
    """True if a gold is inside one of the response's answers, or is a number in one, to two decimals."""
    parts = _answers(text)
    numbers = [number for part in parts for form in _NUMBERS for number in form.findall(part)]
    given = [value for answer in (*parts, *numbers) for value in _normalise(answer)]
    wanted = [value for gold in golds for value in _normalise(gold)]
    texts = [value for value in given if isinstance(value, str)]
    return any(any(gold in value for value in texts) if isinstance(gold, str) else gold in given for gold in wanted)


def _answers(text: str) -> list[str]:
    """The answers in a response, in lower case: the whole of it if no line has an indicator."""
    text = text.strip().strip(".").lower()
    lines = text.split("\n")
    answers = []
    for number, line in enumerate(lines, start=1):
        shortest = ""
        for indicator in (*_INDICATORS, "=") if number == len(lines) else _INDICATORS:
            tail = line.rpartition(indicator)[2].strip()
            if indicator in line and (not shortest or len(tail) < len(shortest)):
                shortest = tail
        if shortest and shortest not in _TRIVIAL:
            answers.append(shortest)
    return answers or [text]


def _normalise(text: str) -> list[str | float]:
    text = text.strip()
    try:
        return [round(float(text.replace(",", "")), 2)]
    except ValueError:
        lowered = text.lower()
        return [f" {lowered}", f"{lowered} "] if len(lowered) == 1 else [lowered]
