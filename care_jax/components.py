"""The parts that a config names: processor, model, verifier; and the random key of a stage."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import jax
import ml_collections

from care_jax.checkpoint import load_params
from care_jax.models import QwenVL, init_model, load_model_config, params_from_dict
from care_jax.processor import Processor, load_processor
from care_jax.response_format import FORMATS
from care_jax.verify import Verifier


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


def make_model(config: ml_collections.ConfigDict) -> QwenVL:
    """The model a run starts from: random by config.seed, or the parameters under config.model.weights."""
    model_config = dataclasses.replace(
        load_model_config(Path(config.model.folder)),
        compute_dtype=config.model.compute_dtype,
        remat=config.model.remat,
        freeze_vision=config.model.freeze_vision,
    )
    if config.model.weights == "random":
        return jax.jit(init_model, static_argnums=0)(model_config, jax.random.key(config.seed))
    return params_from_dict(model_config, load_params(config.model.weights))


def make_verifier(config: ml_collections.ConfigDict) -> Verifier:
    """The worker pool of the config."""
    verify = config.verify
    return Verifier(workers=verify.workers, deadline=verify.deadline, tolerance=verify.tolerance)


@jax.jit
def stage_key(root: jax.Array, step: int, stage: int) -> jax.Array:
    """fold_in(fold_in(root, step), stage); each (step, stage) is asked for once."""
    return jax.random.fold_in(jax.random.fold_in(root, step), stage)
