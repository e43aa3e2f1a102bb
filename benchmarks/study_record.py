"""The study's record of a run: one JSON object, made from the run folder's metrics, events and checkpoint."""

from __future__ import annotations

import collections
import hashlib
import json
import re
import statistics
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, NotRequired, TypedDict

import numpy as np
from etils import epath

from care_jax.checkpoints.array_store import open_arrays
from care_jax.checkpoints.load import load_params
from care_jax.run.folder import CONFIG_FILE, EVENTS_FILE, METRICS_FILE, EventLine

NUM_BINS = 20  # points of a curve
# The metrics whose curves are kept. The page shows some of them; the others are for questions to come.
CURVES = (
    "accuracy/train",
    "reward/mean",
    "format_rate",
    "unparsed_rate",
    "truncated_rate",
    "entropy",
    "response_len/mean",
    "grad_norm",
    "groups/mixed",
    "groups/all_wrong",
    "groups/all_correct",
    "advantage/anchor",
    "advantage/negative",
    "advantage/failure_share",
    "reflect/success_rate",
    "rescue/rate",
    "clip_fraction",
    "abs_log_ratio",
    "dynamic/draws",
)
_ACCURACY = "eval/accuracy/"


class Evaluation(TypedDict):
    """One evaluation of a run."""

    step: int
    tokens: int  # sampled until then
    accuracy: dict[str, float]  # by skill, and their "mean"


class Record(TypedDict):
    """A line of runs.jsonl: one run and its results."""

    task: str
    arm: str
    seed: int
    kind: str  # training | probe
    evaluations: list[Evaluation]
    curves: dict[str, list[list[float]]]  # [step, value] by metric
    seconds_a_step: dict[str, float]  # by stage, and the whole "step"
    tokens: dict[str, int]  # sampled for "rollout" and "reflect"
    draws_a_step: float  # batches of prompts; above 1 with dynamic sampling
    num_groups: int
    no_gradient: dict[str, float]  # shares of "groups" and of "steps"
    reflections: NotRequired[dict[str, int]]  # "tried" and "repaired"
    signature: NotRequired[list[list[Any]]]  # [role, K', number, sum, sum of squares]
    second_moment: NotRequired[dict[str, float]]  # of the final advantages, by role
    noise: NotRequired[dict[str, float]]  # of a probe's gradients: the fields of Noise, num_updates, num_prompts
    peak_gib: float  # resident memory
    settings: dict[str, Any]  # by dotted key
    cold_start: str  # a digest of the parameters that the run started from
    command: str
    machine: str
    manifest: dict[str, Any]


def of_run(workdir: Path) -> dict[str, Any]:
    """Reads a finished run folder: evaluations, curves, times, tokens and groups, by the keys of Record.

    Raises:
        ValueError: the run was stopped before its end.
    """
    rows, evaluations = [], []
    tokens = 0
    for row in _lines(workdir / METRICS_FILE):
        if "loss" in row:
            rows.append(row)
            tokens += row["tokens/rollout"] + row["tokens/reflect"]
        elif accuracy := {name.removeprefix(_ACCURACY): row[name] for name in row if name.startswith(_ACCURACY)}:
            evaluations.append({"step": row["step"], "tokens": tokens, "accuracy": accuracy})
    num_steps = json.loads((workdir / CONFIG_FILE).read_text())["train"]["steps"]
    if not evaluations or evaluations[-1]["step"] != num_steps:
        raise ValueError(f"{workdir} was stopped before step {num_steps}; run the same command again")
    stages = sorted({name for row in rows for name in row if name.startswith("time/")})
    # Dynamic sampling draws more groups than it updates.
    num_draws = sum(row.get("dynamic/draws", 1) for row in rows) / num_steps
    return {
        "evaluations": evaluations,
        "curves": {name: _binned(rows, name) for name in CURVES if any(name in row for row in rows)},
        "seconds_a_step": {
            name.removeprefix("time/"): statistics.median(row.get(name, 0.0) for row in rows) for name in stages
        },
        "tokens": {kind: sum(row[f"tokens/{kind}"] for row in rows) for kind in ("rollout", "reflect")},
        "draws_a_step": num_draws,
    } | _of_groups(_lines(workdir / EVENTS_FILE), num_draws)


def _lines(path: Path) -> list[Any]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def _binned(rows: Sequence[Mapping[str, float]], name: str) -> list[list[float]]:
    """Divides a run into equal pieces: [last step, mean over the steps that have the metric] of each."""
    pieces = [piece for piece in np.array_split(np.arange(len(rows)), min(NUM_BINS, len(rows))) if len(piece)]
    binned = []
    for piece in pieces:
        values = [rows[i][name] for i in piece if rows[i].get(name) is not None]
        if values:
            binned.append([rows[piece[-1]]["step"], float(f"{statistics.fmean(values):.5g}")])
    return binned


