"""The update through the real model: micro-batches, minibatches, what must have no gradient, and pinned numbers."""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from care_jax import config, models
from care_jax.inputs.batch import collate
from care_jax.inputs.prompts import encode_prompt
from care_jax.method import objectives
from care_jax.method.importance import Correction
from care_jax.method.loss import policy_loss
from care_jax.stages.optimizer import make_optimizer
from care_jax.stages.train_state import TrainState
from care_jax.stages.update import make_update
from care_jax.structs import TrainBatch
from tests.packings import make_packing
from tests.pictures import encode, picture, question
from tests.presets import record

B, S, R = 8, 2, 5
PINNED = (0.42804, 45.828)  # loss and gradient norm of `batch` at the test model
SGD = optax.sgd(optax.constant_schedule(0.05))


@pytest.fixture(scope="module")
def batch(tiny_processor) -> TrainBatch:
    """Eight prompts with two rows each: forced tokens, region weights, unused rows, old log-probs that clip some."""
    rng = np.random.default_rng(0)
    image = encode(picture(56, 56))
    prompts = [question(f"<image>{i}", image) if i % 2 else question(f"{i}+{i}=?") for i in range(B)]
    response_len = rng.integers(2, R + 1, (B, S))
    sampled_mask = np.arange(R) < response_len[..., None]
    sampled_mask[:3, 1, 0] = False  # forced
    row_mask = np.ones((B, S), bool)
    row_mask[2, 1] = row_mask[5, 1] = False
    old = -5.5 + rng.normal(0, 0.7, (B, S, R))  # the model is nearly uniform over 270 ids
    batch = TrainBatch(
        prompts=collate(tiny_processor, [encode_prompt(tiny_processor, record) for record in prompts]),
        token_ids=rng.integers(40, 120, (B, S, R)).astype(np.int32),
        response_len=response_len.astype(np.int32),
        sampled_mask=sampled_mask,
        logprobs_old=old.astype(np.float32),
        logprobs_ref=(old + rng.normal(0, 0.3, old.shape)).astype(np.float32),
        advantages=rng.normal(size=(B, S)).astype(np.float32),
        token_weights=(rng.choice([0.0, 0.5, 1.0], (B, S, R)) * sampled_mask).astype(np.float32),
        row_mask=row_mask,
    )
    return jax.device_put(batch)


@functools.cache
def program(optimizer: optax.GradientTransformation, minibatches: int, correction: Correction | None):
    """The jitted update of CARE's loss; nothing is donated, so that a state can be used again."""
    loss = functools.partial(policy_loss, objective=record(objectives.care), correction=correction)
    return jax.jit(make_update(optimizer, loss, minibatches=minibatches, temperature=1.0, chunk=16))


@pytest.fixture(scope="module")
def run(tiny_model, tiny_processor):
    """(batch, optimizer, minibatches, tokens of a stream) -> parameters by name, metrics, optimizer state."""

    def run(batch, *, optimizer=SGD, minibatches=1, stream_len=512, model=tiny_model, correction=None):
        packing = make_packing(
            jax.device_get(batch.prompts),
            np.where(batch.row_mask, batch.response_len, 0),
            padded_len=R,
            stream_len=stream_len,
            parts=minibatches,
        )
        state = TrainState.start(model, optimizer).replace(step=jnp.int32(3))
        update, forbidden = program(optimizer, minibatches, correction), jnp.asarray(tiny_processor.forbidden_mask)
        # Adam of optax raises a float to an integer's power.
        with jax.numpy_dtype_promotion("strict" if optimizer is SGD else "standard"):
            output = update(state, batch, packing, forbidden)
        assert int(output.state.step) == 4
        metrics = {name: float(value) for name, value in output.metrics.items()}
        return jax.device_get(models.params_to_dict(output.state.params)), metrics, output.state.opt_state

    return run


@pytest.fixture(scope="module")
def whole(run, batch):
    """One minibatch in one stream."""
    return run(batch)


def largest_difference(ours: dict[str, np.ndarray], theirs: dict[str, np.ndarray]) -> float:
    """The largest difference of any parameter."""
    return max(float(np.abs(ours[name] - theirs[name]).max()) for name in theirs)


@pytest.mark.slow
def test_micro_batches_change_nothing(run, batch, whole, tiny_model):
    """Catches denominators of a micro-batch in place of the minibatch's, and a piece that is left out."""
    pieces = run(batch, stream_len=48)
    assert largest_difference(whole[0], jax.device_get(models.params_to_dict(tiny_model))) > 1e-3
    assert largest_difference(pieces[0], whole[0]) <= 1e-6
    for name in ("loss", "policy_loss", "kl_loss", "grad_norm"):
        assert pieces[1][name] == pytest.approx(whole[1][name], rel=1e-5), name


