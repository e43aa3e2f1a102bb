"""The study's verdicts on the paper's claims, and on the defaults that the sources leave open.

The claims name arms of configs/study.py; a study without those arms gets no verdicts.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from benchmarks import study_stats as stats
from benchmarks.study_stats import Difference, Interval, Measure, Record, Results

VERDICTS = HOLDS, FAILS, OPEN = "supported", "contradicted", "inconclusive"
MISSING = "–"  # noqa: RUF001  (a cell without a figure: the en dash is its sign)

Find = Callable[[str, str], Mapping[int, Record]]  # (task, arm) -> its runs by seed


class Claim(NamedTuple):
    """`arm` has more of something than `than`; in NOISE, less."""

    text: str
    arm: str
    than: str
    paper: str = ""  # the figure of arXiv 2512.19554 for Qwen2.5-VL-7B: points, or percent of failures repaired


# Claims about final accuracy. The objectives are compared at equal tokens, the rest at equal steps.
BETTER_OBJECTIVES = (
    Claim("CARE is better than GRPO", "care", "grpo", "+4.6"),
    Claim("CARE without reflection is better than GRPO", "paper_no_rgr", "grpo", "+3.9"),
    Claim("With equal weights, CARE is better than GRPO", "care_equal", "grpo"),
    Claim("With equal weights and without reflection, CARE is better than GRPO", "care_no_rgr", "grpo"),
    Claim("With equal weights, the anchored subgroup alone is better than GRPO", "subgroup", "grpo"),
    Claim("CARE is better than DAPO", "care", "dapo", "+2.3"),
    Claim("With equal weights, CARE is better than DAPO", "care_equal", "dapo"),
    Claim("CARE is better than GSPO", "care", "gspo", "+0.7"),
    Claim("With equal weights, CARE is better than GSPO", "care_equal", "gspo"),
    Claim("With equal weights, rescue adds to the anchored subgroup", "care_no_rgr", "subgroup"),
    Claim("Reflection adds to CARE", "care", "paper_no_rgr", "+0.7"),
    Claim("With equal weights, reflection adds to CARE", "care_equal", "care_no_rgr"),
)
BETTER_PARTS = (
    Claim("The paper's token weights are better than equal ones", "care", "care_equal"),
    Claim("The paper's token weights are better than the answer alone", "care", "weights_answer", "about +4"),
    Claim("Failing rationales are better masked", "care", "weights_failing", "about +4"),
    Claim("Near and spread negatives are better than random ones", "care_equal", "selector_random", "+7.5"),
    Claim("Near and spread negatives are better than the farthest", "care_equal", "selector_farthest"),
    Claim("s = 0.5 is better than s = 1", "care_equal", "scale_1"),
    Claim("s = 0.5 is better than s = 0.25", "care_equal", "scale_025"),
    Claim("Equalisation helps", "care_equal", "equalise_off"),
    Claim("Rescue of groups that are all wrong helps", "care_equal", "rescue_off"),
    Claim("After three times the steps CARE is better than GRPO", "care_long", "grpo_long"),
    Claim("After three times the steps and with equal weights, CARE is better than GRPO", "equal_long", "grpo_long"),
)
REPAIRS = (
    Claim("The cue repairs more failures than none", "reflect_continuation", "reflect_no_cue", "76.6 against 19.3"),
    Claim(
        "Continuing from the failure with a cue repairs more than starting from scratch",
        "care_equal",
        "reflect_scratch",
        "76.6 against 12.8",
    ),
)
GRADIENTS = (
    Claim("Without reflection, more groups give a gradient than with GRPO", "care_no_rgr", "grpo"),
    Claim("With reflection, more groups give a gradient than with GRPO", "care_equal", "grpo"),
)
SHARES = (Claim("More of the advantage comes from failures than with GRPO", "care_equal", "grpo"),)
NOISE = (
    Claim("Relative to its mean, the gradient has less noise with s = 0.5 than with s = 1", "care_equal", "scale_1"),
    Claim("With equal weights, CARE's gradient has less noise relative to its mean than GRPO's", "care_equal", "grpo"),
    Claim("CARE's gradient has less noise relative to its mean than GRPO's", "care", "grpo"),
)
MIN_SEEDS = 3  # that a verdict needs: the interval of two is too often narrow by luck


class Default(NamedTuple):
    """A value that the sources leave open, the arm that has it, and the arms with other values."""

    key: str
    kept: str
    arm: str
    others: Mapping[str, str]  # value -> arm


DEFAULTS = (
    Default("rescue.scale", "zscore", "care_equal", {"delta": "rescue_delta"}),
    Default("rescue.rank_by", "sum", "care_equal", {"mean": "rescue_mean"}),
    Default("reflect.train_on", "continuation", "reflect_continuation", {"rewrite": "care_equal"}),
    Default("region.format_weight", "0", "care", {"1": "weights_format"}),
    Default("aggregate", "sequence", "care_equal", {"token": "aggregate_token", "constant": "aggregate_constant"}),
)


def verdict(difference: Difference | None, *, less: bool = False) -> str:
    """The verdict on the claim that a difference is above 0, or with `less` below 0, by its interval."""
    if difference is None or difference.interval.num_seeds < MIN_SEEDS:
        return OPEN
    above, below = difference.interval.low > 0, difference.interval.high < 0
    if not above and not below:
        return OPEN
    return HOLDS if above != less else FAILS


def percent(value: Interval | None, *, sign: str = "") -> str:
    """A share in percent with half its interval."""
    if value is None:
        return MISSING
    half = "" if math.isnan(value.half) else f" ± {100 * value.half:.1f}"
    return f"{100 * value.mean:{sign}.1f}{half}"


def points(difference: Difference | None) -> str:
    """A difference of shares in percent points, with its sign and half its interval."""
    return percent(difference.interval if difference else None, sign="+")


def claims(results: Results, study: Any) -> list[list[str]]:
    """The table of claims: claim, task, verdict, figure, and the paper's figure.

    It has every claim whose arms are in the study, even if they have not been run.
    """
    final = results.final()
    groups: tuple[tuple[Sequence[Claim], Measure, Find], ...] = (
        (BETTER_PARTS, final, results.seeds),
        (REPAIRS, stats.repair_rate, results.probes),
        (GRADIENTS, lambda record: 1.0 - record["no_gradient"]["groups"], results.probes),
        (SHARES, lambda record: stats.mean_of(record, "advantage/failure_share"), results.seeds),
    )
    rows = []
    for task, about in study.TASKS.items():
        for claim in (claim for claim in BETTER_OBJECTIVES if _is_asked(study, task, claim)):
            pair = (claim.arm, claim.than)
            found = {axis: at_equal(results, task, pair, axis) for axis in ("tokens", "seconds", "step")}
            figure = f"{_figure(found['tokens'])} at equal tokens"
            for axis, words in (("seconds", "time"), ("step", "steps")):
                figure += f"; {points(found[axis])} at equal {words}"
            rows.append([claim.text, about.title, verdict(found["tokens"]), figure, claim.paper])
        for group, measure, find in groups:
            for claim in (claim for claim in group if _is_asked(study, task, claim)):
                difference = results.difference(find(task, claim.arm), find(task, claim.than), measure)
                rows.append([claim.text, about.title, verdict(difference), _figure(difference), claim.paper])
        for claim in (claim for claim in NOISE if _is_asked(study, task, claim)):
            ours, theirs = (results.probes(task, arm) for arm in (claim.arm, claim.than))
            logs = results.difference(ours, theirs, stats.log_noise_scale)
            rows.append([claim.text, about.title, verdict(logs, less=True), _ratio(logs), claim.paper])
    return rows


def of_logs(whole: Interval | None, digits: int) -> str:
    """A geometric mean with its interval, from the interval of the logarithms."""
    if whole is None:
        return MISSING
    low, mean, high = (
        f"{x:.{digits}f}" if x < 1e5 else f"{x:.0e}" for x in map(math.exp, (whole.low, whole.mean, whole.high))
    )
    return mean if math.isnan(whole.half) else f"{mean} ({low} to {high})"


def _ratio(logs: Difference | None) -> str:
    """The ratio of two noise scales, from the difference of their logarithms."""
    if logs is None:
        return MISSING
    ours, theirs = math.exp(logs.ours), math.exp(logs.theirs)
    ratio = of_logs(logs.interval, 2)
    return f"noise scale {ours:.0f} against {theirs:.0f} prompts: {ratio} times, {logs.interval.num_seeds} seeds"


def _is_asked(study: Any, task: str, claim: Claim) -> bool:
    return all(arm in study.ARMS and task in study.ARMS[arm].tasks for arm in (claim.arm, claim.than))


def at_equal(results: Results, task: str, pair: tuple[str, str], axis: str) -> Difference | None:
    """The difference in final accuracy of a pair of arms, at the most that both have spent on an axis."""
    ours, theirs = (results.seeds(task, arm) for arm in pair)
    if not ours or not theirs:
        return None
    return results.difference(ours, theirs, results.final(axis, results.budget(task, pair, axis)))


def _figure(difference: Difference | None) -> str:
    if difference is None:
        return MISSING
    return (
        f"{100 * difference.ours:.1f} against {100 * difference.theirs:.1f}: "
        f"{points(difference)}, {difference.interval.num_seeds} seeds"
    )


def signature(results: Results, study: Any) -> list[list[str]]:
    """The table of raw advantages by role: theory, and the line fitted through the advantages of all runs."""
    rows = []
    for role, fit in stats.signature(results.all(study)).items():
        formula = "sqrt(K')" if role == "anchor" else "1 / sqrt(K')"
        rows.append(
            [
                f"{role}s",
                formula if role == "anchor" else f"-{formula}",
                f"{fit.slope:.3f} {formula} {fit.intercept:+.3f}",
                f"{fit.r_squared:.3f}",
                f"{fit.num_points:,}",
            ]
        )
    return rows


def defaults(results: Results, study: Any) -> list[list[str]]:
    """The table of defaults: key, value, another value, its effect by task and over all tasks, and the verdict."""

    def change(default: Default, arm: str, tasks: Sequence[str]) -> Difference | None:
        ours, theirs = (
            {(task, seed): record for task in tasks for seed, record in results.seeds(task, name).items()}
            for name in (arm, default.arm)
        )
        return results.difference(ours, theirs, results.final())

    rows = []
    for default in DEFAULTS:
        for value, arm in default.others.items():
            each = [change(default, arm, [task]) for task in study.TASKS]
            if not any(each):
                continue
            together = change(default, arm, list(study.TASKS)) if all(each) else None
            follows = {
                HOLDS: f"better: {value}",
                FAILS: f"worse: {default.kept} stays",
                OPEN: f"no clear difference: {default.kept} stays",
            }
            rows.append(
                [
                    f"objective.{default.key}",
                    default.kept,
                    value,
                    *map(points, each),
                    points(together),
                    follows[verdict(together)] if together else f"not tried in every task: {default.kept} stays",
                ]
            )
    return rows
