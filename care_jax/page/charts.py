"""The charts of the report page: which metrics they show, in which plain words, and the points that are drawn."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping, Sequence
from typing import Any

from care_jax.page.run_data import OUTCOMES, Run

MAX_POINTS = 1500  # of one line of a chart


@dataclasses.dataclass(frozen=True)
class Chart:
    """A chart by metric names; `prefix` instead takes every metric that starts with it."""

    title: str
    unit: str
    metrics: Mapping[str, str] = dataclasses.field(default_factory=dict)  # label by metric name
    prefix: str = ""
    label: str = ""  # put before what follows the prefix
    kind: str = "line"  # line | stack (shares or seconds that add up)
    low: float | None = None  # fixed ends of the y axis
    high: float | None = None


TRAIN_CHARTS = (
    Chart("Reward", "mean per rollout", {"reward/mean": "reward"}, low=0.0, high=1.0),
    Chart("Parts of the reward", "mean per rollout", prefix="rewards/"),
    Chart("Parts of the reward that failed", "share of rollouts", prefix="rewards_failed/", low=0.0),
    Chart("Training accuracy", "share of rollouts correct", {"accuracy/train": "accuracy"}, low=0.0, high=1.0),
    Chart("Training accuracy by skill", "share of rollouts correct", prefix="accuracy/train/", low=0.0, high=1.0),
    Chart(
        "Form of the responses",
        "share of rollouts",
        {"format_rate": "well-formed", "unparsed_rate": "no readable answer", "truncated_rate": "cut off at the limit"},
        low=0.0,
        high=1.0,
    ),
    Chart(
        "Answers that were not verified",
        "share of rollouts",
        {"verify/deadline": "past the deadline", "verify/died": "the worker died"},
        low=0.0,
    ),
    Chart(
        "What the groups came to",
        "share of groups",
        {f"groups/{outcome.lower()}": words for outcome, words in OUTCOMES.items()},
        kind="stack",
        low=0.0,
        high=1.0,
    ),
    Chart(
        "Hard negatives in a subgroup, K′",  # noqa: RUF001 (the prime of the method's symbol)
        "share of groups",
        prefix="subgroup/num_negatives_",
        label="K′ = ",  # noqa: RUF001
        kind="stack",
        low=0.0,
        high=1.0,
    ),
    Chart(
        "Mean advantage",
        "of anchor and of negatives",
        {"advantage/anchor": "anchor", "advantage/negative": "negatives"},
    ),
    Chart("Weight of the failures", "share of |advantage|", {"advantage/failure_share": "failures"}, low=0.0, high=1.0),
    Chart(
        "Reflections that repaired",
        "share of those tried",
        {"reflect/success_rate": "repaired"},
        low=0.0,
        high=1.0,
    ),
    Chart("Reflections tried", "per step", {"reflect/tried": "tried"}, low=0.0),
    Chart("All-wrong groups rescued", "share of groups", {"rescue/rate": "rescued"}, low=0.0),
    Chart("Entropy", "nats per token", {"entropy": "entropy"}, low=0.0),
    Chart("Distance to the reference policy", "KL, nats per token", {"kl": "KL"}),
    Chart("Clipped tokens", "share of tokens", {"clip_fraction": "clipped"}, low=0.0),
    Chart("Response length", "mean tokens", {"response_len/mean": "tokens"}, low=0.0),
    Chart(
        "Sampler against scorer",
        "log-prob gap, nats",
        {"logprob_gap/mean": "mean", "logprob_gap/max": "largest"},
        low=0.0,
    ),
    Chart(
        "Importance weights",
        "mean weight, shares of tokens",
        {"tis/weight": "mean weight", "tis/truncated": "truncated", "tis/masked": "masked"},
        low=0.0,
    ),
    Chart("Gradient norm", "before clipping", {"grad_norm": "norm"}, low=0.0),
    Chart("Policy loss", "mean over sequences", {"loss": "loss"}),
    Chart("Learning rate", "", {"lr": "lr"}, low=0.0),
    Chart(
        "Time of a step by stage",
        "seconds",
        {f"time/{stage}": stage for stage in ("rollout", "verify", "score", "select", "reflect", "update")},
        kind="stack",
        low=0.0,
    ),
    Chart("Whole step", "seconds", {"time/step": "step"}, low=0.0),
    Chart(
        "Throughput",
        "tokens per second",
        {"tokens_per_s/rollout": "sampling", "tokens_per_s/update": "updating"},
        low=0.0,
    ),
    Chart(
        "Padding",
        "share of what is computed",
        {
            "padding/prompt_tokens": "prompt tokens",
            "padding/patches": "patches",
            "padding/update_tokens": "response tokens of the update",
        },
        low=0.0,
        high=1.0,
    ),
)
COLD_START_CHARTS = (
    Chart("Loss", "nats per target token", {"loss": "loss"}, low=0.0),
    Chart("Gradient norm", "before clipping", {"grad_norm": "norm"}, low=0.0),
    Chart("Learning rate", "", {"lr": "lr"}, low=0.0),
    Chart("Throughput", "tokens per second", {"tokens_per_s/update": "updating"}, low=0.0),
)
SKILL_CHART = Chart("Held-out accuracy", "share correct", prefix="eval/accuracy/", low=0.0, high=1.0)
FORM_CHART = Chart(
    "Held-out form",
    "share of responses",
    {"eval/format_rate": "well-formed", "eval/unparsed_rate": "no readable answer"},
    low=0.0,
    high=1.0,
)


def sections(runs: Sequence[Run]) -> list[dict[str, Any]]:
    """The chart sections of the page, each {"id", "charts": [{"title", "unit", "kind", "low", "high", "lines"}]}."""
    skill_charts = [chart for run in runs for chart in _draw(SKILL_CHART, [run], named=len(runs) > 1)]
    for stage in ("cold_start", "train"):
        same_stage = [run for run in runs if run.stage == stage]
        if len(same_stage) > 1:
            for name in _names(same_stage, SKILL_CHART.prefix):
                skill = name.removeprefix(SKILL_CHART.prefix)
                chart = dataclasses.replace(SKILL_CHART, title=f"Held-out: {skill}", prefix="", metrics={name: skill})
                skill_charts += _draw(chart, same_stage, named=False)
    skill_charts += [chart for run in runs for chart in _draw(FORM_CHART, [run], named=len(runs) > 1)]
    grids = {"skills": skill_charts}
    for stage, charts in (("cold_start", COLD_START_CHARTS), ("train", TRAIN_CHARTS)):
        same_stage = [run for run in runs if run.stage == stage]
        grids[stage] = [drawn for chart in charts for drawn in _draw(chart, same_stage, named=len(same_stage) > 1)]
    return [{"id": name, "charts": charts} for name, charts in grids.items()]


def _names(runs: Sequence[Run], prefix: str) -> list[str]:
    """The runs' metrics that start with `prefix`, sorted: numbers by size ("_2" before "_10"), a mean last."""

    def order(name: str) -> tuple[bool, list[str]]:
        return name.endswith("/mean"), [part.zfill(8) if part.isdigit() else part for part in re.split(r"(\d+)", name)]

    return sorted(
        {name for run in runs for row in run.metrics.values() for name in row if name.startswith(prefix)}, key=order
    )


