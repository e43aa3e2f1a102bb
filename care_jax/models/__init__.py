"""Qwen-VL models: built from a Hugging Face config.json, kept as a pytree of named parameters."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from care_jax.errors import InputError, listed
from care_jax.models import vision_qwen2_5, vision_qwen3
from care_jax.models.config_json import load_model_config
from care_jax.models.model_config import ModelConfig
from care_jax.models.qwen_vl import QwenVL, Tower
from care_jax.models.trained import add_adapters, freeze_groups
from care_jax.parallel.sharding import param_name

__all__ = [
    "ModelConfig",
    "QwenVL",
    "abstract_model",
    "init_model",
    "load_model_config",
    "params_from_dict",
    "params_to_dict",
]

_TOWERS: dict[str, type[Tower]] = {
    "qwen2_5_vl": vision_qwen2_5.VisionTower,
    "qwen3_vl": vision_qwen3.VisionTower,
    "qwen3_5": vision_qwen3.VisionTower,
}
_ADAPTERS = 1  # folded into the model's key


def init_model(config: ModelConfig, key: jax.Array) -> QwenVL:
    """A randomly initialised model.

    Raises:
        InputError: config.lora names linears that the model does not have.
    """
    model = QwenVL(config, _TOWERS[config.model_type], rngs=nnx.Rngs(key))
    if config.lora is not None:
        return add_adapters(model, config.lora, jnp.dtype(config.compute_dtype), jax.random.fold_in(key, _ADAPTERS))
    return freeze_groups(model, config.freeze, tied=config.text.tie_word_embeddings)


def abstract_model(config: ModelConfig) -> QwenVL:
    """The model with shapes in place of arrays; costs nothing at any size."""
    return jax.eval_shape(lambda: init_model(config, jax.random.key(0)))


def params_to_dict(module: nnx.Module) -> dict[str, Any]:
    """All parameters of a module, or the leaves that a tree of its structure has in their places, by dotted name.

    A name is for example "layers.self_attn.q_proj.kernel".
    """
    return {param_name(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(module)}


def params_from_dict(config: ModelConfig, params: Mapping[str, Any]) -> QwenVL:
    """The model with these arrays as its parameters, the inverse of `params_to_dict`.

    Raises:
        InputError: listing every missing, unknown or mis-shaped parameter at once.
    """
    wanted = jax.tree_util.tree_leaves_with_path(abstract_model(config))
    shapes = {param_name(path): leaf.shape for path, leaf in wanted}
    problems = [f"missing {name} {shape}" for name, shape in shapes.items() if name not in params]
    problems += [f"unknown {name}" for name in params if name not in shapes]
    problems += [
        f"{name} has shape {params[name].shape}, expected {shape}"
        for name, shape in shapes.items()
        if name in params and params[name].shape != shape
    ]
    if problems:
        raise InputError(f"{len(problems)} parameters do not fit the model of config.json: {listed(problems)}")
    leaves = [params[param_name(path)] for path, _ in wanted]
    return jax.tree.unflatten(jax.tree.structure(abstract_model(config)), leaves)
