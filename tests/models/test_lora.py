"""Adapters of every family against transformers with peft, in float32: logits, gradients, steps, merging."""

from __future__ import annotations

import dataclasses
import itertools
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import peft
import pytest
import torch
import transformers
from flax import nnx

from care_jax import models
from care_jax.convert import adapter, mapping
from care_jax.errors import InputError
from care_jax.inputs.batch import collate
from care_jax.inputs.prompts import encode_prompt
from care_jax.models import QwenVL
from care_jax.models.layers import merged
from care_jax.models.model_config import LoraConfig
from care_jax.models.qwen_vl import logits
from care_jax.models.trained import combine, partition, reference_part, reference_policy
from care_jax.structs import Prompts
from tests import weights
from tests.families import FAMILIES, make_folder, random_oracle, tiny_processor
from tests.marks import slow_but
from tests.pictures import encode, picture, question

LORA = LoraConfig(rank=3, alpha=5.0, rank_stabilised=False, targets=("layers.*",))
EVERYWHERE = dataclasses.replace(LORA, rank_stabilised=True, targets=("layers.*self_attn.*", "visual.*"))
TOLERANCE, MERGED_TOLERANCE = 1e-4, 1e-5
IMAGE_TOKEN, LR, STEPS = 278, 1e-3, 3


class Pair(NamedTuple):
    """A model with adapters in peft and in this project, and one prompt with an image for both."""

    theirs: peft.PeftModel
    ours: QwenVL
    inputs: dict[str, torch.Tensor]
    prompts: Prompts


def with_lora(folder: Path, lora: LoraConfig) -> models.ModelConfig:
    """The architecture in a folder, with adapters."""
    return dataclasses.replace(models.load_model_config(folder), lora=lora)


def linears(config: models.ModelConfig) -> list[str]:
    """The linears of a model that have adapters."""
    return adapter.linears_of(list(models.params_to_dict(partition(models.abstract_model(config))[0])))


def in_ours(theirs: peft.PeftModel, config: models.ModelConfig) -> dict[str, np.ndarray]:
    """The adapters of a peft model by our names."""
    table = adapter.adapter_weights(mapping.weights_of(config), linears(config), config.lora.rank)
    tensors = {mapping.hub_name(name): x.numpy() for name, x in peft.get_peft_model_state_dict(theirs).items()}
    assert set(tensors) == set(mapping.by_hf_name(table))
    stacked = {}
    for weight in table:
        layers = [weight.to_ours(tensors[name]) for name in weight.hf_names]
        stacked[weight.ours] = layers[0] if weight.layers is None else np.stack(layers)
    return stacked


def peft_targets(config: models.ModelConfig) -> str:
    """The pattern of the modules with adapters, as an export writes it."""
    table = mapping.by_hf_name(adapter.adapter_weights(mapping.weights_of(config), linears(config), config.lora.rank))
    modules = {mapping.laid_out(name, "nested").rpartition(".lora_")[0] for name in table}
    return "|".join(module.replace(".", r"\.") for module in sorted(modules))


PAIRS = list(itertools.product(FAMILIES, (LORA, EVERYWHERE)))


@pytest.fixture(
    scope="module",
    params=slow_but([(FAMILIES[0], LORA), *((family, EVERYWHERE) for family in FAMILIES)], PAIRS),
)
def pair(request, tiny_folder, tmp_path_factory) -> Pair:
    """Random base and adapters; ours are read from what transformers has saved and from peft's state."""
    family, lora = request.param
    folder = make_folder(family, tiny_folder, tmp_path_factory.mktemp("lora") / "model")
    oracle = random_oracle(folder)
    oracle.save_pretrained(folder / "saved")
    config = with_lora(folder / "saved", lora)
    settings = peft.LoraConfig(
        r=lora.rank,
        lora_alpha=lora.alpha,
        use_rslora=lora.rank_stabilised,
        lora_dropout=0.0,
        target_modules=peft_targets(config),
    )
    theirs = peft.get_peft_model(oracle, settings)
    for name, parameter in theirs.named_parameters():
        if ".lora_" in name:
            parameter.data.normal_(0.0, 0.5 * parameter.shape[1] ** -0.5)
    ours = models.params_from_dict(config, weights.read_hf(folder / "saved") | jax.device_put(in_ours(theirs, config)))
    processor = tiny_processor(folder, (48, 64))
    example = encode_prompt(processor, question("<image>=?", encode(picture(84, 56))))
    pixels = transformers.AutoImageProcessor.from_pretrained(folder, backend="pil")
    ids = torch.from_numpy(example.token_ids)[None].long()
    inputs = {"input_ids": ids, "mm_token_type_ids": (ids == IMAGE_TOKEN).int()}
    inputs |= pixels(images=[picture(84, 56)], return_tensors="pt")
    return Pair(theirs, ours, inputs, jax.device_put(collate(processor, [example])))


