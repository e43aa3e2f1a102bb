"""The study's statistics: from records of runs to means with intervals, differences and costs.

Intervals are 95 % by Student's t over seeds, or over the seeds of all tasks. Differences are taken seed by seed: the
arms of a seed share its cold start and its prompts, so most of the spread between seeds cancels.
"""

from __future__ import annotations

import collections
import math
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import scipy.stats

from benchmarks.study_record import Record

FINAL_SHARE = 0.25  # the last share of a run's steps, tokens or seconds: the mean accuracy there is the final one
NUM_MEAN = 3  # evaluations in the running mean that decides when an accuracy is reached
SAMPLING = ("data", "rollout", "verify")  # stages whose time grows with the tokens sampled
PROBED = "score"  # a stage of probes alone: in trainings the sampler keeps the log-probs

Measure = Callable[[Record], float | None]


class Curve(NamedTuple):
    """A learning curve: held-out accuracy at each evaluation over the steps, tokens or seconds spent."""

    spent: np.ndarray
    accuracy: np.ndarray


class Interval(NamedTuple):
    """A mean over seeds and half the width of its 95 % interval; NaN for one seed."""

    mean: float
    half: float
    num_seeds: int

    @property
    def low(self) -> float:
        """The lower end."""
        return self.mean - self.half

    @property
    def high(self) -> float:
        """The upper end."""
        return self.mean + self.half


class Difference(NamedTuple):
    """The difference between two arms, over the seeds that both have."""

    interval: Interval
    ours: float  # mean of the first arm
    theirs: float  # mean of the second


