"""The update as it is done elsewhere, one row at a time: the oracle of the shared prompt.

Each row has its own copy of the prompt, its own pass of the vision tower, plain causal attention over prompt and
response, and one log-softmax over all its logits. Of care_jax it uses the modules that hold parameters; attention,
positions of responses, scoring, batch and loss are its own, selection and weights those of `reference`.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from care_jax.method.objectives import Objective
from care_jax.method.train_batch import REFLECTED_SLOT, Reflection
from care_jax.models import QwenVL, decoder
from care_jax.models.delta_net import GatedDeltaNet, Inputs
from care_jax.models.full_attention import mrope
from care_jax.models.qwen_vl import logits
from care_jax.structs import Outcome, Prompts, Rollouts, Scores, Verdicts
from tests import reference


class Row(NamedTuple):
    """One response that is updated, padded on the right to R."""

    prompt: int  # which of the batch
    token_ids: np.ndarray  # [R]
    sampled: np.ndarray  # [R] bool
    logprobs_old: np.ndarray  # [R]
    weights: np.ndarray  # [R]
    advantage: float


def care_rows(
    rollouts: Rollouts,
    verdicts: Verdicts,
    scores: Scores,
    reflection: Reflection,
    objective: Objective,
) -> list[Row]:
    """Rows of a CARE update, group by group, anchor first (docs/method.md sections 2 to 5). All arrays are NumPy."""
    rows = []
    for b in range(len(verdicts.correct)):
        group = reference.select_subgroup(
            verdicts.correct[b],
            verdicts.think_mask[b].sum(-1),
            verdicts.answer_mask[b].sum(-1),
            rollouts.response_len[b],
            scores.logprobs[b],
            rollouts.sampled_mask[b],
            scores.think_states[b],
            objective,
        )
        repaired = bool(reflection.tried[b]) and group.outcome == Outcome.MIXED
        fields = {
            "token_ids": (rollouts.token_ids, reflection.token_ids),
            "sampled": (rollouts.sampled_mask, reflection.sampled_mask),
            "logprobs_old": (scores.logprobs, reflection.logprobs_old),
            "correct": (verdicts.correct, reflection.correct),
            "rewards": (verdicts.rewards, reflection.rewards),
            "think_mask": (verdicts.think_mask, reflection.think_mask),
            "answer_mask": (verdicts.answer_mask, reflection.answer_mask),
        }
        slots = [
            {
                name: theirs[b] if repaired and slot == REFLECTED_SLOT else ours[b, g]
                for name, (ours, theirs) in fields.items()
            }
            for slot, g in enumerate(group.rows)
        ]
        _, advantages = reference.subgroup_advantages(
            [row["rewards"] for row in slots],
            [row["correct"] for row in slots],
            [repaired and slot == REFLECTED_SLOT for slot in range(len(slots))],
            group,
            objective,
        )
        shared: list = [None] * len(slots)
        if slots and objective.region.enabled and objective.region.after_divergence:
            shared = reference.shared_with_anchor(
                *([row[name] for row in slots] for name in ("token_ids", "think_mask", "correct"))
            )
        for row, advantage, shared_mask in zip(slots, advantages, shared, strict=True):
            masks = (row["think_mask"], row["answer_mask"], row["sampled"])
            weights = reference.token_weights(*masks, bool(row["correct"]), objective, shared_mask)
            weights = np.array(weights, np.float32)
            rows.append(Row(b, row["token_ids"], row["sampled"], row["logprobs_old"], weights, advantage))
    return rows


def join(prompts: Prompts, b: int, token_ids: np.ndarray) -> Prompts:
    """Prompt b and a response [R] as one prompt [1, P + R], its padding behind the response. All arrays are NumPy."""
    prompt_len, start = int(prompts.prompt_len[b]), int(prompts.next_position[b])
    one = jax.tree.map(lambda x: x[b : b + 1], prompts)

    def append(stream: np.ndarray, response: np.ndarray) -> np.ndarray:
        real = np.concatenate(
            [stream[..., :prompt_len], np.broadcast_to(response, (*stream.shape[:-1], len(token_ids)))], -1
        )
        return np.concatenate([real, stream[..., prompt_len:]], -1)

    return one.replace(
        token_ids=append(one.token_ids, token_ids),
        position_ids=append(one.position_ids, start + np.arange(len(token_ids), dtype=np.int32)),
        vision_index=append(one.vision_index, np.int32([-1])),
    )


def row_logprobs(
    model: QwenVL,
    joined: Prompts,
    prompt_len: jax.Array,
    num_response: int,
    forbidden_mask: jax.Array,
    temperature: float,
) -> jax.Array:
    """Log-probs [R] of the response in `joined` (see `join`)."""
    token_ids, is_vision = joined.token_ids[0], (joined.vision_index[0] >= 0)[:, None]
    features = model.visual(joined, jnp.dtype("float32"))
    at_token = jnp.maximum(joined.vision_index[0], 0)
    x = jnp.where(is_vision, features.merged[0][at_token], model.embed_tokens.weight[...][token_ids])[None]
    rope = mrope(joined.position_ids, model.config.text, jnp.dtype("float32"))
    for index in range(model.config.text.num_hidden_layers):
        layer = layer_of(model, index)
        x, _ = layer(x, rope, causal_attention if layer.kind == "full_attention" else plain_recurrence)
        if index < len(features.deepstack):
            x = x + jnp.where(is_vision, features.deepstack[index, 0][at_token], 0.0)[None]
    values = jnp.where(forbidden_mask[None], -jnp.inf, logits(model.head, model.norm(x))[0] / temperature)
    at_response = prompt_len + jnp.arange(num_response)
    return jax.nn.log_softmax(values)[at_response - 1, token_ids[at_response]]


def layer_of(model: QwenVL, index: int) -> decoder.DecoderLayer:
    """The decoder's layer number `index`."""
    stack, place = model.layers, index
    if isinstance(stack, decoder.MixedLayers):
        kind = stack.period[index % len(stack.period)]
        stack, place = getattr(stack, kind), model.config.text.layers_of(kind).index(index)
    return jax.tree.map(lambda leaf: leaf[place], stack)


