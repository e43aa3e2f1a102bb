"""The gated delta rule (arXiv 2412.06464): a state that each token decays and corrects, over prompts and branches.

Each head keeps a matrix S from keys to values. A token with key k, value v, decay g <= 0 and rate beta in (0, 1) does

    S = exp(g) S          S = S + k (beta (v - S^T k))^T          output S^T q

Sequences are computed in chunks of _CHUNK tokens (arXiv 2406.06484, section 3): inside a chunk everything is a matrix
product, and only the state goes from chunk to chunk. A stream of prompts and branches is a forest: a token's ancestors
are the earlier tokens of its own branch and its prompt's. The same products serve it, since decays add up along a path
and all that differs is who is an ancestor of whom and which state a token starts from. Two states are carried: that of
the sequence under way, and that of its prompt, from which the next branch starts:

    chunk 1        chunk 2                    p prompt, a b branches, P the next prompt; the tokens of chunk 2 start
    p p p p p  |   p a a b P                  from the state of chunk 1's last token, but P from none

Everything here is float32. Padding has decay 0 in the exponent and rate 0, so it leaves a state as it is, bit for bit.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from flax import struct
from jaxtyping import Bool, Float, Float32, Int32

from care_jax.structs import Array

_CHUNK = 64  # tokens
# Products of float32 numbers on a TPU: three passes in bfloat16, which lose about as much as the sums do.
_PRECISION = jax.lax.Precision.HIGH
_EPS = 1e-6  # of the norms of keys and queries, fixed in Qwen's code


@struct.dataclass
class Chunks:
    """Who starts where in the chunks of a batch of sequences or streams; the same for all layers and heads.

    n chunks of c tokens, S carried states: 1, or 2 in streams with branches.
    """

    is_real: Bool[Array, "B T"]  # tokens that change a state
    ancestor: Bool[Array, "#B n c c"]  # of each token, the tokens of its chunk that are its ancestors, and itself
    start: Bool[Array, "#B n c S"]  # the carried state that a token's path comes from; none: it starts from 0
    # Of the states that each chunk carries on:
    path: Bool[Array, "#B n S c"]  # the tokens that are in it
    before: Bool[Array, "#B n S S"]  # the carried state that these come from, or that is only passed on

    @classmethod
    def of_sequences(cls, lengths: Int32[Array, "B"], num_tokens: int) -> Chunks:
        """Sequences that are padded on the right to `num_tokens`, each from its own state."""
        size, count = _chunk_sizes(num_tokens)
        return cls(
            is_real=jnp.arange(num_tokens)[None] < lengths[:, None],
            ancestor=jnp.broadcast_to(jnp.tril(jnp.ones((size, size), bool)), (1, count, size, size)),
            start=jnp.ones((1, count, size, 1), bool),
            path=jnp.ones((1, count, 1, size), bool),
            before=jnp.ones((1, count, 1, 1), bool),
        )

    @classmethod
    def of_streams(cls, group: Int32[Array, "B T"], branch: Int32[Array, "B T"]) -> Chunks:
        """Streams of prompts and branches (structs.Streams), all from 0."""
        size, count = _chunk_sizes(group.shape[1])
        (of_group, of_branch) = (
            jnp.pad(x, ((0, 0), (0, count * size - x.shape[1]))).reshape(-1, count, size) for x in (group, branch)
        )
        is_same = of_group[..., :, None] == of_group[..., None, :]
        is_earlier = jnp.tril(jnp.ones((size, size), bool))[None, None]
        is_above = (of_branch[..., None, :] == 0) | (of_branch[..., None, :] == of_branch[..., :, None])
        ancestor = is_same & is_above & is_earlier

        def previous(x: Array, first: int) -> Array:
            """The last token of the chunk before, [B, n, 1]."""
            return jnp.pad(x[:, :-1, -1:], ((0, 0), (1, 0), (0, 0)), constant_values=first)

        group_before, branch_before = previous(of_group, -1), previous(of_branch, 0)
        goes_on = (of_group == group_before) & (of_group > 0)
        from_last = goes_on & ((branch_before == 0) | (of_branch == branch_before))
        start = jnp.stack([from_last, goes_on & ~from_last], axis=-1)

        last_group, last_branch = of_group[..., -1:], of_branch[..., -1:]
        in_prompt = (of_group == last_group) & (of_branch == 0)
        own_path, own_start = ancestor[..., -1, :], start[..., -1, :]
        # The prompt's state: where it ends in this chunk that of its last token; else the one that was carried.
        is_prompt, has_prompt = last_branch == 0, in_prompt.any(axis=-1, keepdims=True)
        passed = jnp.concatenate([branch_before == 0, branch_before != 0], axis=-1)
        ended = jnp.concatenate([last_group == group_before, jnp.zeros_like(last_group, bool)], axis=-1)
        path_of_prompt = jnp.where(is_prompt, own_path, in_prompt)
        before_prompt = jnp.where(is_prompt, own_start, jnp.where(has_prompt, ended, passed))
        return cls(
            is_real=group > 0,
            ancestor=ancestor,
            start=start,
            path=jnp.stack([own_path, path_of_prompt], axis=-2),
            before=jnp.stack([own_start, before_prompt], axis=-2),
        )


def _chunk_sizes(num_tokens: int) -> tuple[int, int]:
    """Tokens of a chunk, and the number of chunks."""
    size = min(_CHUNK, num_tokens)
    return size, -(-num_tokens // size)


def normalise(x: Float32[Array, "*batch C"]) -> Float32[Array, "*batch C"]:
    """Gives vectors length 1."""
    return x * jax.lax.rsqrt(jnp.sum(x * x, axis=-1, keepdims=True) + _EPS)


def delta_rule(
    q: Float[Array, "B T N C"],
    k: Float[Array, "B T N C"],
    v: Float[Array, "B T N Q Cv"],
    decay: Float32[Array, "B T N Q"],
    rate: Float32[Array, "B T N Q"],
    chunks: Chunks,
    state: Float32[Array, "B N Q C Cv"] | None = None,
) -> tuple[Float32[Array, "B T N Q Cv"], Float32[Array, "B N Q C Cv"]]:
    """Computes the outputs of sequences or streams, and the state after the last token of each.

    Args:
        q: queries of N heads, each for the Q value heads that share it.
        k: keys.
        v: values.
        decay: the logarithm of what a state is multiplied with.
        rate: the share of a token's correction that is made.
        chunks: who sees whom.
        state: that the sequences start from; None: 0, as streams do.

    Returns:
        The outputs, and the states.
    """
    num_tokens, size = q.shape[1], chunks.ancestor.shape[-1]

    def cut(x: Array) -> Array:
        """Chunks of x [B, T, N, ...] as [n, B, N, c, ...]."""
        padded = jnp.pad(x, ((0, 0), (0, -num_tokens % size), *[(0, 0)] * (x.ndim - 2)))
        return jnp.moveaxis(padded.reshape(x.shape[0], -1, size, *x.shape[2:]), (1, 3), (0, 2))

    is_real = chunks.is_real[..., None, None]
    decay, rate = jnp.where(is_real, decay, 0.0), jnp.where(is_real, rate, 0.0)
    q, k = cut(normalise(q.astype(jnp.float32)) * q.shape[-1] ** -0.5), cut(normalise(k.astype(jnp.float32)))
    v, decay, rate = (jnp.moveaxis(cut(x), 3, 4) for x in (v.astype(jnp.float32), decay, rate))
    ancestor, start, path, before = (
        jnp.moveaxis(x, 1, 0)[:, :, None, None] for x in (chunks.ancestor, chunks.start, chunks.path, chunks.before)
    )

    total, end = _sums(ancestor, decay), _sums(path, decay)  # decay up to each token, and of each path
    # Masked before the exponential: between two branches the difference may be large.
    faded = jnp.exp(jnp.where(ancestor, total[..., :, None] - total[..., None, :], -jnp.inf))
    left = jnp.exp(jnp.where(path, end[..., :, None] - total[..., None, :], -jnp.inf))
    overlap = _einsum("nbhik,nbhzk->nbhiz", k, k)[:, :, :, None] * faded * rate[..., None]
    solved = _inverse(jnp.tril(overlap, -1))
    corrected = _einsum("nbhgiz,nbhgzv->nbhgiv", solved, v * rate[..., None])
    read = _einsum("nbhgiz,nbhgzk->nbhgik", solved, k[:, :, :, None] * (rate * jnp.exp(total))[..., None])
    attended = _einsum("nbhik,nbhzk->nbhiz", q, k)[:, :, :, None] * faded
    asked = q[:, :, :, None] * jnp.exp(total)[..., None]

    def step(states: Array, chunk: Any) -> tuple[Array, Array]:
        """States [B, N, Q, S, C, Cv] through one chunk."""
        k, corrected, read, attended, asked, left, end, start, before = chunk

        def of_start(x: Array) -> Array:
            """Reads x [B, N, Q, c, C] from the states that its tokens start from."""
            of_all = _einsum("bhgik,bhgskv->bhgisv", x, states)
            return jnp.sum(jnp.where(start[..., None], of_all, 0.0), axis=-2)

        update = corrected - of_start(read)
        out = of_start(asked) + _einsum("bhgiz,bhgzv->bhgiv", attended, update)
        passed = jnp.sum(jnp.where(before[..., None, None], states[:, :, :, None], 0.0), axis=-3)
        passed = passed * jnp.exp(end)[..., None, None]
        return passed + _einsum("bhgsz,bhzk,bhgzv->bhgskv", left, k, update), out

    zeros = jnp.zeros((*v.shape[1:4], path.shape[-2], q.shape[-1], v.shape[-1]), jnp.float32)
    states: Any = zeros if state is None else zeros + state[:, :, :, None]
    states, out = jax.lax.scan(step, states, (k, corrected, read, attended, asked, left, end, start, before))
    out = jnp.moveaxis(out, (0, 4), (1, 2))  # [B, n, c, N, Q, Cv]
    return out.reshape(out.shape[0], -1, *out.shape[3:])[:, :num_tokens], states[:, :, :, 0]


def _einsum(spec: str, *operands: Array) -> Array:
    return jnp.einsum(spec, *operands, precision=_PRECISION)


def _sums(mask: Bool[Array, "n #B 1 1 X c"], values: Float32[Array, "n B N Q c"]) -> Float32[Array, "n B N Q X"]:
    """Sums of each chunk's values over the rows of a mask; all digits are kept, since they become exponents."""
    ones = jnp.broadcast_to(mask[:, :, 0, 0], (*values.shape[:2], *mask.shape[4:])).astype(jnp.float32)
    return jnp.einsum("nbxz,nbhgz->nbhgx", ones, values, precision=jax.lax.Precision.HIGHEST)


