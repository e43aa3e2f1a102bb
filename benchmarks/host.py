"""A host's work in a step of CARE, while the devices wait or compute: CPU seconds, and bytes of patches.

    python -m benchmarks.host                                   # host 0 of 16: 512 prompts x 8 responses x 2,048 tokens
    python -m benchmarks.host --hosts=1 --prompts=32            # the same rows as the whole of a batch
    python -m benchmarks.host --soak=300                        # resident memory of a small training run

One process does the work of one host: it reads and encodes its rows, pads them, judges rollouts and repairs, tokenises
repairs (rewritten) and writes its log. The tokenizer has as many ids as Qwen's; words, pictures and responses are
made, and every response has its full length. The other hosts send what this host sends. The
same share is also measured with `--times` as many prompts and hosts. The decoding of JPEGs has a figure of its own.

A soak trains a small model for so many steps in a process of its own, and compares its memory in the second third of
the steps with that in the last. The last line is one JSON object.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import functools
import json
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

import jax
import ml_collections
import numpy as np

from benchmarks.made_language import VOCABULARY, MadeRecords, made_rollouts, write_wordy_folder
from benchmarks.soak import soak
from care_jax import config as config_lib
from care_jax.inputs.batch import Example
from care_jax.inputs.images import decode_image
from care_jax.inputs.processor import Processor, make_processor
from care_jax.inputs.prompts import encode_prompt
from care_jax.method.advantage import SubgroupAdvantages
from care_jax.method.objectives import Objective
from care_jax.parallel.processes import HostShare
from care_jax.rewards.judge import Verifier
from care_jax.rewards.spans import TokenBytes
from care_jax.run import step_summary
from care_jax.run.metrics_writer import MetricsWriter
from care_jax.run.training_data import TrainingData
from care_jax.stages import host
from care_jax.stages.host import Services
from care_jax.structs import Outcome, Record, Rollouts, Scores, Subgroup, TrainBatch, zeros

T = TypeVar("T")


class OneOfMany(HostShare):
    """The share of host 0, to which every other host sends what it sends itself."""

    def exchange(self, value: T) -> list[T]:
        """Writes and reads JSON, as between processes."""
        text = json.dumps(value)
        return [json.loads(text) for _ in range(self.num_shards)]

    def gather(self, rows: np.ndarray) -> np.ndarray:
        """The rows of host 0 as those of every host."""
        return np.concatenate([np.array(part, rows.dtype) for part in self.exchange(rows.tolist())])


class Clock:
    """CPU seconds by name."""

    def __init__(self) -> None:
        """Starts from nothing."""
        self.seconds: dict[str, float] = {}
        self._lock = threading.Lock()

    @contextlib.contextmanager
    def __call__(self, name: str, now: Callable[[], float] = time.process_time) -> Iterator[None]:
        """Adds the block's seconds, of all threads or as `now` tells."""
        start = now()
        yield
        with self._lock:
            self.seconds[name] = self.seconds.get(name, 0.0) + now() - start


