"""Counts of what a step must compute, read, send and hold."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import pytest

from benchmarks import padded
from care_jax import config as config_lib
from care_jax import models
from care_jax.models.config_json import parse_model_config
from care_jax.models.model_config import LoraConfig
from care_jax.models.published import published_config
from care_jax.planning import flops
from care_jax.planning.chips import CHIPS
from care_jax.planning.sizes import Sizes
from care_jax.structs import Prompts, abstract

ONE = {"data": 1, "fsdp": 1, "tensor": 1}


def sizes_of(name: str, mesh: dict[str, int] = ONE, **changes: object) -> Sizes:
    """The sizes of a published model with the default config."""
    model = parse_model_config(published_config(name), name)
    config = config_lib.base()
    config.update_from_flattened_dict({key.replace("__", "."): value for key, value in changes.items()})
    model = dataclasses.replace(model, compute_dtype="bfloat16", remat="full")
    return Sizes.of(config, model, (2048, 4096), mesh)


@pytest.mark.parametrize("name", ["Qwen2.5-VL-3B", "Qwen3-VL-2B"])
def test_flops_are_those_of_the_compiled_program(name):
    """Catches a factor of two, a matrix or an attention that is left out, and windows that are counted as full.

    XLA counts the body of a loop once, so decoder and tower have one layer each; it also counts what the masks hide.
    """
    full = parse_model_config(published_config(name), name)
    tower = {"fullatt_block_indexes": (0,)} if full.vision.window_size else {"deepstack_visual_indexes": (0,)}
    model = dataclasses.replace(
        full,
        text=dataclasses.replace(full.text, num_hidden_layers=1, vocab_size=1024),
        vision=dataclasses.replace(full.vision, depth=1, **tower),
    )
    bucket, rows, length = (512, 256), 2, 128
    config = config_lib.base()
    config.train.prompts, config.rollout.response_len = 1, length
    sizes = Sizes.of(config, model, bucket, ONE)
    counted = sizes.vision_flops() + sizes.prompt_flops() + rows * sizes.branch_flops()
    hidden = bucket[0] * (bucket[0] - 1) / 2 + rows * length * (length - 1) / 2
    counted += 4 * model.text.num_attention_heads * model.text.head_dim * hidden

    tables = {"F": model.vision.frame_values, "X": model.vision.grid_cells}
    prompts = abstract(Prompts, B=1, P=bucket[0], I=bucket[1], **tables)
    tokens = jax.ShapeDtypeStruct((1, rows, length), jnp.int32)
    program = jax.jit(padded.forward_branches).lower(models.abstract_model(model), prompts, tokens)
    found = program.cost_analysis()["flops"]
    assert counted == pytest.approx(found, rel=0.02)


def test_a_step_of_the_7b():
    """Catches a stage that is left out, or counted with the wrong number of rows; by hand from the layers' sizes."""
    sizes = sizes_of("Qwen2.5-VL-7B")
    layers = 28 * (2 * 3584 * 3584 + 2 * 3584 * 512 + 3 * 3584 * 18944)
    pairs = 4 * 28 * 3584
    branch = 2 * layers * 2048 + pairs * (2048 * 2048 + 2048 * 2049 / 2)
    prompt = 2 * layers * 2048 + pairs * 2048 * 2049 / 2
    head = 2 * 2048 * 3584 * 152064
    assert (sizes.branch_flops(), sizes.prompt_flops(), sizes.head_flops()) == (branch, prompt, head)
    config = config_lib.base()
    work = flops.step_work(sizes, config)
    assert list(work) == ["prefill", "rollout", "score", "reflect", "score of reflections", "reference", "update"]
    seen = sizes.vision_flops() + prompt
    rows = {"score": 8, "score of reflections": 1, "reference": 5}
    for name, count in rows.items():
        assert work[name].flops == pytest.approx(512 * (seen + count * (branch + head)))
    assert work["rollout"].flops == pytest.approx(512 * 8 * (branch + head))
    assert work["update"].flops == pytest.approx(3 * work["reference"].flops)
    assert work["update"].tokens == 512 * (2048 + 5 * 2048)
    assert work["rollout"].tokens == 512 * 8 * 2048
    # Every token reads the weights once, each prompt's keys once for its 8 branches, and the branches' own.
    head = 3584 * 152064
    vectors = 28 * (2 * 3584 + 3584 + 2 * 512) + 3584  # norms and biases
    assert work["rollout"].parameter_bytes == 2048 * 2 * (layers + vectors + head)
    int8 = sizes_of("Qwen2.5-VL-7B", rollout__weights="int8")
    scales = 28 * (2 * 3584 + 2 * 512 + 2 * 18944 + 3584)
    assert int8.decode_bytes == layers + 4 * scales + 2 * (vectors + head)
    assert sizes.sampler_bytes - int8.sampler_bytes == sizes.decode_bytes - int8.decode_bytes
    assert work["rollout"].cache_bytes == 512 * 57344 * (2048 * 2048 + 8 * 2048 * 2049 / 2)
    config.objective.kl_coef, config.score.old_from, config.objective.reflect.enabled = 0.0, "sampler", False
    assert list(flops.step_work(sizes, config)) == ["prefill", "rollout", "update"]


