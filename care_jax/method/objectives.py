"""The objectives side by side: each is the same record with other values (docs/method.md section 6).

A config holds an objective as a ConfigDict; `Objective.from_config` checks it once and makes the record that everything
below the commands reads. Nothing there compares an objective's name.

[study] marks a value that the sources leave open: its row under "Defaults" in docs/study/README.md says what another
value did. Where that was not clearly better, the published one stays.
"""

from __future__ import annotations

import dataclasses
import difflib
import typing
from collections.abc import Callable, Mapping
from typing import Any

import ml_collections

from care_jax.errors import InputError
from care_jax.options import (
    Aggregate,
    RankBy,
    Ratio,
    RegionUnit,
    RepairedFailure,
    RepairSource,
    RescueScale,
    Selector,
    Surrogate,
    TrainOn,
    choose_one,
)


@dataclasses.dataclass(frozen=True)
class Rescue:
    """The all-wrong group (docs/method.md section 4)."""

    enabled: bool = False
    rank_by: RankBy = "sum"  # sum | mean of the old log-probs picks the pseudo-anchor [study]
    delta: float = 0.1  # pseudo-reward of the pseudo-anchor
    scale: RescueScale = "zscore"  # zscore (published) | delta (z-scored values times delta) [study]

    def __post_init__(self) -> None:
        """Refuses a wrong type or word."""
        _check_fields(self, "objective.rescue.")


@dataclasses.dataclass(frozen=True)
class Reflect:
    """Reflection-guided resampling (docs/method.md section 3)."""

    enabled: bool = False
    cue: str = (
        " Wait, the reasoning above contains an error. Find the wrong step, fix it and derive the answer again,"
        " concisely.\n"
    )
    # Tokens of the failed rationale that are kept. With train_on "continuation" cue and repair share what they leave of
    # the response's length; with "rewrite" the repair has all of it but the tag's.
    max_rationale_len: int = 1024
    source: RepairSource = "rationale"  # rationale | scratch (ablation: resample the prompt)
    # The negative that is repaired: nearest (published) | likeliest, as rescue.rank_by ranks | commonest (its answer is
    # that of the most failures of the group).
    failure: RepairedFailure = "nearest"
    all_wrong: bool = False  # ALL_WRONG groups too: the pseudo-anchor is repaired, and a right repair is the anchor
    train_on: TrainOn = "continuation"  # continuation | rewrite [study]

    def __post_init__(self) -> None:
        """Refuses a wrong type or word."""
        _check_fields(self, "objective.reflect.")


@dataclasses.dataclass(frozen=True)
class Region:
    """Region weights of the tokens (docs/method.md section 5)."""

    enabled: bool = False  # False: every sampled token weighs 1
    gamma_pos: float = 0.005  # weight of a correct response's rationale
    gamma_neg: float = 0.0  # weight of a wrong response's rationale (published: masked)
    format_weight: float = 0.0  # weight of tags and the stop token [study]
    unit: RegionUnit = "token"  # token | region: whether each token has such a weight, or all of a region's together
    after_divergence: bool = False  # rationale tokens that right and wrong rows of the subgroup share weigh 0

    def __post_init__(self) -> None:
        """Refuses a wrong type or word."""
        _check_fields(self, "objective.region.")


@dataclasses.dataclass(frozen=True)
class Objective:
    """One objective, checked when it is made; the defaults are GRPO's. Hashable, and static under jit.

    Raises:
        InputError: a field has another type, or a word that is not among those of options.py.
    """

    # Which rows are updated, and their advantages.
    anchored: bool = False  # True: the anchored subgroup; False: all G rollouts
    num_positives: int = 1  # most correct rollouts of a subgroup: the anchor and the next shortest
    num_negatives: int = 4  # K, target negatives of a subgroup
    num_neighbours: int = 6  # M, failures nearest to the anchor that are considered
    selector: Selector = "farthest_first"  # farthest_first | nearest | random | mixed | farthest
    normalise_std: bool = True  # divide the group's advantages by their standard deviation
    # Without anchors: the reward of a response that nobody sampled, which counts in the mean and the deviation. The
    # largest reward there is makes all-wrong groups teach (NGRPO); 0: none.
    virtual_reward: float = 0.0
    negative_scale: float = 0.5  # s, on the advantage of a negative
    reflected_scale: float = 0.25  # on a reflected sample that is still wrong
    equalise: bool = True  # multiply a subgroup's advantages by sqrt(K / K')
    rescue: Rescue = dataclasses.field(default_factory=Rescue)
    reflect: Reflect = dataclasses.field(default_factory=Reflect)
    region: Region = dataclasses.field(default_factory=Region)
    # The policy loss.
    # token | sequence (length-normalised, GSPO) | sequence_token (its value, the gradient of each token: GSPO-token)
    ratio: Ratio = "token"
    # What limits a ratio: clip (PPO) | cispo (the ratio is a clipped weight without gradient) | sapo (a smooth gate).
    surrogate: Surrogate = "clip"
    sapo_tau_pos: float = 1.0  # temperature of sapo's gate for rows of positive advantage
    sapo_tau_neg: float = 1.05  # for the others
    clip_low: float = 0.2
    clip_high: float = 0.2
    aggregate: Aggregate = "sequence"  # sequence | token | constant [study]
    kl_coef: float = 1e-2  # on the k3 estimate against the reference policy; 0: no reference pass
    # What DAPO adds.
    dynamic_sampling: bool = False  # drop groups without a contrast and draw more prompts until the batch is full
    max_draws: int = 10  # most batches drawn for one step of dynamic sampling; then dropped groups fill up
    overlong_buffer_len: int = 0  # tokens before the limit over which the length penalty grows; 0: no penalty
    overlong_penalty: float = 1.0  # reward taken off at the limit

    def __post_init__(self) -> None:
        """Refuses a wrong type or word."""
        _check_fields(self, "objective.")

    @classmethod
    def from_config(cls, config: ml_collections.ConfigDict | ml_collections.FrozenConfigDict) -> Objective:
        """Makes the record of `config.objective`.

        Raises:
            InputError: one line on a field that is unknown, missing, or of a wrong type or word.
        """
        objective: Objective = _from_mapping(cls, config.to_dict(), "objective.")
        return objective

    def to_config(self) -> ml_collections.ConfigDict:
        """Makes a ConfigDict of the fields, which a config changes and a command line overrides."""
        return ml_collections.ConfigDict(dataclasses.asdict(self))


