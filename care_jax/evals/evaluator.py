"""The evaluation of a model: greedy decoding, or k samples a question, through the trainer's rollout and verifiers."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TypeVar

import jax
import ml_collections
from absl import logging
from jax.sharding import Mesh

from care_jax.data import loader
from care_jax.data.loader import RecordSource
from care_jax.errors import InputError
from care_jax.evals.decoding import Decoder
from care_jax.evals.judged_items import JudgedItem, judge_items, mean, mean_by_source
from care_jax.inputs.batch import Example, collate
from care_jax.inputs.processor import Processor
from care_jax.inputs.prompts import encode_prompt
from care_jax.models import QwenVL
from care_jax.parallel import sharding
from care_jax.parallel.processes import is_alone
from care_jax.rewards.judge import Verifier
from care_jax.rewards.spans import TokenBytes
from care_jax.stages.keys import stage_key
from care_jax.structs import Record

Arrays = TypeVar("Arrays")

_EVAL_STAGE = 1000  # past the stages of a training step, so that no key is drawn twice


class Evaluator:
    """Asks a model questions and scores its answers; compiled once, used at every evaluation of a run.

    Args:
        config: the run's config.
        source: the held-out records.
        processor: turns records into prompts.
        verifier: the pool that checks answers.
        model: arrays or ShapeDtypeStructs of the models to evaluate.
        mesh: the mesh that the model is divided over.
    """

    def __init__(
        self,
        config: ml_collections.ConfigDict,
        *,
        source: RecordSource,
        processor: Processor,
        verifier: Verifier,
        model: QwenVL,
        mesh: Mesh,
    ) -> None:
        """Compiles the programs of an evaluation for every bucket."""
        self._config, self._source, self._processor, self._verifier = config, source, processor, verifier
        self._token_bytes, self._has_warned = TokenBytes(processor.tokenizer), False
        self._decoder, self._mesh = Decoder(config, processor, model, mesh), mesh

    def run(
        self,
        model: QwenVL,
        *,
        limit: int,
        write: Callable[[JudgedItem], None] | None = None,
        wait: Callable[[Arrays], Arrays] = jax.block_until_ready,
    ) -> dict[str, float]:
        """Accuracy per source and their mean, unparsed and format rates.

        A record whose prompt is too long has no response and counts as wrong; `eval/num_dropped` counts them. One that
        can no longer be read is left out; `eval/num_unreadable` counts these.
        With eval.num_samples k > 1 accuracy is the mean over the samples, and pass@k is added.

        Args:
            model: the model.
            limit: how many of the held-out records to ask; 0 for all.
            write: called with each judged item.
            wait: called with each batch's rollouts; waits for them, or raises to leave the evaluation.

        Raises:
            InputError: no prompt is short enough.
        """
        items: list[JudgedItem] = []
        dropped: list[Record] = []
        lost = loader.LostRecords(is_alone=is_alone())
        for records, texts in self.responses(model, self._source, limit=limit, dropped=dropped, lost=lost, wait=wait):
            answered = list(zip(records, texts, strict=True))
            items += judge_items(self._verifier, answered, self._processor.response_format)
        if not items:
            raise InputError(f"every prompt of {self._source!r} is too long; raise the length limits")
        if dropped and not self._has_warned:
            self._has_warned = True
            logging.warning(
                "%d of %d held-out prompts are longer than the largest bucket and count as wrong; raise "
                "data.prompt_buckets or data.patch_buckets, or set data.overlong to shrink",
                len(dropped),
                len(items) + len(dropped),
            )
        unasked = [(record, ()) for record in dropped]
        items += judge_items(self._verifier, unasked, self._processor.response_format)
        if write is not None:
            for item in items:
                write(item)
        left_out = {"eval/num_dropped": float(len(dropped)), "eval/num_unreadable": float(len(lost))}
        return _summarise(items) | left_out

    def responses(
        self,
        model: QwenVL,
        source: RecordSource,
        *,
        limit: int = 0,
        first_batch: int = 0,
        dropped: list[Record] | None = None,
        lost: loader.LostRecords | None = None,
        wait: Callable[[Arrays], Arrays] = jax.block_until_ready,
    ) -> Iterator[tuple[list[Record], list[list[str]]]]:
        """Asks the model the records of a source.

        Args:
            model: the model.
            source: the records.
            limit: how many of them to ask, evenly spread over the source; 0 for all.
            first_batch: number of the first batch; each number has random keys of its own.
            dropped: gets the records whose prompts are too long, which are left out.
            lost: counts the records that can no longer be read, which are left out too; needed with several processes.
            wait: as in `run`.

        Yields:
            A batch of records, and the k responses to each.
        """
        decode = self._decoder.open(model)

        def encode(record: Record) -> Example | None:
            example = encode_prompt(self._processor, record)
            if example is None and dropped is not None:
                dropped.append(record)
            return example

        size = self._decoder.batch_size
        batches = loader.make_eval_batches(source, encode, batch_size=size, limit=limit, lost=lost)
        for number, (examples, num_real) in enumerate(batches, start=first_batch):
            prompts = sharding.put(self._mesh, collate(self._processor, examples))
            key = stage_key(number, _EVAL_STAGE, seed=self._config.seed, mesh=self._mesh)
            rollouts = self._decoder.fetch(wait(decode(prompts, key)))
            yield (
                [example.record for example in examples[:num_real]],
                [
                    [self._token_bytes.text(ids[:length]) for ids, length in zip(*row, strict=True)]
                    for row in zip(rollouts.token_ids[:num_real], rollouts.response_len[:num_real], strict=True)
                ],
            )


def _summarise(items: list[JudgedItem]) -> dict[str, float]:
    """Means over items; the overall accuracy is the mean over sources, as benchmarks are averaged."""
    summary = _by_source("accuracy", mean_by_source(items, lambda item: mean(item["correct"])))
    summary["eval/unparsed_rate"] = 1.0 - mean(mean(item["parsed"]) for item in items)
    summary["eval/format_rate"] = mean(mean(item["format_ok"]) for item in items)
    if len(items[0]["correct"]) > 1:
        summary |= _by_source("pass_at_k", mean_by_source(items, lambda item: any(item["correct"])))
    return summary


def _by_source(name: str, values: dict[str, float]) -> dict[str, float]:
    return {f"eval/{name}/{source}": value for source, value in values.items()} | {
        f"eval/{name}/mean": mean(values.values())
    }
