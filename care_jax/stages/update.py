"""The update of a step: minibatches, each one optimizer update from gradients summed over micro-batches.

A micro-batch is a stream of packed prompts and rows, so its size is a number of tokens. Denominators are counted over
all rows of the minibatch, packed or not, before its first micro-batch, so neither packing nor sharding can change the
gradient.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import optax
from flax import struct
from jax.sharding import Mesh, NamedSharding
from jaxtyping import Float32

from care_jax.method.loss import Denominators, LossOutput, count_denominators
from care_jax.models import QwenVL
from care_jax.models.trained import combine, partition
from care_jax.parallel.collectives import rows_at, sum_gradients, sum_rows
from care_jax.parallel.sharding import ROWS, WHOLE, named, on_shards, param_specs
from care_jax.stages.score import score_stream
from care_jax.stages.streams import Packed
from care_jax.stages.train_state import TrainState, state_specs
from care_jax.structs import Array, Packing, Streams, TrainBatch


@runtime_checkable
class LossFn(Protocol):
    """A loss of log-probs; it knows its objective, and the update does not."""

    def __call__(
        self, logprobs: Float32[Array, "B S R"], batch: TrainBatch, *, denominators: Denominators
    ) -> LossOutput:
        """The loss of a piece of a minibatch, and what to report; both are added up over micro-batches.

        `denominators` are counts over the whole minibatch. `aux` has "loss", and of the other names of `_LOSSES` and
        `_PER_TOKEN` those that the loss knows.
        """
        ...


_LOSSES = ("loss", "policy_loss", "kl_loss")
# Metrics that are one sum of the loss over another; both are added up over a minibatch before they are divided.
_PER_TOKEN = {
    "kl": ("kl_sum", "num_tokens"),
    "log_ratio": ("log_ratio_sum", "num_tokens"),
    "abs_log_ratio": ("abs_log_ratio_sum", "num_tokens"),
    "clip_fraction": ("clipped_tokens", "weighted_tokens"),
    "tis/weight": ("importance_sum", "kept_tokens"),
    "tis/truncated": ("truncated_tokens", "num_tokens"),
    "tis/masked": ("masked_tokens", "num_tokens"),
}


@struct.dataclass
class UpdateOutput:
    """The new state, and figures of the update: means over the step's minibatches.

    `metrics`: loss, policy_loss, kl_loss, grad_norm before clipping, and kl, log_ratio, abs_log_ratio and clip_fraction
    a token; the mean importance weight, and the shares of tokens whose weight is truncated and that are masked (tis/);
    of these, what the loss reports.
    """

    state: TrainState
    metrics: dict[str, Array]


def make_update(
    optimizer: optax.GradientTransformation,
    loss_fn: LossFn,
    *,
    minibatches: int,
    temperature: float,
    chunk: int,
    mesh: Mesh | None = None,
) -> Callable[[TrainState, TrainBatch, Packing, Array], UpdateOutput]:
    """The update as a function of (state, batch, packing, forbidden_mask), to be jitted with the state donated.

    Minibatch m has the prompts m, m + minibatches, ... of each shard, so that every shard has some; the packing's parts
    are those. A micro-batch is one stream of the packing on each shard of the mesh (None: one device). The optimizer
    works on parameters as they lie. What is not trained has no gradient, and goes through as it is.
    """

    def loss_of(
        trained: QwenVL,
        frozen: QwenVL,
        batch: TrainBatch,
        streams: Streams,
        denominators: Denominators,
        forbidden_mask: Array,
        index: Array,
        length: int,
    ) -> tuple[Array, dict[str, Array]]:
        stream, tokens, _ = score_stream(
            combine(trained, frozen),
            Packed(batch.prompts, batch.token_ids, streams),
            index,
            forbidden_mask,
            temperature=temperature,
            chunk=chunk,
            length=length,
        )
        logprobs = stream.put_in_rows(jnp.zeros(batch.token_ids.shape, jnp.float32), tokens.logprobs)
        is_here = jnp.zeros(batch.row_mask.size, bool)
        is_here = is_here.at[stream.row_place // batch.token_ids.shape[-1]].set(True, mode="drop")
        rows = dataclasses.replace(batch, row_mask=batch.row_mask & is_here.reshape(batch.row_mask.shape))
        output = loss_fn(logprobs, rows, denominators=denominators)
        return output.loss, output.aux

    def gradient(
        trained: QwenVL,
        frozen: QwenVL,
        batch: TrainBatch,
        streams: Streams,
        minibatch: Array,
        forbidden_mask: Array,
    ) -> tuple[QwenVL, dict[str, Array]]:
        turn = jnp.arange(batch.row_mask.shape[0], dtype=jnp.int32)[:, None] % minibatches
        mine = dataclasses.replace(batch, row_mask=jnp.asarray(batch.row_mask) & (turn == minibatch))
        denominators = sum_rows(count_denominators(mine))
        streams = jax.tree.map(lambda x: jnp.asarray(x).reshape(minibatches, -1, *x.shape[1:])[minibatch], streams)
        packed = Packed(batch.prompts, batch.token_ids, streams)
        given = trained, frozen, batch, streams, denominators, forbidden_mask
        grad = functools.partial(jax.grad(loss_of, has_aux=True), *given)

        def add(index: Array, length: int, total: tuple) -> tuple:
            return jax.tree.map(jnp.add, total, grad(index, length))

        shapes = jax.eval_shape(functools.partial(grad, length=streams.group.shape[-1]), jnp.int32(0))
        zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
        grads, aux = packed.for_each(add, zeros)
        return sum_gradients(grads), sum_rows(aux)

    def specs(trained: QwenVL, frozen: QwenVL, *_: Any) -> tuple[tuple, Any]:
        parts = param_specs(trained), param_specs(frozen)
        return (*parts, ROWS, ROWS, WHOLE, WHOLE), (parts[0], WHOLE)

    gradient_of_all = on_shards(mesh, gradient, specs)
    divide = on_shards(mesh, rows_at, lambda *_: ((ROWS, ROWS), ROWS))

    def update(state: TrainState, batch: TrainBatch, packing: Packing, forbidden_mask: Array) -> UpdateOutput:
        groups = divide(batch, packing.order)
        trained, frozen = partition(state.params)

        def step(carry: tuple, minibatch: Array) -> tuple[tuple, dict[str, Array]]:
            trained, opt_state = carry
            grads, aux = gradient_of_all(trained, frozen, groups, packing.streams, minibatch, forbidden_mask)
            updates, opt_state = optimizer.update(grads, opt_state, trained)
            trained = optax.apply_updates(trained, updates)
            return (trained, opt_state), _metrics(aux) | {"grad_norm": optax.tree.norm(grads)}

        turns = jnp.arange(minibatches, dtype=jnp.int32)
        (trained, opt_state), metrics = jax.lax.scan(step, (trained, state.opt_state), turns)
        state = TrainState(step=state.step + 1, params=combine(trained, frozen), opt_state=opt_state)
        return UpdateOutput(state=state, metrics=jax.tree.map(jnp.mean, metrics))

    return update


def update_shardings(mesh: Mesh, state: TrainState) -> UpdateOutput:
    """Shardings of an update's results: the state stays where it lay, metrics are everywhere."""
    whole: Any = NamedSharding(mesh, WHOLE)
    return UpdateOutput(state=named(mesh, state_specs(state)), metrics=whole)


def _metrics(sums: dict[str, Array]) -> dict[str, Array]:
    """A minibatch's metrics from what its losses added up to; a count of 0 divides as 1."""
    known = {*_LOSSES, "num_rows", *(name for pair in _PER_TOKEN.values() for name in pair)}
    if unknown := sums.keys() - known:
        raise ValueError(
            f"a loss reports {', '.join(sorted(unknown))}, which update._PER_TOKEN does not turn into metrics"
        )
    losses = {name: sums[name] for name in _LOSSES if name in sums}
    return losses | {
        name: sums[top] / jnp.maximum(sums[bottom], 1.0) for name, (top, bottom) in _PER_TOKEN.items() if top in sums
    }
