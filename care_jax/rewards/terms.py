"""The parts of a reward that a config lists, "NAME=WEIGHT" each, and the one that says which responses are correct."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

from care_jax.errors import InputError, shown
from care_jax.options import REWARDS


class Term(NamedTuple):
    """One part of a reward."""

    name: str  # as the config lists it, without the weight
    function: str  # one of options.REWARDS, or module:function
    part: str  # the named number that the function returns; "" for its only one
    weight: float


class Threshold(NamedTuple):
    """The part of a reward that says whether a response is correct: from `least` on."""

    name: str
    least: float


def read_terms(listed: Sequence[str]) -> tuple[Term, ...]:
    """Parse verify.rewards.

    Raises:
        InputError: an entry is not NAME=WEIGHT, or a name comes twice.
    """
    terms: list[Term] = []
    for text in listed:
        name, _, weight = text.partition("=")
        module, colon, rest = name.partition(":")
        function, _, part = rest.partition(".")
        known = bool(module and function) if colon else name in REWARDS
        if not known or not is_finite(weight) or any(term.name == name for term in terms):
            raise InputError(
                f"verify.rewards: {shown(text)} is not NAME=WEIGHT, each name once; a name is one of "
                f"{', '.join(REWARDS)}, or module:function, or module:function.number for a named number"
            )
        terms.append(Term(name, f"{module}:{function}" if colon else name, part, float(weight)))
    return tuple(terms)


def read_threshold(text: str, terms: Sequence[Term]) -> Threshold | None:
    """Parse verify.correct_when; None if it is empty.

    Raises:
        InputError: it is not NAME>=NUMBER with a name of verify.rewards.
    """
    if not text:
        return None
    name, _, least = text.partition(">=")
    if name not in [term.name for term in terms] or not is_finite(least):
        listed = ", ".join(term.name for term in terms) or "which is empty"
        raise InputError(
            f"verify.correct_when={shown(text)}: give NAME>=NUMBER with a name of verify.rewards ({listed})"
        )
    return Threshold(name, float(least))


def is_finite(text: str) -> bool:
    """True for the text of a finite number."""
    try:
        return math.isfinite(float(text))
    except ValueError:
        return False
