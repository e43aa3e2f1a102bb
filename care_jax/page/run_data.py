"""Reads a run folder and reduces it to what the report page shows."""

from __future__ import annotations

import collections
import dataclasses
import json
import math
import statistics
from collections.abc import Mapping, Sequence
from typing import Any, TypedDict

from etils import epath

from care_jax.run.folder import CONFIG_FILE, EVENTS_FILE, MANIFEST_FILE, METRICS_FILE, SAMPLES_FILE, EventLine, Sample

OUTCOMES = {"ALL_WRONG": "all wrong", "MIXED": "mixed", "ALL_CORRECT": "all correct"}
MAX_SAMPLES = 400  # sample groups of one run on the page; their images are most of its size
MAX_BUBBLES = 60  # different advantages drawn at one K'
_IMAGE_PREFIXES = tuple(f"data:image/{kind};base64," for kind in ("png", "jpeg", "webp", "gif"))


class MechanismPoint(TypedDict):
    """Raw advantages of all subgroups of one size, for one role."""

    role: str  # anchor | negative
    num_negatives: int  # K'
    count: int  # subgroups
    mean: float
    theory: float  # sqrt(K') for the anchor, -1 / sqrt(K') for a negative
    values: list[tuple[float, int]]  # the commonest advantages, to two digits, with how often each came


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
    samples: Sequence[Sample]
    notices: Sequence[str]  # one line each: what is missing or short

    @property
    def last_step(self) -> int:
        """The newest step that has metrics."""
        return max(self.metrics, default=0)


def load_run(workdir: epath.Path, name: str) -> Run:
    """Reads a run folder. A missing file or a torn line becomes a notice."""
    notices: list[str] = []
    config = _read_json(workdir / CONFIG_FILE, notices)
    manifest = _read_json(workdir / MANIFEST_FILE, notices)
    rows = _read_jsonl(workdir / METRICS_FILE, notices)
    metrics: dict[int, dict[str, float]] = {}
    for row in rows:
        finite = {key: value for key, value in row.items() if key != "step" and value is not None}
        metrics.setdefault(row["step"], {}).update(finite)
    stage = manifest["stage"] if "stage" in manifest else _guess_stage(metrics)
    events: list[EventLine] = _read_jsonl(workdir / EVENTS_FILE, notices if stage == "train" else [])
    samples: list[Sample] = _read_jsonl(workdir / SAMPLES_FILE, notices if stage == "train" else [])
    stride = -(-len(samples) // MAX_SAMPLES) or 1
    if stride > 1:
        notices.append(f"1 in {stride} of {len(samples)} sample groups is shown; all are in {SAMPLES_FILE}")
    if config and metrics and max(metrics) < config["train"]["steps"]:
        notices.append(f"in progress or stopped early: step {max(metrics)} of {config['train']['steps']}")
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
        samples=[_safe_sample(sample) for sample in samples[::stride]],
        notices=notices,
    )


def _guess_stage(metrics: Mapping[int, Mapping[str, float]]) -> str:
    names = set().union(*metrics.values())
    return "cold_start" if "loss" in names and "reward/mean" not in names else "train"


def _read_json(path: epath.Path, notices: list[str]) -> dict[str, Any]:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        notices.append(f"no {path.name}")
    except ValueError:
        notices.append(f"{path.name} is not whole JSON")
    return {}


def _read_jsonl(path: epath.Path, notices: list[str]) -> list[Any]:
    """The whole lines of a file that may be growing; a torn one is counted in a notice."""
    rows: list[Any] = []
    num_torn = 0
    if not path.exists():
        notices.append(f"no {path.name} yet")
        return rows
    with path.open("rb") as file:
        for line in file:
            try:
                rows.append(json.loads(line))
            except ValueError:
                num_torn += 1
    if num_torn:
        notices.append(f"{path.name}: {num_torn} line(s) not whole, left out")
    if not rows:
        notices.append(f"{path.name} is empty so far")
    return rows


def _safe_sample(sample: Sample) -> Sample:
    """The sample with embedded bitmaps as its only images: the page would load an address when it is opened."""
    return {**sample, "images": [image for image in sample["images"] if image.startswith(_IMAGE_PREFIXES)]}


def mechanism(events: Sequence[EventLine]) -> list[MechanismPoint]:
    """The signature of the method: raw advantages by K', from MIXED groups without a repaired failure.

    For rewards that differ only by `correct`, an anchor has sqrt(K') and a negative -1/sqrt(K') (docs/method.md
    section 2). A repaired failure counts as correct inside its subgroup, so those groups follow another law and are
    left out.
    """
    advantages: dict[tuple[str, int], list[float]] = collections.defaultdict(list)
    num_subgroups: collections.Counter[int] = collections.Counter()
    for event in events:
        has_subgroup = event["outcome"] == "MIXED" and event["anchor"] is not None and event["num_negatives"] > 0
        # A null is an advantage that was not finite.
        if not has_subgroup or event["reflection_correct"] is True or None in event["advantages_raw"]:
            continue
        num_subgroups[event["num_negatives"]] += 1
        anchor, *negatives = event["advantages_raw"]
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
