"""Importance weights of the sampler: the slow reference with its finite differences, and the laws of the method."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from care_jax import config
from care_jax.method import objectives
from care_jax.method.importance import Correction, importance
from care_jax.method.loss import count_denominators, policy_loss
from care_jax.method.objectives import Objective
from care_jax.structs import TrainBatch
from tests import reference
from tests.method.test_loss import make_batch
from tests.presets import record

# Tokens of `drifting` differ by 0.4 nats; rows of four by 0.8, their means by 0.2. So each cap and bound cuts some.
CORRECTIONS = {
    "tokens weighed, rows masked": ("token", "sequence", 1.3, 0.5, 2.0),
    "rows weighed, tokens masked": ("sequence", "token", 1.5, 0.6, 1.6),
    "means weighed and masked": ("geometric", "geometric", 1.05, 0.8, 1.2),
    "weighed alone": ("token", "token", 1.2, 0.0, 0.0),
    "masked alone": ("token", "sequence", 0.0, 0.0, 1.4),
}


def make_correction(name: str, *, old_is_sampler: bool = False) -> Correction:
    """One of CORRECTIONS."""
    tis_level, mask_level, tis_cap, low, high = CORRECTIONS[name]
    return Correction(tis_cap, tis_level, mask_level, low, high, old_is_sampler)


def drifting(seed: int = 0, shape: tuple[int, int, int] = (3, 4, 5)) -> tuple[jax.Array, TrainBatch]:
    """The batch of `make_batch` with a sampler at some distance from the old policy."""
    logprobs, batch = make_batch(seed, shape)
    noise = np.random.default_rng(seed + 100).normal(0, 0.4, shape)
    return logprobs, batch.replace(logprobs_sampler=batch.logprobs_old + jnp.asarray(noise, jnp.float32))


def as_of_sampler(batch: TrainBatch) -> TrainBatch:
    """The batch with the sampler's log-probs as its old ones."""
    return batch.replace(logprobs_old=batch.logprobs_sampler)


@functools.cache
def jitted(objective: Objective, correction: Correction | None) -> Callable:
    """(logprobs, batch, denominators) -> ((loss, aux), gradient)."""

    def run(logprobs, batch, denominators):
        output = policy_loss(logprobs, batch, objective=objective, denominators=denominators, correction=correction)
        return output.loss, output.aux

    return jax.jit(jax.value_and_grad(run, has_aux=True))


def evaluate(logprobs: jax.Array, batch: TrainBatch, objective: Objective, correction: Correction | None):
    """Loss, aux and gradient of a whole minibatch."""
    (loss, aux), grad = jitted(objective, correction)(logprobs, batch, count_denominators(batch))
    return np.asarray(loss), aux, np.asarray(grad)


@pytest.mark.parametrize(
    ("name", "aggregate", "ratio"),
    [
        ("tokens weighed, rows masked", "sequence", "token"),
        ("rows weighed, tokens masked", "token", "token"),
        ("means weighed and masked", "constant", "sequence"),
        ("masked alone", "sequence", "sequence"),
    ],
)
@pytest.mark.parametrize("old_is_sampler", [False, True])
def test_value_and_gradient_equal_the_reference(name, aggregate, ratio, old_is_sampler):
    """Catches a wrong level, bound or policy in a weight, a gradient through it, and a denominator that shrinks."""
    objective = record(objectives.grpo, aggregate=aggregate, ratio=ratio, kl_coef=0.3)
    correction = make_correction(name, old_is_sampler=old_is_sampler)
    logprobs, batch = drifting()
    batch = as_of_sampler(batch) if old_is_sampler else batch
    loss, aux, grad = evaluate(logprobs, batch, objective, correction)
    assert aux["masked_tokens"] > 0
    assert aux["kept_tokens"] > 0
    assert (aux["truncated_tokens"] > 0) == (correction.tis_cap > 0)

    exact = np.asarray(logprobs, np.float64)
    # Without a pass, the policy under update stands in for the old one, as it is before it moves.
    proximal = exact if old_is_sampler else batch.logprobs_old
    old = exact if old_is_sampler and correction.tis_cap else batch.logprobs_old
    fields = (old, batch.logprobs_ref, batch.sampled_mask, batch.token_weights)

    def by_hand(moved: np.ndarray) -> float:
        rows = [np.asarray(x).reshape(-1, x.shape[-1]) for x in (moved, *fields, batch.logprobs_sampler, proximal)]
        return reference.policy_loss(
            *rows[:5], np.ravel(batch.advantages), np.ravel(batch.row_mask), objective, correction, *rows[5:]
        )

    np.testing.assert_allclose(loss, by_hand(exact), rtol=1e-6, atol=1e-6)
    step = 1e-6
    for place in np.ndindex(*exact.shape):
        up, down = exact.copy(), exact.copy()
        up[place] += step
        down[place] -= step
        np.testing.assert_allclose(grad[place], (by_hand(up) - by_hand(down)) / (2 * step), rtol=1e-5, atol=1e-6)


