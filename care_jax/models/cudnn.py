"""cuDNN's attention for GPUs, whose scores never leave the chip; q, k and v are bfloat16 or float16.

A new token of a branch looks at its prompt and at itself, and the softmax runs over the keys of both. XLA's products
serve the prompt, cuDNN the branch, which also gives the logarithm of the sum of its exponentials, by which the two
outputs are weighted.

jax.nn.dot_product_attention rounds that number to bfloat16 and computes a gradient of masks, so the functions behind it
are called, which are not public; tests/models/test_attention_gpu.py lowers every call for a GPU.
"""

from __future__ import annotations

import functools
from typing import Any

import einops
import jax
import jax.numpy as jnp
from jax._src.cudnn import fused_attention_stablehlo as fused
from jaxtyping import Bool, Float, Float32, Int32

from care_jax.models.cache import Home, prompt_scores, prompt_values
from care_jax.structs import Array

# Since jax 0.12 a call may change its scores; ours do not.
_SCORES: dict[str, Any] = {"score_mod": None} if jax.__version_info__ >= (0, 12) else {}


def causal_attention(
    q: Float[Array, "B P H C"], k: Float[Array, "B P N C"], v: Float[Array, "B P N C"]
) -> Float[Array, "B P H C"]:
    """Computes `attention.causal_attention`."""
    return jax.nn.dot_product_attention(q, k, v, is_causal=True, implementation="cudnn")


def prefix_attention(
    q: Float[Array, "B I H C"], k: Float[Array, "B I H C"], v: Float[Array, "B I H C"], *, num_real: Int32[Array, "B"]
) -> Float[Array, "B I H C"]:
    """Full attention among the first `num_real` tokens of each row; the others are padding and get 0.

    Padding is also cut off from what cuDNN leaves in its places, in value and in gradient.
    """
    length = jnp.maximum(num_real, 1)
    is_real = (jnp.arange(q.shape[1])[None] < num_real[:, None])[..., None, None]
    q, k, v = (jnp.where(is_real, x, jnp.zeros_like(x)) for x in (q, k, v))
    lengths: dict[str, Any] = {"query_seq_lengths": length, "key_value_seq_lengths": length}
    out = jax.nn.dot_product_attention(q, k, v, **lengths, implementation="cudnn")
    return jnp.where(is_real, out, jnp.zeros_like(out))


@functools.partial(jax.custom_vjp, nondiff_argnums=(4,))
def masked_attention(
    q: Float[Array, "B T H C"],
    k: Float[Array, "B T N C"],
    v: Float[Array, "B T N C"],
    mask: Bool[Array, "B T T"],
    is_causal: bool,
) -> Float[Array, "B T H C"]:
    """Attention of each token to the keys of its row of `mask`, with `is_causal` to none behind itself.

    Every token sees itself. jax.nn.dot_product_attention would also compute a gradient of the mask.
    """
    return _masked_forward(q, k, v, mask, is_causal)[0]


def _masked_forward(q: Array, k: Array, v: Array, mask: Array, is_causal: bool) -> tuple[Array, Any]:
    out, stats = _call(q, k, v, mask=mask[:, None], is_causal=is_causal)
    return out, (q, (k, v), mask, stats, out)


def _masked_backward(is_causal: bool, saved: Any, gradient: Array) -> tuple[Array, Array, Array, None]:
    q, kv, mask, stats, out = saved
    return *_call_backward(q, kv, stats, out, gradient, mask=mask[:, None], is_causal=is_causal), None


masked_attention.defvjp(_masked_forward, _masked_backward)


