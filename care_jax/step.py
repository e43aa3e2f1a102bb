"""The table of a CARE step: its stages in order of time (docs/method.md section 1).

A stage takes values by name and gives values by name. train.py runs the table; stages/table.py says what else walks it.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import ml_collections

from care_jax.method import train_batch
from care_jax.method.loss import policy_loss
from care_jax.method.objectives import keeps_forced
from care_jax.method.train_batch import Reflection
from care_jax.parallel.sharding import ROWS, WHOLE, place
from care_jax.stages import choice, host, sampler, score
from care_jax.stages.table import Bucket, Compute, DeviceStage, HostStage, Setup, Stage, Table
from care_jax.stages.update import LossFn, make_update, update_shardings
from care_jax.structs import Forced, Prompts, Rollouts, Verdicts, abstract

# Folded into the key of a step, one number for each stage that draws. Redraws of dynamic sampling count on from
# ROLLOUT, so a further stage takes a number far above it; those that are here keep their draws.
SELECT, REFLECT, ROLLOUT = range(3)
TURN = 1 << 16


# Functions of device stages that only fit a function of a lower module to the table.


def _scoring(setup: Setup) -> dict[str, Any]:
    return {"temperature": setup.temperature, "chunk": setup.config.model.logits_chunk}


def _rollout(setup: Setup) -> Callable:
    sampling = dataclasses.replace(setup.sampling, keep_states=_scored_by_sampler(setup.config))
    return sampler.make_decode(setup, sampling)


def _reflect(setup: Setup) -> Callable:
    sampling = dataclasses.replace(setup.sampling, drop_forced=not keeps_forced(setup.objective))
    return sampler.make_decode(setup, sampling)


def update_function(loss: Callable[[Setup], LossFn]) -> Callable[[Setup], Callable]:
    """Makes the function of an update stage; `loss` gives its loss function."""

    def make(setup: Setup) -> Callable:
        assert setup.optimizer is not None
        train = setup.config.train
        return make_update(
            setup.optimizer,
            loss(setup),
            minibatches=train.minibatches,
            mesh=setup.mesh,
            **_scoring(setup),
        )

    return make


def updated_shardings(setup: Setup) -> Any:
    """Shardings of an update stage's results."""
    assert setup.state is not None
    return update_shardings(setup.mesh, setup.state)


def _scored_by_sampler(config: ml_collections.ConfigDict) -> bool:
    return config.score.old_from == "sampler"


def _with_reflection(config: ml_collections.ConfigDict) -> bool:
    return config.objective.reflect.enabled


def _with_turned_groups(config: ml_collections.ConfigDict) -> bool:
    return config.objective.reflect.enabled and config.objective.reflect.all_wrong


def _with_reference(config: ml_collections.ConfigDict) -> bool:
    return config.objective.kl_coef > 0


def num_updated(config: ml_collections.ConfigDict) -> int:
    """Rows of a prompt that an update sees, S."""
    objective = config.objective
    return objective.num_positives + objective.num_negatives if objective.anchored else config.rollout.num_rollouts


def abstract_reflection(setup: Setup) -> Reflection:
    """Shapes of one repair a group."""
    return abstract(Reflection, B=setup.num_prompts, R=setup.config.rollout.response_len)


def start_of_step(setup: Setup, bucket: Bucket) -> dict[str, Any]:
    """The values that are there before the first stage of STEP, as shapes with shardings."""
    nothing_forced = abstract(Forced, B=setup.num_prompts, J=setup.num_rollouts, W=0)
    values = {
        "unforced": place(setup.mesh, nothing_forced, ROWS),
        "forbidden_mask": place(setup.mesh, setup.forbidden_mask, WHOLE),
        "key": place(setup.mesh, jax.eval_shape(lambda: jax.random.key(0)), WHOLE),
        "params": setup.params,
        "state": setup.state,
        "reflection": place(setup.mesh, abstract_reflection(setup), ROWS),
    }
    return values | ({"reference": setup.reference} if setup.reference is not None else {})


