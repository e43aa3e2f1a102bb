"""A trained checkpoint in Hugging Face's format: transformers loads it and gives the project's own greedy answers."""

from __future__ import annotations

import contextlib
import io
import json
import logging
import re
import shutil
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
import torch
import transformers
from etils import epath
from PIL import Image
from transformers import AutoImageProcessor, AutoTokenizer, Qwen2_5_VLProcessor

from care_jax import models
from care_jax.checkpoints.load import find_params
from care_jax.configs import demo
from care_jax.convert import jax_to_hf, trained_with
from care_jax.data import loader
from care_jax.inputs import images, preprocessor
from care_jax.inputs.batch import Example, collate
from care_jax.inputs.processor import Processor, make_processor
from care_jax.inputs.prompts import encode_prompt
from care_jax.models import QwenVL
from care_jax.stages import rollout
from tests import weights
from tests.end_to_end import (
    COLD_START,
    COLOURS,
    SmallTask,
    apply,
    final_params,
    flags,
    run,
    small,
    write_small_model,
)

NUM_PROMPTS, RESPONSE_LEN = 4, 16


class HubProcessor(Qwen2_5_VLProcessor):
    """transformers' processor without its video part, which wants torchvision."""

    def check_argument_for_proper_class(self, argument_name, argument):
        """Takes any part."""
        return type(argument)


def _trained(task: SmallTask) -> dict[str, np.ndarray]:
    return final_params(task.cold_start)


def _random(task: SmallTask) -> dict[str, np.ndarray]:
    """Weights so large that the answers of different images differ: harder to meet than a learned form."""
    rng = np.random.default_rng(0)
    params = _trained(task)
    for name, value in params.items():
        scale = 3.0 * value.shape[-2] ** -0.5 if name.endswith("kernel") else 0.2
        params[name] = value + scale * rng.normal(size=value.shape).astype(np.float32)
    return params


def _own_answers(task: SmallTask, params: dict[str, np.ndarray]) -> tuple[Processor, list[Example], list[list[int]]]:
    """Greedy answers of the project's own rollout to the first held-out prompts."""
    processor = make_processor(apply(demo.get_config(), small(task.model, task.data)))
    source = loader.open_source(apply(demo.get_config(), small(task.model, task.data)), "eval")
    encoded = [encode_prompt(processor, source[i]) for i in range(NUM_PROMPTS)]
    examples = [example for example in encoded if example is not None]
    model = models.params_from_dict(models.load_model_config(task.model), jax.device_put(params))
    prompts = jax.device_put(collate(processor, examples))
    answers = rollout.generate(
        model,
        jax.jit(QwenVL.prefill)(model, prompts),
        rollout.nothing_forced(NUM_PROMPTS, 1),
        jax.device_put(processor.forbidden_mask),
        jax.random.key(0),
        sampling=rollout.Sampling(RESPONSE_LEN, 0.0, tuple(processor.stop_ids)),
    )
    token_ids, response_len = np.asarray(answers.token_ids), np.asarray(answers.response_len)
    return processor, examples, [token_ids[i, 0, : response_len[i, 0]].tolist() for i in range(NUM_PROMPTS)]


