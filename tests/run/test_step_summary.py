"""The metrics, events and samples of a step, against numbers worked out by hand."""

from __future__ import annotations

import base64
import dataclasses
import json
from types import SimpleNamespace

import numpy as np
import pytest

from care_jax.inputs.images import decode_image
from care_jax.method.advantage import SubgroupAdvantages
from care_jax.method.train_batch import Reflection
from care_jax.parallel.processes import ALL_ROWS
from care_jax.rewards.judge import Judged
from care_jax.run import samples, step_summary
from care_jax.structs import Forced, Outcome, Rollouts, Scores, Subgroup, TrainBatch, Verdicts, Video, zeros
from tests.pictures import encode, picture, question

B, G, R = 3, 4, 4
CORRECT = np.array([[0, 1, 0, 0], [0, 0, 0, 0], [1, 1, 1, 1]], bool)
CUE = " Wait!"
# In place of TokenBytes: a token is the letter of its number.
LETTERS = SimpleNamespace(text=lambda ids: "".join(map(chr, ids)))


def judged(texts: list[list[str]], correct: np.ndarray) -> Judged:
    """Verdicts in which all can be read and only the correct ones have the format."""
    tokens = np.zeros((*correct.shape, R), bool)
    verdicts = Verdicts(correct, np.ones_like(correct), correct, np.where(correct, 1.0, 0.25), tokens, tokens)
    reasons = [
        [{"text 03": "deadline", "text 11": "deadline", "text 12": "worker died"}.get(text, "wrong") for text in row]
        for row in texts
    ]
    return Judged(verdicts, texts, [[text[-1:] for text in row] for row in texts], reasons)


def make_batch(response_len: np.ndarray, row_mask: np.ndarray) -> TrainBatch:
    """The first rows of each group; fields that the summary does not read are None."""
    nothing = dict.fromkeys(field.name for field in dataclasses.fields(TrainBatch))
    rows = row_mask.shape[1]
    token_ids = np.zeros((*row_mask.shape, R), np.int32)
    return TrainBatch(
        **nothing | {"token_ids": token_ids, "response_len": response_len[:, :rows], "row_mask": row_mask}
    )


@pytest.fixture
def step() -> step_summary.Step:
    """A mixed group whose first negative was repaired, one that is all wrong and rescued, one that is all correct."""
    response_len = np.array([[4, 2, 1, 1], [1, 1, 1, 1], [1, 1, 1, 1]], np.int32)
    sampled = np.arange(R) < response_len[..., None]
    logprobs = np.where(sampled, -1.0, 0.0).astype(np.float32)
    scored = logprobs.copy()
    scored[0, 0, 0] -= 0.5
    scored[0, 1, 1] += 0.3
    scored[0, 3, 3] = -9.0  # not sampled
    entropy = np.where(sampled, 0.5, 100.0)
    entropy[0, 0, 0] = 2.5
    scored[2], entropy[2] = 0.0, 0.0  # not computed
    none = zeros(Reflection, B=B, R=R)
    records = [
        question("<image>a?", encode(picture(28, 28)), id="r0", source="digits"),
        question("b?", id="r1", source="chart"),
        question("c?", id="r2", source="digits"),
    ]
    verdicts = judged([[f"text {b}{g}" for g in range(G)] for b in range(B)], CORRECT)
    none = none.replace(
        tried=np.array([True, False, False]),
        correct=np.array([True, False, False]),
        # The rewritten response, with an opening that was not sampled.
        token_ids=np.array([list(map(ord, "<b! "))] * B, np.int32),
        sampled_mask=np.ones((B, R), bool),
    )
    # Two tokens of the failed rationale "a!!" were kept and end as the cue does; "b!" was sampled after it.
    given = "a!" + CUE
    tried = none.tried[:, None, None]
    forced = Forced(
        token_ids=np.array([[list(map(ord, given + "?"))]] * B, np.int32),
        forced_len=np.where(tried[..., 0], len(given), 0),
        active=tried[..., 0],
    )
    repaired = Rollouts(
        token_ids=np.array([[list(map(ord, "b!??"))]] * B, np.int32),
        response_len=np.full((B, 1), 2),
        logprobs=np.zeros((B, 1, R), np.float32),
        sampled_mask=tried & np.array([True, True, False, False]),
        finished=tried[..., 0],
    )
    return step_summary.Step(
        records=records,
        rollouts=Rollouts(
            token_ids=np.zeros((B, G, R), np.int32),
            response_len=response_len,
            logprobs=logprobs,
            sampled_mask=sampled,
            finished=np.array([[1, 1, 1, 0], [1, 1, 1, 1], [1, 1, 0, 0]], bool),
        ),
        judged=verdicts,
        drawn=step_summary.Drawn(records, verdicts, num_tokens=int(sampled.sum()), num_draws=1),
        scores=Scores(scored, entropy.astype(np.float32), np.zeros((B, G, 2), np.float32)),
        scored=np.array([True, True, False]),
        subgroup=Subgroup(
            index=np.array([[1, 3, 0], [2, 0, 0], [0, 0, 0]], np.int32),
            valid=np.array([[1, 1, 1], [1, 1, 0], [0, 0, 0]], bool),
            outcome=np.array([Outcome.MIXED, Outcome.ALL_WRONG, Outcome.ALL_CORRECT], np.int32),
            num_negatives=np.array([2, 1, 0], np.int32),
        ),
        reflection=none,
        reflected=step_summary.Reflected(forced, repaired),
        batch=make_batch(response_len, np.array([[1, 1, 1], [1, 1, 0], [0, 0, 0]], bool)),
        advantages=SubgroupAdvantages(
            raw=np.array([[1.0, 1.0, -2.0], [1.0, -1.0, 0.0], [0.0, 0.0, 0.0]], np.float32),
            final=np.array([[1.0, 1.0, -1.0], [0.4, -0.1, 0.0], [0.0, 0.0, 0.0]], np.float32),
        ),
    )


