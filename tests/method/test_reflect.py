"""Forced openings of reflections, and rewrites of what came out of them."""

from __future__ import annotations

import numpy as np
import pytest

from care_jax.inputs.responses import encode_rewrites
from care_jax.method import objectives, reflect
from care_jax.method.objectives import Objective
from care_jax.rewards.response_format import ANSWER_TAGS, BOXED
from care_jax.rewards.spans import TokenBytes
from care_jax.structs import Outcome, Rollouts, Subgroup
from tests.presets import record

CUE = " Wait!"
SHORT = {"reflect__cue": CUE, "reflect__max_rationale_len": 6}
TEXTS = [
    ["<think>1+1=3</think><answer>3</answer>", "<think>1+1=2</think><answer>2</answer>"],
    ["<think>a long rationale</think>", "<think>no end", "unused"],
    ["x", "y"],
    ["p", "q"],
]


@pytest.fixture
def objective() -> Objective:
    """CARE with a short cue and short rationales."""
    return record(objectives.care, **SHORT)


@pytest.fixture
def subgroup() -> Subgroup:
    """Two groups to repair, one that is all wrong, and a mixed one without a negative."""
    return Subgroup(
        index=np.array([[1, 0], [0, 1], [0, 1], [0, 1]], np.int32),
        valid=np.array([[1, 1], [1, 1], [1, 1], [1, 0]], bool),
        outcome=np.array([Outcome.MIXED, Outcome.MIXED, Outcome.ALL_WRONG, Outcome.MIXED], np.int32),
        num_negatives=np.array([1, 1, 1, 0], np.int32),
    )


@pytest.mark.parametrize(
    ("text", "rationale"),
    [
        ("<think>1+1=3</think><answer>3</answer>", "1+1=3"),
        ("<think>cut off", "cut off"),
        ("<think>é</think>", "é"),
        ("no tags<answer>3</answer>", "no tags"),
        ("<think></think><answer>3</answer>", ""),
        ("", ""),
        ("1+1=3</think><answer>3</answer>", "1+1=3"),
        ("no end<answer>3</answer></think>", "no end"),
    ],
)
def test_failed_rationale(text, rationale):
    """Catches tags or the answer in what is called the rationale, and byte offsets used as characters."""
    assert reflect.failed_rationale(text, ANSWER_TAGS) == rationale


@pytest.mark.parametrize(
    ("text", "rationale"),
    [
        (r"<think>\boxed{1} no</think>\boxed{2}", r"\boxed{1} no"),
        (r"<think>1+1 \boxed{2}", "1+1 "),
        (r"so it is \boxed{2}", "so it is "),
    ],
)
def test_failed_rationale_of_the_boxed_format(text, rationale):
    """Catches an answer that is forced as part of the rationale to repair."""
    assert reflect.failed_rationale(text, BOXED) == rationale


def test_forced_prefixes(tiny_processor, objective, subgroup):
    """Catches the anchor's rationale in place of the negative's, a repair of another outcome, and a lost cue."""
    forced = reflect.force_prefixes(tiny_processor, objective, texts=TEXTS, subgroup=subgroup)
    assert forced.active[:, 0].tolist() == [True, True, False, False]
    assert forced.token_ids.shape == (4, 1, reflect.forced_width(tiny_processor, objective))
    decode = tiny_processor.tokenizer.decode
    said = [decode(forced.token_ids[b, 0, : forced.forced_len[b, 0]]) for b in range(4)]
    assert said[:2] == ["<think>1+1=3 Wait!", "<think>no end Wait!"]
    assert said[2:] == ["", ""]


def test_an_all_wrong_group_is_repaired_at_its_pseudo_anchor(tiny_processor, subgroup):
    """Catches a representative's rationale, and a group that has no pseudo-anchor."""
    objective = record(objectives.care, **SHORT, reflect__all_wrong=True)
    (wrong,) = np.flatnonzero((subgroup.outcome == Outcome.ALL_WRONG) & subgroup.valid[:, 0])
    texts = [[f"<think>{b}{g}</think>" for g in range(2)] for b in range(4)]
    forced = reflect.force_prefixes(tiny_processor, objective, texts=texts, subgroup=subgroup)
    assert forced.active[:, 0].tolist() == [True, True, *(b == wrong for b in (2, 3))]
    said = tiny_processor.tokenizer.decode(forced.token_ids[wrong, 0, : forced.forced_len[wrong, 0]])
    assert said == f"<think>{wrong}{subgroup.index[wrong, 0]} Wait!"


