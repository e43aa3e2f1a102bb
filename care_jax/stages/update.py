"""The update of a step: minibatches, each one optimizer update from gradients summed over micro-batches.

Denominators are counted over the whole minibatch before its first micro-batch, so micro-batching and sharding
cannot change the gradient.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol, TypeVar, runtime_checkable

import jax
import jax.numpy as jnp
import optax
from flax import struct
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Float32

from care_jax.method.loss import Denominators, LossOutput, count_denominators
from care_jax.models import QwenVL
from care_jax.parallel.collectives import sum_gradients, sum_rows
from care_jax.parallel.sharding import ROWS, WHOLE, named, on_shards, param_specs
from care_jax.stages.score import token_scores
from care_jax.stages.train_state import TrainState, state_specs
from care_jax.structs import Array, TrainBatch

Tree = TypeVar("Tree")


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
}


@struct.dataclass
class UpdateOutput:
    """The new state, and figures of the update: means over the step's minibatches.

    `metrics`: loss, policy_loss, kl_loss, grad_norm before clipping, and kl, log_ratio, abs_log_ratio and clip_fraction
    a token; of these, what the loss reports.
    """

    state: TrainState
    metrics: dict[str, Array]


def split_batch(batch: Tree, pieces: int) -> Tree:
    """Deals prompts out round robin, so that each piece has some of every shard: [B, ...] to [pieces, b, ...]."""
    return jax.tree.map(lambda x: jnp.swapaxes(x.reshape(x.shape[0] // pieces, pieces, *x.shape[1:]), 0, 1), batch)


def make_update(
    optimizer: optax.GradientTransformation,
    loss_fn: LossFn,
    *,
    minibatches: int,
    microbatches: int,
    temperature: float,
    chunk: int,
    mesh: Mesh | None = None,
) -> Callable[[TrainState, TrainBatch, Array], UpdateOutput]:
    """The update as a function of (state, batch, forbidden_mask), to be jitted with the state donated.

    B must divide by minibatches * microbatches, and such a piece by the shards of the mesh (None: one device). Each
    shard goes over its own part of the micro-batches; the optimizer works on parameters as they lie.
    """

    def loss_of(
        params: QwenVL, batch: TrainBatch, denominators: Denominators, forbidden_mask: Array
    ) -> tuple[Array, dict[str, Array]]:
        hidden = params.forward_branches(batch.prompts, batch.token_ids)
        scores = token_scores(
            params,
            hidden.predicting,
            batch.token_ids,
            forbidden_mask=forbidden_mask,
            temperature=temperature,
            chunk=chunk,
        )
        output = loss_fn(scores.logprobs, batch, denominators=denominators)
        return output.loss, output.aux

    def gradient(params: QwenVL, minibatch: TrainBatch, forbidden_mask: Array) -> tuple[QwenVL, dict[str, Array]]:
        denominators = sum_rows(count_denominators(minibatch))

        def add(total: tuple, microbatch: TrainBatch) -> tuple[tuple, None]:
            grads, aux = jax.grad(loss_of, has_aux=True)(params, microbatch, denominators, forbidden_mask)
            return jax.tree.map(jnp.add, total, (grads, aux)), None

        pieces = split_batch(minibatch, microbatches)
        one = jax.tree.map(lambda x: x[0], pieces)
        shapes = jax.eval_shape(lambda b: jax.grad(loss_of, has_aux=True)(params, b, denominators, forbidden_mask), one)
        zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
        grads, aux = jax.lax.scan(add, zeros, pieces)[0]
        return sum_gradients(grads), sum_rows(aux)

    def specs(params: QwenVL, *_: Any) -> tuple[tuple, Any]:
        return (param_specs(params), ROWS, WHOLE), (param_specs(params), WHOLE)

    gradient_of_all = on_shards(mesh, gradient, specs)

    def update(state: TrainState, batch: TrainBatch, forbidden_mask: Array) -> UpdateOutput:
        def step(carry: tuple, minibatch: TrainBatch) -> tuple[tuple, dict[str, Array]]:
            params, opt_state = carry
            grads, aux = gradient_of_all(params, minibatch, forbidden_mask)
            updates, opt_state = optimizer.update(grads, opt_state, params)
            params = optax.apply_updates(params, updates)
            return (params, opt_state), _metrics(aux) | {"grad_norm": optax.tree.norm(grads)}

        pieces = split_batch(batch, minibatches)
        if mesh is not None:
            pieces = jax.lax.with_sharding_constraint(pieces, NamedSharding(mesh, PartitionSpec(None, *ROWS)))
        (params, opt_state), metrics = jax.lax.scan(step, (state.params, state.opt_state), pieces)
        state = TrainState(step=state.step + 1, params=params, opt_state=opt_state)
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
