"""The stages that choose the rows of an update: method/subgroup.py and method/turn.py on the values of a step."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from care_jax.method.subgroup import count_alike, select_subgroup
from care_jax.method.train_batch import Reflection
from care_jax.method.turn import turn
from care_jax.stages.table import Setup
from care_jax.structs import Rollouts, Scores, Subgroup, Verdicts


def make_select(setup: Setup) -> Callable:
    """Makes (rollouts, verdicts, scores, key) -> Subgroup."""
    objective = setup.objective
    by_answer = objective.reflect.enabled and objective.reflect.failure == "commonest"

    def select(rollouts: Rollouts, verdicts: Verdicts, scores: Scores, key: jax.Array) -> Subgroup:
        return select_subgroup(
            correct=verdicts.correct,
            think_len=verdicts.think_mask.sum(-1, dtype=jnp.int32),
            answer_len=verdicts.answer_mask.sum(-1, dtype=jnp.int32),
            response_len=rollouts.response_len,
            logprobs_old=scores.logprobs,
            sampled_mask=rollouts.sampled_mask,
            think_states=scores.think_states,
            key=key,
            objective=objective,
            num_alike=count_alike(rollouts.token_ids, verdicts.answer_mask, verdicts.correct) if by_answer else None,
        )

    return select


def make_turn(setup: Setup) -> Callable:
    """Makes (verdicts, scores, subgroup, reflection, repair_scores, key) -> Subgroup."""

    def turn_groups(
        verdicts: Verdicts,
        scores: Scores,
        subgroup: Subgroup,
        reflection: Reflection,
        repair_scores: Any,  # Scores of one response a group
        key: jax.Array,
    ) -> Subgroup:
        return turn(
            subgroup=subgroup,
            correct=verdicts.correct,
            think_states=scores.think_states,
            reflection=reflection,
            repair_states=repair_scores.think_states,
            key=key,
            objective=setup.objective,
        )

    return turn_groups
