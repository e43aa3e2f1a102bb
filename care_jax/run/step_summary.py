"""The record of a step: its metrics, an event for each group, and sample groups for the report.

Takes host arrays and gives plain values, which metrics_writer.py writes.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import ml_collections
import numpy as np
from jaxtyping import Bool

from care_jax.inputs.images import decode_image
from care_jax.method.advantage import SubgroupAdvantages
from care_jax.method.train_batch import REFLECTED_SLOT, Reflection
from care_jax.rewards.judge import Judged, Verdict
from care_jax.rewards.pool import DEADLINE, WORKER_DIED
from care_jax.rewards.spans import TokenBytes
from care_jax.run.folder import Event, ReflectionSample, RolloutSample, Sample
from care_jax.structs import Array, Forced, Outcome, Record, Rollouts, Scores, Subgroup, TrainBatch

_LARGEST_IMAGE = 64 << 10  # bytes that are shown as they are
_THUMBNAIL_SIDE = 448  # pixels


class Drawn(NamedTuple):
    """All groups that were sampled for a step; dynamic sampling drops some of them before the update."""

    records: Sequence[Record]
    judged: Judged
    num_tokens: int  # sampled
    num_draws: int  # batches of prompts


class Reflected(NamedTuple):
    """The reflections as they were decoded, before one is rewritten for the update."""

    forced: Forced  # J = 1
    sampled: Rollouts  # J = 1


class Step(NamedTuple):
    """The results of a finished step's stages, as NumPy arrays."""

    records: Sequence[Record]
    rollouts: Rollouts
    judged: Judged
    drawn: Drawn
    scores: Scores
    scored: Bool[np.ndarray, "B"]  # groups that have scores, those that may get a gradient
    subgroup: Subgroup
    reflection: Reflection
    reflected: Reflected | None  # None if the objective has no reflection
    batch: TrainBatch
    advantages: SubgroupAdvantages


def read_step(read: Callable[[str], Any], drawn: Drawn, config: ml_collections.ConfigDict) -> Step:
    """The values of a step as its summary wants them; `read` gives the host's copy of one by name."""
    records = read("records")
    return Step(
        records=records,
        rollouts=read("rollouts"),
        judged=read("judged"),
        drawn=drawn,
        scores=read("scores"),
        scored=read("scored") if config.score.old_from == "pass" else np.ones(len(records), bool),
        subgroup=read("subgroup"),
        reflection=read("reflection"),
        reflected=Reflected(read("forced"), read("repaired")) if config.objective.reflect.enabled else None,
        batch=read("batch"),
        advantages=read("advantages"),
    )


def join_judged(parts: Sequence[Judged]) -> Judged:
    """One batch of several."""
    verdicts = jax.tree.map(lambda *xs: np.concatenate(xs), *[part.verdicts for part in parts])
    return Judged(
        verdicts,
        texts=[row for part in parts for row in part.texts],
        extracted=[row for part in parts for row in part.extracted],
        reasons=[row for part in parts for row in part.reasons],
        parts={name: np.concatenate([part.parts[name] for part in parts]) for name in parts[0].parts},
    )


def judged_row(judged: Judged, b: int) -> Judged:
    """Group b alone, as a batch of 1."""
    verdicts = jax.tree.map(lambda x: x[b : b + 1], judged.verdicts)
    parts = {name: values[b : b + 1] for name, values in judged.parts.items()}
    return Judged(verdicts, judged.texts[b : b + 1], judged.extracted[b : b + 1], judged.reasons[b : b + 1], parts)


def join_drawn(draws: Sequence[Drawn]) -> Drawn:
    """All draws of a step."""
    return Drawn(
        records=[record for draw in draws for record in draw.records],
        judged=join_judged([draw.judged for draw in draws]),
        num_tokens=sum(draw.num_tokens for draw in draws),
        num_draws=sum(draw.num_draws for draw in draws),
    )


def _mean(values: Array, where: Array) -> float:
    """Mean of values over a mask; 0 if the mask is empty."""
    return float(np.sum(values * where) / max(np.sum(where), 1))