@jax.custom_vjp
def _inverse(lower: Float32[Array, "*batch c c"]) -> Float32[Array, "*batch c c"]:
    """The inverse of I + `lower`, which is strictly lower triangular, by blocks of 1, 2, 4, ... tokens.

    [A 0; B D] has the inverse [A' 0; -D'BA' D'], and the blocks of all pairs are one product. Powers of `lower`, which
    would need no fewer, lose every digit where keys are alike.
    """
    size = lower.shape[-1]
    place = jnp.arange(size)
    inverse = jnp.broadcast_to(jnp.eye(size, dtype=lower.dtype), lower.shape)
    block = 1
    while block < size:
        row, column = place[:, None] // block, place[None] // block
        is_pair = (row // 2 == column // 2) & (row > column)
        between = jnp.where(jnp.broadcast_to(is_pair, lower.shape), lower, 0.0)
        if block > 1:
            between = jnp.matmul(inverse, jnp.matmul(between, inverse, precision=_PRECISION), precision=_PRECISION)
        inverse = inverse - between
        block *= 2
    return inverse


def _inverse_backward(inverse: Array, gradient: Array) -> tuple[Array]:
    transposed = jnp.swapaxes(inverse, -1, -2)
    product = jnp.matmul(transposed, jnp.matmul(gradient, transposed, precision=_PRECISION), precision=_PRECISION)
    return (-jnp.tril(product, -1),)


_inverse.defvjp(lambda lower: 2 * (_inverse(lower),), _inverse_backward)


def delta_step(
    q: Float[Array, "*batch N C"],
    k: Float[Array, "*batch N C"],
    v: Float[Array, "*batch N Q Cv"],
    decay: Float32[Array, "*batch N Q"],
    rate: Float32[Array, "*batch N Q"],
    state: Float32[Array, "*batch N Q C Cv"],
) -> tuple[Float32[Array, "*batch N Q Cv"], Float32[Array, "*batch N Q C Cv"]]:
    """One token of each sequence: its outputs, and the state after it. Arguments are those of `delta_rule`."""
    q, k = normalise(q.astype(jnp.float32)) * q.shape[-1] ** -0.5, normalise(k.astype(jnp.float32))
    state = state * jnp.exp(decay)[..., None, None]
    known = jnp.sum(state * k[..., None, :, None], axis=-2)
    update = (v.astype(jnp.float32) - known) * rate[..., None]
    state = state + k[..., None, :, None] * update[..., None, :]
    return jnp.sum(state * q[..., None, :, None], axis=-2), state
