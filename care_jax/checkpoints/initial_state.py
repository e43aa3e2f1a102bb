"""The state before the first step: weights at random or out of a checkpoint, each part made where it lies."""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple

import jax
import ml_collections
import numpy as np
import optax
from etils import epath
from jax.sharding import Mesh

from care_jax.checkpoints.base import Base, adapters_at, base_params, find_base, require_whole_model
from care_jax.checkpoints.load import find_params, load_params, load_summed
from care_jax.errors import InputError
from care_jax.models import ModelConfig, QwenVL, abstract_model, init_model, params_from_dict, params_to_dict
from care_jax.models.trained import combine, partition, reference_part
from care_jax.parallel import sharding
from care_jax.stages.model import make_model_config
from care_jax.stages.train_state import TrainState, state_specs


class LoadedBase(NamedTuple):
    """The weights beneath adapters."""

    base: Base
    frozen: QwenVL  # the second part of trained.partition


def load_base(config: ml_collections.ConfigDict, mesh: Mesh, workdir: epath.Path | None = None) -> LoadedBase | None:
    """The weights beneath the adapters of a run, as the mesh divides them; None if there are no adapters.

    A run that resumes in `workdir` keeps those that it began with.

    Raises:
        InputError: they are gone, damaged, or not those that the adapters were made for.
    """
    base = find_base(config, workdir)
    if base is None:
        return None
    model_config = make_model_config(config, mesh.devices.flat[0].platform)
    trained, frozen = partition(abstract_model(model_config))
    by_name = params_to_dict(sharding.named(mesh, sharding.param_specs(frozen)))
    wanted = str(workdir or config.model.weights)
    folder = base_params(base, wanted)
    loaded = load_summed(folder, by_name, np.dtype(model_config.compute_dtype))
    if base.digest not in ("", loaded.digest):
        raise InputError(
            f"the weights in {folder} are not those that the adapters of {wanted} were trained on: their checksums "
            "differ; put those back"
        )
    model = params_from_dict(model_config, loaded.params | params_to_dict(trained))
    return LoadedBase(dataclasses.replace(base, params=str(folder), digest=loaded.digest), partition(model)[1])


def initial_model(config: ml_collections.ConfigDict, mesh: Mesh, loaded: LoadedBase | None = None) -> QwenVL:
    """The model a run starts from, as the mesh divides it: random by config.seed, or from config.model.weights.

    No device and no host holds more of it than its own part. `loaded`: what `load_base` gives, if that was done.

    Raises:
        InputError: there is no finished checkpoint at config.model.weights, it is damaged, or holds another model.
    """
    model_config = make_model_config(config, mesh.devices.flat[0].platform)
    if model_config.lora is not None:
        loaded = loaded or load_base(config, mesh)
        assert loaded is not None
        return combine(_initial_adapters(config, model_config, mesh), loaded.frozen)
    abstract = abstract_model(model_config)
    shardings: Any = sharding.named(mesh, sharding.param_specs(abstract))
    if config.model.weights == "random":
        make = jax.jit(init_model, static_argnums=0, out_shardings=shardings)
        return make(model_config, jax.random.key(config.seed))
    require_whole_model(config.model.weights)
    by_name: dict[str, Any] = params_to_dict(shardings)
    return params_from_dict(model_config, load_params(config.model.weights, by_name))


def _initial_adapters(config: ml_collections.ConfigDict, model_config: ModelConfig, mesh: Mesh) -> QwenVL:
    """The trained part of a model with adapters: those at config.model.weights, else fresh ones by config.seed."""

    def make(key: jax.Array) -> QwenVL:
        return partition(init_model(model_config, key))[0]

    abstract = jax.eval_shape(make, jax.random.key(0))
    shardings: Any = sharding.named(mesh, sharding.param_specs(abstract))
    folder = adapters_at(config)
    if folder is None:
        return jax.jit(make, out_shardings=shardings)(jax.random.key(config.seed))
    frozen = partition(abstract_model(model_config))[1]
    stored = load_params(folder, params_to_dict(shardings))
    return partition(params_from_dict(model_config, stored | params_to_dict(frozen)))[0]


def initial_reference(config: ml_collections.ConfigDict, mesh: Mesh) -> QwenVL:
    """The part of the reference policy that is no part of the model (trained.reference_policy).

    It is the trained part of the initial model. Fresh adapters add nothing, so with them it is empty.

    Raises:
        InputError: as `initial_model`.
    """
    model_config = make_model_config(config, mesh.devices.flat[0].platform)
    if model_config.lora is None:
        return partition(initial_model(config, mesh))[0]
    if adapters_at(config) is None:
        return reference_part(abstract_model(model_config))
    return _initial_adapters(config, model_config, mesh)


def with_weights_of(folder: epath.PathLike, config: ml_collections.ConfigDict) -> ml_collections.ConfigDict:
    """The config with the newest checkpoint under `folder` as weights. Raises InputError if there is none."""
    find_params(folder)
    config = ml_collections.ConfigDict(config)
    config.model.weights = str(folder)
    return config


def initial_state(
    config: ml_collections.ConfigDict,
    optimizer: optax.GradientTransformation,
    mesh: Mesh,
    loaded: LoadedBase | None = None,
) -> TrainState:
    """Step 0: the initial model and a fresh optimizer."""
    model = initial_model(config, mesh, loaded)
    trained = partition(model)[0]
    shardings = sharding.named(mesh, sharding.param_specs(jax.eval_shape(optimizer.init, trained)))
    return TrainState(
        step=sharding.put(mesh, np.int32(0), sharding.WHOLE),
        params=model,
        opt_state=jax.jit(optimizer.init, out_shardings=shardings)(trained),
    )


def abstract_state(
    config: ml_collections.ConfigDict,
    optimizer: optax.GradientTransformation,
    mesh: Mesh,
    loaded: LoadedBase | None = None,
) -> Any:
    """The shapes and shardings of `initial_state`; costs nothing at any size. What is loaded is there as it is."""
    model = abstract_model(make_model_config(config, mesh.devices.flat[0].platform))
    state = jax.eval_shape(lambda params: TrainState.start(params, optimizer), model)
    state = sharding.place(mesh, state, state_specs(state))
    if loaded is None:
        return state
    return dataclasses.replace(state, params=combine(partition(state.params)[0], loaded.frozen))