def metrics(step: Step, *, anchored: bool) -> dict[str, float]:
    """The step's scalars. Shares are of groups or rollouts; a rescued group never counts as a success.

    Rewards, accuracy, format and outcomes cover all groups that were drawn, the rest only those that are updated;
    entropy and the gap to the sampler cover those that are scored, and are left out if none is.
    """
    verdicts, rollouts = step.drawn.judged.verdicts, step.rollouts
    sampled, some, every = rollouts.sampled_mask, verdicts.correct.any(axis=1), verdicts.correct.all(axis=1)
    values = {
        "accuracy/train": float(np.mean(verdicts.correct)),
        "reward/mean": float(np.mean(verdicts.rewards)),
        "format_rate": float(np.mean(verdicts.format_ok)),
        "unparsed_rate": 1.0 - float(np.mean(verdicts.parsed)),
        "verify/deadline": _share_of(DEADLINE, step.drawn.judged),
        "verify/died": _share_of(WORKER_DIED, step.drawn.judged),
        "groups/mixed": float(np.mean(some & ~every)),
        "groups/all_wrong": float(np.mean(~some)),
        "groups/all_correct": float(np.mean(every)),
        "response_len/mean": float(np.mean(sampled.sum(-1))),
        "truncated_rate": 1.0 - float(np.mean(rollouts.finished)),
        "tokens/rollout": step.drawn.num_tokens,
        "tokens/reflect": int(step.reflected.sampled.sampled_mask.sum()) if step.reflected else 0,
        "advantage/failure_share": _failure_share(step),
    }
    scored = sampled & step.scored[:, None, None]
    if scored.any():
        values["entropy"] = _mean(step.scores.entropy, scored)
        if rollouts.entropy is None:  # else the sampler's scores are used, and only the update can tell
            gap = np.abs(rollouts.logprobs - step.scores.logprobs)
            values |= {"logprob_gap/mean": _mean(gap, scored), "logprob_gap/max": float(np.max(gap * scored))}
    for source in sorted({record.source for record in step.drawn.records}):
        rows = np.array([record.source == source for record in step.drawn.records])
        values[f"accuracy/train/{source}"] = float(np.mean(verdicts.correct[rows]))
    for name, part in step.drawn.judged.parts.items():
        values |= {f"rewards/{name}": _mean(np.nan_to_num(part), np.isfinite(part))}
        values |= {f"rewards_failed/{name}": float(np.mean(np.isnan(part)))}
    if anchored:
        values |= _subgroup_metrics(step)
    return values


def _share_of(verdict: Verdict, judged: Judged) -> float:
    """The share of rollouts with a verdict, known by its reason."""
    return float(np.mean(np.array(judged.reasons, object) == verdict.reason))


def _failure_share(step: Step) -> float:
    """The share of the absolute advantage that comes from rows that started as failures."""
    magnitude = np.abs(step.advantages.final)
    failed = ~np.take_along_axis(step.judged.verdicts.correct, np.asarray(step.subgroup.index), axis=1)
    return float(np.sum(magnitude * failed) / max(np.sum(magnitude), 1e-12))


def _subgroup_metrics(step: Step) -> dict[str, float]:
    subgroup, final, tried = step.subgroup, step.advantages.final, step.reflection.tried
    mixed, all_wrong = subgroup.outcome == Outcome.MIXED, subgroup.outcome == Outcome.ALL_WRONG
    anchor = (np.arange(final.shape[1]) == 0)[None] & subgroup.valid
    negative = subgroup.valid & ~anchor
    negative[:, REFLECTED_SLOT] &= ~(tried & step.reflection.correct)
    count = np.bincount(subgroup.num_negatives, minlength=final.shape[1])
    values = {f"subgroup/num_negatives_{k}": float(n) / len(tried) for k, n in enumerate(count)} | {
        "advantage/anchor": _mean(final, anchor & mixed[:, None]),
        "advantage/negative": _mean(final, negative & mixed[:, None]),
        "reflect/tried": float(np.sum(tried)),
        "rescue/rate": float(np.mean(all_wrong & subgroup.valid[:, 0])),
    }
    return values | ({"reflect/success_rate": _mean(step.reflection.correct, tried)} if tried.any() else {})


