"""Broken model folders of both families: what is read is what json, tokenizers, jinja and safetensors alone read.

Each file of a folder is damaged in turn and the folder given to the processor, to the converter, or to both, as they
read it.
"""

from __future__ import annotations

import dataclasses
import functools
import io
import json
import shutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.numpy
from jinja2.sandbox import ImmutableSandboxedEnvironment
from PIL import Image
from tokenizers import Tokenizer

from benchmarks.faults import damage
from benchmarks.faults.outcomes import Case
from benchmarks.made_model import write_tiny
from care_jax.checkpoints.load import load_params
from care_jax.convert import hf_folder, hf_to_jax, mapping
from care_jax.inputs.processor import Processor, load_processor
from care_jax.inputs.prompts import encode_prompt
from care_jax.models import load_model_config
from care_jax.models.model_config import MODEL_TYPES, ModelConfig
from care_jax.rewards.response_format import ANSWER_TAGS
from care_jax.structs import Record

_CONVERTED = {"config.json", hf_folder.INDEX_FILE}  # and the weights; the processor reads the rest, and config.json
_QUESTION = "Add 1?"
_SPELLED_OTHERWISE = {"rope_theta", "mrope_section", "mrope_interleaved", "qkv_bias", "o_bias", "qk_norm", "head_dim"}
_SPELLED_OTHERWISE |= {"tie_word_embeddings", "num_key_value_heads"}


def model_folders(folder: Path, num_cases: int, seed: int) -> Iterator[Case]:
    """Yields folders of either family with one damaged file, which are written to `folder`."""
    sound = {}
    for model_type in MODEL_TYPES:
        source = write_weights(write_tiny(folder / f"sound {model_type}", model_type))
        sound.update({f"{model_type}/{path.name}": path.read_bytes() for path in source.iterdir()})
    for case, name, data in damage.damaged_files(sound, num_cases, seed):
        model_type, _, file = name.partition("/")
        files = {other.partition("/")[2]: content for other, content in sound.items() if other.startswith(model_type)}
        is_weights = file in _CONVERTED or file.endswith(".safetensors")
        for reader, reads in (
            (prompts_are_right, file == "config.json" or not is_weights),
            (weights_are_right, is_weights),
        ):
            if reads:
                use = functools.partial(is_used_rightly, folder / "damaged", {**files, file: data}, reader)
                yield Case(f"{case}, {reader.__name__}", use)


def write_weights(folder: Path) -> Path:
    """Writes two files of random float32 weights, and their index."""
    rng = np.random.default_rng(0)
    sources = mapping.by_hf_name(mapping.weights_of(load_model_config(folder)))
    tensors = {name: 0.02 * rng.standard_normal(source.weight.shape, np.float32) for name, source in sources.items()}
    weight_map = {}
    for number in (0, 1):
        names, file = list(tensors)[number::2], f"model-0000{number + 1}-of-00002.safetensors"
        safetensors.numpy.save_file({name: tensors[name] for name in names}, folder / file, metadata={"format": "pt"})
        weight_map.update(dict.fromkeys(names, file))
    (folder / hf_folder.INDEX_FILE).write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    return folder


def is_used_rightly(folder: Path, files: Mapping[str, bytes], reader: Callable[[Path], bool]) -> bool:
    """Writes a folder with these files alone, and asks the reader."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    for name, content in files.items():
        (folder / name).write_bytes(content)
    return reader(folder)


def weights_are_right(folder: Path) -> bool:
    """Converts the folder, and compares every weight with what safetensors reads."""
    out = folder / "converted"
    hf_to_jax.convert(folder, out)
    params, config = load_params(out), load_model_config(folder)
    index = json.loads((folder / hf_folder.INDEX_FILE).read_bytes())
    theirs: dict[str, np.ndarray] = {}
    for file in set(index["weight_map"].values()):
        theirs |= safetensors.numpy.load_file(folder / file)
    sources = mapping.by_hf_name(mapping.weights_of(config))
    return sources.keys() <= theirs.keys() and all(
        np.array_equal(
            source.weight.to_hf(np.asarray(params[source.weight.ours])[source.weight.place(source.layer)]), theirs[name]
        )
        for name, source in sources.items()
    )


def prompts_are_right(folder: Path) -> bool:
    """Loads the processor, and compares settings, stop ids and a prompt."""
    processor = load_processor(
        folder,
        response_format=dataclasses.replace(ANSWER_TAGS, request=""),
        prompt_buckets=(256,),
        patch_buckets=(256,),
        max_image_tokens=64,
        min_image_tokens=1,
        overlong="error",
    )
    raw = json.loads((folder / "config.json").read_bytes())
    return (
        _config_is_right(load_model_config(folder), raw)
        and _image_settings_are_right(processor, json.loads((folder / "preprocessor_config.json").read_bytes()))
        and _prompt_is_right(processor, folder, raw)
    )


def _config_is_right(config: ModelConfig, raw: dict[str, Any]) -> bool:
    """True if each field that config.json has, in its place, is the one that was read."""
    text = raw.get("text_config") or raw
    rope = text.get("rope_scaling") or text.get("rope_parameters") or {}
    pairs = [
        (getattr(ours, field.name), theirs[field.name])
        for ours, theirs in ((config.text, text), (config.vision, raw["vision_config"]))
        for field in dataclasses.fields(ours)
        if field.name in theirs and field.name not in _SPELLED_OTHERWISE
    ]
    pairs += [(config.text.mrope_section, rope["mrope_section"])] if "mrope_section" in rope else []
    if "rope_theta" in {**text, **rope}:
        pairs.append((config.text.rope_theta, {**text, **rope}["rope_theta"]))
    return all((list(ours) if isinstance(ours, tuple) else ours) == theirs for ours, theirs in pairs)


def _image_settings_are_right(processor: Processor, raw: dict[str, Any]) -> bool:
    spec = processor.image_spec
    return [list(spec.mean), list(spec.std), spec.patch_size] == [
        raw["image_mean"],
        raw["image_std"],
        raw["patch_size"],
    ]


def _prompt_is_right(processor: Processor, folder: Path, raw: dict[str, Any]) -> bool:
    """True if tokenizers and jinja alone give the same tokens, and the same end of a turn."""
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
    template = environment.from_string((folder / "chat_template.jinja").read_bytes().decode())
    question = {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": _QUESTION}]}
    answer = {"role": "assistant", "content": [{"type": "text", "text": "12345"}]}
    rendered = template.render(messages=[question], add_generation_prompt=True)
    expected = tokenizer.encode(rendered, add_special_tokens=False).ids
    picture = io.BytesIO()
    Image.new("RGB", (70, 70)).save(picture, "PNG")
    record = Record("1", "made", f"<image>{_QUESTION}", (picture.getvalue(),), answer="2", answer_kind="integer")
    example = encode_prompt(processor, record)
    if example is None:
        return False
    found = example.token_ids.tolist()
    image_id = raw["image_token_id"]
    found = [each for i, each in enumerate(found) if each != image_id or found[i - 1] != image_id]
    end = tokenizer.encode(
        template.render(messages=[question, answer]).rpartition("12345")[2], add_special_tokens=False
    )
    eos = json.loads((folder / "generation_config.json").read_bytes())["eos_token_id"]
    stops = [each for each in end.ids if each in tokenizer.get_added_tokens_decoder()][:1]
    stops += [each for each in (eos if isinstance(eos, list) else [eos]) if each not in stops]
    return found == expected and list(processor.stop_ids) == stops
