"""The layout that packed streams replace: every prompt padded to P tokens, all of its J branches to R, all computed.

Tests take it as a second opinion on hidden states, and benchmarks as what packing is measured against.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import einops
import jax
import jax.numpy as jnp
import optax

from care_jax.method.loss import count_denominators
from care_jax.models import QwenVL, attention, decoder, delta_net
from care_jax.models.delta_net import GatedDeltaNet, Inputs
from care_jax.models.delta_rule import Chunks
from care_jax.models.layers import recompute
from care_jax.stages.score import pooled_tokens, token_scores
from care_jax.stages.train_state import TrainState
from care_jax.stages.update import LossFn
from care_jax.structs import Array, Prompts, Rollouts, Scores, TrainBatch, Verdicts


class BranchHidden(NamedTuple):
    """Hidden states of full branches [B, J, R, D] after the final norm."""

    predicting: Array  # the state that predicts token r (for r = 0 the prompt's last one)
    own: Array  # the state at token r


def forward_branches(model: QwenVL, prompts: Prompts, token_ids: Array) -> BranchHidden:
    """Runs prompts and branches [B, J, R] in one pass, every prompt once and all branches behind it."""
    batch, num_branches, num_response = token_ids.shape
    num_prompt = prompts.token_ids.shape[1]
    of_prompts, deepstack = model._embed_prompts(prompts)
    x = jnp.concatenate([of_prompts, model.embed_tokens(token_ids.reshape(batch, -1), of_prompts.dtype)], axis=1)
    offsets = jnp.tile(jnp.arange(num_response, dtype=jnp.int32), num_branches)
    positions = model._text_positions(prompts.next_position, offsets[None])
    rope = model._rope(jnp.concatenate([prompts.position_ids, positions], axis=-1))
    attend = functools.partial(_attend, prompt_len=prompts.prompt_len, num_prompt=num_prompt, num_branches=num_branches)

    mixes: dict[str, Any] = {
        "full_attention": lambda q, k, v: (attend(q, k, v), None),
        "linear_attention": functools.partial(_recur, prompts.prompt_len, num_prompt, num_branches),
    }

    def step(x: jax.Array, layer: decoder.DecoderLayer, number: Array, _: Array) -> tuple[Any, None]:
        out, _ = layer(x, rope, mixes[layer.kind])
        # A branch has no images.
        of_prompt = decoder._add_deepstack(out[:, :num_prompt], deepstack, number)
        return jnp.concatenate([of_prompt, out[:, num_prompt:]], axis=1), None

    hidden = model.norm(decoder._scan(model.layers, recompute(step, model.config.remat), x)[0])
    own = einops.rearrange(hidden[:, num_prompt:], "b (j r) d -> b j r d", j=num_branches)
    last = jnp.take_along_axis(hidden, prompts.prompt_len[:, None, None] - 1, axis=1)[:, None]
    first = jnp.broadcast_to(last, own[:, :, :1].shape)
    return BranchHidden(jnp.concatenate([first, own[:, :, :-1]], axis=2), own)


def _recur(
    prompt_len: Array, num_prompt: int, num_branches: int, layer: GatedDeltaNet, inputs: Inputs
) -> tuple[Array, None]:
    """Branches of [B, P + J * R, ...] go on from the states of their prompts."""
    of_prompts, of_branches = (
        Inputs(*(x[:, part] for x in inputs)) for part in (slice(num_prompt), slice(num_prompt, None))
    )
    chunks = Chunks.of_sequences(prompt_len, num_prompt)
    out, memory = delta_net.prefill(chunks, prompt_len, layer, of_prompts)
    shared = jax.tree.map(lambda x: jnp.broadcast_to(x[:, None], (len(x), num_branches, *x.shape[1:])), memory)
    length = of_branches.decay.shape[1] // num_branches
    whole = jnp.full((len(prompt_len), num_branches), length, jnp.int32)
    own, _ = delta_net.extend(shared, whole, layer, of_branches)
    return jnp.concatenate([out, own], axis=1), None


def _attend(q: Array, k: Array, v: Array, *, prompt_len: Array, num_prompt: int, num_branches: int) -> Array:
    """Prompts attend to themselves, branches to their prompt and themselves; q, k and v are [B, P + J * R, ...]."""

    def split(x: Array) -> tuple[Array, Array]:
        branches = einops.rearrange(x[:, num_prompt:], "b (j r) h c -> b j r h c", j=num_branches)
        return x[:, :num_prompt], branches

    (prompt_q, own_q), (prompt_k, own_k), (prompt_v, own_v) = split(q), split(k), split(v)
    length = own_k.shape[2]
    of_branches = attention._in_chunks(
        lambda q, visible: attention.branch_attention(
            q,
            (jnp.swapaxes(prompt_k, 1, 2), jnp.swapaxes(prompt_v, 1, 2)),
            (jnp.swapaxes(own_k, 2, 3), jnp.swapaxes(own_v, 2, 3)),
            prompt_len=prompt_len,
            own_visible=visible,
        ),
        own_q,
        jnp.tril(jnp.ones((1, 1, length, length), bool)),
        axis=2,
    )
    of_prompt = attention.causal_attention(prompt_q, prompt_k, prompt_v, implementation="xla")
    return jnp.concatenate([of_prompt, einops.rearrange(of_branches, "b j r h c -> b (j r) h c")], axis=1)


@functools.partial(jax.jit, static_argnames=("temperature", "chunk"))
def score(
    model: QwenVL,
    prompts: Prompts,
    rollouts: Rollouts,
    verdicts: Verdicts,
    forbidden_mask: Array,
    *,
    temperature: float,
    chunk: int,
) -> Scores:
    """Computes `stages.score.score` of all rollouts."""
    hidden = forward_branches(model, prompts, rollouts.token_ids)
    scores = token_scores(
        model,
        hidden.predicting,
        rollouts.token_ids,
        forbidden_mask=forbidden_mask,
        temperature=temperature,
        chunk=chunk,
    )
    mask = pooled_tokens(rollouts, verdicts).astype(jnp.float32)
    pooled = jnp.einsum("bjrd,bjr->bjd", hidden.own.astype(jnp.float32), mask)
    states = pooled / jnp.maximum(jnp.linalg.norm(pooled, axis=-1, keepdims=True), 1e-12)
    return Scores(scores.logprobs, scores.entropy, states)


def make_update(
    optimizer: optax.GradientTransformation, loss_fn: LossFn, *, temperature: float, chunk: int
) -> Callable[[TrainState, TrainBatch, Array], TrainState]:
    """An update of one micro-batch as a function of (state, batch, forbidden_mask), all rows computed."""

    def loss_of(params: QwenVL, batch: TrainBatch, forbidden_mask: Array) -> tuple[Array, Any]:
        hidden = forward_branches(params, batch.prompts, batch.token_ids)
        scores = token_scores(
            params,
            hidden.predicting,
            batch.token_ids,
            forbidden_mask=forbidden_mask,
            temperature=temperature,
            chunk=chunk,
        )
        output = loss_fn(scores.logprobs, batch, denominators=count_denominators(batch))
        return output.loss, output.aux

    def update(state: TrainState, batch: TrainBatch, forbidden_mask: Array) -> TrainState:
        grads, _ = jax.grad(loss_of, has_aux=True)(state.params, batch, forbidden_mask)
        updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
        return TrainState(state.step + 1, optax.apply_updates(state.params, updates), opt_state)

    return update