def test_a_long_rationale_is_cut_and_the_cue_kept(tiny_processor, objective, subgroup):
    """Catches a cut that takes the cue, or a width that the longest prefix passes."""
    long = [["", ""], ["", "<think>123456789</think>"], ["", ""], ["", ""]]
    forced = reflect.force_prefixes(tiny_processor, objective, texts=long, subgroup=subgroup)
    assert tiny_processor.tokenizer.decode(forced.token_ids[1, 0]) == "<think>123456 Wait!"
    assert forced.forced_len[1, 0] == forced.token_ids.shape[-1]


def test_a_config_without_room_for_a_repair_is_refused(tiny_processor, objective):
    """Catches a cue that fills the response: such repairs never run, and nothing says so."""
    width = reflect.forced_width(tiny_processor, objective)
    reflect.require_room(tiny_processor, objective, response_len=width + 1)
    with pytest.raises(ValueError, match=f"max_rationale_len=6: .* {width} tokens .*response_len={width} .* at most 5"):
        reflect.require_room(tiny_processor, objective, response_len=width)
    for harmless in ({"source": "scratch"}, {"train_on": "rewrite"}, {"enabled": False}):
        other = record(objectives.care, **SHORT, **{f"reflect__{name}": value for name, value in harmless.items()})
        reflect.require_room(tiny_processor, other, response_len=width)


def test_from_scratch_forces_nothing(tiny_processor, subgroup):
    """Catches an ablation that still shows the failed rationale."""
    objective = record(objectives.care, **SHORT, reflect__source="scratch")
    forced = reflect.force_prefixes(tiny_processor, objective, texts=TEXTS, subgroup=subgroup)
    assert forced.active[:, 0].tolist() == [True, True, False, False]
    assert not forced.forced_len.any()


def test_rewrite_of_a_response_from_scratch_is_the_response(tiny_processor):
    """Catches a second <think> before the one that was sampled, as nothing was forced."""
    objective = record(objectives.care, **SHORT, reflect__source="scratch")
    clean = encode_rewrites(tiny_processor, ["<think>2</think><answer>2</answer>"])[0]
    token_ids = np.zeros((1, 1, 24), np.int32)
    token_ids[0, 0, : len(clean)] = clean
    given = Rollouts(
        token_ids=token_ids,
        response_len=np.array([[len(clean)]], np.int32),
        logprobs=np.zeros((1, 1, 24), np.float32),
        sampled_mask=(np.arange(24) < len(clean))[None, None],
        finished=np.array([[True]]),
    )
    token_bytes = TokenBytes(tiny_processor.tokenizer)
    ours = reflect.rewrite(tiny_processor, objective, token_bytes=token_bytes, repaired=given)
    np.testing.assert_array_equal(ours.token_ids, given.token_ids)
    np.testing.assert_array_equal(ours.response_len, given.response_len)
    np.testing.assert_array_equal(ours.sampled_mask, given.sampled_mask)


def test_rewrite_keeps_what_was_sampled(tiny_processor, objective):
    """Catches a stop token after a cut-off response, a cut one that counts as whole, another context's log-probs."""

    def encode(text: str) -> list[int]:
        return encode_rewrites(tiny_processor, [text])[0]

    repaired = "2</think><answer>2</answer>"
    rows = [encode(repaired), encode(repaired)[:-1], [], encode("22" + repaired)]
    clean = encode("<think>" + repaired)
    width = len(clean) + 1
    sampled_mask = np.array([[np.arange(width) < len(ids)] for ids in rows])
    token_ids = np.zeros((4, 1, width), np.int32)
    token_ids[sampled_mask] = np.concatenate(rows)
    given = Rollouts(
        token_ids=token_ids,
        response_len=sampled_mask.sum(-1, dtype=np.int32),
        logprobs=np.full((4, 1, width), -1.0, np.float32),
        sampled_mask=sampled_mask,
        finished=np.array([[True], [False], [False], [True]]),
    )
    token_bytes = TokenBytes(tiny_processor.tokenizer)
    ours = reflect.rewrite(tiny_processor, objective, token_bytes=token_bytes, repaired=given)
    assert ours.token_ids[0, 0].tolist() == [*clean, 0]
    assert ours.response_len[:, 0].tolist() == [len(clean), len(clean) - 1, 0, width]
    assert ours.token_ids[1, 0].tolist() == [*clean[:-1], 0, 0]
    assert ours.token_ids[3, 0].tolist() == encode("<think>22" + repaired)[:width]
    assert ours.sampled_mask.sum(-1).tolist() == ours.response_len.tolist()
    assert ours.finished[:, 0].tolist() == [True, False, False, False]
    assert not ours.logprobs.any()