def test_metrics_by_hand(step):
    """Catches a mean over padding, over groups in place of tokens, and a rescue that counts as a success."""
    assert step_summary.metrics(step, anchored=True) == pytest.approx(
        {
            "accuracy/train": 5 / 12,
            "accuracy/train/chart": 0.0,
            "accuracy/train/digits": 5 / 8,
            "reward/mean": (5 + 7 * 0.25) / 12,
            "format_rate": 5 / 12,
            "unparsed_rate": 0.0,
            "verify/deadline": 2 / 12,
            "verify/died": 1 / 12,
            "groups/mixed": 1 / 3,
            "groups/all_wrong": 1 / 3,
            "groups/all_correct": 1 / 3,
            "groups/no_gradient": 1 / 3,
            "entropy": (0.5 * 11 + 2.5) / 12,
            "response_len/mean": 16 / 12,
            "truncated_rate": 3 / 12,
            "tokens/rollout": 16,
            "tokens/reflect": 2,
            "logprob_gap/mean": 0.8 / 12,
            "logprob_gap/max": 0.5,
            "advantage/failure_share": 2.5 / 3.5,
            "subgroup/num_negatives_0": 1 / 3,
            "subgroup/num_negatives_1": 1 / 3,
            "subgroup/num_negatives_2": 1 / 3,
            "advantage/anchor": 1.0,
            "advantage/negative": -1.0,
            "reflect/tried": 1.0,
            "reflect/success_rate": 1.0,
            "rescue/rate": 1 / 3,
        },
        abs=1e-6,
    )


def test_each_part_of_the_reward_has_its_curve(step):
    """Catches a mean over responses whose function failed, and failures that nobody sees."""
    part = np.array([[0.5, np.nan, 1.0, 0.0], [0.0] * 4, [np.nan] * 4], np.float32)
    drawn = step.drawn._replace(judged=step.drawn.judged._replace(parts={"iou": part}))
    values = step_summary.metrics(step._replace(drawn=drawn), anchored=True)
    assert values["rewards/iou"] == pytest.approx(1.5 / 7)
    assert values["rewards_failed/iou"] == pytest.approx(5 / 12)
    joined = step_summary.join_judged([drawn.judged, drawn.judged])
    np.testing.assert_array_equal(joined.parts["iou"], np.concatenate([part, part]))


def test_a_failed_repair_stays_a_negative(step):
    """Catches a repaired row that is left out of the negatives whatever became of it, and a rate over all groups."""
    failed = step._replace(reflection=step.reflection.replace(correct=np.array([False, True, True])))
    ours = step_summary.metrics(failed, anchored=True)
    assert ours["advantage/negative"] == 0.0  # of +1 and -1
    assert ours["reflect/success_rate"] == 0.0


def test_a_step_without_a_try_has_no_success_rate(step):
    """Catches a rate of 0 where nothing was tried, which drags the curve down."""
    ours = step_summary.metrics(step._replace(reflection=zeros(Reflection, B=B, R=R)), anchored=True)
    assert ours["reflect/tried"] == 0
    assert "reflect/success_rate" not in ours


