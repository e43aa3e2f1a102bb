"""Made-up steps of a run, from averages: lengths of prompts and responses, and verdicts, that a step may have.

* Responses are log-normal with SIGMA as the deviation of the logarithm, cut at R tokens; their mean after the cut is
  the one given. Their lengths do not depend on the verdicts.
* A prompt's rate of right answers has a beta distribution around the accuracy. If the share of mixed groups is known,
  its spread is the one that gives that share, else _CONCENTRATION.
* Prompts are uniform around their mean, as widely as the bucket allows, with patches in proportion.
* With dynamic sampling all groups are mixed, of as many draws as that takes.

The cue of a repair is not counted. Draws of one seed move together: a higher mean makes no response shorter, a higher
accuracy no answer wrong.
"""

from __future__ import annotations

import dataclasses
import math
import statistics
from typing import NamedTuple

import ml_collections
import numpy as np
import numpy.typing as npt
from etils import epath
from scipy import special

from care_jax.errors import InputError, shown
from care_jax.files import parse_object
from care_jax.method.advantage import has_contrast, may_teach
from care_jax.method.objectives import keeps_forced
from care_jax.method.train_batch import slot_of_repair
from care_jax.planning.speed import PromptSizes
from care_jax.run.folder import METRICS_FILE
from care_jax.stages.packing import Bucket, PromptLengths
from care_jax.structs import Outcome

SIGMA = 0.8
_CONCENTRATION = 2.0  # sum of the beta distribution's two parameters
_LAST_STEPS = 20  # whose metrics are averaged

Lengths = npt.NDArray[np.int32]


@dataclasses.dataclass(frozen=True)
class Averages:
    """The averages of a run's steps that a step is made up from."""

    mean_len: float  # tokens of a response
    accuracy: float  # share of right answers
    mean_prompt_len: float  # tokens of a prompt, with its images'
    mean_patches: float  # of a prompt
    mixed: float | None = None  # share of groups with right and wrong answers

    @classmethod
    def make(
        cls,
        config: ml_collections.ConfigDict,
        bucket: Bucket,
        *,
        mean_len: float,
        accuracy: float,
        mean_prompt_len: float | None = None,
    ) -> Averages:
        """The averages as given, for prompts of a bucket; without a mean they fill half of it.

        Raises:
            InputError: one line: an average that no step of this config can have.
        """
        longest, tokens = config.rollout.response_len, bucket[0]
        mean_prompt = tokens / 2 if mean_prompt_len is None else mean_prompt_len
        for name, value, low, high, what in (
            ("mean_len", mean_len, 1, longest, "rollout.response_len"),
            ("accuracy", accuracy, 0, 1, "all"),
            ("mean_prompt_len", mean_prompt, 1, tokens, "the largest prompt bucket"),
        ):
            if not low <= value <= high:
                raise InputError(f"--{name}={value}: give a number from {low} to {high}, {what}")
        return cls(mean_len, accuracy, mean_prompt, bucket[1] * mean_prompt / tokens)

    @classmethod
    def of_run(cls, config: ml_collections.ConfigDict, bucket: Bucket, path: epath.Path) -> Averages:
        """The averages of the last steps of a run, from its folder or its metrics.jsonl.

        Raises:
            InputError: one line: there is no such file, or no step of training in it.
        """
        file = path / METRICS_FILE if path.is_dir() else path
        if not file.is_file():
            raise InputError(f"--metrics={shown(str(path))}: no such file; give a run folder or its {METRICS_FILE}")
        lines = [line for line in file.read_bytes().split(b"\n") if line.strip()]
        rows = [parse_object(line, str(file), remedy=f"give a run's {METRICS_FILE}") for line in lines]
        names = ("response_len/mean", "accuracy/train", "groups/mixed", "prompt_len/mean", "patches/mean")
        steps = [row for row in rows if all(isinstance(row.get(name), int | float) for name in names)]
        if not steps:
            raise InputError(f"--metrics={shown(str(path))}: it has no step of training, whose lines have {names[0]}")
        means = [statistics.fmean(row[name] for row in steps[-_LAST_STEPS:]) for name in names]
        mean_len, accuracy, mixed, prompt_len, patches = means
        if not all(map(math.isfinite, means)):
            raise InputError(f"--metrics={shown(str(path))}: its last steps have numbers that are not finite")
        try:
            made = cls.make(config, bucket, mean_len=mean_len, accuracy=accuracy, mean_prompt_len=prompt_len)
        except InputError as error:
            raise InputError(f"--metrics={shown(str(path))} is of a run with another config: {error}") from error
        return dataclasses.replace(made, mean_patches=patches, mixed=mixed)


