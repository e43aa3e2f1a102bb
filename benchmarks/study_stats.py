"""The study's figures: from records of runs to means with intervals, differences, costs, and what they say of claims.

Intervals are 95 % by Student's t over seeds. Differences are taken seed by seed: the arms of a seed share its cold
start and its prompts, so most of what differs between seeds cancels.
"""

from __future__ import annotations

import collections
import math
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import scipy.stats

Record = Mapping[str, Any]
FINAL_SHARE = 0.25  # of a run's steps, at its end, whose evaluations are its final accuracy


class Interval(NamedTuple):
    """A mean over seeds and half the width of its 95 % interval; NaN for one seed."""

    mean: float
    half: float
    num_seeds: int

    @property
    def low(self) -> float:
        return self.mean - self.half

    @property
    def high(self) -> float:
        return self.mean + self.half


def interval(values: Iterable[float]) -> Interval:
    """Mean and interval of values that are independent, one a seed.

    Raises:
        statistics.StatisticsError: no values.
    """
    values = list(values)
    mean, count = statistics.fmean(values), len(values)
    if count < 2:
        return Interval(mean, math.nan, count)
    half = float(scipy.stats.t.ppf(0.975, count - 1)) * statistics.stdev(values) / math.sqrt(count)
    return Interval(mean, half, count)


class Results:
    """The records of a study by task and arm."""

    def __init__(self, records: Iterable[Record]) -> None:
        by_kind: dict[str, dict[tuple[str, str], dict[int, Record]]] = {
            "training": collections.defaultdict(dict),
            "noise": collections.defaultdict(dict),
        }
        for record in records:
            by_kind[record["kind"]][record["task"], record["arm"]][record["seed"]] = record
        self._trained, self._noise = by_kind["training"], by_kind["noise"]

    def seeds(self, task: str, arm: str) -> Mapping[int, Record]:
        """The training runs of an arm by seed; empty where there are none yet."""
        return self._trained.get((task, arm), {})

    def noise(self, task: str, arm: str) -> Sequence[Record]:
        """The runs that measured the gradient's noise."""
        return list(self._noise.get((task, arm), {}).values())

    def over_seeds(self, task: str, arm: str, measure: Callable[[Record], float | None]) -> Interval | None:
        """A measure of an arm's runs; None without runs that have it."""
        values = [value for record in self.seeds(task, arm).values() if (value := measure(record)) is not None]
        return interval(values) if values else None

    def difference(
        self, task: str, arm: str, baseline: str, measure: Callable[[Record], float | None]
    ) -> Interval | None:
        """`arm` less `baseline`, over the seeds that both have; None where there are none."""
        ours, theirs = self.seeds(task, arm), self.seeds(task, baseline)
        pairs = [(measure(ours[seed]), measure(theirs[seed])) for seed in sorted(ours.keys() & theirs.keys())]
        values = [a - b for a, b in pairs if a is not None and b is not None]
        return interval(values) if values else None


def final(record: Record, skill: str = "mean") -> float:
    """Held-out accuracy: the mean of the evaluations in the last quarter of the steps."""
    evaluations = record["evaluations"]
    first = (1.0 - FINAL_SHARE) * evaluations[-1]["step"]
    return statistics.fmean(each["accuracy"][skill] for each in evaluations if each["step"] > first)


def start(record: Record) -> float:
    """Held-out accuracy of the cold start."""
    return record["evaluations"][0]["accuracy"]["mean"]


def area(record: Record) -> float:
    """Mean height of the learning curve over the steps (trapezoids)."""
    steps, accuracy = _curve(record, "step")
    return float(np.trapezoid(accuracy, steps) / (steps[-1] - steps[0]))


def accuracy_at(record: Record, axis: str, budget: float) -> float | None:
    """Held-out accuracy when `budget` of "tokens" or "seconds" was spent, between evaluations by a straight line; None
    where the run spent less."""
    spent, accuracy = _curve(record, axis)
    return float(np.interp(budget, spent, accuracy)) if budget <= spent[-1] * (1 + 1e-9) else None


def steps_to(record: Record, target: float) -> float | None:
    """Steps after which the learning curve first reaches `target`; None where it never does."""
    steps, accuracy = _curve(record, "step")
    for i in np.flatnonzero(accuracy >= target):
        if i == 0:
            return float(steps[0])
        share = (target - accuracy[i - 1]) / (accuracy[i] - accuracy[i - 1])
        return float(steps[i - 1] + share * (steps[i] - steps[i - 1]))
    return None


