"""The pictures of the study's page."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from benchmarks import study_claims
from benchmarks import study_stats as stats
from benchmarks.study_stats import Difference, Interval, Record, Results

STYLE: Any = {
    "svg.fonttype": "none",
    "svg.hashsalt": "study",  # equal records give equal bytes
    "font.size": 9,
    "font.family": "sans-serif",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#e3e7ee",
    "legend.frameon": False,
    "figure.constrained_layout.use": True,
}
_OURS, _THEIRS, _OTHER, _NEGATIVE = "#2b62c9", "#5d6778", "#d9772b", "#b3372f"
AXES = {"tokens": (1e3, "thousand sampled tokens"), "seconds": (1.0, "seconds of steps")}


def differences(results: Results, study: Any, names: Sequence[str], base: str) -> Figure:
    """The difference of each objective to a base arm at equal tokens."""
    size = (11, 0.42 * len(names) + 1.1)
    figure, panels = plt.subplots(1, len(study.TASKS), figsize=size, squeeze=False, sharey=True)
    for axes, (task, about) in zip(panels[0], study.TASKS.items(), strict=True):
        for row, name in enumerate(names):
            found = study_claims.at_equal(results, task, (name, base), "tokens")
            if found:
                is_care = study.ARMS[name].make_objective().anchored
                _bar(axes, _percent(found), row, _OURS if is_care else _THEIRS)
        axes.axvline(0, color="#1c2330", linewidth=1)
        axes.set_title(
            f"Against {study.ARMS[base].title} at equal tokens, {about.title}", loc="left", fontweight="bold"
        )
        axes.set_yticks(range(len(names)), [study.ARMS[name].title for name in names])
    panels[0][0].invert_yaxis()  # all panels share it
    label = "points of held-out accuracy, mean and 95 % interval over seeds; blue: anchored subgroups"
    figure.supxlabel(label, fontsize=9)
    return figure


def _percent(difference: Difference) -> Interval:
    whole = difference.interval
    return Interval(100 * whole.mean, 100 * whole.half, whole.num_seeds)


def _bar(axes: Axes, whole: Interval, row: float, colour: str) -> None:
    if not math.isnan(whole.half):
        axes.plot([whole.low, whole.high], [row, row], color=colour, linewidth=2)
    axes.plot([whole.mean], [row], "o", color=colour, markersize=7)


def learning_curves(results: Results, study: Any, names: Sequence[str]) -> Figure:
    """Points over the cold start by tokens and by time, as means over the seeds that all arms have.

    The axes end a little beyond the most that every run has spent. Solid lines are anchored subgroups.
    """
    figure, panels = plt.subplots(len(study.TASKS), 2, figsize=(11, 3.1 * len(study.TASKS)), squeeze=False)
    for row, (task, about) in zip(panels, study.TASKS.items(), strict=True):
        runs = {name: found for name in names if (found := results.seeds(task, name))}
        shared = set.intersection(*map(set, runs.values())) if runs else set()
        for axes, (axis, (unit, label)) in zip(row, AXES.items(), strict=True):
            for index, name in enumerate(runs if shared else ()):
                curve = stats.mean_gain([results.curve(runs[name][seed], axis) for seed in sorted(shared)])
                axes.plot(
                    curve.spent / unit,
                    100 * curve.accuracy,
                    color=f"C{index}",
                    label=study.ARMS[name].title,
                    linewidth=2,
                    linestyle="-" if study.ARMS[name].make_objective().anchored else "--",
                )
            if runs:
                axes.set_xlim(0, 1.25 * results.budget(task, runs, axis) / unit)
            axes.set_xlabel(f"{label}, mean over {len(shared)} seeds")
            axes.set_ylabel("points over the cold start")
            axes.set_title(f"{about.title}, by {axis}", loc="left", fontweight="bold")
        _legend(row[1], loc="center left", bbox_to_anchor=(1.0, 0.5))
    figure.supxlabel("solid: anchored subgroups", fontsize=9)
    return figure


def changes(results: Results, study: Any, pairs: Sequence[tuple[str, str]]) -> Figure:
    """The effect of each change on final accuracy; `pairs` are (task, arm)."""
    figure, axes = plt.subplots(figsize=(11, max(1.5, 0.25 * len(pairs) + 0.9)))
    colours = dict(zip(study.TASKS, (_OURS, _OTHER, _THEIRS), strict=False))
    for row, (task, name) in enumerate(pairs):
        found = results.difference(
            results.seeds(task, name), results.seeds(task, study.ARMS[name].baseline), results.final()
        )
        if found:
            _bar(axes, _percent(found), row, colours[task])
    axes.axvline(0, color="#1c2330", linewidth=1)
    labels = [
        f"{study.ARMS[name].section}: {study.ARMS[name].title} ({study.TASKS[task].title})" for task, name in pairs
    ]
    axes.set_yticks(range(len(labels)), labels)
    axes.invert_yaxis()
    axes.set_xlabel("points of final accuracy more or less than the baseline, mean and 95 % interval over seeds")
    return figure


def mechanism(results: Results, study: Any) -> Figure:
    """The advantages by K', and over the steps the share of failures in the advantage and the share repaired."""
    figure, (signature, share, repairs) = plt.subplots(1, 3, figsize=(11, 3.9))
    records = results.all(study)
    for role, sign, colour in (("anchor", 1, _OURS), ("negative", -1, _NEGATIVE)):
        means = stats.means_by_size(records, role)
        signature.plot(list(means), list(means.values()), "o", color=colour, label=f"{role}s, measured")
        signature.plot(
            list(means), [sign * k ** (sign / 2) for k in means], "--", color=colour, linewidth=1, label="theory"
        )
    signature.set_xlabel("K', negatives of a subgroup")
    signature.set_title("Raw advantages", loc="left", fontweight="bold")
    _legend(signature)
    first = next(iter(study.TASKS))
    for axes, curve, title in (
        (share, "advantage/failure_share", "Advantage from failures"),
        (repairs, "reflect/success_rate", "Failures repaired"),
    ):
        for index, name in enumerate(study.SHOWN):
            _training_curve(axes, list(results.seeds(first, name).values()), curve, f"C{index}", study.ARMS[name].title)
        axes.set_xlabel(f"step, {study.TASKS[first].title}")
        axes.set_ylabel("%")
        axes.set_ylim(bottom=0)
        axes.set_title(title, loc="left", fontweight="bold")
    figure.legend(*share.get_legend_handles_labels(), loc="outside lower center", ncols=3, fontsize=8)
    return figure


def _training_curve(axes: Axes, records: Sequence[Record], name: str, colour: str, label: str) -> None:
    """Draws the mean of a metric over the records that have it, point by point."""
    by_step: dict[float, list[float]] = {}
    for record in records:
        for step, value in record["curves"].get(name, ()):
            by_step.setdefault(step, []).append(100 * value)
    if by_step:
        axes.plot(
            sorted(by_step), [np.mean(by_step[step]) for step in sorted(by_step)], colour, label=label, linewidth=2
        )


def _legend(axes: Axes, **place: Any) -> None:
    if axes.get_legend_handles_labels()[0]:
        axes.legend(fontsize=8, **place)