class Workload(NamedTuple):
    """The lengths of a step. A row of 0 tokens is not computed."""

    prompts: PromptSizes
    rollouts: Lengths  # [B, G]
    forced: Lengths  # [B, 1] tokens that each repair starts from
    repaired: Lengths  # [B, 1] tokens that are sampled behind them; 0 if the group has nothing to repair
    rows: dict[str, Lengths]  # [B, rows] by the name of the packing in step.py
    num_draws: int  # batches of prompts

    @property
    def lengths(self) -> PromptLengths:
        """The prompts as `stages.packing.pack` takes them."""
        return PromptLengths(self.prompts.tokens.astype(np.int32), self.prompts.patches.astype(np.int32))


def draw(
    config: ml_collections.ConfigDict, averages: Averages, bucket: Bucket, window_len: int, seed: int = 0
) -> Workload:
    """Makes up a step with one image in each prompt; `window_len` is the most patches of a window."""
    rng, objective, limit = np.random.default_rng(seed), config.objective, config.rollout.response_len
    shape = config.train.prompts, config.rollout.num_rollouts
    tokens = draw_prompts(rng, shape[0], averages.mean_prompt_len, bucket[0])
    patches = np.minimum(np.rint(tokens * averages.mean_patches / averages.mean_prompt_len), bucket[1])
    correct = draw_correct(rng, shape, averages.accuracy, averages.mixed)
    response_len = draw_lengths(rng, shape, averages.mean_len, limit)
    fresh = draw_lengths(rng, (shape[0], 1), averages.mean_len, limit)

    num_draws = 1
    if objective.dynamic_sampling:
        is_kept = has_contrast(correct, objective)
        num_draws = min(math.ceil(1 / max(is_kept.mean(), 1e-9)), objective.max_draws)
        correct = correct[np.resize(np.flatnonzero(is_kept), shape[0])] if np.any(is_kept) else correct
    is_mixed = np.any(correct, axis=1) & ~np.all(correct, axis=1)

    teaches = may_teach(correct, correct * np.float32(objective.virtual_reward or 1.0), objective)
    scored = np.where(teaches[:, None], response_len, 0)
    taught = scored
    if objective.anchored:
        rows_of_group = _subgroups(correct, response_len, objective.num_positives, objective.num_negatives)
        taught = np.where(teaches[:, None], rows_of_group, 0)

    forced, repaired = np.zeros_like(fresh), np.zeros_like(fresh)
    rows = {"rollout_packing": scored, "batch_packing": taught}
    if objective.reflect.enabled:
        tried = teaches & (is_mixed | objective.reflect.all_wrong)
        slot = np.asarray(slot_of_repair(np.where(is_mixed, Outcome.MIXED, Outcome.ALL_WRONG)))[:, None]
        failed = np.take_along_axis(taught, slot, axis=1)
        if objective.reflect.source == "rationale":
            forced = np.where(tried[:, None], np.minimum(failed, objective.reflect.max_rationale_len), 0)
        kept = forced if keeps_forced(objective) else np.zeros_like(forced)
        repaired = np.where(tried[:, None], np.minimum(fresh, limit - kept), 0)
        rows["repair_packing"] = kept + repaired
        # A wrong repair of an all-wrong group has no place. Repairs are right as often as responses are.
        is_placed = tried & (is_mixed | (rng.random(shape[0]) < averages.accuracy))
        np.put_along_axis(taught, slot, np.where(is_placed[:, None], kept + repaired, failed), axis=1)
        if not objective.rescue.enabled:
            taught[~(is_mixed | is_placed)] = 0
    sizes = PromptSizes(tokens, patches, patches**2, patches * np.minimum(patches, window_len))
    return Workload(sizes, response_len, forced, repaired, rows, num_draws)


