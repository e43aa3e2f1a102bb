"""The words that config keys allow, each list in one place, and the reading of one. Any room may import it."""

from __future__ import annotations

from collections.abc import Collection
from typing import Literal, get_args

# Words that are types too: mypy then knows which ones a variable holds.
Selector = Literal["farthest_first", "nearest", "random", "mixed", "farthest"]  # objective.selector
RankBy = Literal["sum", "mean"]  # objective.rescue.rank_by
RescueScale = Literal["zscore", "delta"]  # objective.rescue.scale
RepairSource = Literal["rationale", "scratch"]  # objective.reflect.source
RepairedFailure = Literal["nearest", "likeliest", "commonest"]  # objective.reflect.failure
TrainOn = Literal["continuation", "rewrite"]  # objective.reflect.train_on
RegionUnit = Literal["token", "region"]  # objective.region.unit
Ratio = Literal["token", "sequence", "sequence_token"]  # objective.ratio
Surrogate = Literal["clip", "cispo", "sapo"]  # objective.surrogate
Aggregate = Literal["sequence", "token", "constant"]  # objective.aggregate
RatioLevel = Literal["token", "sequence", "geometric"]  # loss.tis_level, loss.mask_level
SamplerWeights = Literal["auto", "int8"]  # rollout.weights
FormatName = Literal["answer_tags", "boxed"]  # data.response_format

SELECTORS: tuple[Selector, ...] = get_args(Selector)
RANKS: tuple[RankBy, ...] = get_args(RankBy)
RESCUE_SCALES: tuple[RescueScale, ...] = get_args(RescueScale)
REPAIR_SOURCES: tuple[RepairSource, ...] = get_args(RepairSource)
REPAIRED_FAILURES: tuple[RepairedFailure, ...] = get_args(RepairedFailure)
TRAIN_ON: tuple[TrainOn, ...] = get_args(TrainOn)
REGION_UNITS: tuple[RegionUnit, ...] = get_args(RegionUnit)
RATIOS: tuple[Ratio, ...] = get_args(Ratio)
SURROGATES: tuple[Surrogate, ...] = get_args(Surrogate)
AGGREGATES: tuple[Aggregate, ...] = get_args(Aggregate)
RATIO_LEVELS: tuple[RatioLevel, ...] = get_args(RatioLevel)
SAMPLER_WEIGHTS: tuple[SamplerWeights, ...] = get_args(SamplerWeights)
RESPONSE_FORMATS: tuple[FormatName, ...] = get_args(FormatName)

TRACKERS = ("tensorboard", "wandb", "mlflow", "trackio")  # tracker
COMPUTE_DTYPES = ("float32", "bfloat16")  # model.compute_dtype
ATTENTION = ("auto", "xla")  # model.attention
REMAT = ("full", "dots", "none")  # model.remat
GROUPS = ("vision", "merger", "decoder", "head")  # model.freeze
DATA_FORMATS = ("jsonl", "mini_vqa", "prepared")  # data.format
OVERLONG = ("drop", "shrink", "error")  # data.overlong
SKILLS = ("digits", "chart", "geometry")  # data.mini_vqa.skills by default
EVERY_SKILL = (*SKILLS, "columns", "options", "series", "triangles")  # data.mini_vqa.skills
OLD_FROM = ("pass", "sampler")  # score.old_from
REWARDS = ("iou", "repetition", "length")  # verify.rewards, beside functions of one's own
SCHEDULES = ("constant", "cosine", "linear")  # optimizer.schedule


def tracker_names(tracker: str) -> tuple[str, ...]:
    """Reads the config's `tracker`: "tensorboard, wandb" names two trackers, "" none."""
    return tuple(name for word in tracker.split(",") if (name := word.strip()))


def choose_one(words: Collection[str]) -> str:
    """Returns the end of the message that refuses another word."""
    return f"choose one of {', '.join(words)}"
