"""Reads a run folder and reduces it to what the report page shows."""

from __future__ import annotations

import collections
import dataclasses
import itertools
import math
import statistics
from collections.abc import Mapping, Sequence
from typing import Any, TypedDict

from etils import epath

from care_jax.page.run_files import read_lines, read_object
from care_jax.run.folder import (
    CONFIG_FILE,
    EVENTS_FILE,
    HELD_OUT_FILE,
    MANIFEST_FILE,
    METRICS_FILE,
    SAMPLES_FILE,
    HeldOutLine,
    SampleLine,
)

OUTCOMES = {"ALL_WRONG": "all wrong", "MIXED": "mixed", "ALL_CORRECT": "all correct"}
STAGES = {"cold_start": "cold start", "train": "training"}
_LARGEST_STEP = 2**53
NEWLY_RIGHT, NEWLY_WRONG = "eval/newly_right", "eval/newly_wrong"
MAX_SAMPLES = 400  # sample groups of one run on the page; their images are most of its size
MAX_BUBBLES = 60  # different advantages drawn at one K'
_IMAGE_PREFIXES = tuple(f"data:image/{kind};base64," for kind in ("png", "jpeg", "webp", "gif"))


class Group(TypedDict):
    """The part of an `EventLine` that the page reads."""

    step: int
    outcome: str
    anchor: int | None
    num_negatives: int
    advantages_raw: list[float | None]  # None for one that is not finite
    reflected: int | None
    reflection_correct: bool | None


class MechanismPoint(TypedDict):
    """Raw advantages of all subgroups of one size, for one role."""

    role: str  # anchor | negative
    num_negatives: int  # K'
    count: int  # subgroups
    mean: float
    theory: float  # sqrt(K') for the anchor, -1 / sqrt(K') for a negative
    values: list[tuple[float, int]]  # the commonest advantages, to two digits, with how often each came


class Change(TypedDict):
    """A held-out question whose answer's verdict differs between the first and the last evaluation."""

    change: str  # newly right | newly wrong
    before: HeldOutLine
    after: HeldOutLine  # with the images


@dataclasses.dataclass(frozen=True)
class Run:
    """A run folder as the page shows it."""

    name: str
    stage: str  # "cold_start" | "train"
    config: Mapping[str, Any]  # nested, empty when missing
    manifest: Mapping[str, Any]  # flat, empty when missing
    metrics: Mapping[int, Mapping[str, float]]  # by step, ascending; finite values only
    mechanism: Sequence[MechanismPoint]
    num_groups: Mapping[str, int]  # by outcome
    num_reflected: int  # groups in which a reflection was tried
    num_repaired: int  # of those, came out correct
    samples: Sequence[SampleLine]
    changes: Sequence[Change]  # some of those of the last evaluation, newly right and newly wrong ones in turn
    notices: Sequence[str]  # one line each: what is missing or short

    @property
    def last_step(self) -> int:
        """The newest step that has metrics."""
        return max(self.metrics, default=0)

    @property
    def seconds(self) -> float:
        """The time of all steps and evaluations; compiling comes on top."""
        return sum(row.get("time/step", 0.0) + row.get("time/evaluate", 0.0) for row in self.metrics.values())


def setting(config: Mapping[str, Any], group: str, name: str) -> Any:
    """A value of a recorded config, which may have any shape; None if it is not there."""
    values = config.get(group)
    return values.get(name) if isinstance(values, dict) else None


