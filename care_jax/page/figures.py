"""The figures at the top of the report page: held-out accuracy with its baselines, and what to look at first."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

from care_jax.page.run_data import NEWLY_RIGHT, NEWLY_WRONG, OUTCOMES, STAGES, Run, setting
from care_jax.run.collapse import CollapseWatch

LEVELS = {"bad": "problem", "doubt": "doubt", "good": "fine"}  # of a finding, the worst first
_EVAL, _EVAL_ALL = "eval/accuracy/", "eval_all/accuracy/"
_MAJORITY, _WITHOUT_IMAGE = "baseline/majority/", "baseline/without_image/"
_NEWEST = 10  # steps that a figure of the training is the mean of
_FEW = 0.1  # share of responses, or of groups, that is no cause for concern


class Accuracy(NamedTuple):
    """A held-out accuracy; runs of older versions have no n and no interval."""

    value: float
    n: int | None  # questions
    interval: float | None  # half the width of the 95 % interval


@dataclasses.dataclass(frozen=True)
class AccuracyRow:
    """Held-out accuracy of one model, or of what stands in for one."""

    run: str
    when: str
    step: int
    is_baseline: bool
    accuracy: Mapping[str, Accuracy]  # by skill, and "mean" if there are several skills


class Finding(NamedTuple):
    """One thing that a reader of the page should know first."""

    level: str  # a key of LEVELS
    run: str
    text: str


def accuracy_rows(runs: Sequence[Run]) -> list[AccuracyRow]:
    """First (at step 0) and last evaluation of each run, the last one on all held-out data, and the baselines.

    A training run's step 0 is left out if a cold start is among the runs, whose last row shows that model.
    """
    has_cold_start = any(run.stage == "cold_start" for run in runs)
    rows: list[AccuracyRow] = []
    baselines: list[AccuracyRow] = []
    for run in runs:
        steps = evaluated_steps(run)
        keeps_start = run.stage == "cold_start" or not has_cold_start
        for step in dict.fromkeys((*steps[:1], *steps[-1:])):
            if (step == 0 and not keeps_start and len(steps) > 1) or step not in (0, steps[-1]):
                continue
            when = "at the start" if step == 0 else f"after {STAGES[run.stage]}, step {step}"
            rows += _row(run, step, _EVAL, when)
            rows += _row(run, step, _EVAL_ALL, f"{when}, all held-out data")
        for prefix, when in ((_MAJORITY, "majority answer"), (_WITHOUT_IMAGE, "without the image")):
            having = [step for step, row in run.metrics.items() if any(name.startswith(prefix) for name in row)]
            baselines += _row(run, having[-1], prefix, when) if having else []
    told: list[Mapping[str, Accuracy]] = []
    for row in baselines:  # the majority answers to the same questions are the same in all runs
        if row.accuracy not in told:
            rows.append(row)
            told.append(row.accuracy)
    return rows


def evaluated_steps(run: Run) -> list[int]:
    """The steps with a held-out evaluation, ascending."""
    return [step for step, row in run.metrics.items() if any(name.startswith(_EVAL) for name in row)]


def _row(run: Run, step: int, prefix: str, when: str) -> list[AccuracyRow]:
    """One row, or none if the step has no such figure."""
    metrics = run.metrics[step]
    names = sorted(name.removeprefix(prefix) for name in metrics if name.startswith(prefix))
    skills = [name for name in names if name != "mean"]
    group = prefix.split("/")[0]
    accuracy = {}
    for name in ["mean"] * ("mean" in names and len(skills) != 1) + skills:
        n = metrics.get(f"{group}/n/{name}")
        accuracy[name] = Accuracy(
            metrics[prefix + name], None if n is None else int(n), metrics.get(f"{group}/interval/{name}")
        )
    is_baseline = group == "baseline"
    return [AccuracyRow(run.name, when, step, is_baseline, accuracy)] if accuracy else []


def percent(accuracy: Accuracy) -> str:
    """An accuracy in words: 84.6% ± 3.6."""
    interval = "" if accuracy.interval is None else f" ± {100 * accuracy.interval:.1f}"
    return f"{accuracy.value:.1%}{interval}"


def summary(runs: Sequence[Run]) -> str:
    """The shares of the outcomes of groups, and of repaired failures, in a sentence or two of plain text."""
    words = []
    for run in runs:
        num_groups = sum(run.num_groups.values())
        if num_groups:
            shares = ", ".join(
                f"{number / num_groups:.0%} {OUTCOMES[outcome]}" for outcome, number in run.num_groups.items()
            )
            words.append(f"{run.name}: {num_groups} groups, {shares}.")
        if run.num_reflected:
            words.append(
                f"Reflection repaired {run.num_repaired} of the {run.num_reflected} failures it tried"
                f" ({run.num_repaired / run.num_reflected:.0%})."
            )
    return " ".join(words)


def changes(runs: Sequence[Run]) -> str:
    """The numbers of held-out answers that became right and wrong, a sentence a run, of plain text."""
    words = []
    for run in runs:
        counted = [(step, row) for step, row in run.metrics.items() if {NEWLY_RIGHT, NEWLY_WRONG} <= row.keys()]
        for step, row in counted[-1:]:
            right, wrong = f"{row[NEWLY_RIGHT]:.0f}", f"{row[NEWLY_WRONG]:.0f}"
            words.append(f"{run.name}: {right} became right and {wrong} became wrong by step {step}.")
    return " ".join(words)


def findings(runs: Sequence[Run]) -> list[Finding]:
    """The findings about some runs, the worst first: collapse, gain, baselines, form of the responses, lost data."""
    found = [Finding(level, run.name, text) for run in runs for level, text in _findings(run)]
    return sorted(found, key=lambda one: list(LEVELS).index(one.level))


def _findings(run: Run) -> Iterator[tuple[str, str]]:
    watch = CollapseWatch(run.metrics.values(), enabled=False)
    yield from (("bad", watch.told(name)) for name in watch.signs)
    for name in ("length", "entropy", "no_gradient"):
        steps = [step for step, row in run.metrics.items() if row.get(f"collapse/{name}") == 1.0]
        if steps and name not in watch.signs:
            yield "doubt", f"a sign of collapse between step {steps[0]} and {steps[-1]} ({name}), no longer there"
    yield from _progress(run)
    yield from _against_baselines(run)
    yield from _form(run)


def _progress(run: Run) -> Iterator[tuple[str, str]]:
    """The last evaluation against the first and the best one, which asked the same questions."""
    steps = evaluated_steps(run)
    if not steps:
        yield "doubt", "no held-out evaluation yet"
        return
    overall = {step: _overall(_row(run, step, _EVAL, "")) for step in steps}
    last, first = overall[steps[-1]], overall[steps[0]]
    asked = "held-out accuracy" if last.n is None else f"held-out accuracy on {last.n} questions"
    if len(steps) == 1:
        yield "good", f"{asked} is {percent(last)} at step {steps[0]}, the only evaluation so far"
        return
    gain, both = last.value - first.value, _together(last, first)
    told = f"{asked} went from {percent(first)} at step {steps[0]} to {percent(last)} at step {steps[-1]}"
    if both is None:
        yield "good" if gain > 0 else "doubt", told
    elif abs(gain) <= both:
        yield "doubt", f"{told}: within ± {100 * both:.1f} points, which may be chance"
    else:
        level = "good" if gain > 0 else "bad"
        yield level, f"{told}: {100 * gain:+.1f} points, more than the {100 * both:.1f} that chance explains"
    best_step = max(steps, key=lambda step: overall[step].value)
    fall = overall[best_step].value - last.value
    if fall > (_together(last, overall[best_step]) or 1.0):
        yield "doubt", f"its best was {percent(overall[best_step])} at step {best_step}: that checkpoint is kept"


def _overall(rows: Sequence[AccuracyRow]) -> Accuracy:
    """The mean over skills, or the only skill's."""
    return next(iter(rows[0].accuracy.values()))


