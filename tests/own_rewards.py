"""Reward functions as a user would write them, and some that go wrong; a config lists them."""

from __future__ import annotations

import json
import math
import os
import signal
import time
import urllib.request
from typing import Any

import numpy as np

from care_jax.rewards.functions import batch_reward_function, reward_function


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
        case "named":
            return {}  # type: ignore[return-value]
        case "fork":
            os.fork()
    return 0.5


@reward_function
def asks(record: dict[str, Any], response: str) -> float:
    """Asks a judge over HTTP, whose address is the prompt."""
    with urllib.request.urlopen(record["prompt"] + response) as answer:
        return float(answer.read())


@reward_function
def reads_meta(record: dict[str, Any], response: str) -> float:
    """Counts what the row's own object says."""
    return float(record["meta"].get("points", -1.0))


class Silent:
    """Cannot even be shown."""

    def __repr__(self) -> str:
        """Fails."""
        raise RuntimeError


@batch_reward_function(size=4)
def fragile_batch(records: list[dict[str, Any]], responses: list[str]) -> Any:
    """Gives each response its number of characters, and breaks in the way that any of them asks for."""
    values = [len(response) for response in responses]
    for word in responses:
        match word:
            case "raise":
                raise KeyError(word)
            case "exit":
                raise SystemExit(0)
            case "hang":
                time.sleep(600)
            case "kill":
                os.kill(os.getpid(), signal.SIGKILL)
            case "short":
                return values[1:]
            case "long":
                return [*values, 0.0]
            case "nothing":
                return None
            case "digits":
                return "1" * len(values)
            case "bytes":
                return bytes(len(values))
            case "named":
                return {str(n): value for n, value in enumerate(values)}
            case "set":
                return set(values)
            case "one number":
                return 1.0
    wrong: dict[str, Any] = {"none": None, "nan": math.nan, "huge": -1e7}
    wrong |= {
        "text": "1",
        "list": [1.0],
        "object": object(),
        "part": {"": "1"},
        "octets": b"1",
        "unprintable": Silent(),
    }
    return [wrong.get(word, len(word)) for word in responses]


@batch_reward_function(size=1000)
def in_kinds(records: list[dict[str, Any]], responses: list[str]) -> Any:
    """Counts the responses in the type that the first of them names."""
    match responses[0]:
        case "array":
            return np.arange(len(responses), dtype=np.float32)
        case "tuple":
            return tuple(np.float64(n) for n in range(len(responses)))
        case "generator":
            return (n for n in range(len(responses)))
        case "bools":
            return [n % 2 == 0 for n in range(len(responses))]
        case "named":
            return [{"": n, "length": len(word)} for n, word in enumerate(responses)]
    raise KeyError(responses[0])


@batch_reward_function(size=4)
def sizes(records: list[dict[str, Any]], responses: list[str]) -> list[float]:
    """Gives each response the number of those that it was asked about with."""
    assert len(records) == len(responses)
    return [float(len(responses))] * len(responses)


@batch_reward_function(size=3)
def asks_batch(records: list[dict[str, Any]], responses: list[str]) -> list[float | None]:
    """Asks a judge over HTTP about all responses in one request."""
    with urllib.request.urlopen(records[0]["prompt"] + "_".join(responses)) as answer:
        return json.loads(answer.read())


def unmarked(record: dict[str, Any], response: str) -> float:
    """Looks like a reward, but nobody said that it is one."""
    return 1.0
