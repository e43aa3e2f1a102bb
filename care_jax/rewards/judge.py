"""Judges a batch of responses: decodes them, finds their spans, verifies the answers and computes the rewards.

`correct` and `format_ok` stay apart: everything that splits positives from failures reads `correct` alone
(docs/method.md section 1).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np

from care_jax.errors import InputError, listed
from care_jax.parallel.processes import ALL_ROWS, HostShare
from care_jax.rewards import functions, spans
from care_jax.rewards.pool import Call, Item, Verifier
from care_jax.rewards.response_format import ParsedResponse, ResponseFormat
from care_jax.rewards.reward import RewardConfig, total_reward
from care_jax.rewards.terms import Term
from care_jax.rewards.verifiers.verdict import AMBIGUOUS, TOO_LONG, Verdict
from care_jax.structs import Record, Rollouts, Verdicts

__all__ = ["Item", "Judged", "JudgedText", "RewardConfig", "Verdict", "Verifier", "judge", "judge_texts"]

NO_ANSWER = Verdict(False, False, "no answer")
# Bytes; a longer response is wrong, unread. Reading runs without a deadline, in time proportional to the length.
MAX_RESPONSE_LEN = 1 << 20
_UNREAD = ParsedResponse(think=None, answer=None, several_answers=False, format_ok=False)


class Judged(NamedTuple):
    """A batch of judged responses; the lists are `[B][G]`, for people and logs."""

    verdicts: Verdicts  # NumPy arrays
    texts: list[list[str]]  # decoded responses, special tokens left out
    extracted: list[list[str | None]]  # content of the answer span, None without one
    reasons: list[list[str]]  # why each verdict is what it is
    parts: Mapping[str, np.ndarray] = MappingProxyType({})  # [B, G] by verify.rewards' name; NaN where there is none


class JudgedText(NamedTuple):
    """A judged response that came as text."""

    extracted: str | None  # the answer, None without one
    format_ok: bool
    verdict: Verdict
    parts: Mapping[str, float] = MappingProxyType({})  # by verify.rewards' name, if asked for; NaN where there is none


class _ReadText(NamedTuple):
    """The contents of one response, before its answer is verified."""

    parsed: ParsedResponse
    extracted: str | None  # the answer
    settled: Verdict | None  # the verdict, if there is no answer to verify


class _ReadResponses(NamedTuple):
    """The contents of B x G responses."""

    texts: np.ndarray  # [B, G] str
    extracted: np.ndarray  # [B, G] str or None
    settled: np.ndarray  # [B, G] Verdict or None, as in _ReadText
    format_ok: np.ndarray  # [B, G] bool
    think_mask: np.ndarray  # [B, G, R] bool
    answer_mask: np.ndarray  # [B, G, R] bool


def judge(
    verifier: Verifier,
    records: Sequence[Record],
    rollouts: Rollouts,
    token_bytes: Sequence[bytes],
    config: RewardConfig,
    share: HostShare = ALL_ROWS,
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
        share: the rows of a batch that these are; if all, the processes check a part of the answers each.

    Returns:
        Verdicts and rewards, and the texts they were read from.

    Raises:
        InputError: shapes that do not fit, a token id without bytes, or a gold that is not of its kind.
    """
    token_ids, response_len = np.asarray(rollouts.token_ids), np.asarray(rollouts.response_len)
    _check_shapes(len(records), token_ids, response_len)
    read = _read_responses(token_ids, response_len, token_bytes, config.response_format)
    sampled_len = np.asarray(rollouts.sampled_mask).sum(-1)
    asked = [record for record in records for _ in range(response_len.shape[1])]
    texts, extracted, settled = (array.ravel().tolist() for array in (read.texts, read.extracted, read.settled))
    verdicts, parts = _verify(verifier, verifier.terms, asked, texts, extracted, settled, share)
    correct = np.array([verdict.correct for verdict in verdicts], bool).reshape(response_len.shape)
    rewards = total_reward(correct, read.format_ok, sampled_len, token_ids.shape[-1], config)
    for term in verifier.terms:
        parts[term.name] = parts[term.name].reshape(response_len.shape)
        rewards += np.float32(term.weight) * np.nan_to_num(parts[term.name])
    return Judged(
        Verdicts(
            correct=correct,
            parsed=np.array([verdict.parsed for verdict in verdicts], bool).reshape(response_len.shape),
            format_ok=read.format_ok,
            rewards=rewards,
            think_mask=read.think_mask,
            answer_mask=read.answer_mask,
        ),
        texts=read.texts.tolist(),
        extracted=read.extracted.tolist(),
        reasons=np.array([verdict.reason for verdict in verdicts], object).reshape(response_len.shape).tolist(),
        parts=parts,
    )


