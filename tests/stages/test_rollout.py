"""Rollouts: one distribution for sampler and scorer, forced prefixes, stops, the budget, and branches apart."""

from __future__ import annotations

import copy
import dataclasses
import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, PartitionSpec

from benchmarks import padded
from benchmarks.made_model import FACTOR
from care_jax.inputs.batch import collate
from care_jax.inputs.prompts import encode_prompt
from care_jax.models import QwenVL, decoder, load_model_config, qwen_vl
from care_jax.parallel import collectives
from care_jax.stages import draws, rollout, score
from care_jax.stages.rollout import Sampling
from care_jax.structs import Forced, Rollouts, Verdicts
from tests.families import FAMILIES, make_folder
from tests.families import tiny_processor as tiny_processor_of
from tests.marks import slow_but
from tests.packings import make_packing
from tests.pictures import encode, picture, question
from tests.weights import random_model

R, J = 12, 4
KEY = jax.random.key(1)
TEMPERATURE = 0.7
STOP_IDS = tuple(range(60, 84))  # enough of them that most branches stop, each at another token
GAP = 1e-5  # nats
FORCED_LEN = np.array([[0, 1, 5, 6], [3, 0, 6, 2], [4, 4, 0, 1]], np.int32)
ACTIVE = np.array([[1, 1, 1, 0], [1, 1, 1, 1], [1, 0, 1, 1]], bool)


class Scored(NamedTuple):
    """Rollouts, and what the scorer says about them."""

    rollouts: Rollouts  # NumPy arrays
    logprobs: np.ndarray  # [B, J, R]
    argmax: np.ndarray  # [B, J, R], of the scorer's distribution at each token


@pytest.fixture(scope="module")
def run(tiny_model, tiny_prompts, tiny_processor):
    """(sampling, forced, forbidden_mask, rows) -> rollouts and their scores under the trainer's own graph."""

    def run(sampling: Sampling, forced: Forced, forbidden=tiny_processor.forbidden_mask, rows=slice(None)) -> Scored:
        prompts = jax.tree.map(lambda x: x[rows], tiny_prompts)
        prefix = jax.jit(QwenVL.prefill)(tiny_model, prompts)
        forbidden = jnp.asarray(forbidden)
        rollouts = rollout.generate(tiny_model, prefix, forced, forbidden, KEY, sampling=sampling)
        logprobs, argmax = teacher_forced(
            tiny_model, prompts, rollouts.token_ids, forbidden, sampling.logits_temperature
        )
        return Scored(jax.device_get(rollouts), np.asarray(logprobs), np.asarray(argmax))

    return run


@functools.partial(jax.jit, static_argnums=4)
def teacher_forced(model, prompts, token_ids, forbidden, temperature):
    """Log-probs of given tokens, and the most likely ones, from one pass over the branches."""
    hidden = padded.forward_branches(model, prompts, token_ids).predicting
    logits = score.masked_logits(model.head, hidden, forbidden_mask=forbidden, temperature=temperature)
    logprobs = jnp.take_along_axis(jax.nn.log_softmax(logits), token_ids[..., None], axis=-1)[..., 0]
    return logprobs, logits.argmax(-1)


def forced_prefixes(lengths: np.ndarray = FORCED_LEN, active: np.ndarray = ACTIVE, width: int = 6) -> Forced:
    """Random letters, different in every branch; rubbish behind their end, which nobody may read."""
    ids = np.random.default_rng(0).integers(0, 60, (*lengths.shape, width)).astype(np.int32)
    return Forced(token_ids=jnp.asarray(ids), forced_len=jnp.asarray(lengths), active=jnp.asarray(active))


SAMPLED = Sampling(R, TEMPERATURE, STOP_IDS)
GREEDY = Sampling(R, 0.0, STOP_IDS)


@pytest.fixture(scope="module")
def free(run) -> Scored:
    """Branches without a forced prefix."""
    return run(SAMPLED, rollout.nothing_forced(3, J))


@pytest.fixture(scope="module")
def forced(run) -> Scored:
    """Branches with forced prefixes of all lengths, two of them inactive."""
    return run(SAMPLED, forced_prefixes())


