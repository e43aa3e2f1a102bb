"""Responses as text while they are decoded: what has been shown is never taken back."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from care_jax.evals.answer_text import Parts, ResponseText, split_response

WHOLE = {
    "<think>1 + 2</think><answer>3</answer>": Parts("1 + 2", "3"),
    "<think>1 + 2</think>\nSo \\boxed{3}.\n": Parts("1 + 2", "So \\boxed{3}."),
    "3": Parts("", "3"),
    "<think>1 + 2": Parts("1 + 2", ""),
    "<think>1 + 2<answer>3": Parts("1 + 2", "3"),
    "<think></think><answer>3</answer>": Parts("", "3"),
    "Sure. <think>1 < 2</think> <answer>3</answer> or <answer>4</answer>": Parts("1 < 2", "Sure.\n3\nor\n4"),
    "<think>a</thi": Parts("a</thi", ""),
    "": Parts("", ""),
}


@pytest.mark.parametrize("text", WHOLE)
def test_rationale_and_answer(text: str) -> None:
    """Catches tags that are shown, a rationale that goes to the answer or the reverse, and text that is lost."""
    assert split_response(text) == WHOLE[text]


@settings(max_examples=300, deadline=None)
@given(st.lists(st.sampled_from(["<think>", "</think>", "<answer>", "</answer>", "<", "a", "</t", " ", "\n", "é"])))
def test_a_longer_beginning_only_adds(pieces: list[str]) -> None:
    """Catches a delta that a client cannot apply: half a tag, or a space that turns out to end the answer."""
    shown, text = Parts("", ""), ""
    for letter in "".join(pieces):
        text += letter
        parts = split_response(text, is_whole=False)
        assert parts.rationale.startswith(shown.rationale), text
        assert parts.answer.startswith(shown.answer), text
        shown = parts
    whole = split_response(text)
    assert whole.rationale.startswith(shown.rationale)
    assert whole.answer.startswith(shown.answer)


BYTES = [bytes([byte]) for byte in range(256)]


@settings(max_examples=300, deadline=None)
@given(
    st.lists(st.sampled_from(["a", "b", "ab", "é", "𝄞", " "])).map("".join),
    st.lists(st.sampled_from(["b", "ab", "ba ", "é a", "aa"]), max_size=3),
    st.integers(1, 5),
)
def test_stop_texts(text: str, stops: list[str], size: int) -> None:
    """Catches a stop text that is shown, in part or whole, one that is missed across pieces, and halved characters."""
    response = ResponseText(BYTES, stops)
    encoded, shown = text.encode(), ""
    for start in range(0, max(len(encoded), 1), size):
        new = response.add(encoded[start : start + size], is_last=start + size >= len(encoded))
        assert new.startswith(shown)
        shown = new
    ends = [(at + len(stop), at) for stop in stops if (at := text.find(stop)) >= 0]
    assert response.is_stopped == bool(ends)
    assert shown == (text[: min(ends)[1]] if ends else text)


def test_bytes_that_are_no_text() -> None:
    """Catches an exception at the end of a response that was cut off within a character."""
    response = ResponseText(BYTES)
    assert response.add("é".encode()[:1], is_last=False) == ""
    assert response.add([], is_last=True) == "\ufffd"