class Host:
    """A host of a run, with made records and rollouts."""

    def __init__(
        self,
        config: ml_collections.ConfigDict,
        processor: Processor,
        verifier: Verifier,
        *,
        num_hosts: int,
        log_folder: Path,
    ):
        """Opens its data, and its log in a folder."""
        self.clock, self.config = Clock(), config
        self.share = OneOfMany((0,), num_hosts)
        self.writer, self.number = MetricsWriter(log_folder, resume_step=-1, share=self.share), 0
        batch_size = config.train.prompts
        records, encode = MadeRecords(4 * batch_size), functools.partial(self._encode, processor)
        self.data = TrainingData(records, encode, batch_size=batch_size, seed=0, share=self.share)
        self.services = Services(
            config=config,
            objective=Objective.from_config(config.objective),
            processor=processor,
            verifier=verifier,
            token_bytes=TokenBytes(processor.tokenizer),
            next_examples=lambda: next(self.data),
            share=self.share,
        )
        self.patch_bytes = 0  # the most that lay in memory at once

    def _encode(self, processor: Processor, record: Record) -> Example | None:
        """Encodes a record, and decodes its picture once more to know how long that takes."""
        with self.clock("decode", time.thread_time):
            decode_image(record.images[0])
        return encode_prompt(processor, record)

    def step(self) -> None:
        """All of a step's work on the host."""
        services, clock, config = self.services, self.clock, self.config
        with clock("encode and pad"):
            given = host.next_batch(services)
            self.data.iterator.wait()  # for the next batch: what the other clocks tell is then their own
        self._count_patches(given)
        records = given["records"]
        rollouts = made_rollouts(
            [record.answer for record in records],
            num_rollouts=config.rollout.num_rollouts,
            response_len=config.rollout.response_len,
            vocabulary=len(services.token_bytes),
        )
        subgroup, bucket, lengths = _subgroup(len(records), config), given["bucket"], given["lengths"]
        with clock("judge"):
            judged = host.verify(services, records, rollouts)["judged"]
        with clock("pack"):
            packed = host.pack_rollouts(services, bucket, lengths, rollouts, judged.verdicts)
            host.pack_batch(services, bucket, lengths, rollouts.response_len[:, : subgroup.index.shape[1]])
        with clock("force"):
            forced = host.force(services, judged, subgroup)["forced"]
        repaired = jax.tree.map(lambda x: x[:, :1], rollouts)
        behind = np.arange(config.rollout.response_len) >= forced.forced_len[..., None]
        repaired = repaired.replace(sampled_mask=repaired.sampled_mask & behind)
        with clock("rewrite and judge"):
            checked = host.verify_repairs(services, records, bucket, lengths, repaired)
        states = np.zeros((*rollouts.response_len.shape, 1), np.float32)
        scores = Scores(rollouts.logprobs, -rollouts.logprobs, states)
        with clock("place"):
            own = jax.tree.map(lambda x: x[:, :1], scores)
            values = repaired, checked["responses"], checked["repair_judged"], own
            placed = host.place_repairs(services, *values)["reflection"]
        done = step_summary.Step(
            records=records,
            rollouts=rollouts,
            judged=judged,
            drawn=step_summary.Drawn(records, judged, int(rollouts.sampled_mask.sum()), 1),
            scores=scores,
            scored=packed["scored"],
            subgroup=subgroup,
            reflection=placed,
            reflected=step_summary.Reflected(forced, repaired),
            batch=_batch(rollouts, subgroup),
            advantages=_advantages(subgroup),
        )
        with clock("log"):
            self.writer.scalars(self.number, step_summary.metrics(done, anchored=True, share=self.share))
            self.writer.events(self.number, step_summary.events(done, anchored=True))

    def _count_patches(self, given: dict[str, Any]) -> None:
        """The batch that is padded, and its examples, beside those of the next batch."""
        examples = sum(example.patches.nbytes for example in given["examples"])
        self.patch_bytes = max(self.patch_bytes, 2 * examples + given["prompts"].patches.nbytes)


def _subgroup(num_prompts: int, config: ml_collections.ConfigDict) -> Subgroup:
    """Mixed groups: an anchor, and the wrong ones."""
    num_rollouts = config.rollout.num_rollouts
    index = np.array([0, *range(1, num_rollouts, 2)], np.int32)
    return Subgroup(
        index=np.tile(index, (num_prompts, 1)),
        valid=np.ones((num_prompts, len(index)), bool),
        outcome=np.full(num_prompts, Outcome.MIXED, np.int32),
        num_negatives=np.full(num_prompts, len(index) - 1, np.int32),
    )


def _batch(rollouts: Rollouts, subgroup: Subgroup) -> TrainBatch:
    """An update's batch, with the values that the log reads."""
    num_prompts, num_rows = subgroup.index.shape
    sizes = {"S": num_rows, "R": rollouts.token_ids.shape[-1], "P": 0, "I": 0, "F": 0, "X": 0}
    batch = zeros(TrainBatch, B=num_prompts, **sizes)
    return dataclasses.replace(batch, row_mask=subgroup.valid)