@pytest.mark.parametrize("make_params", [_trained, _random])
def test_transformers_gives_the_same_greedy_answers(
    make_params, small_task: SmallTask, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Catches a tensor that lands elsewhere, other positions or another image pipeline: token for token."""
    params = make_params(small_task)
    processor, examples, own_answers = _own_answers(small_task, params)
    assert make_params is _trained or len({tuple(answer) for answer in own_answers}) > 1

    exported = tmp_path / "export"
    weights.save_params(tmp_path / "checkpoint", params)
    jax_to_hf.convert(tmp_path / "checkpoint", small_task.model, exported, dtype="float32")
    caplog.clear()
    with caplog.at_level(logging.WARNING):
        transformers.logging.enable_propagation()
        model, report = transformers.Qwen2_5_VLForConditionalGeneration.from_pretrained(
            exported, dtype=torch.float32, output_loading_info=True
        )
        transformers.logging.disable_propagation()
    assert not caplog.records
    assert not any(report[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))

    tokenizer = AutoTokenizer.from_pretrained(exported)
    image_processor = AutoImageProcessor.from_pretrained(exported, backend="pil")
    hub = HubProcessor(image_processor, tokenizer, None, chat_template=tokenizer.chat_template)
    never = [int(i) for i in np.flatnonzero(processor.forbidden_mask)]
    for example, own in zip(examples, own_answers, strict=True):
        record = example.record
        content = [{"type": "image"}, {"type": "text", "text": re.sub("<image>", "", record.prompt)}]
        text = hub.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)
        picture = Image.open(io.BytesIO(record.images[0])).convert("RGB")
        inputs = hub(text=[text], images=[picture], return_tensors="pt")
        assert inputs["input_ids"][0].tolist() == example.token_ids.tolist()
        output = model.generate(**inputs, do_sample=False, max_new_tokens=RESPONSE_LEN, suppress_tokens=never)
        assert output[0, inputs["input_ids"].shape[1] :].tolist() == own


def _write_large_squares(folder: Path) -> Path:
    """Pictures of 112 x 112, 16 tokens as they are, whose colour is the answer."""
    (folder / "images").mkdir(parents=True)
    colours = list(COLOURS.values())
    for split, count in (("train", 48), ("heldout", 12)):
        rows = []
        for i in range(count):
            Image.new("RGB", (112, 112), colours[i % 3]).save(folder / f"images/{split}_{i}.png")
            row = {"id": f"{split}/{i}", "images": [f"images/{split}_{i}.png"], "prompt": "<image>?"}
            rows.append(row | {"answer": str(i % 3), "answer_kind": "integer", "rationale": str(i % 3)})
        (folder / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def _edit(path: Path, change: Any) -> None:
    """Changes the JSON object in a file."""
    fields = json.loads(path.read_text())
    change(fields)
    path.write_text(json.dumps(fields))


def _pixel_limits(folder: Path) -> list[int]:
    size = json.loads((folder / "preprocessor_config.json").read_text())["size"]
    return [size["shortest_edge"], size["longest_edge"]]


@pytest.mark.slow
def test_the_export_is_as_good_in_transformers(
    small_task: SmallTask, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Catches an export that sees pictures of another size than the run trained with, and a snippet that does not run.

    The run saw each picture as one token; with the limits of the source it would be 16, and the answers others.
    """
    model, data = write_small_model(tmp_path / "model"), _write_large_squares(tmp_path / "data")
    _edit(model / "preprocessor_config.json", lambda fields: fields["size"].update(shortest_edge=28**2))
    limits = {"data__max_image_tokens": 1, "data__min_image_tokens": 1}
    arguments = [f"--workdir={tmp_path / 'run'}", *flags(small(model, data, **COLD_START, **limits))]
    trained = run("care_jax.cold_start", "--config=configs/demo.py:cold_start", *arguments, cache=small_task.cache)
    assert trained.returncode == 0, trained.stderr
    evaluated = run("care_jax.evaluate", "--config=configs/demo.py", *arguments, cache=small_task.cache)
    assert evaluated.returncode == 0, evaluated.stderr
    ours = json.loads(evaluated.stdout.splitlines()[-1])["eval/accuracy/mean"]
    assert ours > 0.9

    exported = tmp_path / "export"
    jax_to_hf.convert(tmp_path / "run", model, exported, dtype="float32")
    assert _pixel_limits(exported) == [784, 784]
    assert capsys.readouterr().err == ""

    def hub_processor(folder: str) -> HubProcessor:
        tokenizer = AutoTokenizer.from_pretrained(folder)
        image_processor = AutoImageProcessor.from_pretrained(folder, backend="pil")
        return HubProcessor(image_processor, tokenizer, None, chat_template=tokenizer.chat_template)

    monkeypatch.setattr(transformers.AutoProcessor, "from_pretrained", hub_processor)
    settings = trained_with.read(find_params(tmp_path / "run"))
    assert settings is not None
    program = trained_with.snippet(exported, settings)
    correct = []
    for row in map(json.loads, (data / "heldout.jsonl").read_text().splitlines()):
        asking = program.replace("picture.png", str(data / row["images"][0])).replace("What is shown?", "?")
        with contextlib.redirect_stdout(io.StringIO()) as printed:
            exec(asking, {})
        correct.append(f"<answer>{row['answer']}</answer>" in printed.getvalue())
    assert np.mean(correct) == ours


def _run_with(folder: Path, config: dict[str, Any], model: Path | None = None) -> trained_with.TrainedWith | None:
    """Reads what a run with this config trained with; `model`: the history has the digests of its files."""
    params = folder / "checkpoints" / "3" / "params"
    params.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(config))
    if model is not None:
        values = {"seed": 0} | {f"content of model.folder/{path.name}": "0" for path in model.glob("*config.json")}
        (folder / "history.json").write_text(json.dumps({"started": values, "changes": []}))
    return trained_with.read(epath.Path(params))