def _curve(record: Record, axis: str) -> tuple[np.ndarray, np.ndarray]:
    evaluations = record["evaluations"]
    accuracy = np.array([each["accuracy"]["mean"] for each in evaluations])
    return np.array([spent(record, each, axis) for each in evaluations], float), accuracy


def spent(record: Record, evaluation: Mapping[str, Any], axis: str) -> float:
    """Steps, tokens or seconds before an evaluation. Seconds are steps times their median time, so that one that
    something else on the machine held up does not count."""
    return evaluation["step"] * seconds_a_step(record) if axis == "seconds" else evaluation[axis]


def last(record: Record, curve: str) -> float | None:
    """The end of a training curve."""
    points = record["curves"].get(curve)
    return points[-1][1] if points else None


def mean_of(record: Record, curve: str) -> float | None:
    """The mean of a training curve."""
    points = record["curves"].get(curve)
    return statistics.fmean(value for _, value in points) if points else None


def repair_rate(record: Record) -> float | None:
    """Share of the failures tried that came out correct."""
    tried = record.get("reflections")
    return tried["repaired"] / tried["tried"] if tried else None


def extra_tokens(record: Record) -> float:
    """Tokens sampled for repairs, as a share of those of the rollouts."""
    return record["tokens"]["reflect"] / record["tokens"]["rollout"]


def seconds_a_step(record: Record, stage: str = "step") -> float:
    """Median time of a stage in a step, or of the step; 0 where a run has no such stage."""
    return record["seconds_a_step"].get(stage, 0.0)


def noise_scale(record: Record) -> float:
    """Prompts of an update at which the gradient's noise is as large as the gradient."""
    return record["num_prompts"] * record["variance"] / record["signal"] if record["signal"] > 0 else math.inf


def variance_ratio(record: Record) -> float | None:
    """Mean squared advantage of a negative over that of an anchor."""
    moments = record.get("second_moment", {})
    return moments["negative"] / moments["anchor"] if {"anchor", "negative"} <= moments.keys() else None


class Fit(NamedTuple):
    """A straight line through all raw advantages of a role."""

    slope: float
    intercept: float
    r_squared: float
    num_points: int


def signature(records: Iterable[Record]) -> dict[str, Fit]:
    """Raw advantages against what theory says: an anchor's against sqrt(K'), a negative's against 1 / sqrt(K').

    By least squares over all single advantages, from their sums; the slopes should be 1 and -1 (method.md section 2).
    """
    sums: dict[tuple[str, int], np.ndarray] = collections.defaultdict(lambda: np.zeros(3))
    for record in records:
        for role, num_negatives, *of_role in record.get("signature", ()):
            sums[role, num_negatives] += of_role
    fits = {}
    for role, power in (("anchor", 0.5), ("negative", -0.5)):
        rows = [(k**power, *values) for (name, k), values in sums.items() if name == role and k > 0]
        if len(rows) > 1:
            x, count, total, squares = np.array(rows).T
            n = count.sum()
            mean_x, mean_y = (count * x).sum() / n, total.sum() / n
            var_x = (count * (x - mean_x) ** 2).sum() / n
            cov = (total * (x - mean_x)).sum() / n
            var_y = squares.sum() / n - mean_y**2
            slope = cov / var_x
            fits[role] = Fit(slope, mean_y - slope * mean_x, slope * cov / var_y, int(n))
    return fits


def means_by_size(records: Iterable[Record], role: str) -> dict[int, tuple[float, int]]:
    """Mean raw advantage and count of a role by K'."""
    sums: dict[int, np.ndarray] = collections.defaultdict(lambda: np.zeros(2))
    for record in records:
        for name, num_negatives, count, total, _ in record.get("signature", ()):
            if name == role:
                sums[num_negatives] += (count, total)
    return {k: (total / count, int(count)) for k, (count, total) in sorted(sums.items())}


def common_budget(results: Results, task: str, arms: Iterable[str], axis: str) -> float:
    """The most of "tokens" or "seconds" that every run of the arms has spent."""
    records = [record for arm in arms for record in results.seeds(task, arm).values()]
    return min(spent(record, record["evaluations"][-1], axis) for record in records)


def mean_curve(records: Iterable[Record], axis: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """A learning curve over seeds: mean spent, mean accuracy and half its interval, evaluation by evaluation."""
    curves = [_curve(record, axis) for record in records]
    spent = np.mean([x for x, _ in curves], axis=0)
    points = [interval(values) for values in zip(*(y for _, y in curves), strict=True)]
    return spent, np.array([each.mean for each in points]), np.array([each.half for each in points])
