"""Judges a batch of responses: decodes them, finds their spans, verifies the answers and computes the rewards.

`correct` and `format_ok` stay apart: everything that splits positives from failures reads `correct` alone
(docs/method.md section 1).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from care_jax.errors import InputError
from care_jax.parallel.processes import share
from care_jax.rewards import spans
from care_jax.rewards.pool import Item, Verifier
from care_jax.rewards.response_format import ParsedResponse, ResponseFormat
from care_jax.rewards.reward import RewardConfig, total_reward
from care_jax.rewards.verifiers.verdict import AMBIGUOUS, Verdict
from care_jax.structs import Record, Rollouts, Verdicts

__all__ = ["Item", "Judged", "JudgedText", "RewardConfig", "Verdict", "Verifier", "judge", "judge_texts"]

NO_ANSWER = Verdict(False, False, "no answer")


class Judged(NamedTuple):
    """A batch of judged responses; the lists are [B][G], for people and logs."""

    verdicts: Verdicts  # NumPy arrays
    texts: list[list[str]]  # decoded responses, special tokens left out
    extracted: list[list[str | None]]  # content of the answer span, None without one
    reasons: list[list[str]]  # why each verdict is what it is


class JudgedText(NamedTuple):
    """A judged response that came as text."""

    extracted: str | None  # the answer, None without one
    format_ok: bool
    verdict: Verdict


class _ReadResponses(NamedTuple):
    """The contents of B x G responses, before any answer is verified."""

    texts: np.ndarray  # [B, G] str
    extracted: np.ndarray  # [B, G] str or None
    several_answers: np.ndarray  # [B, G] bool
    format_ok: np.ndarray  # [B, G] bool
    think_mask: np.ndarray  # [B, G, R] bool
    answer_mask: np.ndarray  # [B, G, R] bool


def judge(
    verifier: Verifier,
    records: Sequence[Record],
    rollouts: Rollouts,
    token_bytes: Sequence[bytes],
    config: RewardConfig,
) -> Judged:
    """Decodes, parses and verifies B x G responses, and computes their rewards.

    A response that gives two different answers is wrong, even if one of them is right. The span masks cover forced
    tokens too; applying `sampled_mask` is left to the caller.

    Args:
        verifier: the pool that checks the answers.
        records: the B questions.
        rollouts: the responses, [B, G, R]; NumPy arrays, or arrays that NumPy can read.
        token_bytes: the bytes of each token id, a `spans.TokenBytes`.
        config: the layout of a response and the weights of the reward.

    Returns:
        Verdicts and rewards, and the texts they were read from.

    Raises:
        InputError: shapes that do not fit, a token id without bytes, or a gold that is not of its kind.
    """
    token_ids, response_len = np.asarray(rollouts.token_ids), np.asarray(rollouts.response_len)
    _check_shapes(len(records), token_ids, response_len)
    read = _read_responses(token_ids, response_len, token_bytes, config.response_format)
    asked = [record for record in records for _ in range(response_len.shape[1])]
    verdicts = _check_answers(verifier, asked, read.extracted.ravel().tolist(), read.several_answers.ravel().tolist())
    correct = np.array([verdict.correct for verdict in verdicts], bool).reshape(response_len.shape)
    sampled_len = np.asarray(rollouts.sampled_mask).sum(-1)
    return Judged(
        Verdicts(
            correct=correct,
            parsed=np.array([verdict.parsed for verdict in verdicts], bool).reshape(response_len.shape),
            format_ok=read.format_ok,
            rewards=total_reward(correct, read.format_ok, sampled_len, token_ids.shape[-1], config),
            think_mask=read.think_mask,
            answer_mask=read.answer_mask,
        ),
        texts=read.texts.tolist(),
        extracted=read.extracted.tolist(),
        reasons=np.array([verdict.reason for verdict in verdicts], object).reshape(response_len.shape).tolist(),
    )


def judge_texts(
    verifier: Verifier, responses: Sequence[tuple[Record, str]], response_format: ResponseFormat
) -> list[JudgedText]:
    """Parses and verifies responses that are texts, by the same rules as `judge`.

    Args:
        verifier: the pool that checks the answers.
        responses: questions, each with the text of a response.
        response_format: how the answer is found.

    Returns:
        One judgement a response, in order.

    Raises:
        InputError: a gold is not of its kind.
    """
    texts = [text.encode(errors="replace") for _, text in responses]
    parsed = [response_format.parse(text) for text in texts]
    extracted = [_answer_in(text, found) for text, found in zip(texts, parsed, strict=True)]
    several = [found.several_answers for found in parsed]
    verdicts = _check_answers(verifier, [record for record, _ in responses], extracted, several)
    return [
        JudgedText(answer, found.format_ok, verdict)
        for answer, found, verdict in zip(extracted, parsed, verdicts, strict=True)
    ]


def _check_shapes(num_records: int, token_ids: np.ndarray, response_len: np.ndarray) -> None:
    if token_ids.ndim != 3 or response_len.shape != token_ids.shape[:2] or num_records != token_ids.shape[0]:
        raise InputError(
            f"{num_records} records, token_ids {token_ids.shape}, response_len {response_len.shape}: they must be "
            "B records, [B, G, R] and [B, G]"
        )
    if response_len.size and not 0 <= response_len.min() <= response_len.max() <= token_ids.shape[2]:
        raise InputError(
            f"response_len goes from {response_len.min()} to {response_len.max()}; it must lie in 0 to "
            f"R={token_ids.shape[2]}"
        )


def _read_responses(
    token_ids: np.ndarray, response_len: np.ndarray, token_bytes: Sequence[bytes], response_format: ResponseFormat
) -> _ReadResponses:
    read = _ReadResponses(
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
        raise InputError(
            f"a response holds token ids {ids.min()} to {ids.max()}, the tokenizer has 0 to {len(token_bytes) - 1}; "
            "the sampler must mask the ids that the tokenizer does not have"
        )
    return [token_bytes[token_id] for token_id in ids.tolist()]


def _answer_in(text: bytes, parsed: ParsedResponse) -> str | None:
    return None if parsed.answer is None else text[slice(*parsed.answer)].decode(errors="replace")


def _check_answers(
    verifier: Verifier, records: Sequence[Record], extracted: Sequence[str | None], several_answers: Sequence[bool]
) -> list[Verdict]:
    """Returns the verdict on the answer to each record; the processes of a run check a share each and exchange them."""
    known: dict[int, Verdict] = {}
    items: dict[int, Item] = {}
    for row, (record, answer) in enumerate(zip(records, extracted, strict=True)):
        if several_answers[row]:
            known[row] = AMBIGUOUS
        elif answer is None:
            known[row] = NO_ANSWER
        else:
            items[row] = Item(record.answer_kind, answer, record.answer, record.choices)
    # Verdicts of other processes come as lists.
    checked = (Verdict(*verdict) for verdict in share(verifier.check, list(items.values())))
    known |= zip(items, checked, strict=True)
    return [known[row] for row in range(len(records))]
