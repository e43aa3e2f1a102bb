"""The model families against transformers' own, on random weights in float32: stages, logits, gradients, tokens."""

from __future__ import annotations

import copy
import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers

from care_jax import models
from care_jax.convert import mapping
from care_jax.inputs.batch import collate
from care_jax.inputs.processor import Processor
from care_jax.inputs.prompts import encode_prompt
from care_jax.models import decoder
from care_jax.models.attention import segment_attention
from care_jax.models.qwen_vl import logits
from care_jax.models.vision import own_patches, rotary_tables
from care_jax.stages import rollout
from care_jax.structs import Prompts, Record, Video
from tests import weights
from tests.families import FAMILIES, make_folder, random_oracle, tiny_processor
from tests.marks import slow_but
from tests.oracle import layer_of
from tests.packings import branch_logprobs, make_packing
from tests.pictures import encode, frames_of, hub_order, hub_video, picture, question

NUM_NEW = 64  # tokens of a greedy generation
STATE_TOLERANCE, LOGIT_TOLERANCE, GRADIENT_TOLERANCE = 1e-5, 1e-4, 1e-4
IMAGE_TOKEN, VIDEO_TOKEN = 278, 279
FPS = 2.4  # of videos: a step of 1.67 M-RoPE positions in Qwen2.5-VL

# Sizes of images, and of videos with the number of frames, by the order of their marks.
CASES = {
    "one image": ("<image>=?", [(84, 84)], []),
    "three images of odd sizes": ("a<image>b<image><image>?", [(140, 28), (84, 84), (61, 150)], []),
    "less than a window": ("<image>12", [(28, 28)], []),
    "text only": ("1+2=?", [], []),
    "video": ("<video>?", [], [(3, 60, 96)]),
    "image between videos": ("<video>+<image>-<video>?", [(84, 60)], [(4, 32, 64), (2, 96, 32)]),
}
ALL = "all in one batch"


class Row(NamedTuple):
    """One prompt as transformers wants it."""

    token_ids: torch.Tensor  # [1, P]
    images: dict[str, torch.Tensor]  # pixel_values, image_grid_thw
    videos: dict[str, torch.Tensor]  # pixel_values_videos, video_grid_thw, second_per_grid_ts

    def inputs(self, *more: int) -> dict[str, torch.Tensor]:
        """Arguments of the model for the prompt and `more` tokens."""
        ids = torch.cat([self.token_ids, torch.tensor([more], dtype=torch.long)], dim=1)
        types = (ids == IMAGE_TOKEN).int() + 2 * (ids == VIDEO_TOKEN).int()
        return {"input_ids": ids, "mm_token_type_ids": types, **self.images, **self.videos}


class Family(NamedTuple):
    """A family's two models, and the cases for both."""

    oracle: transformers.PreTrainedModel
    model: models.QwenVL
    processor: Processor
    rows: dict[str, Row]


def record_of(case: str) -> Record:
    """The question of a case."""
    prompt, sizes, videos = CASES[case]
    clips = tuple(Video(tuple(map(encode, frames_of(*size))), FPS) for size in videos)
    return question(prompt, *[encode(picture(*size)) for size in sizes], videos=clips)


def make_row(case: str, processor: Processor, pixels_of: Callable, oracle: transformers.PreTrainedModel) -> Row:
    """A case's prompt, with images and videos as transformers' processor makes them."""
    _, sizes, videos = CASES[case]
    ids = torch.from_numpy(encode_prompt(processor, record_of(case)).token_ids)[None].long()
    row = Row(ids, {}, {})
    if sizes:
        row.images.update(pixels_of(images=[picture(*size) for size in sizes], return_tensors="pt"))
    if videos:
        patches, grids = zip(*[hub_video(pixels_of, frames_of(*size)) for size in videos], strict=True)
        row.videos.update(pixel_values_videos=torch.cat(patches), video_grid_thw=torch.tensor(grids))
        if oracle.config.model_type == "qwen2_5_vl":
            row.videos.update(second_per_grid_ts=torch.full((len(videos),), 2 / FPS))
    return row


@pytest.fixture(scope="module", params=slow_but(["qwen3_vl", "qwen3_5"], FAMILIES))
def family(request, tiny_folder, tmp_path_factory) -> Family:
    """The oracle is saved by transformers; our model is read from what it has saved, config and weights."""
    folder = make_folder(request.param, tiny_folder, tmp_path_factory.mktemp("family") / "model")
    oracle = random_oracle(folder)
    saved = folder / "saved"
    oracle.save_pretrained(saved)
    model = models.params_from_dict(models.load_model_config(saved), weights.read_hf(saved))
    processor = tiny_processor(folder, (80, 112), max_image_tokens=28)
    pixels_of = transformers.AutoImageProcessor.from_pretrained(folder, backend="pil")
    rows = {case: make_row(case, with_videos(processor, case), pixels_of, oracle) for case in CASES}
    return Family(oracle, model, processor, rows)