def _subgroups(
    correct: npt.NDArray[np.bool_], response_len: Lengths, num_positives: int, num_negatives: int
) -> Lengths:
    """Tokens of the rows of anchored subgroups [B, S]: the shortest right response, wrong ones, the other right ones.

    0 where a group has no more. All-wrong groups have a wrong one in the anchor's place.
    """
    first = np.argsort(correct, axis=1, kind="stable")  # the wrong ones come first
    wrong = np.take_along_axis(np.where(correct, 0, response_len), first, axis=1)
    most = np.iinfo(np.int32).max
    right = np.sort(np.where(correct, response_len, most), axis=1)
    right = np.where(right == most, 0, right)
    some = np.any(correct, axis=1, keepdims=True)
    anchor = np.where(some, right[:, :1], wrong[:, :1])
    others = np.where(some, wrong, np.pad(wrong[:, 1:], ((0, 0), (0, 1))))
    return np.concatenate([anchor, _columns(others, num_negatives), _columns(right[:, 1:], num_positives - 1)], axis=1)


def _columns(lengths: Lengths, count: int) -> Lengths:
    """The first columns, and zeros for those that there are not."""
    return np.pad(lengths[:, :count], ((0, 0), (0, max(0, count - lengths.shape[1]))))


def draw_prompts(rng: np.random.Generator, count: int, mean: float, most: int) -> npt.NDArray[np.float64]:
    """Tokens of prompts: uniform around the mean, from 1 to `most` or less."""
    reach = min(mean - 1, most - mean)
    return np.rint(rng.uniform(mean - reach, mean + reach, count))


def draw_correct(
    rng: np.random.Generator, shape: tuple[int, int], accuracy: float, mixed: float | None = None
) -> npt.NDArray[np.bool_]:
    """Verdicts [B, G] of groups whose prompts differ in difficulty."""
    mean = float(np.clip(accuracy, 1e-6, 1 - 1e-6))
    concentration = _CONCENTRATION if mixed is None else _concentration(mean, mixed, shape[1])
    rate = special.betaincinv(concentration * mean, concentration * (1 - mean), rng.random((shape[0], 1)))
    return np.asarray(rng.random(shape) < rate)


def _concentration(mean: float, mixed: float, num_rollouts: int) -> float:
    """The beta distribution's concentration at which a share `mixed` of groups is mixed, or the nearest to it."""
    places = np.arange(num_rollouts)

    def share(concentration: float) -> float:
        uniform = [np.prod((concentration * of + places) / (concentration + places)) for of in (mean, 1 - mean)]
        return float(1 - sum(uniform))

    low, high = -7.0, 7.0  # of the logarithm; the share grows with it
    for _ in range(40):
        middle = (low + high) / 2
        low, high = (middle, high) if share(math.exp(middle)) < mixed else (low, middle)
    return math.exp(low)


def draw_lengths(rng: np.random.Generator, shape: tuple[int, int], mean: float, most: int) -> Lengths:
    """Tokens of responses, log-normal from 1 to `most`, with this mean."""
    spread = np.exp(SIGMA * rng.standard_normal(shape))

    def lengths(median: float) -> npt.NDArray[np.float64]:
        return np.clip(median * spread, 1, most)

    low, high = -20.0, math.log(most) + 20  # of the median's logarithm
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if lengths(math.exp(middle)).mean() < mean else (low, middle)
    return np.rint(lengths(math.exp(high))).astype(np.int32)