@pytest.mark.parametrize("is_right", [True, False])
def test_a_repair_in_an_all_wrong_group(step, is_right):
    """Catches a turned group that counts as rescued, the failure of slot 1, and a wrong repair that is not dropped."""
    tried, correct = np.array([False, True, False]), np.array([False, is_right, False])
    tried_step = step._replace(reflection=step.reflection.replace(tried=tried, correct=correct))
    both = np.array([[1, 3, 0], [2, 2, 0], [0, 0, 0]], np.int32)  # the pseudo-anchor may be a negative of its repair
    if is_right:
        tried_step = tried_step._replace(subgroup=step.subgroup.replace(index=both))
    ours = step_summary.metrics(tried_step, anchored=True)
    assert ours["reflect/turned_rate"] == float(is_right)
    assert ours["rescue/rate"] == pytest.approx(0 if is_right else 1 / 3)
    assert step_summary.events(tried_step, anchored=True)[1]["reflected"] == 2
    shown = samples.sample(tried_step, 1, anchored=True, cue=CUE, token_bytes=LETTERS)
    assert shown["reflection"]["rollout"] == 2
    assert shown["rollouts"][2]["role"] == ("reflected" if is_right else "anchor")
    assert shown["rollouts"][2]["advantage"] == pytest.approx(0.4)
    assert "reflect/turned_rate" not in step_summary.metrics(step, anchored=True)


def test_a_wrong_repair_in_a_group_that_is_not_rescued(step):
    """Catches a group without rows whose repair has no rollout to start from."""
    subgroup = step.subgroup.replace(
        valid=step.subgroup.valid & np.array([[True], [False], [False]]), num_negatives=np.array([2, 0, 0], np.int32)
    )
    reflection = step.reflection.replace(tried=np.array([False, True, False]), correct=np.zeros(3, bool))
    ours = step._replace(subgroup=subgroup, reflection=reflection)
    event = step_summary.events(ours, anchored=True)[1]
    assert (event["anchor"], event["negatives"], event["advantages"]) == (None, [], [])
    assert (event["reflected"], event["reflection_correct"]) == (2, False)
    assert step_summary.metrics(ours, anchored=True)["rescue/rate"] == 0
    shown = samples.sample(ours, 1, anchored=True, cue=CUE, token_bytes=LETTERS)
    assert shown["reflection"]["rollout"] == 2
    assert {row["role"] for row in shown["rollouts"]} == {"unselected"}


def test_figures_are_of_every_group_that_was_drawn(step):
    """Catches dynamic sampling that reports the accuracy of the groups it kept, which is always near the middle."""
    wrong = judged([[""] * G], np.zeros((1, G), bool))
    more = step_summary.join_judged([step.judged, wrong, wrong, wrong])
    records = [*step.records, *[question("d?", id=f"d{i}", source="chart") for i in range(3)]]
    ours = step_summary.metrics(step._replace(drawn=step_summary.Drawn(records, more, 99, 2)), anchored=True)
    assert ours["accuracy/train"] == pytest.approx(5 / 24)
    assert ours["format_rate"] == pytest.approx(5 / 24)
    assert ours["groups/all_wrong"] == pytest.approx(4 / 6)
    assert ours["groups/mixed"] == pytest.approx(1 / 6)
    assert ours["accuracy/train/chart"] == 0.0


def test_further_positives(step):
    """Catches a correct rollout behind the negatives that counts or is shown as one of them."""
    num_negatives = np.array([1, 1, 0], np.int32)
    untried = dataclasses.replace(step.reflection, tried=np.zeros(3, bool))
    ours = step._replace(subgroup=step.subgroup.replace(num_negatives=num_negatives), reflection=untried)
    event = step_summary.events(ours, anchored=True)[0]
    assert (event["anchor"], event["negatives"], event["positives"]) == (1, [3], [0])
    assert step_summary.metrics(ours, anchored=True)["advantage/negative"] == pytest.approx(1.0)  # slot 1 alone
    roles = samples.sample(ours, 0, anchored=True, cue=CUE, token_bytes=LETTERS)["rollouts"]
    assert [row["role"] for row in roles] == ["positive", "anchor", "unselected", "negative"]


def test_a_large_image_is_shown_small_and_a_video_by_a_frame(step):
    """Catches photos of megabytes that are copied into the report, and a question about a video without a picture."""
    photo, frame = encode(picture(900, 1200)), encode(picture(28, 28))
    record = question("<image><video>?", photo, videos=(Video((frame, frame), 2.0),))
    image, still = samples.sample(
        step._replace(records=[record, *step.records[1:]]), 0, anchored=True, cue=CUE, token_bytes=LETTERS
    )["images"]
    shown = decode_image(base64.b64decode(image.partition(",")[2]))
    assert max(shown.size) == 448
    assert len(image) < len(photo) // 8
    assert base64.b64decode(still.partition(",")[2]) == frame


def test_group_objectives_have_no_subgroup_metrics(step):
    """Catches anchors that are reported where every row is alike."""
    ours = step_summary.metrics(step, anchored=False)
    assert not [name for name in ours if name.startswith(("subgroup/", "reflect/", "rescue/", "advantage/a"))]