@pytest.fixture(scope="module")
def greedy(run) -> Scored:
    """Greedy branches with forced prefixes, scored."""
    return run(GREEDY, forced_prefixes())


@pytest.mark.parametrize("case", ["free", "forced", "greedy"])
def test_sampler_and_scorer_agree(case, request):
    """Catches a cache, mask, position, temperature or prompt length that sampler and trainer see differently."""
    ours, logprobs, _ = request.getfixturevalue(case)
    assert ours.sampled_mask.sum() > 40
    gap = np.abs(ours.logprobs - logprobs) * ours.sampled_mask
    assert gap.max() <= GAP
    assert not ours.logprobs[~ours.sampled_mask].any()


@pytest.mark.slow
def test_short_reads_hold_all_that_is_stored(run, monkeypatch):
    """Catches a read that ends before the newest token: at a border between two lengths, or behind a forced prefix."""
    monkeypatch.setattr(decoder, "_STRIDE", 4)
    ours, logprobs, _ = run(dataclasses.replace(SAMPLED, response_len=R - 1), forced_prefixes())
    assert ours.response_len.max() > 8
    assert (np.abs(ours.logprobs - logprobs) * ours.sampled_mask).max() <= GAP


@pytest.mark.parametrize("case", ["free", "forced"])
def test_responses_end_at_their_first_stop(case, request):
    """Catches a stop token outside the mask, tokens after it, and a length that is off by one."""
    ours = request.getfixturevalue(case).rollouts
    forced_len = FORCED_LEN if case == "forced" else np.zeros_like(FORCED_LEN)
    finished = 0
    for row in np.ndindex(3, J):
        length, start = ours.response_len[row], forced_len[row]
        sampled = ours.token_ids[row][start:length]
        is_stop = np.isin(sampled, STOP_IDS)
        assert ours.sampled_mask[row].tolist() == [start <= r < length for r in range(R)]
        assert not ours.token_ids[row][length:].any()
        assert is_stop.sum() == is_stop[-1:].sum() == ours.finished[row]
        assert ours.finished[row] or length == R or not len(sampled)
        finished += ours.finished[row]
    assert 0 < finished < 3 * J, "the case says nothing"
    assert len(set(ours.response_len.ravel().tolist())) > 3, "almost all as long as each other"


def test_forced_tokens_are_kept_and_not_sampled(forced):
    """Catches forced tokens with a log-prob or in the mask, shifted by one, and an inactive branch that samples."""
    given = forced_prefixes()
    ours = forced.rollouts
    for row in np.ndindex(3, J):
        start = FORCED_LEN[row]
        assert ours.token_ids[row][:start].tolist() == given.token_ids[row][:start].tolist()
        assert not ours.sampled_mask[row][:start].any()
        if not ACTIVE[row]:
            assert ours.response_len[row] == start
            assert not ours.sampled_mask[row].any()
            assert not ours.finished[row]
        else:
            assert ours.response_len[row] > start


def test_no_share_finds_an_id_without_weight():
    """Catches rounded running sums that rise where the weight is 0: shares at each such place and beside it."""
    rng = np.random.default_rng(0)
    weights = np.exp(rng.normal(0, 3, (200, 512))).astype(np.float32)
    weights[rng.random(weights.shape) < 0.3] = 0
    weights /= weights.sum(1, keepdims=True)
    upto = np.asarray(jnp.cumsum(jnp.asarray(weights), axis=-1))
    rows, places = np.nonzero((np.diff(upto, axis=-1) > 0) & (weights[:, 1:] == 0))
    assert len(rows) > 0
    at = upto[rows, places] / upto[rows, -1]
    for offset in range(-3, 4):
        found = draws._find(jnp.asarray(weights[rows]), jnp.asarray(at + offset * np.spacing(at)))
        assert np.all(weights[rows, np.asarray(found)] > 0)


def test_a_forced_prefix_of_length_0_is_none(free, forced):
    """Catches padding of a forced prefix that shifts positions or is attended to."""
    rows = (FORCED_LEN == 0) & ACTIVE
    assert rows.sum() == 3
    np.testing.assert_array_equal(forced.rollouts.token_ids[rows], free.rollouts.token_ids[rows])
    np.testing.assert_allclose(forced.rollouts.logprobs[rows], free.rollouts.logprobs[rows], rtol=0, atol=GAP)


