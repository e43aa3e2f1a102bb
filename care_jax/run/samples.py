"""Examples for the report: sample groups of a step, and held-out answers that changed since the first evaluation.

Takes host arrays and gives plain values, which metrics_writer.py writes.
"""

from __future__ import annotations

import base64
import contextlib
import io
from collections.abc import Mapping, Sequence

import numpy as np

from care_jax.data.train_stream import RecordSource
from care_jax.errors import InputError
from care_jax.evals.judged_items import JudgedItem
from care_jax.inputs.images import decode_image
from care_jax.method.train_batch import slot_of_repair
from care_jax.parallel.processes import HostShare
from care_jax.rewards.spans import TokenBytes
from care_jax.run.folder import HeldOutAnswer, ReflectionSample, RolloutSample, Sample
from care_jax.run.step_summary import Step
from care_jax.structs import Array, Outcome, Record

MAX_CHANGED = 12  # held-out answers of an evaluation that became right, and as many that became wrong
_LARGEST_IMAGE = 64 << 10  # bytes that are shown as they are
_THUMBNAIL_SIDE = 448  # pixels


def groups_to_show(step: Step, share: HostShare) -> tuple[int | None, int | None]:
    """The groups of a step to show: the most interesting one, and an all-wrong one beside it.

    The most interesting group has a successful reflection; if none has, it is mixed; if none is, it is the first.

    Returns:
        Rows of this process; None for a group that another process has, and for an all-wrong one if there is none.
    """
    outcome = step.subgroup.outcome
    repaired = step.reflection.tried & step.reflection.correct
    first = _best(2 * repaired + (outcome == Outcome.MIXED), share)
    is_left = np.arange(len(outcome)) != first
    return first, _best(is_left & (outcome == Outcome.ALL_WRONG), share, least=1)


def _best(interest: Array, share: HostShare, *, least: int = 0) -> int | None:
    """The first of this process's rows with the highest interest; None if another process has it, or no row `least`."""
    b = int(np.argmax(interest))
    claim = [int(interest[b]), -share.rows_of(len(interest))[b]]
    best = max(share.exchange(claim))
    return b if claim == best and best[0] >= least else None


def sample(step: Step, b: int, *, anchored: bool, cue: str, token_bytes: TokenBytes) -> Sample:
    """Group b in full: question, images, rollouts with their roles, the reflection."""
    record, subgroup = step.records[b], step.subgroup
    advantage = dict.fromkeys(range(len(step.judged.texts[b])), 0.0)
    role = dict.fromkeys(advantage, "unselected")
    for slot in np.flatnonzero(subgroup.valid[b]):
        row = int(subgroup.index[b, slot])
        advantage[row] = float(step.advantages.final[b, slot])
        if anchored:
            role[row] = "anchor" if slot == 0 else "negative" if slot <= subgroup.num_negatives[b] else "positive"
        else:
            role[row] = "updated"
    reflection: ReflectionSample | None = None
    if step.reflected and step.reflection.tried[b]:
        start = int(slot_of_repair(subgroup.outcome)[b])
        row = int(subgroup.index[b, start])
        if subgroup.outcome[b] == Outcome.MIXED or step.reflection.correct[b]:  # the repair is in the slot
            role[row], advantage[row] = "reflected", float(step.advantages.final[b, start])
        forced, sampled = step.reflected
        given = token_bytes.text(forced.token_ids[b, 0, : forced.forced_len[b, 0]])
        reflection = {
            "rollout": row,
            "before": given.removesuffix(cue),
            "cue": cue if given else "",
            "after": token_bytes.text(sampled.token_ids[b, 0][sampled.sampled_mask[b, 0]]),
            "correct": bool(step.reflection.correct[b]),
        }
    verdicts = step.judged.verdicts
    rollouts: list[RolloutSample] = [
        {
            "text": step.judged.texts[b][g],
            "extracted": step.judged.extracted[b][g],
            "correct": bool(verdicts.correct[b, g]),
            "format_ok": bool(verdicts.format_ok[b, g]),
            "parsed": bool(verdicts.parsed[b, g]),
            "role": role[g],
            "advantage": advantage[g],
            "response_len": int(step.rollouts.response_len[b, g]),
        }
        for g in advantage
    ]
    return {
        "id": record.id,
        "source": record.source,
        "images": _images(record),
        "prompt": record.prompt,
        "answer": record.answer,
        "outcome": Outcome(int(subgroup.outcome[b])).name,
        "rollouts": rollouts,
        "reflection": reflection,
    }


def held_out_answers(
    asked: Mapping[int, JudgedItem], first: Mapping[tuple[int, str], bool], source: RecordSource
) -> tuple[list[HeldOutAnswer], dict[str, float]]:
    """The answers of an evaluation that held_out.jsonl keeps: the first time all, then some that changed.

    Args:
        asked: the judged questions by index in `source`. Of several responses the first counts; a question without
            one is passed over.
        first: the verdicts of the run's first evaluation by index and id; empty at that evaluation.
        source: the held-out records.

    Returns:
        The answers. At the first evaluation they have no images. Later they are those whose verdict differs from the
        first one's, with images: at most MAX_CHANGED of those that became right, evenly spread, and as many of those
        that became wrong. Their whole numbers are `eval/newly_right` and `eval/newly_wrong`.
    """
    verdicts = {index: item["correct"][0] for index, item in sorted(asked.items()) if item["responses"]}
    if not first:
        return [_held_out_answer(index, asked[index], []) for index in verdicts], {}
    changed = [
        index for index, verdict in verdicts.items() if first.get((index, asked[index]["id"]), verdict) != verdict
    ]
    right = [index for index in changed if verdicts[index]]
    wrong = [index for index in changed if not verdicts[index]]
    shown = sorted((*_spread(right), *_spread(wrong)))
    answers = [_held_out_answer(index, asked[index], _images_at(source, index)) for index in shown]
    return answers, {"eval/newly_right": float(len(right)), "eval/newly_wrong": float(len(wrong))}


def _spread(indices: Sequence[int]) -> list[int]:
    """At most MAX_CHANGED of them, from all over."""
    count = min(len(indices), MAX_CHANGED)
    return [indices[number * len(indices) // count] for number in range(count)]


def _held_out_answer(index: int, item: JudgedItem, images: list[str]) -> HeldOutAnswer:
    return {
        "index": index,
        "id": item["id"],
        "source": item["source"],
        "images": images,
        "prompt": item["prompt"],
        "answer": item["answer"],
        "response": item["responses"][0],
        "extracted": item["extracted"][0],
        "correct": item["correct"][0],
    }


def _images_at(source: RecordSource, index: int) -> list[str]:
    """The images of a record; none if it can no longer be read."""
    with contextlib.suppress(InputError, OSError):
        return _images(source[index])
    return []


def _images(record: Record) -> list[str]:
    """The images of a record as data URLs; of a video the first frame."""
    return [_data_url(image) for image in (*record.images, *(video.frames[0] for video in record.videos))]


def _data_url(image: bytes) -> str:
    """An image as a data URL; a large one is scaled down, because a report holds hundreds."""
    if len(image) > _LARGEST_IMAGE:
        picture, shown = decode_image(image), io.BytesIO()
        picture.thumbnail((_THUMBNAIL_SIDE, _THUMBNAIL_SIDE))
        picture.save(shown, "JPEG", quality=85)
        image = shown.getvalue()
    kind = "png" if image.startswith(b"\x89PNG") else "jpeg"
    return f"data:image/{kind};base64,{base64.b64encode(image).decode()}"