def test_events(step):
    """Catches slots in place of rollout numbers, and unused slots that are listed."""
    assert json.loads(json.dumps(step_summary.events(step, anchored=True))) == [
        {
            "id": "r0",
            "source": "digits",
            "outcome": "MIXED",
            "anchor": 1,
            "negatives": [3, 0],
            "num_negatives": 2,
            "positives": [],
            "advantages_raw": [1.0, 1.0, -2.0],
            "advantages": [1.0, 1.0, -1.0],
            "reflected": 3,
            "reflection_correct": True,
        },
        {
            "id": "r1",
            "source": "chart",
            "outcome": "ALL_WRONG",
            "anchor": 2,
            "negatives": [0],
            "num_negatives": 1,
            "positives": [],
            "advantages_raw": [1.0, -1.0],
            "advantages": [pytest.approx(0.4), pytest.approx(-0.1)],
            "reflected": None,
            "reflection_correct": None,
        },
        {
            "id": "r2",
            "source": "digits",
            "outcome": "ALL_CORRECT",
            "anchor": None,
            "negatives": [],
            "num_negatives": 0,
            "positives": [],
            "advantages_raw": [],
            "advantages": [],
            "reflected": None,
            "reflection_correct": None,
        },
    ]
    plain = step_summary.events(step, anchored=False)
    assert [event["anchor"] for event in plain] == [None] * 3
    assert not plain[0]["negatives"]


def test_sample(step):
    """Catches roles and advantages on other rollouts than their own, and a repair that is shown with its opening."""
    ours = json.loads(json.dumps(samples.sample(step, 0, anchored=True, cue=CUE, token_bytes=LETTERS)))
    assert [row["role"] for row in ours["rollouts"]] == ["negative", "anchor", "unselected", "reflected"]
    assert [row["advantage"] for row in ours["rollouts"]] == [-1.0, 1.0, 0.0, 1.0]
    assert [row["correct"] for row in ours["rollouts"]] == [False, True, False, False]
    assert [row["response_len"] for row in ours["rollouts"]] == [4, 2, 1, 1]
    assert ours["reflection"] == {
        "rollout": 3,
        "before": "a!",
        "cue": CUE,
        "after": "b!",
        "correct": True,
    }
    assert ours["images"][0].startswith("data:image/png;base64,iVBOR")
    scratch = step.reflected.forced.replace(forced_len=np.zeros((B, 1), np.int32))
    resampled = step._replace(reflected=step.reflected._replace(forced=scratch))
    shown = samples.sample(resampled, 0, anchored=True, cue=CUE, token_bytes=LETTERS)["reflection"]
    assert (shown["before"], shown["cue"], shown["after"]) == ("", "", "b!")
    untouched = samples.sample(step, 2, anchored=True, cue=CUE, token_bytes=LETTERS)
    assert untouched["reflection"] is None
    assert {row["role"] for row in untouched["rollouts"]} == {"unselected"}
    assert [
        row["role"] for row in samples.sample(step, 1, anchored=False, cue=CUE, token_bytes=LETTERS)["rollouts"]
    ] == [
        "updated",
        "unselected",
        "updated",
        "unselected",
    ]


@pytest.mark.parametrize(
    ("outcomes", "shown"),
    [
        ((Outcome.MIXED, Outcome.ALL_WRONG, Outcome.ALL_CORRECT), (0, 1)),
        ((Outcome.MIXED, Outcome.ALL_CORRECT, Outcome.ALL_WRONG), (0, 2)),
        ((Outcome.MIXED, Outcome.ALL_CORRECT, Outcome.MIXED), (0, None)),
        ((Outcome.ALL_WRONG, Outcome.ALL_WRONG, Outcome.ALL_CORRECT), (0, 1)),
        ((Outcome.ALL_CORRECT, Outcome.ALL_WRONG, Outcome.MIXED), (2, 1)),
        ((Outcome.ALL_CORRECT, Outcome.ALL_CORRECT, Outcome.ALL_WRONG), (0, 2)),
    ],
)
def test_an_all_wrong_group_is_shown_too(step, outcomes, shown):
    """Catches questions that are never solved and never seen, a group shown twice, and a right one in its place."""
    step = step._replace(
        subgroup=step.subgroup.replace(outcome=np.array(outcomes, np.int32)),
        reflection=step.reflection.replace(tried=np.zeros(B, bool)),
    )
    assert samples.groups_to_show(step, ALL_ROWS) == shown


@pytest.mark.parametrize(
    ("rows", "others", "shown"),
    [((0, 1, 2), [[1, -3], [1, -4]], (0, 1)), ((3, 4, 5), [[3, 0], [1, -1]], (None, None))],
)
def test_one_process_shows_a_group(step, rows, others, shown):
    """Catches a group of each kind that two processes show, or neither."""
    claims = iter(others)
    share = SimpleNamespace(rows_of=lambda _: rows, exchange=lambda claim: [claim, next(claims)])
    assert samples.groups_to_show(step, share) == shown