def keeps_forced(objective: Objective | ml_collections.ConfigDict) -> bool:
    """True if forced tokens lie in the response that is trained, and share its room with the repair (section 3)."""
    reflect = objective.reflect
    return reflect.source == "rationale" and reflect.train_on == "continuation"


def has_all_wrong_subgroups(objective: Objective | ml_collections.ConfigDict) -> bool:
    """True if ALL_WRONG groups of an anchored objective get a subgroup: they are rescued or repaired (section 4)."""
    return objective.rescue.enabled or (objective.reflect.enabled and objective.reflect.all_wrong)


def is_rewritten(objective: Objective | ml_collections.ConfigDict) -> bool:
    """True if a repair is trained in another context than it was sampled in (section 3)."""
    reflect = objective.reflect
    return reflect.source == "rationale" and reflect.train_on == "rewrite"


def grpo() -> ml_collections.ConfigDict:
    """Group-relative policy optimisation (Shao et al. 2024, arXiv 2402.03300)."""
    return Objective().to_config()


def dapo() -> ml_collections.ConfigDict:
    """DAPO (Yu et al. 2025, arXiv 2503.14476): clip higher, token mean, dynamic sampling, soft overlong penalty."""
    return Objective(
        clip_high=0.28, aggregate="token", kl_coef=0.0, dynamic_sampling=True, overlong_buffer_len=512
    ).to_config()


def gspo() -> ml_collections.ConfigDict:
    """GSPO (Zheng et al. 2025, arXiv 2507.18071): one length-normalised ratio a sequence."""
    return Objective(ratio="sequence", clip_low=3e-4, clip_high=4e-4, kl_coef=0.0).to_config()


def dr_grpo() -> ml_collections.ConfigDict:
    """Dr. GRPO (Liu et al. 2025, arXiv 2503.20783): no standard deviation, constant denominator."""
    return Objective(normalise_std=False, aggregate="constant", kl_coef=0.0).to_config()


def care_no_rgr() -> ml_collections.ConfigDict:
    """CARE without reflection-guided resampling (docs/method.md sections 2, 4 and 5)."""
    return Objective(anchored=True, rescue=Rescue(enabled=True), region=Region(enabled=True)).to_config()


def care() -> ml_collections.ConfigDict:
    """CARE (arXiv 2512.19554): anchored subgroup, rescue, region weights and reflection."""
    return Objective(
        anchored=True, rescue=Rescue(enabled=True), region=Region(enabled=True), reflect=Reflect(enabled=True)
    ).to_config()


PRESETS: Mapping[str, Callable[[], ml_collections.ConfigDict]] = {
    "care": care,
    "care_no_rgr": care_no_rgr,
    "grpo": grpo,
    "dapo": dapo,
    "gspo": gspo,
    "dr_grpo": dr_grpo,
}


def _from_mapping(record: Any, values: Mapping[str, Any], prefix: str) -> Any:
    """A record of the dataclass `record`, nested ones included, from values of exactly its fields."""
    types = typing.get_type_hints(record)
    for name in values:
        if name not in types:
            close = difflib.get_close_matches(name, types, n=1)
            advice = f"did you mean {close[0]}?" if close else f"the fields are {', '.join(types)}"
            raise InputError(f"{prefix}{name}: no such field; {advice}")
    for name in types:
        if name not in values:
            raise InputError(f"{prefix}{name} is missing; start from a preset of care_jax.method.objectives")
    made = dict(values)
    for name, kind in types.items():
        if dataclasses.is_dataclass(kind) and isinstance(values[name], Mapping):
            made[name] = _from_mapping(kind, values[name], f"{prefix}{name}.")
    return record(**made)


def _check_fields(record: Any, prefix: str) -> None:
    """Raises InputError for the first field of `record` whose value is not what its annotation says."""
    for name, kind in typing.get_type_hints(type(record)).items():
        value, words = getattr(record, name), typing.get_args(kind)
        if words:
            if value not in words:
                raise InputError(f"{prefix}{name}={value!r}: {choose_one(words)}")
        # bool is a subclass of int, which no number is to be; a float may be written as 1.
        elif type(value) is not kind and not (kind is float and type(value) is int):
            raise InputError(f"{prefix}{name}={value!r}: must be of type {kind.__name__}")
