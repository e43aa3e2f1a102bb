"""Rewards beyond right and wrong: functions of a whole record and a response, which the config lists with weights.

    from care_jax.rewards.functions import reward_function

    @reward_function
    def polite(record: dict, response: str) -> float:            # or named numbers: {"tone": 0.5, "length": 1.0}
        return float("please" in response)

    c.verify.rewards = ("iou=0.9", "my_rewards:polite=0.1")      # "my_rewards:judge.tone=0.1" for a named number
    c.verify.correct_when = "iou>=0.5"                           # CARE's split; "": what the answer's verifier says

`record` has id, source, prompt, images (encoded bytes), answer, answer_kind, choices, meta (the row's own JSON object;
{} without one), and extracted, the answer in the response or None. The functions run in the worker processes, so
nothing here imports JAX or NumPy, and a call may take up to verify.deadline seconds: to ask a judge over HTTP, say.

A function that is faster for many responses at once takes lists of them, up to the size that it is marked with:

    @batch_reward_function(size=32)
    def graded(records: list[dict], responses: list[str]) -> list[float | dict[str, float] | None]:
        ...                                                      # one for each response, in order; None: it has none

A response for which a call gives no number is asked about once more, alone; so its value must not depend on the others.
"""

from __future__ import annotations

import base64
import functools
import json
import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence, Set
from typing import Any, NamedTuple

from care_jax.errors import raised, shown
from care_jax.rewards.terms import is_finite
from care_jax.rewards.verifiers.own import import_marked
from care_jax.rewards.verifiers.verdict import MAX_ANSWER_LEN

RewardFunction = Callable[[dict[str, Any], str], float | dict[str, float]]
BatchRewardFunction = Callable[[list[dict[str, Any]], list[str]], Iterable[float | dict[str, float] | None]]
_marked: list[Callable] = []
_batched: list[tuple[BatchRewardFunction, int]] = []  # those of _marked that take lists, and their sizes
_LIST = re.compile(r"\[([^\[\]]*)\]")
_NGRAM = 4  # words
_LARGEST = 1e6  # of a reward
_TEXTS = (str, bytes, bytearray)  # which float() would read


class Loaded(NamedTuple):
    """A reward function, ready to be called with lists."""

    function: BatchRewardFunction
    size: int  # responses that it takes at once


def reward_function(function: RewardFunction) -> RewardFunction:
    """Mark a function (record, response) -> number or named numbers as one that a config may list."""
    _marked.append(function)
    return function


def batch_reward_function(*, size: int) -> Callable[[BatchRewardFunction], BatchRewardFunction]:
    """Mark a function (records, responses) -> a value for each, which takes up to `size` responses at once."""
    if not isinstance(size, int) or size < 1:
        raise ValueError(f"size={size}: a batch_reward_function takes 1 response or more at once, a whole number")

    def mark(function: BatchRewardFunction) -> BatchRewardFunction:
        _marked.append(function)
        _batched.append((function, size))
        return function

    return mark


@functools.cache
def load(name: str) -> Loaded:
    """Return a function of BUILT_IN, or the one that "module:function" names.

    Raises:
        InputError: it cannot be imported, or is not marked.
    """
    if name in BUILT_IN:
        return _one_at_once(BUILT_IN[name])
    mark = "care_jax.rewards.functions.reward_function or batch_reward_function"
    function = import_marked(name, _marked, f"reward {shown(name)}", mark)
    sizes = [size for one, size in _batched if one is function]
    return Loaded(function, sizes[0]) if sizes else _one_at_once(function)


def _one_at_once(function: RewardFunction) -> Loaded:
    return Loaded(lambda records, responses: map(function, records, responses), 1)


def compute(name: str, records: Sequence[Mapping[str, Any]], responses: Sequence[str]) -> list[dict[str, float] | str]:
    """Call a function.

    Args:
        name: the function.
        records: as the module says, but their images in base64 and their meta as JSON or None.
        responses: the whole texts, one a record and at most as many as the function takes at once.

    Returns:
        For each response its numbers, a single one under the name ""; or, if there are none, a text that says why.

    Raises:
        InputError: as `load` does.
    """
    function, _ = load(name)
    try:
        returned = function([_decode(record) for record in records], list(responses))
        if isinstance(returned, (*_TEXTS, Mapping, Set)):  # list() would take them apart, or in any order
            raise TypeError(f"{type(returned).__name__} is not a list of rewards")
        values = list(returned)
        if len(values) != len(responses):
            raise ValueError(f"{len(values)} rewards for {len(responses)} responses")
        return [_numbers(name, value) for value in values]
    except (Exception, SystemExit) as error:
        return [f"{name} {raised(error)}"] * len(responses)


def _decode(record: Mapping[str, Any]) -> dict[str, Any]:
    images = [base64.b64decode(image) for image in record["images"]]
    return {**record, "images": images, "meta": json.loads(record["meta"] or "{}")}


def _numbers(name: str, value: Any) -> dict[str, float] | str:
    """Return the value of one response as `compute` does."""
    named = value if isinstance(value, dict) else {"": value}
    try:
        numbers = {str(key): math.nan if isinstance(x, _TEXTS) else float(x) for key, x in named.items()}
    except Exception:  # `value` is of any class
        numbers = {"": math.nan}
    if numbers and all(abs(number) <= _LARGEST for number in numbers.values()):  # NaN is not
        return numbers
    return f"{name} returned {shown(value)}; a reward is a number up to {_LARGEST:g}"


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
