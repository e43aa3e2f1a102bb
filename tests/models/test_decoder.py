"""The scan over layers of several kinds: order, numbers and places of layers, and what is kept of them."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from care_jax import models
from care_jax.models import decoder
from tests import weights
from tests.families import make_folder
from tests.oracle import layer_of

PERIODS = {
    "one kind": ("full_attention",),
    "Qwen3.5": ("linear_attention", "linear_attention", "linear_attention", "full_attention"),
    "kinds that come back": (*["linear_attention"] * 2, "full_attention", "linear_attention", "full_attention"),
}


@pytest.mark.parametrize("unroll_runs", [False, True])
@pytest.mark.parametrize("name", PERIODS)
def test_layers_take_turns(name, unroll_runs, tiny_folder, tmp_path):
    """Catches a period that starts anew at the wrong layer, and memory that is kept in another layer's place."""
    period = PERIODS[name]
    config = models.load_model_config(make_folder("qwen3_5", tiny_folder, tmp_path / "model"))
    num_layers = 2 * len(period)
    text = dataclasses.replace(config.text, period=period, num_hidden_layers=num_layers)
    model = weights.initial_model(dataclasses.replace(config, text=text))
    marks = [float(jnp.abs(layer_of(model, i).mlp.up_proj.kernel[...]).sum()) for i in range(num_layers)]

    def step(seen, layer, number, place):
        mark = jnp.abs(layer.mlp.up_proj.kernel[...]).sum()
        kept = jnp.stack([mark, number.astype(jnp.float32), place.astype(jnp.float32)])
        return jax.lax.dynamic_update_index_in_dim(seen, kept[0], number, axis=0), kept

    run = jax.jit(lambda layers: decoder._scan(layers, step, jnp.zeros(num_layers), unroll_runs=unroll_runs))
    seen, kept = run(model.layers)
    np.testing.assert_allclose(seen, marks, rtol=1e-5)
    assert len({round(mark, 3) for mark in marks}) == num_layers
    for kind, of_kind in kept.items():
        numbers = text.layers_of(kind)
        assert of_kind[:, 1].tolist() == list(numbers), kind
        assert of_kind[:, 2].tolist() == list(range(len(numbers))), kind
        np.testing.assert_allclose(of_kind[:, 0], [marks[i] for i in numbers], rtol=1e-5)
