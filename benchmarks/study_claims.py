"""The paper's claims, each with the figure that speaks for or against it here."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

from benchmarks import study_stats as stats
from benchmarks.study_stats import Interval, Record, Results

HOLDS, FAILS, OPEN = "holds here", "does not", "cannot be told at this size"
CARE, GRPO = "care", "grpo"


class Claim(NamedTuple):
    """`arm` has more of `measure` than `than`."""

    text: str
    arm: str
    than: str
    measure: Callable[[Record], float | None] = stats.final
    is_share: bool = True  # shown in percent


CLAIMS = (
    Claim("CARE is better than GRPO", CARE, GRPO),
    Claim("CARE with the paper's token weights is better than GRPO", "care_paper_weights", GRPO),
    Claim("CARE without reflection is better than GRPO", "care_no_rgr", GRPO),
    Claim("CARE is better than DAPO", CARE, "dapo"),
    Claim("CARE is better than GSPO", CARE, "gspo"),
    Claim("Reflection adds to the anchored subgroup", CARE, "care_no_rgr"),
    Claim("Near and spread negatives are better than random ones", CARE, "selector_random"),
    Claim("Near and spread negatives are better than the farthest", CARE, "selector_farthest"),
    Claim("s = 0.5 is better than s = 1", CARE, "scale_1"),
    Claim("s = 0.5 is better than s = 0.25", CARE, "scale_025"),
    Claim("Equalisation helps", CARE, "equalise_off"),
    Claim("Rescue of groups that are all wrong helps", CARE, "rescue_off"),
    Claim("The paper's token weights are better than equal ones", "care_paper_weights", CARE),
    Claim("The paper's token weights are better than the answer alone", "care_paper_weights", "weights_answer"),
    Claim("Failing rationales are better masked", "care_paper_weights", "weights_failing"),
    Claim("The cue repairs more failures than none", CARE, "reflect_no_cue", stats.repair_rate),
    Claim("Going on from the failure repairs more than from scratch", CARE, "reflect_scratch", stats.repair_rate),
    Claim(
        "More groups give a gradient than with GRPO", CARE, GRPO, lambda record: 1.0 - record["no_gradient"]["groups"]
    ),
    Claim(
        "A smaller s lowers the variance of negatives against anchors",
        CARE,
        "scale_025",
        stats.variance_ratio,
        is_share=False,
    ),
)


def verdict(difference: Interval | None) -> str:
    """What the interval of a difference says of the claim that it is above 0."""
    if difference is None or math.isnan(difference.half):
        return OPEN
    if difference.low > 0:
        return HOLDS
    return FAILS if difference.high < 0 else OPEN


def rows(results: Results, study: Any) -> list[list[str]]:
    """Claim, verdict and figure, for each task in which both arms were run."""
    found = []
    for claim in CLAIMS:
        for task in study.TASKS:
            difference = results.difference(task, claim.arm, claim.than, claim.measure)
            if difference is not None:
                ours, theirs = (results.over_seeds(task, arm, claim.measure) for arm in (claim.arm, claim.than))
                assert ours is not None and theirs is not None
                unit, digits = (100, 1) if claim.is_share else (1, 3)
                half = "" if math.isnan(difference.half) else f" ± {unit * difference.half:.{digits}f}"
                figures = f"{unit * ours.mean:.{digits}f} against {unit * theirs.mean:.{digits}f}: "
                figures += f"{unit * difference.mean:+.{digits}f}{half}{' points' if claim.is_share else ''}, "
                found.append(
                    [
                        f"{claim.text} ({task.replace('_', ' ')})",
                        verdict(difference),
                        f"{figures}{difference.num_seeds} seeds",
                    ]
                )
    records = [record for task in study.TASKS for record in results.seeds(task, CARE).values()]
    for role, fit in stats.signature(records).items():
        slope = 1.0 if role == "anchor" else -1.0
        formula = "sqrt(K')" if role == "anchor" else "1 / sqrt(K')"
        holds = abs(fit.slope - slope) < 0.02 and abs(fit.intercept) < 0.02
        found.append(
            [
                f"Raw advantages of {role}s are {'-' if slope < 0 else ''}{formula}",
                HOLDS if holds else FAILS,
                f"{fit.slope:.3f} {formula} {fit.intercept:+.3f}, R² {fit.r_squared:.3f}, {fit.num_points:,} of them",
            ]
        )
    return found
