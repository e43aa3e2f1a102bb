"""The expected step of a plan, against counts by hand."""

from __future__ import annotations

import dataclasses

import ml_collections
import numpy as np
import pytest

from care_jax import config as config_lib
from care_jax import step
from care_jax.models.config_json import parse_model_config
from care_jax.models.published import published_config
from care_jax.planning import expected
from care_jax.planning.chips import Chip, Rates
from care_jax.planning.estimate import PARTS, Bytes, Plan, StageMemory
from care_jax.planning.expected import HOST_SECONDS, expect
from care_jax.planning.sizes import Sizes
from care_jax.planning.speed import PromptSizes
from care_jax.planning.workload import Averages, Workload
from care_jax.stages.table import DeviceStage

BUCKET = (64, 64)
RATES = Rates(flops=1e15, bytes_per_s=1e12, link_bytes_per_s=1e11)


def config_of(**changes: object) -> ml_collections.ConfigDict:
    """Four prompts on two shards, two minibatches."""
    config = config_lib.base()
    config.train.update(prompts=4, minibatches=2, stream_len=128)
    config.rollout.update(response_len=32, num_rollouts=4, compact_shares=())
    config.data.prompt_buckets, config.data.patch_buckets = (64,), (64,)
    config.objective.update(kl_coef=0.0, num_negatives=2)
    config.update_from_flattened_dict({name.replace("__", "."): value for name, value in changes.items()})
    return config


def plan_of(config: ml_collections.ConfigDict, *, hbm: Bytes, waited: Bytes) -> Plan:
    """A plan of Qwen2.5-VL-3B whose programs all move so many bytes; twice what is waited for is received."""
    model = parse_model_config(published_config("Qwen2.5-VL-3B"), "Qwen2.5-VL-3B")
    model = dataclasses.replace(model, remat=config.model.remat)
    sizes = Sizes.of(config, model, BUCKET, {"data": 1, "fsdp": 2, "tensor": 1})
    names = [stage.name for stage in step.STEP.when(config).stages if isinstance(stage, DeviceStage)]
    received = Bytes(2 * waited.fixed, 2 * waited.a_stream)
    nothing = dict.fromkeys(PARTS, 0)
    stages = [StageMemory(name, nothing, {}, hbm, received, waited, 0, 0, 0, False, 1.0) for name in names]
    chip = Chip("made", 1.0, 2e15, 2e12, 2e11, axes=1)
    return Plan(config, "made:2", chip, sizes, stages, num_hosts=2)


def by_hand(monkeypatch: pytest.MonkeyPatch) -> Workload:
    """A step of four prompts of 60 tokens; the third is all correct, the others update three rows."""
    prompts = PromptSizes(*(np.full(4, size) for size in (60.0, 64.0, 4096.0, 4096.0)))
    rollouts = np.array([[4, 6, 8, 10], [20, 8, 8, 8], [5, 5, 5, 5], [30, 30, 30, 30]], np.int32)
    scored = rollouts * np.array([[1], [1], [0], [1]], np.int32)
    repaired = np.array([[7], [9], [0], [0]], np.int32)
    rows = {
        "rollout_packing": scored,
        "batch_packing": scored[:, :3],
        "repair_packing": repaired,
    }
    made = Workload(prompts, rollouts, np.zeros_like(repaired), repaired, rows, num_draws=1)
    monkeypatch.setattr(expected, "draw", lambda *_: made)
    return made


AVERAGES = Averages(mean_len=10, accuracy=0.5, mean_prompt_len=60, mean_patches=64)


