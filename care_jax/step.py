"""The table of a CARE step: its stages in order of time (docs/method.md section 1), and two smaller tables.

    stage                     on       takes                                            gives
    the sampler's parameters  devices  params                                           sampler
    data                      host                                                      examples, prompts
    prefill                   devices  params, prompts                                  prefix
    rollout                   devices  sampler, prefix, unforced                        rollouts
    verify                    host     examples, rollouts                               judged, verdicts
    score                     devices  params, prompts, rollouts, verdicts              scores
    select                    devices  rollouts, verdicts, scores                       subgroup
    force                     host     judged, subgroup                                 forced               } with
    reflect                   devices  sampler, prefix, forced                          repaired             } reflection
    verify repairs            host     examples, repaired                               repair_judged, ...   }
    score of reflections      devices  params, prompts, responses, repair_verdicts      repair_scores        }
    place repairs             host     repaired, responses, repair_judged, repair_...   reflection           }
    assemble                  devices  prompts, rollouts, verdicts, scores, subgroup... batch, advantages
    reference                 devices  reference, batch                                 batch                  with a KL
    update                    devices  state, batch                                     state, update_metrics

train.py runs it; stages/table.py says what else walks it. EVALUATION asks held-out questions with the same stages, and
COLD_START is the supervised update.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np

from care_jax.inputs.processor import Example, Processor
from care_jax.method import reflect, train_batch
from care_jax.method.loss import policy_loss, supervised_loss
from care_jax.method.objectives import Objective
from care_jax.method.subgroup import select_subgroup
from care_jax.method.train_batch import Reflection
from care_jax.models import QwenVL
from care_jax.parallel.sharding import ROWS, WHOLE, place
from care_jax.rewards.judge import Judged, Verifier, judge
from care_jax.rewards.spans import TokenBytes
from care_jax.stages import rollout, score
from care_jax.stages.program import Bucket
from care_jax.stages.table import Compute, DeviceStage, HostStage, Setup, Stage, Table
from care_jax.stages.update import LossFn, make_update, update_shardings
from care_jax.structs import Array, Forced, Prompts, Rollouts, Scores, Subgroup, TrainBatch, Verdicts, abstract

# Folded into the key of a step, one number a stage that draws. Dynamic sampling counts on from ROLLOUT.
SELECT, REFLECT, ROLLOUT = range(3)


@dataclasses.dataclass(frozen=True)
class Services:
    """What the host stages work with."""

    config: ml_collections.ConfigDict
    objective: Objective
    processor: Processor
    verifier: Verifier
    token_bytes: TokenBytes
    next_examples: Callable[[], Sequence[Example]]  # the next batch of the data

    def judge(self, examples: Sequence[Example], rollouts: Rollouts) -> Judged:
        """Verdicts and rewards of responses (NumPy) to the questions of `examples`."""
        verify = self.config.verify
        return judge(
            self.verifier,
            [example.record for example in examples],
            np.asarray(rollouts.token_ids),
            np.asarray(rollouts.response_len),
            self.token_bytes,
            response_format=self.processor.response_format,
            correct_weight=verify.correct_weight,
            format_weight=verify.format_weight,
            sampled_len=np.asarray(rollouts.sampled_mask).sum(-1),
            overlong_buffer_len=self.objective.overlong_buffer_len,
            overlong_penalty=self.objective.overlong_penalty,
        )


# Host stages.


def next_batch(services: Services) -> dict[str, Any]:
    """The prompts of the step."""
    examples = services.next_examples()
    return {"examples": examples, "prompts": services.processor.collate(examples)}


def verify(services: Services, examples: Sequence[Example], rollouts: Rollouts) -> dict[str, Any]:
    """Right or wrong, and the reward, of every rollout."""
    judged = services.judge(examples, rollouts)
    return {"judged": judged, "verdicts": judged.verdicts}


def force(services: Services, judged: Judged, subgroup: Subgroup) -> dict[str, Any]:
    """The failed rationale and the cue that each repair starts from."""
    forced = reflect.force_prefixes(services.processor, services.objective, texts=judged.texts, subgroup=subgroup)
    return {"forced": forced}


def verify_repairs(services: Services, examples: Sequence[Example], repaired: Rollouts) -> dict[str, Any]:
    """The repairs as the update conditions on them, and their verdicts."""
    responses = repaired
    if services.objective.reflect.train_on == "rewrite":
        responses = reflect.rewrite(
            services.processor, services.objective, token_bytes=services.token_bytes, repaired=repaired
        )
    judged = services.judge(examples, responses)
    return {"responses": responses, "repair_judged": judged, "repair_verdicts": judged.verdicts}


def place_repairs(
    services: Services, repaired: Rollouts, responses: Rollouts, judged: Judged, scores: Scores
) -> dict[str, Any]:
    """One scored and verified repair a group, ready for its slot of the subgroup."""
    verdicts = judged.verdicts
    reflection = Reflection(
        tried=repaired.sampled_mask.any(axis=(1, 2)),
        token_ids=responses.token_ids[:, 0],
        response_len=responses.response_len[:, 0],
        sampled_mask=responses.sampled_mask[:, 0],
        logprobs_old=scores.logprobs[:, 0],
        correct=verdicts.correct[:, 0],
        rewards=verdicts.rewards[:, 0],
        think_mask=verdicts.think_mask[:, 0],
        answer_mask=verdicts.answer_mask[:, 0],
    )
    return {"reflection": reflection}


# Functions of device stages that only fit a function of a lower module to the table.


def _scoring(setup: Setup) -> dict[str, Any]:
    return {"temperature": setup.temperature, "chunk": setup.config.model.logits_chunk}


def _rollout(setup: Setup) -> Callable:
    sampling = dataclasses.replace(setup.sampling, keep_states=_scored_by_sampler(setup.config))
    return functools.partial(rollout.generate, sampling=sampling)


def _evaluation_decode(setup: Setup) -> Callable:
    return functools.partial(rollout.generate, sampling=setup.sampling)


def _reflect(setup: Setup) -> Callable:
    sampling = dataclasses.replace(setup.sampling, drop_forced=not reflect.keeps_forced(setup.objective))
    return functools.partial(rollout.generate, sampling=sampling)


def _select(setup: Setup) -> Callable:
    def select(rollouts: Rollouts, verdicts: Verdicts, scores: Scores, key: Array) -> Subgroup:
        return select_subgroup(
            correct=verdicts.correct,
            think_len=verdicts.think_mask.sum(-1, dtype=jnp.int32),
            answer_len=verdicts.answer_mask.sum(-1, dtype=jnp.int32),
            response_len=rollouts.response_len,
            logprobs_old=scores.logprobs,
            sampled_mask=rollouts.sampled_mask,
            think_states=scores.think_states,
            key=key,
            objective=setup.objective,
        )

    return select


def _update(loss: Callable[[Setup], LossFn]) -> Callable[[Setup], Callable]:
    def make(setup: Setup) -> Callable:
        assert setup.optimizer is not None
        train = setup.config.train
        return make_update(
            setup.optimizer,
            loss(setup),
            minibatches=train.minibatches,
            microbatches=train.microbatches,
            mesh=setup.mesh,
            **_scoring(setup),
        )

    return make


def _update_shardings(setup: Setup) -> Any:
    assert setup.state is not None
    return update_shardings(setup.mesh, setup.state)


# What the switches of a config turn on.


def _scored_by_pass(config: ml_collections.ConfigDict) -> bool:
    return config.score.old_from == "pass"


def _scored_by_sampler(config: ml_collections.ConfigDict) -> bool:
    return config.score.old_from == "sampler"


def _with_reflection(config: ml_collections.ConfigDict) -> bool:
    return config.objective.reflect.enabled


def _with_reference(config: ml_collections.ConfigDict) -> bool:
    return config.objective.kl_coef > 0


# How many branches of a prompt a stage computes.


def _none(config: ml_collections.ConfigDict) -> int:
    return 0


def _one(config: ml_collections.ConfigDict) -> int:
    return 1


def _rollouts(config: ml_collections.ConfigDict) -> int:
    return config.rollout.num_rollouts


def _updated(config: ml_collections.ConfigDict) -> int:
    objective = config.objective
    return objective.num_negatives + 1 if objective.anchored else config.rollout.num_rollouts


def prompt_dims(setup: Setup, bucket: Bucket) -> dict[str, int]:
    """The dimensions of `Prompts` in a bucket, by the letters of structs.py."""
    spec = setup.image_spec
    return {"B": setup.prompts, "P": bucket[0], "I": bucket[1], "F": spec.patch_values, "X": spec.grid_cells}


def response_dims(setup: Setup, num_responses: int) -> dict[str, int]:
    """The dimensions of `Rollouts` and `Verdicts` with so many responses a prompt."""
    return {"B": setup.prompts, "G": num_responses, "R": setup.config.rollout.response_len}


def abstract_reflection(setup: Setup) -> Reflection:
    """Shapes of one repair a group."""
    return abstract(Reflection, B=setup.prompts, R=setup.config.rollout.response_len)


def start_of_step(setup: Setup, bucket: Bucket) -> dict[str, Any]:
    """The values that are there before the first stage of STEP, as shapes with shardings."""
    nothing_forced = abstract(Forced, B=setup.prompts, J=setup.num_rollouts, W=0)
    values = {
        "unforced": place(setup.mesh, nothing_forced, ROWS),
        "forbidden_mask": place(setup.mesh, setup.forbidden_mask, WHOLE),
        "key": place(setup.mesh, jax.eval_shape(lambda: jax.random.key(0)), WHOLE),
        "params": setup.params,
        "state": setup.state,
        "reflection": place(setup.mesh, abstract_reflection(setup), ROWS),
    }
    return values | ({"reference": setup.params} if _with_reference(setup.config) else {})


SAMPLER = DeviceStage(
    "the sampler's parameters",
    timer="rollout",
    takes=("params",),
    gives=("sampler",),
    function=lambda setup: QwenVL.for_sampling,
    of_every_bucket=True,
)
PREFILL = DeviceStage(
    "prefill",
    timer="rollout",
    takes=("params", "prompts"),
    gives=("prefix",),
    function=lambda setup: QwenVL.prefill,
    is_drawing=True,
    compute=Compute("forward", _none),
)

_STEP: tuple[Stage, ...] = (
    SAMPLER,
    HostStage(
        "data",
        timer="data",
        takes=(),
        gives=("examples", "prompts"),
        function=next_batch,
        shapes=lambda setup, bucket: {"prompts": abstract(Prompts, **prompt_dims(setup, bucket))},
        is_drawing=True,
    ),
    PREFILL,
    DeviceStage(
        "rollout",
        timer="rollout",
        takes=("sampler", "prefix", "unforced", "forbidden_mask", "key"),
        gives=("rollouts",),
        function=_rollout,
        random=ROLLOUT,
        is_drawing=True,
        compute=Compute("decode", _rollouts),
    ),
    HostStage(
        "verify",
        timer="verify",
        takes=("examples", "rollouts"),
        gives=("judged", "verdicts"),
        function=verify,
        shapes=lambda setup, bucket: {"verdicts": abstract(Verdicts, **response_dims(setup, setup.num_rollouts))},
        is_drawing=True,
    ),
    DeviceStage(
        "score",
        timer="score",
        takes=("params", "prompts", "rollouts", "verdicts", "forbidden_mask"),
        gives=("scores",),
        function=lambda setup: functools.partial(score.score, **_scoring(setup)),
        is_on=_scored_by_pass,
        compute=Compute("forward", _rollouts),
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
        function=_select,
        on_shards=False,
        random=SELECT,
    ),
    HostStage(
        "force",
        timer="reflect",
        takes=("judged", "subgroup"),
        gives=("forced",),
        function=force,
        shapes=lambda setup, bucket: {"forced": abstract(Forced, B=setup.prompts, J=1, W=setup.num_forced)},
        is_on=_with_reflection,
    ),
    DeviceStage(
        "reflect",
        timer="reflect",
        takes=("sampler", "prefix", "forced", "forbidden_mask", "key"),
        gives=("repaired",),
        function=_reflect,
        random=REFLECT,
        is_on=_with_reflection,
        compute=Compute("decode", _one),
    ),
    HostStage(
        "verify repairs",
        timer="reflect",
        takes=("examples", "repaired"),
        gives=("responses", "repair_judged", "repair_verdicts"),
        function=verify_repairs,
        shapes=lambda setup, bucket: {
            "responses": abstract(Rollouts, **response_dims(setup, 1)),
            "repair_verdicts": abstract(Verdicts, **response_dims(setup, 1)),
        },
        is_on=_with_reflection,
    ),
    DeviceStage(
        "score of reflections",
        timer="reflect",
        takes=("params", "prompts", "responses", "repair_verdicts", "forbidden_mask"),
        gives=("repair_scores",),
        function=lambda setup: functools.partial(score.score, **_scoring(setup)),
        is_on=_with_reflection,
        compute=Compute("forward", _one),
    ),
    HostStage(
        "place repairs",
        timer="reflect",
        takes=("repaired", "responses", "repair_judged", "repair_scores"),
        gives=("reflection",),
        function=place_repairs,
        shapes=lambda setup, bucket: {"reflection": abstract_reflection(setup)},
        is_on=_with_reflection,
    ),
    DeviceStage(
        "assemble",
        timer="select",
        takes=("prompts", "rollouts", "verdicts", "scores", "subgroup", "reflection"),
        gives=("batch", "advantages"),
        function=lambda setup: functools.partial(train_batch.assemble, objective=setup.objective),
        on_shards=False,
        unpack=lambda assembled, values: {"batch": assembled.batch, "advantages": assembled.advantages},
    ),
    DeviceStage(
        "reference",
        timer="score",
        takes=("reference", "batch", "forbidden_mask"),
        gives=("batch",),
        function=lambda setup: functools.partial(score.batch_logprobs, **_scoring(setup)),
        unpack=lambda logprobs, values: {"batch": values["batch"].replace(logprobs_ref=logprobs)},
        is_on=_with_reference,
        compute=Compute("forward", _updated),
    ),
    DeviceStage(
        "update",
        timer="update",
        takes=("state", "batch", "forbidden_mask"),
        gives=("state", "update_metrics"),
        function=_update(lambda setup: functools.partial(policy_loss, objective=setup.objective)),
        on_shards=False,
        out_shardings=_update_shardings,
        donates=("state",),
        unpack=lambda output, values: {"state": output.state, "update_metrics": output.metrics},
        compute=Compute("train", _updated),
    ),
)
STEP = Table(
    _STEP,
    start_of_step,
    logged=(
        "examples",
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
    ),
)

# Held-out questions: the same sampler and prefill, then one decoding loop.
EVALUATION_PREFILL = dataclasses.replace(PREFILL, name="evaluation prefill", timer="evaluate")
EVALUATION_DECODE = DeviceStage(
    "evaluation decode",
    timer="evaluate",
    takes=("sampler", "prefix", "unforced", "forbidden_mask", "key"),
    gives=("rollouts",),
    function=_evaluation_decode,
)


def start_of_evaluation(setup: Setup, bucket: Bucket) -> dict[str, Any]:
    """The values that are there before EVALUATION, as shapes with shardings."""
    prompts = place(setup.mesh, abstract(Prompts, **prompt_dims(setup, bucket)), ROWS)
    return start_of_step(setup, bucket) | {"prompts": prompts}


EVALUATION = Table((SAMPLER, EVALUATION_PREFILL, EVALUATION_DECODE), start_of_evaluation, logged=("rollouts",))

# The supervised cold start: one update of one branch a prompt.
COLD_START_UPDATE = DeviceStage(
    "cold start update",
    timer="update",
    takes=("state", "batch", "forbidden_mask"),
    gives=("state", "update_metrics"),
    function=_update(lambda setup: supervised_loss),
    on_shards=False,
    out_shardings=_update_shardings,
    donates=("state",),
    unpack=lambda output, values: {"state": output.state, "update_metrics": output.metrics},
    compute=Compute("train", _one),
)


def start_of_cold_start(setup: Setup, bucket: Bucket) -> dict[str, Any]:
    """The values that are there before COLD_START, as shapes with shardings."""
    dims = prompt_dims(setup, bucket) | {"S": 1, "R": setup.config.rollout.response_len}
    batch = place(setup.mesh, abstract(TrainBatch, **dims), ROWS)
    return start_of_step(setup, bucket) | {"batch": batch}


COLD_START = Table((COLD_START_UPDATE,), start_of_cold_start, logged=("update_metrics",))