def test_weights_by_hand():
    """Catches a product where a mean belongs, bounds that are exclusive or swapped, and forced tokens that count."""
    ratios = jnp.array([[[3.0, 1.0, 0.5, 7.0], [1.0, 0.2, 1.0, 7.0], [7.0, 7.0, 7.0, 7.0]]])
    sampled = jnp.array([[[1, 1, 1, 0], [1, 1, 1, 0], [0, 0, 0, 0]]], bool)
    log_ratio = jnp.where(sampled, jnp.log(ratios), 0.0)

    def weights(*args):
        made = importance(log_ratio, sampled, Correction(*args, False))
        np.testing.assert_array_equal(made.kept, np.asarray(made.weights) > 0)
        return np.asarray(made.weights)[0], np.asarray(made.truncated)[0].tolist()

    none, nothing = [0.0] * 4, [False] * 4
    found, truncated = weights(2.0, "token", "token", 0.0, 0.0)
    np.testing.assert_allclose(found, [[2, 1, 0.5, 0], [1, 0.2, 1, 0], none], rtol=1e-6)
    assert truncated == [[True, False, False, False], nothing, nothing]
    found, truncated = weights(1.25, "sequence", "token", 0.0, 0.0)
    np.testing.assert_allclose(found, [[1.25] * 3 + [0], [0.2] * 3 + [0], none], rtol=1e-6)
    assert truncated == [[True] * 3 + [False], nothing, nothing]
    found, truncated = weights(2.0, "geometric", "token", 0.0, 0.0)
    np.testing.assert_allclose(found, [[1.5 ** (1 / 3)] * 3 + [0], [0.2 ** (1 / 3)] * 3 + [0], none], rtol=1e-6)
    assert truncated == [nothing] * 3
    # IcePop: the ratio itself between the bounds, 0 out of them.
    found, truncated = weights(2.0, "token", "token", 0.5, 2.0)
    np.testing.assert_allclose(found, [[0, 1, 0.5, 0], [1, 0, 1, 0], none], rtol=1e-6)
    assert truncated == [nothing] * 3
    found, truncated = weights(0.0, "token", "sequence", 0.25, 0.0)
    np.testing.assert_array_equal(found, [[1, 1, 1, 0], none, none])
    found, truncated = weights(0.0, "token", "sequence", 0.0, 1.4)
    np.testing.assert_array_equal(found, [none, [1, 1, 1, 0], none])


@pytest.mark.parametrize("name", CORRECTIONS)
@pytest.mark.parametrize("old_is_sampler", [False, True])
def test_a_sampler_that_is_the_policy_changes_no_bit(name, old_is_sampler):
    """Catches a weight of the update's own movement, and one that is not 1 where there is nothing to correct."""
    logprobs, batch = make_batch()
    logprobs = batch.logprobs_old if old_is_sampler else logprobs
    plain = evaluate(logprobs, batch, Objective(), None)
    batch = batch.replace(logprobs_sampler=batch.logprobs_old)
    ours = evaluate(logprobs, batch, Objective(), make_correction(name, old_is_sampler=old_is_sampler))
    assert ours[0].tobytes() == plain[0].tobytes()
    np.testing.assert_array_equal(ours[2], plain[2])
    assert np.abs(ours[2]).max() > 1e-3
    assert float(ours[1]["importance_sum"]) == float(ours[1]["num_tokens"]) == float(ours[1]["kept_tokens"])


@pytest.mark.parametrize("name", [name for name in CORRECTIONS if name != "masked alone"])
def test_without_a_pass_the_first_update_is_that_with_one(name):
    """Catches a ratio that is weighed twice, or clipped, where the policy itself stands in for the old one."""
    _, batch = drifting()
    with_pass = evaluate(batch.logprobs_old, batch, Objective(), make_correction(name))
    without = evaluate(
        batch.logprobs_old, as_of_sampler(batch), Objective(), make_correction(name, old_is_sampler=True)
    )
    assert with_pass[0].tobytes() == without[0].tobytes()
    np.testing.assert_array_equal(with_pass[2], without[2])
    assert float(without[1]["abs_log_ratio_sum"]) > 1.0  # the gap to the sampler is still reported


