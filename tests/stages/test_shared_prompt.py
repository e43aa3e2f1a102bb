"""An update over shared prompts is the update of every row with its own copy of the prompt, for both families."""

from __future__ import annotations

import dataclasses
import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from benchmarks.made_model import FACTOR
from care_jax import models
from care_jax.inputs.batch import collate
from care_jax.inputs.prompts import encode_prompt
from care_jax.method import subgroup, train_batch
from care_jax.method.loss import policy_loss
from care_jax.method.objectives import Objective, Reflect, Region, Rescue
from care_jax.method.train_batch import Reflection
from care_jax.models import QwenVL
from care_jax.stages import rollout, score
from care_jax.stages.rollout import Sampling
from care_jax.stages.train_state import TrainState
from care_jax.stages.update import make_update
from care_jax.structs import Forced, Outcome, Prompts, Rollouts, Scores, Verdicts, zeros
from tests import oracle, weights
from tests.families import FAMILIES, make_folder, tiny_processor
from tests.marks import slow_but
from tests.packings import make_packing
from tests.pictures import encode, picture, question

pytestmark = pytest.mark.usefixtures("quick_to_compile")

G, R, F = 5, 7, 3
TEMPERATURE, CHUNK = 0.8, 16  # the last chunk is not full
STREAM = 48  # tokens of a stream: less than the longest groups have
TOLERANCE = 1e-5

# Groups: two failures for K = 3, repaired; all failed but one, repaired in vain; all wrong; all correct; no repair.
CORRECT = np.array(
    [[1, 0, 1, 1, 0], [0, 0, 1, 0, 0], [0, 0, 0, 0, 0], [1, 1, 1, 1, 1], [0, 1, 0, 0, 1], [0, 0, 0, 0, 1]], bool
)
TRIED = np.array([1, 1, 0, 0, 0, 1], bool)
REPAIRED = np.array([1, 0, 0, 0, 0, 1], bool)
FORCED_LEN = np.array([2, 3, 0, 0, 0, 1])


class Case(NamedTuple):
    """A model, and everything a step knows before its update. All arrays but the model's are NumPy."""

    model: models.QwenVL
    forbidden_mask: np.ndarray
    prompts: Prompts
    rollouts: Rollouts
    verdicts: Verdicts
    scores: Scores
    reflection: Reflection


def make_objective() -> Objective:
    """CARE with weights that leave no region out, and K above the failures of the first group."""
    return Objective(
        anchored=True,
        num_negatives=3,
        num_neighbours=4,
        rescue=Rescue(enabled=True),
        reflect=Reflect(enabled=True),
        region=Region(enabled=True, gamma_pos=0.3, gamma_neg=0.2, format_weight=0.5),
        kl_coef=1.0,  # or the rows' losses almost cancel
    )


@pytest.fixture(scope="module", params=slow_but(["qwen3_vl"], FAMILIES))
def case(request, tiny_folder, tmp_path_factory) -> Case:
    """Six prompts of different lengths with none, one or two images; rollouts by the sampler."""
    folder = make_folder(request.param, tiny_folder, tmp_path_factory.mktemp("shared") / "model")
    processor = tiny_processor(folder, (40, 64))
    one, unit = encode(picture(*[2 * FACTOR[request.param]] * 2)), FACTOR[request.param]
    wide = encode(picture(unit, 3 * unit))
    records = [
        question("<image>=?", one),
        question("a<image>, b<image>", one, wide),
        question("1+2=?"),
        question("<image>", wide),
        question("how many in <image>?", wide),
        question("<image>+1", one),
    ]
    prompts = collate(processor, [encode_prompt(processor, record) for record in records])
    model = weights.random_model(models.load_model_config(folder))
    sampling = Sampling(R, TEMPERATURE, tuple(range(60, 70)))
    prefix = jax.jit(QwenVL.prefill)(model, prompts)
    forbidden = jnp.asarray(processor.forbidden_mask)
    nothing = rollout.nothing_forced(len(records), G)
    rollouts = rollout.generate(model, prefix, nothing, forbidden, jax.random.key(1), sampling=sampling)
    verdicts = make_verdicts(np.asarray(rollouts.response_len))
    packing = make_packing(prompts, rollouts.response_len, padded_len=R, stream_len=STREAM)
    scores = score.score(model, prompts, rollouts, verdicts, packing, forbidden, temperature=TEMPERATURE, chunk=CHUNK)
    given = jax.device_get((rollouts, verdicts, scores))
    return Case(model, processor.forbidden_mask, prompts, *given, make_reflection())


