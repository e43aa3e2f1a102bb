"""Reflection-guided resampling (method.md section 3): repair the nearest failure once, verify it again.

    forced (never in a loss)                        sampled
    <think> failed rationale + repair cue           repaired rationale </think><answer> .. </answer>

One negative of each MIXED group, all groups in one batched decode that continues from the prompts' cache.
Differs from the published code in two points: the forced tokens stay in the context the update conditions on
(or a clean response is trained, see `rewrite`), and a rationale longer than `max_rationale_len` is cut, so that the
repair has room.
"""

from __future__ import annotations

from collections.abc import Sequence

import ml_collections
import numpy as np

from care_jax.inputs.processor import Processor
from care_jax.inputs.responses import encode_repair, encode_rewrite
from care_jax.method.train_batch import REFLECTED_SLOT
from care_jax.rewards.response_format import ResponseFormat
from care_jax.rewards.spans import TokenBytes
from care_jax.structs import Forced, Outcome, Rollouts, Subgroup

SOURCES = ("rationale", "scratch")
TRAINED_ON = ("continuation", "rewrite")
_OPENING = "<think>"


def keeps_forced(objective: ml_collections.ConfigDict | ml_collections.FrozenConfigDict) -> bool:
    """Whether forced tokens lie in the response that is trained, and share its room with the repair."""
    return objective.reflect.source == "rationale" and objective.reflect.train_on == "continuation"


def forced_width(processor: Processor, objective: ml_collections.ConfigDict) -> int:
    """F, tokens of the longest forced prefix: the tag, the kept rationale and the cue."""
    reflect = objective.reflect
    return len(encode_repair(processor, "", cue=reflect.cue, max_rationale_len=0)) + reflect.max_rationale_len


def require_room(processor: Processor, config: ml_collections.ConfigDict) -> None:
    """Raises ValueError where the longest forced prefix fills the response: such repairs would never run."""
    o, limit = config.objective.reflect, config.rollout.response_len
    kept, width = o.max_rationale_len, forced_width(processor, config.objective)
    if o.enabled and keeps_forced(config.objective) and width >= limit:
        most = kept - (width - limit) - 1
        raise ValueError(
            f"objective.reflect.max_rationale_len={kept}: with the tag and the cue {width} tokens are forced, which "
            f"leaves none of rollout.response_len={limit} for a repair; {f'keep at most {most}, ' if most > 0 else ''}"
            "shorten objective.reflect.cue, or raise the response length"
        )


def failed_rationale(text: str, response_format: ResponseFormat) -> str:
    """The rationale of a response: inside <think> up to </think> or its end. Without <think> it begins with the
    response, and ends at </think> or where an answer begins."""
    raw = text.encode()
    span = response_format.parse(raw).think
    if span:
        return raw[slice(*span)].decode(errors="replace")
    return min((text.split(mark)[0] for mark in ("</think>", response_format.answer[0])), key=len)


def force_prefixes(
    processor: Processor,
    objective: ml_collections.ConfigDict,
    *,
    texts: Sequence[Sequence[str]],
    subgroup: Subgroup,
) -> Forced:
    """The forced openings of a step's reflections (NumPy), inactive where the group has nothing to repair.

    `texts` are the decoded rollouts [B][G]; `subgroup` holds NumPy arrays. With reflect.source "scratch" nothing is
    forced: the prompt is sampled once more.
    """
    batch = len(texts)
    token_ids = np.zeros((batch, 1, forced_width(processor, objective)), np.int32)
    forced_len = np.zeros((batch, 1), np.int32)
    active = (subgroup.outcome == Outcome.MIXED)[:, None] & subgroup.valid[:, REFLECTED_SLOT, None]
    if objective.reflect.source == "rationale":
        for b in np.flatnonzero(active).tolist():
            text = texts[b][int(subgroup.index[b, REFLECTED_SLOT])]
            ids = encode_repair(
                processor,
                failed_rationale(text, processor.response_format),
                cue=objective.reflect.cue,
                max_rationale_len=objective.reflect.max_rationale_len,
            )
            token_ids[b, 0, : len(ids)] = ids
            forced_len[b, 0] = len(ids)
    return Forced(token_ids=token_ids, forced_len=forced_len, active=active)


def rewrite(
    processor: Processor, objective: ml_collections.ConfigDict, *, token_bytes: TokenBytes, repaired: Rollouts
) -> Rollouts:
    """Clean responses from what reflections sampled [B, 1, R] (reflect.train_on "rewrite").

    `<think>` and what was sampled after the cue, tokenised afresh: the behaviour wanted at test time, where there is
    no failed rationale to look at. Every token counts as sampled; log-probs must be recomputed under this context.
    A rewrite that no longer fits into R keeps its first R tokens and counts as cut off. With reflect.source "scratch"
    nothing was forced, and the responses stay as they are.
    """
    if objective.reflect.source == "scratch":
        return repaired
    finished = repaired.finished.copy()
    token_ids = np.zeros_like(repaired.token_ids)
    response_len = np.zeros_like(repaired.response_len)
    for b in np.flatnonzero(repaired.sampled_mask.any(axis=(1, 2))):
        sampled = repaired.token_ids[b, 0][repaired.sampled_mask[b, 0]]
        ids = encode_rewrite(processor, _OPENING + token_bytes.text(sampled.tolist()))
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