def test_forbidden_ids_are_never_sampled(run, tiny_processor):
    """Catches a mask applied after the draw, and log-probs of another distribution than the one drawn from."""
    forbidden = np.ones_like(tiny_processor.forbidden_mask)
    forbidden[[61, 65, 97, 98, 99]] = False
    ours, logprobs, _ = run(SAMPLED, rollout.nothing_forced(3, J), forbidden)
    drawn = ours.token_ids[ours.sampled_mask]
    assert set(drawn.tolist()) <= {61, 65, 97, 98, 99}
    assert len(set(drawn.tolist())) > 2
    assert (np.abs(ours.logprobs - logprobs) * ours.sampled_mask).max() <= GAP


def test_forced_and_sampled_tokens_fit_the_response(run):
    """Catches a budget of sampled tokens alone, and a length past R where the forced prefix is longer than R."""
    length = 5
    assert {length, length + 1} < set(FORCED_LEN.ravel().tolist())
    ours, logprobs, _ = run(Sampling(length, TEMPERATURE, ()), forced_prefixes(active=np.ones_like(ACTIVE)))
    assert ours.token_ids.shape[-1] == length
    assert (ours.response_len == length).all()  # nothing stops them, so all of them are full
    np.testing.assert_array_equal(ours.sampled_mask.sum(-1), np.maximum(length - FORCED_LEN, 0))
    assert not ours.finished.any()
    assert (np.abs(ours.logprobs - logprobs) * ours.sampled_mask).max() <= GAP


def test_forced_tokens_that_are_dropped_take_no_room(run):
    """Catches forced tokens in a response that leaves them out, another continuation, and a limit that counts them."""
    forced, length = forced_prefixes(active=np.ones_like(ACTIVE)), 5
    ours = run(Sampling(length, TEMPERATURE, (), drop_forced=True), forced).rollouts
    assert ours.sampled_mask.shape == (3, J, length)
    assert ours.sampled_mask.all()
    assert (ours.response_len == length).all()
    kept = run(Sampling(length + int(FORCED_LEN.max()), TEMPERATURE, ()), forced).rollouts
    for row in np.ndindex(3, J):
        behind = slice(FORCED_LEN[row], FORCED_LEN[row] + length)
        np.testing.assert_array_equal(ours.token_ids[row], kept.token_ids[row][behind])
        np.testing.assert_allclose(ours.logprobs[row], kept.logprobs[row][behind], rtol=0, atol=GAP)


@pytest.mark.parametrize("row", slow_but([(2, 3)], [(0, 2), (1, 0), (2, 3)]))
def test_a_branch_sees_neither_branches_nor_other_prompts(run, greedy, row):
    """Catches attention across branches or prompts: a branch alone gives the same tokens and log-probs."""
    b, j = row
    one = jax.tree.map(lambda x: x[b : b + 1, j : j + 1], forced_prefixes())
    alone = run(GREEDY, one, rows=slice(b, b + 1)).rollouts
    together = jax.tree.map(lambda x: x[b, j], greedy.rollouts)
    np.testing.assert_array_equal(alone.token_ids[0, 0], together.token_ids)
    np.testing.assert_allclose(alone.logprobs[0, 0], together.logprobs, rtol=0, atol=GAP)
    assert alone.response_len[0, 0] == together.response_len
    assert alone.finished[0, 0] == together.finished


def test_leaving_early_changes_nothing(run, free, tiny_processor):
    """Catches a branch that ends when another one does, or that goes on: cut at its stop, the whole run is the same."""
    whole = run(Sampling(R, TEMPERATURE, ()), rollout.nothing_forced(3, J)).rollouts
    assert whole.sampled_mask.all()
    for row in np.ndindex(3, J):
        stops = np.flatnonzero(np.isin(whole.token_ids[row], STOP_IDS))
        length = stops[0] + 1 if len(stops) else R
        assert free.rollouts.response_len[row] == length
        np.testing.assert_array_equal(free.rollouts.token_ids[row][:length], whole.token_ids[row][:length])
        np.testing.assert_array_equal(free.rollouts.logprobs[row][:length], whole.logprobs[row][:length])


