"""Responses judged item by item, and means over items: every evaluation scores with this code."""

from __future__ import annotations

import collections
import hashlib
import math
from collections.abc import Callable, Iterable, Sequence
from typing import NotRequired, TypedDict

from care_jax.parallel.processes import ALL_ROWS, HostShare
from care_jax.rewards.judge import Verifier, judge_texts
from care_jax.rewards.response_format import ResponseFormat
from care_jax.structs import Record

_TWO_SIDED_95 = 1.96  # standard deviations
Answered = tuple[Record, Sequence[str]]  # a question and the k responses to it; none if it was not answered


class JudgedItem(TypedDict):
    """A question with the responses to it, as files and `mean_by_source` take it. Lists have an entry a response."""

    id: str
    source: str
    image_ids: list[str]  # the head of each image's SHA-256
    prompt: str
    answer: str  # the gold
    kind: str  # the record's answer_kind
    choices: tuple[str, ...] | None
    responses: list[str]
    extracted: list[str | None]  # the answer in the response
    parsed: list[bool]  # the answer could be read as its kind
    reasons: list[str]  # the verdict in words
    correct: list[bool]
    format_ok: list[bool]
    lmms_eval: NotRequired[list[float]]  # score under lmms-eval's rules, of benchmarks


def judge_items(
    verifier: Verifier,
    answered: Sequence[Answered],
    response_format: ResponseFormat,
    share: HostShare = ALL_ROWS,
) -> list[JudgedItem]:
    """Judges the responses to each question.

    Args:
        verifier: the pool that checks answers.
        answered: questions and responses; all processes give the same, or with `share` each its own.
        response_format: where a response has its answer.
        share: as in `HostShare.run`.

    Raises:
        InputError: a gold that is not of its kind.
    """
    asked = [(record, text) for record, texts in answered for text in texts]
    judged = iter(judge_texts(verifier, asked, response_format, share=share))
    items: list[JudgedItem] = []
    for record, texts in answered:
        found = [next(judged) for _ in texts]
        items.append(
            {
                "id": record.id,
                "source": record.source,
                "image_ids": [hashlib.sha256(image).hexdigest()[:16] for image in record.images],
                "prompt": record.prompt + response_format.request,
                "answer": record.answer,
                "kind": record.answer_kind,
                "choices": record.choices,
                "responses": list(texts),
                "extracted": [one.extracted for one in found],
                "parsed": [one.verdict.parsed for one in found],
                "reasons": [one.verdict.reason for one in found],
                "correct": [one.verdict.correct for one in found],
                "format_ok": [one.format_ok for one in found],
            }
        )
    return items


def mean(values: Iterable[float]) -> float:
    """The mean; 0 of nothing, so that a question without a response counts as wrong."""
    numbers = list(values)
    return sum(numbers) / len(numbers) if numbers else 0.0


def mean_by_source(items: Iterable[JudgedItem], value: Callable[[JudgedItem], float]) -> dict[str, float]:
    """The mean of `value` over the items of each source, sources in alphabetical order."""
    return {source: mean(values) for source, values in by_source(items, value).items()}


def by_source(items: Iterable[JudgedItem], value: Callable[[JudgedItem], float]) -> dict[str, list[float]]:
    """The value of each item, by source, sources in alphabetical order."""
    found: dict[str, list[float]] = collections.defaultdict(list)
    for item in items:
        found[item["source"]].append(value(item))
    return dict(sorted(found.items()))


def half_width(groups: Sequence[Sequence[float]]) -> float:
    """Half the width of the 95 % interval of the mean of the groups' means, for values in 0 .. 1.

    Two successes and two failures are added to each group, after Agresti and Coull, so that no group of equal values
    has an interval of width 0. The groups are taken as they are: only the questions in them are a sample.
    """
    variance = 0.0
    for group in groups:
        values = [*group, 0.0, 0.0, 1.0, 1.0]
        centre = mean(values)
        variance += mean((value - centre) ** 2 for value in values) / len(values)
    return _TWO_SIDED_95 * math.sqrt(variance) / len(groups)
