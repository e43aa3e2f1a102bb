"""The checks of shapes and types are on: a wrong call of each checked room raises, and what is no array passes."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jaxtyping import TypeCheckError

from care_jax.method.loss import count_denominators
from care_jax.method.subgroup import classify
from care_jax.models.cache import PREFIX_SPECS, KeyValues, Prefix, empty_branch_cache
from care_jax.parallel.collectives import pick
from care_jax.stages.score import pool_states, scores_of_sampler
from care_jax.structs import Forced, Rollouts, TrainBatch, Verdicts, abstract, zeros

BATCH = jax.device_put(zeros(TrainBatch, B=2, S=3, R=4, P=5, I=0, F=0, X=0))


def prefix(prompt_len: jax.Array) -> Prefix:
    """A prefix of two prompts of three tokens, one layer and one head."""
    keys = jnp.zeros((1, 2, 1, 3, 4))
    return Prefix(({"full_attention": KeyValues(keys, keys)},), prompt_len, jnp.zeros(2, jnp.int32), jnp.zeros((2, 8)))


@pytest.mark.parametrize(
    "call",
    [
        lambda: abstract(Forced, B="2", J=1, W=0),
        lambda: classify(np.zeros((2, 3, 1), bool)),
        lambda: empty_branch_cache(prefix(jnp.zeros(3, jnp.int32)), 1, 4),
        lambda: pick(jnp.zeros((2, 3)), jnp.zeros(3, jnp.int32)),
        lambda: pool_states(jnp.zeros((1, 2, 3, 4)), jnp.zeros((1, 2, 4), bool)),
    ],
    ids=["structs", "method", "models", "parallel", "stages"],
)
def test_every_checked_room_refuses_a_wrong_argument(call: Callable):
    """Catches a room that was imported before the hook, or is not in its list."""
    with pytest.raises(TypeCheckError):
        call()


@pytest.mark.parametrize(
    ("batch", "field"),
    [
        (BATCH.replace(row_mask=np.zeros((2, 4), bool)), "TrainBatch.row_mask"),
        (BATCH.replace(sampled_mask=np.zeros((2, 3, 4))), "TrainBatch.sampled_mask"),
        (BATCH.replace(advantages=0.0), "TrainBatch.advantages"),
        (BATCH.replace(prompts=BATCH.prompts.replace(prompt_len=np.zeros(3, np.int32))), "Prompts.prompt_len"),
    ],
    ids=["letter", "dtype", "number", "nested"],
)
def test_fields_of_structs_are_checked(batch: TrainBatch, field: str):
    """Catches a struct whose fields disagree, and an error that does not name the field."""
    count_denominators(BATCH)
    with pytest.raises(TypeCheckError) as caught:
        count_denominators(batch)
    cause = caught.value
    while cause.__cause__ is not None:
        cause = cause.__cause__
    assert str(cause).startswith(f"{field} is ")


def test_a_letter_is_one_size_in_all_arguments():
    """Catches checks of each struct for itself: rollouts of two prompts and verdicts of three."""
    rollouts = zeros(Rollouts, "entropy", B=2, G=3, R=4).replace(states=np.zeros((2, 3, 4, 8), np.float32))
    scores_of_sampler(rollouts, zeros(Verdicts, B=2, G=3, R=4))
    with pytest.raises(TypeCheckError):
        scores_of_sampler(rollouts, zeros(Verdicts, B=3, G=3, R=4))


def test_structs_of_other_leaves_can_be_made_and_mapped():
    """Catches a check where structs are made, or of a part left out: trees of shapes, specs or rows would be errors."""
    count_denominators(BATCH.replace(prompts=None))
    assert jax.tree.map(np.shape, BATCH).row_mask == (2, 3)
    assert jax.tree.map(lambda x: x[0], BATCH).row_mask.shape == (3,)
    assert jax.tree.leaves(PREFIX_SPECS)