def judge_texts(
    verifier: Verifier,
    responses: Sequence[tuple[Record, str]],
    response_format: ResponseFormat,
    *,
    with_parts: bool = False,
    share: HostShare = ALL_ROWS,
) -> list[JudgedText]:
    """Parses and verifies responses that are texts, by the same rules as `judge`.

    Args:
        verifier: the pool that checks the answers.
        responses: questions, each with the text of a response.
        response_format: how the answer is found.
        with_parts: compute all parts of the reward; if not, the one that says which responses are correct alone.
        share: as in `HostShare.run`; `responses` are those of the process's rows.

    Returns:
        One judgement a response, in order.

    Raises:
        InputError: a gold is not of its kind.
    """
    read = [_read(text.encode(errors="replace"), response_format) for _, text in responses]
    records, texts = [record for record, _ in responses], [text for _, text in responses]
    decides = verifier.correct_when and verifier.correct_when.name
    terms = [term for term in verifier.terms if with_parts or term.name == decides]
    extracted, settled = [one.extracted for one in read], [one.settled for one in read]
    verdicts, parts = _verify(verifier, terms, records, texts, extracted, settled, share)
    return [
        JudgedText(
            one.extracted, one.parsed.format_ok, verdict, {name: float(part[row]) for name, part in parts.items()}
        )
        for row, (one, verdict) in enumerate(zip(read, verdicts, strict=True))
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
        settled=np.full(response_len.shape, None, object),
        format_ok=np.zeros(response_len.shape, bool),
        think_mask=np.zeros(token_ids.shape, bool),
        answer_mask=np.zeros(token_ids.shape, bool),
    )
    for row in np.ndindex(*response_len.shape):
        length = response_len[row]
        pieces = _pieces(token_ids[row][:length], token_bytes)
        text = b"".join(pieces)
        parsed, read.extracted[row], read.settled[row] = _read(text, response_format)
        read.texts[row] = text.decode(errors="replace")
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


def _read(text: bytes, response_format: ResponseFormat) -> _ReadText:
    if len(text) > MAX_RESPONSE_LEN:
        return _ReadText(_UNREAD, None, TOO_LONG)
    parsed = response_format.parse(text)
    if parsed.answer is None:
        return _ReadText(parsed, None, AMBIGUOUS if parsed.several_answers else NO_ANSWER)
    extracted = text[slice(*parsed.answer)].decode(errors="replace")
    return _ReadText(parsed, extracted, AMBIGUOUS if parsed.several_answers else None)


def _verify(
    verifier: Verifier,
    terms: Sequence[Term],
    records: Sequence[Record],
    texts: Sequence[str],
    extracted: Sequence[str | None],
    settled: Sequence[Verdict | None],
    share: HostShare,
) -> tuple[list[Verdict], dict[str, np.ndarray]]:
    """The verdicts on n responses, and the parts of their rewards, [n] each, by the names of the terms."""
    verdicts = _check_answers(verifier, records, extracted, settled, share)
    parts = _reward_parts(verifier, terms, records, texts, extracted, share)
    if verifier.correct_when is None:
        return verdicts, parts
    name, least = verifier.correct_when
    decided = [
        Verdict(value >= least, verdict.parsed or value >= least, f"{name} {value:.3g}")
        for verdict, value in zip(verdicts, parts[name].tolist(), strict=True)
    ]
    return decided, parts