def interval(values: Iterable[float]) -> Interval:
    """Mean and interval of independent values, one a seed.

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
        """Sorts the records."""
        by_kind: dict[str, dict[tuple[str, str], dict[int, Record]]] = {"training": {}, "probe": {}}
        for record in records:
            by_kind[record["kind"]].setdefault((record["task"], record["arm"]), {})[record["seed"]] = record
        self._trained, self._probes = by_kind["training"], by_kind["probe"]

    def seeds(self, task: str, arm: str) -> Mapping[int, Record]:
        """The training runs of an arm by seed; empty if there are none yet."""
        return self._trained.get((task, arm), {})

    def probes(self, task: str, arm: str) -> Mapping[int, Record]:
        """The probes of an arm by seed; their policy stays at the cold start."""
        return self._probes.get((task, arm), {})

    def all(self, study: Any) -> list[Record]:
        """The training runs of every task and arm."""
        return [record for task in study.TASKS for arm in study.ARMS for record in self.seeds(task, arm).values()]

    def unit_times(self, task: str, arm: str) -> tuple[float, float]:
        """Seconds that a sampled token takes, repairs included, and seconds that the rest of a step takes.

        Each is the least over the arm's probes, which other work on the machine disturbs least, or over its trainings
        if it has no probes. There are two because dynamic sampling draws more batches for an update, the better a
        policy is.
        """
        records = (self.probes(task, arm) or self.seeds(task, arm)).values()

        def sampling(record: Record) -> float:
            return sum(seconds_a_step(record, stage) for stage in SAMPLING)

        ends = [(sampling(record), record["evaluations"][-1]) for record in records]
        a_token = min(seconds * end["step"] / end["tokens"] for seconds, end in ends)
        return a_token, min(seconds_a_step(r) - seconds_a_step(r, PROBED) - sampling(r) for r in records)

    def curve(self, record: Record, axis: str = "step", skill: str = "mean") -> Curve:
        """Held-out accuracy of a skill over "step", "tokens" or "seconds".

        Seconds are computed from tokens, steps and `unit_times`, so other work of the machine, evaluations and
        compilation do not count.
        """
        if axis == "seconds":
            a_token, a_step = self.unit_times(record["task"], record["arm"])
        else:
            a_token, a_step = float(axis == "tokens"), float(axis == "step")
        evaluations = record["evaluations"]
        return Curve(
            np.array([a_token * each["tokens"] + a_step * each["step"] for each in evaluations], float),
            np.array([each["accuracy"][skill] for each in evaluations]),
        )

    def budget(self, task: str, arms: Iterable[str], axis: str) -> float:
        """The most steps, tokens or seconds that every run of the arms has spent."""
        records = [record for arm in arms for record in self.seeds(task, arm).values()]
        return min(float(self.curve(record, axis).spent[-1]) for record in records)

    def final(self, axis: str = "step", budget: float | None = None, skill: str = "mean") -> Measure:
        """A measure of final accuracy: the mean height of a run's curve over the last quarter of its length.

        Args:
            axis: "step", "tokens" or "seconds".
            budget: ends the curve there; None: at the run's end.
            skill: one of the task's, or "mean".
        """
        return lambda record: height(self.curve(record, axis, skill), budget)

    def over_seeds(self, records: Mapping[int, Record], measure: Measure) -> Interval | None:
        """The interval of a measure over runs; None if no run has it."""
        values = [value for record in records.values() if (value := measure(record)) is not None]
        return interval(values) if values else None

    def difference(
        self, ours: Mapping[Any, Record], theirs: Mapping[Any, Record], measure: Measure
    ) -> Difference | None:
        """The difference of a measure between two arms over the seeds, or tasks and seeds, that both have, if any."""
        pairs = [(measure(ours[seed]), measure(theirs[seed])) for seed in sorted(ours.keys() & theirs.keys())]
        both = [(a, b) for a, b in pairs if a is not None and b is not None]
        if not both:
            return None
        means = [statistics.fmean(values) for values in zip(*both, strict=True)]
        return Difference(interval(a - b for a, b in both), *means)


def height(curve: Curve, budget: float | None = None) -> float:
    """Mean height of a curve over the last quarter before `budget`, or before its end (trapezoids).

    Raises:
        ValueError: the curve ends before the budget.
    """
    end = float(curve.spent[-1]) if budget is None else budget
    if end > curve.spent[-1] * (1 + 1e-9):
        raise ValueError(f"a run that spent {curve.spent[-1]} has no accuracy at {end}")
    low = (1.0 - FINAL_SHARE) * end
    x = np.unique([low, *curve.spent[(curve.spent > low) & (curve.spent < end)], end])
    return float(np.trapezoid(np.interp(x, *curve), x) / (end - low))


def area(curve: Curve) -> float:
    """Mean height of a whole curve (trapezoids)."""
    return float(np.trapezoid(curve.accuracy, curve.spent) / (curve.spent[-1] - curve.spent[0]))


def running_means(curve: Curve) -> np.ndarray:
    """The running mean over NUM_MEAN evaluations."""
    return np.convolve(curve.accuracy, np.ones(NUM_MEAN) / NUM_MEAN, mode="valid")


def spent_to(curve: Curve, target: float) -> float:
    """Steps, tokens or seconds spent when the running mean first reaches `target`; infinite if it never does.

    They are counted to the last evaluation of that mean.
    """
    reached = np.flatnonzero(running_means(curve) >= target)
    return float(curve.spent[reached[0] + NUM_MEAN - 1]) if len(reached) else math.inf


def last(record: Record, curve: str) -> float | None:
    """The last value of a training curve, if the run has it."""
    points = record["curves"].get(curve)
    return points[-1][1] if points else None


def mean_of(record: Record, curve: str) -> float | None:
    """The mean of a training curve, if the run has it."""
    points = record["curves"].get(curve)
    return statistics.fmean(value for _, value in points) if points else None


def repair_rate(record: Record) -> float | None:
    """Share of the tried repairs that came out correct; None if none were tried."""
    tried = record.get("reflections")
    return tried["repaired"] / tried["tried"] if tried else None


def extra_tokens(record: Record) -> float:
    """Tokens sampled for repairs as a share of the tokens of the rollouts."""
    return record["tokens"]["reflect"] / record["tokens"]["rollout"]


def seconds_a_step(record: Record, stage: str = "step") -> float:
    """Median seconds of a stage, or of the whole step; 0 if a run has no such stage."""
    return record["seconds_a_step"].get(stage, 0.0)


def log_noise_scale(record: Record) -> float | None:
    """Logarithm of a probe's gradient noise scale in prompts (McCandlish et al. 2018, arXiv 1812.06162).

    The scale is the variance of an update's gradient over the squared norm of its mean, times the prompts drawn for the
    update, those of dropped groups included. None if the noise hides the mean.
    """
    noise = record["noise"]
    if noise["signal"] <= 0:
        return None
    return math.log(noise["variance"] / noise["signal"] * noise["num_prompts"] * record["draws_a_step"])


def variance_ratio(record: Record) -> float | None:
    """Mean squared advantage of negatives over that of anchors, if a run has both."""
    moments = record.get("second_moment", {})
    return moments["negative"] / moments["anchor"] if {"anchor", "negative"} <= moments.keys() else None


class Fit(NamedTuple):
    """A straight line through all raw advantages of a role."""

    slope: float
    intercept: float
    r_squared: float
    num_points: int


def signature(records: Iterable[Record]) -> dict[str, Fit]:
    """Fits raw advantages against theory: an anchor's against sqrt(K'), a negative's against 1 / sqrt(K').

    The fit is by least squares over all single advantages, from their sums; the slopes should be 1 and -1
    (docs/method.md section 2).
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


def means_by_size(records: Iterable[Record], role: str) -> dict[int, float]:
    """Mean raw advantage of a role by K'."""
    sums: dict[int, np.ndarray] = collections.defaultdict(lambda: np.zeros(2))
    for record in records:
        for name, num_negatives, count, total, _ in record.get("signature", ()):
            if name == role:
                sums[num_negatives] += (count, total)
    return {k: total / count for k, (count, total) in sorted(sums.items())}


def mean_gain(curves: Sequence[Curve]) -> Curve:
    """The mean over the curves of an arm's seeds: of what is spent, and of the gain in accuracy over the start.

    Accuracy itself is not averaged: at the start it differs between seeds by more than a run gains.
    """
    return Curve(
        np.mean([curve.spent for curve in curves], axis=0),
        np.mean([curve.accuracy - curve.accuracy[0] for curve in curves], axis=0),
    )
