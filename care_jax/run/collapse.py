"""Warns when a policy collapses: responses that shrink, entropy that vanishes, groups that give no gradient.

The mean of the newest ten steps is held against that of the first ten. None of the runs in docs/study/runs.jsonl comes
near the bounds: there responses keep 0.94 of their length and entropy 0.30 of its start, and 0.15 of the groups are
mixed at the least.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import NamedTuple

from absl import logging

_STEPS = 10


class _Sign(NamedTuple):
    """A figure, and the bound past which it is a sign of a collapse."""

    metric: str
    least: float | None  # share of its start
    most: float | None  # its value
    told: str  # takes `now` and `start`


_SIGNS = {
    "length": _Sign(
        "response_len/mean",
        0.75,
        None,
        "responses have {now:.1f} tokens and had {start:.1f} at the start: the rationale is being given up; lower "
        "optimizer.lr or raise objective.kl_coef",
    ),
    "entropy": _Sign(
        "entropy",
        0.2,
        None,
        "entropy is {now:.2g} nats a token and was {start:.2g} at the start: all responses to a question become one; "
        "lower optimizer.lr, or raise objective.clip_high or rollout.temperature",
    ),
    "no_gradient": _Sign(
        "groups/no_gradient",
        None,
        0.9,
        "{now:.0%} of the groups give no gradient: their responses are all right or all wrong; see "
        "groups/all_correct and groups/all_wrong, and take other questions or a longer cold start",
    ),
}


class CollapseWatch:
    """Follows the metrics of a run.

    Attributes:
        signs: those of "length", "entropy" and "no_gradient" that the newest step shows.
    """

    def __init__(self, rows: Iterable[Mapping[str, float | None]] = (), *, enabled: bool = True) -> None:
        """Takes the metrics of the steps so far, of a run that resumes; `enabled` is False on all processes but one."""
        self.signs: tuple[str, ...] = ()
        self._is_enabled = enabled
        self._values: dict[str, tuple[list[float], list[float]]] = {name: ([], []) for name in _SIGNS}
        for row in rows:
            self._add(row)

    def look(self, step: int, metrics: Mapping[str, float]) -> dict[str, float]:
        """Takes the metrics of a step; returns `collapse/SIGN`, 1 or 0, of each sign. A new sign is a warning."""
        before = self.signs
        self._add(metrics)
        for name in self.signs:
            if self._is_enabled and name not in before:
                logging.warning("step %d: %s", step, self.told(name))
        return {f"collapse/{name}": float(name in self.signs) for name in _SIGNS}

    def told(self, name: str) -> str:
        """A sign in words, with its figures and what to do about it; `name` is one of `signs`."""
        first, newest = self._values[name]
        return _SIGNS[name].told.format(now=_mean(newest), start=_mean(first))

    def _add(self, metrics: Mapping[str, float | None]) -> None:
        for name, sign in _SIGNS.items():
            value = metrics.get(sign.metric)
            if value is not None and math.isfinite(value):  # as metrics.jsonl keeps it, for a run that resumes
                first, newest = self._values[name]
                first += [value] if len(first) < _STEPS else []
                newest[:] = [*newest, value][-_STEPS:]
        self.signs = tuple(name for name, sign in _SIGNS.items() if _shows(sign, *self._values[name]))


def _shows(sign: _Sign, first: list[float], newest: list[float]) -> bool:
    if len(newest) < _STEPS:
        return False
    if sign.most is not None:
        return _mean(newest) > sign.most
    assert sign.least is not None
    return _mean(newest) < sign.least * _mean(first)


def _mean(values: list[float]) -> float:
    return sum(values) / len(values)