SAMPLER = DeviceStage(
    "the sampler's parameters",
    timer="rollout",
    takes=("params",),
    gives=("sampler",),
    function=lambda setup: sampler.make_params(setup, setup.config.rollout.weights),
    on_shards=False,
    out_shardings=lambda setup: sampler.params_shardings(setup, setup.config.rollout.weights),
    of_every_bucket=True,
)
PREFILL = DeviceStage(
    "prefill",
    timer="rollout",
    takes=("params", "prompts"),
    gives=("prefix",),
    function=sampler.make_prefill,
    on_shards=False,
    out_shardings=sampler.prefix_shardings,
    is_drawing=True,
    compute=Compute("forward", lambda config: 0),
)

UPDATE = DeviceStage(
    "update",
    timer="update",
    takes=("state", "batch", "batch_packing", "forbidden_mask"),
    gives=("state", "update_metrics"),
    function=update_function(
        lambda setup: functools.partial(policy_loss, objective=setup.objective, correction=setup.correction)
    ),
    on_shards=False,
    out_shardings=updated_shardings,
    donates=("state",),
    unpack=lambda output, values: {"state": output.state, "update_metrics": output.metrics},
    compute=Compute("train", num_updated),
)

# What the log of a step reads when its last stage has run.
LOGGED = (
    "examples",
    "records",
    "padding",
    "scored",
    "score_padding",
    "update_padding",
    "rollouts",
    "judged",
    "scores",
    "subgroup",
    "forced",
    "repaired",
    "reflection",
    "batch",
    "advantages",
    "update_metrics",
)