def plain_recurrence(layer: GatedDeltaNet, inputs: Inputs) -> tuple[jax.Array, None]:
    """Linear attention of one row, a token at a time: its convolution sees zeros before the first."""
    num_tokens, num_before = inputs.qkv.shape[1], layer.num_taps - 1
    seen = jnp.pad(inputs.qkv[0], ((num_before, 0), (0, 0), (0, 0)))
    q, k, v = layer.split_heads(layer.conv1d([seen[i : i + num_tokens] for i in range(layer.num_taps)]), seen.dtype)

    def of_length_one(x: jax.Array) -> jax.Array:
        return x / jnp.sqrt((x * x).sum(-1, keepdims=True) + 1e-6)

    def step(state: jax.Array, token: tuple[jax.Array, ...]) -> tuple[jax.Array, jax.Array]:
        q, k, v, decay, rate = token  # [N, C], [N, C], [N, Q, Cv], [N, Q], [N, Q]
        state = jnp.exp(decay)[..., None, None] * state
        error = v - jnp.einsum("nk,nqkv->nqv", k, state)
        state = state + jnp.einsum("nk,nqv,nq->nqkv", k, error, rate)
        return state, jnp.einsum("nk,nqkv->nqv", q, state)

    tokens = (of_length_one(q) / q.shape[-1] ** 0.5, of_length_one(k), v, inputs.decay[0], inputs.rate[0])
    start = jnp.zeros((*v.shape[1:3], q.shape[-1], v.shape[-1]))
    return jax.lax.scan(step, start, tokens)[1][None], None


def causal_attention(q: jax.Array, k: jax.Array, v: jax.Array) -> tuple[jax.Array, None]:
    """Every query head with its own copy of keys and values: [1, T, H, C]."""
    repeats = q.shape[2] // k.shape[2]
    k, v = jnp.repeat(k, repeats, axis=2), jnp.repeat(v, repeats, axis=2)
    scores = jnp.einsum("bthc,bzhc->bhtz", q, k) / q.shape[-1] ** 0.5
    later = jnp.triu(jnp.ones(scores.shape[-2:], bool), 1)
    return jnp.einsum("bhtz,bzhc->bthc", jax.nn.softmax(jnp.where(later[None, None], -jnp.inf, scores)), v), None


def row_loss(logprobs: jax.Array, row: Row, objective: Objective) -> jax.Array:
    """Clipped loss of one row, mean by its weights, and k3 KL against the old policy, mean over what was sampled."""
    new = jnp.where(row.sampled, logprobs, 0.0)
    old = jnp.where(row.sampled, row.logprobs_old, 0.0)
    ratio = jnp.exp(new - old)
    clipped = jnp.clip(ratio, 1 - objective.clip_low, 1 + objective.clip_high)
    policy = -jnp.minimum(ratio * row.advantage, clipped * row.advantage)
    kl = jnp.exp(old - new) - (old - new) - 1
    policy = (row.weights * policy).sum() / (row.weights.sum() + reference.EPS)
    return policy + objective.kl_coef * jnp.where(row.sampled, kl, 0.0).sum() / (
        row.sampled.sum(dtype=jnp.float32) + reference.EPS
    )


@functools.partial(jax.jit, static_argnames=("num_response", "temperature"))
def response_logprobs(model, joined, prompt_len, forbidden_mask, *, num_response, temperature):
    """`row_logprobs`, jitted."""
    return row_logprobs(model, joined, prompt_len, num_response, forbidden_mask, temperature)


@functools.partial(jax.jit, static_argnames=("temperature", "objective"))
def _row_gradient(model, joined, prompt_len, row, forbidden_mask, *, temperature, objective):
    def loss(model: QwenVL) -> jax.Array:
        logprobs = row_logprobs(model, joined, prompt_len, row.token_ids.size, forbidden_mask, temperature)
        return row_loss(logprobs, row, objective)

    return jax.value_and_grad(loss)(model)


def update_gradient(
    model: QwenVL,
    prompts: Prompts,
    rows: list[Row],
    forbidden_mask: np.ndarray,
    *,
    temperature: float,
    objective: Objective,
) -> tuple[float, QwenVL]:
    """Loss and gradient of an update of `rows`, each row on its own, added up in float64 on the host."""
    total, grads = 0.0, jax.tree.map(lambda x: np.zeros(x.shape), model)
    for row in rows:
        arrays = row._replace(prompt=0, advantage=np.float32(row.advantage))
        loss, grad = _row_gradient(
            model,
            join(prompts, row.prompt, row.token_ids),
            prompts.prompt_len[row.prompt],
            arrays,
            jnp.asarray(forbidden_mask),
            temperature=temperature,
            objective=objective,
        )
        total += float(loss) / len(rows)
        grads = jax.tree.map(lambda x, y: x + np.asarray(y, np.float64) / len(rows), grads, grad)
    return total, grads
