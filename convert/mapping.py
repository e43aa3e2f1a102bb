"""A table of weights, applied both ways between Hugging Face's names and layouts and ours.

Hugging Face keeps one tensor a layer and matrices as [out, in]; we stack the layers of a tower on a leading axis
and keep matrices as [in, out]. A table is written once, in the key layout of the hub's Qwen2.5-VL files, and read
in both directions. Everything that does not fit is told in one error.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from typing import Literal

import jax
import numpy as np

# "hub": visual.*, model.*, lm_head.* (what transformers writes); "nested": model.visual.*, model.language_model.*
# (the names of transformers' modules in memory, found in files that other tools saved).
Layout = Literal["hub", "nested"]

_NESTED_TO_HUB = {"model.language_model.": "model.", "model.visual.": "visual."}


@dataclasses.dataclass(frozen=True)
class Weight:
    """One row of a table: a Hugging Face tensor, or one a layer, and the array of ours that holds it."""

    hf: str  # name in the hub layout, with {i} for the layer when there are `layers`
    ours: str
    shape: tuple[int, ...]  # of one Hugging Face tensor
    kernel: bool = False  # a matrix [out, in] or convolution [out, ...], kept here as [in, out]
    layers: int | None = None  # how many are stacked; None: a single tensor

    @property
    def hf_names(self) -> list[str]:
        """Names in the hub layout, in the order of the layers."""
        return [self.hf] if self.layers is None else [self.hf.format(i=i) for i in range(self.layers)]

    @property
    def our_shape(self) -> tuple[int, ...]:
        """Shape of our array."""
        one = (int(np.prod(self.shape[1:])), self.shape[0]) if self.kernel else self.shape
        return one if self.layers is None else (self.layers, *one)


def to_jax(hf_tensors: Mapping[str, np.ndarray], table: Sequence[Weight]) -> dict[str, np.ndarray]:
    """Our float32 parameters by dotted name; each tensor is read once, so a mapping that reads from disk is welcome.

    Raises:
        ValueError: listing every missing, unknown, repeated or mis-shaped tensor.
    """
    given: dict[str, str] = {}
    problems = []
    for name in hf_tensors:
        if hub_name(name) in given:
            problems.append(f"{name}: the same weight as {given[hub_name(name)]}")
        given[hub_name(name)] = name
    wanted = [name for weight in table for name in weight.hf_names]
    problems += [f"{name}: missing" for name in wanted if name not in given]
    problems += [f"{given[name]}: unknown" for name in sorted(given.keys() - set(wanted))]

    params = {}
    for weight in table:
        stacked = np.empty(weight.our_shape, np.float32)
        slots = [stacked] if weight.layers is None else list(stacked)  # views, filled in place
        for name, slot in zip(weight.hf_names, slots, strict=True):
            if name not in given:
                continue
            tensor = hf_tensors[given[name]]
            if tensor.shape != weight.shape:
                problems.append(f"{given[name]}: shape {tensor.shape}, expected {weight.shape}")
                continue
            slot[...] = tensor.reshape(weight.shape[0], -1).T if weight.kernel else tensor
        params[weight.ours] = stacked
    _raise_for(problems, "Hugging Face tensors")
    return params


def to_hf(
    params: Mapping[str, np.ndarray | jax.Array], table: Sequence[Weight], layout: Layout
) -> dict[str, np.ndarray]:
    """Hugging Face's tensors by name: views of `params` where these are host arrays, so this takes no memory.

    Raises:
        ValueError: listing every missing, unknown or mis-shaped parameter.
    """
    known = {weight.ours for weight in table}
    problems = [f"{weight.ours}: missing" for weight in table if weight.ours not in params]
    problems += [f"{name}: unknown" for name in sorted(params.keys() - known)]
    problems += [
        f"{weight.ours}: shape {params[weight.ours].shape}, expected {weight.our_shape}"
        for weight in table
        if weight.ours in params and params[weight.ours].shape != weight.our_shape
    ]
    _raise_for(problems, "parameters")

    tensors = {}
    for weight in table:
        ours = np.asarray(params[weight.ours])
        for name, one in zip(weight.hf_names, [ours] if weight.layers is None else ours, strict=True):
            tensors[laid_out(name, layout)] = one.T.reshape(weight.shape) if weight.kernel else one
    return tensors


def layout_of(names: Iterable[str]) -> Layout:
    """The key layout of a folder's tensor names."""
    return "nested" if any(name.startswith(tuple(_NESTED_TO_HUB)) for name in names) else "hub"


def hub_name(name: str) -> str:
    """A tensor's name in the hub layout, from either."""
    for nested, hub in _NESTED_TO_HUB.items():
        if name.startswith(nested):
            return hub + name.removeprefix(nested)
    return name


def laid_out(name: str, layout: Layout) -> str:
    """The inverse of `hub_name`."""
    if layout == "nested":
        for nested, hub in _NESTED_TO_HUB.items():
            if name.startswith(hub):
                return nested + name.removeprefix(hub)
    return name


def _raise_for(problems: list[str], what: str) -> None:
    if problems:
        raise ValueError(
            f"{len(problems)} {what} do not fit the model of config.json (missing: the model needs it; unknown: the"
            " model has no place for it); use the config.json that belongs to them:\n  " + "\n  ".join(problems)
        )