@pytest.mark.parametrize("overlong", ["drop", "shrink"])
def test_what_cannot_be_taken_over_is_told(tmp_path: Path, overlong: str) -> None:
    """Catches an export that is worse than its run without a word: other files, shrunk images, no run at all."""
    model = write_small_model(tmp_path / "model")
    config = json.loads(apply(demo.get_config(), {"data.max_image_tokens": 64}).to_json_best_effort())
    config["data"] |= {"overlong": overlong, "patch_buckets": [64]}
    trained = _run_with(tmp_path / "run", config, model)
    assert trained is not None
    assert trained.request == ""
    assert "question + ''" in trained_with.snippet(tmp_path, trained)
    new = shutil.copytree(model, tmp_path / "new")
    told = trained_with.apply(trained, epath.Path(tmp_path), model, new)
    assert [line for line in told if "is not the file that the run trained with" in line]
    assert any("the run shrank images further if a prompt passed 28 tokens or 64 patches" in line for line in told) == (
        overlong == "shrink"
    )
    assert _pixel_limits(new) == [3136, (16 if overlong == "shrink" else 64) * 784]

    before = _pixel_limits(model)
    assert _run_with(tmp_path / "older", {"data": {}}) is None
    step = epath.Path(tmp_path / "older" / "checkpoints" / "3" / "params")
    (line,) = trained_with.apply(None, step, model, shutil.copytree(model, tmp_path / "other"))
    assert "nothing says which pixel limits it was trained with" in line
    assert _pixel_limits(tmp_path / "other") == before
    assert trained_with.apply(None, epath.Path(tmp_path / "weights" / "params"), model, new) == []


@pytest.mark.parametrize("place", ["preprocessor_config.json", "processor_config.json"])
def test_the_limits_go_where_they_are_read(tmp_path: Path, place: str) -> None:
    """Catches limits in a file that transformers does not read, and a video whose limits change with the images'."""
    model = write_small_model(tmp_path / "model")
    path = model / "preprocessor_config.json"
    _edit(path, lambda fields: fields.update(min_pixels=3136, max_pixels=100_000))  # the hub's names, which come first
    if place == "processor_config.json":
        (model / place).write_text(json.dumps({"image_processor": json.loads(path.read_text())}))
        path.unlink()
    vision = models.load_model_config(model).vision
    before = preprocessor.read_image_spec(model, vision, 4, 1000)
    assert preprocessor.read_image_spec(model, vision, 1, 10**6) == before
    preprocessor.write_pixel_limits(model, before)
    assert not (model / "video_preprocessor_config.json").exists()  # nothing has changed
    narrow = preprocessor.read_image_spec(model, vision, 9, 16)
    preprocessor.write_pixel_limits(model, narrow)
    after = preprocessor.read_image_spec(model, vision, 1, 10**6)
    assert (after.min_pixels, after.max_pixels) == (9 * 784, 16 * 784)
    assert (after.video_min_pixels, after.video_max_pixels) == (3136, 16 * 784)  # a frame has no more than an image
    hub = AutoImageProcessor.from_pretrained(model, backend="pil")
    for side in (28, 84, 300):
        grid = hub(images=[Image.new("RGB", (side, side))], return_tensors="np")["image_grid_thw"][0].tolist()
        assert tuple(grid) == images.image_grid(side, side, narrow, narrow.max_pixels)
