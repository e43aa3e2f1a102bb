"""cuDNN's attention for GPUs, whose scores never leave the chip; q, k and v are bfloat16 or float16.

Two calls serve a branch, so that its prompt's keys and values exist once:

    branch -> prompt     the first `prompt_len` keys
    branch -> itself     causal, or the slots that are filled

The softmax of a token runs over the keys of both. Each call also gives the logarithm of the sum of its exponentials, by
which the two outputs are weighted. The gradient of a call needs that number and the output for all keys alone: a weight
is exp(score - number), whichever call its key is in (FlashAttention-2, arXiv 2307.08691, section 3.1).

jax.nn.dot_product_attention rounds the number to bfloat16 and takes none for the gradient, so the functions behind it
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

from care_jax.structs import Array

_KV = tuple[Array, Array]
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
def full_branch_attention(
    q: Float[Array, "B own H C"],
    prompt_kv: tuple[Float[Array, "B P N C"], Float[Array, "B P N C"]],
    own_kv: tuple[Float[Array, "B own N C"], Float[Array, "B own N C"]],
    prompt_len: Int32[Array, "B"],
    num_branches: int,
) -> Float[Array, "B own H C"]:
    """Attention of full branches, one behind the other, to their prompt and to themselves."""
    return _full_forward(q, prompt_kv, own_kv, prompt_len, num_branches)[0]


def _full_forward(q: Array, prompt_kv: _KV, own_kv: _KV, prompt_len: Array, num_branches: int) -> tuple[Array, Any]:
    apart = functools.partial(_apart, num_branches=num_branches)
    on_prompt, of_prompt = _call(q, *prompt_kv, kv_len=prompt_len)
    on_self, of_self = _call(apart(q), apart(own_kv[0]), apart(own_kv[1]))
    of_self = einops.rearrange(of_self, "(b j) h r -> b h (j r)", j=num_branches)
    of_both = jnp.logaddexp(of_prompt, of_self)
    shares = (jnp.swapaxes(jnp.exp(part - of_both), 1, 2)[..., None] for part in (of_prompt, of_self))
    out = _sum_parts((on_prompt, _together(on_self, num_branches)), shares, q.dtype)
    return out, (q, prompt_kv, own_kv, prompt_len, of_both, out)


def _full_backward(num_branches: int, saved: Any, gradient: Array) -> tuple[Array, _KV, _KV, None]:
    apart = functools.partial(_apart, num_branches=num_branches)
    q, prompt_kv, own_kv, prompt_len, of_both, out = saved
    of_each = einops.rearrange(of_both, "b h (j r) -> (b j) h r", j=num_branches)
    of_prompt = _call_backward(q, prompt_kv, of_both, out, gradient, kv_len=prompt_len)
    of_self = _call_backward(apart(q), (apart(own_kv[0]), apart(own_kv[1])), of_each, apart(out), apart(gradient))
    q_of_self, *own = (_together(x, num_branches) for x in of_self)
    q_of_both = (of_prompt[0].astype(jnp.float32) + q_of_self.astype(jnp.float32)).astype(q.dtype)
    is_real = (jnp.arange(prompt_kv[0].shape[1])[None] < prompt_len[:, None])[..., None, None]
    prompt_k, prompt_v = (jnp.where(is_real, x, jnp.zeros_like(x)) for x in of_prompt[1:])
    return q_of_both, (prompt_k, prompt_v), (own[0], own[1]), None


full_branch_attention.defvjp(_full_forward, _full_backward)


def branch_attention(
    q: Float[Array, "B J new H C"],
    prompt_kv: tuple[Float[Array, "B N P C"], Float[Array, "B N P C"]],
    own_kv: tuple[Float[Array, "B J N slots C"], Float[Array, "B J N slots C"]],
    *,
    prompt_len: Int32[Array, "B"],
    own_len: Int32[Array, ""],
    own_visible: Bool[Array, "#B #J #new #slots"],
) -> Float[Array, "B J new H C"]:
    """Computes `attention.branch_attention`; slots from `own_len` on are not even read. It has no gradient.

    The keys of a prompt are read once for all its branches, by XLA's products: cuDNN takes twice as long for them.
    """
    prompt_k, prompt_v = prompt_kv
    num_branches, num_new = q.shape[1:3]
    grouped = einops.rearrange(q, "b j t (n q) c -> b j t n q c", n=prompt_k.shape[1])
    scores = jnp.einsum("bjtnqc,bnpc->bjnqtp", grouped, prompt_k, preferred_element_type=jnp.float32)
    in_prompt = jnp.arange(prompt_k.shape[2])[None] < prompt_len[:, None]
    scores = jnp.where(in_prompt[:, None, None, None, None], scores * q.shape[-1] ** -0.5, -jnp.inf)
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
    on_prompt = jnp.einsum("bjnqtp,bnpc->bjnqtc", weights, prompt_v)
    out = _sum_parts((on_prompt, on_self), (jnp.ones_like(of_both), jnp.exp(of_self[..., None] - of_both)), q.dtype)
    return einops.rearrange(out, "b j n q t c -> b j t (n q) c")


def _apart(x: Array, num_branches: int) -> Array:
    return einops.rearrange(x, "b (j r) h c -> (b j) r h c", j=num_branches)


def _together(x: Array, num_branches: int) -> Array:
    return einops.rearrange(x, "(b j) r h c -> b (j r) h c", j=num_branches)


def _sum_parts(outputs: Any, shares: Any, dtype: jnp.dtype) -> Array:
    """Adds up the outputs for two sets of keys by their shares of the softmax, in float32."""
    first, second = (out.astype(jnp.float32) * share for out, share in zip(outputs, shares, strict=True))
    return (first + second).astype(dtype)


def _lengths(q: Array, kv_len: Array | None, layout: str) -> tuple[Any, Any, fused.MaskType]:
    """Query and key lengths, and the kind of mask: causal without lengths."""
    if kv_len is None:
        return None, None, fused.MaskType.CAUSAL
    num_queries = q.shape[layout.index("T")]
    return jnp.full(q.shape[:1], num_queries, jnp.int32), kv_len, fused.MaskType.PADDING


def _call(
    q: Array, k: Array, v: Array, *, kv_len: Array | None = None, mask: Array | None = None, layout: str = "BTNH"
) -> tuple[Array, Float32[Array, "rows H T"]]:
    """Output and log(sum(exp(scores))) of one call: with the first kv_len [rows] keys, else causal."""
    q_len, kv_len, kind = _lengths(q, kv_len, layout)
    given: dict[str, Any] = {"q_seqlen": q_len, "kv_seqlen": kv_len, "mask": mask, "qkv_layout": layout}
    scale = float(q.shape[-1] ** -0.5)
    call: Any = fused.dot_product_attention
    return call(q, k, v, **given, scale=scale, mask_type=kind, return_residual=True)


def _call_backward(
    q: Array, kv: _KV, stats: Array, out: Array, gradient: Array, *, kv_len: Array | None = None
) -> tuple[Array, Array, Array]:
    """Gradients of q, k and v of one call; `stats` and `out` are those of all keys, this call's and the other's."""
    none = jnp.zeros(0, q.dtype)
    *lengths, kind = _lengths(q, kv_len, "BTNH")
    lengths = [none if length is None else length for length in lengths]
    of_q, of_k, of_v = fused._dot_product_attention_bwd_p_wrapper.bind(
        q,
        *kv,
        none,  # bias
        *lengths,
        *[none] * 4,  # offsets and page tables
        stats,
        out,
        gradient,
        scale=float(q.shape[-1] ** -0.5),
        seed=0,
        dropout_rate=0.0,
        variadic_args=(False, False),  # no bias, no gradient of it
        mask_type=kind,
        layout=fused.AttentionLayout.BTNH.value,
        sliding_window_length=None,
        **_SCORES,
    )
    return of_q, of_k, of_v
