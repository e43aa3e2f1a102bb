"""The program that test_processes.py starts twice: it prints what two processes tell each other, as one JSON object."""

from __future__ import annotations

import json
import os
import signal

import jax

from care_jax.errors import InputError
from care_jax.parallel import processes
from care_jax.run.stop import StopFlag


def refused(call) -> str:
    """The message of the InputError that a call raises, or "nothing"."""
    try:
        call()
    except InputError as error:
        return str(error)
    return "nothing"


def no_data(*bad: int) -> None:
    """Raises an InputError in the processes named."""
    if jax.process_index() in bad:
        raise InputError("no data" if len(bad) == 1 else "no data at all")


def main() -> None:
    """Runs every exchange and prints the results."""
    processes.connect()
    index, done = jax.process_index(), []

    def work(items: list[int]) -> list[list[int]]:
        done.extend(items)
        return [[item, 10 * item] for item in items]

    stop = StopFlag()
    stop.poll()
    stopped = [stop.is_set]
    if index == 1:
        os.kill(os.getpid(), signal.SIGTERM)
    stop.poll()
    own = processes.HostShare((index,), 2)

    def own_work(items: list[int]) -> list[list[int]]:
        done.append(len(items))
        return [[item, index] for item in items]

    own_items = list(range((3, 300)[index]))
    found = {
        "index": index,
        "own": own.run(own_work, own_items) == [[item, index] for item in own_items],
        "own_rounds": [done.pop() for _ in range(3)][::-1],
        "own_bad": refused(lambda: own.run(lambda items: no_data(1), [])),
        "own_told": own.exchange(index),
        "own_rows": own.rows(8),
        "lengths": [len(value) for value in processes.exchange("x" * (3, 200_000)[index])],
        "shared": processes.share(work, list(range(5))),
        "done_here": done[:],
        "shared_none": processes.share(work, []),
        "shared_many": processes.share(lambda items: [(item, len(items)) for item in items], list(range(301))),
        "one_bad": refused(lambda: processes.together(lambda: no_data(1))),
        "both_bad": refused(lambda: processes.together(lambda: no_data(0, 1))),
        "stopped": [*stopped, stop.is_set],
        "differing": refused(lambda: processes.require_same({"a": index + 1, "b": 0})),
    }
    print(json.dumps(found))


if __name__ == "__main__":
    main()