def with_videos(processor: Processor, *cases: str) -> Processor:
    """The processor of a run whose data are these cases."""
    return dataclasses.replace(processor, videos=any(CASES[case][2] for case in cases))


def batch_of(case: str, processor: Processor) -> tuple[list[str], Prompts]:
    """A case alone, or all of them together; every batch has the same padded sizes."""
    names = list(CASES) if case == ALL else [case]
    processor = with_videos(processor, *names)
    return names, jax.device_put(collate(processor, [encode_prompt(processor, record_of(name)) for name in names]))


class Stages(NamedTuple):
    """Everything on the way from patches and tokens to logits."""

    blocks: list  # [B, I, width] the patch embedding, and the state after each vision block
    deepstack: jax.Array  # [E, B, P, D]
    layers: list  # [B, P, D] into the first decoder layer, and after each; the last one normed
    logits: jax.Array  # [B, P, V]


def after_layer(model: models.QwenVL, prompts: Prompts, index: int, x: jax.Array) -> jax.Array:
    """The state after decoder layer `index` alone, normed after the last, from the state before it."""
    layer = jax.tree.map(lambda leaf: leaf[None], layer_of(model, index))
    rope, (_, deepstack) = model._rope(prompts.position_ids), model._embed_prompts(prompts)
    added = deepstack[index : index + 1]
    x, _ = decoder.prefill(layer, x, rope, added, prompts.prompt_len, attention="xla")
    return model.norm(x) if index == model.config.text.num_hidden_layers - 1 else x


@jax.jit
def run_prompts(model: models.QwenVL, prompts: Prompts) -> Stages:
    """Our model on prompts, one block and one layer after the other."""
    tower, config = model.visual, model.config
    cos, sin = rotary_tables(prompts.patch_position_ids, config.vision)
    own = own_patches(prompts, config.vision)
    blocks = [tower.patch_embed(own.patches)]
    x = blocks[0] + tower._learned_positions(own) if config.vision.grid_side else blocks[0]
    for index in range(config.vision.depth):
        whole = not config.vision.window_size or index in config.vision.fullatt_block_indexes
        ids = prompts.image_ids if whole else prompts.window_ids
        block = jax.tree.map(lambda x, i=index: x[i], tower.blocks)
        x = block(x, cos, sin, functools.partial(segment_attention, segment_ids=ids, implementation="xla"))
        blocks.append(x)

    x, deepstack = model._embed_prompts(prompts)
    layers = [x]
    for index in range(config.text.num_hidden_layers):
        layers.append(after_layer(model, prompts, index, layers[-1]))
    return Stages(blocks, deepstack, layers, logits(model.head, layers[-1]))


def run_oracle(oracle: transformers.PreTrainedModel, row: Row) -> dict[str, list[np.ndarray]]:
    """Outputs of transformers' modules on a prompt without padding, in the order of their calls.

    For the decoder's layers these are their inputs. Images come first, then videos.
    """
    seen: dict[str, list[np.ndarray]] = {"deepstack": []}

    def keep(name: str, value: torch.Tensor) -> None:
        seen.setdefault(name, []).append(value.detach().numpy().reshape(-1, value.shape[-1]))

    text, visual = oracle.model.language_model, oracle.model.visual
    hooks = [layer.register_forward_pre_hook(lambda _, args: keep("layers", args[0])) for layer in text.layers]
    for name, modules in {
        "layers": [text.norm],
        "blocks": [visual.patch_embed, *visual.blocks],
        "deepstack": getattr(visual, "deepstack_merger_list", []),
    }.items():
        for module in modules:
            hooks.append(module.register_forward_hook(lambda _, __, out, name=name: keep(name, out)))
    with torch.no_grad():
        keep("logits", oracle(**row.inputs()).logits)
    for hook in hooks:
        hook.remove()
    if hasattr(visual.config, "window_size") and "blocks" in seen:  # only the patch embedding is in reading order
        grids = [inputs[name].tolist() for inputs in (row.images, row.videos) for name in inputs if "grid_thw" in name]
        for call, of_call in enumerate(grids):
            seen["blocks"][call * (1 + len(visual.blocks))] = seen["blocks"][call * (1 + len(visual.blocks))][
                hub_order(of_call, 4)
            ]
    return seen


