"""A run's figures about its speed, counted token by token."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from unittest.mock import NonCallableMock

import jax
import ml_collections
import numpy as np
import pytest

from care_jax import config as config_lib
from care_jax.inputs.prompts import encode_prompt
from care_jax.parallel import sharding
from care_jax.parallel.mesh import create_device_mesh
from care_jax.planning import flops
from care_jax.planning.chips import CHIPS, GIB, PEAKS, Peak
from care_jax.planning.sizes import Sizes
from care_jax.planning.speed import PromptSizes, Speed, memory
from care_jax.run.step_summary import Step
from tests.pictures import encode, picture, question

PEAK = Peak(flops=3e12, bytes_per_s=7e9)
CPU = jax.devices()[0].device_kind


@pytest.fixture
def config(tiny_folder: Path) -> ml_collections.ConfigDict:
    """The tiny model, without a reference."""
    config = config_lib.base()
    config.model.folder, config.objective.kl_coef = str(tiny_folder), 0.0
    config.train.prompts, config.train.minibatches, config.rollout.response_len = 4, 1, 24
    return config


@pytest.fixture
def known(monkeypatch: pytest.MonkeyPatch) -> None:
    """The CPU's peak, as if it were known."""
    monkeypatch.setitem(PEAKS, CPU, PEAK)


def speed(config: ml_collections.ConfigDict, devices: int = 1) -> Speed:
    """The figures of a run on so many devices."""
    sizes = dict.fromkeys(sharding.AXES, 1) | {"fsdp": devices}
    return Speed(config, create_device_mesh(sizes, jax.devices()[:devices]))


def flops_of(figures: dict[str, float], name: str, seconds: float) -> float:
    """The FLOPs that a utilisation stands for."""
    return figures[f"speed/{name}_mfu"] * seconds * PEAK.flops


def whole(config: ml_collections.ConfigDict, bucket: tuple[int, int]) -> tuple[PromptSizes, Sizes]:
    """A batch whose prompts fill a bucket with one image each, and the plan's sizes of it."""
    model = Sizes.of(config, speed(config)._sizes.model, bucket, dict.fromkeys(sharding.AXES, 1))
    tokens, patches = (np.full(4, float(size)) for size in bucket)
    window = min(bucket[1], model.model.vision.window_len)
    return PromptSizes(tokens, patches, patches**2, patches * window), model


@pytest.mark.parametrize("freeze", [(), ("vision", "merger"), ("vision", "head")])
def test_full_prompts_and_responses_take_what_a_plan_counts(config, known, freeze):
    """Catches a utilisation that counts a tower, a head or a backward pass otherwise than the plan does."""
    config.model.freeze = freeze
    prompts, sizes = whole(config, (40, 64))
    work = flops.step_work(sizes, config)
    row_len = {"score": np.full((4, 8), 24, np.int32), "update": np.full((4, 5), 24, np.int32)}
    scored = speed(config).forward("score", prompts, row_len["score"], 2.0)
    assert flops_of(scored, "score", 2.0) == pytest.approx(work["score"].flops)
    updated = speed(config).update(prompts, row_len["update"], 3.0)
    assert flops_of(updated, "update", 3.0) == pytest.approx(work["update"].flops)
    assert updated["speed/update_tokens_per_s"] == pytest.approx(work["update"].tokens / 3.0)
    decoded = speed(config).decode(prompts, row_len["score"], 5.0)
    read = work["rollout"].parameter_bytes + work["rollout"].cache_bytes
    assert decoded["speed/decode_bandwidth"] == pytest.approx(read / 5.0 / PEAK.bytes_per_s)


def test_only_what_is_used_counts(config, known):
    """Catches padding, or a prompt without a row, that counts as work; each token is counted alone."""
    prompts, sizes = whole(config, (40, 64))
    prompts = prompts._replace(tokens=np.array([40.0, 31, 17, 9]))
    row_len = np.array([[24, 0, 3], [0, 0, 0], [1, 2, 5], [7, 7, 0]], np.int32)
    token, head = sizes.decoder_flops(1, 0), 2 * sizes.head
    pair, expected, num_tokens = sizes.decoder_flops(0, 1), 0.0, 0
    for length, rows in zip((40, 31, 17, 9), row_len, strict=True):
        if not rows.any():
            continue
        expected += sizes.vision_flops() + sum(token + pair * (place + 1) for place in range(length))
        num_tokens += length
        for row in rows:
            expected += sum(token + head + pair * (length + place + 1) for place in range(row))
            num_tokens += row
    figures = speed(config, devices=4).forward("score", prompts, row_len, 2.0)
    assert flops_of(figures, "score", 2.0) * 4 == pytest.approx(expected)
    assert figures["speed/score_tokens_per_s"] == pytest.approx(num_tokens / 2.0 / 4)


