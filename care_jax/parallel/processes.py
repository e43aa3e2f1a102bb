"""Several processes of one run: how they find each other, and how all of them take the same decisions.

The programs on the devices are the same everywhere, and the host code around them runs on every process with the same
data. If only one process knows something (a signal, a verdict, a file), it is exchanged before anything is decided from
it, so all take the same steps; only the first writes.
"""

from __future__ import annotations

import contextlib
import json
import os
import pickle
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

import jax
import numpy as np
from jax.experimental import multihost_utils
from orbax.checkpoint import multihost

from care_jax.errors import InputError

_FRAME = 1 << 16  # bytes of an exchange at a time: one shape, so that it is compiled once
_HEADER = 8  # bytes, the length
_HEARTBEAT_SECONDS = 30  # without a sign of life of a process, after which the others end
_REFUSAL_SECONDS = 10  # that a process which refuses its input waits for the others to do the same

T = TypeVar("T")
U = TypeVar("U")


def connect() -> None:
    """Joins the other processes; does nothing for a program that is alone. Call it before anything else of JAX.

    On TPU slices, SLURM and Open MPI, JAX finds the others. Elsewhere JAX_COORDINATOR_ADDRESS (host:port of process 0),
    JAX_NUM_PROCESSES and JAX_PROCESS_ID do.

    Raises:
        InputError: one of the three without the others, or no numbers.
    """
    names = ("JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID")
    given = {name: os.environ[name] for name in names if os.environ.get(name)}
    if given:
        if len(given) < len(names) or not all(given[name].isdigit() for name in names[1:]):
            raise InputError(f"{', '.join(names)} must all be given, the last two as numbers; got {given}")
        address, count, index = (given[name] for name in names)
        jax.distributed.initialize(address, int(count), int(index), heartbeat_timeout_seconds=_HEARTBEAT_SECONDS)
    elif os.environ.get("JAX_PLATFORMS") != "cpu":
        try:
            jax.distributed.initialize(heartbeat_timeout_seconds=_HEARTBEAT_SECONDS)
        except ValueError as error:
            if "coordinator_address" not in str(error):  # which is how it says that there is no cluster
                raise


def is_alone() -> bool:
    """True if there is no other process; does not ask for devices."""
    return not jax.distributed.is_initialized() or jax.process_count() == 1


def is_first() -> bool:
    """True if this process writes the run folder."""
    return is_alone() or jax.process_index() == 0


def exchange(value: T) -> list[T]:
    """The values of all processes, in their order; each has to call it. They are pickled."""
    if is_alone():
        return [value]
    payload = pickle.dumps(value)
    message = len(payload).to_bytes(_HEADER, "little") + payload
    frames: list[np.ndarray] = []
    lengths: list[int] = []
    while not lengths or len(frames) * _FRAME < _HEADER + max(lengths):
        frame = message[len(frames) * _FRAME :][:_FRAME].ljust(_FRAME, b"\0")
        frames.append(np.asarray(multihost_utils.process_allgather(np.frombuffer(frame, np.uint8))))
        lengths = lengths or [int.from_bytes(row[:_HEADER].tobytes(), "little") for row in frames[0]]
    received = zip(np.concatenate(frames, axis=1), lengths, strict=True)
    return [pickle.loads(row[_HEADER : _HEADER + length].tobytes()) for row, length in received]


def together(call: Callable[[], T]) -> T:
    """Runs `call` on each process; if it raises InputError on one, all raise it.

    Otherwise the processes on which it succeeds would wait for others that have ended.
    """
    problem = None
    try:
        value = call()
    except InputError as error:
        problem = error
    problems = [str(told) if told else None for told in exchange(problem and str(problem))]
    if problem is not None and len(set(problems)) == 1:
        raise problem
    if any(problems):
        raise InputError("; ".join(f"process {index}: {told}" for index, told in enumerate(problems) if told))
    return value


def share(work: Callable[[list[T]], Sequence[U]], items: list[T]) -> list[U]:
    """Runs `work(items)`, which gives a result for each item: each process does a part, and all get all results."""
    if is_alone():
        return list(work(items))
    count = jax.process_count()
    mine = items[jax.process_index() :: count]
    results: dict[int, U] = {}
    for index, part in enumerate(exchange(together(lambda: work(mine)))):
        results |= zip(range(index, len(items), count), part, strict=True)
    return [results[index] for index in range(len(items))]


def require_same(settings: dict[str, Any]) -> None:
    """Refuses processes that were started with other settings than the first.

    Raises:
        InputError: on all of them, naming the settings that differ.
    """
    told = json.dumps(settings, sort_keys=True, default=str)
    firsts = json.loads(exchange(told)[0])

    def compare() -> None:
        mine = json.loads(told)
        differing = [
            f"{name} is {mine.get(name)!r} here and {firsts.get(name)!r} on process 0"
            for name in sorted(mine.keys() | firsts.keys())
            if mine.get(name) != firsts.get(name)
        ]
        if differing:
            raise InputError(f"{'; '.join(differing)}: start all processes with the same command and code")

    together(compare)


@contextlib.contextmanager
def ending_on_failure() -> Iterator[None]:
    """With other processes around, an error in the block ends this one at once, with exit code 2 for an InputError.

    A normal end would wait for the others, and they for this one. JAX may end the process before it can say that
    another one is gone, with a message of its own.
    """
    try:
        yield
    except Exception as error:
        if is_alone():
            raise
        who = f"process {jax.process_index()} of {jax.process_count()}"
        if isinstance(error, InputError):
            print(f"error: {error}" if is_first() else f"{who}: {error}", file=sys.stderr, flush=True)
            with contextlib.suppress(Exception):  # most often all refuse, and each is to say so before process 0 ends
                multihost.get_barrier_sync_fn()(key="refused", timeout_ms=1000 * _REFUSAL_SECONDS)
            os._exit(2)
        traceback.print_exc()
        print(
            f"error: {who} ends, since it failed or another one is gone; started again on all, the same command goes "
            "on from the last checkpoint",
            file=sys.stderr,
            flush=True,
        )
        os._exit(1)
