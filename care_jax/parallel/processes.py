"""Several processes of one run: how they find each other, and how all of them take the same decisions.

The programs on the devices are the same everywhere, and the host code around them runs on every process with the rows
of its own devices (`HostShare`), or where groups change places with all of them. If only one process knows something (a
signal, a verdict, a file), it is exchanged before anything is decided from it, so all take the same steps; only the
first writes.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import json
import os
import re
import socket
import sys
import threading
import traceback
from collections.abc import Callable, Collection, Iterator, Sequence
from typing import Any, TypeVar

import jax
import numpy as np
from jax.experimental import multihost_utils
from orbax.checkpoint import multihost

from care_jax.errors import InputError, shown

_FRAME = 1 << 16  # bytes of an exchange at a time: one shape, so that it is compiled once
_HEADER = 8  # bytes, the length
_HEARTBEAT_SECONDS = 30  # without a sign of life of a process, after which the others end
_REFUSAL_SECONDS = 10  # that a process which refuses its input waits for the others to do the same
_SHARED_AT_ONCE = 128  # items of `share` that each process works on between two exchanges
_LARGEST = 1 << 30  # bytes of a value that is exchanged
_JOIN_SECONDS = 300  # in which all processes have to start, if JOIN_SECONDS does not say otherwise
_GRACE_SECONDS = 60  # more that JAX has: it ends a process with a stack of C++ and no word of who is missing
JOIN_SECONDS = "CARE_JAX_JOIN_SECONDS"

T = TypeVar("T")
U = TypeVar("U")


def connect() -> None:
    """Joins the other processes; does nothing for a program that is alone. Call it before anything else of JAX.

    On TPU slices, SLURM and Open MPI, JAX finds the others. Elsewhere JAX_COORDINATOR_ADDRESS (host:port of process 0),
    JAX_NUM_PROCESSES and JAX_PROCESS_ID do. If they are not all there after CARE_JAX_JOIN_SECONDS (300), the process
    says who is missing, as far as it knows, and ends with exit code 1.

    Raises:
        InputError: one of the three without the others, or out of range.
    """
    names = ("JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID")
    given = {name: os.environ[name] for name in names if os.environ.get(name)}
    seconds = _read_number(JOIN_SECONDS, os.environ.get(JOIN_SECONDS) or str(_JOIN_SECONDS), 1, 10**6)
    options: dict[str, Any] = {
        "heartbeat_timeout_seconds": _HEARTBEAT_SECONDS,
        "initialization_timeout": seconds + _GRACE_SECONDS,
    }
    if given:
        if len(given) < len(names) or not all(_is_number(given[name]) for name in names[1:]):
            raise InputError(f"{', '.join(names)} must all be given, the last two as numbers; got {given}")
        address, count, index = _read_place(*(given[name] for name in names))
        if index == 0 and "JAX_COORDINATOR_BIND_ADDRESS" not in os.environ:
            _require_free(int(address.rpartition(":")[2]))
        with _saying_who_is_missing(address, count, index, seconds):
            jax.distributed.initialize(address, count, index, **options)
    elif os.environ.get("JAX_PLATFORMS") != "cpu":
        try:
            jax.distributed.initialize(**options)
        except ValueError as error:
            if "coordinator_address" not in str(error):  # which is how it says that there is no cluster
                raise


def _read_place(address: str, count: str, index: str) -> tuple[str, int, int]:
    """The coordinator's host:port, the number of processes and this one's among them."""
    host, _, port = address.rpartition(":")
    if not host or any(c.isspace() or not c.isprintable() for c in host):
        raise InputError(f"JAX_COORDINATOR_ADDRESS={shown(address)}: give host:port of process 0")
    _read_number("the port of JAX_COORDINATOR_ADDRESS", port, 1, 65_535)
    num_processes = _read_number("JAX_NUM_PROCESSES", count, 1, 1_000_000)
    return address, num_processes, _read_number("JAX_PROCESS_ID", index, 0, num_processes - 1)


def _is_number(text: str) -> bool:
    return re.fullmatch("[0-9]{1,9}", text) is not None


def _read_number(name: str, text: str, low: int, high: int) -> int:
    if not _is_number(text) or not low <= int(text) <= high:
        raise InputError(f"{name}={shown(text)}: must be a number from {low} to {high}")
    return int(text)


def _require_free(port: int) -> None:
    """Ends process 0 with exit code 1 if another program listens on its port, where JAX would crash."""
    try:
        socket.create_server(("", port)).close()
    except OSError as error:
        told = f"error: process 0 cannot listen on port {port} of JAX_COORDINATOR_ADDRESS: {error}"
        raise SystemExit(told) from error


@contextlib.contextmanager
def _saying_who_is_missing(address: str, count: int, index: int, seconds: float) -> Iterator[None]:
    """Ends the process if its block, in which the processes join, takes longer than `seconds`."""
    joined = threading.Event()

    def watch() -> None:
        if joined.wait(seconds):
            return
        print(
            f"error: process {index} of {count}: after {seconds:g} s ({JOIN_SECONDS}) "
            f"{_missing(address, count, index)}; start the same command on all",
            file=sys.stderr,
            flush=True,
        )
        os._exit(1)

    threading.Thread(target=watch, name="join", daemon=True).start()
    try:
        yield
    finally:
        joined.set()


def _missing(address: str, count: int, index: int) -> str:
    """Who has not come, as far as a process knows that waits for the others."""
    if index > 0:
        host, _, port = address.rpartition(":")
        try:
            socket.create_connection((host.strip("[]"), int(port)), timeout=5).close()
        except OSError as error:
            return f"process 0 does not answer at {address} ({error})"
    others = [str(other) for other in range(1, count) if other != index]
    if not others:
        return f"what answers at {address} is not process 0 of this run"
    some = "process" if len(others) == 1 else "at least one of the processes"
    return f"{some} {', '.join(others[:20])} has not joined at {address}"


def is_alone() -> bool:
    """True if there is no other process; does not ask for devices."""
    return not jax.distributed.is_initialized() or jax.process_count() == 1


def is_first() -> bool:
    """True if this process writes the run folder."""
    return is_alone() or jax.process_index() == 0


def exchange(value: T) -> list[T]:
    """The values of all processes, in their order; each has to call it.

    They travel as JSON, which runs nothing: a value is made of None, bools, numbers, texts, lists and dicts.

    Raises:
        RuntimeError: what a process sent is no such value.
    """
    if is_alone():
        return [value]
    payload = json.dumps(value).encode()
    message = len(payload).to_bytes(_HEADER, "little") + payload
    frames: list[np.ndarray] = []
    lengths: list[int] = []
    while not lengths or len(frames) * _FRAME < _HEADER + max(lengths):
        frame = message[len(frames) * _FRAME :][:_FRAME].ljust(_FRAME, b"\0")
        frames.append(np.asarray(multihost_utils.process_allgather(np.frombuffer(frame, np.uint8))))
        if not lengths:
            lengths = [int.from_bytes(row[:_HEADER].tobytes(), "little") for row in frames[0]]
            if max(lengths) > _LARGEST:
                raise RuntimeError(
                    f"process {np.argmax(lengths)} sent {max(lengths)} bytes; it does not belong to this run"
                )
    rows = np.concatenate(frames, axis=1)
    return [
        _read_value(index, row[_HEADER : _HEADER + length].tobytes())
        for index, (row, length) in enumerate(zip(rows, lengths, strict=True))
    ]


def _read_value(index: int, payload: bytes) -> Any:
    """The value in the bytes that process `index` sent."""
    try:
        return json.loads(payload)
    except (ValueError, RecursionError) as error:
        raise RuntimeError(f"process {index} sent {shown(payload[:80])}, which is not JSON") from error


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


def by_first(call: Callable[[], Any]) -> Any:
    """Runs `call` on process 0 alone and returns its result on all; all raise its InputError."""
    return exchange(together(lambda: call() if is_first() else None))[0]


def share(work: Callable[[list[T]], Sequence[U]], items: list[T]) -> list[U]:
    """Runs `work(items)`, which gives a result for each item: each process does a part, and all get all results.

    With several processes the results have gone through JSON, which makes lists of tuples. They exchange results after
    every few items, so that none waits long for another that is slow: to its watchdog it would hang.
    """
    if is_alone():
        return list(work(items))
    index, count = jax.process_index(), jax.process_count()
    results: list[U] = []
    for start in range(0, len(items), _SHARED_AT_ONCE * count):
        some = items[start : start + _SHARED_AT_ONCE * count]
        parts = exchange(together(functools.partial(work, some[index::count])))
        results += [parts[place % count][place // count] for place in range(len(some))]
    return results


def in_rounds(work: Callable[[list[T]], Sequence[U]], items: list[T]) -> list[U]:
    """Runs `work(items)` on each process, whose items are its own, and returns its own results.

    They meet after every few items, as in `share`; if `work` raises InputError on one, all raise it.
    """
    if is_alone():
        return list(work(items))
    results: list[U] = []
    while True:
        some = items[len(results) :][:_SHARED_AT_ONCE]
        results += together(functools.partial(work, some))
        if not any(exchange(len(items) - len(results))):
            return results


@dataclasses.dataclass(frozen=True)
class HostShare:
    """The shards of a batch whose rows a process has on its host: those of its own devices, or all.

    A shard is the part of a batch on one device, or on those that `tensor` divides its heads among.
    """

    shards: tuple[int, ...] = (0,)  # ascending
    num_shards: int = 1  # of the batch

    @classmethod
    def of_process(cls, process: int, holders: Sequence[Collection[int]]) -> HostShare:
        """The share of a process, of shards that lie on devices of these processes each.

        If one lies on those of several, all processes have all: two that judge the same row may differ.
        """
        is_apart = all(len(processes) == 1 for processes in holders)
        return cls(tuple(n for n, some in enumerate(holders) if process in some or not is_apart), len(holders))

    @property
    def is_whole(self) -> bool:
        """True if the process has all rows, as then all processes do."""
        return len(self.shards) == self.num_shards

    def rows(self, num_rows: int) -> list[int]:
        """The process's rows of a batch that has `num_rows` over all processes."""
        size = num_rows // self.num_shards
        return [row for shard in self.shards for row in range(shard * size, (shard + 1) * size)]

    def rows_of(self, num_own: int) -> list[int]:
        """The rows of a batch of which the process has `num_own`."""
        return self.rows(num_own // len(self.shards) * self.num_shards)

    def exchange(self, value: T) -> list[T]:
        """The values of all processes, each of its own rows; a process that has all rows gets its own value alone."""
        return [value] if self.is_whole else exchange(value)

    def gather(self, rows: np.ndarray) -> np.ndarray:
        """The integers that all processes have for their rows of a batch, in the batch's order; `rows` are its own."""
        if self.is_whole:
            return rows
        parts = self.exchange([self.rows_of(len(rows)), rows.tolist()])
        whole = np.empty((sum(len(places) for places, _ in parts), *rows.shape[1:]), rows.dtype)
        for places, values in parts:
            whole[places] = values
        return whole

    def run(self, work: Callable[[list[T]], Sequence[U]], items: list[T]) -> list[U]:
        """The results of `work` for the items of the process's rows, each worked on by one process alone."""
        return share(work, items) if self.is_whole else in_rounds(work, items)


ALL_ROWS = HostShare()


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
