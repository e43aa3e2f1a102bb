"""Trains the model on <think>/<answer> traces, supervised, before RL: the cold start.

    python -m care_jax.cold_start --config=configs/F.py --workdir=DIR

Same data, model, optimizer, checkpoints and update as train.py; only the batch and the loss differ. A trace with a
wrong draft shows draft and cue without a loss on them, so that the policy knows what the cue asks for.
"""

from __future__ import annotations

from care_jax import cli

if __name__ == "__main__":
    cli.training_flags()
    cli.read_first(with_run=True)  # the imports below take seconds

import dataclasses
import time
from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
import ml_collections
import numpy as np
from absl import flags
from etils import epath

from care_jax import step
from care_jax.inputs.batch import BatchSizes, Example, collate
from care_jax.inputs.processor import Processor
from care_jax.inputs.prompts import encode_prompt
from care_jax.inputs.responses import Trace, encode_trace
from care_jax.method.loss import Denominators, LossOutput
from care_jax.method.objectives import Objective
from care_jax.parallel.sharding import ROWS, abstract_arrays, place
from care_jax.planning.speed import SHOWN, PromptSizes, Speed, memory
from care_jax.run.session import Session, open_session
from care_jax.stages.compiled import CompiledStages, bucket_of, compile_all
from care_jax.stages.packing import PromptLengths, StreamSizes, pack, padding_share
from care_jax.stages.table import Bucket, Setup, Table
from care_jax.stages.train_state import TrainState
from care_jax.structs import Array, Record, TrainBatch, abstract


def supervised_loss(logprobs: Array, batch: TrainBatch, *, denominators: Denominators) -> LossOutput:
    """-sum of logprobs [B, 1, R] over the trace's tokens / number of such tokens in the minibatch."""
    mask = batch.sampled_mask & batch.row_mask[..., None]
    loss = -jnp.sum(jnp.where(mask, logprobs, 0.0)) / denominators.num_tokens
    return LossOutput(loss=loss, aux={"loss": loss})


def start_of_cold_start(setup: Setup, bucket: Bucket) -> dict[str, Any]:
    """The values that are there before the update, as shapes with shardings."""
    dims = setup.prompt_dims(bucket) | {"S": 1, "R": setup.config.rollout.response_len}
    packing = setup.stream_sizes(bucket, 1, parts=setup.config.train.minibatches).abstract()
    values = {"batch": abstract(TrainBatch, **dims), "batch_packing": packing}
    return step.start_of_step(setup, bucket) | place(setup.mesh, values, ROWS)


UPDATE = dataclasses.replace(
    step.UPDATE, name="cold start update", function=step.update_function(lambda setup: supervised_loss)
)
COLD_START = Table((UPDATE,), start_of_cold_start, logged=("update_metrics",))


@dataclasses.dataclass(frozen=True)
class TracedExample:
    """A prompt and the response that the cold start learns."""

    prompt: Example
    trace: Trace


@dataclasses.dataclass(frozen=True)
class EncodeTraced:
    """Turns a record into a TracedExample; gives None without a rationale that `encode_trace` takes."""

    processor: Processor
    cue: str
    response_len: int  # R, tokens

    def __call__(self, record: Record) -> TracedExample | None:
        """See the class."""
        if record.rationale is None:
            return None
        trace = encode_trace(self.processor, record, cue=self.cue, response_len=self.response_len)
        prompt = encode_prompt(self.processor, record)
        return None if trace is None or prompt is None else TracedExample(prompt, trace)


def trace_batch(
    processor: Processor, examples: Sequence[TracedExample], *, response_len: int, sizes: BatchSizes | None = None
) -> TrainBatch:
    """Prompts and one branch each: the trace, with loss on its learned tokens (NumPy arrays).

    `sizes` are those of the whole batch, if `examples` are a part of it.
    """
    shape = (len(examples), 1, response_len)
    token_ids, loss_mask = np.zeros(shape, np.int32), np.zeros(shape, bool)
    trace_len = np.zeros(shape[:2], np.int32)
    for row, example in enumerate(examples):
        trace = example.trace
        token_ids[row, 0, : len(trace.token_ids)] = trace.token_ids
        loss_mask[row, 0, : len(trace.token_ids)] = trace.loss_mask
        trace_len[row, 0] = len(trace.token_ids)
    zeros = np.zeros(shape, np.float32)
    return TrainBatch(
        prompts=collate(processor, [example.prompt for example in examples], sizes),
        token_ids=token_ids,
        response_len=trace_len,
        sampled_mask=loss_mask,
        logprobs_old=zeros,
        logprobs_ref=zeros,
        advantages=np.ones(shape[:2], np.float32),
        token_weights=loss_mask.astype(np.float32),
        row_mask=np.ones(shape[:2], bool),
    )


