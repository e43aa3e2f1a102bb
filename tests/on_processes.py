"""The program that test_processes.py starts twice: it prints what two processes tell each other, as one JSON object."""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

import jax
import ml_collections

from care_jax import evaluate
from care_jax.configs import demo
from care_jax.data.loader import make_eval_batches
from care_jax.errors import InputError
from care_jax.evals import evaluator
from care_jax.inputs.batch import Example
from care_jax.parallel import processes
from care_jax.run.stop import StopFlag
from care_jax.structs import Record
from tests.end_to_end import SmallTask, apply, small

BENCHMARKS = ("mathverse", "mmmu")  # of 5 and 4 questions, one of them too long


def benchmark_config(task: SmallTask, prepared: Path) -> ml_collections.ConfigDict:
    """The config that evaluates the small task's model on the fixtures of benchmarks, four questions at a time."""
    overrides = small(
        task.model,
        task.data,
        data__prompt_buckets=(128,),
        train__stream_len=256,
        data__patch_buckets=(48,),
        eval__batch_size=4,
        eval__benchmarks=str(prepared),
    )
    return apply(demo.get_config(), overrides)


def evaluated(task: Path, prepared: Path, workdir: Path) -> dict[str, Any]:
    """The figures of BENCHMARKS, and the questions encoded for them here; evaluates the held-out data too."""
    encode, encoded = evaluator.encode_prompt, []

    def count(processor: Any, record: Record) -> Example | None:
        encoded.append(record.id)
        return encode(processor, record)

    evaluator.encode_prompt = count
    config = benchmark_config(SmallTask(task), prepared)
    results = evaluate.run_benchmarks(config, workdir, BENCHMARKS)
    found = {"results": results, "encoded": encoded.copy()}
    evaluate.run(config, workdir)
    return found


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


def no_record(place: int) -> int:
    """An encoder that refuses what process 1 reads of the second batch."""
    if place == 7:
        raise InputError("too long")
    return place


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
        "eval_bad": refused(lambda: list(make_eval_batches(range(8), no_record, batch_size=4, limit=0, share=own))),
        "differing": refused(lambda: processes.require_same({"a": index + 1, "b": 0})),
    }
    print(json.dumps(found | evaluated(*map(Path, sys.argv[1:]))))


if __name__ == "__main__":
    main()
