"""The parts that a config names: processor, model, verifier; and the random key of a stage."""

from __future__ import annotations

import dataclasses
import functools
from pathlib import Path
from typing import Any

import jax
import ml_collections
from jax.sharding import Mesh, NamedSharding

from care_jax.checkpoints.checkpointer import load_params
from care_jax.inputs.processor import Processor, load_processor
from care_jax.models import (
    ModelConfig,
    QwenVL,
    abstract_model,
    init_model,
    load_model_config,
    params_from_dict,
    params_to_dict,
)
from care_jax.parallel import sharding
from care_jax.parallel.mesh import create_device_mesh, fit_sizes
from care_jax.rewards.judge import Verifier
from care_jax.rewards.response_format import FORMATS


def make_processor(config: ml_collections.ConfigDict) -> Processor:
    """The processor of the config's model folder."""
    data = config.data
    response_format = FORMATS[data.response_format]
    if not data.ask_for_format:
        response_format = dataclasses.replace(response_format, request="")
    return load_processor(
        Path(config.model.folder),
        response_format=response_format,
        prompt_buckets=tuple(data.prompt_buckets),
        patch_buckets=tuple(data.patch_buckets),
        max_image_tokens=data.max_image_tokens,
        min_image_tokens=data.min_image_tokens,
        overlong=data.overlong,
    )


def make_model_config(
    config: ml_collections.ConfigDict, platform: str, architecture: ModelConfig | None = None
) -> ModelConfig:
    """The architecture, without one that of the config's model folder, and how the config wants it computed on "cpu",
    "gpu" or "tpu"."""
    return dataclasses.replace(
        architecture or load_model_config(Path(config.model.folder)),
        compute_dtype=config.model.compute_dtype,
        remat=config.model.remat,
        attention="splash" if platform == "tpu" and config.model.attention == "auto" else "xla",
        freeze_vision=config.model.freeze_vision,
        scan_decoding=platform != "cpu",
    )


def make_model(config: ml_collections.ConfigDict, mesh: Mesh) -> QwenVL:
    """The model a run starts from, as the mesh divides it: random by config.seed, or from config.model.weights.

    No device and no host holds more of it than its own part.
    """
    model_config = make_model_config(config, mesh.devices.flat[0].platform)
    abstract = abstract_model(model_config)
    shardings: Any = sharding.named(mesh, sharding.param_specs(abstract))
    if config.model.weights == "random":
        make = jax.jit(init_model, static_argnums=0, out_shardings=shardings)
        return make(model_config, jax.random.key(config.seed))
    by_name: dict[str, Any] = params_to_dict(shardings)
    return params_from_dict(model_config, load_params(config.model.weights, by_name))


def make_mesh(config: ml_collections.ConfigDict, *, training: bool) -> Mesh:
    """The mesh of config.mesh over all devices.

    Raises:
        ValueError: one line on a factorisation that does not work for this model and these batches; those of the
            training where there is any.
    """
    devices = jax.devices()
    model_config = make_model_config(config, devices[0].platform)
    return create_device_mesh(mesh_sizes(config, model_config, len(devices), training=training), devices)


def mesh_sizes(
    config: ml_collections.ConfigDict, model: ModelConfig, num_devices: int, *, training: bool = True
) -> dict[str, int]:
    """Axis sizes from config.mesh that divide the model and its batches; `training`: those of updates too.

    Raises:
        ValueError: one line with what does not divide, and the factorisations that work.
    """
    train = config.train
    rows = train.prompts // (train.minibatches * train.microbatches)
    batch = {f"train.prompts / minibatches / microbatches = {rows}": (rows, ("data", "fsdp"))} if training else {}
    return fit_sizes(config.mesh, batch | model.mesh_needs(config.data.patch_buckets), num_devices)


def make_verifier(config: ml_collections.ConfigDict) -> Verifier:
    """The worker pool of the config."""
    verify = config.verify
    return Verifier(workers=verify.workers, deadline=verify.deadline, tolerance=verify.tolerance)


@functools.partial(jax.jit, static_argnames=("seed", "mesh"))
def stage_key(step: int, stage: int, *, seed: int, mesh: Mesh) -> jax.Array:
    """fold_in(fold_in(key(seed), step), stage), on all devices; each (step, stage) is asked for once."""
    key = jax.random.fold_in(jax.random.fold_in(jax.random.key(seed), step), stage)
    return jax.lax.with_sharding_constraint(key, NamedSharding(mesh, sharding.WHOLE))