def make_stages(session: Session) -> CompiledStages:
    """The update, for every bucket; not compiled yet."""
    config, processor, state = session.config, session.processor, abstract_arrays(session.state)
    setup = Setup(
        config=config,
        objective=Objective.from_config(config.objective),
        mesh=session.mesh,
        num_prompts=config.train.prompts,
        num_rollouts=1,
        temperature=1.0,
        stop_ids=processor.stop_ids,
        forbidden_mask=processor.forbidden_mask,
        image_spec=processor.image_spec,
        params=state.params,
        state=state,
        optimizer=session.optimizer,
    )
    return CompiledStages(COLD_START, setup, processor.buckets, session.share)


def run(
    config: ml_collections.ConfigDict,
    workdir: epath.PathLike,
    *,
    allow_change: bool = False,
    profile_steps: str | None = None,
) -> TrainState:
    """Trains to train.steps; the same call resumes. Returns the last state.

    `allow_change` resumes with settings that differ more than history.py allows; `profile_steps` names steps to trace.

    Raises:
        SystemExit: a SIGTERM has ended it earlier, with run.stop.EXIT_CODE; all is saved.
    """

    def make_encoder(processor: Processor) -> EncodeTraced:
        return EncodeTraced(processor, cue=config.objective.reflect.cue, response_len=config.rollout.response_len)

    with open_session(
        config,
        workdir,
        stage="cold_start",
        make_encoder=make_encoder,
        allow_change=allow_change,
        profile_steps=profile_steps,
    ) as session:
        with session.until_stopped():
            if not session.has_ended():
                update = make_stages(session)
                with session.warm_up.compiling():
                    compile_all(session.evaluator.stages, update)
            session.evaluate_if_due()
            if session.has_ended():
                return session.state
            session.end_warm_up()
            speed, shown = Speed(config, session.mesh), {"loss": "loss"} | SHOWN
            while not session.has_ended():
                with session.profile.around(session.step + 1):
                    metrics = _step(session, update, speed)
                session.finish_step({short: metrics[name] for name, short in shown.items() if name in metrics})
        session.checkpoint_if_due(None)  # a SIGTERM may have come after the last save
        return session.state


def _step(session: Session, update: CompiledStages, speed: Speed) -> dict[str, float]:
    """One step; returns and writes its metrics."""
    started = time.perf_counter()
    update.step = session.step + 1
    with session.supervisor.timer("data"):
        examples, length = next(session.data), session.config.rollout.response_len
        own_sizes = BatchSizes.of([example.prompt for example in examples])
        sizes = BatchSizes.join(session.share.exchange(own_sizes))
        batch = trace_batch(session.processor, examples, response_len=length, sizes=sizes)
        num_shards, parts = session.share.num_shards, session.config.train.minibatches
        streams = StreamSizes.of(session.config, bucket_of(batch.prompts), 1, shards=num_shards, parts=parts)
        packing = pack(streams, PromptLengths.of(batch.prompts), batch.response_len, session.share)
    with session.supervisor.timer("update"):
        values = {
            "state": session.state,
            "batch": session.put(batch),
            "batch_packing": session.put(packing),
            "forbidden_mask": session.forbidden_mask,
        }
        given = update.run(UPDATE, bucket_of(batch.prompts), values)
        session.advance(given["state"])
        metrics = update.fetch("update_metrics", given["update_metrics"])
        scalars = {name: float(value) for name, value in metrics.items()}
    seconds = time.perf_counter() - started
    scalars |= session.supervisor.timer.take() | {"lr": session.last_lr, "time/step": seconds}
    scalars["tokens_per_s/update"] = sum(session.share.exchange(float(batch.response_len.sum()))) / seconds
    scalars |= session.data.counts()
    scalars |= sizes.metrics(bucket_of(batch.prompts)) | memory()
    prompts = PromptSizes.of([example.prompt for example in examples])
    scalars |= speed.update(prompts, batch.response_len, scalars["time/update"], session.share)
    scalars["padding/update_tokens"] = padding_share(packing, streams, session.share)
    session.writer.scalars(session.step, scalars)
    return scalars


def main(config: ml_collections.ConfigDict, workdir: epath.PathLike) -> None:
    """Runs the cold start."""
    run(config, workdir, allow_change=flags.FLAGS.allow_change, profile_steps=flags.FLAGS.profile_steps)


if __name__ == "__main__":
    cli.run(main)