def assert_near(ours: jax.Array, expected: np.ndarray | jax.Array, tolerance: float, name: str = "") -> None:
    """Compares arrays: numbers up to 1 absolutely, those of an array with larger ones as its largest allows."""
    largest = max(1.0, float(np.abs(expected).max()))
    np.testing.assert_allclose(ours, expected, rtol=0, atol=tolerance * largest, err_msg=name)


def last_logits(model: QwenVL, prompts: Prompts) -> jax.Array:
    """The logits behind the prompt, [V]."""
    return logits(model.head, model.prefill(prompts).last_hidden)[0]


def loss_of(trained: QwenVL, frozen: QwenVL, prompts: Prompts) -> jax.Array:
    """The negative log-prob of token 7 behind the prompt."""
    return -jax.nn.log_softmax(last_logits(combine(trained, frozen), prompts))[7]


def test_fresh_adapters_add_nothing(pair):
    """Catches an initial value that changes the model, A drawn otherwise than by peft, and B that is not 0."""
    config, (_, base) = pair.ours.config, partition(pair.ours)
    adapters = jax.jit(lambda: partition(models.init_model(config, jax.random.key(3)))[0])()
    fresh = combine(adapters, base)
    off = reference_policy(reference_part(fresh), fresh)
    ours, expected = (jax.jit(last_logits)(model, pair.prompts) for model in (fresh, off))
    np.testing.assert_array_equal(ours, expected)
    params = models.params_to_dict(adapters)
    (lora_a,) = (param for name, param in params.items() if name.endswith("self_attn.q_proj.lora_a"))
    bound = lora_a.shape[1] ** -0.5  # kaiming_uniform(a=sqrt(5))
    assert bound * 0.98 < np.abs(lora_a).max() <= bound
    assert np.std(lora_a) == pytest.approx(bound / 3**0.5, rel=0.05)
    drawn = torch.nn.init.kaiming_uniform_(torch.empty(50, lora_a.shape[1]), a=5**0.5)
    assert float(drawn.abs().max()) == pytest.approx(bound, rel=0.02)


def test_logits_are_those_of_peft(pair):
    """Catches a scale, a side or a linear that is wrong, and adapters that are left out."""
    with torch.no_grad():
        theirs = pair.theirs(**pair.inputs).logits[0, -1].numpy()
        with pair.theirs.disable_adapter():
            off = pair.theirs(**pair.inputs).logits[0, -1].numpy()
    assert np.abs(theirs - off).max() > 0.1
    np.testing.assert_allclose(jax.jit(last_logits)(pair.ours, pair.prompts), theirs, rtol=0, atol=TOLERANCE)
    reference = reference_policy(reference_part(pair.ours), pair.ours)
    np.testing.assert_allclose(jax.jit(last_logits)(reference, pair.prompts), off, rtol=0, atol=TOLERANCE)


def test_merged_is_unmerged(pair):
    """Catches a merge into another kernel, without the scale, or twice."""
    unmerged = jax.jit(last_logits)(pair.ours, pair.prompts)
    both = jax.jit(lambda model: merged(merged(model)))(pair.ours)
    assert_near(jax.jit(last_logits)(both, pair.prompts), unmerged, MERGED_TOLERANCE)
    assert not any(".lora_" in name for name in models.params_to_dict(both))
    assert not any(".lora_" in name for name in models.params_to_dict(pair.ours.for_sampling()))


