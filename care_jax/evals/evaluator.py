"""The evaluation of a model: greedy decoding, or k samples a question, through the trainer's rollout and verifiers."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Generator, Sequence
from typing import NamedTuple, TypeVar

import jax
import ml_collections
from absl import logging
from jax.sharding import Mesh

from care_jax.data import loader
from care_jax.data.loader import RecordSource
from care_jax.errors import InputError
from care_jax.evals.baselines import WithoutImages, majority_items
from care_jax.evals.decoding import Decoder
from care_jax.evals.judged_items import JudgedItem, by_source, half_width, judge_items, mean, mean_by_source
from care_jax.inputs.batch import BatchSizes, blank, collate
from care_jax.inputs.media import MARKS
from care_jax.inputs.processor import Processor
from care_jax.inputs.prompts import encode_prompt
from care_jax.models import QwenVL
from care_jax.parallel.processes import is_alone
from care_jax.parallel.sharding import own_share
from care_jax.rewards.judge import Verifier
from care_jax.rewards.spans import TokenBytes
from care_jax.stages.compiled import CompiledStages
from care_jax.stages.keys import stage_key
from care_jax.structs import Record, Rollouts

Arrays = TypeVar("Arrays")
T = TypeVar("T")

_EVAL_STAGE = 1000  # past the stages of a training step, so that no key is drawn twice


class _Answer(NamedTuple):
    """The responses to a record."""

    place: int  # of the record among those that are asked
    record: Record
    texts: list[str]  # k of them; none if its prompt is too long


class Evaluator:
    """Asks a model questions and scores its answers; compiled once, used at every evaluation of a run.

    Each process encodes and judges the rows of its own devices.

    Args:
        config: the run's config.
        source: the held-out records, or the largest benchmark.
        processor: turns records into prompts.
        verifier: the pool that checks answers.
        model: arrays or ShapeDtypeStructs of the models to evaluate.
        mesh: the mesh that the model is divided over.
        limit: how many of the records most evaluations ask, for which a batch is made; 0 for all.
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
        limit: int = 0,
    ) -> None:
        """Compiles nothing yet."""
        self.source = source
        self._config, self._processor, self._verifier = config, processor, verifier
        self._token_bytes, self._has_warned = TokenBytes(processor.tokenizer), False
        num_asked = min(limit or len(source), len(source))
        self._decoder, self._mesh = Decoder(config, processor, model, mesh, num_asked), mesh
        self._share, self._blank = own_share(mesh), blank(processor.image_spec)

    @property
    def stages(self) -> CompiledStages:
        """Its programs, for `compile_all`; they are compiled at the first use, if nothing has done so before."""
        return self._decoder.stages

    def run(
        self,
        model: QwenVL,
        *,
        limit: int,
        whole: bool = False,
        write: Callable[[int, JudgedItem], None] | None = None,
        wait: Callable[[Arrays], Arrays] = jax.block_until_ready,
    ) -> dict[str, float]:
        """Accuracy per source and their mean, each with n and interval, unparsed and format rates; on all processes.

        `eval/accuracy/S` is of the same `limit` records at every call, `eval/n/S` their number and `eval/interval/S`
        half the width of its 95 % interval. With `whole` and a limit, the rest is asked too, and `eval_all/...` has the
        same figures of all records; with `whole`, `baseline/without_image/S` is the accuracy with grey images on the
        `limit` records, if there are images.

        A record whose prompt is too long has no response and counts as wrong; `eval/num_dropped` counts them. One that
        can no longer be read is left out; `eval/num_unreadable` counts these.
        With eval.num_samples k > 1 accuracy is the mean over the samples, and pass@k is added.

        Args:
            model: the model.
            limit: how many of the held-out records to ask, evenly spread; 0 for all.
            whole: ask all of them, and the `limit` ones without their images as well.
            write: called with each record's index in the source and the judged item, those without a response last.
            wait: called with each batch's rollouts; waits for them, or raises to leave the evaluation.

        Raises:
            InputError: no prompt is short enough, or none of the `limit` records can be read.
        """
        total = len(self.source)
        count = min(limit, total) or total
        lost = self._lost_records()
        placed = self._judged(model, self.source, lost, limit=0 if whole else limit, wait=wait)
        asked = {place * total // count for place in range(count)}
        ordered = sorted(placed, key=lambda pair: not pair[1]["responses"])
        items = [item for _, item in ordered]
        num_dropped = sum(not item["responses"] for item in items)
        if num_dropped == len(items):
            raise InputError(f"every prompt of {self.source!r} is too long; raise the length limits")
        if num_dropped and not self._has_warned:
            self._has_warned = True
            logging.warning(
                "%d of %d held-out prompts are longer than the largest bucket and count as wrong; raise "
                "data.prompt_buckets or data.patch_buckets, or set data.overlong to shrink",
                num_dropped,
                len(items),
            )
        if write is not None:
            for place, item in ordered:
                write(place if whole else place * total // count, item)
        num_lost = sum(self._share.exchange(len(lost)))
        chosen = [item for place, item in placed if not whole or place in asked]
        if not chosen:
            raise InputError(f"none of the {count} records of {self.source!r} that every evaluation asks can be read")
        summary = _summarise(chosen)
        if whole and count < total:
            summary |= {name.replace("eval/", "eval_all/", 1): value for name, value in _summarise(items).items()}
        if whole and any(mark in item["prompt"] for item in items for mark in MARKS):
            # There are no more batches than records, so that no key is drawn twice.
            grey = self._judged(
                model, WithoutImages(self.source), self._lost_records(), limit=limit, first_batch=total, wait=wait
            )
            summary |= _accuracies("baseline/without_image", [item for _, item in grey])
        return summary | {"eval/num_dropped": float(num_dropped), "eval/num_unreadable": float(num_lost)}

    def majority(self, train: RecordSource, *, limit: int) -> dict[str, float]:
        """The accuracy of the majority answers of `train` on the same records, as `baseline/majority/S`."""
        answer_format = self._processor.response_format
        items = majority_items(self._verifier, train, self.source, answer_format, limit=limit)
        return _accuracies("baseline/majority", items) if items else {}

    def _judged(
        self,
        model: QwenVL,
        source: RecordSource,
        lost: loader.LostRecords,
        *,
        limit: int,
        first_batch: int = 0,
        wait: Callable[[Arrays], Arrays],
    ) -> list[tuple[int, JudgedItem]]:
        """Asks a source and judges the answers; returns each with the place of its record, on all processes."""
        placed: list[tuple[int, JudgedItem]] = []
        asking = self._ask(model, source, lost, limit=limit, first_batch=first_batch, wait=wait)
        with contextlib.closing(asking) as batches:
            for answers in batches:
                answered = [(one.record, one.texts) for one in answers]
                judged = judge_items(self._verifier, answered, self._processor.response_format, self._share)
                pairs = [(one.place, item) for one, item in zip(answers, judged, strict=True)]
                placed += self._gather(answers, pairs)
        return placed

    def responses(
        self, model: QwenVL, source: RecordSource, *, first_batch: int = 0
    ) -> Generator[dict[str, list[str]]]:
        """Asks the model all records of a source.

        Args:
            model: the model.
            source: the records.
            first_batch: number of the first batch; each number has random keys of its own.

        Yields:
            The k responses to each record of a batch by id, on all processes. Records that are too long, or can no
            longer be read, are left out; a batch without others uses no number.
        """
        asking = self._ask(model, source, self._lost_records(), first_batch=first_batch)
        with contextlib.closing(asking) as batches:
            for answers in batches:
                pairs = self._gather(answers, [(one.record.id, one.texts) for one in answers])
                yield {record_id: texts for record_id, texts in pairs if texts}

    def _ask(
        self,
        model: QwenVL,
        source: RecordSource,
        lost: loader.LostRecords,
        *,
        limit: int = 0,
        first_batch: int = 0,
        wait: Callable[[Arrays], Arrays] = jax.block_until_ready,
    ) -> Generator[list[_Answer]]:
        """Yields the answers in this process's rows of each batch; the next one is encoded meanwhile."""
        decode, number = self._decoder.open(model), first_batch
        reading = loader.make_eval_batches(
            source,
            functools.partial(encode_prompt, self._processor),
            batch_size=self._decoder.batch_size,
            limit=limit,
            share=self._share,
            lost=lost,
        )
        with contextlib.closing(reading) as batches:
            for rows in batches:
                asked = [row is not None and row.example is not None for row in rows]
                texts: list[list[str]] = [[] for _ in rows]
                if any(self._share.exchange(any(asked))):
                    examples = [row.example if row and row.example else self._blank for row in rows]
                    sizes = BatchSizes.join(self._share.exchange(BatchSizes.of(examples)))
                    key = stage_key(number, _EVAL_STAGE, seed=self._config.seed, mesh=self._mesh)
                    rollouts = wait(decode(collate(self._processor, examples, sizes), asked, key))
                    texts = self._texts(self._decoder.fetch(rollouts), asked)
                    number += 1
                yield [_Answer(*row[:2], some) for row, some in zip(rows, texts, strict=True) if row is not None]

    def _texts(self, rollouts: Rollouts, asked: Sequence[bool]) -> list[list[str]]:
        """The responses in each row; none in one that was not asked."""
        rows = zip(rollouts.token_ids, rollouts.response_len, asked, strict=True)
        return [
            [self._token_bytes.text(ids[:length]) for ids, length in zip(token_ids, lengths, strict=True)]
            if is_asked
            else []
            for token_ids, lengths, is_asked in rows
        ]

    def _lost_records(self) -> loader.LostRecords:
        return loader.LostRecords(is_alone=is_alone() or not self._share.is_whole)

    def _gather(self, answers: Sequence[_Answer], values: Sequence[T]) -> list[T]:
        """A value for each answer of a batch, on all processes and in the order of the records."""
        own = list(zip((answer.place for answer in answers), values, strict=True))
        placed = [pair for part in self._share.exchange(own) for pair in part]
        return [value for _, value in sorted(placed, key=lambda pair: pair[0])]


def _summarise(items: list[JudgedItem]) -> dict[str, float]:
    """Means over items; the overall accuracy is the mean over sources, as benchmarks are averaged."""
    values = by_source(items, lambda item: mean(item["correct"]))
    summary = _accuracies("eval/accuracy", items)
    summary |= {f"eval/n/{source}": float(len(found)) for source, found in values.items()}
    summary |= {f"eval/interval/{source}": half_width([found]) for source, found in values.items()}
    summary |= {"eval/n/mean": float(len(items)), "eval/interval/mean": half_width(list(values.values()))}
    summary["eval/unparsed_rate"] = 1.0 - mean(mean(item["parsed"]) for item in items)
    summary["eval/format_rate"] = mean(mean(item["format_ok"]) for item in items)
    if len(items[0]["correct"]) > 1:
        summary |= _with_mean("eval/pass_at_k", mean_by_source(items, lambda item: any(item["correct"])))
    return summary


def _accuracies(name: str, items: list[JudgedItem]) -> dict[str, float]:
    return _with_mean(name, mean_by_source(items, lambda item: mean(item["correct"])))


def _with_mean(name: str, values: dict[str, float]) -> dict[str, float]:
    return {f"{name}/{source}": value for source, value in values.items()} | {f"{name}/mean": mean(values.values())}
