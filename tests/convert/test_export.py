"""A trained checkpoint in Hugging Face's format: transformers loads it and gives the project's own greedy answers."""

from __future__ import annotations

import io
import logging
import re
from pathlib import Path

import jax
import numpy as np
import pytest
import torch
import transformers
from PIL import Image
from transformers import AutoImageProcessor, AutoTokenizer, Qwen2_5_VLProcessor

from care_jax import models
from care_jax.configs import demo
from care_jax.convert import jax_to_hf
from care_jax.data import loader
from care_jax.inputs.batch import Example, collate
from care_jax.inputs.processor import Processor, make_processor
from care_jax.inputs.prompts import encode_prompt
from care_jax.models import QwenVL
from care_jax.stages import rollout
from tests import weights
from tests.end_to_end import SmallTask, apply, final_params, small

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