def test_a_decode_reads_what_its_live_rows_need(config, known):
    """Catches keys of rows that have ended, or weights that are read once for each row."""
    prompts, sizes = whole(config, (40, 64))
    row_len, key = np.array([[3, 1], [2, 2], [5, 1], [1, 1]], np.int32), sizes.key_bytes(1)
    read = 0.0
    for place in range(5):
        read += sizes.decode_bytes
        for rows in row_len:
            read += 40 * key * np.any(rows > place) + sum(key * (place + 1) for row in rows if row > place)
    figures = speed(config).decode(prompts, row_len, 2.0)
    assert figures["speed/decode_bandwidth"] == pytest.approx(read / 2.0 / PEAK.bytes_per_s)
    assert figures["speed/rollout_useful_tokens"] == 16 / 40
    assert figures["speed/rollout_tokens_per_s"] == 8.0


def test_an_unknown_chip_has_no_share_of_a_peak(config):
    """Catches a utilisation of 0, or of nonsense, on a device that has no peak here."""
    prompts, _ = whole(config, (40, 64))
    row_len = np.full((4, 5), 24, np.int32)
    figures = speed(config).update(prompts, row_len, 1.0) | speed(config).decode(prompts, row_len, 1.0)
    assert sorted(figures) == [
        "speed/rollout_tokens_per_s",
        "speed/rollout_useful_tokens",
        "speed/update_tokens_per_s",
    ]


def test_sizes_of_prompts_with_images(tiny_processor):
    """Catches images of one prompt that meet each other, and windows that are counted as full."""
    records = [
        question("<image>=?", encode(picture(84, 84))),
        question("<image>+<image>", encode(picture(140, 28)), encode(picture(28, 84))),
        question("1+2=?"),
    ]
    examples = [encode_prompt(tiny_processor, record) for record in records]
    sizes = PromptSizes.of(examples)
    for b, example in enumerate(examples):
        assert (sizes.tokens[b], sizes.patches[b]) == (len(example.token_ids), len(example.patches))
        for pairs, ids in ((sizes.frame_pairs, example.image_ids), (sizes.window_pairs, example.window_ids)):
            assert pairs[b] == sum(int(one == other) for one in ids for other in ids)
    assert 0 < sizes.frame_pairs[1] < sizes.patches[1] ** 2


@pytest.mark.parametrize("kl_coef", [0.0, 0.1])
def test_groups_that_teach_nothing_are_no_work(config, kl_coef):
    """Catches rows without an advantage that count as useful; with a KL term every row has a gradient."""
    config.objective.kl_coef = kl_coef
    prompts, _ = whole(config, (40, 64))
    lengths = np.full((4, 5), 24, np.int32)
    advantages = np.zeros((4, 5), np.float32)
    advantages[1, :2] = 0.5, -0.5
    mask = np.ones((4, 5), bool)
    mask[2, 3] = False
    done = NonCallableMock(
        spec=Step,
        batch=SimpleNamespace(row_mask=mask, advantages=advantages, response_len=lengths),
        rollouts=SimpleNamespace(response_len=np.full((4, 8), 24, np.int32)),
        drawn=SimpleNamespace(num_draws=2),
    )
    times = {"time/update": 1.0, "time/score": 1.0, "time/rollout": 1.0}
    figures = speed(config).step(done, prompts, times)
    if kl_coef:
        assert figures == {"speed/update_tokens_per_s": 4 * 40 + 19 * 24}
    else:
        assert figures == {"speed/update_tokens_per_s": 40 + 2 * 24, "speed/score_tokens_per_s": 40 + 8 * 24}


def test_peaks_are_those_of_the_chips():
    """Catches a kind of device that is mapped to another chip."""
    assert PEAKS["TPU v5 lite"] == (CHIPS["v5e"].peak_flops, CHIPS["v5e"].hbm_bytes_per_s)
    assert PEAKS["TPU v5p"].flops == 459e12


def test_memory_grows_with_what_is_held():
    """Catches pages that are taken for bytes."""
    before = memory()["speed/host_gib"]
    held = np.ones(GIB // 16, np.float64)  # half a GiB
    assert memory()["speed/host_gib"] - before == pytest.approx(held.nbytes / GIB, rel=0.05)
