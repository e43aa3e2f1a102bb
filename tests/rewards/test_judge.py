"""The judging of a batch of tokens or texts: what is read, which rewards follow."""

from __future__ import annotations

import dataclasses
import itertools

import numpy as np
import pytest

from care_jax.rewards.judge import RewardConfig, Verifier, judge, judge_texts
from care_jax.rewards.pool import Item
from care_jax.rewards.response_format import ANSWER_TAGS, BOXED
from care_jax.rewards.reward import length_penalty
from care_jax.structs import Record
from tests.made_rollouts import rollouts_of

TAGGED = RewardConfig(ANSWER_TAGS, correct_weight=0.9, format_weight=0.1)
TOKEN_BYTES = [b"", b"<think>", b"</think>", b"<answer>", b"</answer>", b"5", b"6", b"\xc2", b"\xb0", b"x"]
END, OPEN, CLOSE, BEGIN, FINISH, FIVE, SIX, HIGH, LOW, X = range(10)
RECORDS = [
    Record("a", "s", "q", (), "5", "integer"),
    Record("b", "s", "q", (), "B", "choice", ("5", "6")),
]
RESPONSES = [
    [
        [OPEN, X, X, CLOSE, BEGIN, FIVE, HIGH, LOW, FINISH, END],  # right, well formed: 5°
        [BEGIN, FIVE, FINISH, END],  # right, no rationale
        [OPEN, X, CLOSE, BEGIN, SIX, FINISH, END],  # well formed, wrong
        [OPEN, X, FIVE],  # cut off
    ],
    [
        [OPEN, CLOSE, BEGIN, SIX, FINISH, END],  # right by the option's text, empty rationale
        [OPEN, X, CLOSE, BEGIN, FIVE, FINISH, END],  # wrong by the option's text
        [OPEN, X, CLOSE, BEGIN, HIGH, FINISH, END],  # half a character
        [],
    ],
]


@pytest.fixture(scope="module")
def verifier():
    """A pool of the package's own workers."""
    with Verifier(workers=2, deadline=30.0, tolerance=0.01) as pool:
        yield pool


def test_soft_overlong_penalty():
    """Catches the ramp beginning at the wrong token, or going past -penalty (DAPO, equation 13)."""
    lengths = np.array([[0, 6], [7, 8], [10, 12]])
    expected = np.float32([[0, 0], [-0.125, -0.25], [-0.5, -0.5]])
    np.testing.assert_array_equal(length_penalty(lengths, 10, 4, 0.5), expected)
    np.testing.assert_array_equal(length_penalty(lengths, 10, 0, 0.5), np.zeros((3, 2), np.float32))
    assert length_penalty(np.array([10]), 10, 10, 1.0).tolist() == [-1.0]
    with pytest.raises(ValueError, match="0 to 10 tokens"):
        length_penalty(lengths, 10, 11, 1.0)


def padded(responses: list[list[list[int]]], length: int) -> tuple[np.ndarray, np.ndarray]:
    """Token ids [B, G, R], with a well-formed right answer as the padding, and lengths [B, G]."""
    filler = [OPEN, CLOSE, BEGIN, FIVE, FINISH] * length
    rows = [[response + filler[: length - len(response)] for response in group] for group in responses]
    return np.array(rows, np.int32), np.array([[len(r) for r in group] for group in responses], np.int32)


def test_judge_by_hand(verifier):
    """Catches padding that is read, a format bonus that counts as correct, and rows that are mixed up."""
    ids, lengths = padded(RESPONSES, 12)
    judged = judge(verifier, RECORDS, rollouts_of(ids, lengths), TOKEN_BYTES, TAGGED)
    v = judged.verdicts
    assert v.correct.tolist() == [[True, True, False, False], [True, False, False, False]]
    assert v.parsed.tolist() == [[True, True, True, False], [True, True, False, False]]
    assert v.format_ok.tolist() == [[True, False, True, False], [True, True, True, False]]
    assert v.rewards.dtype == np.float32
    np.testing.assert_array_equal(v.rewards, np.float32([[1.0, 0.9, 0.1, 0], [1.0, 0.1, 0.1, 0]]))
    assert judged.extracted == [["5°", "5", "6", None], ["6", "5", "\ufffd", None]]
    assert judged.texts[0][0] == "<think>xx</think><answer>5°</answer>"
    assert judged.texts[1][3] == ""
    assert judged.reasons[0] == ["correct", "correct", "wrong", "no answer"]
    assert np.flatnonzero(v.think_mask[0, 0]).tolist() == [1, 2]
    assert np.flatnonzero(v.answer_mask[0, 0]).tolist() == [5, 6, 7]
    assert np.flatnonzero(v.think_mask[0, 3]).tolist() == [1, 2]
    assert not v.answer_mask[0, 3].any()
    assert not v.think_mask[1, 0].any()
    assert not v.think_mask[1, 3].any()
    assert np.flatnonzero(v.answer_mask[1, 0]).tolist() == [3]


