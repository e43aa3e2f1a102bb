"""Tensors that a folder has and the model does not need: equal ones are left out, others are refused.

Those of parts that are not trained (mapping.is_carried) are left out too; an export copies them.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence

import numpy as np

from care_jax.convert import mapping
from care_jax.convert.mapping import DTYPES
from care_jax.convert.safetensors_io import Tensor
from care_jax.convert.weight import PIECE_BYTES, Weight
from care_jax.errors import InputError, listed
from care_jax.models import ModelConfig

_HEAD, _EMBEDDING = "lm_head.weight", "model.embed_tokens.weight"
_FREQUENCIES = "inv_freq"
_TOLERANCE = {"F32": 1e-5, "BF16": 1e-2, "F16": 1e-2}  # of rotary frequencies, relative to the largest


def without_extras(tensors: Mapping[str, Tensor], config: ModelConfig, weights: Sequence[Weight]) -> dict[str, Tensor]:
    """The tensors of the model, without those that say again what others or config.json say; these go to stderr.

    They are a head that equals the tied embedding, rotary frequencies, and a weight under a second name.

    Raises:
        InputError: one of them has other values; says what to set.
    """
    wanted = mapping.by_hf_name(weights)
    tensors = {name: tensor for name, tensor in tensors.items() if not mapping.is_carried(name, config)}
    kept: dict[str, Tensor] = {}
    extras, problems = [], []
    first: dict[str, str] = {}
    for name, tensor in sorted(tensors.items(), key=lambda item: mapping.hub_name(item[0]) == _HEAD):
        hub = mapping.hub_name(name)
        twin, remedy = first.get(hub), "remove one of the two"
        if hub == _HEAD and hub not in wanted:
            twin, remedy = first.get(_EMBEDDING), "set tie_word_embeddings to false in config.json"
        if twin is not None:
            is_equal = _are_equal(tensor, tensors[twin])
            remedy = f"{name} differs from {twin}: {remedy}"
        elif hub not in wanted and hub.endswith(_FREQUENCIES):
            is_equal = _are_frequencies(tensor, config, is_vision=hub.startswith("visual."))
            remedy = f"{name} differs from the frequencies of config.json: set its rope_theta"
        else:
            kept[name] = tensor
            first[hub] = name
            continue
        extras.append(name)
        if not is_equal:
            problems.append(remedy)
    if problems:
        raise InputError(f"{len(problems)} tensors are not what the model would use in their place: {listed(problems)}")
    if extras:
        print(f"note: left out, since the model has them otherwise: {listed(extras)}", file=sys.stderr)
    return {name: tensor for name, tensor in tensors.items() if name in kept}


def _are_equal(one: Tensor, other: Tensor) -> bool:
    """True if two tensors have the same bits; a part of each is in memory at a time."""
    if (one.shape, one.dtype) != (other.shape, other.dtype) or one.dtype not in DTYPES or not one.shape:
        return False
    step = max(1, PIECE_BYTES * one.shape[0] // max(1, one.nbytes))
    pieces = (slice(start, start + step) for start in range(0, one.shape[0], step))
    return all(np.array_equal(_bytes(one, rows), _bytes(other, rows)) for rows in pieces)


def _bytes(tensor: Tensor, rows: slice) -> np.ndarray:
    return tensor.read(rows).reshape(-1).view(np.uint8)


def _are_frequencies(tensor: Tensor, config: ModelConfig, *, is_vision: bool) -> bool:
    """True if a tensor holds the rotary frequencies that the model computes."""
    channels, theta = config.text.head_dim, config.text.rope_theta
    if is_vision:
        channels, theta = config.vision.hidden_size // config.vision.num_heads // 2, config.vision.rope_theta
    if tensor.dtype not in DTYPES or tensor.shape != (channels // 2,):
        return False
    expected = theta ** -(np.arange(0, channels, 2) / channels)
    return bool(np.allclose(tensor.read().astype(np.float64), expected, rtol=0, atol=_TOLERANCE[tensor.dtype]))
