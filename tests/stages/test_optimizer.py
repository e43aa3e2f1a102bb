"""The optimizer by hand: the schedule, the clip, and which parameters decay."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import pytest

from care_jax import config, models
from care_jax.stages.optimizer import learning_rate, make_optimizer
from care_jax.stages.train_state import TrainState
from tests import weights
from tests.families import make_folder


def settings(**optimizer) -> ml_collections.ConfigDict:
    """5 steps of 2 updates: 2 of warm-up and 8 after it, at a peak of 1."""
    c = config.base()
    c.train.steps, c.train.minibatches = 5, 2
    c.optimizer.update({"lr": 1.0, "warmup_steps": 2, **optimizer})
    return c


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        ("constant", [0, 0.5, 1, 1, 1, 1, 1]),
        ("linear", [0, 0.5, 1, 0.6, 0.2, 0.2, 0.2]),
        ("cosine", [0, 0.5, 1, 0.6, 0.2, 0.2, 0.2]),
    ],
)
def test_schedules(schedule, expected):
    """Catches a decay over steps in place of updates, or one that begins within the warm-up."""
    rate = learning_rate(settings(schedule=schedule, final_lr_ratio=0.2))
    assert [float(rate(update)) for update in (0, 1, 2, 6, 10, 11, 1000)] == pytest.approx(expected, abs=1e-6)


def test_cosine_is_one():
    """Catches a linear decay under the cosine's name: a quarter of the way it is at (1 + cos 45 deg) / 2."""
    rate = learning_rate(settings(schedule="cosine"))
    assert float(rate(4)) == pytest.approx(0.853553, abs=1e-5)


def test_no_warm_up_starts_at_the_peak():
    """Catches a first update of size 0."""
    assert float(learning_rate(settings(warmup_steps=0))(0)) == 1


def first_update(c: ml_collections.ConfigDict, model: models.QwenVL) -> dict[str, np.ndarray]:
    """The update that gradients of 1 give."""
    optimizer = make_optimizer(c)
    gradients = jax.tree.map(jnp.ones_like, model)
    with jax.numpy_dtype_promotion("standard"):  # Adam of optax raises a float to an integer's power
        updates, _ = jax.jit(optimizer.update)(gradients, optimizer.init(model), model)
    return jax.device_get(models.params_to_dict(updates))


def test_only_matrices_decay(tiny_model):
    """Catches decay on norms and biases, none on a matrix, and decay that does not scale with the learning rate."""
    c = settings(warmup_steps=0, lr=0.5, weight_decay=0.1, eps=1e-20)
    updates = first_update(c, tiny_model)
    params = jax.device_get(models.params_to_dict(tiny_model))
    decayed = set()
    for name, update in updates.items():
        expected = -0.5 - 0.05 * params[name]  # Adam's first step is the gradient's sign
        if np.allclose(update, expected, rtol=0, atol=1e-4):
            decayed.add(name)
        else:
            np.testing.assert_allclose(update, np.full_like(update, -0.5), rtol=0, atol=1e-4, err_msg=name)
    kernels = {name for name in params if name.endswith("kernel")}
    assert decayed == kernels | {"embed_tokens.weight"}
    assert len(kernels) == 7 + 8  # of a decoder layer, of the vision tower
    assert {"norm.weight", "layers.self_attn.q_proj.bias"} <= updates.keys()


@pytest.mark.slow
def test_learned_positions_do_not_decay(tiny_folder, tmp_path):
    """Catches decay of every parameter with two dimensions."""
    config = models.load_model_config(make_folder("qwen3_vl", tiny_folder, tmp_path / "model"))
    updates = first_update(settings(warmup_steps=0), weights.initial_model(config))
    assert np.ptp(updates["visual.pos_embed.weight"]) == 0
    assert np.ptp(updates["embed_tokens.weight"]) > 0


def test_gradients_are_clipped_by_their_global_norm(tiny_model):
    """Catches a clip for each array apart, and none: with eps as large as the clipped gradient Adam halves its step."""
    size = sum(value.size for value in models.params_to_dict(tiny_model).values())
    c = settings(warmup_steps=0, weight_decay=0.0, clip_norm=2.0, eps=2.0 / size**0.5)
    for update in first_update(c, tiny_model).values():
        np.testing.assert_allclose(update, np.full_like(update, -0.5), rtol=0, atol=1e-3)


def test_frozen_parts_have_no_moments(tiny_model):
    """Catches optimizer memory for weights that are not trained."""
    frozen = weights.initial_model(dataclasses.replace(tiny_model.config, freeze=("vision", "merger")))
    state = TrainState.start(frozen, make_optimizer(settings(warmup_steps=0))).opt_state
    held = sum(leaf.size for leaf in jax.tree.leaves(state))
    trained = sum(p.size for name, p in models.params_to_dict(tiny_model).items() if not name.startswith("visual."))
    assert 2 * trained <= held < 2 * trained + 10
