"""cuDNN's attention of GPUs on a machine without one: its calls are computed by plain products, and lowered for a GPU.

The products follow the definition of a call and of its gradient, so what is tested is which calls are made and how
their results are put together. The calls themselves were compared on a GPU (docs/performance.md).
"""

from __future__ import annotations

import functools
import re
from collections import Counter
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax._src.cudnn import fused_attention_stablehlo as fused

from care_jax.config import base
from care_jax.models import abstract_model, attention, cudnn
from care_jax.models.cache import KeyValues, Prefix
from care_jax.stages.model import make_model_config
from care_jax.stages.rollout import Sampling, generate, nothing_forced
from tests.marks import slow_but

B, J, H, N, C = 2, 3, 4, 2, 16


def scores_of(
    q: jax.Array, k: jax.Array, kv_len: jax.Array | None, mask: jax.Array | None, is_causal: bool, layout: str
) -> jax.Array:
    """Scores [rows, H, T, Z] of a call, -inf where a key is not seen."""
    letters = ("bthc", "bzhc") if layout == "BTNH" else ("bhtc", "bhzc")
    k = jnp.repeat(k, q.shape[layout.index("N")] // k.shape[layout.index("N")], axis=layout.index("N"))
    scores = jnp.einsum(f"{letters[0]},{letters[1]}->bhtz", q, k) * q.shape[-1] ** -0.5
    visible = jnp.ones((1, 1, *scores.shape[-2:]), bool) if mask is None else mask
    if kv_len is not None:
        visible &= (jnp.arange(scores.shape[-1])[None] < kv_len[:, None])[:, None, None]
    if is_causal:
        visible &= jnp.tril(jnp.ones(scores.shape[-2:], bool))[None, None]
    return jnp.where(visible, scores, -jnp.inf)


def call(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    *,
    mask: jax.Array | None = None,
    kv_len: jax.Array | None = None,
    is_causal: bool = False,
    layout: str = "BTNH",
) -> tuple[jax.Array, jax.Array]:
    """cudnn._call by plain products."""
    scores = scores_of(q, k, kv_len, mask, is_causal, layout)
    axis = layout.index("N")
    v = jnp.repeat(v, q.shape[axis] // v.shape[axis], axis=axis)
    spec = "bhtz,bzhc->bthc" if layout == "BTNH" else "bhtz,bhzc->bhtc"
    return jnp.einsum(spec, jax.nn.softmax(scores, axis=-1), v), jax.nn.logsumexp(scores, axis=-1)


def call_backward(
    q: jax.Array,
    kv: tuple[jax.Array, jax.Array],
    stats: jax.Array,
    out: jax.Array,
    gradient: jax.Array,
    *,
    mask: jax.Array,
    is_causal: bool,
) -> tuple[jax.Array, ...]:
    """cudnn._call_backward by the formulas of FlashAttention-2 (arXiv 2307.08691, algorithm 2)."""
    k, v = (jnp.repeat(x, q.shape[2] // x.shape[2], axis=2) for x in kv)
    weights = jnp.exp(scores_of(q, k, None, mask, is_causal, "BTNH") - stats[..., None])
    of_weights = jnp.einsum("bthc,bzhc->bhtz", gradient, v) - jnp.einsum("bthc,bthc->bht", gradient, out)[..., None]
    of_scores = weights * of_weights * q.shape[-1] ** -0.5

    def by_key_head(x: jax.Array) -> jax.Array:
        return x.reshape(*x.shape[:2], kv[0].shape[2], -1, x.shape[-1]).sum(axis=3)

    of_q = jnp.einsum("bhtz,bzhc->bthc", of_scores, k)
    of_k = by_key_head(jnp.einsum("bhtz,bthc->bzhc", of_scores, q))
    return of_q, of_k, by_key_head(jnp.einsum("bhtz,bthc->bzhc", weights, gradient))


def public_call(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    *,
    implementation: str,
    is_causal: bool = False,
    query_seq_lengths: jax.Array | None = None,
    key_value_seq_lengths: jax.Array | None = None,
) -> jax.Array:
    """jax.nn.dot_product_attention by plain products; NaN in queries past their number, in value and gradient."""
    assert implementation == "cudnn"
    assert is_causal == (key_value_seq_lengths is None)
    if query_seq_lengths is None:
        return call(q, k, v, is_causal=True)[0]
    past = (jnp.arange(q.shape[1])[None] >= query_seq_lengths[:, None])[..., None, None]
    return jnp.where(past, jnp.nan * jnp.where(past, q, 0.0), call(q, k, v, kv_len=key_value_seq_lengths)[0])


@pytest.fixture
def by_products(monkeypatch: pytest.MonkeyPatch) -> None:
    """Computes the calls of a GPU by plain products."""
    monkeypatch.setattr(cudnn, "_call", call)
    monkeypatch.setattr(cudnn, "_call_backward", call_backward)
    monkeypatch.setattr(jax.nn, "dot_product_attention", public_call)


def draw(*shapes: tuple[int, ...]) -> list[jax.Array]:
    """Normal random arrays."""
    rng = np.random.default_rng(0)
    return [jnp.asarray(rng.normal(size=shape).astype(np.float32)) for shape in shapes]


def compare(attend: Callable[..., jax.Array], real: np.ndarray, *qkv: jax.Array) -> None:
    """Output and gradients of cuDNN's calls against XLA's products, for a loss of the queries `real` [B, T]."""
    (weights,) = draw(qkv[0].shape)
    weights = jnp.where(real[..., None, None], weights, 0.0)

    def run(implementation: str) -> Any:
        def loss(*qkv: jax.Array) -> tuple[jax.Array, jax.Array]:
            out = attend(*qkv, implementation=implementation)
            return jnp.sum(out * weights), jnp.where(real[..., None, None], out, 0.0)

        return jax.jit(jax.value_and_grad(loss, argnums=(0, 1, 2), has_aux=True))(*qkv)

    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-5), run("cudnn"), run("xla"))


@pytest.mark.usefixtures("by_products")
def test_streams():
    """Catches a branch that sees another one or another group, and a gradient that forgets some of its keys."""
    group = np.array([[1] * 9 + [2] * 5 + [0] * 2, [1] * 12 + [0] * 4], np.int32)
    branch = np.zeros((2, 16), np.int32)
    branch[0, 4:14] = [1, 1, 1, 2, 2, 0, 0, 1, 1, 1]
    branch[1, 3:12] = [1, 1, 1, 2, 2, 3, 3, 3, 3]
    mask = attention.PackedMask.make(jnp.asarray(group), jnp.asarray(branch), num_branches=3, group_len=14)
    attend = functools.partial(attention.packed_attention, mask=mask)
    compare(attend, group > 0, *draw((B, 16, H, C), (B, 16, N, C), (B, 16, N, C)))


@pytest.mark.parametrize(
    "ids",
    [[[1, 1, 1, 1, 0, 0], [1, 1, 1, 1, 1, 1]], [[1, 1, 2, 2, 0, 0], [1, 1, 1, 1, 1, 1]]],
    ids=["one image a row", "two images"],
)
@pytest.mark.usefixtures("by_products")
def test_images(ids):
    """Catches images that see each other or padding, whichever way is taken, and NaN that leaves padding."""
    attend = functools.partial(attention.segment_attention, segment_ids=jnp.asarray(ids, jnp.int32))
    compare(attend, np.array(ids) > 0, *draw(*[(B, 6, H, C)] * 3))


@pytest.mark.parametrize("is_full", [True, False], ids=["images", "windows"])
@pytest.mark.usefixtures("by_products")
def test_windows(is_full):
    """Catches a window that crosses blocks and loses a part, and one that sees a neighbour or padding."""
    length, window_len = 21, 4
    images = np.stack([np.repeat([1, 0], [17, 4]), np.repeat([1, 0], [21, 0])])
    windows = np.stack([np.repeat([1, 2, 3, 4, 5, 6, 0], [4, 2, 4, 1, 4, 2, 4]), 1 + np.arange(length) // window_len])
    attend = functools.partial(
        attention.windowed_attention,
        is_full=jnp.asarray(is_full),
        image_ids=jnp.asarray(images, jnp.int32),
        window_ids=jnp.asarray(windows, jnp.int32),
        image_len=None,
        window_len=window_len,
    )
    compare(attend, images > 0, *draw(*[(B, length, H, C)] * 3))


@pytest.mark.parametrize("num_new", slow_but([3], [1, 3]))
@pytest.mark.usefixtures("by_products")
def test_new_tokens(num_new):
    """Catches query heads that read another head's keys, slots that are not filled yet, and a hole among them."""
    num_prompt, num_slots, own_len = 7, 12, 8
    q, pk, pv, ok, ov = draw((B, J, num_new, H, C), *[(B, N, num_prompt, C)] * 2, *[(B, J, N, num_slots, C)] * 2)
    visible = np.zeros((B, J, num_new, num_slots), bool)
    visible[..., 4 : own_len - num_new] = True  # forced tokens end before slot 4
    for row in range(B):
        visible[row, :, :, : 1 + row] = True
    visible[..., own_len - num_new : own_len] = np.tril(np.ones((num_new, num_new), bool))
    given = {"prompt_len": jnp.array([num_prompt, 2], jnp.int32), "own_visible": jnp.asarray(visible)}
    found = cudnn.branch_attention(q, (pk, pv), (ok, ov), own_len=jnp.int32(own_len), **given)
    expected = attention.branch_attention(q, (pk, pv), (ok, ov), **given)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)


def lowered(function: Callable[..., Any], *shapes: Any) -> str:
    """The program of a function for a GPU, as text, from the shapes of its arguments."""
    return jax.jit(function).trace(*shapes).lower(lowering_platforms=("cuda",)).as_text()


def shape(*sizes: int, dtype: Any = jnp.bfloat16) -> jax.ShapeDtypeStruct:
    """An array's shape."""
    return jax.ShapeDtypeStruct(sizes, dtype)


@pytest.fixture
def with_cudnn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lets JAX write cuDNN's calls on a machine that has none."""
    monkeypatch.setattr(fused, "check_cudnn_version", lambda: 91300)


def calls(program: str) -> dict[str, int]:
    """Counts the calls of each cuDNN function."""
    return dict(Counter(re.findall(r"__cudnn\$(\w+)\(", program)))


@pytest.mark.usefixtures("with_cudnn")
def test_lowered_streams():
    """Catches a call that this version of JAX does not know, scores of every head in memory, a gradient of the mask."""
    length = 216

    def loss(q: jax.Array, k: jax.Array, v: jax.Array, group: jax.Array, branch: jax.Array) -> jax.Array:
        mask = attention.PackedMask.make(group, branch, num_branches=J, group_len=length)
        return attention.packed_attention(q, k, v, mask, implementation="cudnn").astype(jnp.float32).sum()

    qkv = shape(B, length, H, C), shape(B, length, N, C), shape(B, length, N, C)
    ids = [shape(B, length, dtype=jnp.int32)] * 2
    program = lowered(jax.grad(loss, argnums=(0, 1, 2)), *qkv, *ids)
    assert calls(program) == {"fmhaScaleBiasSoftmax": 1, "fmhaScaleBiasSoftmaxBackward": 1}
    assert not re.findall(rf"{H}x{length}x{length}x", program)


@pytest.mark.usefixtures("with_cudnn")
def test_lowered_images():
    """Catches a tower whose images are not cuDNN's."""

    def loss(q: jax.Array, ids: jax.Array) -> jax.Array:
        return attention.segment_attention(q, q, q, ids, implementation="cudnn").astype(jnp.float32).sum()

    program = lowered(jax.grad(loss), shape(B, 64, H, 80), shape(B, 64, dtype=jnp.int32))
    with_mask = {"fmhaScaleBiasSoftmax": 1, "fmhaScaleBiasSoftmaxBackward": 1}  # for rows with several images
    assert calls(program) == {"fmhaSoftmax": 1, "fmhaSoftmaxBackward": 1} | with_mask


@pytest.mark.usefixtures("with_cudnn")
def test_lowered_decoding(tiny_folder):
    """Catches a decode step that copies a layer's keys out of a stack, or takes XLA's products for the branches."""
    config = base()
    config.model.folder = str(tiny_folder)
    model_config = make_model_config(config, "gpu")
    assert not model_config.scan_decoding
    layers, heads = model_config.text.num_hidden_layers, model_config.text.num_key_value_heads
    model = abstract_model(model_config)
    kv = shape(layers, B, heads, 24, model_config.text.head_dim)
    row = shape(B, dtype=jnp.int32)
    memory = {"full_attention": KeyValues(kv, kv)}
    prefix = Prefix((memory,), row, row, shape(B, model_config.text.hidden_size))
    forced = jax.eval_shape(lambda: nothing_forced(B, J))
    forbidden = shape(model_config.text.vocab_size, dtype=bool)
    sampling = Sampling(response_len=8, temperature=1.0, stop_ids=(1,))
    generate_alone = functools.partial(generate, sampling=sampling)
    program = lowered(generate_alone, model, prefix, forced, forbidden, jax.eval_shape(lambda: jax.random.key(0)))
    assert calls(program) == {"fmhaScaleBiasSoftmax": 1}  # in the scan over the layers of a stack