def _advantages(subgroup: Subgroup) -> SubgroupAdvantages:
    values = np.ones(subgroup.index.shape, np.float32)
    return SubgroupAdvantages(raw=values, final=values)


def measure(args: argparse.Namespace, folder: Path) -> list[dict[str, Any]]:
    """The figures of one host's share of the batch, and of one `times` as large on as many more hosts; in turns."""
    hosts: list[Host] = []
    steps: list[list[dict[str, float]]] = []
    with contextlib.ExitStack() as opened:
        for times in (1, args.times):
            config = config_lib.base()
            config.model.folder = str(folder)
            config.objective.reflect.train_on = "rewrite"
            config.train.prompts, config.train.minibatches = args.prompts * times, 1
            config.rollout.num_rollouts, config.rollout.response_len = args.rollouts, args.response_len
            verifier = opened.enter_context(Verifier.from_config(config))
            log_folder = folder.parent / f"log{times}"
            one = Host(config, make_processor(config), verifier, num_hosts=args.hosts * times, log_folder=log_folder)
            for part in (one.data, one.writer):
                opened.enter_context(contextlib.closing(part))
            hosts.append(one)
            steps.append([])
        for _ in range(args.steps + 1):  # the first one warms up
            for one, taken in zip(hosts, steps, strict=True):
                one.clock.seconds.clear()
                one.step()
                taken.append(dict(one.clock.seconds))
    return [_figures(one, taken[1:]) for one, taken in zip(hosts, steps, strict=True)]


def _figures(one: Host, steps: Sequence[dict[str, float]]) -> dict[str, Any]:
    seconds = {name: statistics.median(step[name] for step in steps) for name in steps[0]}
    decoding = seconds.pop("decode")
    seconds["encode and pad"] -= 2 * decoding  # once as a part, and once for the clock
    return {
        "prompts": one.config.train.prompts,
        "hosts": one.share.num_shards,
        "stages": {name: round(value, 3) for name, value in seconds.items()},
        "cpu_s": round(sum(seconds.values()), 3),
        "decoding_s": round(decoding, 3),
        "patches_gb": round(one.patch_bytes / 1e9, 3),
    }


def main(argv: Sequence[str]) -> dict[str, Any]:
    """Prints a line for each stage and the figures as JSON; returns the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prompts", type=int, default=512, help="of a batch, over all hosts")
    parser.add_argument("--hosts", type=int, default=16)
    parser.add_argument("--rollouts", type=int, default=8, help="responses to a prompt")
    parser.add_argument("--response_len", type=int, default=2048, help="tokens")
    parser.add_argument("--steps", type=int, default=5, help="measured ones, of which the median counts")
    parser.add_argument("--times", type=int, default=8, help="factor of the larger batch on more hosts")
    parser.add_argument("--vocabulary", type=int, default=VOCABULARY)
    parser.add_argument("--soak", type=int, default=0, help="steps of a training run whose memory is watched instead")
    args = parser.parse_args(argv)
    if args.prompts % args.hosts or min(args.prompts, args.hosts, args.rollouts, args.steps, args.times) < 1:
        parser.error("--prompts must be a multiple of --hosts, and all counts at least 1")
    figures: dict[str, Any] = {"benchmark": "host"}
    if args.soak:
        figures |= soak(args.soak)
    else:
        with tempfile.TemporaryDirectory() as made:
            folder = write_wordy_folder(Path(made) / "model", vocabulary=args.vocabulary)
            small, large = measure(args, folder)
        figures |= small | {"larger": large, "growth": round(large["cpu_s"] / small["cpu_s"], 3)}
        for name, value in small["stages"].items():
            print(f"{name:<20}{value:>8.3f} CPU s, of {large['prompts']:,} prompts {large['stages'][name]:>8.3f}")
    print(json.dumps(figures))
    return figures


if __name__ == "__main__":
    main(sys.argv[1:])