def _of_groups(events: Iterable[EventLine], num_draws: float) -> dict[str, Any]:
    """Counts over all groups of a run.

    "no_gradient" counts the groups that dynamic sampling dropped too. "signature" has, for each role and K', number,
    sum and sum of squares of the raw advantages of MIXED subgroups. Subgroups with a repaired failure, which counts as
    correct there, or with further positives follow another law and are left out, as in the report. "second_moment" is
    the mean square of the final advantages of anchors and of negatives.
    """
    num_groups = num_still = 0
    active_steps: dict[int, bool] = {}
    tried = repaired = 0
    signature: dict[tuple[str, int], list[float]] = collections.defaultdict(lambda: [0, 0.0, 0.0])
    squares: dict[str, list[float]] = {"anchor": [], "negative": []}
    for event in events:
        final = event["advantages"]
        is_still = not any(final)
        num_groups += 1
        num_still += is_still
        active_steps[event["step"]] = active_steps.get(event["step"], False) or not is_still
        if event["reflected"] is not None:
            tried += 1
            repaired += event["reflection_correct"] is True
        if event["outcome"] != "MIXED" or event["anchor"] is None or event["reflection_correct"]:
            continue
        count = event["num_negatives"]
        squares["anchor"].append(final[0] ** 2)
        squares["negative"] += [value**2 for value in final[1 : 1 + count]]
        if len(final) > 1 + count:  # further positives: another law
            continue
        for slot, value in enumerate(event["advantages_raw"]):
            sums = signature["negative" if slot else "anchor", count]
            sums[0] += 1
            sums[1] += value
            sums[2] += value**2
    groups: dict[str, Any] = {
        "num_groups": num_groups,
        "no_gradient": {
            "groups": 1.0 - (num_groups - num_still) / (num_groups * num_draws),
            "steps": sum(not active for active in active_steps.values()) / len(active_steps),
        },
    }
    if tried:
        groups["reflections"] = {"tried": tried, "repaired": repaired}
    if signature:
        groups["signature"] = [[role, count, *sums] for (role, count), sums in sorted(signature.items())]
    if any(squares.values()):
        groups["second_moment"] = {role: statistics.fmean(values) for role, values in squares.items() if values}
    return groups


def digest_of_params(workdir: Path) -> str:
    """A digest of the parameters in a run folder's newest checkpoint."""
    digest = hashlib.sha256()
    for name, value in sorted(load_params(workdir).items()):
        digest.update(name.encode() + np.asarray(value).tobytes())
    return digest.hexdigest()[:12]


def of_gradients(workdir: Path, *, step: int, num_updates: int, decay: float) -> dict[str, Any]:
    """Measures the noise of a probe's gradients from Adam's moments at its last step; see `gradient_noise`.

    Args:
        workdir: the folder of a run with a learning rate of almost 0 and unclipped gradients.
        step: its last step.
        num_updates: updates until then.
        decay: b1 and b2, which are equal.

    Raises:
        ValueError: there is no such checkpoint.
    """
    arrays = open_arrays(epath.Path(workdir / "checkpoints" / str(step) / "opt_state"))
    moments: dict[str, list[np.ndarray]] = {"mu": [], "nu": []}
    for name, array in arrays.items():
        if found := re.search(r"\.(mu|nu)\b", name):
            moments[found[1]].append(array.read(tuple(slice(None) for _ in array.shape)).result())
    noise = gradient_noise(moments["mu"], moments["nu"], num_updates=num_updates, decay=decay)
    return noise._asdict() | {"num_updates": num_updates}


class Noise(NamedTuple):
    """Noise and signal of one update's gradient, each summed over all parameters."""

    variance: float
    signal: float  # squared norm of the mean


def gradient_noise(mu: Sequence[np.ndarray], nu: Sequence[np.ndarray], *, num_updates: int, decay: float) -> Noise:
    """Unbiased variance and squared norm of the mean of n gradients, from Adam's moments with b1 = b2 = b.

    Divided by 1 - b^n, the moments are a mean m and a mean square s with weights w_i that sum to 1. With q = sum w_i^2
    the variance is (s - m^2) / (1 - q), and the squared norm m^2 - q * variance.
    """
    correction = 1.0 - decay**num_updates
    q = float(np.sum(((1.0 - decay) * decay ** np.arange(num_updates) / correction) ** 2))
    squared_mean = sum(float(np.sum((x.astype(np.float64) / correction) ** 2)) for x in mu)
    mean_square = sum(float(np.sum(x.astype(np.float64) / correction)) for x in nu)
    variance = (mean_square - squared_mean) / (1.0 - q)
    return Noise(variance, squared_mean - q * variance)