def _check_answers(
    verifier: Verifier,
    records: Sequence[Record],
    extracted: Sequence[str | None],
    settled: Sequence[Verdict | None],
    share: HostShare,
) -> list[Verdict]:
    """Returns the verdict on the answer to each record; a process checks equal answers to one gold once."""
    items = [
        Item(record.answer_kind, answer, record.answer, record.choices)
        for record, answer, verdict in zip(records, extracted, settled, strict=True)
        if verdict is None and answer is not None
    ]
    different = list(dict.fromkeys(items))
    # Verdicts of other processes come as lists.
    found = (Verdict(*verdict) for verdict in share.run(verifier.check, different))
    verdict_on = dict(zip(different, found, strict=True))
    verified = iter(items)
    return [verdict_on[next(verified)] if verdict is None else verdict for verdict in settled]


def _reward_parts(
    verifier: Verifier,
    terms: Sequence[Term],
    records: Sequence[Record],
    texts: Sequence[str],
    extracted: Sequence[str | None],
    share: HostShare,
) -> dict[str, np.ndarray]:
    """The value of each term for n responses, [n] float32 by name; NaN where its function failed twice.

    Raises:
        InputError: a function answered, and never with the part that a term names.
    """
    if not terms:
        return {}
    names = list(dict.fromkeys(term.function for term in terms))
    described = [_describe(record, answer) for record, answer in zip(records, extracted, strict=True)]
    texts = [text[:MAX_RESPONSE_LEN] for text in texts]
    most = max(math.ceil(len(texts) / verifier.num_workers), 1)  # in a call, to keep all workers busy
    sizes = {name: min(functions.load(name).size, most) for name in names}
    calls = [call for name in names for call in _calls(name, described, texts, sizes[name])]
    found = _call_all(verifier, calls, share)
    alone = [call for name in names for call in _calls(name, described, texts, 1)]
    failed = [row for row, value in enumerate(found) if isinstance(value, str)]
    for row, value in zip(failed, _call_all(verifier, [alone[row] for row in failed], share), strict=True):
        found[row] = value
    by_function = {name: found[n * len(records) : (n + 1) * len(records)] for n, name in enumerate(names)}
    for name, some in by_function.items():
        verifier.warn_of_failed(name, some)
    parts: dict[str, np.ndarray] = {}
    for term in terms:
        values = [{} if isinstance(value, str) else value for value in by_function[term.function]]
        given = set().union(*share.exchange(sorted({part for value in values for part in value})))
        if given and term.part not in given:
            known = listed(sorted(part or "one number without a name" for part in given))
            raise InputError(f"verify.rewards: {term.name} is none of what {term.function} returns: {known}")
        parts[term.name] = np.array([value.get(term.part, np.nan) for value in values], np.float32)
    return parts


def _call_all(verifier: Verifier, calls: Sequence[Call], share: HostShare) -> list[dict[str, float] | str]:
    """The value of each response, as `functions.compute` says; each call is made by one process."""
    return [value for values in share.run(verifier.call, list(calls)) for value in values]


def _calls(name: str, records: Sequence[dict[str, Any]], texts: Sequence[str], size: int) -> list[Call]:
    """The calls of a function for n responses, of `size` at once."""
    starts = range(0, len(texts), size)
    return [Call(name, tuple(records[at : at + size]), tuple(texts[at : at + size])) for at in starts]


def _describe(record: Record, answer: str | None) -> dict[str, Any]:
    """A record as reward functions take it, but its meta as JSON or None."""
    names = ("id", "source", "prompt", "images", "answer", "answer_kind", "choices", "meta")
    return {name: getattr(record, name) for name in names} | {"extracted": answer}
