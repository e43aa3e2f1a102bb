"""The policy loss: the slow reference and its finite differences, and the laws of the method."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from care_jax.method import advantage, objectives
from care_jax.method.loss import Denominators, count_denominators, policy_loss
from care_jax.method.objectives import Objective
from care_jax.method.subgroup import select_subgroup
from care_jax.method.token_weights import token_weights
from care_jax.structs import Outcome, Prompts, TrainBatch, zeros
from tests import reference
from tests.presets import record

# The loss of care is that of grpo, with other weights and rows.
PRESETS = ("grpo", "dapo", "gspo", "dr_grpo")
OTHERS: dict[str, dict[str, Any]] = {
    "gspo_token": {"ratio": "sequence_token", "clip_low": 3e-4, "clip_high": 4e-4},
    "cispo": {"surrogate": "cispo", "clip_low": 1.0, "clip_high": 0.2, "aggregate": "token"},
    "sapo": {"surrogate": "sapo", "sapo_tau_neg": 1.5},
}
LOSSES = (*PRESETS, *OTHERS)
SHAPE = (8, 5, 7)


def preset(name: str) -> Objective:
    """The record of a preset, or of GRPO with another ratio or surrogate."""
    if name in OTHERS:
        return record(objectives.grpo, **OTHERS[name])
    return record({p: getattr(objectives, p) for p in PRESETS}[name])


def make_batch(seed: int = 0, shape: tuple[int, int, int] = SHAPE, spread: float = 0.3) -> tuple[jax.Array, TrainBatch]:
    """New log-probs and a batch with forced tokens, a row without sampled tokens, and rows that do not count."""
    rng = np.random.default_rng(seed)
    old = -rng.exponential(1.0, shape)
    response_len = rng.integers(1, shape[2] + 1, shape[:2])
    sampled = np.arange(shape[2]) < response_len[..., None]
    sampled[0, 0, :2] = False
    sampled[0, min(1, shape[1] - 1)] = False
    row_mask = rng.random(shape[:2]) < 0.8
    row_mask[0] = True
    weights = rng.choice([0.0, 0.005, 1.0], shape) * sampled
    floats = (old, old + rng.normal(0, spread, shape), rng.normal(0, 1, shape[:2]), weights)
    old, ref, advantages, weights = (jnp.asarray(x, jnp.float32) for x in floats)
    batch = TrainBatch(
        prompts=zeros(Prompts, B=shape[0], P=1, I=0, F=0, X=0),
        token_ids=jnp.zeros(shape, jnp.int32),
        response_len=jnp.asarray(response_len, jnp.int32),
        sampled_mask=jnp.asarray(sampled),
        logprobs_old=old,
        logprobs_ref=ref,
        advantages=advantages,
        token_weights=weights,
        row_mask=jnp.asarray(row_mask),
    )
    return old + jnp.asarray(rng.normal(0, spread, shape), jnp.float32), batch


@functools.cache
def jitted(objective: Objective) -> Callable:
    """(logprobs, batch, denominators) -> ((loss, aux), gradient), compiled once an objective and shape."""

    def run(logprobs: jax.Array, batch: TrainBatch, denominators: Denominators):
        output = policy_loss(logprobs, batch, objective=objective, denominators=denominators)
        return output.loss, output.aux

    return jax.jit(jax.value_and_grad(run, has_aux=True))


def evaluate(logprobs: jax.Array, batch: TrainBatch, objective: Objective):
    """Loss, aux and gradient of a whole minibatch."""
    run = jitted(objective)
    (loss, aux), grad = run(logprobs, batch, count_denominators(batch))
    return np.asarray(loss), aux, np.asarray(grad)


def reference_loss(
    logprobs: np.ndarray, batch: TrainBatch, objective: Objective, fixed: np.ndarray | None = None
) -> float:
    """The slow reference's loss of the same rows; `fixed`: the log-probs behind a stop-gradient, the same if None."""
    fields = ("logprobs_old", "logprobs_ref", "sampled_mask", "token_weights")
    values = (logprobs, *(getattr(batch, f) for f in fields), logprobs if fixed is None else fixed)
    *rows, fixed = [np.asarray(x).reshape(-1, x.shape[-1]) for x in values]
    of_rows = np.ravel(batch.advantages), np.ravel(batch.row_mask)
    return reference.policy_loss(*rows, *of_rows, objective, logprobs_fixed=fixed)