def events(step: Step, *, anchored: bool) -> list[Event]:
    """The event of each group that was updated."""
    lines: list[Event] = []
    for b, record in enumerate(step.records):
        valid = step.subgroup.valid[b]
        index = step.subgroup.index[b][valid].tolist()
        has_anchor = anchored and bool(index)
        tried = bool(step.reflection.tried[b])
        lines.append(
            {
                "id": record.id,
                "source": record.source,
                "outcome": Outcome(int(step.subgroup.outcome[b])).name,
                "anchor": index[0] if has_anchor else None,
                "negatives": index[1:] if has_anchor else [],
                "num_negatives": int(step.subgroup.num_negatives[b]),
                "advantages_raw": step.advantages.raw[b][valid].tolist(),
                "advantages": step.advantages.final[b][valid].tolist(),
                "reflected": index[REFLECTED_SLOT] if tried else None,
                "reflection_correct": bool(step.reflection.correct[b]) if tried else None,
            }
        )
    return lines


def most_telling(step: Step) -> int:
    """The group to show in full: one with a successful reflection, else a MIXED one, else the first."""
    mixed = step.subgroup.outcome == Outcome.MIXED
    return int(np.argmax(2 * (step.reflection.tried & step.reflection.correct) + mixed))


def sample(step: Step, b: int, *, anchored: bool, cue: str, token_bytes: TokenBytes) -> Sample:
    """Group b in full: question, images, rollouts with their roles, the reflection."""
    record, subgroup = step.records[b], step.subgroup
    advantage = dict.fromkeys(range(len(step.judged.texts[b])), 0.0)
    role = dict.fromkeys(advantage, "unselected")
    for slot in np.flatnonzero(subgroup.valid[b]):
        row = int(subgroup.index[b, slot])
        advantage[row] = float(step.advantages.final[b, slot])
        role[row] = ("anchor" if slot == 0 else "negative") if anchored else "updated"
    reflection: ReflectionSample | None = None
    if step.reflected and step.reflection.tried[b]:
        row = int(subgroup.index[b, REFLECTED_SLOT])
        role[row] = "reflected"
        forced, sampled = step.reflected
        given = token_bytes.text(forced.token_ids[b, 0, : forced.forced_len[b, 0]])
        reflection = {
            "rollout": row,
            "before": given.removesuffix(cue),
            "cue": cue if given else "",
            "after": token_bytes.text(sampled.token_ids[b, 0][sampled.sampled_mask[b, 0]]),
            "correct": bool(step.reflection.correct[b]),
        }
    verdicts = step.judged.verdicts
    rollouts: list[RolloutSample] = [
        {
            "text": step.judged.texts[b][g],
            "extracted": step.judged.extracted[b][g],
            "correct": bool(verdicts.correct[b, g]),
            "format_ok": bool(verdicts.format_ok[b, g]),
            "parsed": bool(verdicts.parsed[b, g]),
            "role": role[g],
            "advantage": advantage[g],
            "response_len": int(step.rollouts.response_len[b, g]),
        }
        for g in advantage
    ]
    return {
        "id": record.id,
        "source": record.source,
        "images": [_data_url(image) for image in (*record.images, *(video.frames[0] for video in record.videos))],
        "prompt": record.prompt,
        "answer": record.answer,
        "outcome": Outcome(int(subgroup.outcome[b])).name,
        "rollouts": rollouts,
        "reflection": reflection,
    }


def _data_url(image: bytes) -> str:
    """An image as a data URL; a large one is scaled down, because a report holds hundreds."""
    if len(image) > _LARGEST_IMAGE:
        picture, shown = decode_image(image), io.BytesIO()
        picture.thumbnail((_THUMBNAIL_SIDE, _THUMBNAIL_SIDE))
        picture.save(shown, "JPEG", quality=85)
        image = shown.getvalue()
    kind = "png" if image.startswith(b"\x89PNG") else "jpeg"
    return f"data:image/{kind};base64,{base64.b64encode(image).decode()}"