def test_greedy_takes_the_scorers_first_choice(greedy):
    """Catches a greedy decode that still draws, or that looks one token off."""
    ours = greedy.rollouts
    np.testing.assert_array_equal(ours.token_ids[ours.sampled_mask], greedy.argmax[ours.sampled_mask])


@pytest.mark.parametrize("forces", slow_but([True], [False, True]))
def test_a_smaller_batch_for_the_last_branches_changes_nothing(run, forces):
    """Catches a branch that loses its prompt, cache, draws or place when the last ones are decoded by themselves."""
    given = forced_prefixes() if forces else rollout.nothing_forced(3, J)
    whole = run(SAMPLED, given).rollouts
    ours, logprobs, _ = run(dataclasses.replace(SAMPLED, compact_shares=(0.7, 0.3)), given)
    sampled_len = whole.sampled_mask.sum(-1)
    assert (sampled_len == sampled_len.max()).sum() <= int(0.7 * sampled_len.size), "no tail to speak of"
    for name in ("token_ids", "response_len", "sampled_mask", "finished"):
        np.testing.assert_array_equal(getattr(ours, name), getattr(whole, name), err_msg=name)
    assert (np.abs(ours.logprobs - logprobs) * ours.sampled_mask).max() <= GAP


@pytest.mark.parametrize("family", slow_but(["qwen3_5"], FAMILIES))
def test_layers_decoded_each_alone_change_nothing(monkeypatch, tiny_folder, tmp_path, family):
    """Catches a layer, or what it kept, in the place of another's or of another kind's, in a smaller batch too."""
    monkeypatch.setattr(qwen_vl, "_CACHED", 0)
    folder = make_folder(family, tiny_folder, tmp_path / "model")
    processor, model = tiny_processor_of(folder, (40, 64)), random_model(load_model_config(folder))
    side = FACTOR[family]
    records = [question("<image>=?", encode(picture(side, 2 * side))), question("1+2=?"), question("how many?")]
    prompts = collate(processor, [encode_prompt(processor, record) for record in records])
    alone = copy.copy(model)
    alone.config = dataclasses.replace(model.config, scan_decoding=False)
    prefix = jax.jit(QwenVL.prefill)(model, prompts)
    assert len(alone.in_stacks(prefix)[0]) == model.config.text.num_hidden_layers
    assert len(model.in_stacks(prefix)[0]) == 1
    sampling, forbidden = (
        dataclasses.replace(SAMPLED, compact_shares=(0.5,)),
        jnp.asarray(processor.forbidden_mask),
    )
    ours, theirs = (
        rollout.generate(each, prefix, forced_prefixes(), forbidden, KEY, sampling=sampling) for each in (alone, model)
    )
    np.testing.assert_array_equal(ours.token_ids, theirs.token_ids)
    np.testing.assert_allclose(ours.logprobs, theirs.logprobs, rtol=0, atol=GAP)


@pytest.mark.slow
def test_the_sampler_can_stand_in_for_the_scorer(tiny_model, tiny_prompts, tiny_processor):
    """Catches states that are one token off, lost in the smaller batch, or of another distribution."""
    sampling = dataclasses.replace(SAMPLED, compact_shares=(0.5,), keep_states=True)
    forbidden = jnp.asarray(tiny_processor.forbidden_mask)
    prefix = jax.jit(QwenVL.prefill)(tiny_model, tiny_prompts)
    nothing = rollout.nothing_forced(3, J)
    rollouts = rollout.generate(tiny_model, prefix, nothing, forbidden, KEY, sampling=sampling)
    row = rollouts.finished
    first_tokens = (jnp.arange(R) < 3)[None, None] & rollouts.sampled_mask
    think = first_tokens & (jnp.arange(J) > 0)[None, :, None]  # branch 0 has no rationale and is pooled whole
    verdicts = Verdicts(row, row, row, row.astype(jnp.float32), think, think)
    ours = score.scores_of_sampler(rollouts, verdicts)
    packing = make_packing(jax.device_get(tiny_prompts), rollouts.response_len, padded_len=R, stream_len=60)
    given = (tiny_model, tiny_prompts, rollouts, verdicts, packing, forbidden)
    theirs = score.score(*given, temperature=sampling.temperature, chunk=16)
    sampled = np.asarray(rollouts.sampled_mask)
    assert np.abs(np.where(sampled, ours.logprobs - theirs.logprobs, 0)).max() <= GAP
    assert np.abs(np.where(sampled, ours.entropy - theirs.entropy, 0)).max() <= GAP
    np.testing.assert_allclose(ours.think_states, theirs.think_states, rtol=0, atol=GAP)


