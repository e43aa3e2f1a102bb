"""Rewards beyond right and wrong: functions of a whole record and a response, which the config lists with weights.

    from care_jax.rewards.functions import reward_function

    @reward_function
    def polite(record: dict, response: str) -> float:            # or named numbers: {"tone": 0.5, "length": 1.0}
        return float("please" in response)

    c.verify.rewards = ("iou=0.9", "my_rewards:polite=0.1")      # "my_rewards:judge.tone=0.1" for a named number
    c.verify.correct_when = "iou>=0.5"                           # CARE's split; "": what the answer's verifier says

`record` has id, source, prompt, images (encoded bytes), answer, answer_kind, choices, and extracted, the answer in the
response or None. The functions run in the worker processes, so nothing here imports JAX or NumPy, and a function may
take up to verify.deadline seconds: to ask a judge over HTTP, say.
"""

from __future__ import annotations

import base64
import functools
import importlib
import math
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from care_jax.errors import InputError, shown
from care_jax.rewards.terms import is_finite
from care_jax.rewards.verifiers.verdict import MAX_ANSWER_LEN

RewardFunction = Callable[[dict[str, Any], str], float | dict[str, float]]
_marked: list[RewardFunction] = []
_LIST = re.compile(r"\[([^\[\]]*)\]")
_NGRAM = 4  # words
_LARGEST = 1e6  # of a reward


def reward_function(function: RewardFunction) -> RewardFunction:
    """Mark a function (record, response) -> number or named numbers as one that a config may list."""
    _marked.append(function)
    return function


@functools.cache
def load(name: str) -> RewardFunction:
    """Return a function of BUILT_IN, or the one that "module:function" names.

    Raises:
        InputError: it cannot be imported, or is not marked with `reward_function`.
    """
    if name in BUILT_IN:
        return BUILT_IN[name]
    module, _, attribute = name.partition(":")
    try:
        function = getattr(importlib.import_module(module), attribute)
    except (Exception, SystemExit) as error:  # the module's own code runs here
        raise InputError(f"reward {shown(name)} cannot be imported: {shown(error)}") from error
    if not any(function is marked for marked in _marked):
        raise InputError(f"reward {shown(name)} is not marked with @care_jax.rewards.functions.reward_function")
    return function


def compute(name: str, record: Mapping[str, Any], response: str) -> dict[str, float]:
    """Call a function; a number comes back under the name "".

    Args:
        name: the function.
        record: as the module says, but its images in base64.
        response: the whole text.

    Raises:
        Exception: whatever `load` and the function raise; ValueError if it returns something else than numbers.
    """
    images = [base64.b64decode(image) for image in record["images"]]
    returned = load(name)({**record, "images": images}, response)
    values = returned if isinstance(returned, dict) else {"": returned}
    numbers = {str(key): float(value) for key, value in values.items()}
    if not all(abs(number) <= _LARGEST for number in numbers.values()):  # NaN is not
        raise ValueError(f"{name} returned {shown(returned)}; a reward is a number up to {_LARGEST:g}")
    return numbers


def iou(record: Mapping[str, Any], response: str) -> float:
    """Return the overlap of the answered box with the gold box, or 1 for a point inside it.

    A box is x1, y1, x2, y2 with x1 < x2 and y1 < y2, a point x, y, in the units of the gold: "[10, 20, 30, 40]",
    "10 20 30 40", or Qwen's {"bbox_2d": [..]}. An answer that names none, or several, has 0. Several lines of a gold
    list several boxes, of which the best counts.

    Raises:
        ValueError: a line of the gold is no box.
    """
    golds = [_read_numbers(line) for line in record["answer"].splitlines() if line.strip()]
    if not golds or not all(map(_is_box, golds)):
        raise ValueError(f"the answer {shown(record['answer'])} is no box; iou needs x1, y1, x2, y2")
    given = _read_numbers(record["extracted"] or "")
    if len(given) == 2:
        x, y = given
        return float(any(box[0] <= x <= box[2] and box[1] <= y <= box[3] for box in golds))
    return max(_overlap(given, box) for box in golds) if _is_box(given) else 0.0


def _read_numbers(text: str) -> tuple[float, ...]:
    """Return the numbers of the only list of a text, or of the whole text; () without, or with several lists."""
    lists = _LIST.findall(text) if len(text) <= MAX_ANSWER_LEN else []
    if len(lists) > 1 or len(text) > MAX_ANSWER_LEN:
        return ()
    words = re.split(r"[\s,;]+", (lists[0] if lists else text).strip(" \t\n()"))
    return tuple(map(float, words)) if all(map(is_finite, words)) else ()


def _is_box(numbers: Sequence[float]) -> bool:
    return len(numbers) == 4 and numbers[0] < numbers[2] and numbers[1] < numbers[3]


def _overlap(one: Sequence[float], other: Sequence[float]) -> float:
    width = max(0.0, min(one[2], other[2]) - max(one[0], other[0]))
    height = max(0.0, min(one[3], other[3]) - max(one[1], other[1]))
    union = _area(one) + _area(other) - width * height
    return width * height / union if math.isfinite(union) and union > 0 else 0.0


def _area(box: Sequence[float]) -> float:
    return (box[2] - box[0]) * (box[3] - box[1])


def repetition(record: Mapping[str, Any], response: str) -> float:
    """Return minus the share of a response's runs of four words that came before, 0 to -1."""
    words = response.split()
    runs = list(zip(*(words[start:] for start in range(_NGRAM)), strict=False))
    return len(set(runs)) / len(runs) - 1.0 if runs else 0.0


def length(record: Mapping[str, Any], response: str) -> float:
    """Return minus the length of a response in thousands of words, down to -1."""
    return -min(len(response.split()) / 1000, 1.0)


BUILT_IN: Mapping[str, RewardFunction] = {"iou": iou, "repetition": repetition, "length": length}
