"""Adapter folders of the peft library: peft loads what is exported, and what peft saves comes back bit for bit."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import peft
import pytest
import torch
import transformers
from etils import epath
from safetensors.torch import load_file, save_file

from care_jax import models
from care_jax.checkpoints.base import Base
from care_jax.checkpoints.checksums import digest
from care_jax.checkpoints.load import find_params, load_params, read_sums
from care_jax.convert import adapter, hf_to_jax, jax_to_hf
from care_jax.errors import InputError
from care_jax.models.model_config import LoraConfig
from care_jax.models.trained import partition
from tests import weights
from tests.families import FAMILIES, edit_json, make_folder, random_oracle

IDS = torch.tensor([[40, 61, 77, 52, 90]])
TARGETS = {"decoder": ("layers.*",), "some": ("layers.*self_attn.q_proj", "layers.*mlp.*", "visual.*")}


class Trained(NamedTuple):
    """A model with adapters as a run leaves it: the source, the converted base, the adapters' checkpoint."""

    source: Path
    base: Path
    adapters: Path


@pytest.fixture(scope="module", params=[(family, targets) for family in FAMILIES for targets in TARGETS])
def trained(request, tiny_folder, tmp_path_factory) -> Trained:
    """Random weights and random adapters."""
    family, targets = request.param
    root = tmp_path_factory.mktemp("adapter")
    folder = make_folder(family, tiny_folder, root / "model")
    random_oracle(folder).save_pretrained(folder)
    hf_to_jax.convert(folder, root / "base")
    lora = LoraConfig(rank=3, alpha=4.5, rank_stabilised=targets == "some", targets=TARGETS[targets])
    config = models.load_model_config(folder)
    shapes = models.params_to_dict(partition(models.abstract_model(_with(config, lora)))[0])
    rng = np.random.default_rng(0)
    params = {name: 0.2 * rng.normal(size=leaf.shape).astype(np.float32) for name, leaf in shapes.items()}
    weights.save_params(root / "adapters", params)
    beneath = find_params(root / "base")
    adapter.write_base(root / "adapters", Base(str(beneath), digest(read_sums(beneath)), lora))
    return Trained(folder, root / "base", root / "adapters")


def _with(config: models.ModelConfig, lora: LoraConfig) -> models.ModelConfig:
    return models.ModelConfig(config.model_type, config.vision, config.text, lora=lora)


def hub_logits(model: Any) -> np.ndarray:
    """The logits of five tokens of text."""
    with torch.no_grad():
        return model(input_ids=IDS).logits[0].numpy()


def load(folder: Path) -> Any:
    """Transformers' model of a folder, in float32."""
    return transformers.AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32).eval()


def test_peft_gives_the_logits_of_the_merged_export(trained: Trained, tmp_path: Path) -> None:
    """Catches an exported adapter that peft puts elsewhere or scales otherwise, and a merge into other weights."""
    jax_to_hf.convert(trained.adapters, trained.source, tmp_path / "merged", dtype="float32")
    jax_to_hf.convert_adapter(trained.adapters, trained.source, tmp_path / "peft")
    with_adapter = peft.PeftModel.from_pretrained(load(trained.source), tmp_path / "peft")
    missing = peft.set_peft_model_state_dict(
        with_adapter, load_file(tmp_path / "peft" / "adapter_model.safetensors")
    ).unexpected_keys
    assert not missing
    num_adapters = sum(".lora_A." in name for name, _ in with_adapter.named_parameters())
    assert num_adapters == sum(".lora_A." in name for name in load_file(tmp_path / "peft/adapter_model.safetensors"))
    theirs, before = hub_logits(with_adapter.eval()), hub_logits(load(trained.source))
    assert np.abs(theirs - before).max() > 0.05
    np.testing.assert_allclose(hub_logits(load(tmp_path / "merged")), theirs, rtol=0, atol=1e-4)
    theirs_merged = dict(with_adapter.merge_and_unload().named_parameters())
    for name, value in load(tmp_path / "merged").named_parameters():
        np.testing.assert_allclose(value.detach(), theirs_merged[name].detach(), rtol=0, atol=1e-5, err_msg=name)


def test_there_and_back_is_bit_equal(trained: Trained, tmp_path: Path) -> None:
    """Catches a transposition, another type, and settings that are lost on the way."""
    size = jax_to_hf.convert_adapter(trained.adapters, trained.source, tmp_path / "peft")
    back = hf_to_jax.convert_adapter(tmp_path / "peft", trained.source, trained.base, tmp_path / "back")
    assert size == back
    ours, again = load_params(trained.adapters), load_params(tmp_path / "back")
    assert ours.keys() == again.keys()
    for name, value in ours.items():
        np.testing.assert_array_equal(np.asarray(value).view(np.uint32), np.asarray(again[name]).view(np.uint32), name)
    jax_to_hf.convert_adapter(tmp_path / "back", trained.source, tmp_path / "peft2")
    for file in ("adapter_config.json", "adapter_model.safetensors"):
        assert (tmp_path / "peft" / file).read_bytes() == (tmp_path / "peft2" / file).read_bytes()


