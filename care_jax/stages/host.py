"""The host's part of a step: reading prompts, judging responses, preparing and placing repairs.

Each function takes NumPy copies of values, with this process's rows of the batch alone, and gives such values by name;
step.py says which.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import ml_collections
import numpy as np
from jaxtyping import Int32

from care_jax.inputs.batch import BatchSizes, Example, collate
from care_jax.inputs.processor import Processor
from care_jax.method import reflect
from care_jax.method.advantage import may_teach
from care_jax.method.objectives import Objective, is_rewritten
from care_jax.method.train_batch import Reflection
from care_jax.parallel.processes import ALL_ROWS, HostShare
from care_jax.rewards.judge import Judged, RewardConfig, Verifier, judge
from care_jax.rewards.spans import TokenBytes
from care_jax.stages.compiled import bucket_of
from care_jax.stages.packing import PromptLengths, StreamSizes, pack, padding_share
from care_jax.stages.table import Bucket
from care_jax.structs import Array, Record, Rollouts, Scores, Subgroup, Verdicts


@dataclasses.dataclass(frozen=True)
class Services:
    """The tools of the host stages."""

    config: ml_collections.ConfigDict
    objective: Objective
    processor: Processor
    verifier: Verifier
    token_bytes: TokenBytes
    next_examples: Callable[[], Sequence[Example]]  # this process's rows of the next batch of the data
    share: HostShare = ALL_ROWS

    def judge(self, records: Sequence[Record], rollouts: Rollouts) -> Judged:
        """Verdicts and rewards of responses (NumPy) to the questions of `records`."""
        verify = self.config.verify
        reward = RewardConfig(
            response_format=self.processor.response_format,
            correct_weight=verify.correct_weight,
            format_weight=verify.format_weight,
            overlong_buffer_len=self.objective.overlong_buffer_len,
            overlong_penalty=self.objective.overlong_penalty,
        )
        return judge(self.verifier, records, rollouts, self.token_bytes, reward, self.share)

    def batch(self, examples: Sequence[Example]) -> dict[str, Any]:
        """The values that a batch of encoded prompts gives; every process pads its rows to one size."""
        sizes = BatchSizes.join(self.share.exchange(BatchSizes.of(examples)))
        prompts = collate(self.processor, examples, sizes)
        return {
            "examples": examples,
            "records": [example.record for example in examples],
            "padding": sizes.metrics(bucket_of(prompts)),
            "prompts": prompts,
            "bucket": bucket_of(prompts),
            "lengths": PromptLengths.of(prompts),
        }


def next_batch(services: Services) -> dict[str, Any]:
    """The prompts of the step."""
    return services.batch(services.next_examples())


def verify(services: Services, records: Sequence[Record], rollouts: Rollouts) -> dict[str, Any]:
    """Right or wrong, and the reward, of every rollout."""
    judged = services.judge(records, rollouts)
    return {"judged": judged, "verdicts": judged.verdicts}


def pack_rollouts(
    services: Services, bucket: Bucket, lengths: PromptLengths, rollouts: Rollouts, verdicts: Verdicts
) -> dict[str, Any]:
    """Streams of the groups that may get a gradient."""
    teaches = may_teach(np.asarray(verdicts.correct), np.asarray(verdicts.rewards), services.objective)
    teaches_len = rollouts.response_len * teaches[:, None]
    sizes = _stream_sizes(services, bucket, teaches_len)
    packing = pack(sizes, lengths, teaches_len, services.share)
    padding = {"padding/score_tokens": padding_share(packing, sizes, services.share)}
    return {"rollout_packing": packing, "scored": teaches, "score_padding": padding}


def force(services: Services, judged: Judged, subgroup: Subgroup) -> dict[str, Any]:
    """The failed rationale and the cue that each repair starts from."""
    forced = reflect.force_prefixes(services.processor, services.objective, texts=judged.texts, subgroup=subgroup)
    return {"forced": forced}


def verify_repairs(
    services: Services, records: Sequence[Record], bucket: Bucket, lengths: PromptLengths, repaired: Rollouts
) -> dict[str, Any]:
    """The repairs as the update conditions on them, their verdicts and their streams."""
    responses = repaired
    if services.objective.reflect.train_on == "rewrite":
        responses = reflect.rewrite(
            services.processor, services.objective, token_bytes=services.token_bytes, repaired=repaired
        )
    judged = services.judge(records, responses)
    was_tried = np.any(repaired.sampled_mask, axis=2)
    tried_len = np.where(was_tried, responses.response_len, 0)
    packing = pack(_stream_sizes(services, bucket, tried_len), lengths, tried_len, services.share)
    return {
        "responses": responses,
        "repair_judged": judged,
        "repair_verdicts": judged.verdicts,
        "repair_packing": packing,
    }


def place_repairs(
    services: Services, repaired: Rollouts, responses: Rollouts, repair_judged: Judged, repair_scores: Scores
) -> dict[str, Any]:
    """One scored and verified repair a group, ready for its slot of the subgroup."""
    verdicts = repair_judged.verdicts
    sampler = repair_scores.logprobs if is_rewritten(services.objective) else responses.logprobs
    reflection = Reflection(
        tried=np.any(repaired.sampled_mask, axis=(1, 2)),
        token_ids=responses.token_ids[:, 0],
        response_len=responses.response_len[:, 0],
        sampled_mask=responses.sampled_mask[:, 0],
        logprobs_old=repair_scores.logprobs[:, 0],
        logprobs_sampler=sampler[:, 0],
        correct=verdicts.correct[:, 0],
        rewards=verdicts.rewards[:, 0],
        think_mask=verdicts.think_mask[:, 0],
        answer_mask=verdicts.answer_mask[:, 0],
    )
    return {"reflection": reflection}


def pack_batch(
    services: Services, bucket: Bucket, lengths: PromptLengths, taught_len: Int32[Array, "B S"]
) -> dict[str, Any]:
    """Streams of the rows that the update computes."""
    sizes = _stream_sizes(services, bucket, taught_len, parts=services.config.train.minibatches)
    packing = pack(sizes, lengths, taught_len, services.share)
    padding = {"padding/update_tokens": padding_share(packing, sizes, services.share)}
    return {"batch_packing": packing, "update_padding": padding}


def _stream_sizes(services: Services, bucket: Bucket, row_len: Int32[Array, "B J"], *, parts: int = 1) -> StreamSizes:
    return StreamSizes.of(services.config, bucket, row_len.shape[1], shards=services.share.num_shards, parts=parts)
