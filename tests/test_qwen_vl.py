"""The model against transformers' own Qwen2.5-VL on random weights, in float32: features, states, logits, gradients."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers

from care_jax import models, rollout, score
from care_jax.models import decoder
from care_jax.structs import Prompts
from convert import mapping, qwen2_5_vl
from tests.pictures import encode, picture, question

NUM_NEW = 24  # tokens of a greedy generation
STATE_TOLERANCE, LOGIT_TOLERANCE, GRADIENT_TOLERANCE = 1e-5, 1e-4, 1e-4
CASES = {
    "one image": ("<image>=?", (84, 84)),
    "two images of odd sizes": ("a<image>b<image>?", (140, 28), (84, 84)),
    "less than a window": ("<image>12", (28, 28)),
    "text only": ("1+2=?",),
}
ALL = "all in one batch"


class Row(NamedTuple):
    """One prompt as transformers wants it."""

    token_ids: torch.Tensor  # [1, P]
    pixels: torch.Tensor | None
    grids: torch.Tensor | None

    def inputs(self, *more: int) -> dict[str, torch.Tensor]:
        """Arguments of the model for the prompt and `more` tokens."""
        ids = torch.cat([self.token_ids, torch.tensor([more], dtype=torch.long)], dim=1)
        if self.pixels is None:
            return {"input_ids": ids}
        types = (ids == 278).int()  # image_token_id
        return {"input_ids": ids, "mm_token_type_ids": types, "pixel_values": self.pixels, "image_grid_thw": self.grids}


@pytest.fixture(scope="module")
def oracle(tiny_folder: Path) -> transformers.Qwen2_5_VLForConditionalGeneration:
    """Random weights at which every parameter matters and activations stay near 1."""
    torch.manual_seed(0)
    config = transformers.AutoConfig.from_pretrained(tiny_folder, attn_implementation="eager")
    model = transformers.Qwen2_5_VLForConditionalGeneration(config).eval()
    for name, parameter in model.named_parameters():
        if parameter.ndim == 1:
            start = 0.0 if name.endswith("bias") else 1.0
            parameter.data.normal_(start, 0.2)
        else:
            parameter.data.normal_(0.0, 0.03 if "embed_tokens" in name else parameter[0].numel() ** -0.5)
    return model


@pytest.fixture(scope="module")
def model(oracle, tiny_folder) -> models.QwenVL:
    """The same weights through the converter."""
    config = models.load_model_config(tiny_folder)
    tensors = {mapping.hub_name(name): tensor.detach().numpy() for name, tensor in oracle.state_dict().items()}
    del tensors["lm_head.weight"]  # tied
    return models.params_from_dict(config, jax.device_put(mapping.to_jax(tensors, qwen2_5_vl.table(config))))


@pytest.fixture(scope="module")
def rows(tiny_folder, tiny_processor) -> dict[str, Row]:
    pixels_of = transformers.AutoImageProcessor.from_pretrained(tiny_folder, backend="pil")
    pixels_of.size = {"shortest_edge": 28**2, "longest_edge": 16 * 28**2}  # the limits of tiny_processor
    rows = {}
    for name, (prompt, *sizes) in CASES.items():
        pictures = [picture(*size) for size in sizes]
        example = tiny_processor.encode_prompt(question(prompt, *[encode(image) for image in pictures]))
        images = pixels_of(images=pictures, return_tensors="pt") if pictures else None
        ids = torch.from_numpy(example.token_ids)[None].long()
        rows[name] = Row(ids, images and images["pixel_values"], images and images["image_grid_thw"])
    return rows


@pytest.fixture(scope="module")
def theirs(oracle, rows):
    """transformers' outputs of every row, each alone and without padding."""
    with torch.no_grad():
        return {name: oracle(**row.inputs(), output_hidden_states=True) for name, row in rows.items()}


def batch_of(case: str, processor) -> tuple[list[str], Prompts]:
    """A case alone, or all of them together; every batch has the same padded sizes."""
    names = list(CASES) if case == ALL else [case]
    records = [question(CASES[name][0], *[encode(picture(*size)) for size in CASES[name][1:]]) for name in names]
    return names, jax.device_put(processor.collate([processor.encode_prompt(record) for record in records]))


@jax.jit
def run_prompts(model: models.QwenVL, prompts: Prompts) -> tuple[jax.Array, list[jax.Array], jax.Array]:
    """Vision features [B, I / 4, D], the states [B, P, D] after 0, 1, .. L layers (the last one normed), logits."""
    rope = model._rope(prompts.position_ids)
    states = [model._embed_prompts(prompts)]
    for index in range(model.config.text.num_hidden_layers):
        layer = jax.tree.map(lambda x, i=index: x[i : i + 1], model.layers)
        states.append(decoder.prefill(layer, states[-1], rope)[0])
    states[-1] = model.norm(states[-1])
    return model.visual(prompts, jnp.dtype("float32")), states, model.logits(states[-1])