def test_texts_are_judged_as_tokens_are(verifier):
    """Catches two judgements of one response, and verdicts in another order than the responses."""
    ids, lengths = padded(RESPONSES, 12)
    judged = judge(verifier, RECORDS, rollouts_of(ids, lengths), TOKEN_BYTES, TAGGED)
    responses = [(record, text) for record, texts in zip(RECORDS, judged.texts, strict=True) for text in texts]
    texts = judge_texts(verifier, responses, ANSWER_TAGS)
    v = judged.verdicts
    assert [one.extracted for one in texts] == list(itertools.chain(*judged.extracted))
    assert [one.format_ok for one in texts] == v.format_ok.ravel().tolist()
    reasons = itertools.chain(*judged.reasons)
    assert [tuple(one.verdict) for one in texts] == list(
        zip(v.correct.ravel().tolist(), v.parsed.ravel().tolist(), reasons, strict=True)
    )
    assert judge_texts(verifier, [(RECORDS[0], "<answer>5\ud800</answer>")], ANSWER_TAGS)[0].extracted == "5?"


def test_judge_takes_the_overlong_penalty_off_the_reward_alone(verifier):
    """Catches a penalty that turns a correct answer into a failure."""
    ids, lengths = padded(RESPONSES, 10)
    config = dataclasses.replace(TAGGED, overlong_buffer_len=4, overlong_penalty=2.0)
    judged = judge(verifier, RECORDS, rollouts_of(ids, lengths), TOKEN_BYTES, config)
    np.testing.assert_allclose(judged.verdicts.rewards, [[-1.0, 0.9, -0.4, 0], [1.0, -0.4, -0.4, 0]], rtol=1e-6)
    assert judged.verdicts.correct[0, 0]


def test_forced_tokens_are_not_penalised(verifier):
    """Catches a short repair that pays for the failed rationale it was shown."""
    ids, lengths = padded(RESPONSES, 10)
    config = dataclasses.replace(TAGGED, overlong_buffer_len=4, overlong_penalty=2.0)
    judged = judge(verifier, RECORDS, rollouts_of(ids, lengths, forced_len=lengths), TOKEN_BYTES, config)
    assert judged.verdicts.rewards.min() == 0.0


def test_judge_reads_the_format_that_it_is_given(verifier):
    """Catches a reader that looks for tags where a box was asked for, and two answers of which the right one counts."""
    table = [b"<think>", b"</think>", rb"\boxed{", b"5", b"}", b"6", b"<answer>", b"</answer>"]
    ids = np.array([[[0, 1, 2, 3, 4, 4, 4, 4], [0, 1, 2, 5, 4, 2, 3, 4], [0, 1, 6, 3, 7, 7, 7, 7]]], np.int32)
    lengths = np.array([[5, 8, 5]], np.int32)
    rollouts, boxed = rollouts_of(ids, lengths), dataclasses.replace(TAGGED, response_format=BOXED)
    judged = judge(verifier, RECORDS[:1], rollouts, table, boxed)
    assert judged.reasons == [["correct", "more than one answer", "no answer"]]
    assert judged.verdicts.correct.tolist() == [[True, False, False]]
    assert judged.verdicts.parsed.tolist() == [[True, False, False]]
    assert judged.verdicts.format_ok.tolist() == [[True, False, False]]
    assert np.flatnonzero(judged.verdicts.answer_mask[0, 0]).tolist() == [3]
    tagged = judge(verifier, RECORDS[:1], rollouts, table, TAGGED)
    assert tagged.verdicts.correct.tolist() == [[False, False, True]]


@pytest.mark.parametrize(
    ("ids", "lengths", "message"),
    [
        (np.full((2, 1, 3), 10), np.full((2, 1), 3), "token ids 10 to 10"),
        (np.full((2, 1, 3), -1), np.full((2, 1), 3), "token ids -1 to -1"),
        (np.zeros((2, 1, 3), int), np.full((2, 1), 4), "R=3"),
        (np.zeros((3, 1, 3), int), np.full((3, 1), 3), "2 records"),
        (np.zeros((2, 2, 3), int), np.full((2, 1), 3), "2 records"),
    ],
)
def test_judge_refuses_what_does_not_fit(verifier, ids, lengths, message):
    """Catches ids of the unused vocabulary tail (-1 would silently be the last token) and wrong shapes."""
    with pytest.raises(ValueError, match=message):
        judge(verifier, RECORDS, rollouts_of(ids, lengths), TOKEN_BYTES, TAGGED)


def test_equal_answers_are_asked_once(verifier, monkeypatch):
    """Catches a batch that asks the same answer to the same gold again and again, or takes other golds for the same."""
    asked: list[Item] = []
    monkeypatch.setattr(
        verifier, "check", lambda items, check=verifier.check: asked.extend(items) or check(items), raising=True
    )
    pairs = [("5", "5"), ("6", "5"), ("5", "5"), ("5", "6"), ("6", "5"), ("", "5")] * 10
    responses = [
        (Record("1", "made", "?", (), gold, "integer"), f"<think>x</think><answer>{answer}</answer>" if answer else "x")
        for answer, gold in pairs
    ]
    judged = judge_texts(verifier, responses, ANSWER_TAGS)
    assert [one.verdict.correct for one in judged] == [answer == gold for answer, gold in pairs]
    assert sorted((item.given, item.gold) for item in asked) == [("5", "5"), ("5", "6"), ("6", "5")]
