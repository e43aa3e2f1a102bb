"""The sampler's own layout: its parameters, prefill and decoding, with the moves between it and the trainer's.

Decoding reads all weights for every token. With rollout.tensor so many neighbours along fsdp divide them, where the
trainer gathers a layer at a time:

                  trainer                          sampler
    prompts       a shard on each chip             a shard on each `tensor` chips
    parameters    divided over fsdp                divided over tensor, whole along fsdp
    keys          all heads of own prompts         own heads of all prompts of the shard

Parameters and keys move once a step, straight from part to part. With rollout.tensor 0 both have the trainer's layout.
The functions take a Setup and give the function of a stage, on whole arrays, or the shardings of its results.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, PartitionSpec

from care_jax.models import QwenVL
from care_jax.models.cache import PREFIX_SPECS, Prefix
from care_jax.options import SamplerWeights
from care_jax.parallel import collectives
from care_jax.parallel.sharding import ROWS, WHOLE, gathered, in_sampler_mesh, named, on_shards, param_specs
from care_jax.stages import prefill, rollout
from care_jax.stages.rollout import Sampling
from care_jax.stages.table import Setup
from care_jax.structs import Forced, Prompts, Rollouts


def make_params(setup: Setup, weights: SamplerWeights = "auto") -> Callable[[QwenVL], QwenVL]:
    """From the trainer's parameters to those that decoding reads."""
    return _make_params(setup.sampler_mesh, weights, is_apart=setup.sampler_is_apart)


@functools.cache  # so that a run and its evaluation have one program
def _make_params(mesh: Mesh, weights: SamplerWeights, *, is_apart: bool) -> Callable[[QwenVL], QwenVL]:
    def make(model: QwenVL) -> QwenVL:
        if is_apart:
            model = collectives.params_to_sampler(model, jnp.dtype(model.config.compute_dtype))
        return model.for_sampling(weights)

    def specs(model: QwenVL) -> tuple[tuple, Any]:
        given = param_specs(model)
        return (_in_sampler_mesh(given) if is_apart else given,), _params_specs(model, weights)

    return on_shards(mesh, make, specs)


def params_shardings(setup: Setup, weights: SamplerWeights = "auto") -> Any:
    """Shardings of what `make_params` makes."""
    return named(setup.sampler_mesh, _params_specs(setup.params, weights))


def _params_specs(model: QwenVL, weights: SamplerWeights) -> Any:
    return gathered(param_specs(jax.eval_shape(functools.partial(QwenVL.for_sampling, weights=weights), model)))


def make_prefill(setup: Setup) -> Callable[[QwenVL, Prompts], Prefix]:
    """From parameters and prompts to the prefix, whose keys lie as decoding reads them."""
    prefix_of = on_shards(
        setup.mesh, prefill.prefill, lambda model, prompts: ((param_specs(model), ROWS), PREFIX_SPECS)
    )
    if not setup.sampler_is_apart:
        return prefix_of
    specs = (_in_sampler_mesh(PREFIX_SPECS),), PREFIX_SPECS
    move = on_shards(setup.sampler_mesh, _move, lambda prefix: specs)
    return lambda model, prompts: move(prefix_of(model, prompts))


def _move(prefix: Prefix) -> Prefix:
    """A device's part of a prefix, from the trainer's layout to the sampler's."""
    names = ("prompt_len", "next_position", "last_hidden")
    rows = collectives.rows_to_sampler({name: getattr(prefix, name) for name in names})
    return Prefix(layers=jax.tree.map(collectives.heads_apart, prefix.layers), **rows)


def prefix_shardings(setup: Setup) -> Any:
    """Shardings of a prefix."""
    return named(setup.sampler_mesh, PREFIX_SPECS)


def make_decode(setup: Setup, sampling: Sampling) -> Callable[..., Rollouts]:
    """From sampler, prefix, what is forced, forbidden ids and a key to rollouts in the trainer's layout."""

    def decode(sampler: QwenVL, prefix: Prefix, forced: Forced, forbidden_mask: jax.Array, key: jax.Array) -> Rollouts:
        if setup.sampler_is_apart:
            forced = collectives.rows_to_sampler(forced)
        rollouts = rollout.generate(sampler, prefix, forced, forbidden_mask, key, sampling=sampling)
        return collectives.own_rows(rollouts) if setup.sampler_is_apart else rollouts

    rows = in_sampler_mesh(ROWS) if setup.sampler_is_apart else ROWS

    def specs(sampler: QwenVL, *_: Any) -> tuple[tuple, Any]:
        return (gathered(param_specs(sampler)), PREFIX_SPECS, rows, WHOLE, WHOLE), rows

    return on_shards(setup.sampler_mesh, decode, specs)


def _in_sampler_mesh(specs: Any) -> Any:
    return jax.tree.map(in_sampler_mesh, specs, is_leaf=lambda spec: isinstance(spec, PartitionSpec))
