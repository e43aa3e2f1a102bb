"""Judges a batch of responses: bytes, spans, answers, rewards.

`correct` and `format_ok` stay apart; everything that splits positives from failures reads `correct` (method.md
section 1).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from care_jax import structs
from care_jax.parallel.processes import share
from care_jax.rewards import spans
from care_jax.rewards.response_format import ParsedResponse, ResponseFormat
from care_jax.rewards.verifiers.pool import Item, Verifier
from care_jax.rewards.verifiers.verdict import AMBIGUOUS, Verdict
from care_jax.structs import Record

__all__ = ["Item", "Judged", "JudgedText", "Verdict", "Verifier", "judge", "judge_texts", "length_penalty"]

NO_ANSWER = Verdict(False, False, "no answer")


class Judged(NamedTuple):
    """A batch of judged responses; the lists are [B][G], for people and logs."""

    verdicts: structs.Verdicts  # NumPy arrays
    texts: list[list[str]]  # decoded responses, special tokens left out
    extracted: list[list[str | None]]  # content of the answer span, None without one
    reasons: list[list[str]]  # why each verdict is what it is


def length_penalty(response_len: np.ndarray, limit: int, buffer_len: int, penalty: float) -> np.ndarray:
    """Return what is added to the reward of long responses (soft overlong punishment, DAPO, arXiv 2503.14476 eq. 13).

    0 up to `limit - buffer_len` tokens, then linear, -penalty from `limit` on. A `buffer_len` of 0 means no penalty.

    Args:
        response_len: tokens, any shape.
        limit: tokens a response may have, R.
        buffer_len: tokens before the limit where the penalty sets in, 0 to `limit`.
        penalty: reward taken off at the limit, 0 or more.
    Returns:
        float32 of the same shape, 0 or less.
    """
    if not 0 <= buffer_len <= limit or penalty < 0:
        raise ValueError(
            f"overlong_buffer_len={buffer_len}, overlong_penalty={penalty}: the buffer is 0 to {limit} tokens (the "
            "response length), the penalty 0 or more"
        )
    if buffer_len == 0:
        return np.zeros(np.shape(response_len), np.float32)
    overshoot = np.asarray(response_len) - (limit - buffer_len)
    return np.float32(-penalty) * np.clip(overshoot / buffer_len, 0, 1).astype(np.float32)


class JudgedText(NamedTuple):
    """A judged response that came as text."""

    extracted: str | None  # the answer, None without one
    format_ok: bool
    verdict: Verdict


class _Read(NamedTuple):
    """What the bytes of the responses say, before any answer is checked."""

    texts: np.ndarray  # [B, G] str
    extracted: np.ndarray  # [B, G] str or None
    several_answers: np.ndarray  # [B, G] bool
    format_ok: np.ndarray  # [B, G] bool
    think_mask: np.ndarray  # [B, G, R] bool
    answer_mask: np.ndarray  # [B, G, R] bool


def judge(
    verifier: Verifier,
    records: Sequence[Record],
    token_ids: np.ndarray,
    response_len: np.ndarray,
    token_bytes: Sequence[bytes],
    *,
    response_format: ResponseFormat,
    correct_weight: float,
    format_weight: float,
    sampled_len: np.ndarray | None = None,
    overlong_buffer_len: int = 0,
    overlong_penalty: float = 0.0,
) -> Judged:
    """Decode, parse and verify B x G responses. One that gives two different answers is wrong, whatever they are.

    rewards = correct_weight * correct + format_weight * format_ok, less the overlong penalty with R as the limit. The
    masks cover forced tokens too; `sampled_mask` is the caller's to apply.

    Args:
        verifier: the pool that checks the answers.
        records: the B questions.
        token_ids: [B, G, R] int32.
        response_len: [B, G] int32, tokens.
        token_bytes: the bytes of each token id, a `spans.TokenBytes`.
        response_format: the layout that the prompts ask for.
        correct_weight: reward of a correct answer.
        format_weight: reward of a well-formed response.
        sampled_len: [B, G] int32, tokens that the length penalty counts; None: all. Forced ones are not the policy's.
        overlong_buffer_len: tokens before R where the length penalty sets in; 0: none.
        overlong_penalty: reward taken off at R tokens.
    Raises:
        ValueError: shapes that do not fit, a token id without bytes, or a gold that is not of its kind.
    """
    token_ids, response_len = np.asarray(token_ids), np.asarray(response_len)
    _check_shapes(len(records), token_ids, response_len)
    read = _read_responses(token_ids, response_len, token_bytes, response_format)
    asked = [record for record in records for _ in range(response_len.shape[1])]
    verdicts = _check_answers(verifier, asked, read.extracted.ravel().tolist(), read.several_answers.ravel().tolist())
    correct = np.array([verdict.correct for verdict in verdicts], bool).reshape(response_len.shape)
    rewards = correct_weight * correct + format_weight * read.format_ok
    rewards += length_penalty(
        response_len if sampled_len is None else sampled_len, token_ids.shape[-1], overlong_buffer_len, overlong_penalty
    )
    # Any: the struct is annotated with the device's arrays, of which these are the host's form.
    arrays: dict[str, Any] = {
        "correct": correct,
        "parsed": np.array([verdict.parsed for verdict in verdicts], bool).reshape(response_len.shape),
        "format_ok": read.format_ok,
        "rewards": rewards.astype(np.float32),
        "think_mask": read.think_mask,
        "answer_mask": read.answer_mask,
    }
    return Judged(
        structs.Verdicts(**arrays),
        texts=read.texts.tolist(),
        extracted=read.extracted.tolist(),
        reasons=np.array([verdict.reason for verdict in verdicts], object).reshape(response_len.shape).tolist(),
    )


def judge_texts(
    verifier: Verifier, responses: Sequence[tuple[Record, str]], response_format: ResponseFormat
) -> list[JudgedText]:
    """As `judge`, for responses that are texts. Raises ValueError for a gold that is not of its kind."""
    texts = [text.encode(errors="replace") for _, text in responses]
    parsed = [response_format.parse(text) for text in texts]
    extracted = [_answer_in(text, spans) for text, spans in zip(texts, parsed, strict=True)]
    several = [spans.several_answers for spans in parsed]
    verdicts = _check_answers(verifier, [record for record, _ in responses], extracted, several)
    return [
        JudgedText(answer, spans.format_ok, verdict)
        for answer, spans, verdict in zip(extracted, parsed, verdicts, strict=True)
    ]


def _check_shapes(num_records: int, token_ids: np.ndarray, response_len: np.ndarray) -> None:
    if token_ids.ndim != 3 or response_len.shape != token_ids.shape[:2] or num_records != token_ids.shape[0]:
        raise ValueError(
            f"{num_records} records, token_ids {token_ids.shape}, response_len {response_len.shape}: they must be "
            "B records, [B, G, R] and [B, G]"
        )
    if response_len.size and not 0 <= response_len.min() <= response_len.max() <= token_ids.shape[2]:
        raise ValueError(
            f"response_len goes from {response_len.min()} to {response_len.max()}; it must lie in 0 to "
            f"R={token_ids.shape[2]}"
        )


def _read_responses(
    token_ids: np.ndarray, response_len: np.ndarray, token_bytes: Sequence[bytes], response_format: ResponseFormat
) -> _Read:
    read = _Read(
        texts=np.full(response_len.shape, None, object),
        extracted=np.full(response_len.shape, None, object),
        several_answers=np.zeros(response_len.shape, bool),
        format_ok=np.zeros(response_len.shape, bool),
        think_mask=np.zeros(token_ids.shape, bool),
        answer_mask=np.zeros(token_ids.shape, bool),
    )
    for row in np.ndindex(*response_len.shape):
        length = response_len[row]
        pieces = _pieces(token_ids[row][:length], token_bytes)
        text = b"".join(pieces)
        parsed = response_format.parse(text)
        read.texts[row] = text.decode(errors="replace")
        read.extracted[row] = _answer_in(text, parsed)
        read.several_answers[row] = parsed.several_answers
        read.format_ok[row] = parsed.format_ok
        read.think_mask[row][:length], read.answer_mask[row][:length] = spans.span_masks(pieces, parsed)
    return read


def _pieces(ids: np.ndarray, token_bytes: Sequence[bytes]) -> list[bytes]:
    if ids.size and not 0 <= ids.min() <= ids.max() < len(token_bytes):
        raise ValueError(
            f"a response holds token ids {ids.min()} to {ids.max()}, the tokenizer has 0 to {len(token_bytes) - 1}; "
            "the sampler must mask the ids that the tokenizer does not have"
        )
    return [token_bytes[token_id] for token_id in ids.tolist()]


def _answer_in(text: bytes, parsed: ParsedResponse) -> str | None:
    return None if parsed.answer is None else text[slice(*parsed.answer)].decode(errors="replace")


def _check_answers(
    verifier: Verifier, records: Sequence[Record], extracted: Sequence[str | None], several_answers: Sequence[bool]
) -> list[Verdict]:
    """Return the verdict on the answer to each record; every process checks some, and knows all."""
    known: dict[int, Verdict] = {}
    items: dict[int, Item] = {}
    for row, (record, answer) in enumerate(zip(records, extracted, strict=True)):
        if several_answers[row]:
            known[row] = AMBIGUOUS
        elif answer is None:
            known[row] = NO_ANSWER
        else:
            items[row] = Item(record.answer_kind, answer, record.answer, record.choices)
    known |= zip(items, share(verifier.check, list(items.values())), strict=True)
    return [known[row] for row in range(len(records))]