def hub_positions(oracle: transformers.PreTrainedModel, inputs: dict[str, torch.Tensor]) -> np.ndarray:
    """Positions [3, tokens] from transformers."""
    return oracle.model.get_rope_index(**{k: v for k, v in inputs.items() if "pixel" not in k})[0][:, 0].numpy()


def assert_close(ours: jax.Array, expected: np.ndarray, tolerance: float, stage: str) -> None:
    """Compares a stage's states; an error names the stage."""
    np.testing.assert_allclose(ours, expected, rtol=0, atol=tolerance, err_msg=stage)


@pytest.mark.parametrize("case", slow_but([ALL], [*CASES, ALL]))
def test_prompts_equal_transformers(family, case):
    """Catches windows, rotary sections, deepstack layers, biases, norms, activations and positions that differ.

    Also padding or another image that leaks.
    """
    oracle, model, processor, rows = family
    names, prompts = batch_of(case, processor)
    ours = jax.device_get(run_prompts(model, prompts))
    # The norm behind a delta rule divides by what may be near 0, and the layers after it hand that error on.
    is_linear = "linear_attention" in model.config.text.period
    tolerance_of_states = LOGIT_TOLERANCE if is_linear else STATE_TOLERANCE
    for b, name in enumerate(names):
        length, row = int(prompts.prompt_len[b]), rows[name]
        theirs = run_oracle(oracle, row)
        assert length == row.token_ids.shape[1]
        np.testing.assert_array_equal(prompts.position_ids[b, :, :length], hub_positions(oracle, row.inputs()))

        ids, index = np.asarray(prompts.token_ids[b]), np.asarray(prompts.vision_index[b])
        num_blocks, num_taps = len(ours.blocks), len(ours.deepstack)
        kinds = [kind for kind, inputs in ((IMAGE_TOKEN, row.images), (VIDEO_TOKEN, row.videos)) if inputs]
        for call, kind in enumerate(kinds):
            patches = (np.sort(index[ids == kind])[:, None] * 4 + np.arange(4)).ravel()
            for stage, state in enumerate(ours.blocks):
                expected = theirs["blocks"][call * num_blocks + stage]
                assert_close(state[b, patches], expected, STATE_TOLERANCE, f"{name}, block {stage}")
            for tap, state in enumerate(ours.deepstack):
                expected = theirs["deepstack"][call * num_taps + tap]
                assert_close(state[b, ids == kind], expected, STATE_TOLERANCE, f"{name}, deepstack {tap}")
        assert not np.asarray(ours.deepstack)[:, b, index < 0].any()

        assert len(ours.layers) == len(theirs["layers"])
        for stage, (state, expected) in enumerate(zip(ours.layers, theirs["layers"], strict=True)):
            assert_close(state[b, :length], expected, tolerance_of_states, f"{name}, layer {stage}")
        assert_close(ours.logits[b, :length], theirs["logits"][0], LOGIT_TOLERANCE, name)


def test_each_decoder_layer_equals_transformers(family):
    """Catches what a layer alone does otherwise, on transformers' own states."""
    oracle, model, processor, rows = family
    names, prompts = batch_of(ALL, processor)
    lengths = np.asarray(prompts.prompt_len)
    theirs = [run_oracle(oracle, rows[name])["layers"] for name in names]
    for index in range(model.config.text.num_hidden_layers):
        before = np.zeros((*prompts.token_ids.shape, model.config.text.hidden_size), np.float32)
        for b, states in enumerate(theirs):
            before[b, : lengths[b]] = states[index]
        after = jax.jit(after_layer, static_argnums=2)(model, prompts, index, before)
        for b, states in enumerate(theirs):
            assert_close(after[b, : lengths[b]], states[index + 1], STATE_TOLERANCE, f"{names[b]}, layer {index}")


@pytest.mark.slow
def test_a_whole_forward_is_its_stages(family):
    """Catches deepstack features that the layer scan adds after another layer or not at all."""
    _, model, processor, _ = family
    _, prompts = batch_of(ALL, processor)
    stages = run_prompts(model, prompts)
    last = np.asarray(prompts.prompt_len) - 1
    expected = np.asarray(stages.layers[-1])[np.arange(len(last)), last]
    assert_close(model.prefill(prompts).last_hidden, expected, STATE_TOLERANCE, "prefill")


