"""config.json of every published size, the parameter counts it gives, and what is refused."""

from __future__ import annotations

import json
import math
from pathlib import Path

import jax
import pytest

from care_jax import models
from care_jax.models.published import published_config
from convert import mapping
from tests.families import FAMILIES, make_folder, read_json

# Of transformers 5.23's models of the same configs, on torch's meta device; a tied head counts once.
NUM_PARAMS = {
    "Qwen2.5-VL-3B": 3_754_622_976,
    "Qwen2.5-VL-7B": 8_292_166_656,
    "Qwen2.5-VL-32B": 33_452_718_336,
    "Qwen2.5-VL-72B": 73_410_777_344,
    "Qwen3-VL-2B": 2_127_532_032,
    "Qwen3-VL-4B": 4_437_815_808,
    "Qwen3-VL-8B": 8_767_123_696,
    "Qwen3-VL-32B": 33_357_390_064,
}


@pytest.mark.parametrize("name", NUM_PARAMS)
def test_published_sizes(name, tmp_path):
    """Catches a bias, norm or merger too many or too few, a head that is not tied, and a weight the table lacks."""
    (tmp_path / "config.json").write_text(json.dumps(published_config(name)))
    config = models.load_model_config(tmp_path)
    model = models.abstract_model(config)
    assert sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(model)) == NUM_PARAMS[name]
    shapes = {key: leaf.shape for key, leaf in models.params_to_dict(model).items()}
    assert {weight.ours: weight.our_shape for weight in mapping.weights_of(config)} == shapes


@pytest.fixture(params=FAMILIES)
def folder(request, tiny_folder, tmp_path) -> Path:
    """The tiny folder of each family."""
    return make_folder(request.param, tiny_folder, tmp_path / "model")


def write(folder: Path, change) -> None:
    """Rewrites config.json after `change` was called with its fields."""
    config = read_json(folder / "config.json")
    change(config)
    (folder / "config.json").write_text(json.dumps(config))


def change_fields(config, change) -> None:
    """Fields of config.json; "rope" and "text" are where the family has them."""
    text = config.get("text_config", config)
    places = {"rope": text["rope_scaling"], "text": text, "vision_config": config["vision_config"]}
    for name, value in change.items():
        places[name].update(value) if isinstance(value, dict) else config.update({name: value})


def refusal(folder: Path) -> str:
    """The error that reading the folder's config gives; "" if it is read."""
    try:
        models.load_model_config(folder)
    except ValueError as error:
        return str(error)
    return ""


def test_every_field_that_is_read_is_needed(folder):
    """Catches a default that silently stands in for what the checkpoint says."""
    config = read_json(folder / "config.json")
    where = {"": config, "vision_config": config["vision_config"]}
    where |= {"text_config": config["text_config"]} if "text_config" in config else {}
    rope = where.get("text_config", config)
    where["rope_scaling"] = rope["rope_scaling"]
    needed = 0
    for place, fields in where.items():
        for name in list(fields):
            value = fields.pop(name)
            (folder / "config.json").write_text(json.dumps(config))
            if told := refusal(folder):
                needed += 1
                assert f"has no field '{name}'" in told
                assert str(folder / "config.json") in told
                assert place in told
            fields[name] = value
    assert needed >= 26


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model_type": "qwen2_vl"}, "has model_type 'qwen2_vl'; supported: 'qwen2_5_vl', 'qwen3_vl'"),
        ({"vision_config": {"hidden_act": "relu"}}, r"\(vision_config\) has hidden_act 'relu'; supported: 'silu'"),
        ({"rope": {"rope_type": "yarn"}}, r"\(rope_scaling\) has rope_type 'yarn'; supported: 'default', 'mrope'"),
        ({"rope": {"type": "yarn"}}, r"\(rope_scaling\) has type 'yarn'; supported: 'default', 'mrope'"),
        ({"rope": {"mrope_interleaved": "?"}}, r"has mrope_interleaved '\?'; supported: (True|False)"),
        ({"text": {"use_sliding_window": True}}, "has use_sliding_window True; supported: False"),
    ],
)
def test_unknown_variants_are_refused(folder, change, message):
    """Catches a model that is computed as something else than it was trained as."""
    write(folder, lambda config: change_fields(config, change))
    with pytest.raises(ValueError, match=message):
        models.load_model_config(folder)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"text": {"hidden_size": "96"}}, "has hidden_size .96.; it must be a whole number from 1 to"),
        ({"text": {"hidden_size": 96.0}}, "has hidden_size 96.0; it must be"),
        ({"text": {"num_hidden_layers": 0}}, "has num_hidden_layers 0; it must be"),
        ({"text": {"rms_norm_eps": None}}, "has rms_norm_eps None; it must be a number above 0"),
        ({"text": {"num_key_value_heads": 3}}, "config.json: num_key_value_heads must divide num_attention_heads"),
        ({"rope": {"mrope_section": None}}, r"\(rope_scaling\) has mrope_section None; it must be a list"),
        ({"rope": {"mrope_section": [6, 5, 4]}}, "mrope_section must be three sizes that add up to half of a head's"),
        ({"rope": {"mrope_section": [8, 8]}}, "mrope_section must be three sizes"),
        ({"vision_config": {"num_heads": 3}}, "hidden_size of vision_config must be a multiple of 4 num_heads"),
        ({"vision_config": {"out_hidden_size": 64}}, "out_hidden_size of vision_config must be hidden_size"),
        ({"vision_config": None}, "has vision_config None; it must be an object"),
        ({"tie_word_embeddings": "no"}, "has tie_word_embeddings 'no'; supported: False, True"),
    ],
)
def test_impossible_values_are_refused(folder, change, message):
    """Catches a traceback, or a model that fails only when it is first run."""
    write(folder, lambda config: change_fields(config, change))
    with pytest.raises(ValueError, match=message):
        models.load_model_config(folder)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"deepstack_visual_indexes": [2, 0]}, r"deepstack_visual_indexes \(2, 0\); they must be ascending"),
        ({"deepstack_visual_indexes": [4]}, r"deepstack_visual_indexes \(4,\)"),
        ({"num_position_embeddings": 24}, "num_position_embeddings 24; it must be a square"),
    ],
)
def test_impossible_qwen3_towers_are_refused(tiny_folder, tmp_path, change, message):
    """Catches deepstack blocks that the tower does not have, and a position grid that is not square."""
    folder = make_folder("qwen3_vl", tiny_folder, tmp_path / "model")
    write(folder, lambda config: config["vision_config"].update(change))
    with pytest.raises(ValueError, match=message):
        models.load_model_config(folder)


def test_files_that_are_no_config(tmp_path):
    """Catches a traceback of a missing or broken file."""
    with pytest.raises(ValueError, match=r"has no config.json"):
        models.load_model_config(tmp_path)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(ValueError, match=r"config.json is not JSON"):
        models.load_model_config(tmp_path)
