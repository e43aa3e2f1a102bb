r"""The score of a response under the rules of lmms-eval (release 0.7.2), to compare with tables made with it.

The answer is the first <answer>..</answer>, else the last \boxed{..}, as its tasks named *_reasoning take it; else the
whole response, as the others do. It is judged by the kind of the gold:

* choice: the ladder of its MMMU tasks: "(B)", else "B ", else "B.", else the text of an option in a response of more
  than five words; of several the last one. "B " is also the end of a word.
* chart_relaxed: within 5 % of the gold, years and counts too; else equal letters.
* all others: lmms_eval_equal.py. Without tags and box, the number at the end of the last line that ends in one.

Where its rules leave the score to chance or to a model, or lose whole kinds of questions, they are not followed:

* A response without a letter is answered at random there; here it counts one over the number of options.
* MathVista and MathVerse ask a judge model there; here they have the rules of their *_reasoning tasks.
* Since June 2025 mmmu_val compares open answers letter by letter, so that none is right; mmmu_pro_vision compares the
  whole response with the letter; *_reasoning take any gold with a capital from A to H for an option. Not so here.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from care_jax.rewards.judge import MAX_RESPONSE_LEN
from care_jax.rewards.pool import Item, Verifier
from care_jax.rewards.response_format import BOXED
from care_jax.rewards.verifiers import chart, choice
from care_jax.structs import Record

EQUAL = "care_jax.evals.lmms_eval_equal:equal"
_LAST_NUMBER = re.compile(r"\b\d+(?:\.\d+)?$")
_LADDER = (("({})", "({})"), ("{} ", " {} "), ("{}.", " {} "))  # how a letter is found, and how its last place is
_UNKNOWN_OPTIONS = ("",) * 8  # A to H


def score(verifier: Verifier, responses: Sequence[tuple[Record, str]]) -> list[float]:
    """The score of each response, 0 to 1; between them only where a choice is left to chance.

    The pool must allow EQUAL as a kind.
    """
    scores: dict[int, float] = {}
    compared: dict[int, list[Item]] = {}
    for row, (record, response) in enumerate(responses):
        if len(response) > MAX_RESPONSE_LEN:
            scores[row] = 0.0
            continue
        marked = _marked_answer(response)
        if record.answer_kind == "choice":
            scores[row] = _score_choice(record, response if marked is None else marked)
        elif record.answer_kind == "chart_relaxed":
            given = (response if marked is None else marked).strip()
            scores[row] = float(any(_is_close(given, gold) for gold in record.answer.splitlines()))
        else:
            given = _last_number(response) if marked is None else marked
            compared[row] = [Item(EQUAL, given, gold, None) for gold in record.answer.splitlines()]
    verdicts = iter(verifier.check([item for items in compared.values() for item in items]))
    for row, items in compared.items():
        correct = [next(verdicts).correct for _ in items]  # takes them all, or the next row would get the rest
        scores[row] = float(any(correct))
    return [scores[row] for row in range(len(responses))]


def _marked_answer(response: str) -> str | None:
    _, opening, rest = response.partition("<answer>")
    answer, closing, _ = rest.partition("</answer>")
    if opening and closing:
        return answer.strip()
    encoded = response.encode(errors="replace")
    box = BOXED.parse(encoded).answer
    return encoded[slice(*box)].decode(errors="replace").strip() if box else None


def _last_number(response: str) -> str:
    lines = (line.rstrip().removesuffix(".").rstrip() for line in reversed(response.strip().split("\n")))
    return next((number[0] for number in map(_LAST_NUMBER.search, lines) if number), "")


def _score_choice(record: Record, text: str) -> float:
    choices = record.choices or _UNKNOWN_OPTIONS
    found = _find_option(text, choices)
    golds = [choice.read_gold(gold, record.choices) for gold in record.answer.splitlines()]
    if found is None:
        return sum(len(gold) == 1 for gold in golds) / len(choices) if record.choices else 0.0
    return float({found} in golds)


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


def _is_close(given: str, gold: str) -> bool:
    value, wanted = _to_float(given), _to_float(gold)
    if value is not None and wanted:
        return abs(value - wanted) / abs(wanted) <= chart.TOLERANCE
    return given.lower() == gold.lower()


def _to_float(text: str) -> float | None:
    try:
        return float(text.rstrip("%")) / 100 if text.endswith("%") else float(text)
    except ValueError:
        return None