@pytest.mark.parametrize("old_is_sampler", [False, True])
def test_a_row_that_is_masked_leaves_the_others_as_they_are(old_is_sampler):
    """Catches a denominator without the masked row, a row that keeps its KL, and rows that are mixed up."""
    logprobs, batch = make_batch(1)
    logprobs = batch.logprobs_old if old_is_sampler else logprobs
    far = np.zeros(batch.row_mask.shape, bool)
    far[2, 3] = far[4, 0] = True
    batch = batch.replace(
        logprobs_sampler=batch.logprobs_old - jnp.where(far, 3.0, 0.0)[..., None],
        row_mask=batch.row_mask | far,
    )
    correction = Correction(0.0, "token", "geometric", 0.0, 2.0, old_is_sampler)
    objective = record(objectives.grpo, kl_coef=0.3)
    plain, ours = (evaluate(logprobs, batch, objective, c)[2] for c in (None, correction))
    assert np.abs(plain[far]).max() > 1e-4
    assert not ours[far].any()
    np.testing.assert_array_equal(ours[~far], plain[~far])


@pytest.mark.parametrize("name", CORRECTIONS)
@pytest.mark.parametrize("old_is_sampler", [False, True])
def test_pieces_add_up(name, old_is_sampler):
    """Catches a weight that depends on the other rows of a micro-batch."""
    correction = make_correction(name, old_is_sampler=old_is_sampler)
    logprobs, batch = drifting(2, (8, 5, 7))
    counts = count_denominators(batch)
    loss, whole, grad = evaluate(logprobs, batch, Objective(), correction)
    total, grads, sums = 0.0, [], []
    for i in range(8):
        piece = jax.tree.map(lambda x, i=i: x[i : i + 1], batch)
        (part, aux), part_grad = jitted(Objective(), correction)(logprobs[i : i + 1], piece, counts)
        total += float(part)
        grads.append(part_grad)
        sums.append(aux)
    np.testing.assert_allclose(total, loss, rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(np.concatenate(grads), grad, rtol=1e-6, atol=1e-6)
    for key, value in whole.items():
        np.testing.assert_allclose(sum(float(aux[key]) for aux in sums), value, rtol=1e-5, atol=1e-6, err_msg=key)
    assert float(whole["kept_tokens"] + whole["masked_tokens"]) == float(whole["num_tokens"])


@pytest.mark.parametrize("old_is_sampler", [False, True])
def test_forced_and_unused_places_may_hold_anything(old_is_sampler):
    """Catches a forced or padded token, or a row that does not count, in a row's product or in a metric."""
    correction = make_correction("rows weighed, tokens masked", old_is_sampler=old_is_sampler)
    logprobs, batch = drifting(4, (8, 5, 7))
    counted = np.asarray(batch.sampled_mask & batch.row_mask[..., None])
    with jax.disable_jit():  # compiled, a product with a mask may become a choice, which hides a nan
        expected = evaluate(logprobs, batch, Objective(), correction)
    for poison in (jnp.nan, jnp.inf, -jnp.inf, 3.0):
        dirty = batch.replace(logprobs_sampler=jnp.where(counted, batch.logprobs_sampler, poison))
        with jax.disable_jit():
            found = evaluate(logprobs, dirty, Objective(), correction)
        assert found[0].tobytes() == expected[0].tobytes()
        np.testing.assert_array_equal(found[2], expected[2])
        assert {k: float(v) for k, v in found[1].items()} == {k: float(v) for k, v in expected[1].items()}


@pytest.mark.parametrize("name", CORRECTIONS)
@pytest.mark.parametrize("shift", [-300.0, 300.0])
def test_exploded_ratios_stay_finite(name, shift):
    """Catches an exponential before its cap, and a mask that multiplies an infinite loss by 0."""
    logprobs, batch = drifting(6)
    batch = batch.replace(logprobs_sampler=batch.logprobs_sampler + shift)
    for old_is_sampler in (False, True):
        correction = make_correction(name, old_is_sampler=old_is_sampler)
        loss, aux, grad = evaluate(logprobs, batch, Objective(), correction)
        assert np.isfinite([loss, *map(float, aux.values())]).all()
        assert np.isfinite(grad).all()


def test_the_config_makes_the_correction():
    """Catches a correction that is on by default, and a key that is not read."""
    c = config.base()
    assert Correction.from_config(c) is None
    c.loss.tis_level = c.loss.mask_level = "geometric"
    assert Correction.from_config(c) is None
    for key, value in (("tis_cap", 3.0), ("mask_low", 0.5), ("mask_high", 2.0)):
        one = config.base()
        one.loss[key] = value
        assert dataclasses.asdict(Correction.from_config(one)) == one.loss.to_dict() | {"old_is_sampler": False}
    one.score.old_from = "sampler"
    assert Correction.from_config(one).old_is_sampler