def load_run(workdir: epath.Path, name: str) -> Run:
    """Reads a run folder. Missing and damaged files, torn lines and lines of another shape become notices."""
    notices: list[str] = []
    config = read_object(workdir / CONFIG_FILE, notices)
    manifest = read_object(workdir / MANIFEST_FILE, notices)
    metrics: dict[int, dict[str, float]] = {}
    for row in read_lines(workdir / METRICS_FILE, dict[str, float | None], notices, is_sound=_has_step):
        step = int(row.pop("step") or 0)
        metrics.setdefault(step, {}).update({key: value for key, value in row.items() if value is not None})
    stage = str(manifest.get("stage"))
    if stage not in STAGES:
        stage = _guess_stage(metrics)
    told = notices if stage == "train" else []
    events = read_lines(workdir / EVENTS_FILE, Group, told, is_sound=_is_sound)
    samples = read_lines(workdir / SAMPLES_FILE, SampleLine, told, is_sound=lambda sample: sample["step"] >= 0)
    held_out = read_lines(workdir / HELD_OUT_FILE, HeldOutLine, notices, is_sound=lambda line: line["step"] >= 0)
    stride = -(-len(samples) // MAX_SAMPLES) or 1
    if stride > 1:
        notices.append(f"1 in {stride} of {len(samples)} sample groups is shown; all are in {SAMPLES_FILE}")
    planned = setting(config, "train", "steps")
    if metrics and isinstance(planned, int) and max(metrics) < planned:
        notices.append(f"in progress or stopped early: step {max(metrics)} of {planned}")
    reflected = [event for event in events if event["reflected"] is not None]
    outcomes = [event["outcome"] for event in events]
    return Run(
        name=name,
        stage=stage,
        config=config,
        manifest=manifest,
        metrics=dict(sorted(metrics.items())),
        mechanism=mechanism(events),
        num_groups={outcome: outcomes.count(outcome) for outcome in OUTCOMES},
        num_reflected=len(reflected),
        num_repaired=sum(event["reflection_correct"] is True for event in reflected),
        samples=[{**sample, "images": _safe_images(sample["images"])} for sample in _of_steps(samples, stride)],
        changes=_changes(held_out, metrics),
        notices=notices,
    )


def _has_step(row: Mapping[str, float | None]) -> bool:
    step = row.get("step")
    return step is not None and step.is_integer() and 0 <= step <= _LARGEST_STEP


def _is_sound(event: Group) -> bool:
    return event["outcome"] in OUTCOMES and event["step"] >= 0 and event["num_negatives"] >= 0


def _guess_stage(metrics: Mapping[int, Mapping[str, float]]) -> str:
    names = set().union(*metrics.values())
    return "cold_start" if "loss" in names and "reward/mean" not in names else "train"


def _of_steps(samples: Sequence[SampleLine], stride: int) -> list[SampleLine]:
    """The groups of every `stride`-th step. Every `stride`-th group could be without the all-wrong ones."""
    steps = set(sorted({sample["step"] for sample in samples})[::stride])
    return [sample for sample in samples if sample["step"] in steps]


def _safe_images(images: Sequence[str]) -> list[str]:
    """The embedded bitmaps; the page would load an address when it is opened."""
    return [image for image in images if image.startswith(_IMAGE_PREFIXES)]


def _changes(lines: Sequence[HeldOutLine], metrics: Mapping[int, Mapping[str, float]]) -> list[Change]:
    first_step = min((line["step"] for line in lines), default=0)
    first = {line["index"]: line for line in lines if line["step"] == first_step}
    compared = [step for step, row in metrics.items() if NEWLY_RIGHT in row]
    last = {line["index"]: line for line in lines if compared and line["step"] == max(compared)}
    found: dict[bool, list[Change]] = {True: [], False: []}
    for index, after in last.items():
        if index in first and first[index]["correct"] != after["correct"]:
            change = "newly right" if after["correct"] else "newly wrong"
            after = {**after, "images": _safe_images(after["images"])}
            found[after["correct"]].append(Change(change=change, before=first[index], after=after))
    in_turn = itertools.zip_longest(found[True], found[False])
    return [change for pair in in_turn for change in pair if change is not None]


def explanation(sample: SampleLine) -> str:
    """Why the advantages of a sampled group are what they are; "" if that is plain."""
    rollouts = sample["rollouts"]
    is_zero = not any(rollout["advantage"] for rollout in rollouts)
    if sample["outcome"] == "ALL_CORRECT" and is_zero:
        return f"All {len(rollouts)} responses are right. None is better than another, so all advantages are 0."
    if sample["outcome"] == "ALL_WRONG":
        if is_zero:
            tried = "" if sample["reflection"] is None else " The repair that was tried is wrong too."
            return (
                f"All {len(rollouts)} responses are wrong.{tried} None is better than another, so all advantages are 0."
            )
        if sample["reflection"] is not None and sample["reflection"]["correct"]:
            return f"All {len(rollouts)} responses are wrong. The likeliest one was repaired: the repair is the anchor."
        if not any(rollout["role"] == "anchor" for rollout in rollouts):
            return (
                f"All {len(rollouts)} responses are wrong. Compared with objective.virtual_reward they are pushed "
                "down, so the group still gives a gradient."
            )
        return (
            f"All {len(rollouts)} responses are wrong. The likeliest one stands in for an anchor, with small "
            "pseudo-rewards (objective.rescue), so the group still gives a gradient."
        )
    if not is_zero:
        return ""
    repair = sample["reflection"]
    if repair is not None and repair["correct"] and not any(one["role"] == "negative" for one in rollouts):
        return (
            "The subgroup's only failure was repaired. Anchor and repair have the same reward, so all advantages are 0."
        )
    return "All rewards in the subgroup are the same, so all advantages are 0."


def mechanism(events: Sequence[Group]) -> list[MechanismPoint]:
    """The signature of the method: raw advantages by K', from MIXED groups without a repaired failure.

    For rewards that differ only by `correct`, an anchor has sqrt(K') and a negative -1/sqrt(K') (docs/method.md
    section 2). A repaired failure counts as correct inside its subgroup, so those groups follow another law and are
    left out.
    """
    advantages: dict[tuple[str, int], list[float]] = collections.defaultdict(list)
    num_subgroups: collections.Counter[int] = collections.Counter()
    for event in events:
        has_subgroup = event["outcome"] == "MIXED" and event["anchor"] is not None and event["num_negatives"] > 0
        finite = [value for value in event["advantages_raw"] if value is not None]
        is_whole = len(finite) == len(event["advantages_raw"]) == event["num_negatives"] + 1
        if not has_subgroup or event["reflection_correct"] is True or not is_whole:
            continue
        num_subgroups[event["num_negatives"]] += 1
        anchor, *negatives = finite
        advantages["anchor", event["num_negatives"]].append(anchor)
        advantages["negative", event["num_negatives"]] += negatives
    points: list[MechanismPoint] = []
    for (role, num_negatives), values in sorted(advantages.items()):
        root = math.sqrt(num_negatives)
        commonest = collections.Counter(round(value, 2) for value in values).most_common(MAX_BUBBLES)
        points.append(
            MechanismPoint(
                role=role,
                num_negatives=num_negatives,
                count=num_subgroups[num_negatives],
                mean=round(statistics.fmean(values), 4),
                theory=round(root if role == "anchor" else -1 / root, 4),
                values=sorted(commonest),
            )
        )
    return points
