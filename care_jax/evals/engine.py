"""Questions to a model whose answers stream: they wait in a queue, are decoded in batches, and come back in pieces.

A row of a batch is one sample, so questions with several samples share batches with others, and each question has its
own temperature, limit and stop texts. The programs are compiled for a few sizes of a batch; whatever is asked takes the
smallest that holds what waits. A sample is drawn alike in every batch, as far as the sums of its size round alike.
"""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import queue
import threading
import time
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple, Self

import jax
import ml_collections
import numpy as np
from jax.sharding import Mesh

from care_jax.evals.answer_text import ResponseText
from care_jax.evals.decoding import PREFILL, SAMPLER, evaluation_setup, start_of_evaluation
from care_jax.inputs.batch import Example, blank, collate
from care_jax.inputs.processor import Processor
from care_jax.models import QwenVL
from care_jax.parallel.sharding import WHOLE, fetch_rows, place, put, round_up
from care_jax.rewards.spans import TokenBytes
from care_jax.stages.compiled import EVERY_BUCKET, CompiledStages, bucket_of, compile_all
from care_jax.stages.keys import stage_key
from care_jax.stages.streaming import BEGIN, GO_ON, PLACES, Asked, Progress
from care_jax.stages.table import Bucket, Setup, Table
from care_jax.structs import abstract

MOST_ROWS = 8  # samples of a batch, if they take no more memory than a batch of an evaluation
_STAGE = 2000  # past an evaluation's, so that no key is drawn twice
_SECONDS_A_PIECE = 0.15  # of decoding, before the host looks at the tokens
_MOST_TOKENS_A_PIECE = 64
MOST_WAITING = 512  # samples
MOST_SAMPLES = 64  # of a question
HOTTEST = 100.0  # temperature of a question
_CLOSED = "no more questions are answered: the engine is closed"


@dataclasses.dataclass(frozen=True)
class Question:
    """A prompt, and how its answers are drawn."""

    example: Example
    num_samples: int = 1
    temperature: float = 0.0  # 0 decodes greedily
    max_tokens: int | None = None  # of each sample; None: all that the engine has room for
    stops: tuple[str, ...] = ()  # texts at which a sample ends
    seed: tuple[int, ...] = (0,)  # the same seed draws the same samples


class Piece(NamedTuple):
    """A sample as far as it is decoded."""

    sample: int  # from 0
    text: str  # all of it so far
    num_tokens: int
    finish: str  # "": more is to come; stop: the model ended it, or a stop text did; length: it was cut off


class BusyError(Exception):
    """More samples wait than the engine takes, or it has been closed."""


class _Sample:
    """One sample of a question, while it waits and is decoded."""

    def __init__(self, question: Question, index: int, engine: Engine, pieces: queue.SimpleQueue) -> None:
        self.question, self.index, self.pieces = question, index, pieces
        self.room = min(question.max_tokens or engine.response_len, engine.response_len)
        first = int(np.random.SeedSequence(question.seed).generate_state(1)[0])
        self.number = (first + index) & 0x7FFFFFFF
        self.is_over = False  # ended, or nobody waits for it any more
        self._text, self._num_read = ResponseText(engine.token_bytes, question.stops), 0

    def read(self, progress: Progress, row: int) -> None:
        """Takes its tokens out of the progress (NumPy) of a batch, and puts a piece into `pieces`."""
        if self.is_over:
            return
        alive, num_tokens = bool(progress.alive[row]), int(progress.sampled_len[row])
        text = self._text.add(progress.token_ids[row, self._num_read : num_tokens].tolist(), is_last=not alive)
        self._num_read, finish = num_tokens, ""
        if self._text.is_stopped or not alive:
            finish = "stop" if progress.stopped[row] or self._text.is_stopped else "length"
            self.is_over = True  # never back to False: whoever asked may have left meanwhile
        self.pieces.put(Piece(self.index, text, num_tokens, finish))


def _start_of_generation(setup: Setup, bucket: Bucket) -> dict[str, Any]:
    """The values that are there before GENERATION, as shapes with shardings."""
    given = {
        "asked": abstract(Asked, B=setup.num_prompts),
        "going": jax.ShapeDtypeStruct((setup.num_prompts, 1), np.bool_),
        "until": jax.ShapeDtypeStruct((), np.int32),
    }
    placed = {name: place(setup.sampler_mesh, value, PLACES[name]) for name, value in given.items()}
    return start_of_evaluation(setup, bucket) | placed


GENERATION = Table((SAMPLER, PREFILL, BEGIN, GO_ON), _start_of_generation)