def test_an_adapter_that_peft_saved_is_read(trained: Trained, tmp_path: Path) -> None:
    """Catches names, bfloat16 and settings as peft writes them."""
    settings = peft.LoraConfig(r=2, lora_alpha=8, target_modules=r".*language_model\.layers\.\d+\.mlp\.(up|down)_proj")
    model = peft.get_peft_model(load(trained.source), settings)
    for name, parameter in model.named_parameters():
        if ".lora_" in name:
            parameter.data = torch.randn_like(parameter).to(torch.bfloat16)
    model.save_pretrained(tmp_path / "peft")
    hf_to_jax.convert_adapter(tmp_path / "peft", trained.source, trained.base, tmp_path / "ours")
    found = load_params(tmp_path / "ours")
    stacks = sorted({name.partition("mlp.")[0] for name in found})  # one a kind of layer
    assert sorted(found) == [
        f"{stack}mlp.{name}_proj.lora_{x}" for stack in stacks for name in ("down", "up") for x in "ab"
    ]
    state = peft.get_peft_model_state_dict(model)
    theirs = state["base_model.model.model.language_model.layers.1.mlp.up_proj.lora_A.weight"].float().numpy()
    np.testing.assert_array_equal(found[f"{stacks[-1]}mlp.up_proj.lora_a"][1], theirs.T)
    assert adapter.read_settings(tmp_path / "peft").scale == 4.0


def _edit_tensors(folder: Path, change: Any) -> None:
    tensors = load_file(folder / "adapter_model.safetensors")
    change(tensors)
    save_file(tensors, folder / "adapter_model.safetensors")


BROKEN = {
    r"has use_dora True": lambda f: edit_json(f / "adapter_config.json", use_dora=True),
    r"has init_lora_weights 'pissa'": lambda f: edit_json(f / "adapter_config.json", init_lora_weights="pissa"),
    r"has alora_invocation_tokens": lambda f: edit_json(f / "adapter_config.json", alora_invocation_tokens=[7]),
    r"has a_field_of_tomorrow True": lambda f: edit_json(f / "adapter_config.json", a_field_of_tomorrow=True),
    r"has peft_type 'IA3'": lambda f: edit_json(f / "adapter_config.json", peft_type="IA3"),
    r"has rank_pattern": lambda f: edit_json(f / "adapter_config.json", rank_pattern={"q_proj": 8}),
    r"has r 0 and lora_alpha 4\.5": lambda f: edit_json(f / "adapter_config.json", r=0),
    r"shape \(3, \d+\), expected \(4, \d+\)": lambda f: edit_json(f / "adapter_config.json", r=4),
    r"has no adapter_model\.safetensors": lambda f: (f / "adapter_model.safetensors").unlink(),
    r"beside model\.layers\.7\.x, which are no linears": lambda f: _edit_tensors(
        f, lambda t: t.update({"base_model.model.model.language_model.layers.7.x.lora_A.weight": torch.ones(3, 4)})
    ),
    r"layers\.1\.mlp\.up_proj\.lora_B\.weight: missing": lambda f: _edit_tensors(
        f, lambda t: t.pop("base_model.model.model.language_model.layers.1.mlp.up_proj.lora_B.weight")
    ),
}


@pytest.mark.parametrize("problem", BROKEN)
def test_other_adapters_are_refused(trained: Trained, tmp_path: Path, problem: str) -> None:
    """Catches an adapter that would compute something else here than in peft, or only a part of one."""
    jax_to_hf.convert_adapter(trained.adapters, trained.source, tmp_path / "peft")
    BROKEN[problem](tmp_path / "peft")
    with pytest.raises(InputError, match=problem):
        hf_to_jax.convert_adapter(tmp_path / "peft", trained.source, trained.base, tmp_path / "ours")
    assert not (tmp_path / "ours").exists()


def test_another_base_is_refused(trained: Trained, tmp_path: Path) -> None:
    """Catches adapters that are merged into weights they were not trained on, and a whole model taken for adapters."""
    with pytest.raises(InputError, match="holds a whole model and no adapters"):
        jax_to_hf.convert_adapter(trained.base, trained.source, tmp_path / "peft")
    file = epath.Path(trained.adapters) / "base" / "metadata"
    text = file.read_text()
    file.write_text(json.dumps(json.loads(text) | {"digest": "1" * 32}))
    try:
        with pytest.raises(InputError, match="holds other weights than those that the adapters"):
            jax_to_hf.convert(trained.adapters, trained.source, tmp_path / "merged")
    finally:
        file.write_text(text)
    assert not (tmp_path / "merged").exists()
    assert jax.tree.leaves(load_params(trained.base))
