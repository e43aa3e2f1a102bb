"""The random key of each stage of a step, made from the run's seed."""

from __future__ import annotations

import functools

import jax
from jax.sharding import Mesh, NamedSharding

from care_jax.parallel.sharding import WHOLE


@functools.partial(jax.jit, static_argnames=("seed", "mesh"))
def stage_key(step: int | jax.Array, stage: int | jax.Array, *, seed: int, mesh: Mesh) -> jax.Array:
    """fold_in(fold_in(key(seed), step), stage), on all devices. Draw with each (step, stage) once."""
    key = jax.random.fold_in(jax.random.fold_in(jax.random.key(seed), step), stage)
    return jax.lax.with_sharding_constraint(key, NamedSharding(mesh, WHOLE))
