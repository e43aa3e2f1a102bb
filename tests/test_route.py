"""The whole way of a real model, at a tiny size of each family: from a Hugging Face folder and back to one."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers

from care_jax import cold_start, train
from care_jax.configs import demo
from care_jax.convert import hf_to_jax, jax_to_hf
from care_jax.data import loader
from care_jax.inputs.processor import make_processor
from care_jax.inputs.prompts import encode_prompt
from care_jax.models import load_model_config
from care_jax.run.folder import METRICS_FILE
from tests.end_to_end import apply, small, write_squares
from tests.families import FAMILIES, make_folder, random_oracle
from tests.pictures import normalised


@pytest.mark.usefixtures("cached")
@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
def test_from_a_hub_folder_to_a_hub_folder(family: str, tiny_folder: Path, tmp_path: Path) -> None:
    """Catches a stage that only knows one family, weights that are not handed on, and files lost on the way."""
    hub = make_folder(family, tiny_folder, tmp_path / "hub")
    random_oracle(hub).save_pretrained(tmp_path / "saved")
    shutil.copy(tmp_path / "saved" / "model.safetensors", hub)
    data = write_squares(tmp_path / "data", noisy=True)
    converted, cold, care, out = (tmp_path / name for name in ("converted", "cold", "care", "out"))

    hf_to_jax.convert(hub, converted)
    changes = {"train__steps": 12, "train__prompts": 8, "optimizer__lr": 3e-3, "model__weights": str(converted)}
    cold_start.run(apply(demo.cold_start(), small(hub, data, **changes)), cold)
    overrides = small(hub, data, train__steps=2, model__weights=str(cold), optimizer__lr=1e-3)
    config = apply(demo.get_config(), overrides)
    train.run(config, care)
    jax_to_hf.convert(care, hub, out, dtype="float32")

    losses = [row["loss"] for row in map(json.loads, (cold / METRICS_FILE).read_text().splitlines()) if "loss" in row]
    assert len(losses) == 12
    assert losses[-1] < 0.8 * losses[0]
    assert {path.name for path in hub.iterdir()} <= {path.name for path in out.iterdir()}

    model, report = transformers.AutoModelForImageTextToText.from_pretrained(
        out, dtype=torch.float32, output_loading_info=True
    )
    assert not any(report[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    before = random_oracle(hub).state_dict()
    moved = [name for name, value in model.state_dict().items() if not torch.equal(value, before[name])]
    assert len(moved) > 0.9 * len(before)

    processor = make_processor(config)
    example = encode_prompt(processor, loader.open_source(config, "eval")[0])
    assert example is not None
    rows = example.vision_index[example.vision_index >= 0]
    unit = load_model_config(hub).vision.merge_unit
    patches = normalised(example.patches, processor.image_spec)
    pixels = patches.reshape(-1, unit, patches.shape[-1])[rows]
    ids = torch.from_numpy(example.token_ids)[None].long()
    side = int(np.sqrt(len(example.patches)))
    answer = model.generate(
        input_ids=ids,
        attention_mask=torch.ones_like(ids),
        mm_token_type_ids=(ids == processor.image_token_id).int(),
        pixel_values=torch.from_numpy(pixels.reshape(-1, pixels.shape[-1])),
        image_grid_thw=torch.tensor([[1, side, side]]),
        do_sample=False,
        max_new_tokens=4,
    )
    assert answer.shape[1] > ids.shape[1]