def make_verdicts(response_len: np.ndarray) -> Verdicts:
    """Think tokens 1 and 2, the answer token 4; a short response has no answer."""
    place = np.arange(R)
    inside = place < response_len[..., None]
    rewards = np.where(CORRECT, 1.0, 0.1 * (response_len % 2)).astype(np.float32)
    think, answer = np.isin(place, (1, 2)) & inside, (place == 4) & inside
    return Verdicts(CORRECT, CORRECT, CORRECT, rewards, think, answer)


def make_reflection() -> Reflection:
    """Repairs of three groups: forced tokens first, old log-probs that clip some tokens."""
    rng = np.random.default_rng(2)
    size, place = len(CORRECT), np.arange(R)
    response_len = np.where(TRIED, rng.integers(5, R + 1, size), 0)
    inside = place < response_len[:, None]
    sampled = inside & (place >= FORCED_LEN[:, None])
    return Reflection(
        tried=TRIED,
        token_ids=(rng.integers(40, 120, (size, R)) * inside).astype(np.int32),
        response_len=response_len.astype(np.int32),
        sampled_mask=sampled,
        logprobs_old=np.where(sampled, rng.normal(-5, 0.5, (size, R)), 0).astype(np.float32),
        logprobs_sampler=np.zeros((size, R), np.float32),
        correct=REPAIRED,
        rewards=np.where(REPAIRED, 1.0, 0.1).astype(np.float32),
        think_mask=sampled & (place < 4),
        answer_mask=sampled & (place == 4),
    )


@pytest.fixture(scope="module")
def drifted(case) -> Case:
    """The case with old log-probs at some distance from the model's, so that ratios differ and some are clipped."""
    noise = np.random.default_rng(3).normal(0, 0.3, case.scores.logprobs.shape)
    logprobs = (case.scores.logprobs + noise).astype(np.float32)
    return case._replace(scores=dataclasses.replace(case.scores, logprobs=logprobs))


@pytest.fixture(scope="module")
def expected(drifted) -> tuple[float, dict[str, np.ndarray], list[oracle.Row]]:
    """Loss and gradient of the plain update, and its rows."""
    objective = make_objective()
    rows = oracle.care_rows(drifted.rollouts, drifted.verdicts, drifted.scores, drifted.reflection, objective)
    loss, grads = oracle.update_gradient(
        drifted.model, drifted.prompts, rows, drifted.forbidden_mask, temperature=TEMPERATURE, objective=objective
    )
    return loss, models.params_to_dict(grads), rows


def keep_gradient() -> optax.GradientTransformation:
    """An optimizer that moves nothing; its state is the last gradient."""

    def init(params):
        return jax.tree.map(jnp.zeros_like, params)

    def update(grads, state, params=None):
        return jax.tree.map(jnp.zeros_like, grads), grads

    return optax.GradientTransformation(init, update)


def shared_update(case: Case, *, stream_len: int, **computed) -> tuple[dict[str, float], dict[str, np.ndarray]]:
    """Metrics and gradient of the project's own update, from selection on; `computed`: fields of ModelConfig."""
    objective = make_objective()
    update = make_update(
        keep_gradient(),
        functools.partial(policy_loss, objective=objective),
        minibatches=1,
        temperature=TEMPERATURE,
        chunk=CHUNK,
    )

    @jax.jit
    def assemble(rollouts, verdicts, scores, reflection):
        chosen = subgroup.select_subgroup(
            correct=verdicts.correct,
            think_len=verdicts.think_mask.sum(-1, dtype=jnp.int32),
            answer_len=verdicts.answer_mask.sum(-1, dtype=jnp.int32),
            response_len=rollouts.response_len,
            logprobs_old=scores.logprobs,
            sampled_mask=rollouts.sampled_mask,
            think_states=scores.think_states,
            key=None,
            objective=objective,
        )
        return train_batch.assemble(
            case.prompts, rollouts, verdicts, scores, chosen, reflection, objective=objective
        ).batch

    config = dataclasses.replace(case.model.config, **computed)
    model = models.params_from_dict(config, models.params_to_dict(case.model))
    batch = assemble(*jax.device_put((case.rollouts, case.verdicts, case.scores, case.reflection)))
    packing = make_packing(
        case.prompts, np.where(batch.row_mask, batch.response_len, 0), padded_len=R, stream_len=stream_len
    )
    state = TrainState.start(model, keep_gradient())
    output = jax.jit(update)(state, batch, packing, jnp.asarray(case.forbidden_mask))
    assert {int(n) for n in batch.row_mask.sum(1)} == {0, 3, 4}, "the case has lost its kinds of group"
    return jax.device_get(output.metrics), jax.device_get(models.params_to_dict(output.state.opt_state))