@pytest.mark.slow
def test_draws_have_the_probabilities_they_are_drawn_from():
    """Catches a block or an id that is never drawn, drawn twice as often, or drawn at probability 0."""
    rng = np.random.default_rng(0)
    num_draws, num_ids = 200_000, 1300  # no whole number of blocks
    weights = np.where(rng.random(num_ids) < 0.3, 0.0, rng.pareto(0.7, num_ids))
    weights[512:1024] *= 1e-6  # a block of the tail
    probs = (weights / weights.sum()).astype(np.float32)
    number = jnp.arange(num_draws, dtype=jnp.int32)[None]
    ids = draws.draw(jax.random.key(5), number, jnp.broadcast_to(probs, (1, num_draws, num_ids)))
    counts = np.bincount(np.asarray(ids)[0], minlength=num_ids)
    assert counts[probs == 0].sum() == 0
    expected = num_draws * probs.astype(np.float64)
    often = expected >= 5
    found, expected = np.append(counts[often], counts[~often].sum()), np.append(expected[often], expected[~often].sum())
    chi2 = ((found - expected) ** 2 / expected).sum()
    assert abs(chi2 - len(found)) < 4 * np.sqrt(2 * len(found)), (chi2, len(found))


@pytest.mark.parametrize("num_parts", [2, 3, 4])
@pytest.mark.parametrize("num_ids", slow_but([1320], [12, 1320, 6 * 512]))
def test_parts_of_the_vocabulary_draw_as_the_whole(num_parts, num_ids):
    """Catches a block that two devices share and one forgets, an id of another's part, and ties that go elsewhere."""
    rng = np.random.default_rng(1)
    probs = jax.nn.softmax(jnp.asarray(rng.integers(-4, 1, (300, 2, num_ids)), jnp.float32))
    number = jnp.arange(600, dtype=jnp.int32).reshape(300, 2)
    mesh = Mesh(np.array(jax.devices()[:num_parts]), ("tensor",))
    parts = PartitionSpec(None, None, "tensor")

    def divided(function):
        run = jax.shard_map(function, mesh=mesh, in_specs=parts, out_specs=PartitionSpec(), check_vma=False)
        return np.asarray(jax.jit(run)(probs))

    def draw(probs: jax.Array) -> jax.Array:
        return draws.draw(KEY, number, probs)

    whole = np.asarray(draw(probs))
    # A share within rounding of a border may fall on its other side.
    assert (divided(draw) == whole).mean() > 0.995
    assert len(np.unique(whole * num_parts // num_ids)) == num_parts
    np.testing.assert_array_equal(divided(collectives.argmax), jnp.argmax(probs, axis=-1))
    probs = probs.at[0].set(jnp.nan)  # whose log-probs must be seen to be none, not an id that does not exist
    np.testing.assert_array_equal(divided(collectives.argmax), jnp.argmax(probs, axis=-1))
    assert np.isnan(divided(lambda x: collectives.pick(x, collectives.argmax(x)))[0]).all()


def test_a_draw_at_the_edges():
    """Catches an id past the last, or of probability 0, where a share is rounded to nothing or to all."""
    weights = jnp.asarray([[0, 0, 1, 0, 3, 0], [0.1] * 6, [0, 0, 0, 0, 0, 1e-30], [1, 0, 0, 0, 0, 0]], jnp.float32)
    assert draws._find(weights, jnp.zeros(4)).tolist() == [2, 0, 5, 0]
    assert draws._find(weights, jnp.full(4, np.nextafter(np.float32(1), np.float32(0)))).tolist() == [4, 5, 5, 0]
    assert draws._find(weights, jnp.ones(4)).tolist() == [4, 5, 5, 0]
    assert draws._find(weights[:1], jnp.full(1, 0.25)).tolist() == [4]
