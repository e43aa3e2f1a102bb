"""From responses as text to what is known of each item, and means over items: one code for every evaluation."""

from __future__ import annotations

import collections
import hashlib
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from care_jax.rewards.judge import Verifier, judge_texts
from care_jax.rewards.response_format import ResponseFormat
from care_jax.structs import Record

Answered = tuple[Record, Sequence[str]]  # a question and the k responses to it; none where it was not answered
Item = dict[str, Any]


def judge_items(verifier: Verifier, answered: Sequence[Answered], response_format: ResponseFormat) -> list[Item]:
    """Judges responses; one dict an item, for people, files and `mean_by_source`.

    Its lists have an entry a response: `responses`, `extracted` (the answer, None without one), `parsed` (it could be
    read as its kind), `reasons` (the verdict in words), `correct` and `format_ok`.

    Raises:
        ValueError: a gold that is not of its kind.
    """
    asked = [(record, text) for record, texts in answered for text in texts]
    judged = iter(judge_texts(verifier, asked, response_format))
    items = []
    for record, texts in answered:
        found = [next(judged) for _ in texts]
        item = {
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
        items.append(item)
    return items


def mean(values: Iterable[float]) -> float:
    """The mean; 0 of nothing, so that a question without a response counts as wrong."""
    numbers = list(values)
    return sum(numbers) / len(numbers) if numbers else 0.0


def mean_by_source(items: Iterable[Item], value: Callable[[Item], float]) -> dict[str, float]:
    """The mean of `value` over the items of each source, sources in alphabetical order."""
    by_source: dict[str, list[float]] = collections.defaultdict(list)
    for item in items:
        by_source[item["source"]].append(value(item))
    return {source: mean(values) for source, values in sorted(by_source.items())}
