"""Exchanges between shards, against the same computation on whole arrays."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, PartitionSpec

from care_jax.parallel import collectives


@pytest.mark.parametrize("num_shards", [2, 3, 4])
def test_sums_are_divided_in_the_order_of_the_shards(num_shards):
    """Catches parts that end up on the wrong shard, and a step over the wrong groups: gradients of other rows."""
    parts = np.random.default_rng(0).normal(size=(num_shards, 5, 12, 7)).astype(np.float32)
    mesh = Mesh(np.array(jax.devices()[:num_shards]), ("fsdp",))
    divide = jax.shard_map(
        lambda x: collectives._sum_and_divide(x[0], 1),
        mesh=mesh,
        in_specs=PartitionSpec("fsdp"),
        out_specs=PartitionSpec(None, "fsdp"),
        check_vma=False,
    )
    np.testing.assert_allclose(jax.jit(divide)(jnp.asarray(parts)), parts.sum(0), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("num_shards", [2, 3, 4])
def test_gathered_parameters_are_in_the_order_of_the_shards(num_shards):
    """Catches rows of a matrix that are exchanged between groups of shards: still a matrix of the right shape."""
    whole = np.random.default_rng(0).normal(size=(5, 12, 7)).astype(np.float32)
    mesh = Mesh(np.array(jax.devices()[:num_shards]), ("fsdp",))
    gather = jax.shard_map(
        lambda x: collectives._gather(x, -2, jnp.dtype("float32")),
        mesh=mesh,
        in_specs=PartitionSpec(None, "fsdp"),
        out_specs=PartitionSpec(),
        check_vma=False,
    )
    np.testing.assert_array_equal(jax.jit(gather)(jnp.asarray(whole)), whole)


@pytest.mark.parametrize("axis", [1, -1])
def test_parts_are_joined_in_the_order_of_the_shards(axis):
    """Catches logits of one part of the vocabulary in the place of another's, and a wrong axis."""
    whole = np.random.default_rng(0).normal(size=(2, 12, 8)).astype(np.float32)
    mesh = Mesh(np.array(jax.devices()[:4]), ("tensor",))
    parts = PartitionSpec(*("tensor" if i == axis % 3 else None for i in range(3)))
    join = jax.shard_map(
        lambda x: collectives.join_parts(x, axis), mesh=mesh, in_specs=parts, out_specs=PartitionSpec(), check_vma=False
    )
    np.testing.assert_array_equal(jax.jit(join)(jnp.asarray(whole)), whole)
