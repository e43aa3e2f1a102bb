"""The batches of a decode."""

from __future__ import annotations

import numpy as np
import pytest

from care_jax import config as config_lib
from care_jax.models.config_json import parse_model_config
from care_jax.models.published import published_config
from care_jax.planning.decode import Decode, Phase, phases
from care_jax.planning.sizes import Sizes


def test_batches_shrink_when_the_fullest_shard_lets_them():
    """Catches a batch that shrinks when one shard is ready, or that waits for the longest response."""
    lengths = np.array([[9, 1, 2, 3, 1, 1, 1, 1], [5, 6, 4, 4, 1, 1, 1, 1]], np.int32)
    # At most 2 of 8 rows are left on both shards behind token 4, at most 1 behind token 5.
    assert phases(lengths, (0.25, 0.125)) == [Phase(0, 4, 8), Phase(4, 5, 2), Phase(5, 9, 1)]
    assert phases(lengths, ()) == [Phase(0, 9, 8)]
    assert phases(lengths[:, :2], (0.25,)) == [Phase(0, 5, 2), Phase(5, 9, 1)]
    assert phases(np.zeros((2, 8), np.int32), (0.25,)) == []


def test_bytes_and_flops_of_a_batch_by_hand():
    """Catches keys of a prompt that are read for each of its rows, and chips that divide the model and count alone."""
    model = parse_model_config(published_config("Qwen2.5-VL-7B"), "Qwen2.5-VL-7B")
    config = config_lib.base()
    config.train.prompts, config.rollout.response_len, config.rollout.tensor = 12, 64, 2
    sizes = Sizes.of(config, model, (100, 64), {"data": 1, "fsdp": 4, "tensor": 1})
    decode, key = Decode(sizes, branches=4, forced=10), sizes.key_bytes(1)
    assert decode.full == Phase(0, 64, 6 * 4)
    weights = sizes.decode_bytes / 2
    slots = sum(10 + place + 1 for place in range(2, 5))
    read = {rows: decode.bytes_read(Phase(2, 5, rows)) for rows in (24, 8, 2)}
    # Six prompts a shard; two rows that are left have a copy of theirs.
    expected = {24: 6, 8: 6, 2: 2}
    assert read == {
        rows: pytest.approx(3 * weights + key * (3 * prompts * 100 + rows * slots) / 2)
        for rows, prompts in expected.items()
    }
    token = sizes.decoder_flops(1, 0) + 2 * sizes.head
    pairs = sizes.decoder_flops(0, 24 * 3 * 100 + 8 * slots)  # eight of 24 rows, put back in their places
    assert decode.flops(Phase(2, 5, 8)) == pytest.approx((24 * token + pairs) / 2)
    assert decode.forced_flops() == sizes.decoder_flops(12 * 4 * 10, 12 * 4 * 10 * (100 + 10 + 64)) / 4
