"""config.json of every published size, the parameter counts it gives, and what is refused."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path

import jax
import pytest
from transformers import AutoConfig

from care_jax import models
from care_jax.convert import mapping
from care_jax.models.model_config import TextConfig, VisionConfig
from care_jax.models.published import published_config
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
    "Qwen3.5-0.8B": 852_985_920,
    "Qwen3.5-2B": 2_213_241_664,
    "Qwen3.5-4B": 4_539_265_536,
    "Qwen3.5-9B": 9_409_813_744,
    "Qwen3.5-27B": 27_356_728_560,
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
    places = {"rope": text[rope_of(text)], "text": text, "vision_config": config["vision_config"]}
    for name, value in change.items():
        places[name].update(value) if isinstance(value, dict) else config.update({name: value})


def rope_of(text) -> str:
    """The field of the text config that has its rotary settings."""
    return next(name for name in ("rope_scaling", "rope_parameters") if name in text)


def refusal(folder: Path) -> str:
    """The error that reading the folder's config gives; "" if it is read."""
    try:
        models.load_model_config(folder)
    except ValueError as error:
        return str(error)
    return ""


SECTIONS = {"text": TextConfig, "vision": VisionConfig}
SPELLED_OTHERWISE = {"rope_theta", "mrope_section", "mrope_interleaved", "qkv_bias", "o_bias", "qk_norm", "head_dim"}
MROPE_SECTION = {
    "qwen2_5_vl": [16, 24, 24],
    "qwen3_vl": [24, 20, 20],
    "qwen3_5": [11, 11, 10],
}  # written into transformers' modeling files


def assert_read_as_transformers_reads(folder: Path, config: models.ModelConfig) -> None:
    """Compares every field with the configuration that transformers makes of the folder."""
    theirs = AutoConfig.from_pretrained(folder)
    for section, kind in SECTIONS.items():
        ours, hub = getattr(config, section), getattr(theirs, f"{section}_config")
        names = {field.name for field in dataclasses.fields(kind)} - SPELLED_OTHERWISE - {"tie_word_embeddings"}
        for name in names & set(hub.to_dict()):
            value = getattr(hub, name)
            assert getattr(ours, name) == (tuple(value) if isinstance(value, list | tuple) else value), name
        assert len(names & set(hub.to_dict())) >= 8
    rope = theirs.text_config.rope_parameters
    assert config.text.rope_theta == rope["rope_theta"]
    assert list(config.text.mrope_section) == rope.get("mrope_section", MROPE_SECTION[config.model_type])
    assert config.text.partial_rotary_factor == rope.get("partial_rotary_factor", 1.0)
    kinds = theirs.text_config.to_dict().get("layer_types") or ["full_attention"] * config.text.num_hidden_layers
    assert [config.text.layers_of(kind) for kind in dict.fromkeys(config.text.period)] == [
        tuple(i for i, each in enumerate(kinds) if each == kind) for kind in dict.fromkeys(config.text.period)
    ]
    assert config.text.tie_word_embeddings == theirs.tie_word_embeddings
    width = theirs.text_config.hidden_size // theirs.text_config.num_attention_heads
    assert config.text.head_dim == theirs.text_config.to_dict().get("head_dim", width)
    assert config.text.o_bias == theirs.text_config.to_dict().get("attention_bias", False)


@pytest.mark.parametrize("family", FAMILIES)
def test_defaults_are_those_of_transformers(tmp_path, family):
    """Catches a default of our own: transformers 4.49 leaves out each field that is at its default."""
    width = {"qwen2_5_vl": 8192, "qwen3_vl": 4096, "qwen3_5": 4096}[family]  # else out_hidden_size would not fit
    config = {"model_type": family, "text_config": {}, "vision_config": {"out_hidden_size": width}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert_read_as_transformers_reads(tmp_path, models.load_model_config(tmp_path))


def test_a_field_that_is_left_out_is_read_as_transformers_reads_it(folder):
    """Catches a field without a default, and one that is looked for in another place than transformers looks."""
    config = read_json(folder / "config.json")
    text = config.get("text_config", config)
    read = 0
    for fields in (config, config["vision_config"], text, text[rope_of(text)]):
        for name in list(fields):
            value = fields.pop(name)
            (folder / "config.json").write_text(json.dumps(config))
            if told := refusal(folder):  # sizes that no longer go together, or what makes it a model of the family
                assert "copy the file" in told or "ascending blocks" in told or f"has no field {name!r}" in told, told
            else:
                read += 1
                assert_read_as_transformers_reads(folder, models.load_model_config(folder))
            fields[name] = value
    assert read >= 25


@pytest.mark.parametrize("name", ["num_hidden_layers", "vocab_size", "hidden_size", "num_attention_heads"])
@pytest.mark.parametrize("value", [10**9, 10**12, 10**400, -3, 0, True, 2.0, float("nan"), float("inf"), [4], {}, "4"])
def test_sizes_that_no_model_has_are_refused_before_anything_is_made(folder, name, value):
    """Catches a start that lists a billion layers or takes a terabyte, and the tracebacks of other types."""
    write(folder, lambda config: change_fields(config, {"text": {name: value}}))
    told = refusal(folder)
    assert f"has {name} " in told
    assert len(told.splitlines()) == 1
    assert len(told) < 400


@pytest.mark.parametrize("value", [10**9, -1, None, "2", [-1], {}, float("nan")])
def test_every_size_of_the_tower_is_bounded(folder, value):
    """Catches one field that was forgotten."""
    for name in read_json(folder / "config.json")["vision_config"]:
        if name not in {"model_type", "initializer_range"}:
            config = read_json(folder / "config.json")
            write(folder, lambda fields, name=name: fields["vision_config"].update({name: value}))
            assert f"has {name} " in refusal(folder) or name == "tokens_per_second", name
            (folder / "config.json").write_text(json.dumps(config))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model_type": "qwen2_vl"}, "has model_type 'qwen2_vl'; supported: 'qwen2_5_vl', 'qwen3_vl', 'qwen3_5'"),
        ({"vision_config": {"hidden_act": "relu"}}, r"\(vision_config\) has hidden_act 'relu'; supported: 'silu'"),
        ({"rope": {"rope_type": "yarn"}}, r"\(rope_[a-z]+\) has rope_type 'yarn'; supported: 'default', 'mrope'"),
        ({"rope": {"type": "yarn"}}, r"\(rope_[a-z]+\) has type 'yarn'; supported: 'default', 'mrope'"),
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
        ({"rope": {"mrope_section": None}}, r"\(rope_[a-z]+\) has mrope_section None; it must be a list"),
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
    with pytest.raises(ValueError, match=r"config.json: not JSON"):
        models.load_model_config(tmp_path)
