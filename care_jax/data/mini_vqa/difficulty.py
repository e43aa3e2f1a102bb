"""The knobs of mini_vqa. Their defaults are in config.py (data.mini_vqa)."""

from __future__ import annotations

import dataclasses

from care_jax.errors import InputError
from care_jax.options import EVERY_SKILL, SKILLS


@dataclasses.dataclass(frozen=True)
class Difficulty:
    """The knobs of the task; each setting is a data set of its own.

    Raises:
        InputError: a knob is out of range, or a split would be empty.
    """

    skills: tuple[str, ...]  # of options.EVERY_SKILL
    num_digits: int  # scans in an image of digits or options, 2 to 9; a rationale about nine has 41 tokens
    min_bars: int  # letters below a chart, 2 to 5
    max_bars: int
    num_levels: int  # values go from 1 to this, 3 to 21
    angle_step: int  # degrees; printed angles are multiples of it: 1, 5 or 10
    num_train: int  # records, spread evenly over the skills
    num_heldout: int
    seed: int

    def __post_init__(self) -> None:
        """Checks the knobs."""
        if not self.skills or not set(self.skills) <= set(EVERY_SKILL):
            raise InputError(f"mini_vqa skills={self.skills}: choose some of {', '.join(EVERY_SKILL)}")
        for knob, value, low, high in (
            ("num_digits", self.num_digits, 2, 9),
            ("min_bars", self.min_bars, 2, 5),
            ("max_bars", self.max_bars, 2, 5),
            ("num_levels", self.num_levels, 3, 21),
        ):
            if not low <= value <= high:
                raise InputError(f"mini_vqa {knob}={value}: choose a value from {low} to {high}")
        if self.min_bars > self.max_bars:
            raise InputError(f"mini_vqa min_bars={self.min_bars} is above max_bars={self.max_bars}; lower min_bars")
        if self.angle_step not in (1, 5, 10):
            raise InputError(f"mini_vqa angle_step={self.angle_step}: choose 1, 5 or 10 degrees")
        if min(self.num_train, self.num_heldout) < len(self.skills):
            raise InputError(
                f"mini_vqa num_train={self.num_train}, num_heldout={self.num_heldout}: choose at least "
                f"{len(self.skills)}"
            )

    @property
    def name(self) -> str:
        """The folder of this setting, all knobs in it."""
        bars = f"bars{self.min_bars}-{self.max_bars}_levels{self.num_levels}"
        size = f"n{self.num_train}-{self.num_heldout}_seed{self.seed}"
        only = "" if set(self.skills) == set(SKILLS) else f"only-{'-'.join(self.skills)}_"
        return f"{only}digits{self.num_digits}_{bars}_step{self.angle_step}_{size}"
