"""Prefill in chunks: the prefix of the model's own prefill, at the sizes that a count of the lengths gives."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks.made_model import FACTOR
from care_jax import config as config_lib
from care_jax import models, step
from care_jax.inputs.batch import collate
from care_jax.inputs.prompts import encode_prompt
from care_jax.method.objectives import Objective
from care_jax.models import QwenVL
from care_jax.models.cache import KeyValues, Prefix
from care_jax.parallel.mesh import create_device_mesh
from care_jax.stages import prefill, rollout
from care_jax.stages.packing import PromptLengths
from care_jax.stages.prefill import ChunkSizes
from care_jax.stages.rollout import Sampling
from care_jax.stages.table import Setup
from care_jax.structs import Array, Prompts
from tests.families import FAMILIES, make_folder, tiny_processor
from tests.marks import slow_but
from tests.pictures import encode, picture, question
from tests.weights import random_model

BUCKET = (48, 64)
UNIT = 8  # tokens of the smallest size, so that small prompts have several


class Case(NamedTuple):
    """A model, its prompts, and both prefixes."""

    model: QwenVL
    prompts: Prompts
    forbidden_mask: Array
    whole: Prefix
    in_chunks: Prefix


@pytest.fixture(scope="module", params=slow_but(["qwen2_5_vl", "qwen3_5"], FAMILIES))
def case(request, tiny_folder, tmp_path_factory) -> Case:
    """Seven prompts, so that chunks of two do not come out even; the longest lies between others, one is long text."""
    folder = make_folder(request.param, tiny_folder, tmp_path_factory.mktemp("prefill") / "model")
    processor = tiny_processor(folder, BUCKET)
    unit = FACTOR[request.param]
    small, large = encode(picture(unit, 2 * unit)), encode(picture(4 * unit, 3 * unit))
    records = [
        question("1+2=?"),
        question("a<image> and then<image>", large, small),
        question("<image>", small),
        question("?" * 24),
        question("<image>=?", large),
        question("2"),
        question("<image>+<image>", small, small),
    ]
    prompts = jax.device_put(collate(processor, [encode_prompt(processor, record) for record in records]))
    model = random_model(models.load_model_config(folder))
    config = config_lib.base()
    setup = Setup(
        config=config,
        objective=Objective.from_config(config.objective),
        mesh=create_device_mesh({"data": 1, "fsdp": 1, "tensor": 1}, jax.devices()[:1]),
        num_prompts=len(records),
        num_rollouts=1,
        temperature=1.0,
        stop_ids=processor.stop_ids,
        forbidden_mask=processor.forbidden_mask,
        image_spec=processor.image_spec,
        params=model,
    )
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(prefill, "_UNIT", UNIT)
        in_chunks = jax.jit(step.PREFILL.function(setup))(model, prompts)
    whole, in_chunks = jax.device_get((jax.jit(QwenVL.prefill)(model, prompts), in_chunks))
    return Case(model, prompts, processor.forbidden_mask, whole, in_chunks)


def test_the_prefix_is_that_of_the_whole_batch(case):
    """Catches rows that stay sorted, a size that cuts a prompt or its image, and a state of another prompt."""
    (whole,), (in_chunks,) = case.whole.layers, case.in_chunks.layers
    is_real = (np.arange(BUCKET[0]) < np.asarray(case.prompts.prompt_len)[:, None])[None, :, None, :, None]
    for kind, memory in whole.items():
        for theirs, ours in zip(jax.tree.leaves(memory), jax.tree.leaves(in_chunks[kind]), strict=True):
            assert np.abs(theirs).max() > 0.1
            if isinstance(memory, KeyValues):
                theirs, ours = np.where(is_real, theirs, 0), np.where(is_real, ours, 0)
            np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(case.in_chunks.last_hidden, case.whole.last_hidden, rtol=1e-5, atol=1e-5)
    np.testing.assert_array_equal(case.in_chunks.prompt_len, case.prompts.prompt_len)
    np.testing.assert_array_equal(case.in_chunks.next_position, case.prompts.next_position)


def test_chunks_have_the_sizes_that_their_lengths_need(case, monkeypatch):
    """Catches chunks that are computed at the whole size, and a count for plans of other sizes than are computed."""
    monkeypatch.setattr(prefill, "_UNIT", UNIT)
    sizes = ChunkSizes.of(BUCKET, merge_unit=4, tensor=1)
    assert sizes == ([16, 24, 40, 48], [32, 64])
    lengths = PromptLengths.of(case.prompts)
    order = np.lexsort([np.searchsorted(of, length) for of, length in zip(sizes, lengths, strict=True)][::-1])
    chunks = [order[:2], order[2:4], order[4:6], order[6:]]
    expected = [
        (2, tuple(min(n for n in of if n >= length[chunk].max()) for of, length in zip(sizes, lengths, strict=True)))
        for chunk in chunks
    ]
    assert sizes.computed(lengths, shards=1) == expected
    assert len(set(expected)) > 2

    keys = np.asarray(case.in_chunks.layers[0]["full_attention"].k)
    for rows, (_, (tokens, _)) in zip(chunks, expected, strict=True):
        assert not keys[:, rows, :, tokens:].any()
        assert np.all(np.abs(keys[:, rows, :, :tokens]).max(axis=(0, 2, 4)) > 0)


def test_shards_take_turns_together():
    """Catches a shard that computes a chunk at its own size while others gather parameters for another."""
    sizes = ChunkSizes.of((512, 2048), merge_unit=4, tensor=2)
    assert sizes == ([128, 256, 384, 512], [512, 1024, 1536, 2048])
    tokens = np.array([[100, 120, 130, 500], [300, 30, 257, 128]], np.int32)
    patches = np.array([[0, 513, 0, 40], [400, 0, 2048, 512]], np.int32)
    chunks = sizes.computed(PromptLengths(tokens.reshape(-1), patches.reshape(-1)), shards=2)
    assert chunks == [(1, (128, 512)), (1, (128, 1024)), (1, (384, 512)), (1, (512, 2048))]


@pytest.mark.parametrize(
    ("bucket", "tensor", "sizes"),
    [
        ((128, 4096), 1, ([128], [1024, 2048, 3072, 4096])),
        ((300, 100), 1, ([128, 256, 300], [100])),
        ((2048, 4608), 3, ([512, 1024, 1536, 2048], [1548, 2580, 3612, 4608])),
    ],
)
def test_sizes_are_what_a_mesh_divides(bucket, tensor, sizes):
    """Catches sizes beyond the bucket, a size of 0, and image tokens that `tensor` does not divide."""
    assert ChunkSizes.of(bucket, merge_unit=4, tensor=tensor) == sizes


def test_rollouts_have_the_tokens_of_the_whole_batch(case):
    """Catches a prefix whose padding is seen, and draws that depend on the order of chunks."""
    batch, sampling = len(case.prompts.prompt_len), Sampling(8, 1.0, (60, 61))
    nothing, forbidden = rollout.nothing_forced(batch, 3), jnp.asarray(case.forbidden_mask)
    whole, in_chunks = (
        rollout.generate(case.model, prefix, nothing, forbidden, jax.random.key(2), sampling=sampling)
        for prefix in (case.whole, case.in_chunks)
    )
    np.testing.assert_array_equal(in_chunks.token_ids, whole.token_ids)
    np.testing.assert_allclose(in_chunks.logprobs, whole.logprobs, atol=1e-5)
    assert len({row.tobytes() for row in np.asarray(whole.token_ids).reshape(batch * 3, -1)}) > batch
