"""Supervised cold start: the model learns <think>/<answer> traces before RL.

    python -m care_jax.cold_start --config=configs/F.py --workdir=DIR

Same data, model, optimizer, checkpoints and update as train.py; only the batch and the loss differ. A trace with a
wrong draft shows draft and cue without a loss on them, so that the policy knows what the cue asks for.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np

from care_jax import cli, programs
from care_jax.loss import Denominators, LossOutput
from care_jax.processor import Example, Processor
from care_jax.programs import Program, bucket_of
from care_jax.session import EncodeRecord, Session, encoder, open_session
from care_jax.structs import Prompts, TrainBatch, TrainState
from care_jax.update import make_update


def supervised_loss(logprobs: jax.Array, batch: TrainBatch, denominators: Denominators) -> LossOutput:
    """-sum of logprobs [B, 1, R] over the trace's tokens / number of such tokens in the minibatch."""
    mask = batch.sampled_mask & batch.row_mask[..., None]
    loss = -jnp.sum(jnp.where(mask, logprobs, 0.0)) / denominators.num_tokens
    return LossOutput(loss=loss, aux={"loss": loss})


def trace_batch(processor: Processor, encode: EncodeRecord, examples: Sequence[Example]) -> TrainBatch:
    """Prompts and one branch each: the trace, with loss on its learned tokens (NumPy arrays)."""
    shape = (len(examples), 1, encode.response_len)
    token_ids, loss_mask = np.zeros(shape, np.int32), np.zeros(shape, bool)
    response_len = np.zeros(shape[:2], np.int32)
    for row, example in enumerate(examples):
        trace = encode.trace(example.record)
        assert trace is not None  # the encoder dropped records without one
        token_ids[row, 0, : len(trace.token_ids)] = trace.token_ids
        loss_mask[row, 0, : len(trace.token_ids)] = trace.loss_mask
        response_len[row, 0] = len(trace.token_ids)
    zeros = np.zeros(shape, np.float32)
    return TrainBatch(
        prompts=processor.collate(examples),
        token_ids=token_ids,
        response_len=response_len,
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
    )
    program = Program("cold start update", update, donate=(0,))
    for bucket in programs.all_buckets(config):
        batch = _abstract_batch(config, programs.abstract_prompts(
            config.train.prompts, bucket, session.processor.image_spec.patch_values
        ))
        program.compile(bucket, session.state, batch, session.forbidden_mask)
    return program


def _abstract_batch(config: ml_collections.ConfigDict, prompts: Prompts) -> TrainBatch:
    rows = (config.train.prompts, 1)
    tokens = (*rows, config.rollout.response_len)

    def array(shape: tuple[int, ...], dtype: type) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(shape, dtype)

    return TrainBatch(
        prompts=prompts,
        token_ids=array(tokens, jnp.int32),
        response_len=array(rows, jnp.int32),
        sampled_mask=array(tokens, bool),
        logprobs_old=array(tokens, jnp.float32),
        logprobs_ref=array(tokens, jnp.float32),
        advantages=array(rows, jnp.float32),
        token_weights=array(tokens, jnp.float32),
        row_mask=array(rows, bool),
    )


def run(config: ml_collections.ConfigDict, workdir: Path) -> TrainState:
    """Trains to train.steps, or to a SIGTERM; the same call resumes. Returns the last state."""
    session = open_session(config, workdir, stage="cold_start")
    encode = encoder(session.processor, config, stage="cold_start")
    update = compile_update(session)
    held_out = session.evaluate_if_due()
    session.end_warm_up()
    while session.step < config.train.steps and not session.stop.is_set:
        started = time.perf_counter()
        with session.timer("data"):
            batch = trace_batch(session.processor, encode, next(session.iterator))
        with session.timer("update"):
            output = update(bucket_of(batch.prompts), session.state, batch, session.forbidden_mask)
            session.state = output.state
            scalars = {name: float(value) for name, value in jax.device_get(output.metrics).items()}
        seconds = time.perf_counter() - started
        scalars |= session.timer.take() | {"tokens_per_s/update": float(batch.response_len.sum()) / seconds}
        session.writer.scalars(session.step, scalars)
        session.writer.progress(session.step, {"loss": scalars["loss"]} | _shown(held_out))
        fresh = session.evaluate_if_due()
        held_out = fresh or held_out
        session.guard.check(session.step)
        session.checkpoint_if_due(fresh)
    session.close()
    return session.state


def _shown(metrics: dict[str, float] | None) -> dict[str, float]:
    return {"held-out": metrics["eval/accuracy/mean"]} if metrics else {}


def main(config: ml_collections.ConfigDict, workdir: Path) -> None:
    """Runs the cold start."""
    run(config, workdir)


if __name__ == "__main__":
    cli.run(main)