def test_gradients_and_steps_are_those_of_peft(pair):
    """Catches a gradient that is lost on its way to an adapter, and an optimizer that treats adapters otherwise."""
    trained, frozen = partition(pair.ours)
    optimizer = optax.adamw(LR, weight_decay=0.1)
    parameters = [parameter for name, parameter in pair.theirs.named_parameters() if ".lora_" in name]
    torch_optimizer = torch.optim.AdamW(parameters, lr=LR, weight_decay=0.1)
    saved = [parameter.detach().clone() for parameter in parameters]
    config, state = pair.ours.config, optimizer.init(trained)
    gradient, update = jax.jit(jax.grad(loss_of)), jax.jit(optimizer.update)
    for _ in range(STEPS):
        torch_optimizer.zero_grad()
        (-torch.log_softmax(pair.theirs(**pair.inputs).logits[0, -1], -1)[7]).backward()
        grads = gradient(trained, frozen, pair.prompts)
        values = [parameter.data for parameter in parameters]
        for parameter in parameters:
            parameter.data = parameter.grad
        theirs = in_ours(pair.theirs, config)
        for parameter, value in zip(parameters, values, strict=True):
            parameter.data = value
        ours = models.params_to_dict(grads)
        assert ours.keys() == theirs.keys()
        for name, expected in theirs.items():
            assert np.abs(expected).max() > 1e-4, name
            assert_near(ours[name], expected, TOLERANCE, name)
        torch_optimizer.step()
        with jax.numpy_dtype_promotion("standard"):  # Adam of optax raises a float to an integer's power
            updates, state = update(grads, state, trained)
        trained = optax.apply_updates(trained, updates)
    moved = in_ours(pair.theirs, config)
    for name, ours in models.params_to_dict(trained).items():
        np.testing.assert_allclose(ours, moved[name], rtol=0, atol=TOLERANCE, err_msg=name)
    for parameter, value in zip(parameters, saved, strict=True):
        parameter.data = value


@pytest.mark.parametrize("family", FAMILIES)
def test_what_is_not_trained_is_in_the_compute_type(family, tiny_folder, tmp_path):
    """Catches a base that takes twice its bytes, adapters in bfloat16, and a linear of the tower that gets one."""
    config = with_lora(make_folder(family, tiny_folder, tmp_path / "model"), LORA)
    trained, frozen = partition(models.abstract_model(dataclasses.replace(config, compute_dtype="bfloat16")))
    assert {leaf.dtype for leaf in jax.tree.leaves(frozen)} == {jnp.dtype("bfloat16")}
    assert {leaf.dtype for leaf in jax.tree.leaves(trained)} == {jnp.dtype("float32")}
    names = models.params_to_dict(trained)
    num_linears = {"full_attention": 7, "linear_attention": 8}  # of a layer: of its attention, and three of the MLP
    assert len(names) == 2 * sum(num_linears[kind] for kind in set(config.text.period))
    assert all(name.startswith("layers.") for name in names)
    assert set(names) | set(models.params_to_dict(frozen)) == set(models.params_to_dict(models.abstract_model(config)))


def test_a_target_that_there_is_not_is_refused(tiny_folder):
    """Catches a misspelt target that trains nothing, and adapters where no call of the linear would meet them."""
    for targets in (("layers.*", "layers.self_attn.query"), ("lm_head",), ("visual.patch_embed.proj",)):
        with pytest.raises(InputError, match=r"^model\.lora\.targets: no linear is called .*; there are .*q_proj"):
            models.abstract_model(with_lora(tiny_folder, dataclasses.replace(LORA, targets=targets)))


GROUPS = {
    "vision": lambda name: name.startswith("visual.") and not name.startswith("visual.merger"),
    "merger": lambda name: name.startswith("visual.merger"),
    "head": lambda name: name == "embed_tokens.weight",  # tied
    "decoder": lambda name: name.startswith(("layers.", "norm.")),
}


@pytest.mark.parametrize("group", GROUPS)
def test_a_frozen_group_has_no_gradient(group, tiny_model, tiny_prompts):
    """Catches a group that takes another along or leaves some of its parameters behind, and gradients that change."""
    assert tiny_model.config.text.tie_word_embeddings
    config = dataclasses.replace(tiny_model.config, freeze=(group,))
    params = models.params_to_dict(tiny_model)
    trained, frozen = partition(models.params_from_dict(config, params))
    assert set(models.params_to_dict(frozen)) == {name for name in params if GROUPS[group](name)}
    ours = models.params_to_dict(jax.jit(jax.grad(loss_of))(trained, frozen, tiny_prompts))
    whole = models.params_to_dict(jax.jit(jax.grad(loss_of))(*partition(tiny_model), tiny_prompts))
    for name, value in ours.items():
        np.testing.assert_allclose(value, whole[name], rtol=0, atol=TOLERANCE, err_msg=name)
    assert isinstance(trained.norm.weight, nnx.Param)