def test_layers_of_two_kinds():
    """Catches keys that are counted for layers without any, and states that decoding reads for nothing; by hand."""
    sizes = sizes_of("Qwen3.5-9B")
    width, keys, values, mlp = 4096, 16 * 128, 32 * 128, 3 * 4096 * 12288
    channels = 2 * keys + values
    linear = width * (channels + values + 2 * 32) + values * width + 4 * channels + mlp
    full = width * (2 * 4096 + 2 * 1024) + 4096 * width + mlp
    layers = 24 * linear + 8 * full
    state = 32 * 128 * 128
    pairs = 2048 * 2048 + 2048 * 2049 / 2
    recurred = 24 * 6 * state * 2048
    assert sizes.branch_flops() == 2 * layers * 2048 + recurred + 8 * 4 * 4096 * pairs
    assert sizes.key_bytes(1) == 8 * 2 * 4 * 256 * 2
    assert sizes.state_bytes == 24 * (3 * channels * 2 + 4 * state)
    work = flops.step_work(sizes, config_lib.base())["rollout"]
    of_keys = sizes.key_bytes(1) * (2048 * 2048 + 8 * 2048 * 2049 / 2)
    assert work.cache_bytes == 512 * (of_keys + 8 * 2048 * 2 * sizes.state_bytes)


def test_what_chips_send_each_other():
    """Catches bytes of a table that is looked up and not gathered, or of pieces that are left out."""
    mesh = {"data": 1, "fsdp": 8, "tensor": 1}
    sizes = sizes_of("Qwen2.5-VL-7B", mesh, train__minibatches=2, train__stream_len=2**18)
    head = 3584 * 152064
    params = models.params_to_dict(sizes.params)
    divided = sum(leaf.size for name, leaf in params.items() if name.endswith("kernel")) - head
    # bfloat16 parameters in both passes and float32 gradients once; the head's once and its gradients once.
    assert sizes.fsdp_minimum() == pytest.approx(4 * 7 / 8 * (8 * divided + 6 * head), rel=1e-3)
    assert sizes.summed_bytes(1e6, sums=2) == 0
    parts = sizes_of("Qwen2.5-VL-7B", {"data": 1, "fsdp": 2, "tensor": 4})
    assert parts.fsdp_minimum() < 1 / 2 * 16 / 3 * sizes_of("Qwen2.5-VL-7B", mesh).fsdp_minimum()
    # Two sums a layer of 4096 tokens of half the prompts, each received one and a half times.
    assert parts.summed_bytes(8192, sums=2) == 2 * 28 * 4096 * 3584 * 2 * 2 * 3 / 4


def test_floors_scale_with_the_slice():
    """Catches a floor that forgets that tensor divides what a chip reads, or that all chips share the work."""
    config = config_lib.base()
    one, two = (
        sizes_of("Qwen2.5-VL-7B", {"data": 1, "fsdp": 8, "tensor": tensor}, train__prompts=64) for tensor in (1, 2)
    )
    floors = [flops.floors(s, flops.step_work(s, config)["rollout"], CHIPS["v5p"]) for s in (one, two)]
    assert floors[1]["compute"] == pytest.approx(floors[0]["compute"] / 2)
    assert floors[1]["memory"] == pytest.approx(floors[0]["memory"] / 2)
    assert floors[0]["links"] == 0 < floors[1]["links"]
    assert flops.least_seconds(two, config, CHIPS["v5p"]) < flops.least_seconds(one, config, CHIPS["v5p"])
    assert flops.least_bytes(two, config) < flops.least_bytes(one, config)


def test_adapters_leave_out_the_work_of_what_is_not_trained():
    """Catches gradients, moments or a backward pass that are counted for weights beneath adapters, or not for these."""
    full = sizes_of("Qwen2.5-VL-7B")
    lora = LoraConfig(rank=64, alpha=64.0, rank_stabilised=False, targets=("layers.*",))
    model = dataclasses.replace(full.model, lora=lora)
    config = config_lib.base()
    config.model.lora.rank, config.objective.kl_coef = 64, 1e-2
    sizes = Sizes.of(config, model, full.bucket, ONE)
    adapters = 28 * 64 * (2 * (3584 + 3584) + 2 * (3584 + 512) + 3 * (3584 + 18944))
    assert sizes.num_trained == adapters == sizes.num_params - full.num_params
    base = 28 * (2 * 3584 * 3584 + 2 * 3584 * 512 + 3 * 3584 * 18944)
    assert sizes.backward == pytest.approx((0.0, 1 + adapters / (base + adapters), 1.0))
    assert full.backward == (2.0, 2.0, 2.0)
    work, of_full = flops.step_work(sizes, config)["update"], flops.step_work(full, config)["update"]
    assert work.state_bytes == of_full.state_bytes * adapters / full.num_params
    assert 0.65 < work.flops / of_full.flops < 0.7
    # The base in bfloat16, adapters with their moments in float32, and no reference; else 16 bytes a parameter.
    saved = flops.least_bytes(full, config) - flops.least_bytes(sizes, config)
    assert saved == pytest.approx(14 * full.num_params - 12 * adapters, rel=0.01)
