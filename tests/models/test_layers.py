"""The backward pass of a layer: the tensors that it keeps and the types that it computes in."""

from __future__ import annotations

import functools
from collections import Counter
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from care_jax.models.layers import recompute
from care_jax.models.qwen_vl import to_float32


def operations(jaxpr: Any) -> list[Any]:
    """Every equation of a program, those inside of others too."""
    found = []
    for equation in jaxpr.eqns:
        found.append(equation)
        for value in equation.params.values():
            for inner in value if isinstance(value, tuple | list) else (value,):
                inner = getattr(inner, "jaxpr", inner)
                found += operations(inner) if hasattr(inner, "eqns") else []
    return found


# Of two products with a tanh between them: the products, one of them again or not, and two gradients of each.
@pytest.mark.parametrize(("remat", "products", "tanhs"), [("full", 3 + 4, 2), ("dots", 2 + 4, 2), ("none", 2 + 4, 1)])
def test_what_is_recomputed(remat, products, tanhs):
    """Catches a policy that recomputes products it is to keep, or keeps what it is to recompute."""

    def layer(x: jax.Array, first: jax.Array, second: jax.Array) -> jax.Array:
        return jnp.tanh(x @ first) @ second

    args = [jax.ShapeDtypeStruct((4, 4), jnp.float32)] * 3
    gradient = jax.grad(lambda *args: recompute(layer, remat)(*args).sum(), argnums=(0, 1, 2))
    counts = Counter(equation.primitive.name for equation in operations(jax.make_jaxpr(gradient)(*args).jaxpr))
    assert counts["dot_general"] == products
    assert counts["tanh"] == tanhs


@pytest.mark.parametrize("spec", ["...d,vd->...v", "...d,dv->...v"])
def test_products_with_a_float32_result(spec):
    """Catches a wrong gradient, and products of the backward pass in float32, which a GPU computes half as fast."""
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.normal(size=(2, 3, 4)), jnp.float32)
    kernel = jnp.asarray(rng.normal(size=(5, 4) if "vd" in spec else (4, 5)), jnp.float32)
    weights = jnp.asarray(rng.normal(size=(2, 3, 5)), jnp.float32)

    def loss(product: Any, x: jax.Array, kernel: jax.Array) -> jax.Array:
        return jnp.sum(product(x, kernel) * weights)

    ours = functools.partial(loss, lambda x, kernel: to_float32(x, kernel, spec))
    theirs = functools.partial(loss, functools.partial(jnp.einsum, spec))
    found, expected = (jax.value_and_grad(f, argnums=(0, 1))(x, kernel) for f in (ours, theirs))
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-6), found, expected)

    half = x.astype(jnp.bfloat16), kernel.astype(jnp.bfloat16)
    assert to_float32(*half, spec).dtype == jnp.float32
    program = jax.make_jaxpr(jax.grad(ours, argnums=(0, 1)))(*half)
    products = [e for e in operations(program.jaxpr) if e.primitive.name == "dot_general"]
    assert len(products) == 3
    assert {v.aval.dtype for e in products for v in e.invars} == {jnp.dtype("bfloat16")}
