"""The record of a step: its metrics, and an event for each group.

Takes host arrays and gives plain values, which metrics_writer.py writes.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import ml_collections
import numpy as np
from jaxtyping import Bool

from care_jax.method.advantage import SubgroupAdvantages
from care_jax.method.train_batch import REFLECTED_SLOT, Reflection, slot_of_repair, turned_groups
from care_jax.parallel.processes import ALL_ROWS, HostShare
from care_jax.rewards.judge import Judged, Verdict
from care_jax.rewards.pool import DEADLINE, WORKER_DIED
from care_jax.run.folder import Event
from care_jax.structs import Array, Forced, Outcome, Record, Rollouts, Scores, Subgroup, TrainBatch


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


class _Totals(NamedTuple):
    """The sums and counts that metrics are made of; those of several processes add up."""

    means: dict[str, list[float]]  # a sum over rows, and what it is divided by
    sums: dict[str, float]
    most: dict[str, float]

    @classmethod
    def join(cls, parts: Sequence[Any]) -> _Totals:
        """The totals of all rows; those of other processes come as lists."""
        means, sums, most = ([dict(part[field]) for part in parts] for field in range(3))
        return cls(
            {name: [sum(pair) for pair in zip(*found, strict=True)] for name, found in _by_name(means).items()},
            {name: sum(found) for name, found in _by_name(sums).items()},
            {name: max(found) for name, found in _by_name(most).items()},
        )


def _by_name(parts: Sequence[dict[str, Any]]) -> dict[str, list[Any]]:
    """The values under each name, of the parts that have it."""
    return {name: [part[name] for part in parts if name in part] for name in dict.fromkeys(itertools.chain(*parts))}


def metrics(step: Step, *, anchored: bool, share: HostShare = ALL_ROWS) -> dict[str, float]:
    """The step's scalars. Shares are of groups or rollouts; a rescued group never counts as a success.

    Rewards, accuracy, format and outcomes cover all groups that were drawn, the rest only those that are updated;
    entropy and the gap to the sampler cover those that are scored, and are left out if none is.

    Args:
        step: the rows of `share`.
        anchored: True if subgroups have an anchor.
        share: this process's rows; the processes exchange their sums.
    """
    totals = _Totals.join(share.exchange(_totals(step, anchored=anchored)))
    values = totals.sums | totals.most
    values |= {
        name: total / max(count, 1e-12)
        for name, (total, count) in totals.means.items()
        if count or name not in ("entropy", "logprob_gap/mean", "reflect/success_rate", "reflect/turned_rate")
    }
    for name in ("reward/mean", "advantage/failure_share"):  # quotients of float32
        values[name] = float(np.float32(values[name]))
    for name, opposite in (("unparsed_rate", "parsed"), ("truncated_rate", "finished")):
        values[name] = 1.0 - values.pop(opposite)
    return values


def _totals(step: Step, *, anchored: bool) -> _Totals:
    verdicts, rollouts = step.drawn.judged.verdicts, step.rollouts
    sampled, some, every = rollouts.sampled_mask, verdicts.correct.any(axis=1), verdicts.correct.all(axis=1)
    scored = sampled & step.scored[:, None, None]
    magnitude = np.abs(step.advantages.final)
    failed = ~np.take_along_axis(step.judged.verdicts.correct, np.asarray(step.subgroup.index), axis=1)
    means = {
        "accuracy/train": _total(verdicts.correct),
        "reward/mean": _total(verdicts.rewards),
        "format_rate": _total(verdicts.format_ok),
        "parsed": _total(verdicts.parsed),
        "verify/deadline": _total(_are(DEADLINE, step.drawn.judged)),
        "verify/died": _total(_are(WORKER_DIED, step.drawn.judged)),
        "groups/mixed": _total(some & ~every),
        "groups/all_wrong": _total(~some),
        "groups/all_correct": _total(every),
        "groups/no_gradient": _total(~(magnitude > 0).any(axis=1)),  # of those that are updated
        "entropy": _total(step.scores.entropy, scored),
        "response_len/mean": _total(sampled.sum(-1)),
        "finished": _total(rollouts.finished),
        # The share of the absolute advantage that comes from rows that started as failures.
        "advantage/failure_share": [float(np.sum(magnitude * failed)), float(np.sum(magnitude))],
    }
    sums: dict[str, float] = {
        "tokens/rollout": step.drawn.num_tokens,
        "tokens/reflect": int(step.reflected.sampled.sampled_mask.sum()) if step.reflected else 0,
    }
    most: dict[str, float] = {}
    if rollouts.entropy is None:  # else the sampler's scores are used, and only the update can tell
        gap = np.abs(rollouts.logprobs - step.scores.logprobs)
        means["logprob_gap/mean"] = _total(gap, scored)
        most = {"logprob_gap/max": float(np.max(gap * scored))} if scored.any() else {}
    for source in sorted({record.source for record in step.drawn.records}):
        rows = np.array([record.source == source for record in step.drawn.records])
        means[f"accuracy/train/{source}"] = _total(verdicts.correct[rows])
    for name, part in step.drawn.judged.parts.items():
        means |= {f"rewards/{name}": _total(np.nan_to_num(part), np.isfinite(part))}
        means |= {f"rewards_failed/{name}": _total(np.isnan(part))}
    if anchored:
        of_subgroups = _subgroup_totals(step)
        means, sums = means | of_subgroups.means, sums | of_subgroups.sums
    return _Totals(means, sums, most)


def _total(values: Any, where: Any = None) -> list[float]:
    """The sum of an array over a mask, and how many values that are."""
    if where is None:
        return [float(np.sum(values)), values.size]
    return [float(np.sum(values * where)), int(np.sum(where))]


def _are(verdict: Verdict, judged: Judged) -> Array:
    """The rollouts with a verdict, known by its reason."""
    return np.array(judged.reasons, object) == verdict.reason


def _subgroup_totals(step: Step) -> _Totals:
    subgroup, final, tried = step.subgroup, step.advantages.final, step.reflection.tried
    mixed, all_wrong = subgroup.outcome == Outcome.MIXED, subgroup.outcome == Outcome.ALL_WRONG
    slot = np.arange(final.shape[1])[None]
    anchor = subgroup.valid & (slot == 0)
    negative = subgroup.valid & (slot > 0) & (slot <= subgroup.num_negatives[:, None])
    negative[:, REFLECTED_SLOT] &= ~(tried & step.reflection.correct)
    turned = turned_groups(subgroup.outcome, tried, step.reflection.correct)
    count = np.bincount(subgroup.num_negatives, minlength=final.shape[1])
    means = {f"subgroup/num_negatives_{k}": [float(n), len(tried)] for k, n in enumerate(count)} | {
        "advantage/anchor": _total(final, anchor & mixed[:, None]),
        "advantage/negative": _total(final, negative & mixed[:, None]),
        "rescue/rate": _total(all_wrong & subgroup.valid[:, 0] & ~turned),
        "reflect/success_rate": _total(step.reflection.correct, tried),
        "reflect/turned_rate": _total(turned, all_wrong & tried),
    }
    return _Totals(means, {"reflect/tried": float(np.sum(tried))}, {})


def events(step: Step, *, anchored: bool) -> list[Event]:
    """The event of each group that was updated."""
    lines: list[Event] = []
    slots = slot_of_repair(step.subgroup.outcome)
    for b, record in enumerate(step.records):
        valid = step.subgroup.valid[b]
        index = step.subgroup.index[b][valid].tolist()
        num_negatives = int(step.subgroup.num_negatives[b])
        has_anchor = anchored and bool(index)
        tried = bool(step.reflection.tried[b])
        lines.append(
            {
                "id": record.id,
                "source": record.source,
                "outcome": Outcome(int(step.subgroup.outcome[b])).name,
                "anchor": index[0] if has_anchor else None,
                "negatives": index[1 : 1 + num_negatives] if has_anchor else [],
                "num_negatives": num_negatives,
                "positives": index[1 + num_negatives :] if has_anchor else [],
                "advantages_raw": step.advantages.raw[b][valid].tolist(),
                "advantages": step.advantages.final[b][valid].tolist(),
                "reflected": int(step.subgroup.index[b, slots[b]]) if tried else None,
                "reflection_correct": bool(step.reflection.correct[b]) if tried else None,
            }
        )
    return lines