class Engine:
    """Answers questions, in batches of samples; any number of threads may `ask`. Use it in a `with` block.

    Args:
        config: model, sizes of prompts, response length and seed are read.
        processor: that of the model folder.
        model: the model.
        mesh: the mesh that the model is divided over.
        row_counts: samples of a batch, each with programs of its own.
        buckets: the sizes of prompts that will be asked; None: all that the processor makes.
    """

    def __init__(
        self,
        config: ml_collections.ConfigDict,
        processor: Processor,
        model: QwenVL,
        mesh: Mesh,
        *,
        row_counts: Sequence[int],
        buckets: Sequence[Bucket] | None = None,
    ) -> None:
        """Compiles all programs."""
        self.processor, self.token_bytes = processor, TokenBytes(processor.tokenizer)
        self.response_len, self._mesh = config.rollout.response_len, mesh
        self._stages: dict[int, CompiledStages] = {}  # by rows, ascending
        for num_rows in sorted({round_up(count, mesh) for count in row_counts}):
            setup = evaluation_setup(
                config, processor, model, mesh, num_prompts=num_rows, num_samples=1, temperature=0.0
            )
            self._stages[num_rows] = CompiledStages(GENERATION, setup, buckets or processor.buckets)
        self._sampler_mesh = setup.sampler_mesh
        compile_all(*self._stages.values())
        key = stage_key(0, _STAGE, seed=config.seed, mesh=mesh)
        start = {"params": model, "forbidden_mask": put(mesh, processor.forbidden_mask, WHOLE), "key": key}
        self._start = start | self._stages[num_rows].run(SAMPLER, EVERY_BUCKET, start)
        self._blank = blank(processor.image_spec)
        self._waiting: collections.deque[_Sample] = collections.deque()
        self._changed, self._is_closed = threading.Condition(), False
        self._thread = threading.Thread(target=self._serve, name="decode", daemon=True)

    def __enter__(self) -> Self:
        """Starts decoding."""
        self._thread.start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        """Gives up what is decoded and what waits."""
        with self._changed:
            self._is_closed = True
            self._changed.notify()
        self._thread.join()

    @contextlib.contextmanager
    def ask(self, question: Question) -> Iterator[Iterator[Piece]]:
        """Asks a question: the block gets the pieces of all samples as they come, and gives up what it leaves.

        Raises:
            BusyError: too many samples wait, or the engine has been closed.
            FloatingPointError: in the block; the model gives NaN or infinity.
        """
        pieces: queue.SimpleQueue[Piece | Exception] = queue.SimpleQueue()
        samples = [_Sample(question, index, self, pieces) for index in range(question.num_samples)]
        with self._changed:
            if self._is_closed:
                raise BusyError(_CLOSED)
            if len(self._waiting) + len(samples) > MOST_WAITING:
                raise BusyError("too many questions are waiting; ask again later")
            self._waiting.extend(samples)
            self._changed.notify()
        try:
            yield _until_all_end(pieces, len(samples))
        finally:
            for sample in samples:
                sample.is_over = True

    def _serve(self) -> None:
        """Decodes what waits, batch after batch, until the engine is closed."""
        while batch := self._next_batch():
            try:
                self._decode(batch)
            except Exception as error:  # is the batch's, and raised where it was asked for
                for sample in batch:
                    sample.pieces.put(error)
        for sample in self._waiting:
            sample.pieces.put(BusyError(_CLOSED))

    def _next_batch(self) -> list[_Sample]:
        """Waits for samples, and takes as many as a batch holds; none once the engine is closed."""
        batch: list[_Sample] = []
        with self._changed:
            while not batch:
                self._changed.wait_for(lambda: self._waiting or self._is_closed)
                if self._is_closed:
                    return []
                while self._waiting and len(batch) < max(self._stages):
                    sample = self._waiting.popleft()
                    batch += [] if sample.is_over else [sample]
        return batch

    def _decode(self, samples: Sequence[_Sample]) -> None:
        num_rows = next(count for count in self._stages if count >= len(samples))
        stages, num_blank = self._stages[num_rows], num_rows - len(samples)

        def column(values: list, dtype: type) -> np.ndarray:
            return np.array([*values, *[0] * num_blank], dtype)[:, None]

        examples = [sample.question.example for sample in samples] + [self._blank] * num_blank
        prompts = collate(self.processor, examples)
        asked = Asked(
            room=column([sample.room for sample in samples], np.int32),
            number=column([sample.number for sample in samples], np.int32),
            temperature=column([sample.question.temperature for sample in samples], np.float32),
        )
        bucket = bucket_of(prompts)
        values = self._start | put(self._mesh, {"prompts": prompts}) | self._placed(asked=asked)
        for stage in (PREFILL, BEGIN):
            values |= stages.run(stage, bucket, values)
        num_tokens, num_more = 0, 1
        while not all(sample.is_over for sample in samples):
            if self._is_closed:
                raise BusyError(_CLOSED)
            started = time.perf_counter()
            num_tokens = min(num_tokens + num_more, self.response_len)
            going = column([not sample.is_over for sample in samples], np.bool_)
            values |= self._placed(going=going, until=np.int32(num_tokens))
            values |= stages.run(GO_ON, bucket, values)
            progress: Progress = fetch_rows(values["progress"])
            if not np.isfinite(progress.logprobs).all():
                raise FloatingPointError("the model gives NaN or infinity; name another checkpoint")
            for row, sample in enumerate(samples):
                sample.read(progress, row)
            in_time = num_more * _SECONDS_A_PIECE / (time.perf_counter() - started)
            num_more = max(1, min(round(in_time), _MOST_TOKENS_A_PIECE))

    def _placed(self, **values: Any) -> dict[str, Any]:
        return {name: put(self._sampler_mesh, value, PLACES[name]) for name, value in values.items()}


def _until_all_end(pieces: queue.SimpleQueue[Piece | Exception], num_samples: int) -> Iterator[Piece]:
    while num_samples:
        piece = pieces.get()
        if isinstance(piece, Exception):
            raise piece
        num_samples -= bool(piece.finish)
        yield piece