def test_a_step_by_hand(monkeypatch):
    """Catches a stream that is left out, a transfer that is waited for twice, and padding that counts as useful."""
    made, config = by_hand(monkeypatch), config_of()
    plan = plan_of(config, hbm=Bytes(1e9, 1e10), waited=Bytes(1e8, 1e9))
    sizes, found = plan.sizes, expect(plan, AVERAGES, RATES)
    costs = {cost.name: cost for cost in found.costs}
    names = [stage.name for stage in step.STEP.when(config).stages if isinstance(stage, DeviceStage)]
    assert [name for name in costs if name not in HOST_SECONDS] == names

    # A stream of 128 tokens holds one of these groups; the fourth, 60 + 120 tokens, repeats its prompt in two. It lies
    # on a shard with the third, which is all correct: that shard takes two turns, as does the one with the others.
    score = costs["score"]
    assert score.turns == 2
    stream = sizes.decoder_flops(128, 128 * 129 / 2 if sizes.model.attention.startswith("splash") else 128**2)
    tower = sizes.tower_flops(64, 64**2, 64**2)
    most_targets = 120  # of the shard with the fourth group
    assert score.compute * RATES.flops == pytest.approx(2 * (stream + tower) + 2 * most_targets * sizes.head)
    assert score.moved == 1e9 + 2 * 1e10
    assert score.memory == pytest.approx(21e-3)
    assert score.links == pytest.approx(2 * 21e-3)
    assert score.seconds == pytest.approx(max(score.compute, 21e-3) + 21e-3)
    assert score.needed == 2 * sizes.num_params * sizes.weight_bytes

    used = [(60, row) for row in made.rows["rollout_packing"] if row.any()]
    rest = 3 * tower
    for length, row_len in used:
        rows = row_len.tolist()
        pairs = length * (length + 1) / 2 + sum(row * length + row * (row + 1) / 2 for row in rows)
        rest += sizes.decoder_flops(length + sum(rows), pairs) + 2 * sum(rows) * sizes.head
    assert score.useful == pytest.approx(rest)

    rollout = costs["rollout"]
    assert rollout.turns == 30
    per_token = 2 * (
        4 * sizes.decoder_flops(1, 64) + 4 * 2 * sizes.head
    )  # eight branches a chip, before their own keys
    own = 8 * sizes.decoder_flops(0, 30 * 31 / 2)
    assert rollout.compute * RATES.flops == pytest.approx(30 * per_token + own)
    # The compiled loop moves 1e9 bytes in 32 tokens of which 30 are decoded.
    assert rollout.moved == pytest.approx(1e9 * 30 / 32, rel=0.01)
    assert costs["verify"].seconds == HOST_SECONDS["verify"] * made.rollouts.sum() / 2
    assert costs["verify repairs"].seconds == HOST_SECONDS["verify repairs"] * 16 / 2

    assert found.seconds == sum(cost.seconds for cost in found.costs)
    useful = sum(cost.useful for cost in found.costs)
    assert found.useful_mfu == pytest.approx(useful / found.seconds / (2 * 2e15))
    assert found.num_tokens == made.rollouts.sum()
    assert found.tokens_a_dollar(2.0) == pytest.approx(found.num_tokens / found.seconds * 3600 / 2 / 2.0)
    assert sum(found.by_timer().values()) == pytest.approx(found.seconds)
    assert found.by_timer()["rollout"] == pytest.approx(
        sum(costs[name].seconds for name in ("the sampler's parameters", "prefill", "rollout"))
    )


def test_a_prefill_counts_its_chunks(monkeypatch):
    """Catches prompts that are counted at the bucket's size, and a shard that does not wait for another."""
    made, config = by_hand(monkeypatch), config_of(train__stream_len=1024)
    tokens, patches = np.array([300.0, 100.0, 200.0, 500.0]), np.array([600.0, 400.0, 0.0, 2048.0])
    prompts = PromptSizes(tokens, patches, patches**2, patches * 64)
    monkeypatch.setattr(expected, "draw", lambda *_: made._replace(prompts=prompts))
    plan = plan_of(config, hbm=Bytes(1e9, 1e10), waited=Bytes(1e8, 1e9))
    sizes = dataclasses.replace(plan.sizes, bucket=(512, 2048))
    found = {cost.name: cost for cost in expect(dataclasses.replace(plan, sizes=sizes), AVERAGES, RATES).costs}
    prefill = found["prefill"]
    assert prefill.turns == 2
    # The shorter prompts of both shards are computed at half of the bucket's tokens and a fourth of its patches.
    short = sizes.decoder_flops(256, 256**2) + sizes.tower_flops(512, 512**2, 512**2)
    long = sizes.decoder_flops(512, 512**2) + sizes.tower_flops(2048, 2048**2, 2048**2)
    assert prefill.compute * RATES.flops == pytest.approx(short + long)
    assert prefill.moved == 1e9
    assert prefill.needed == 2 * sizes.num_params * sizes.weight_bytes
    whole = 4 * (sizes.prompt_flops() + sizes.vision_flops()) / 2 / RATES.flops
    assert prefill.padded == pytest.approx(max(whole, sizes.num_params * sizes.weight_bytes / RATES.bytes_per_s))


