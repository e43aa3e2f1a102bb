"""Folders as three releases of transformers write them: each loads to the model and the processor of the source.

The files in tests/written_by_transformers are what `save_pretrained` of 4.49, 4.57 and 5.23 writes for the configs of
the tiny folders; transformers 4.49 has no Qwen3-VL. 4.49 leaves out what is at its default and puts the chat template
into chat_template.json; 5.23 puts the settings of both preprocessors into processor_config.json.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from care_jax.inputs.processor import load_processor
from care_jax.inputs.prompts import encode_prompt
from care_jax.models import load_model_config
from care_jax.rewards.response_format import ANSWER_TAGS
from care_jax.structs import Record
from tests.families import edit_json, make_folder
from tests.marks import slow_but
from tests.pictures import encode, picture

WRITTEN = Path(__file__).parents[1] / "written_by_transformers"
RELEASES = [(path.parent.name, path.name) for path in sorted(WRITTEN.glob("*/*"))]
LIMITS = {"qwen2_5_vl": (3136, 200704), "qwen3_vl": (4096, 262144)}  # pixels of an image in the source
SETTINGS = {
    "response_format": ANSWER_TAGS,
    "prompt_buckets": (512,),
    "patch_buckets": (1024,),
    "max_image_tokens": 64,
    "min_image_tokens": 1,
    "overlong": "drop",
}


@pytest.fixture(params=slow_but(RELEASES[-2:], RELEASES), ids="-".join)
def folders(request, tiny_folder, tmp_path) -> tuple[Path, Path]:
    """The source in the hub's layout, and what the release made of it, with the same tokenizer."""
    release, family = request.param
    source = make_folder(family, tiny_folder, tmp_path / "source")
    low, high = LIMITS[family]
    edit_json(source / "preprocessor_config.json", size=None, min_pixels=low, max_pixels=high)
    written = Path(shutil.copytree(WRITTEN / release / family, tmp_path / "written"))
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(source / name, written)
    template = (source / "chat_template.jinja").read_text()
    if release == "4.49":
        (written / "chat_template.json").write_text(json.dumps({"chat_template": template}))
    else:
        (written / "chat_template.jinja").write_text(template)
    return source, written


def test_every_release_loads_to_the_same_model(folders):
    """Catches a field that is looked for in one layout only, and a default that differs from the value left out."""
    source, written = folders
    assert load_model_config(written) == load_model_config(source)


def test_every_release_loads_to_the_same_processor(folders):
    """Catches other limits, other normalisation, other stop ids and another rendering of the same prompt."""
    source, written = (load_processor(folder, **SETTINGS) for folder in folders)
    assert written.image_spec == source.image_spec
    assert written.stop_ids == source.stop_ids == (274, 272)
    assert written.pad_token_id == source.pad_token_id
    assert (written.forbidden_mask == source.forbidden_mask).all()
    row = Record("1", "test", "<image>?", (encode(picture(100, 140)),), answer="3", answer_kind="integer")
    ours, theirs = encode_prompt(written, row), encode_prompt(source, row)
    assert ours.token_ids.tolist() == theirs.token_ids.tolist()
    assert (ours.patches == theirs.patches).all()


@pytest.mark.parametrize("family", LIMITS)
def test_settings_in_processor_config_go_first(tiny_folder, tmp_path, family):
    """Catches a stale preprocessor_config.json that is read although transformers 5 reads the other file."""
    folder = make_folder(family, tiny_folder, tmp_path / "model")
    shutil.copy(WRITTEN / "5.23" / family / "processor_config.json", folder)
    edit_json(folder / "preprocessor_config.json", image_mean=[0.1] * 3, patch_size=99)
    assert load_processor(folder, **SETTINGS).image_spec.mean != (0.1,) * 3
