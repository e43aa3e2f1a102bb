"""The state before the first step: weights at random or out of a checkpoint, each part made where it lies."""

from __future__ import annotations

from typing import Any

import jax
import ml_collections
import numpy as np
import optax
from etils import epath
from jax.sharding import Mesh

from care_jax.checkpoints.load import find_params, load_params
from care_jax.models import QwenVL, abstract_model, init_model, params_from_dict, params_to_dict
from care_jax.parallel import sharding
from care_jax.stages.model import make_model_config
from care_jax.stages.train_state import TrainState, state_specs


def initial_model(config: ml_collections.ConfigDict, mesh: Mesh) -> QwenVL:
    """The model a run starts from, as the mesh divides it: random by config.seed, or from config.model.weights.

    No device and no host holds more of it than its own part.

    Raises:
        InputError: there is no finished checkpoint at config.model.weights, it is damaged, or holds another model.
    """
    model_config = make_model_config(config, mesh.devices.flat[0].platform)
    abstract = abstract_model(model_config)
    shardings: Any = sharding.named(mesh, sharding.param_specs(abstract))
    if config.model.weights == "random":
        make = jax.jit(init_model, static_argnums=0, out_shardings=shardings)
        return make(model_config, jax.random.key(config.seed))
    by_name: dict[str, Any] = params_to_dict(shardings)
    return params_from_dict(model_config, load_params(config.model.weights, by_name))


def with_weights_of(folder: epath.PathLike, config: ml_collections.ConfigDict) -> ml_collections.ConfigDict:
    """The config with the newest checkpoint under `folder` as weights. Raises InputError if there is none."""
    find_params(folder)
    config = ml_collections.ConfigDict(config)
    config.model.weights = str(folder)
    return config


def initial_state(config: ml_collections.ConfigDict, optimizer: optax.GradientTransformation, mesh: Mesh) -> TrainState:
    """Step 0: the initial model and a fresh optimizer."""
    model = initial_model(config, mesh)
    shardings = sharding.named(mesh, sharding.param_specs(jax.eval_shape(optimizer.init, model)))
    return TrainState(
        step=sharding.put(mesh, np.int32(0), sharding.WHOLE),
        params=model,
        opt_state=jax.jit(optimizer.init, out_shardings=shardings)(model),
    )


def abstract_state(config: ml_collections.ConfigDict, optimizer: optax.GradientTransformation, mesh: Mesh) -> Any:
    """The shapes and shardings of `initial_state`; costs nothing at any size."""

    def make(model: QwenVL) -> TrainState:
        return TrainState(step=jax.numpy.int32(0), params=model, opt_state=optimizer.init(model))

    state = jax.eval_shape(make, abstract_model(make_model_config(config, mesh.devices.flat[0].platform)))
    return sharding.place(mesh, state, state_specs(state))
