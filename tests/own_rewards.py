"""Reward functions as a user would write them, and some that go wrong; a config lists them."""

from __future__ import annotations

import time
import urllib.request
from typing import Any

from care_jax.rewards.functions import reward_function


@reward_function
def sees(record: dict[str, Any], response: str) -> dict[str, float]:
    """Measures what it was given."""
    return {"pixels": float(sum(map(len, record["images"]))), "words": float(len(response.split()))}


@reward_function
def fragile(record: dict[str, Any], response: str) -> float:
    """Breaks in the way that the response asks for."""
    match response:
        case "raise":
            raise KeyError(response)
        case "hang":
            time.sleep(600)
        case "nan":
            return float("nan")
        case "huge":
            return 1e300
        case "text":
            return "much"  # type: ignore[return-value]
    return 0.5


@reward_function
def asks(record: dict[str, Any], response: str) -> float:
    """Asks a judge over HTTP, whose address is the prompt."""
    with urllib.request.urlopen(record["prompt"] + response) as answer:
        return float(answer.read())


def unmarked(record: dict[str, Any], response: str) -> float:
    """Looks like a reward, but nobody said that it is one."""
    return 1.0