def branch_attention(
    q: Float[Array, "rows J new H C"],
    prompt_kv: tuple[Float[Array, "B N P C"], Float[Array, "B N P C"]],
    own_kv: tuple[Float[Array, "rows J N slots C"], Float[Array, "rows J N slots C"]],
    *,
    prompt_len: Int32[Array, "B"],
    own_len: Int32[Array, ""],
    own_visible: Bool[Array, "#rows #J #new #slots"],
    home: Home | None = None,
) -> Float[Array, "rows J new H C"]:
    """Computes `attention.branch_attention`; slots from `own_len` on are not even read. It has no gradient.

    The keys of a prompt are read once for all its branches, by XLA's products: cuDNN takes twice as long for them.
    """
    prompt_k, prompt_v = prompt_kv
    num_branches, num_new = q.shape[1:3]
    grouped = einops.rearrange(q, "b j t (n q) c -> b j t n q c", n=prompt_k.shape[1])
    scores = prompt_scores(grouped, prompt_k, prompt_len=prompt_len, masked=-jnp.inf, home=home)
    of_prompt = jax.nn.logsumexp(scores, axis=-1)

    own_k, own_v = (einops.rearrange(x, "b j n r c -> (b j) n r c") for x in own_kv)
    visible = jnp.broadcast_to(own_visible, (*q.shape[:3], own_k.shape[2]))
    on_self, of_self = _call(
        einops.rearrange(q, "b j t h c -> (b j) h t c"),
        own_k,
        own_v,
        kv_len=jnp.broadcast_to(own_len, own_k.shape[:1]),
        mask=einops.rearrange(visible, "b j t r -> (b j) 1 t r"),
        layout="BNTH",
    )
    sizes = {"j": num_branches, "n": prompt_k.shape[1], "t": num_new}
    on_self = einops.rearrange(on_self, "(b j) (n q) t c -> b j n q t c", **sizes)
    of_self = einops.rearrange(of_self, "(b j) (n q) t -> b j n q t", **sizes)
    of_both = jnp.logaddexp(of_prompt, of_self)[..., None]
    weights = jnp.exp(scores - of_both).astype(prompt_v.dtype)
    on_prompt = prompt_values(weights, prompt_v, home=home)
    out = _sum_parts((on_prompt, on_self), (jnp.ones_like(of_both), jnp.exp(of_self[..., None] - of_both)), q.dtype)
    return einops.rearrange(out, "b j n q t c -> b j t (n q) c")


def _sum_parts(outputs: Any, shares: Any, dtype: jnp.dtype) -> Array:
    """Adds up the outputs for two sets of keys by their shares of the softmax, in float32."""
    first, second = (out.astype(jnp.float32) * share for out, share in zip(outputs, shares, strict=True))
    return (first + second).astype(dtype)


def _call(
    q: Array,
    k: Array,
    v: Array,
    *,
    mask: Array,
    kv_len: Array | None = None,
    is_causal: bool = False,
    layout: str = "BTNH",
) -> tuple[Array, Float32[Array, "rows H T"]]:
    """Output and log(sum(exp(scores))) of one call for the keys that `mask` shows, the first kv_len [rows] alone."""
    q_len = None if kv_len is None else jnp.full(q.shape[:1], q.shape[layout.index("T")], jnp.int32)
    given: dict[str, Any] = {"mask": mask, "q_seqlen": q_len, "kv_seqlen": kv_len, "qkv_layout": layout}
    kind = _kind(is_causal) if kv_len is None else fused.MaskType.PADDING
    scale = float(q.shape[-1] ** -0.5)
    call: Any = fused.dot_product_attention
    return call(q, k, v, **given, scale=scale, mask_type=kind, return_residual=True)


def _call_backward(
    q: Array, kv: tuple[Array, Array], stats: Array, out: Array, gradient: Array, *, mask: Array, is_causal: bool
) -> tuple[Array, Array, Array]:
    """Gradients of q, k and v of `_call` with `stats` and `out`."""
    none = jnp.zeros(0, q.dtype)
    of_q, of_k, of_v = fused._dot_product_attention_bwd_p_wrapper.bind(
        q,
        *kv,
        fused.combine_bias_and_mask(None, mask, q.dtype),
        *[none] * 6,  # lengths, offsets and page tables
        stats,
        out,
        gradient,
        scale=float(q.shape[-1] ** -0.5),
        seed=0,
        dropout_rate=0.0,
        variadic_args=(True, False),  # a mask, no gradient of it
        mask_type=_kind(is_causal),
        layout=fused.AttentionLayout.BTNH.value,
        sliding_window_length=None,
        **_SCORES,
    )
    return of_q, of_k, of_v


def _kind(is_causal: bool) -> fused.MaskType:
    return fused.MaskType.CAUSAL if is_causal else fused.MaskType.NO_MASK