def _draw(chart: Chart, runs: Sequence[Run], *, named: bool) -> list[dict[str, Any]]:
    """One picture with a line for each run if the chart has one metric, else a picture for each run that has data."""
    if len(chart.metrics) == 1:
        (metric,) = chart.metrics
        lines = [_line(run, metric, run.name if len(runs) > 1 else chart.metrics[metric]) for run in runs]
        return _picture(chart, chart.title, lines)
    pictures = []
    for run in runs:
        metrics = chart.metrics or {
            name: chart.label + name.removeprefix(chart.prefix) for name in _names([run], chart.prefix)
        }
        title = f"{chart.title} · {run.name}" if named else chart.title
        pictures += _picture(chart, title, [_line(run, metric, label) for metric, label in metrics.items()])
    return pictures


def _picture(chart: Chart, title: str, lines: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    lines = [line for line in lines if line["x"]]
    if not lines:
        return []
    shape = {"title": title, "unit": chart.unit, "kind": chart.kind, "low": chart.low, "high": chart.high}
    return [shape | {"lines": lines}]


def _line(run: Run, metric: str, label: str) -> dict[str, Any]:
    points = [(step, row[metric]) for step, row in run.metrics.items() if metric in row]
    stride = -(-len(points) // MAX_POINTS) or 1
    points = [*points[:-1:stride], *points[-1:]]
    return {
        "label": label,
        "strong": metric.endswith("/mean") and metric.startswith(SKILL_CHART.prefix),
        "x": [step for step, _ in points],
        "y": [float(f"{value:.5g}") for _, value in points],
    }
