"""The charts of the report page: which metrics they show, what is healthy in them, and the points that are drawn."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping, Sequence
from typing import Any

from care_jax.page.run_data import OUTCOMES, Run

MAX_POINTS = 1500  # of one line of a chart
MAX_FIRST = 6  # charts that are not folded away


@dataclasses.dataclass(frozen=True)
class Chart:
    """A chart by metric names; `prefix` instead takes every metric that starts with it."""

    title: str
    unit: str
    healthy: str  # one line: how it looks in a sound run
    metrics: Mapping[str, str] = dataclasses.field(default_factory=dict)  # label by metric name
    prefix: str = ""
    label: str = ""  # put before what follows the prefix
    kind: str = "line"  # line | stack (shares or seconds that add up)
    low: float | None = None  # fixed ends of the y axis
    high: float | None = None
    rank: int | None = None  # among those that are not folded away, while there is room


_NORM_CHART = Chart(
    "Gradient norm", "before clipping", "steady; a jump that stays announces trouble", {"grad_norm": "norm"}, low=0.0
)
_LR_CHART = Chart("Learning rate", "", "as optimizer.lr and optimizer.schedule ask for", {"lr": "lr"}, low=0.0)
_THROUGHPUT_CHART = Chart(
    "Throughput",
    "tokens per second",
    "steady after the first steps",
    {"tokens_per_s/rollout": "sampling", "tokens_per_s/update": "updating"},
    low=0.0,
)
TRAIN_CHARTS = (
    Chart(
        "Reward",
        "mean per rollout",
        "rises, fast at first, then levels off",
        {"reward/mean": "reward"},
        low=0.0,
        high=1.0,
        rank=2,
    ),
    Chart(
        "Parts of the reward",
        "mean per rollout",
        "each rises or stays; one that falls is being traded away",
        prefix="rewards/",
    ),
    Chart(
        "Parts of the reward that failed",
        "share of rollouts",
        "0: a reward function that fails teaches nothing",
        prefix="rewards_failed/",
        low=0.0,
    ),
    Chart(
        "Training accuracy",
        "share of rollouts correct",
        "rises, and stays below 1, where nothing is left to learn",
        {"accuracy/train": "accuracy"},
        low=0.0,
        high=1.0,
    ),
    Chart(
        "Training accuracy by skill",
        "share of rollouts correct",
        "each skill rises; one at 0 needs a longer cold start, one at 1 other questions",
        prefix="accuracy/train/",
        low=0.0,
        high=1.0,
    ),
    Chart(
        "Form of the responses",
        "share of rollouts",
        "well-formed near 1, the others near 0",
        {"format_rate": "well-formed", "unparsed_rate": "no readable answer", "truncated_rate": "cut off at the limit"},
        low=0.0,
        high=1.0,
    ),
    Chart(
        "Answers that were not verified",
        "share of rollouts",
        "0",
        {"verify/deadline": "past the deadline", "verify/died": "the worker died"},
        low=0.0,
    ),
    Chart(
        "What the groups came to",
        "share of groups",
        "many mixed groups; all wrong shrinks while all correct grows",
        {f"groups/{outcome.lower()}": words for outcome, words in OUTCOMES.items()},
        kind="stack",
        low=0.0,
        high=1.0,
        rank=8,
    ),
    Chart(
        "Groups without a gradient",
        "share of groups",
        "well below 0.9: the others are all that is learnt from",
        {"groups/no_gradient": "no gradient"},
        low=0.0,
        high=1.0,
        rank=3,
    ),
    Chart(
        "Hard negatives in a subgroup, K′",  # noqa: RUF001 (the prime of the method's symbol)
        "share of groups",
        "many at the largest; 0 grows as groups become all correct",
        prefix="subgroup/num_negatives_",
        label="K′ = ",  # noqa: RUF001
        kind="stack",
        low=0.0,
        high=1.0,
    ),
    Chart(
        "Mean advantage",
        "of anchor and of negatives",
        "anchor above 0, negatives below it",
        {"advantage/anchor": "anchor", "advantage/negative": "negatives"},
    ),
    Chart(
        "Weight of the failures",
        "share of |advantage|",
        "well above 0: failures teach as well",
        {"advantage/failure_share": "failures"},
        low=0.0,
        high=1.0,
    ),
    Chart(
        "Reflections that repaired",
        "share of those tried",
        "above 0, and rising at first; only the hardest failures are left later",
        {"reflect/success_rate": "repaired"},
        low=0.0,
        high=1.0,
        rank=6,
    ),
    Chart("Reflections tried", "per step", "about one for each mixed group", {"reflect/tried": "tried"}, low=0.0),
    Chart(
        "All-wrong groups rescued",
        "share of groups",
        "falls as fewer groups are all wrong",
        {"rescue/rate": "rescued"},
        low=0.0,
    ),
    Chart(
        "Entropy",
        "nats per token",
        "falls slowly; a fall to a fifth of its start is a collapse",
        {"entropy": "entropy"},
        low=0.0,
        rank=5,
    ),
    Chart("Distance to the reference policy", "KL, nats per token", "rises slowly, without jumps", {"kl": "KL"}),
    Chart(
        "Clipped tokens",
        "share of tokens",
        "below 0.1; 0 with one update for each batch",
        {"clip_fraction": "clipped"},
        low=0.0,
    ),
    Chart(
        "Response length",
        "mean tokens",
        "steady; below three quarters of its start the rationale is being given up",
        {"response_len/mean": "tokens"},
        low=0.0,
        rank=4,
    ),
    Chart(
        "Sampler against scorer",
        "log-prob gap, nats",
        "below 0.01 in float32, 0.1 in bfloat16: both are one model",
        {"logprob_gap/mean": "mean", "logprob_gap/max": "largest"},
        low=0.0,
    ),
    Chart(
        "Importance weights",
        "mean weight, shares of tokens",
        "mean weight near 1, truncated and masked near 0",
        {"tis/weight": "mean weight", "tis/truncated": "truncated", "tis/masked": "masked"},
        low=0.0,
    ),
    _NORM_CHART,
    Chart("Policy loss", "mean over sequences", "says little: it is no measure of progress", {"loss": "loss"}),
    _LR_CHART,
    Chart(
        "Time of a step by stage",
        "seconds",
        "steady; long responses lengthen rollout",
        {f"time/{stage}": stage for stage in ("rollout", "verify", "score", "select", "reflect", "update")},
        kind="stack",
        low=0.0,
    ),
    Chart("Whole step", "seconds", "steady after the first steps", {"time/step": "step"}, low=0.0),
    _THROUGHPUT_CHART,
    Chart(
        "Padding",
        "share of what is computed",
        "low: it is computed for nothing",
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
    Chart("Loss", "nats per target token", "falls steeply, then flattens", {"loss": "loss"}, low=0.0, rank=7),
    _NORM_CHART,
    _LR_CHART,
    dataclasses.replace(_THROUGHPUT_CHART, metrics={"tokens_per_s/update": "updating"}),
)
SKILL_CHART = Chart(
    "Held-out accuracy",
    "share correct; whiskers: 95 % interval",
    "rises; a fall while the reward rises is overfitting",
    prefix="eval/accuracy/",
    low=0.0,
    high=1.0,
    rank=1,
)
FORM_CHART = Chart(
    "Held-out form",
    "share of responses",
    "well-formed near 1, the others near 0",
    {"eval/format_rate": "well-formed", "eval/unparsed_rate": "no readable answer"},
    low=0.0,
    high=1.0,
)


def sections(runs: Sequence[Run]) -> list[dict[str, Any]]:
    """The chart sections of the page, each {"id", "charts"}; "first" has the six that matter most.

    A chart is {"title", "unit", "healthy", "kind", "low", "high", "axes", "lines"}: those of the same "axes" are drawn
    on the same ones.
    """
    grids = {"skills": _held_out(runs)}
    for stage, charts in (("cold_start", COLD_START_CHARTS), ("train", TRAIN_CHARTS)):
        same_stage = [run for run in runs if run.stage == stage]
        grids[stage] = [drawn for chart in charts for drawn in _draw(chart, same_stage, named=len(same_stage) > 1)]
    ranked = [picture for grid in grids.values() for picture in grid if picture["rank"] is not None]
    first = sorted(ranked, key=lambda picture: picture["rank"])[:MAX_FIRST]
    rest = {name: [picture for picture in grid if picture not in first] for name, grid in grids.items()}
    return [{"id": name, "charts": charts} for name, charts in {"first": first, **rest}.items()]


def _held_out(runs: Sequence[Run]) -> list[dict[str, Any]]:
    """Pictures of the held-out evaluations; runs of one stage are compared skill by skill."""
    pictures: list[dict[str, Any]] = []
    per_run: list[dict[str, Any]] = []
    for stage in ("cold_start", "train"):
        same_stage = [run for run in runs if run.stage == stage]
        is_compared = len(same_stage) > 1
        for name in _names(same_stage, SKILL_CHART.prefix)[::-1] if is_compared else ():
            skill = name.removeprefix(SKILL_CHART.prefix)
            is_overall = name == _names(same_stage, SKILL_CHART.prefix)[-1]
            title = f"Held-out: {'mean over skills' if skill == 'mean' else skill}"
            chart = dataclasses.replace(
                SKILL_CHART, title=title, prefix="", metrics={name: skill}, rank=1 if is_overall else None
            )
            pictures += _draw(chart, same_stage, named=False)
        chart = dataclasses.replace(SKILL_CHART, rank=None if is_compared else 1)
        per_run += [picture for run in same_stage for picture in _draw(chart, [run], named=len(runs) > 1)]
    return pictures + per_run + [picture for run in runs for picture in _draw(FORM_CHART, [run], named=len(runs) > 1)]


def _names(runs: Sequence[Run], prefix: str) -> list[str]:
    """The runs' metrics that start with `prefix`, sorted: numbers by size ("_2" before "_10"), a mean last.

    The mean of a single skill is left out.
    """

    def order(name: str) -> tuple[bool, list[str]]:
        return name.endswith("/mean"), [part.zfill(8) if part.isdigit() else part for part in re.split(r"(\d+)", name)]

    found = {name for run in runs for row in run.metrics.values() for name in row if name.startswith(prefix)}
    return sorted(found - {f"{prefix}mean"} if len(found) == 2 else found, key=order)


def _draw(chart: Chart, runs: Sequence[Run], *, named: bool) -> list[dict[str, Any]]:
    """One picture with a line for each run if the chart has one metric, else a picture for each run that has data."""
    if len(chart.metrics) == 1:
        (metric,) = chart.metrics
        lines = [_line(run, metric, run.name if len(runs) > 1 else chart.metrics[metric]) for run in runs]
        return _picture(chart, chart.title, lines, runs)
    pictures = []
    for run in runs:
        metrics = chart.metrics or {
            name: chart.label + name.removeprefix(chart.prefix) for name in _names([run], chart.prefix)
        }
        title = f"{chart.title} · {run.name}" if named else chart.title
        pictures += _picture(chart, title, [_line(run, metric, label) for metric, label in metrics.items()], [run])
    return pictures


def _picture(chart: Chart, title: str, lines: Sequence[Mapping[str, Any]], runs: Sequence[Run]) -> list[dict[str, Any]]:
    lines = [line for line in lines if line["x"]]
    if not lines:
        return []
    about = {key: getattr(chart, key) for key in ("unit", "healthy", "kind", "low", "high", "rank")}
    return [{"title": title, "axes": f"{runs[0].stage} {chart.title}", **about, "lines": lines}]


def _line(run: Run, metric: str, label: str) -> dict[str, Any]:
    points = [(step, row[metric]) for step, row in run.metrics.items() if metric in row]
    stride = -(-len(points) // MAX_POINTS) or 1
    points = [*points[:-1:stride], *points[-1:]]
    is_held_out = metric.startswith(SKILL_CHART.prefix)
    interval = metric.replace("/accuracy/", "/interval/", 1)
    return {
        "label": label,
        "strong": metric.endswith("/mean") and is_held_out,
        "x": [step for step, _ in points],
        "y": [_short(value) for _, value in points],
        "interval": [_short(run.metrics[step].get(interval, 0.0)) for step, _ in points] if is_held_out else [],
    }


def _short(value: float) -> float:
    return float(f"{value:.5g}")
