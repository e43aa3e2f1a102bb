"""The attention kernel of TPUs: step by step on the CPU against XLA's products, and compiled for v5e, v5p and v6e.

A plain attention with one mask for all is the third opinion, so that no mistake can be in both.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental import topologies
from jax.sharding import AxisType

from care_jax.config import base
from care_jax.models import attention, splash
from care_jax.models.config_json import parse_model_config
from care_jax.models.published import published_config
from care_jax.stages.model import make_model_config
from tests.marks import slow_but

B, H, N, C = 2, 4, 2, 20  # two query heads a key/value head; no channel count of a power of two
TOLERANCE = {"float32": 1e-5, "bfloat16": 1e-2}


@pytest.fixture(params=slow_but(["float32"], ["float32", "bfloat16"]))
def dtype(request: pytest.FixtureRequest) -> jnp.dtype:
    """The type of q, k and v."""
    return jnp.dtype(request.param)


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Several blocks, full, empty and mixed ones, and chunks with padding, at lengths that are quick."""
    monkeypatch.setattr(splash, "_LARGEST_BLOCK", 128)
    monkeypatch.setattr(attention, "_CHUNK", 96)


def draw(*shapes: tuple[int, ...]) -> list[jax.Array]:
    """Normal random arrays."""
    rng = np.random.default_rng(0)
    return [jnp.asarray(rng.normal(size=shape).astype(np.float32)) for shape in shapes]


