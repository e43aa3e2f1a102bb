"""The held-out answers that a run keeps for its report."""

from __future__ import annotations

import base64

from care_jax.run.samples import MAX_CHANGED, held_out_answers
from tests.pictures import encode, picture, question


def asked(verdicts: str) -> dict[int, dict]:
    """Judged questions 10, 11, ..: r is answered right, w wrong, and - not at all."""
    common = {
        "source": "count",
        "image_ids": [],
        "prompt": "<image>?",
        "answer": "3",
        "kind": "integer",
        "choices": None,
    }
    items = {}
    for number, verdict in enumerate(verdicts):
        answered = {
            "responses": [f"says {verdict}", "another"],
            "extracted": [verdict, None],
            "parsed": [True, True],
            "reasons": ["", ""],
            "correct": [verdict == "r", verdict != "r"],
            "format_ok": [True, True],
        }
        if verdict == "-":
            answered = {name: [] for name in answered}
        items[10 + number] = {"id": f"q{number}", **common, **answered}
    return items


def test_the_first_evaluation_keeps_all_answers_without_images():
    """Catches a later answer that has nothing to be compared with, and a photo for each question of a large set."""
    answers, changes = held_out_answers(asked("rw-"), {}, [])
    assert [(one["index"], one["response"], one["correct"], one["images"]) for one in answers] == [
        (10, "says r", True, []),
        (11, "says w", False, []),
    ]
    assert changes == {}


def test_later_ones_keep_what_changed():
    """Catches answers that stayed as they were, right and wrong exchanged, images or a verdict of another record."""
    pictures = [encode(picture(28, 28 + 28 * number)) for number in range(7)]
    source = [question("?")] * 10 + [question("<image>?", data) for data in pictures]
    source[14] = question("<image><image>?", pictures[4], b"no picture" * 10_000)
    before = {10: False, 11: False, 12: True, 13: True, 14: False, 15: True}
    first = {(index, f"q{index - 10}"): verdict for index, verdict in before.items()}
    first |= {(16, "of other data"): False}
    answers, changes = held_out_answers(asked("rwwrr-r"), first, source)
    assert [(one["index"], one["id"], one["correct"], one["extracted"]) for one in answers] == [
        (10, "q0", True, "r"),
        (12, "q2", False, "w"),
        (14, "q4", True, "r"),
    ]
    assert changes == {"eval/newly_right": 2.0, "eval/newly_wrong": 1.0}
    for answer, number in zip(answers[:2], (0, 2), strict=True):
        (image,) = answer["images"]
        assert base64.b64decode(image.partition(",")[2]) == pictures[number]
    assert answers[2]["images"] == []  # it can no longer be read


def test_few_of_many_are_kept_from_all_over():
    """Catches a file of thousands of pictures, a skill that fills it alone, and a kind that crowds the other out."""
    first = {(10 + number, f"q{number}"): number >= 60 for number in range(70)}
    answers, changes = held_out_answers(asked("r" * 60 + "w" * 10), first, [question("?")] * 80)
    assert changes == {"eval/newly_right": 60.0, "eval/newly_wrong": 10.0}
    assert [one["index"] for one in answers if one["correct"]] == list(range(10, 70, 60 // MAX_CHANGED))
    assert [one["index"] for one in answers if not one["correct"]] == list(range(70, 80))
