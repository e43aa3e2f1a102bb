"""Verifiers as a user would write them, and some that go wrong; data names them as "tests.own_verifier:NAME"."""

from __future__ import annotations

import math
import os
import signal
import time

import numpy as np

from care_jax.rewards.verifiers import answer_verifier


@answer_verifier
def anagram(given: str, gold: str) -> tuple[bool, bool, str]:
    """Accepts the letters of the gold in any order."""
    return sorted(given) == sorted(gold), given.isalpha(), "letters compared"


@answer_verifier
def fragile(given: str, gold: str) -> tuple[bool, bool, str]:
    """Accepts its gold, and breaks in the way that the answer asks for."""
    match given:
        case "raise":
            raise KeyError(gold)
        case "shape":
            return True  # type: ignore[return-value]
        case "exit":
            raise SystemExit(0)
        case "doubtful":
            return np.zeros(2), True, "neither true nor false"  # type: ignore[return-value]
        case "words":
            return "no", "yes", "texts for booleans"  # type: ignore[return-value]
        case "one word":
            return "yes"  # type: ignore[return-value]
        case "missing":
            return math.nan, True, "no number"  # type: ignore[return-value]
        case "numpy":
            return np.True_, np.True_, "as numpy has it"  # type: ignore[return-value]
        case "lines":
            return False, True, "2\tright\ncorrect"
        case "long":
            return False, True, "x" * 10_000
        case "hang":
            time.sleep(600)
        case "kill":
            os.kill(os.getpid(), signal.SIGKILL)
    return given == gold, True, "compared"


@answer_verifier
def never(given: str, gold: str) -> tuple[bool, bool, str]:
    """Accepts nothing."""
    return False, True, "no"


def unmarked(given: str, gold: str) -> tuple[bool, bool, str]:
    """Looks like a verifier, but nobody said that it is one."""
    return True, True, "yes"
