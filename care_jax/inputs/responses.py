"""Texts to response tokens: the cold start's traces, the openings of repairs, and rewritten responses."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from care_jax.errors import InputError
from care_jax.rewards.response_format import OPENING
from care_jax.structs import Record

if TYPE_CHECKING:
    from care_jax.inputs.processor import Processor


@dataclasses.dataclass(frozen=True)
class Trace:
    """A cold-start response. `loss_mask` is False on the draft and the cue."""

    token_ids: npt.NDArray[np.int32]  # [n]
    loss_mask: npt.NDArray[np.bool_]  # [n]


def encode_trace(processor: Processor, record: Record, *, cue: str, response_len: int) -> Trace | None:
    """Encodes a trace as `whole_trace` does; None also for one that is longer than `response_len` tokens."""
    trace = whole_trace(processor, record, cue=cue)
    return None if trace is None or len(trace.token_ids) > response_len else trace


def whole_trace(processor: Processor, record: Record, *, cue: str) -> Trace | None:
    """Encodes the response that the cold start learns: <think>[draft cue] rationale</think>, the answer, a stop.

    Draft and cue are read, not learned: their `loss_mask` is False. They are tokenised apart from the rest, as in
    `encode_repairs`, so that training and reflection see the same tokens.

    Args:
        processor: has the tokenizer and the response format.
        record: its rationale, answer and draft are used.
        cue: the text between a draft and the rationale.

    Returns:
        The trace, or None if one of its texts contains a mark of the response format, which may happen with data that
        are sound for another format.

    Raises:
        InputError: the record has no rationale, or one of its texts holds a special token.
    """
    if record.rationale is None:
        raise InputError(f"record {record.id!r} has no rationale; the cold start needs one in every record")
    texts = {"rationale": record.rationale, "answer": record.answer, "draft": record.draft}
    for field, text in texts.items():
        processor.refuse_special_texts(record, field, text)
    if any(mark in text for text in texts.values() if text for mark in processor.response_format.marks):
        return None
    ending = processor.response_format.ending(record.rationale, record.answer)
    if record.draft is None:
        token_ids = processor.encode_text(OPENING + ending)
        loss_mask = [True] * len(token_ids)
    else:
        opening = processor.text_tokenizer.encode(OPENING + record.draft, add_special_tokens=False)
        cue_ids, ending_ids = processor.encode_text(cue), processor.encode_text(ending)
        token_ids = [*opening.ids, *cue_ids, *ending_ids]
        # Offsets, not ids: the tag's last token may also hold the draft's first character.
        in_tag = [start < len(OPENING) for start, _ in opening.offsets]
        loss_mask = [*in_tag, *[False] * len(cue_ids), *[True] * len(ending_ids)]
    return Trace(np.array([*token_ids, processor.stop_ids[0]], np.int32), np.array([*loss_mask, True], np.bool_))


def encode_repairs(
    processor: Processor, rationales: Sequence[str], *, cue: str, max_rationale_len: int
) -> list[list[int]]:
    """Encodes the forced openings of reflections: <think>, the start of the failed rationale, and the cue.

    Special tokens spelled in the text stay plain characters.

    Args:
        processor: has the tokenizer.
        rationales: the texts of the failed rationales, without their tags.
        cue: the text that starts a repair.
        max_rationale_len: tokens of a rationale to keep.

    Returns:
        Token ids of each.
    """
    kept, cue_ids = len(processor.encode_text(OPENING)) + max_rationale_len, processor.encode_text(cue)
    openings = processor.encode_beginnings([OPENING + rationale for rationale in rationales], kept)
    return [opening + cue_ids for opening in openings]


def encode_rewrites(processor: Processor, responses: Sequence[str]) -> list[list[int]]:
    """Encodes whole responses, tags included, each with the stop token that ends it."""
    return [[*ids, processor.stop_ids[0]] for ids in processor.encode_texts(responses)]