@pytest.mark.slow
def test_importance_weights_of_rows_in_streams(run, batch):
    """Catches a row's ratio over a part of it, another row's sampler, and a metric that is lost or divided wrongly."""
    correction = Correction(1.05, "geometric", "sequence", 0.5, 2.0, False)
    noise = np.random.default_rng(7).normal(0, 0.4, batch.logprobs_old.shape).astype(np.float32)
    batch = batch.replace(logprobs_sampler=batch.logprobs_old + noise)
    metrics = run(batch, stream_len=48, correction=correction)[1]
    counted = np.asarray(batch.sampled_mask & batch.row_mask[..., None])
    log_products = np.where(counted, -noise, 0.0).sum(-1)
    kept = counted & (np.abs(log_products) <= np.log(2.0))[..., None]
    means = np.exp(log_products / np.maximum(counted.sum(-1), 1))[..., None]
    assert metrics["tis/masked"] == pytest.approx(1 - kept.sum() / counted.sum(), rel=1e-5)
    assert metrics["tis/truncated"] == pytest.approx((kept & (means > 1.05)).sum() / counted.sum(), rel=1e-5)
    assert metrics["tis/weight"] == pytest.approx((np.minimum(means, 1.05) * kept).sum() / kept.sum(), rel=1e-5)
    assert min(metrics["tis/masked"], metrics["tis/truncated"]) > 0


@pytest.mark.slow
def test_each_minibatch_is_an_update(run, batch, tiny_model):
    """Catches minibatches whose gradients are added up, and a step that keeps only the last one's update."""
    once, _, opt_state = run(batch, minibatches=2)
    assert int(opt_state[1].count) == 2
    model = tiny_model
    for piece in range(2):
        part = jax.tree.map(lambda x, i=piece: x[i::2], batch)
        model = models.params_from_dict(model.config, run(part, model=model)[0])
    assert largest_difference(jax.device_get(models.params_to_dict(model)), once) <= 1e-6


def test_forced_tokens_have_no_gradient(run, batch, whole):
    """Catches a loss on tokens that were forced: their weights and old log-probs may be anything."""
    forced = ~batch.sampled_mask & (jnp.arange(R)[None, None] < batch.response_len[..., None])
    assert forced.sum() == 3
    changed = batch.replace(
        token_weights=jnp.where(forced, 100.0, batch.token_weights),
        logprobs_old=jnp.where(forced, -5.0, batch.logprobs_old),
        logprobs_ref=jnp.where(forced, 7.0, batch.logprobs_ref),
    )
    assert largest_difference(run(changed)[0], whole[0]) == 0
    sampled = batch.replace(sampled_mask=batch.sampled_mask | forced)
    assert largest_difference(run(sampled)[0], whole[0]) > 1e-5


def test_rows_that_do_not_count_change_nothing(run, batch, whole):
    """Catches an unused slot in a denominator or a sum."""
    unused = ~batch.row_mask[..., None]
    changed = batch.replace(
        token_ids=jnp.where(unused, 99, batch.token_ids),
        sampled_mask=batch.sampled_mask | unused,
        token_weights=jnp.where(unused, 3.0, batch.token_weights),
        advantages=jnp.where(unused[..., 0], 50.0, batch.advantages),
    )
    assert largest_difference(run(changed)[0], whole[0]) == 0


def test_a_frozen_tower_stays(run, batch, tiny_model):
    """Catches weight decay or a gradient that moves a frozen tower, and a freeze that takes the decoder along."""
    c = config.base()
    c.optimizer.lr = 1e-3
    before = jax.device_get(models.params_to_dict(tiny_model))
    config_of_frozen = dataclasses.replace(tiny_model.config, freeze=("vision", "merger"))
    frozen = models.params_from_dict(config_of_frozen, jax.device_put(before))
    after = run(batch, optimizer=make_optimizer(c), model=frozen)[0]
    for name, value in before.items():
        assert np.array_equal(after[name], value) == name.startswith("visual."), name


def test_pinned_step(whole):
    """Catches any change of loss or model that was not meant."""
    metrics = whole[1]
    assert (metrics["loss"], metrics["grad_norm"]) == pytest.approx(PINNED, rel=1e-4)