def test_an_update_counts_its_backward_pass(monkeypatch):
    """Catches a backward pass, layers that are computed again, or an optimizer that is forgotten."""
    by_hand(monkeypatch)
    costs, plans = {}, {}
    for remat in ("full", "none"):
        plans[remat] = plan_of(config_of(model__remat=remat), hbm=Bytes(0, 0), waited=Bytes(0, 0))
        costs[remat] = {cost.name: cost for cost in expect(plans[remat], AVERAGES, RATES).costs}["update"]
    # The second minibatch has the second and fourth group; the latter, 60 + 90 tokens, repeats its prompt in a stream.
    assert costs["full"].turns == costs["none"].turns == 1 + 2
    sizes = plans["full"].sizes
    head = 2 * (90 + 18) * sizes.head  # rows of the fourth and the first group, which lie on one shard
    # Only the first stream of the second minibatch has more than three quarters of its tokens.
    layers = sizes.decoder_flops(128, 128**2) + 2 * sizes.decoder_flops(96, 96**2)
    tower = 3 * sizes.tower_flops(64, 64**2, 64**2)
    assert costs["none"].compute * RATES.flops == pytest.approx(3 * (layers + tower + head) + head)
    assert costs["full"].compute * RATES.flops == pytest.approx(4 * (layers + tower + head))
    assert costs["full"].useful == costs["none"].useful
    # Parameters twice for each stream; float32 state, of which a chip has half, in each minibatch.
    needed = 2 * 3 * sizes.weight_bytes * sizes.num_params + 2 * 7 * 4 * sizes.num_params / 2
    assert costs["full"].needed == pytest.approx(needed)


def test_steps_grow_with_responses_and_shrink_with_accuracy():
    """Catches an expectation that does not depend on what it is asked about."""
    config = config_of(train__prompts=64, rollout__response_len=64, rollout__num_rollouts=8)
    plan = plan_of(config, hbm=Bytes(1e8, 1e8), waited=Bytes(0, 0))
    rates = RATES._replace(bytes_per_s=1e13)

    def seconds(**changes: float) -> float:
        averages = Averages.make(config, BUCKET, **({"mean_len": 20.0, "accuracy": 0.5} | changes))
        return expect(plan, averages, rates).seconds

    by_length = [seconds(mean_len=mean) for mean in (5.0, 15.0, 30.0, 60.0)]
    assert by_length == sorted(by_length)
    assert by_length[0] < 0.7 * by_length[-1]
    by_accuracy = [seconds(accuracy=accuracy) for accuracy in (0.3, 0.6, 0.8, 0.95)]
    assert by_accuracy == sorted(by_accuracy, reverse=True)
    assert by_accuracy[-1] < 0.8 * by_accuracy[0]


def test_dynamic_sampling_draws_again():
    """Catches rollouts that count once where a step draws several batches."""
    plain = {"objective__anchored": False, "objective__reflect__enabled": False, "train__prompts": 64}
    once, again = (config_of(**plain, objective__dynamic_sampling=is_on) for is_on in (False, True))
    averages = Averages.make(once, BUCKET, mean_len=20, accuracy=0.9)
    costs = [
        {cost.name: cost for cost in expect(plan_of(c, hbm=Bytes(1e9, 0), waited=Bytes(0, 0)), averages, RATES).costs}
        for c in (once, again)
    ]
    for name in ("prefill", "rollout", "verify"):
        draws = costs[1][name].seconds / costs[0][name].seconds
        assert draws == pytest.approx(round(draws))
        assert draws > 1
    assert costs[1]["update"].turns > costs[0]["update"].turns
