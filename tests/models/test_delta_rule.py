"""The gated delta rule in chunks against one token at a time: sequences, and streams of prompts and branches."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from care_jax.models.delta_net import Forest
from care_jax.models.delta_rule import Chunks, delta_rule, delta_step
from care_jax.structs import Array

N, Q, C, CV = 2, 2, 8, 6
TOLERANCE, GRADIENT_TOLERANCE = 1e-5, 1e-5

# Prompt lengths and those of their branches: prompts that end inside, at and just behind the end of a chunk; chunks
# with several prompts, and with one token of a branch; branches longer than a chunk.
STREAMS = {
    "in chunks": [(100, [30, 2, 1, 90]), (3, [5]), (1, [1, 1, 1, 70, 3]), (26, [40, 64])],
    "at the ends of chunks": [(64, [64, 63, 65]), (128, [1]), (63, [1, 1, 200])],
    "in one chunk": [(5, [3, 4]), (2, [1])],
}


# Each a program, not dozens.
of_sequences = jax.jit(Chunks.of_sequences, static_argnums=1)
of_streams = jax.jit(Chunks.of_streams)
make_forest = jax.jit(Forest.make, static_argnames=("num_taps", "most_branches"))


def draw_inputs(num_rows: int, num_tokens: int) -> tuple[np.ndarray, ...]:
    """q, k, v, decay and rate."""
    rng = np.random.default_rng(num_tokens)

    def normal(*shape: int) -> np.ndarray:
        return rng.normal(size=(num_rows, num_tokens, *shape)).astype(np.float32)

    heads = normal(N, Q), normal(N, Q)
    return normal(N, C), normal(N, C), normal(N, Q, CV), -np.abs(heads[0]), 1 / (1 + np.exp(-heads[1]))


@jax.jit
def one_at_a_time(inputs: tuple[Array, ...], parents: Array, start: Array) -> tuple[jax.Array, jax.Array]:
    """Outputs [T, ...] of one row, and the states; token t goes on from the state of parents[t], or -1 from `start`."""
    num_tokens = len(parents)
    states = jnp.zeros((num_tokens + 1, *start.shape)).at[num_tokens].set(start)

    def step(states: jax.Array, t: jax.Array) -> tuple[jax.Array, jax.Array]:
        out, state = delta_step(*(x[0, t] for x in inputs), states[parents[t]])
        return states.at[t].set(state), out

    states, out = jax.lax.scan(step, states, jnp.arange(num_tokens))
    return out, states


@pytest.mark.parametrize("num_tokens", [1, 7, 64, 65, 200])
def test_sequences_in_chunks(num_tokens):
    """Catches a chunk that loses the state before it, and padding that changes one by a single bit."""
    lengths = [num_tokens, max(1, num_tokens - 3)]
    inputs = draw_inputs(2, num_tokens)
    start = np.random.default_rng(1).normal(size=(2, N, Q, C, CV)).astype(np.float32)
    chunks = of_sequences(np.array(lengths, np.int32), num_tokens)
    out, after = map(np.asarray, jax.jit(delta_rule)(*inputs, chunks, start))
    for row, length in enumerate(lengths):
        own = tuple(x[row : row + 1, :length] for x in inputs)
        expected, states = one_at_a_time(own, np.arange(length) - 1, start[row])
        np.testing.assert_allclose(out[row, :length], expected, rtol=0, atol=TOLERANCE)
        np.testing.assert_allclose(after[row], states[length - 1], rtol=TOLERANCE, atol=TOLERANCE)


def test_padding_leaves_the_state_as_it_is():
    """Catches a decay or an update at padding, whatever it holds: the state behind 3 tokens has the same bits."""
    inputs, lengths = draw_inputs(1, 192), np.array([3], np.int32)
    others = tuple(np.concatenate([x[:, :3], 7 + x[:, 3:]], axis=1) for x in inputs)
    after = [
        jax.jit(delta_rule)(*(x[:, :num_tokens] for x in given), of_sequences(lengths, num_tokens))[1]
        for given, num_tokens in ((inputs, 64), (others, 64), (others, 192))
    ]
    assert np.abs(after[0]).max() > 0.1
    np.testing.assert_array_equal(after[0], after[1])
    np.testing.assert_array_equal(after[0], after[2])


def test_alike_keys():
    """Catches an inverse by powers, which is lost where all keys are the same and nothing decays."""
    q, k, v, decay, rate = draw_inputs(1, 300)
    inputs = q, np.ones_like(k), v, np.zeros_like(decay), np.ones_like(rate)
    out, _ = jax.jit(delta_rule)(*inputs, of_sequences(np.array([300], np.int32), 300))
    expected, _ = one_at_a_time(inputs, np.arange(300) - 1, np.zeros((N, Q, C, CV), np.float32))
    np.testing.assert_allclose(out[0], expected, rtol=0, atol=TOLERANCE)


def lay_out(groups: list[tuple[int, list[int]]], padding: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Group and branch of each token [T], and the token before it on its path."""
    group, branch, parents = list[int](), list[int](), list[int]()
    for number, (prompt_len, branches) in enumerate(groups, start=1):
        last = -1
        for which, length in enumerate([prompt_len, *branches]):
            place = len(group)
            group += [number] * length
            branch += [which] * length
            parents += [last, *range(place, place + length - 1)]
            last = place + length - 1 if which == 0 else last
    return np.int32(group + [0] * padding), np.int32(branch + [0] * padding), np.int32(parents)