_STAGES: tuple[Stage, ...] = (
    SAMPLER,
    HostStage(
        "data",
        timer="data",
        takes=(),
        gives=("examples", "records", "padding", "prompts", "bucket", "lengths"),
        function=host.next_batch,
        puts=("prompts",),
        shapes=lambda setup, bucket: (abstract(Prompts, **setup.prompt_dims(bucket)),),
        is_drawing=True,
    ),
    PREFILL,
    DeviceStage(
        "rollout",
        timer="rollout",
        takes=("sampler", "prefix", "unforced", "forbidden_mask", "key"),
        gives=("rollouts",),
        function=_rollout,
        on_shards=False,
        random=ROLLOUT,
        is_drawing=True,
        compute=Compute("decode", lambda config: config.rollout.num_rollouts),
    ),
    HostStage(
        "verify",
        timer="verify",
        takes=("records", "rollouts"),
        gives=("judged", "verdicts"),
        function=host.verify,
        puts=("verdicts",),
        shapes=lambda setup, bucket: (abstract(Verdicts, **setup.response_dims(setup.num_rollouts)),),
        is_drawing=True,
    ),
    HostStage(
        "pack rollouts",
        timer="score",
        takes=("bucket", "lengths", "rollouts", "verdicts"),
        gives=("rollout_packing", "scored", "score_padding"),
        function=host.pack_rollouts,
        puts=("rollout_packing",),
        shapes=lambda setup, bucket: (setup.stream_sizes(bucket, setup.num_rollouts).abstract(),),
        is_on=lambda config: not _scored_by_sampler(config),
    ),
    DeviceStage(
        "score",
        timer="score",
        takes=("params", "prompts", "rollouts", "verdicts", "rollout_packing", "forbidden_mask"),
        gives=("scores",),
        function=lambda setup: functools.partial(score.score, **_scoring(setup)),
        is_on=lambda config: config.score.old_from == "pass",
        compute=Compute("forward", lambda config: config.rollout.num_rollouts),
    ),
    DeviceStage(
        "score",  # from what the sampler kept: no pass
        timer="score",
        takes=("rollouts", "verdicts"),
        gives=("scores",),
        function=lambda setup: score.scores_of_sampler,
        is_on=_scored_by_sampler,
    ),
    DeviceStage(
        "select",
        timer="select",
        takes=("rollouts", "verdicts", "scores", "key"),
        gives=("subgroup",),
        function=choice.make_select,
        on_shards=False,
        random=SELECT,
    ),
    HostStage(
        "force",
        timer="reflect",
        takes=("judged", "subgroup"),
        gives=("forced",),
        function=host.force,
        puts=("forced",),
        shapes=lambda setup, bucket: (abstract(Forced, B=setup.num_prompts, J=1, W=setup.num_forced),),
        is_on=_with_reflection,
    ),
    DeviceStage(
        "reflect",
        timer="reflect",
        takes=("sampler", "prefix", "forced", "forbidden_mask", "key"),
        gives=("repaired",),
        function=_reflect,
        on_shards=False,
        random=REFLECT,
        is_on=_with_reflection,
        compute=Compute("decode", lambda config: 1, forced="forced"),
    ),
    HostStage(
        "verify repairs",
        timer="reflect",
        takes=("records", "bucket", "lengths", "repaired"),
        gives=("responses", "repair_judged", "repair_verdicts", "repair_packing"),
        function=host.verify_repairs,
        puts=("responses", "repair_verdicts", "repair_packing"),
        shapes=lambda setup, bucket: (
            abstract(Rollouts, **setup.response_dims(1)),
            abstract(Verdicts, **setup.response_dims(1)),
            setup.stream_sizes(bucket, 1).abstract(),
        ),
        is_on=_with_reflection,
    ),
    DeviceStage(
        "score of reflections",
        timer="reflect",
        takes=("params", "prompts", "responses", "repair_verdicts", "repair_packing", "forbidden_mask"),
        gives=("repair_scores",),
        function=lambda setup: functools.partial(score.score, **_scoring(setup)),
        is_on=_with_reflection,
        compute=Compute("forward", lambda config: 1),
    ),
    HostStage(
        "place repairs",
        timer="reflect",
        takes=("repaired", "responses", "repair_judged", "repair_scores"),
        gives=("reflection",),
        function=host.place_repairs,
        puts=("reflection",),
        shapes=lambda setup, bucket: (abstract_reflection(setup),),
        is_on=_with_reflection,
    ),
    DeviceStage(
        "turn",
        timer="select",
        takes=("verdicts", "scores", "subgroup", "reflection", "repair_scores", "key"),
        gives=("subgroup",),
        function=choice.make_turn,
        on_shards=False,
        random=TURN,
        is_on=_with_turned_groups,
    ),
    DeviceStage(
        "assemble",
        timer="select",
        takes=("prompts", "rollouts", "verdicts", "scores", "subgroup", "reflection"),
        gives=("batch", "advantages", "taught_len"),
        function=lambda setup: functools.partial(
            train_batch.assemble, objective=setup.objective, keep_sampler=setup.correction is not None
        ),
        on_shards=False,
        unpack=lambda assembled, values: {
            "batch": assembled.batch,
            "advantages": assembled.advantages,
            "taught_len": assembled.taught_len,
        },
    ),
    HostStage(
        "pack batch",
        timer="select",
        takes=("bucket", "lengths", "taught_len"),
        gives=("batch_packing", "update_padding"),
        function=host.pack_batch,
        puts=("batch_packing",),
        shapes=lambda setup, bucket: (
            setup.stream_sizes(bucket, num_updated(setup.config), parts=setup.config.train.minibatches).abstract(),
        ),
    ),
    DeviceStage(
        "reference",
        timer="score",
        takes=("reference", "params", "batch", "batch_packing", "forbidden_mask"),
        gives=("batch",),
        function=lambda setup: functools.partial(score.reference_logprobs, **_scoring(setup)),
        unpack=lambda logprobs, values: {"batch": values["batch"].replace(logprobs_ref=logprobs)},
        is_on=_with_reference,
        compute=Compute("forward", num_updated),
    ),
    UPDATE,
)
STEP = Table(_STAGES, start_of_step, LOGGED)
