"""The weights of a model by name: Hugging Face's names to ours, in either of Hugging Face's layouts.

Each family lists its weights once, in the key layout of the hub's Qwen2.5-VL files. A conversion reports every tensor
that does not fit in one error.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping, Sequence
from typing import Protocol

import ml_dtypes
import numpy as np

from care_jax.convert import qwen2_5_vl, qwen3_5, qwen3_vl
from care_jax.convert.other_forms import refuse_other_tensors
from care_jax.convert.weight import Layout, Weight
from care_jax.errors import InputError, listed
from care_jax.models import ModelConfig

_FAMILIES = {"qwen2_5_vl": qwen2_5_vl, "qwen3_vl": qwen3_vl, "qwen3_5": qwen3_5}  # by model_type
_NESTED_TO_HUB = {"model.language_model.": "model.", "model.visual.": "visual.", "language_model.": "model."}
# What training programs leave in names: torch.compile, FSDP and activation checkpoints anywhere; data parallelism, peft
# after its merge, and a model inside a module called model before them.
_INNER_WRAPPERS = ("_orig_mod.", "_fsdp_wrapped_module.", "_checkpoint_wrapped_module.")
_OUTER_WRAPPERS = re.compile(r"^(?:module\.|base_model\.model\.|model\.(?=model\.|lm_head\.))+")
# By safetensors' names: the types that are kept bit for bit, and are exact in float32.
DTYPES = {"F32": np.dtype(np.float32), "BF16": np.dtype(ml_dtypes.bfloat16), "F16": np.dtype(np.float16)}


class Shaped(Protocol):
    """An array, or one that is still on disk."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Its shape."""


class Typed(Shaped, Protocol):
    """The same, with safetensors' name of its type."""

    @property
    def dtype(self) -> str:
        """Its type."""


@dataclasses.dataclass(frozen=True)
class Source:
    """A Hugging Face tensor: the weight that it belongs to, and its layer."""

    weight: Weight
    layer: int


def weights_of(config: ModelConfig) -> list[Weight]:
    """All weights of a model, in the order they are written."""
    return _FAMILIES[config.model_type].weights(config)


def published_layout(config: ModelConfig) -> Layout:
    """The key layout of the family's published files."""
    return _FAMILIES[config.model_type].LAYOUT


def is_carried(name: str, config: ModelConfig) -> bool:
    """True for a tensor that the family's files have beside the model's: conversions leave it as it is."""
    return hub_name(name).startswith(_FAMILIES[config.model_type].CARRIED)


def by_hf_name(weights: Sequence[Weight]) -> dict[str, Source]:
    """The tensors of weights by name in the hub layout, in the order of the weights."""
    return {name: Source(weight, i) for weight in weights for i, name in enumerate(weight.hf_names)}


def check_tensors(tensors: Mapping[str, Typed], weights: Sequence[Weight]) -> dict[str, Source]:
    """The weight that each of the Hugging Face tensors, in either layout, is; each is there once.

    Raises:
        InputError: listing every missing, unknown or mis-shaped tensor, and every type that is not kept.
    """
    refuse_other_tensors({name: tensor.dtype for name, tensor in tensors.items()})
    return check_fit(tensors, by_hf_name(weights))


def check_fit(tensors: Mapping[str, Typed], wanted: Mapping[str, Source]) -> dict[str, Source]:
    """The source that each tensor, in either layout, is; each is there once.

    Raises:
        InputError: listing every missing, unknown or mis-shaped tensor, and every type that is not kept.
    """
    given = {hub_name(name): name for name in tensors}
    untied = " (or set tie_word_embeddings to true in config.json)"
    problems = [f"{name}: missing{untied * (name == 'lm_head.weight')}" for name in wanted if name not in given]
    problems += [f"{given[name]}: unknown" for name in sorted(given.keys() - wanted.keys())]
    problems += _misshapen({given[name]: wanted[name].weight.shape for name in wanted if name in given}, tensors)
    problems += [
        f"{name}: type {tensor.dtype}, supported: {', '.join(DTYPES)}"
        for name, tensor in tensors.items()
        if tensor.dtype not in DTYPES
    ]
    _raise_for(problems, "Hugging Face tensors")
    return {name: wanted[hub_name(name)] for name in tensors}


def check_params(params: Mapping[str, Shaped], weights: Sequence[Weight]) -> None:
    """Checks that our parameters are those of the weights.

    Raises:
        InputError: listing every missing, unknown or mis-shaped parameter.
    """
    shapes = {weight.ours: weight.our_shape for weight in weights}
    problems = [f"{name}: missing" for name in shapes if name not in params]
    problems += [f"{name}: unknown" for name in sorted(params.keys() - shapes.keys())]
    problems += _misshapen({name: shape for name, shape in shapes.items() if name in params}, params)
    _raise_for(problems, "parameters")


def _misshapen(expected: Mapping[str, tuple[int, ...]], given: Mapping[str, Shaped]) -> list[str]:
    return [
        f"{name}: shape {tuple(given[name].shape)}, expected {shape}"
        for name, shape in expected.items()
        if tuple(given[name].shape) != shape
    ]


def _raise_for(problems: list[str], what: str) -> None:
    if problems:
        raise InputError(
            f"{len(problems)} {what} do not fit the model of config.json (missing: the model needs it; unknown: the"
            f" model has no place for it); use the config.json that belongs to them: {listed(problems)}"
        )


def hub_name(name: str) -> str:
    """A tensor's name in the hub layout, from either, and without what trainers put around it."""
    for wrapper in _INNER_WRAPPERS:
        name = name.replace(wrapper, "")
    name = _OUTER_WRAPPERS.sub("", name)
    for nested, hub in _NESTED_TO_HUB.items():
        if name.startswith(nested):
            return hub + name.removeprefix(nested)
    return name


def laid_out(name: str, layout: Layout) -> str:
    """A name of the hub layout in `layout`."""
    if layout == "nested":
        for nested, hub in _NESTED_TO_HUB.items():
            if name.startswith(hub):
                return nested + name.removeprefix(hub)
    return name