@pytest.mark.parametrize("name", STREAMS)
def test_streams_in_chunks(name):
    """Catches a branch that starts from another's state or from nothing, and gradients that do not reach its prompt."""
    group, branch, parents = lay_out(STREAMS[name], padding=30)
    num_real, inputs = len(parents), draw_inputs(1, len(group))
    weights = np.random.default_rng(2).normal(size=(num_real, N, Q, CV)).astype(np.float32)
    chunks = of_streams(group[None], branch[None])

    def in_chunks(inputs: tuple[Array, ...]) -> jax.Array:
        return delta_rule(*inputs, chunks)[0][0, :num_real]

    def singly(inputs: tuple[Array, ...]) -> jax.Array:
        return one_at_a_time(tuple(x[:, :num_real] for x in inputs), parents, jnp.zeros((N, Q, C, CV)))[0]

    def with_gradient(run) -> tuple[np.ndarray, tuple[np.ndarray, ...]]:
        def weighted(inputs: tuple[Array, ...]) -> tuple[Array, Array]:
            out = run(inputs)
            return jnp.sum(weights * out), out

        (_, out), gradient = jax.device_get(jax.jit(jax.value_and_grad(weighted, has_aux=True))(inputs))
        return out, gradient

    (ours, our_gradient), (expected, gradient) = with_gradient(in_chunks), with_gradient(singly)
    np.testing.assert_allclose(ours, expected, rtol=0, atol=TOLERANCE)
    for ours, expected in zip(our_gradient, gradient, strict=True):
        assert np.abs(ours - expected).max() <= GRADIENT_TOLERANCE * np.abs(expected).max()


@pytest.mark.parametrize("name", STREAMS)
def test_a_branch_convolves_into_its_prompt(name):
    """Catches taps that reach into a neighbour, or miss the prompt; a prompt or a branch may be shorter than they."""
    group, branch, parents = lay_out(STREAMS[name], padding=3)
    first = np.maximum.accumulate(np.where(np.append(True, group[1:] != group[:-1]), np.arange(len(group)), 0))
    num_branches = sum(len(branches) for _, branches in STREAMS[name])
    rows = (np.int32(x[None]) for x in (group, branch, first))
    forest = jax.device_get(make_forest(*rows, num_taps=4, most_branches=num_branches + 2))
    depth, heads, tails = forest.depth[0], forest.head[0], forest.tail[0]
    for place, parent in enumerate(parents):
        path = [place]
        while path[-1] >= 0 and len(path) < 5:
            path.append(int(parents[path[-1]]))
        seen = [at for at in path[1:4] if at >= 0]  # nearest first
        own = list(range(place - 1, place - 1 - min(3, depth[place]), -1))
        found = np.argwhere(heads == place)
        if len(found):
            start, offset = found[0]
            own += [at for at in tails[start, offset:][::-1] if at >= 0]
        assert own == seen, (place, parent)
    assert (heads == len(group)).all(axis=1).sum() == 2  # for more branches


def test_the_step_is_the_rule():
    """Catches a transposed state: one token by hand."""
    one = jnp.ones((1, 1))
    q, k, v = jnp.array([[2.0, 0.0]]), jnp.array([[0.0, 3.0]]), jnp.array([[[5.0, 7.0]]])
    state = jnp.array([[[[1.0, 2.0], [3.0, 4.0]]]])
    out, after = functools.partial(delta_step, q, k, v, jnp.log(0.5) * one, 0.5 * one)(state)
    # Halved: [[.5, 1], [1.5, 2]]; the key is (0, 1), so its row goes half of the way to (5, 7); q is (1, 0) / sqrt(2).
    np.testing.assert_allclose(after[0, 0], [[0.5, 1.0], [3.25, 4.5]], rtol=1e-6)
    np.testing.assert_allclose(out[0, 0], np.array([0.5, 1.0]) / np.sqrt(2), rtol=1e-6)
