"""Scoring: the chunked head against numpy, its memory, and the pooled states."""

from __future__ import annotations

import dataclasses
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks import padded
from care_jax import models
from care_jax.stages import score
from care_jax.structs import Rollouts, Verdicts, zeros
from tests.packings import make_packing

SHAPE = (2, 3, 5)  # 30 tokens, which 7 does not divide
TEMPERATURE = 0.7
VOCAB = 9973  # a prime, so that it is recognised in the text of a program


@pytest.fixture(scope="module")
def case(tiny_model, tiny_processor):
    """States, tokens, forbidden ids, and the log-softmax of a direct computation in float64."""
    rng = np.random.default_rng(1)  # not the seed of the model's weights
    hidden = rng.normal(0, 3, (*SHAPE, tiny_model.config.text.hidden_size)).astype(np.float32)
    forbidden = tiny_processor.forbidden_mask
    token_ids = rng.choice(np.flatnonzero(~forbidden), SHAPE).astype(np.int32)
    table = np.asarray(tiny_model.embed_tokens.weight[...], np.float64)
    logits = np.where(forbidden, -np.inf, hidden.astype(np.float64) @ table.T / TEMPERATURE)
    logits -= logits.max(-1, keepdims=True)
    return hidden, token_ids, forbidden, logits - np.log(np.exp(logits).sum(-1, keepdims=True))


@pytest.mark.parametrize("chunk", [1, 7, 1000])
def test_chunks_equal_a_direct_log_softmax(tiny_model, case, chunk):
    """Catches padding that is scored, chunks in the wrong order, and a temperature or mask left out; entropy too."""
    hidden, token_ids, forbidden, logprobs = case
    ours = score.token_scores(
        tiny_model,
        jnp.asarray(hidden),
        jnp.asarray(token_ids),
        forbidden_mask=jnp.asarray(forbidden),
        temperature=TEMPERATURE,
        chunk=chunk,
    )
    expected = np.take_along_axis(logprobs, token_ids[..., None], axis=-1)[..., 0]
    np.testing.assert_allclose(ours.logprobs, expected, rtol=0, atol=1e-5)
    entropy = -np.where(forbidden, 0.0, np.exp(logprobs) * np.where(forbidden, 0.0, logprobs)).sum(-1)
    assert entropy.mean() > 1
    np.testing.assert_allclose(ours.entropy, entropy, rtol=0, atol=1e-5)


@pytest.mark.parametrize("remat", ["full", "dots", "none"])
def test_no_buffer_of_all_logits(tiny_folder, remat):
    """Catches logits of all tokens at once, forward or kept for the backward pass: only a chunk may have V columns."""
    config = models.load_model_config(tiny_folder)
    text = dataclasses.replace(config.text, vocab_size=VOCAB)
    model = models.abstract_model(dataclasses.replace(config, text=text, remat=remat))
    chunk, width = 8, text.hidden_size
    tokens = jax.ShapeDtypeStruct((2, 3, 11), jnp.int32)
    hidden = jax.ShapeDtypeStruct((*tokens.shape, width), jnp.float32)
    forbidden = jax.ShapeDtypeStruct((VOCAB,), bool)

    def loss(model, hidden, tokens, forbidden):
        scores = score.token_scores(model, hidden, tokens, forbidden_mask=forbidden, temperature=1.0, chunk=chunk)
        return scores.logprobs.sum()

    program = jax.jit(jax.value_and_grad(loss, argnums=(0, 1))).lower(model, hidden, tokens, forbidden).compile()
    shapes = [tuple(map(int, dims.split(","))) for dims in re.findall(r"\[([\d,]+)\]", program.as_text())]
    beside = {int(np.prod(shape)) // VOCAB for shape in shapes if VOCAB in shape}
    assert chunk in beside
    assert width in beside
    assert beside <= {1, chunk, width}


def test_pooled_states_are_unit_means(tiny_model):
    """Catches a mean over padding, a missing normalisation, and a response without a rationale that is left out."""
    rng = np.random.default_rng(0)
    own = rng.normal(size=(2, 2, 4, 6)).astype(np.float32)
    mask = np.array([[[1, 1, 0, 0], [0, 0, 0, 1]], [[0, 1, 1, 1], [0, 0, 0, 0]]], bool)
    ours = np.asarray(score.pool_states(jnp.asarray(own), jnp.asarray(mask)))
    for b, j in [(0, 0), (0, 1), (1, 0)]:
        mean = own[b, j][mask[b, j]].mean(0)
        np.testing.assert_allclose(ours[b, j], mean / np.linalg.norm(mean), rtol=0, atol=1e-6)
    assert not ours[1, 1].any()
    gradient = jax.grad(lambda x: score.pool_states(x, jnp.asarray(mask)).sum())(jnp.asarray(own))
    assert not np.asarray(gradient).any()


def test_score_pools_the_rationale_or_else_the_response(tiny_model, tiny_prompts, tiny_processor):
    """Catches states that predict a token in place of those at it, and a response without rationale that gives 0."""
    token_ids = np.random.default_rng(0).integers(60, 100, (3, 2, 6)).astype(np.int32)
    response_len = np.array([[6, 4], [3, 6], [5, 2]], np.int32)
    think_mask = np.zeros(token_ids.shape, bool)
    think_mask[:, 0, 1:3] = True
    rollouts, verdicts = (zeros(made, B=3, G=2, R=6) for made in (Rollouts, Verdicts))
    ours = score.score(
        tiny_model,
        tiny_prompts,
        rollouts.replace(token_ids=token_ids, response_len=response_len),
        verdicts.replace(think_mask=think_mask),
        make_packing(jax.device_get(tiny_prompts), response_len, padded_len=6, stream_len=60),
        jnp.asarray(tiny_processor.forbidden_mask),
        temperature=1.0,
        chunk=5,
    )
    own = np.asarray(padded.forward_branches(tiny_model, tiny_prompts, jnp.asarray(token_ids)).own)
    for b, j in np.ndindex(3, 2):
        mean = own[b, j][think_mask[b, j] if j == 0 else slice(response_len[b, j])].mean(0)
        np.testing.assert_allclose(ours.think_states[b, j], mean / np.linalg.norm(mean), rtol=0, atol=1e-5)
