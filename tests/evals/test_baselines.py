"""Baselines of an accuracy, on records made by hand, and the interval of an accuracy."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
import pytest

from care_jax.evals import baselines
from care_jax.evals.baselines import WithoutImages, majority_items
from care_jax.evals.judged_items import half_width
from care_jax.inputs.images import decode_image
from care_jax.rewards.judge import Verifier
from care_jax.rewards.response_format import ANSWER_TAGS, BOXED, ResponseFormat
from care_jax.structs import Record, Video
from tests.pictures import encode, picture


@pytest.fixture(scope="module")
def verifier() -> Iterator[Verifier]:
    """One worker."""
    with Verifier(workers=1, deadline=30.0, tolerance=0.01) as verifier:
        yield verifier


def _record(number: int, prompt: str, answer: str, kind: str = "text", source: str = "a", **fields: object) -> Record:
    return Record(str(number), source, prompt, (), answer, kind, **fields)


def _judged(verifier: Verifier, train: list[Record], held_out: list[Record], form: ResponseFormat) -> dict[str, tuple]:
    items = majority_items(verifier, train, held_out, form, limit=0)
    return {item["id"]: (item["extracted"][0], item["correct"][0]) for item in items}


@pytest.mark.parametrize("form", [ANSWER_TAGS, BOXED])
def test_majority_of_the_question_else_of_its_source_else_of_its_kind(verifier: Verifier, form: ResponseFormat) -> None:
    """Catches a majority over all questions, one that is counted in the held-out data, and a kind that does not fit."""
    colours = ["red", "red", "blue"]
    train = [_record(n, "which colour?", colour) for n, colour in enumerate(colours)]
    train += [_record(10 + n, "which shape?", "square\nbox") for n in range(4)]
    train += [_record(20, "how many?", "3", "integer", "b")]
    held_out = [
        _record(100, "which colour?", "red"),
        _record(101, "which colour?", "blue"),
        _record(102, "which shape?", "square\nbox"),
        _record(103, "which name?", "red"),  # of its source most are "square"
        _record(104, "how far?", "3", "integer", "c"),  # of its kind there is one
        _record(105, "give an equation", "x+1", "latex"),  # no such kind
    ]
    assert _judged(verifier, train, held_out, form) == {
        "100": ("red", True),
        "101": ("red", False),
        "102": ("square", True),
        "103": ("square", False),
        "104": ("3", True),
    }


def test_the_majority_of_a_choice_is_a_letter(verifier: Verifier) -> None:
    """Catches texts of options that other questions do not have, so that nothing has a majority."""
    options = [("4", "7"), ("8", "9"), ("5", "6")]
    golds = ["B", "9", "(B)"]
    train = [
        _record(n, f"{n}?", gold, "choice", choices=choices)
        for n, (gold, choices) in enumerate(zip(golds, options, strict=True))
    ]
    held_out = [_record(n, "else?", gold, "choice", choices=("1", "2")) for n, gold in ((9, "2"), (8, "A"))]
    assert _judged(verifier, train, held_out, ANSWER_TAGS) == {"9": ("(B)", True), "8": ("(B)", False)}


def test_a_record_that_another_process_cannot_read(verifier: Verifier, monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches processes that judge other questions, and wait for one another for ever: a file is missing on one."""
    monkeypatch.setattr(baselines, "exchange", lambda lost: [lost, [0]])
    train = [_record(0, "?", "blue"), _record(1, "?", "red"), _record(2, "?", "red"), _record(3, "?", "blue")]
    held_out = [_record(100, "?", "red"), _record(101, "?", "red")]
    assert _judged(verifier, train, held_out, ANSWER_TAGS) == {"101": ("red", True)}


def test_without_images_nothing_is_seen_and_nothing_else_changes() -> None:
    """Catches a picture that shows through, a prompt of another length, and frames that stay."""
    frame = encode(picture(28, 56))
    image, video = encode(picture(84, 56)), Video((frame,), 2.0)
    record = Record("1", "a", "<image><video>?", (image,), "3", "integer", videos=(video,))
    source = WithoutImages([record])
    seen = source[0]
    assert len(source) == 1
    assert (seen.id, seen.prompt, seen.answer, seen.videos[0].fps) == ("1", record.prompt, "3", 2.0)
    for before, after in ((record.images[0], seen.images[0]), (frame, seen.videos[0].frames[0])):
        assert decode_image(after).size == decode_image(before).size
        assert {*np.asarray(decode_image(after)).ravel().tolist()} == {128}


def test_the_interval_of_an_accuracy() -> None:
    """Catches the deviation of one question in place of the mean's, and an interval of width 0 around 100 %."""
    assert half_width([[1.0, 0.0] * 48]) == pytest.approx(1.96 * 0.5 / 10)  # 96 and 4 more
    assert half_width([[1.0] * 96]) == pytest.approx(1.96 * math.sqrt(0.02 * 0.98 / 100))
    two = [[1.0, 0.0] * 48, [1.0] * 96]
    assert half_width(two) == pytest.approx(0.5 * math.hypot(*(half_width([group]) for group in two)))
