"""Kernels of the sampler in int8: what rounding may change, and the same numbers on every mesh."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from care_jax import models, step
from care_jax.evals import decoding
from care_jax.models import QwenVL
from care_jax.models.layers import Linear, in_int8
from care_jax.parallel import sharding
from care_jax.parallel.mesh import create_device_mesh
from care_jax.planning import estimate
from care_jax.stages import rollout
from care_jax.stages.rollout import Sampling, nothing_forced
from care_jax.stages.table import Setup
from tests.planning.test_plan import tiny

for_sampling = functools.partial(QwenVL.for_sampling, weights="int8")


def make_linear(*, from_parts: bool = False) -> Linear:
    """A layer of 64 inputs and 48 outputs, the last of which are small or zero."""
    layer = Linear(64, 48, axes=("embed", "mlp"), use_bias=True, rngs=nnx.Rngs(0), from_parts=from_parts)
    size = jnp.ones(48).at[40:].set(1e-3).at[47].set(0.0)
    layer.kernel[...] = layer.kernel[...] * size[None]
    layer.bias[...] = jnp.linspace(-1, 1, 48)
    return layer


def test_an_output_is_within_half_a_step_of_each_weight():
    """Catches a scale of the wrong axis or of all outputs together, a kernel that is cut off, and a lost bias."""
    layer, x = make_linear(), jax.random.normal(jax.random.key(1), (5, 3, 64))
    rounded = in_int8(layer)
    assert rounded.kernel[...].dtype == jnp.int8
    scale = np.abs(layer.kernel[...]).max(axis=0) / 127
    np.testing.assert_allclose(rounded.scale[...][:47], scale[:47], rtol=1e-6)
    assert np.abs(rounded.kernel[...]).max(axis=0).tolist() == [127] * 47 + [0]
    bound = np.abs(x).sum(-1, keepdims=True) * scale / 2
    error = np.abs(rounded(x) - layer(x))
    assert (error <= bound + 1e-6).all()
    assert error[..., :40].max() > 1e-3, "nothing was rounded"
    np.testing.assert_array_equal(rounded(x)[..., 47], layer(x)[..., 47])
    assert layer.scale is None, "the layer itself was changed"


def test_layers_of_a_stack_have_scales_of_their_own(tiny_model):
    """Catches a scale over all layers, kernels that are left out, and embeddings, norms or biases that are rounded."""
    ours, plain = for_sampling(tiny_model), tiny_model.for_sampling()
    numbers = models.params_to_dict(plain)
    found = models.params_to_dict(ours)
    kernels = {name for name in numbers if name.startswith("layers.") and name.endswith("kernel")}
    assert len(kernels) == 7
    assert {name for name, value in found.items() if value.dtype == jnp.int8} == kernels
    assert found.keys() - numbers.keys() == {name.replace("kernel", "scale") for name in kernels}
    for name, value in numbers.items():
        if name not in kernels:
            np.testing.assert_array_equal(found[name], value)
            continue
        scale = found[name.replace("kernel", "scale")]
        np.testing.assert_allclose(scale, np.abs(value).max(axis=1) / 127, rtol=1e-6)
        assert (np.abs(np.asarray(found[name], np.float32) * scale[:, None] - value) <= 0.5001 * scale[:, None]).all()


def setup_of(*shape: int, tensor: int = 0) -> Setup:
    """The setup of a run with int8 weights on a mesh data x fsdp x tensor."""
    axes = dict(zip(sharding.AXES, shape, strict=True))
    c = tiny(rollout__weights="int8", rollout__tensor=tensor, **{f"mesh__{axis}": size for axis, size in axes.items()})
    mesh = create_device_mesh(axes, jax.devices()[: int(np.prod(shape))])
    return estimate.planned_setup(c, estimate.planned_model(c), mesh)


@pytest.mark.slow
@pytest.mark.parametrize(("shape", "tensor"), [((1, 1, 2), 0), ((1, 2, 2), 0), ((1, 4, 1), 2)], ids=str)
def test_every_mesh_has_the_same_numbers(tiny_model, shape, tensor):
    """Catches scales of one device's part of an output's weights, and parts that are put together in another order."""
    setup = setup_of(*shape, tensor=tensor)
    params = jax.device_put(tiny_model, sharding.named(setup.mesh, sharding.param_specs(tiny_model)))
    run = jax.jit(step.SAMPLER.function(setup))
    ours, expected = (models.params_to_dict(x) for x in (run(params), for_sampling(tiny_model)))
    for name, value in expected.items():
        np.testing.assert_array_equal(ours[name], value, err_msg=name)
        shards = ours[name].addressable_shards
        assert all(np.array_equal(shard.data, np.asarray(value)[shard.index]) for shard in shards), name


def test_training_samples_with_them_and_evaluation_does_not(tiny_model):
    """Catches an evaluation of another model than the one that is trained, and a setting that nothing reads."""
    setup = setup_of(1, 1, 1)
    for stage, has_int8 in ((step.SAMPLER, True), (decoding.SAMPLER, False)):
        sampler = jax.eval_shape(stage.function(setup), tiny_model)
        assert any(leaf.dtype == jnp.int8 for leaf in jax.tree.leaves(sampler)) == has_int8
        assert len(jax.tree.leaves(stage.out_shardings(setup))) == len(jax.tree.leaves(sampler))


def test_the_sampler_stays_close(tiny_model, tiny_prompts, tiny_processor):
    """Catches a scale that is applied twice or to another output: most greedy tokens stay, and their log-probs do."""
    prefix = jax.jit(QwenVL.prefill)(tiny_model, tiny_prompts)
    forbidden = jnp.asarray(tiny_processor.forbidden_mask)
    rows = [
        jax.device_get(
            rollout.generate(
                sampler,
                prefix,
                nothing_forced(3, 2),
                forbidden,
                jax.random.key(0),
                sampling=Sampling(12, 0.0, tiny_processor.stop_ids),
            )
        )
        for sampler in (tiny_model.for_sampling(), for_sampling(tiny_model))
    ]
    same = np.cumprod(rows[0].token_ids == rows[1].token_ids, axis=-1).astype(bool)
    assert same.mean() > 0.5
    gap = np.abs(rows[0].logprobs - rows[1].logprobs)[same & rows[0].sampled_mask]
    assert 1e-4 < gap.mean() < 0.05