def plain(visible: jax.Array, q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
    """softmax(q k / sqrt(C)) v in float32 where visible [B, T, Z], one head after the other."""
    heads = []
    for h in range(q.shape[2]):
        kv = h * k.shape[2] // q.shape[2]
        scores = jnp.einsum("btc,bzc->btz", q[:, :, h], k[:, :, kv]) / q.shape[-1] ** 0.5
        weights = jax.nn.softmax(jnp.where(visible, scores, -jnp.inf), axis=-1)
        heads.append(jnp.einsum("btz,bzc->btc", weights, v[:, :, kv]))
    return jnp.stack(heads, axis=2)


def check(
    dtype: jnp.dtype,
    qkv: list[jax.Array],
    visible: np.ndarray,
    real: np.ndarray,
    attend: Callable[..., jax.Array],
    implementations: tuple[str, ...] = ("xla", "splash_interpret"),
) -> None:
    """Output and gradients of implementations against `plain`, where the loss is of the queries `real` [B, T].

    Differences are measured against the largest value of each array.
    """
    (weights,) = draw(qkv[0].shape)
    weights = jnp.where(real[..., None, None], weights, 0.0)

    def run(attend: Callable[..., jax.Array], *qkv: jax.Array) -> tuple:
        def loss(*qkv: jax.Array) -> tuple[jax.Array, jax.Array]:
            out = attend(*qkv).astype(jnp.float32)
            return jnp.sum(out * weights), out

        (_, out), grads = jax.jit(jax.value_and_grad(loss, argnums=(0, 1, 2), has_aux=True))(*qkv)
        return jnp.where(real[..., None, None], out, 0.0), *grads

    expected = run(functools.partial(plain, jnp.asarray(visible)), *[x.astype(dtype).astype(jnp.float32) for x in qkv])
    for implementation in implementations:
        found = run(functools.partial(attend, implementation=implementation), *[x.astype(dtype) for x in qkv])
        for name, theirs, ours in zip(("out", "q", "k", "v"), expected, found, strict=True):
            gap = np.abs(np.asarray(ours, np.float32) - theirs).max() / np.abs(theirs).max()
            assert gap <= TOLERANCE[dtype.name], (implementation, name, gap)


# Tokens of each group: its prompt, then its branches.
STREAMS = {
    "whole blocks": [[128, 64, 64], [128]],
    "across blocks": [[150, 70, 3, 1, 40], [20, 1], [9, 30]],
    "one long group": [[100, 90, 90, 90]],
    "short groups": [[17, 5, 8], [20, 1], [3, 2, 2, 9]] * 6,
}


def packed(groups: list[list[int]], length: int) -> tuple[np.ndarray, np.ndarray]:
    """Groups and branches of a stream that ends in padding."""
    group = np.concatenate([np.full(sum(lengths), n) for n, lengths in enumerate(groups, start=1)])
    branch = np.concatenate([np.full(size, n) for lengths in groups for n, size in enumerate(lengths)])
    return tuple(np.pad(x, (0, length - len(x))).astype(np.int32) for x in (group, branch))


def visible_in(group: np.ndarray, branch: np.ndarray) -> np.ndarray:
    """The tokens that each token of a stream sees, pair by pair."""
    place = np.arange(len(group))
    seen = (branch[None] == 0) | (branch[:, None] == branch[None])
    return (group[:, None] == group[None]) & seen & (place[None] <= place[:, None])


@pytest.fixture(params=[True, False], ids=["at once", "in chunks"])
def implementations(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> tuple[str, ...]:
    """Both, or XLA's where scores are too many to be computed at once."""
    if request.param:
        return "xla", "splash_interpret"
    monkeypatch.setattr(attention, "_FEW", 0)
    return ("xla",)


@pytest.mark.parametrize("name", slow_but(["across blocks"], STREAMS))
def test_packed(dtype, name, implementations):
    """Catches a branch that sees another one, a group that sees its neighbour, and heads of the wrong query heads.

    Also a window or a block that leaves out keys which are seen, and padding to whole blocks that leaks.
    """
    rows = [packed(groups, 420) for groups in (STREAMS[name], STREAMS[name][::-1])]
    group, branch = (np.stack(x) for x in zip(*rows, strict=True))
    visible = np.stack([visible_in(*row) for row in rows])
    longest = max(map(sum, STREAMS[name]))
    mask = attention.PackedMask.make(
        jnp.asarray(group), jnp.asarray(branch), num_branches=int(branch.max()), group_len=longest
    )
    check(
        dtype,
        draw((B, 420, H, C), (B, 420, N, C), (B, 420, N, C)),
        visible,
        group > 0,
        functools.partial(attention.packed_attention, mask=mask),
        implementations,
    )


def test_prompt(dtype):
    """Catches a mask that is off by one, at a length that is no whole number of blocks."""
    length = 200
    visible = np.broadcast_to(np.tril(np.ones((length, length), bool)), (B, length, length))
    qkv = draw((B, length, H, C), (B, length, N, C), (B, length, N, C))
    check(dtype, qkv, visible, np.ones((B, length), bool), attention.causal_attention)


@pytest.mark.parametrize("image_len", slow_but([200], [None, 200]))
@pytest.mark.parametrize("is_full", [True, False], ids=["images", "windows"])
def test_images(dtype, is_full, image_len, implementations):
    """Catches windows of which a part is in a block that is skipped, and images that see each other or padding."""
    window_len, length = 30, 560
    images = np.stack([np.repeat([1, 2, 3, 0], [200, 90, 60, 210]), np.repeat([1, 0], [130, 430])])
    windows = np.where(images > 0, 1 + np.arange(length)[None] // window_len + 20 * images, 0)
    ids = images if is_full else windows
    check(
        dtype,
        draw(*[(B, length, H, C)] * 3),
        ids[:, :, None] == ids[:, None, :],
        images > 0,
        functools.partial(
            attention.windowed_attention,
            is_full=jnp.asarray(is_full),
            image_ids=jnp.asarray(images),
            window_ids=jnp.asarray(windows),
            image_len=image_len,
            window_len=window_len,
        ),
        implementations,
    )


def test_on_shards():
    """Catches a kernel that cannot run where prompts and heads are divided."""
    mesh = jax.make_mesh((2, 2), ("data", "tensor"), (AxisType.Auto,) * 2, devices=jax.devices()[:4])
    spec = jax.P("data", None, "tensor")
    qkv = draw((B, 200, H, C), (B, 200, N, C), (B, 200, N, C))
    attend = functools.partial(attention.causal_attention, implementation="splash_interpret")
    divided = jax.shard_map(attend, mesh=mesh, in_specs=spec, out_specs=spec, check_vma=False)
    np.testing.assert_array_equal(jax.jit(divided)(*qkv), jax.jit(attend)(*qkv))


@pytest.fixture(params=slow_but(["v5e:2x2"], ["v5e:2x2", "v5p:2x2x1", "v6e:2x2"]))
def chip(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> jax.Device:
    """One that can be compiled for, without having it; blocks as large as they really are."""
    monkeypatch.undo()
    monkeypatch.setenv("TPU_SKIP_MDS_QUERY", "1")  # libtpu asks a metadata server for its TPU
    monkeypatch.setenv("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")  # and lets in one process at a time
    return topologies.get_topology_desc(request.param, "tpu").devices[0]


def compiled_for(chip: jax.Device, attend: Callable[..., jax.Array], *shapes: tuple[int, ...]) -> str:
    """The compiled gradients of bfloat16 q, k and v, the first of `shapes`, as text; the others are int32."""

    def gradients(q: jax.Array, k: jax.Array, v: jax.Array, *ids: jax.Array) -> tuple:
        return jax.grad(lambda *qkv: attend(*qkv, *ids).astype(jnp.float32).sum(), argnums=(0, 1, 2))(q, k, v)

    sharding = jax.sharding.SingleDeviceSharding(chip)
    dtypes = [jnp.bfloat16] * 3 + [jnp.int32] * len(shapes[3:])
    args = [jax.ShapeDtypeStruct(s, d, sharding=sharding) for s, d in zip(shapes, dtypes, strict=True)]
    return jax.jit(gradients).lower(*args).compile().as_text() or ""


def scores_in_memory(program: str, num_tokens: int) -> list[str]:
    """Arrays of a compiled program with every token's scores for every other."""
    return re.findall(rf"\w+\[(?:\d+,)*{num_tokens},{num_tokens}\]", program)


def test_compiled_streams(chip):
    """Catches blocks that do not fit a chip's vector memory, and scores that go through the main memory.

    The head sizes are those of Qwen2.5-VL-7B.
    """

    def attend(q: jax.Array, k: jax.Array, v: jax.Array, group: jax.Array, branch: jax.Array) -> jax.Array:
        mask = attention.PackedMask.make(group, branch, num_branches=8, group_len=12288)
        return attention.packed_attention(q, k, v, mask, implementation="splash")

    shapes = (1, 12288, 28, 128), (1, 12288, 4, 128), (1, 12288, 4, 128), (1, 12288), (1, 12288)
    program = compiled_for(chip, attend, *shapes)
    assert "tpu_custom_call" in program
    assert not scores_in_memory(program, 12288)


def test_compiled_images(chip):
    """Catches the same in the vision tower, whose heads have 80 channels."""

    def attend(q: jax.Array, k: jax.Array, v: jax.Array, ids: jax.Array) -> jax.Array:
        return attention.segment_attention(q, k, v, ids, segment_len=64, implementation="splash")

    program = compiled_for(chip, attend, *[(1, 2048, 16, 80)] * 3, (1, 2048))
    assert "tpu_custom_call" in program
    assert not scores_in_memory(program, 2048)


def test_scores_in_memory_are_found():
    """Catches a search that finds nothing: XLA's products do have them."""
    q, k = (jax.ShapeDtypeStruct((1, 80, heads, 16), jnp.float32) for heads in (2, 1))
    attend = jax.jit(functools.partial(attention.causal_attention, implementation="xla"))
    assert scores_in_memory(attend.lower(q, k, k).compile().as_text() or "", 80)


@pytest.mark.parametrize(
    ("platform", "dtype", "wanted", "chosen"),
    [
        ("tpu", "bfloat16", "auto", "splash"),
        ("tpu", "bfloat16", "xla", "xla"),
        ("gpu", "bfloat16", "auto", "cudnn"),
        ("gpu", "bfloat16", "xla", "xla"),
        ("gpu", "float32", "auto", "xla"),
        ("cpu", "bfloat16", "auto", "xla"),
    ],
)
def test_chosen_by_platform(tiny_folder, platform, dtype, wanted, chosen):
    """Catches a kernel that no run takes, one that cannot be turned off, and cuDNN's with float32, which it refuses."""
    config = base()
    config.model.folder, config.model.attention, config.model.compute_dtype = str(tiny_folder), wanted, dtype
    assert make_model_config(config, platform).attention == chosen


@pytest.mark.parametrize(("capability", "chosen"), [("8.0", "xla"), ("9.0", "cudnn"), ("10.0", "cudnn")])
def test_wide_heads_on_older_gpus(monkeypatch, capability, chosen):
    """Catches heads of 256, as Qwen3.5's, for which cuDNN has no kernel before Hopper, and GPUs sorted as text."""
    config = base()
    config.model.compute_dtype = "bfloat16"
    monkeypatch.setattr(jax, "devices", lambda: [SimpleNamespace(compute_capability=capability)])
    architecture = parse_model_config(published_config("Qwen3.5-2B"), "Qwen3.5-2B")
    assert make_model_config(config, "gpu", architecture).attention == chosen
