"""Reflection-guided resampling (docs/method.md section 3): repair one failure a group once, verify it again.

    forced (never in a loss)                        sampled
    <think> failed rationale + repair cue           repaired rationale </think><answer> .. </answer>

One negative of each MIXED group, and with `reflect.all_wrong` the pseudo-anchor of each ALL_WRONG one, all groups in
one batched decode that continues from the prompts' cache.

Deviations from the published code:
1. The forced tokens stay in the context that the update conditions on, or a clean response is trained (`rewrite`).
2. A rationale longer than `max_rationale_len` is cut, so that the repair has room.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from care_jax.errors import InputError
from care_jax.inputs.processor import Processor
from care_jax.inputs.responses import encode_repairs, encode_rewrites
from care_jax.method.objectives import Objective, keeps_forced
from care_jax.method.train_batch import slot_of_repair
from care_jax.rewards.response_format import CLOSING, OPENING, ResponseFormat
from care_jax.rewards.spans import TokenBytes
from care_jax.structs import Forced, Outcome, Rollouts, Subgroup


def forced_width(processor: Processor, objective: Objective) -> int:
    """W, tokens of the longest forced prefix: the tag, the kept rationale and the cue."""
    reflect = objective.reflect
    (shortest,) = encode_repairs(processor, [""], cue=reflect.cue, max_rationale_len=0)
    return len(shortest) + reflect.max_rationale_len


def require_room(processor: Processor, objective: Objective, *, response_len: int) -> None:
    """Checks that the longest forced prefix leaves room in the response.

    Args:
        processor: tokenises the cue.
        objective: whether and how repairs are made.
        response_len: R, rollout.response_len.

    Raises:
        InputError: it fills the response, so that such repairs would never run.
    """
    reflect, width = objective.reflect, forced_width(processor, objective)
    kept = reflect.max_rationale_len
    if reflect.enabled and keeps_forced(objective) and width >= response_len:
        most = kept - (width - response_len) - 1
        raise InputError(
            f"objective.reflect.max_rationale_len={kept}: with the tag and the cue {width} tokens are forced, which "
            f"leaves none of rollout.response_len={response_len} for a repair; "
            f"{f'keep at most {most}, ' if most > 0 else ''}shorten objective.reflect.cue, or raise the response length"
        )


def failed_rationale(text: str, response_format: ResponseFormat) -> str:
    """Cuts the rationale out of a response: from <think> up to </think>, or to the end if that never comes.

    Without <think> it begins with the response, and ends at </think> or before the answer.
    """
    raw = text.encode()
    span = response_format.parse(raw).think
    if span:
        return raw[slice(*span)].decode(errors="replace")
    return min((text.partition(mark)[0] for mark in (CLOSING, response_format.answer[0])), key=len)


def force_prefixes(
    processor: Processor, objective: Objective, *, texts: Sequence[Sequence[str]], subgroup: Subgroup
) -> Forced:
    """Makes the forced openings of a step's reflections (docs/method.md section 3).

    With reflect.source "scratch" nothing is forced: the prompt is sampled once more.

    Args:
        processor: tokenises the openings.
        objective: cue, source and how much of a rationale is kept.
        texts: the decoded rollouts, B lists of G.
        subgroup: NumPy arrays.

    Returns:
        NumPy arrays of one branch a prompt, inactive in a group that has nothing to repair.
    """
    batch = len(texts)
    token_ids = np.zeros((batch, 1, forced_width(processor, objective)), np.int32)
    forced_len = np.zeros((batch, 1), np.int32)
    slot = np.asarray(slot_of_repair(subgroup.outcome))[:, None]
    has_repair = subgroup.outcome == Outcome.MIXED
    if objective.reflect.all_wrong:
        has_repair |= subgroup.outcome == Outcome.ALL_WRONG
    active = has_repair[:, None] & np.take_along_axis(subgroup.valid, slot, axis=1)
    if objective.reflect.source == "rationale":
        groups = np.flatnonzero(active).tolist()
        failed = [texts[b][int(subgroup.index[b, slot[b, 0]])] for b in groups]
        repairs = encode_repairs(
            processor,
            [failed_rationale(text, processor.response_format) for text in failed],
            cue=objective.reflect.cue,
            max_rationale_len=objective.reflect.max_rationale_len,
        )
        for b, ids in zip(groups, repairs, strict=True):
            token_ids[b, 0, : len(ids)] = ids
            forced_len[b, 0] = len(ids)
    return Forced(token_ids=token_ids, forced_len=forced_len, active=active)


def rewrite(processor: Processor, objective: Objective, *, token_bytes: TokenBytes, repaired: Rollouts) -> Rollouts:
    """Makes clean responses of what the reflections sampled, for reflect.train_on "rewrite" (docs/method.md section 3).

    A clean response is `<think>` and what was sampled after the cue, tokenised afresh: the behaviour wanted at test
    time, when there is no failed rationale to look at. With reflect.source "scratch" nothing was forced, and the
    responses stay as they are.

    Args:
        processor: tokenises the clean responses.
        objective: its reflect.source is read.
        token_bytes: decodes what was sampled.
        repaired: the reflections as decoded, one a prompt (NumPy arrays).

    Returns:
        The clean responses. Every token counts as sampled; log-probs are 0 and must be recomputed under this context. A
        response that no longer fits keeps its first R tokens and counts as cut off.
    """
    if objective.reflect.source == "scratch":
        return repaired
    finished = repaired.finished.copy()
    token_ids = np.zeros_like(repaired.token_ids)
    response_len = np.zeros_like(repaired.response_len)
    tried = np.flatnonzero(repaired.sampled_mask.any(axis=(1, 2))).tolist()
    sampled = [repaired.token_ids[b, 0][repaired.sampled_mask[b, 0]].tolist() for b in tried]
    responses = encode_rewrites(processor, [OPENING + token_bytes.text(ids) for ids in sampled])
    for b, ids in zip(tried, responses, strict=True):
        ids = ids if finished[b, 0] else ids[:-1]
        finished[b, 0] &= len(ids) <= token_ids.shape[-1]
        ids = ids[: token_ids.shape[-1]]
        token_ids[b, 0, : len(ids)] = ids
        response_len[b, 0] = len(ids)
    sampled_mask = np.arange(token_ids.shape[-1]) < response_len[..., None]
    return Rollouts(
        token_ids=token_ids,
        response_len=response_len,
        logprobs=np.zeros_like(repaired.logprobs),
        sampled_mask=sampled_mask,
        finished=finished,
    )