@pytest.mark.parametrize(
    ("ratio", "surrogate", "aggregate"),
    [
        *itertools.product(["token", "sequence"], ["clip"], ["sequence", "token", "constant"]),
        *itertools.product(["token", "sequence", "sequence_token"], ["cispo", "sapo"], ["sequence"]),
        ("sequence_token", "clip", "sequence"),
    ],
)
def test_value_and_gradient_equal_the_reference(ratio: str, surrogate: str, aggregate: str) -> None:
    """Catches a wrong denominator, clip side, KL direction or weight, and a gradient that is not the value's.

    Also a stop-gradient that is missing, or hides more than the ratio's value.
    """
    changes: dict[str, Any] = {"ratio": ratio, "surrogate": surrogate, "aggregate": aggregate}
    taus = {"sapo_tau_pos": 0.8, "sapo_tau_neg": 1.6}
    objective = record(objectives.grpo, **changes, **taus, clip_low=0.15, clip_high=0.28, kl_coef=0.3)
    logprobs, batch = make_batch(shape=(3, 4, 5))
    loss, _, grad = evaluate(logprobs, batch, objective)
    exact = np.asarray(logprobs, np.float64)
    np.testing.assert_allclose(loss, reference_loss(exact, batch, objective), rtol=1e-6, atol=1e-6)
    step = 1e-6
    for place in np.ndindex(*exact.shape):
        up, down = exact.copy(), exact.copy()
        up[place] += step
        down[place] -= step
        ahead, behind = (reference_loss(moved, batch, objective, exact) for moved in (up, down))
        slope = (ahead - behind) / (2 * step)
        np.testing.assert_allclose(grad[place], slope, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", LOSSES)
def test_every_preset_equals_the_reference(name: str) -> None:
    """Catches a preset whose fields the loss does not read."""
    for field in ("ratio", "clip_low", "clip_high", "aggregate", "kl_coef"):
        assert objectives.care()[field] == objectives.grpo()[field]
    for seed in range(5):
        logprobs, batch = make_batch(seed)
        loss, _, _ = evaluate(logprobs, batch, preset(name))
        np.testing.assert_allclose(loss, reference_loss(logprobs, batch, preset(name)), rtol=1e-6, atol=1e-6)


def one_row(logprobs: list[float], old: list[float], advantage_of_row: float) -> tuple[jax.Array, TrainBatch]:
    """New log-probs and a batch of one row whose tokens all count."""
    _, batch = make_batch(shape=(1, 1, len(old)))
    rows = jnp.array([[old]])
    batch = batch.replace(
        sampled_mask=jnp.ones_like(rows, bool),
        logprobs_old=rows,
        logprobs_ref=rows,
        token_weights=jnp.ones_like(rows),
        advantages=jnp.array([[advantage_of_row]]),
        row_mask=jnp.array([[True]]),
    )
    return jnp.array([[logprobs]]), batch


def test_clipping_by_hand() -> None:
    """Catches a clip that is min in place of max for negative advantages, and a wrong clipped count."""
    objective = record(objectives.dapo)
    log = np.log
    new, batch = one_row([log(1.5), log(1.1), log(0.5)], [0.0, 0.0, 0.0], 2.0)
    loss, aux, _ = evaluate(new, batch, objective)
    np.testing.assert_allclose(loss, -2 * (1.28 + 1.1 + 0.5) / 3, rtol=1e-6)
    assert float(aux["clipped_tokens"]) == 1.0
    new, batch = one_row([log(1.5), log(1.1), log(0.5)], [0.0, 0.0, 0.0], -2.0)
    loss, aux, _ = evaluate(new, batch, objective)
    np.testing.assert_allclose(loss, 2 * (1.5 + 1.1 + 0.8) / 3, rtol=1e-6)
    assert float(aux["clipped_tokens"]) == 1.0
    assert float(aux["log_ratio_sum"]) == pytest.approx(log(1.5 * 1.1 * 0.5))


def test_surrogates_by_hand() -> None:
    """Catches a token that cispo cuts off, a gate of the wrong sign or slope, and a count of what is not clipped."""
    log, ratios = np.log, np.array([1.5, 1.1, 0.5])
    new, batch = one_row(log(ratios).tolist(), [0.0, 0.0, 0.0], 2.0)
    cispo = record(objectives.grpo, surrogate="cispo", clip_low=1.0, clip_high=0.2, kl_coef=0.0)
    loss, aux, grad = evaluate(new, batch, cispo)
    np.testing.assert_allclose(grad[0, 0], -2 / 3 * np.array([1.2, 1.1, 0.5]), rtol=1e-5)
    np.testing.assert_allclose(loss, -2 / 3 * (np.array([1.2, 1.1, 0.5]) @ log(ratios)), rtol=1e-5)
    assert float(aux["clipped_tokens"]) == 1.0
    for advantage_of_row, tau in ((2.0, 1.0), (-2.0, 3.0)):
        new, batch = one_row(log([1.0, 1.5]).tolist(), [0.0, 0.0], advantage_of_row)
        sapo = record(objectives.grpo, surrogate="sapo", sapo_tau_pos=1.0, sapo_tau_neg=3.0, kl_coef=0.0)
        loss, aux, grad = evaluate(new, batch, sapo)
        gates = 1 / (1 + np.exp(-tau * np.array([0.0, 0.5])))
        np.testing.assert_allclose(loss, -advantage_of_row / 2 * (4 / tau * gates).sum(), rtol=1e-6)
        slopes = 4 * gates * (1 - gates) * [1.0, 1.5]  # 1 where the policy has not moved, as of PPO
        np.testing.assert_allclose(grad[0, 0], -advantage_of_row / 2 * slopes, rtol=1e-5)
        assert float(aux["clipped_tokens"]) == 0.0


def test_only_gspo_token_sees_token_weights() -> None:
    """Catches a ratio of a sequence that gives a token without weight a gradient although GSPO-token was asked for."""
    new, batch = one_row(np.log([1.5, 1.2, 0.8]).tolist(), [0.0, 0.0, 0.0], 1.0)
    wide = {"clip_low": 0.9, "clip_high": 9.0, "kl_coef": 0.0}
    gspo, gspo_token = (record(objectives.gspo, ratio=ratio, **wide) for ratio in ("sequence", "sequence_token"))
    of_row = (1.5 * 1.2 * 0.8) ** (1 / 3)
    for weights, expected in (([1.0, 1.0, 1.0], [1 / 3] * 3), ([1.0, 0.0, 3.0], [0.25, 0, 0.75])):
        weighed = batch.replace(token_weights=jnp.array([[weights]]))
        loss, _, grad = evaluate(new, weighed, gspo)
        np.testing.assert_allclose(loss, -of_row, rtol=1e-5)
        np.testing.assert_allclose(grad[0, 0], -of_row * np.full(3, 1 / 3), rtol=1e-5)
        loss, _, grad = evaluate(new, weighed, gspo_token)
        np.testing.assert_allclose(loss, -of_row, rtol=1e-5)
        np.testing.assert_allclose(grad[0, 0], -of_row * np.array(expected), rtol=1e-5)


def test_kl_by_hand() -> None:
    """Catches k1 or k2 in place of k3, the reversed direction, and region weights on the KL."""
    objective = Objective()
    new, batch = one_row([np.log(0.5), np.log(0.25)], [np.log(0.5), np.log(0.25)], 0.0)
    batch = batch.replace(logprobs_ref=jnp.log(jnp.array([[[0.25, 0.25]]])), token_weights=jnp.array([[[0.0, 1.0]]]))
    loss, aux, _ = evaluate(new, batch, objective)
    k3 = 0.5 + np.log(2) - 1  # of the first token; the second agrees with the reference
    np.testing.assert_allclose(aux["kl_sum"], k3, rtol=1e-6)
    np.testing.assert_allclose(loss, 1e-2 * k3 / 2, rtol=1e-5)


def pipeline(objective: Objective, arrays: dict[str, jax.Array], batch: TrainBatch):
    """Selection, advantages, weights, loss and gradient, as the training loop strings them together."""
    correct, think = arrays["correct"], arrays["think"]
    chosen = select_subgroup(
        correct=correct,
        think_len=think.sum(axis=2, dtype=jnp.int32),
        answer_len=(~think).sum(axis=2, dtype=jnp.int32),
        response_len=batch.response_len,
        logprobs_old=batch.logprobs_old,
        sampled_mask=batch.sampled_mask,
        think_states=arrays["states"],
        key=None,
        objective=objective,
    )
    advantages = advantage.subgroup_advantages(
        rewards=arrays["rewards"],
        correct=correct,
        reflected=jnp.zeros_like(correct),
        subgroup=chosen,
        objective=objective,
    )
    weights = token_weights(
        think_mask=think, answer_mask=~think, sampled_mask=batch.sampled_mask, correct=correct, objective=objective
    )
    batch = batch.replace(advantages=advantages.final, token_weights=weights, row_mask=chosen.valid)
    (loss, _), grad = jitted(objective)(arrays["logprobs"], batch, count_denominators(batch))
    return loss, grad


def test_care_with_every_part_off_is_grpo_bit_for_bit() -> None:
    """Catches a scale, an equaliser or a region weight that leaks into the group objective."""
    parts = {"anchored": False, "rescue__enabled": False, "region__enabled": False, "reflect__enabled": False}
    # Knobs of parts that are off must not matter.
    scales = {"negative_scale": 0.9, "reflected_scale": 0.9, "equalise": False, "rescue__scale": "delta"}
    off = record(objectives.care, **parts, **scales, selector="nearest", region__format_weight=0.7)
    ours, expected = (jax.jit(functools.partial(pipeline, objective)) for objective in (off, Objective()))
    for seed in range(3):
        rng = np.random.default_rng(seed)
        logprobs, batch = make_batch(seed)
        correct = rng.random(SHAPE[:2]) < np.linspace(0, 1, SHAPE[0])[:, None]
        rewards = np.where(correct, 1.0, 0.1).astype(np.float32)
        states = rng.standard_normal((*SHAPE[:2], 8)).astype(np.float32)
        arrays = {"logprobs": logprobs, "correct": correct, "rewards": rewards, "states": states}
        arrays = jax.tree.map(jnp.asarray, arrays | {"think": rng.random(SHAPE) < 0.5})
        loss, grad = map(np.asarray, ours(arrays, batch))
        expected_loss, expected_grad = map(np.asarray, expected(arrays, batch))
        assert loss.tobytes() == expected_loss.tobytes()
        assert grad.tobytes() == expected_grad.tobytes()
        assert np.abs(grad).max() > 1e-4
        by_hand = batch.replace(
            advantages=np.array([reference.z_score(row, True) for row in rewards]),
            token_weights=np.asarray(batch.sampled_mask, np.float64),
            row_mask=np.ones(SHAPE[:2], bool),
        )
        np.testing.assert_allclose(loss, reference_loss(logprobs, by_hand, objectives.grpo()), rtol=1e-5, atol=1e-6)


def test_gspo_on_responses_of_one_token_is_grpo_with_its_clip() -> None:
    """Catches a sequence ratio whose length normalisation is off by one or by a padding token."""
    logprobs, batch = make_batch(1, (8, 4, 6), spread=1e-3)
    batch = batch.replace(
        sampled_mask=jnp.arange(6)[None, None] == jnp.full((8, 4, 1), 2), token_weights=jnp.ones((8, 4, 6))
    )
    grpo = Objective(clip_low=3e-4, clip_high=4e-4, kl_coef=0.0)
    loss, _, grad = evaluate(logprobs, batch, preset("gspo"))
    expected_loss, _, expected_grad = evaluate(logprobs, batch, grpo)
    np.testing.assert_allclose(loss, expected_loss, rtol=1e-6)
    np.testing.assert_allclose(grad, expected_grad, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("name", LOSSES)
def test_eight_microbatches_give_the_gradient_of_one(name: str) -> None:
    """Catches a denominator taken from the micro-batch: here the pieces have different numbers of rows and tokens."""
    logprobs, batch = make_batch(3)
    counts = count_denominators(batch)
    loss, whole, grad = evaluate(logprobs, batch, preset(name))
    total, grads, sums = 0.0, [], []
    for i in range(SHAPE[0]):
        piece = jax.tree.map(lambda x, i=i: x[i : i + 1], batch)
        (part, aux), part_grad = jitted(preset(name))(logprobs[i : i + 1], piece, counts)
        total += float(part)
        grads.append(part_grad)
        sums.append(aux)
    np.testing.assert_allclose(total, loss, rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(np.concatenate(grads), grad, rtol=1e-6, atol=1e-6)
    for key, value in whole.items():
        np.testing.assert_allclose(sum(float(aux[key]) for aux in sums), value, rtol=1e-5, atol=1e-6, err_msg=key)
    assert (whole["num_rows"], whole["num_tokens"]) == (counts.num_rows, counts.num_tokens)


@pytest.mark.parametrize("name", LOSSES)
def test_masked_places_have_no_gradient_whatever_they_hold(name: str) -> None:
    """Catches forced, padded or uncounted tokens that enter the loss, and nan that leaks through a where."""
    logprobs, batch = make_batch(4)
    counted = np.asarray(batch.sampled_mask & batch.row_mask[..., None])
    expected_loss, _, expected_grad = evaluate(logprobs, batch, preset(name))
    for poison in (jnp.nan, jnp.inf, -jnp.inf):
        dirty = {
            f: jnp.where(counted, getattr(batch, f), poison) for f in ("logprobs_old", "logprobs_ref", "token_weights")
        }
        advantages = jnp.where(batch.row_mask, batch.advantages, poison)
        loss, _, grad = evaluate(
            jnp.where(counted, logprobs, poison), batch.replace(**dirty, advantages=advantages), preset(name)
        )
        assert (grad[~counted] == 0).all()
        assert loss.tobytes() == expected_loss.tobytes()
        assert grad.tobytes() == expected_grad.tobytes()
    assert np.abs(grad[counted]).max() > 0


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("empty", ["sampled_mask", "row_mask", "token_weights"])
def test_empty_masks_give_finite_gradients(name: str, empty: str) -> None:
    """Catches 0 / 0 in a batch where nothing was sampled, selected or weighted."""
    logprobs, batch = make_batch(5)
    batch = batch.replace(**{empty: jnp.zeros_like(getattr(batch, empty))})
    loss, _, grad = evaluate(logprobs, batch, preset(name))
    assert np.isfinite(loss)
    assert np.isfinite(grad).all()
    if empty != "token_weights" or preset(name).kl_coef == 0:
        assert float(loss) == 0.0
        assert not grad.any()


@pytest.mark.parametrize("surrogate", ["clip", "cispo", "sapo"])
@pytest.mark.parametrize("ratio", ["token", "sequence", "sequence_token"])
def test_exploded_ratios_stay_finite(ratio: str, surrogate: str) -> None:
    """Catches inf * 0 in the gradient of a clipped ratio, and a row without tokens in the sequence ratio."""
    objective = record(objectives.grpo, ratio=ratio, surrogate=surrogate)
    logprobs, batch = make_batch(6)
    for shift in (-300.0, 300.0):
        loss, _, grad = evaluate(logprobs + shift, batch, objective)
        assert np.isfinite(loss)
        assert np.isfinite(grad).all()


def test_denominators_by_hand() -> None:
    """Catches tokens of rows that are not updated, and forced tokens, in the token mean."""
    _, batch = make_batch(shape=(2, 2, 3))
    sampled = jnp.array([[[1, 1, 0], [0, 0, 1]], [[1, 1, 1], [0, 0, 0]]], dtype=bool)
    batch = batch.replace(sampled_mask=sampled, row_mask=jnp.array([[True, True], [False, True]]))
    counts = count_denominators(batch)
    assert (float(counts.num_rows), float(counts.num_tokens)) == (3.0, 3.0)


def test_outcome_values_agree_with_the_reference() -> None:
    """Catches a renumbered enum, on which events and the reference rely."""
    assert [Outcome.ALL_WRONG, Outcome.MIXED, Outcome.ALL_CORRECT] == [
        reference.ALL_WRONG, reference.MIXED, reference.ALL_CORRECT,
    ]  # fmt: skip
