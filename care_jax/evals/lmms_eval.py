r"""The score of a response under the rules of lmms-eval (release 0.7.2), to compare with tables made with it.

Blocks <think>..</think> and <analysis>..</analysis> are taken out, as it does by default. The answer is the first
<answer>..</answer>, else the last \boxed{..}, as its tasks named *_reasoning take it. It is judged by benchmark:

* MathVista, MathVerse, MATH-Vision: the *_reasoning tasks. Without tags and box the answer is the number at the end of
  the last line that ends in one, so a bare letter is wrong. The letter of a choice is read by `_reasoning_letter`; if
  it differs, and for free answers, lmms_eval_equal.py decides.
* MMMU and MMMU-Pro: mmmu_val and mmmu_pro_standard (lmms_eval_mmmu.py).
* ChartQA: chartqa, within 5 % of the gold, years and counts too; else equal letters.
* Other data: by the kind of the gold. A choice is judged as in MMMU, chart_relaxed as in ChartQA, all else as in
  MathVista.

The tasks of MMMU and ChartQA read the whole response, which is done here if no answer is marked.

Where its rules leave the score to chance or to a model, or lose whole kinds of questions, they are not followed:

* A choice of MMMU without an option is answered at random there; here it counts one over the number of options.
* The plain tasks of MathVista and MathVerse ask a model, that of MATH-Vision runs the response through Python's eval.
* Since June 2025 mmmu_val compares open answers letter by letter, so that none is right; here they have its rule of
  before. It takes a list of golds for one text; here each counts.
* mmmu_pro_vision compares the whole response with the letter; here it is as mmmu_pro_standard.
* *_reasoning take any gold with a capital from A to H for an option; here only that of a choice is one.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from care_jax.evals import lmms_eval_mmmu
from care_jax.parallel.processes import share
from care_jax.rewards.judge import MAX_RESPONSE_LEN, Verdict
from care_jax.rewards.pool import Item, Verifier
from care_jax.rewards.verifiers import chart
from care_jax.structs import Record

EQUAL = "care_jax.evals.lmms_eval_equal:equal"
_REASONING_TASKS = ("mathvista", "mathverse", "mathvision")  # their sources begin so
_REASONING_BLOCKS = (("<think>", "</think>"), ("<analysis>", "</analysis>"))
_BOX = r"\boxed{"
_BRACE = re.compile(r"\\boxed\{|[{}]")
_LAST_NUMBER = re.compile(r"\b\d+(?:\.\d+)?$")
_LETTERS = "ABCDEFGH"
_PHRASE = re.compile(
    r"(?:the )?(?:(?:correct |best )?answer|(?:correct )?(?:option|choice) is)|my (?:answer|choice) is|"
    r"i (?:choose|select|pick)"
)
# How a letter is written, from the form that decides first.
_FORMS = (("({})",), ("{}.",), ("{}:",), ("{})",), ("{} ",), ("{}-", "{}_", "{}="), ("{}",))


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
        text = _without_reasoning(response)
        marked = _marked_answer(text)
        whole = text if marked is None else marked
        is_choice, golds = record.answer_kind == "choice", record.answer.splitlines()
        if is_choice and not record.source.startswith(_REASONING_TASKS):
            scores[row] = lmms_eval_mmmu.score_choice(whole, golds, record.choices)
        elif record.answer_kind == "chart_relaxed":
            scores[row] = float(any(_is_close(whole, gold) for gold in golds))
        elif record.source == "mmmu" and not is_choice:
            scores[row] = float(lmms_eval_mmmu.is_open_answer(whole, golds))
        else:
            given = _last_number(text) if marked is None else marked
            if is_choice:  # of options with equal texts it knows the first
                golds = [_reasoning_letter(golds[0]) or golds[0]]
            if is_choice and _reasoning_letter(given) == golds[0]:
                scores[row] = 1.0
            else:
                compared[row] = [Item(EQUAL, given, gold, None) for gold in golds]
    # Verdicts of other processes come as lists.
    verdicts = iter(share(verifier.check, [item for items in compared.values() for item in items]))
    for row, items in compared.items():
        # All are taken, or the next row would get the rest.
        correct = [Verdict(*next(verdicts)).correct for _ in items]
        scores[row] = float(any(correct))
    return [scores[row] for row in range(len(responses))]


def _without_reasoning(response: str) -> str:
    """Takes out the blocks of reasoning; one that opened in the prompt ends at the last closing tag."""
    for opening, closing in _REASONING_BLOCKS:
        kept, at = [], 0
        while (start := response.find(opening, at)) >= 0 and (end := response.find(closing, start)) >= 0:
            kept.append(response[at:start])
            at = end + len(closing)
        response = "".join([*kept, response[at:]])
        if opening not in response:
            response = response.rpartition(closing)[2]
    return response.strip()


def _marked_answer(text: str) -> str | None:
    _, opening, rest = text.partition("<answer>")
    answer, closing, _ = rest.partition("</answer>")
    if opening and closing:
        return answer.strip()
    return box.strip() if (box := _last_box(text)) else None


def _last_box(text: str) -> str:
    """Finds the box that opens last of those that close; escaped braces count."""
    opened: list[re.Match[str]] = []
    last = (0, 0)
    for brace in _BRACE.finditer(text):
        if brace[0] != "}":
            opened.append(brace)
        elif opened and (opening := opened.pop())[0] == _BOX:
            last = max(last, (opening.end(), brace.start()))
    return text[slice(*last)]


def _last_number(text: str) -> str:
    lines = (line.rstrip().removesuffix(".").rstrip() for line in reversed(text.split("\n")))
    return next((number[0] for number in map(_LAST_NUMBER.search, lines) if number), "")


def _reasoning_letter(text: str) -> str:
    """The option that an answer names, "" if it has no capital from A to H.

    It is the capital at the start, else at the end, else behind its number, "2. B", else the first one behind a phrase
    like "the answer", else the one in the first of _FORMS. A letter stands at its last place in a form; of several
    letters the earliest counts.
    """
    text = text.strip()
    for character in ",.!?;:'\"":
        text = text.strip(character)
    words = text.strip()
    text = f" {text} "
    for letter in (words[:1], words[-1:]):
        if letter and letter in _LETTERS:
            return letter
    numbered = {text.rfind(f"{number}. {letter}"): letter for number, letter in enumerate(_LETTERS, 1)}
    phrase = _PHRASE.search(text.lower())
    behind = {text.find(letter, phrase.start()): letter for letter in _LETTERS} if phrase else {}
    written = ({text.rfind(form.format(letter)): letter for form in forms for letter in _LETTERS} for forms in _FORMS)
    for places in (numbered, behind, *written):
        if found := [place for place in places if place >= 0]:
            return places[min(found)]
    return ""


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
