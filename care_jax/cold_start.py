"""Supervised cold start: the model learns <think>/<answer> traces before RL.

    python -m care_jax.cold_start --config=configs/F.py --workdir=DIR

Same data, model, optimizer, checkpoints and update as train.py; only the batch and the loss differ. A trace with a
wrong draft shows draft and cue without a loss on them, so that the policy knows what the cue asks for.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
from etils import epath

from care_jax import cli
from care_jax.inputs.batch import Example, collate, padding_shares
from care_jax.inputs.processor import Processor
from care_jax.inputs.prompts import encode_prompt
from care_jax.inputs.responses import Trace, encode_trace
from care_jax.method.loss import Denominators, LossOutput
from care_jax.parallel.sharding import ROWS, place
from care_jax.run.session import Session, open_session
from care_jax.stages import programs
from care_jax.stages.programs import Program, bucket_of
from care_jax.stages.train_state import TrainState
from care_jax.stages.update import make_update, update_shardings
from care_jax.structs import Array, Prompts, Record, TrainBatch


def supervised_loss(logprobs: Array, batch: TrainBatch, *, denominators: Denominators) -> LossOutput:
    """-sum of logprobs [B, 1, R] over the trace's tokens / number of such tokens in the minibatch."""
    mask = batch.sampled_mask & batch.row_mask[..., None]
    loss = -jnp.sum(jnp.where(mask, logprobs, 0.0)) / denominators.num_tokens
    return LossOutput(loss=loss, aux={"loss": loss})


@dataclasses.dataclass(frozen=True)
class TracedExample:
    """A prompt and the response that the cold start learns."""

    prompt: Example
    trace: Trace


@dataclasses.dataclass(frozen=True)
class EncodeTraced:
    """Record -> TracedExample, or None where it has no rationale, or none that `encode_trace` takes."""

    processor: Processor
    cue: str
    response_len: int  # R, tokens

    def __call__(self, record: Record) -> TracedExample | None:
        if record.rationale is None:
            return None
        trace = encode_trace(self.processor, record, cue=self.cue, response_len=self.response_len)
        prompt = encode_prompt(self.processor, record)
        return None if trace is None or prompt is None else TracedExample(prompt, trace)


def trace_batch(processor: Processor, examples: Sequence[TracedExample], *, response_len: int) -> TrainBatch:
    """Prompts and one branch each: the trace, with loss on its learned tokens (NumPy arrays)."""
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
        prompts=collate(processor, [example.prompt for example in examples]),
        token_ids=token_ids,
        response_len=trace_len,
        sampled_mask=loss_mask,
        logprobs_old=zeros,
        logprobs_ref=zeros,
        advantages=np.ones(shape[:2], np.float32),
        token_weights=loss_mask.astype(np.float32),
        row_mask=np.ones(shape[:2], bool),
    )


def compile_update(session: Session) -> Program:
    """The update, for every bucket."""
    config = session.config
    update = make_update(
        session.optimizer,
        supervised_loss,
        minibatches=config.train.minibatches,
        microbatches=config.train.microbatches,
        temperature=1.0,
        chunk=config.model.logits_chunk,
        mesh=session.mesh,
    )
    program = Program(
        "cold start update",
        update,
        session.mesh,
        out_shardings=update_shardings(session.mesh, session.state),
        donate=(0,),
    )
    for bucket in programs.all_buckets(config):
        batch = _abstract_batch(
            config, programs.abstract_prompts(config.train.prompts, bucket, session.processor.image_spec)
        )
        program.compile(bucket, session.state, place(session.mesh, batch, ROWS), session.forbidden_mask)
    return program


def _abstract_batch(config: ml_collections.ConfigDict, prompts: Prompts) -> TrainBatch:
    rows = (config.train.prompts, 1)
    tokens = (*rows, config.rollout.response_len)

    return jax.eval_shape(
        lambda prompts: TrainBatch(
            prompts=prompts,
            token_ids=jnp.zeros(tokens, jnp.int32),
            response_len=jnp.zeros(rows, jnp.int32),
            sampled_mask=jnp.zeros(tokens, bool),
            logprobs_old=jnp.zeros(tokens, jnp.float32),
            logprobs_ref=jnp.zeros(tokens, jnp.float32),
            advantages=jnp.zeros(rows, jnp.float32),
            token_weights=jnp.zeros(tokens, jnp.float32),
            row_mask=jnp.zeros(rows, bool),
        ),
        prompts,
    )


def run(config: ml_collections.ConfigDict, workdir: epath.PathLike) -> TrainState:
    """Trains to train.steps, or to a SIGTERM; the same call resumes. Returns the last state."""

    def make_encoder(processor: Processor) -> EncodeTraced:
        return EncodeTraced(processor, cue=config.objective.reflect.cue, response_len=config.rollout.response_len)

    with open_session(config, workdir, stage="cold_start", make_encoder=make_encoder) as session:
        with session.until_stopped():
            held_out = session.evaluate_if_due()
            if session.has_ended():
                return session.state
            update = compile_update(session)
            session.end_warm_up()
            while not session.has_ended():
                scalars = _step(session, update)
                fresh = session.evaluate_if_due()
                held_out = fresh or held_out
                session.guard.check(session.step)
                session.writer.progress(session.step, {"loss": scalars["loss"]} | _shown(held_out))
                session.checkpoint_if_due(fresh)
        session.checkpoint_if_due(None)  # a SIGTERM may have come after the last save
        return session.state


def _step(session: Session, update: Program) -> dict[str, float]:
    """One step; returns and writes its metrics."""
    started = time.perf_counter()
    with session.timer("data"):
        examples, length = next(session.iterator), session.config.rollout.response_len
        batch = trace_batch(session.processor, examples, response_len=length)
    with session.timer("update"):
        output = update(bucket_of(batch.prompts), session.state, session.put(batch), session.forbidden_mask)
        session.advance(output.state)
        scalars = {name: float(value) for name, value in jax.device_get(output.metrics).items()}
    seconds = time.perf_counter() - started
    scalars |= session.timer.take() | {"lr": session.last_lr, "time/step": seconds}
    scalars["tokens_per_s/update"] = float(batch.response_len.sum()) / seconds
    scalars["data/num_dropped"] = session.encoder.num_dropped
    scalars |= padding_shares([example.prompt for example in examples], bucket_of(batch.prompts))
    session.writer.scalars(session.step, scalars)
    return scalars


def _shown(metrics: dict[str, float] | None) -> dict[str, float]:
    return {"held-out": metrics["eval/accuracy/mean"]} if metrics else {}


def main(config: ml_collections.ConfigDict, workdir: epath.PathLike) -> None:
    """Runs the cold start."""
    run(config, workdir)


if __name__ == "__main__":
    cli.run(main)