VARIANTS = {
    "one stream": {"stream_len": 512},
    "several streams, recomputed, frozen vision": {"stream_len": 100, "remat": "full", "freeze": ("vision", "merger")},
    "groups cut in two, products kept": {"stream_len": STREAM, "remat": "dots"},
}


@pytest.mark.parametrize("variant", slow_but(["one stream"], VARIANTS))
def test_loss_and_gradients_are_those_of_single_rows(drifted, expected, variant):
    """Catches a branch that sees another, padding or a wrong position, and any gradient lost on its way.

    Gradients go to the prompt, the image and rows of each kind: rescued, repaired, with forced tokens, with fewer
    negatives than K, in a micro-batch.
    """
    loss, grads, rows = expected
    assert len(rows) == 3 + 4 + 4 + 0 + 4 + 4
    assert sum(reference_outcome(drifted, row) == Outcome.MIXED for row in rows) == 15
    metrics, ours = shared_update(drifted, **VARIANTS[variant])
    assert float(metrics["loss"]) == pytest.approx(loss, rel=TOLERANCE)
    assert 0 < float(metrics["clip_fraction"]) < 1
    for name, theirs in grads.items():
        if "frozen vision" in variant and name.startswith("visual."):
            assert name not in ours
            continue
        size = np.abs(theirs).max()
        assert size > 0, name
        assert np.abs(ours[name] - theirs).max() <= TOLERANCE * size, name


def reference_outcome(case: Case, row: oracle.Row) -> Outcome:
    """The outcome of the group that a row is from."""
    return Outcome(int(subgroup.classify(case.verdicts.correct)[row.prompt]))


def test_sampler_scorer_and_plain_rows_agree(case):
    """Catches a cache, chunk, mask, position or temperature that sampler, scorer and a plain pass see differently."""
    sampled = case.rollouts.sampled_mask
    assert sampled.sum() > 100
    assert not sampled.all()
    for b, g in np.ndindex(*sampled.shape[:2]):
        token_ids = case.rollouts.token_ids[b, g]
        plain = oracle.response_logprobs(
            case.model,
            oracle.join(case.prompts, b, token_ids),
            case.prompts.prompt_len[b],
            case.forbidden_mask,
            num_response=R,
            temperature=TEMPERATURE,
        )
        here = sampled[b, g]
        np.testing.assert_allclose(case.scores.logprobs[b, g][here], np.asarray(plain)[here], rtol=0, atol=TOLERANCE)
        np.testing.assert_allclose(case.rollouts.logprobs[b, g][here], np.asarray(plain)[here], rtol=0, atol=TOLERANCE)


def test_repairs_are_scored_as_they_were_sampled(case):
    """Catches forced tokens that the scorer places elsewhere than the sampler did."""
    size = len(CORRECT)
    forced = Forced(
        token_ids=jnp.asarray(np.random.default_rng(4).integers(40, 120, (size, 1, F)).astype(np.int32)),
        forced_len=jnp.asarray(FORCED_LEN[:, None].astype(np.int32)),
        active=jnp.asarray(TRIED[:, None]),
    )
    forbidden = jnp.asarray(case.forbidden_mask)
    prefix = jax.jit(QwenVL.prefill)(case.model, case.prompts)
    sampling = Sampling(R, TEMPERATURE, ())
    repaired = rollout.generate(case.model, prefix, forced, forbidden, jax.random.key(5), sampling=sampling)
    verdicts = zeros(Verdicts, B=size, G=1, R=R)
    packing = make_packing(case.prompts, repaired.response_len, padded_len=R, stream_len=100)
    scores = score.score(
        case.model, case.prompts, repaired, verdicts, packing, forbidden, temperature=TEMPERATURE, chunk=CHUNK
    )
    repaired, scores = jax.device_get((repaired, scores))
    assert repaired.sampled_mask.sum() == (R - FORCED_LEN)[TRIED].sum()
    gap = np.abs(scores.logprobs - repaired.logprobs) * repaired.sampled_mask
    assert gap.max() <= TOLERANCE