@pytest.mark.slow
def test_bfloat16_stays_as_near_as_transformers(family):
    """Catches rotary angles or logits that are computed in bfloat16, which trains, and trains another model."""
    oracle, model, processor, rows = family
    names, prompts = batch_of(ALL, processor)
    config = dataclasses.replace(model.config, compute_dtype="bfloat16")
    rough = models.params_from_dict(config, models.params_to_dict(model))
    exact, ours = (
        np.asarray(jax.nn.log_softmax(logits(each.head, jax.jit(models.QwenVL.prefill)(each, prompts).last_hidden)))
        for each in (model, rough)
    )
    low = copy.deepcopy(oracle).to(torch.bfloat16)
    theirs = []
    for name in names:
        inputs = {k: v.to(torch.bfloat16) if "pixel" in k else v for k, v in rows[name].inputs().items()}
        with torch.no_grad():
            theirs.append(torch.log_softmax(low(**inputs).logits[0, -1].float(), -1).numpy())
    error, allowed = (np.abs(logprobs - exact).mean() for logprobs in (ours, np.stack(theirs)))
    assert 1e-4 < error <= 1.1 * allowed


def test_positions_of_a_response_go_on_from_the_prompt(family):
    """Catches decode positions that differ from those of a forward pass over prompt and response."""
    oracle, _, processor, rows = family
    for name, row in rows.items():
        example = encode_prompt(with_videos(processor, name), record_of(name))
        whole = hub_positions(oracle, row.inputs(*[65] * 5))
        assert whole[:, -5:].tolist() == [[example.next_position + n for n in range(5)]] * 3, name


def test_greedy_generation_equals_transformers(family):
    """Catches a cache, a slot or a position of a new token that is off."""
    oracle, model, processor, rows = family
    names, prompts = batch_of(ALL, processor)
    sampling = rollout.Sampling(NUM_NEW, 0.0, ())
    forbidden = processor.forbidden_mask  # an image token would want an image
    ours = rollout.generate(
        model,
        jax.jit(models.QwenVL.prefill)(model, prompts),
        rollout.nothing_forced(len(names), 1),
        jnp.asarray(forbidden),
        jax.random.key(0),
        sampling=sampling,
    )
    config = transformers.GenerationConfig(
        max_new_tokens=NUM_NEW, do_sample=False, use_cache=True, suppress_tokens=np.flatnonzero(forbidden).tolist()
    )
    oracle.generation_config.eos_token_id = None  # nothing ends a response here
    for b, name in enumerate(names):
        inputs = rows[name].inputs()
        theirs = oracle.generate(
            **inputs, attention_mask=torch.ones_like(inputs["input_ids"]), generation_config=config
        )
        assert ours.token_ids[b, 0].tolist() == theirs[0, -NUM_NEW:].tolist(), name
    assert len(np.unique(ours.token_ids)) > 10, "a generation that says nothing"


def test_gradients_equal_transformers(family):
    """Catches a stopped gradient, a parameter used twice or not at all, and padding that reaches a gradient."""
    oracle, model, processor, rows = family
    names, prompts = batch_of(ALL, processor)
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
    ours = weights.to_hf(models.params_to_dict(grads), mapping.weights_of(model.config))
    assert ours.keys() == expected.keys()
    off = {name: np.abs(ours[name] - grad).max() / np.abs(grad).max() for name, grad in expected.items()}
    assert max(off.values()) <= GRADIENT_TOLERANCE, sorted(off.items(), key=lambda item: -item[1])[:5]


@pytest.mark.slow
def test_text_alone_has_finite_gradients(family):
    """Catches NaN from softmax over patches that are all padding, where a batch holds no image at all."""
    _, model, processor, _ = family
    _, prompts = batch_of("text only", processor)
    grads = masked_loss_gradient(model, prompts, jnp.zeros((1, 1, 3), jnp.int32), jnp.ones((1, 1, 3), bool))
    assert all(np.isfinite(grad).all() for grad in jax.tree.leaves(grads))
    assert not any(np.asarray(grad).any() for grad in jax.tree.leaves(grads.visual))


def masked_loss_gradient(model: models.QwenVL, prompts: Prompts, token_ids: jax.Array, mask: jax.Array) -> Any:
    """The gradient of -mean over the mask of the branches' log-probs, in streams of two or three groups."""
    batch, num_branches, length = token_ids.shape
    packing = make_packing(
        jax.device_get(prompts),
        np.full((batch, num_branches), length, np.int32),
        padded_len=length,
        stream_len=prompts.token_ids.shape[1] + 3 * length * num_branches,
    )

    @jax.jit
    @jax.grad
    def gradient(model: models.QwenVL) -> jax.Array:
        logprobs = branch_logprobs(model, prompts, token_ids, packing)
        return -jnp.sum(jnp.where(mask, logprobs, 0.0)) / jnp.sum(mask, dtype=jnp.float32)

    return gradient(model)