@pytest.mark.parametrize("case", [*CASES, ALL])
def test_prompts_equal_transformers(oracle, model, rows, theirs, tiny_processor, case):
    """Catches windows, rotary sections, biases, norms and positions that differ, and padding that leaks."""
    names, prompts = batch_of(case, tiny_processor)
    features, states, logits = run_prompts(model, prompts)
    for b, name in enumerate(names):
        length = int(prompts.prompt_len[b])
        assert length == rows[name].token_ids.shape[1]
        if rows[name].pixels is not None:
            with torch.no_grad():
                expected = oracle.model.visual(rows[name].pixels, rows[name].grids).pooler_output
            index = np.asarray(prompts.vision_index[b])
            np.testing.assert_allclose(features[b][index[index >= 0]], expected, rtol=0, atol=STATE_TOLERANCE)
        assert len(states) == len(theirs[name].hidden_states)
        for layer, (ours, expected) in enumerate(zip(states, theirs[name].hidden_states, strict=True)):
            np.testing.assert_allclose(ours[b, :length], expected[0], rtol=0, atol=STATE_TOLERANCE, err_msg=str(layer))
        np.testing.assert_allclose(logits[b, :length], theirs[name].logits[0], rtol=0, atol=LOGIT_TOLERANCE)


def test_greedy_generation_equals_transformers(oracle, model, rows, tiny_processor):
    """Catches a cache, a slot or a position of a new token that is off; the oracle has no cache."""
    names, prompts = batch_of(ALL, tiny_processor)
    sampling = rollout.Sampling(NUM_NEW, 0.0, ())
    forbidden = tiny_processor.forbidden_mask  # an image token would want an image
    ours = rollout.generate(
        model,
        rollout.prefill(model, prompts),
        rollout.nothing_forced(len(names), 1),
        jnp.asarray(forbidden),
        jax.random.key(0),
        sampling=sampling,
    )
    for b, name in enumerate(names):
        tokens = ours.token_ids[b, 0].tolist()
        with torch.no_grad():
            logits = oracle(**rows[name].inputs(*tokens)).logits[0, -NUM_NEW - 1 : -1]
        # Each token is the oracle's choice after the ones before it, so all of them are its greedy generation.
        assert logits.masked_fill(torch.from_numpy(forbidden), -torch.inf).argmax(-1).tolist() == tokens, name
    assert len(np.unique(ours.token_ids)) > 4, "a generation that says nothing"


def test_gradients_equal_transformers(oracle, model, rows, tiny_processor):
    """Catches a stopped gradient, a parameter used twice or not at all, and padding that reaches a gradient."""
    names, prompts = batch_of(ALL, tiny_processor)
    rng = np.random.default_rng(0)
    token_ids = rng.integers(0, 256, (len(names), 2, 6))
    mask = rng.random(token_ids.shape) < 0.6

    oracle.zero_grad()
    for b, name in enumerate(names):
        length = rows[name].token_ids.shape[1]
        for j in range(token_ids.shape[1]):
            logits = oracle(**rows[name].inputs(*token_ids[b, j].tolist())).logits[0, length - 1 : -1]
            logprobs = torch.log_softmax(logits, -1)[range(token_ids.shape[2]), token_ids[b, j]]
            (-(logprobs * torch.from_numpy(mask[b, j])).sum() / mask.sum()).backward()
    expected = {mapping.hub_name(name): parameter.grad.numpy() for name, parameter in oracle.named_parameters()}

    grads = masked_loss_gradient(model, prompts, jnp.asarray(token_ids, jnp.int32), jnp.asarray(mask))
    ours = mapping.to_hf(models.params_to_dict(grads), qwen2_5_vl.table(model.config), "hub")
    assert ours.keys() == expected.keys()
    off = {name: np.abs(ours[name] - grad).max() / np.abs(grad).max() for name, grad in expected.items()}
    assert max(off.values()) <= GRADIENT_TOLERANCE, sorted(off.items(), key=lambda item: -item[1])[:5]


@jax.jit
@functools.partial(jax.grad)
def masked_loss_gradient(model: models.QwenVL, prompts: Prompts, token_ids: jax.Array, mask: jax.Array) -> jax.Array:
    """-mean over the mask of the branches' log-probs, by the model."""
    hidden = model.forward_branches(prompts, token_ids).predicting
    allowed = jnp.zeros(model.config.text.vocab_size, bool)
    logprobs = score.token_scores(model, hidden, token_ids, forbidden_mask=allowed, temperature=1.0, chunk=16).logprobs
    return -jnp.sum(jnp.where(mask, logprobs, 0.0)) / jnp.sum(mask, dtype=jnp.float32)