def _together(one: Accuracy, other: Accuracy) -> float | None:
    """Half the width of the interval of a difference, as if the two had asked different questions."""
    if one.interval is None or other.interval is None:
        return None
    return math.hypot(one.interval, other.interval)


def _against_baselines(run: Run) -> Iterator[tuple[str, str]]:
    rows = accuracy_rows([run])
    models = [row for row in rows if not row.is_baseline]
    if not models or models[-1].step == 0:
        return
    last = _overall(_row(run, models[-1].step, _EVAL, ""))
    above = []
    for row in rows:
        if not row.is_baseline:
            continue
        baseline = _overall([row]).value
        if last.value - baseline > (last.interval or 0.0):
            above.append(f"{row.when} {baseline:.1%}")
        elif row.when == "majority answer":
            yield "bad", f"the commonest answer to each question gets {baseline:.1%}, this model {percent(last)}"
        else:
            yield (
                "bad",
                f"without the image it gets {baseline:.1%}, with it {percent(last)}: it answers without looking",
            )
    if above:
        yield "good", f"{percent(last)} is above its baselines: {', '.join(above)}"


def _form(run: Run) -> Iterator[tuple[str, str]]:
    """Findings on what keeps a training from learning, by its newest steps."""
    response_len = setting(run.config, "rollout", "response_len")
    limit = "" if response_len is None else f"={response_len}"
    signs = (
        ("truncated_rate", _FEW, f"{{:.0%}} of the responses are cut off: raise rollout.response_len{limit}"),
        (
            "unparsed_rate",
            _FEW,
            "{:.0%} of the responses have no readable answer: a longer cold start teaches the form",
        ),
        ("groups/all_wrong", 0.5, "{:.0%} of the groups are all wrong: take a longer cold start, or easier questions"),
        ("verify/deadline", 0.01, "{:.0%} of the answers were not verified in time: raise verify.deadline"),
        ("verify/died", 0.0, "{:.1%} of the answers killed the verifier: they count as wrong"),
    )
    for name, most, text in signs:
        values = [row[name] for row in run.metrics.values() if name in row][-_NEWEST:]
        if values and sum(values) / len(values) > most:
            yield "doubt", text.format(sum(values) / len(values))
    newest = {name: value for row in run.metrics.values() for name, value in row.items()}
    for name, what in (
        ("data/num_dropped", "training rows were left out"),
        ("eval/num_dropped", "held-out prompts are too long and count as wrong"),
    ):
        if newest.get(name, 0.0) > 0:
            yield "doubt", f"{newest[name]:,.0f} {what}; the start of the run said why"
