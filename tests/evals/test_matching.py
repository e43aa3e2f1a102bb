"""Published rows whose ids are not the benchmark's: found by image and question, or counted, never guessed."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

import pytest

from care_jax.errors import InputError
from care_jax.evals.matching import Questions
from care_jax.evals.responses import read_responses
from care_jax.structs import Record
from tests.data_sets import picture

PICTURES = [picture(n) for n in range(7)]
PICTURE_1, PICTURE_5 = (base64.b64encode(PICTURES[n]).decode() for n in (1, 5))
OPTIONS = "\nA. 1\nB. 2\nAnswer with the letter of the right option."


def _record(name: str, prompt: str, *images: int) -> Record:
    return Record(f"b/{name}", "b", prompt, tuple(PICTURES[n] for n in images), "1", "integer")


RECORDS = [
    _record("human/41.png:1", "<image>How many bars?", 0),
    _record("human/42.png:2", "<image>How many bars?", 1),
    _record("human/41.png:3", "<image>Which  year is\nthe highest?", 0),
    _record("7", "<image>Hint: Answer.\nQuestion: Find x.\nChoices:\n(A) 1\n(B) 2", 2),
    _record("8", "<image>Hint: Answer.\nQuestion: Find x.\nChoices:\n(A) 3\n(B) 4", 3),
    _record("9", "Which of <image> and <image>?" + OPTIONS, 4, 5),
    _record("10", "<image>Where?\nAnswer with one number, word or phrase.", 6),
    _record("11", "<image>Hint: Answer.\nQuestion: How old? (Unit: years)", 6),
]
HUMAN = ["b/human/41.png:1", "b/human/42.png:2", "b/human/41.png:3"]


def _read(folder: Path, rows: Any, records: list[Record] = RECORDS) -> dict[str, list[str]]:
    (folder / "file.json").write_text(json.dumps(rows))
    return read_responses(folder / "file.json", Questions(records), id_field="id", response_field="response")


# A row without its response, the id that it answers or None, and the way that the line names.
ROWS: list[tuple[dict[str, Any], str | None, str]] = [
    ({"id": 0, "question": "Which year is the highest?"}, HUMAN[2], "by question alone"),
    ({"query": " Which year\tis the  highest? "}, HUMAN[2], "by question alone"),
    ({"query": "Which year is the highest? Think first."}, None, "whose question the benchmark does not have"),
    ({"query": "which year is the highest?"}, None, "whose question the benchmark does not have"),
    ({"id": "x", "query": "Which?"}, None, "ids that the benchmark does not have, as x"),
    ({"id": "x"}, None, "ids that the benchmark does not have, as x"),
    ({"imgname": "41.png", "query": "How many bars?"}, HUMAN[0], "by image and question"),
    ({"image": "png/42.png", "query": "How many bars?"}, HUMAN[1], "by image and question"),
    ({"figure_id": "42", "query": "How many bars?"}, HUMAN[1], "by image and question"),
    ({"imgname": "43.png", "query": "How many bars?"}, None, "another picture"),
    ({"imgname": "43.png", "query": "Which year is the highest?"}, None, "another picture"),
    ({"query": "How many bars?"}, None, "with several pictures"),
    ({"image": "image", "query": "How many bars?"}, None, "another picture"),
    ({"image": "one.bin", "query": "How many bars?"}, HUMAN[1], "by image and question"),
    ({"image": {"bytes": base64.b64encode(PICTURES[0]).decode()}, "query": "How many bars?"}, HUMAN[0], "by image"),
    ({"image": "five.bin", "query": "Where?"}, None, "another picture"),
    ({"question": "Find x."}, None, "with several pictures"),
    ({"question": "Find x.", "image": "images/8.jpg"}, "b/8", "by image and question"),
    ({"query": "Hint: Answer.\nQuestion: Find x.\nChoices:\n(A) 3\n(B) 4"}, "b/8", "by question alone"),
    ({"query": "Find x.\nA. 3\nB. 4"}, "b/8", "by question alone"),
    ({"query": "Find x.\nA. 3\nB. 5"}, None, "whose question the benchmark does not have"),
    ({"query": "Find x.", "choices": ["(A) 3", "(B) 4"]}, "b/8", "by question alone"),
    ({"query": "Find x.", "options": ["30", "40"]}, None, "whose question the benchmark does not have"),
    ({"query": "Find x.", "options": ["A", "B"], "image": "8.jpg"}, "b/8", "by image and question"),
    ({"question": "Which of <image 1> and <image 2>?\n(A) 1\n(B) 2"}, "b/9", "by question alone"),
    ({"question": "Which of <image 1> and <image 2>?\n(A) 2\n(B) 1"}, None, "whose question the benchmark does not"),
    ({"question": "Where?\nA. here\nB. there"}, "b/10", "by question alone"),  # asked without options
    ({"id": "8", "query": "Find x.\nA. 3\nB. 4"}, "b/8", "by id"),
    ({"query": "Find x.", "options": ["3", "5"], "image": "8.jpg"}, None, "whose question the benchmark does not have"),
    ({"question": "Which of <image 2> and <image 1>?"}, "b/9", "by question alone"),
    ({"question": "Which of <image 1> and <image 2>?", "images": ["five.bin", "four.bin"]}, "b/9", "by image"),
    ({"question": "Which of <image 1> and <image 2>?", "images": ["five.bin", "one.bin"]}, None, "another picture"),
    ({"doc": {"question": "Where?"}, "doc_id": 3}, "b/10", "by question alone"),
    ({"question": "How old?"}, "b/11", "by question alone"),
    ({"id": "8", "query": "Find x."}, "b/8", "by id"),
    ({"id": "8", "prompt": "You are careful. Find x. Think first."}, "b/8", "by id"),
    ({"image": {"path": "41.png", "bytes": PICTURE_1}, "query": "How many bars?"}, HUMAN[1], "by image and question"),
    ({"image": {"path": "41.png", "bytes": PICTURE_5}, "query": "How many bars?"}, None, "another picture"),
    ({"id": "8", "question": "Where?"}, "b/10", "by question alone"),  # of a file with sound ids
    ({"id": "8", "question": "How many bars?"}, None, "with several pictures"),
    ({"id": "8", "question": ""}, "b/8", "by id"),
    ({"id": "8", "question": None, "image": 7}, "b/8", "by id"),
]


@pytest.mark.parametrize(("row", "record_id", "way"), ROWS)
def test_a_row(tmp_path: Path, caplog: pytest.LogCaptureFixture, row: dict, record_id: str | None, way: str) -> None:
    """Catches a question taken for one of the same words, and one that is not found although it is there once."""
    for name, number in (("one", 1), ("four", 4), ("five", 5)):
        (tmp_path / f"{name}.bin").write_bytes(PICTURES[number])
    sound = {"id": "7", "question": "Find x.", "response": "sound"}
    found = _read(tmp_path, [{**row, "response": "A"}, sound])
    assert found == ({record_id: ["A"]} if record_id else {}) | {"b/7": ["sound"]}
    (line,) = caplog.messages
    assert way in line
    assert ("left out" in line) == (record_id is None)


def test_one_line_counts_the_ways(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Catches rows that vanish without a word."""
    rows = [
        {"imgname": "41.png", "query": "How many bars?", "response": "1"},
        {"imgname": "43.png", "query": "How many bars?", "response": "2"},
        {"imgname": "44.png", "query": "How many bars?", "response": "3"},
        {"query": "Which year is the highest?", "response": "4"},
        {"id": "9", "response": "5"},
        {"id": "12", "response": "6"},
        {"problem_version": "Text Only", "id": "7", "response": "7"},
    ]
    assert _read(tmp_path, {"summary": {"n": 7}, "records": rows}) == {HUMAN[0]: ["1"], HUMAN[2]: ["4"], "b/9": ["5"]}
    assert caplog.messages == [
        f"{tmp_path}/file.json: responses found 1 by id, 1 by image and question, 1 by question alone; left out 1 ids "
        "that the benchmark does not have, as 12; left out 2 whose question has another picture in the benchmark, as "
        "row 2; left out 1 of MathVerse's version Text Only"
    ]


def test_several_rows_of_one_question_need_the_picture(tmp_path: Path) -> None:
    """Catches the first of two charts with the same question, of which the benchmark has only one, taken for it."""
    asked = {"query": "Where?", "response": "A"}
    sound = {"id": "7", "response": "sound"}
    assert _read(tmp_path, [asked, asked, sound]) == {"b/7": ["sound"]}
    (tmp_path / "6.bin").write_bytes(PICTURES[6])
    assert _read(tmp_path, [asked, {**asked, "image": "6.bin", "response": "B"}, sound])["b/10"] == ["B"]
    twice = {**asked, "image": "6.bin"}
    with pytest.raises(InputError, match="json:2 is the second response to 'row 2'"):
        _read(tmp_path, [twice, twice])
    with pytest.raises(InputError, match="json:2 is the second response to 'row 2'"):
        _read(tmp_path, [{"id": "10", "response": "A"}, asked])


OTHERS = [
    {"id": "7", "question": "What is missing?"},
    {"id": "8", "question": "Who wins?"},
    {"id": "9", "question": "Which of these?"},
]


def test_ids_of_another_benchmark(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Catches a file of another benchmark that is scored because both number their questions."""
    rows = [{**row, "response": "A"} for row in OTHERS]
    with pytest.raises(
        InputError, match=r"ids of this benchmark with other questions: row 1, '7', asks 'What is missi"
    ):
        _read(tmp_path, rows)
    agreeing = [{"id": "10", "question": "Where?", "response": "A"}]
    with pytest.raises(InputError, match="other questions"):
        _read(tmp_path, rows + agreeing)
    assert list(_read(tmp_path, rows[:1] + agreeing)) == ["b/7", "b/10"]
    assert "1 by id, 1 by id though worded otherwise" in caplog.text


def test_numbers_that_begin_elsewhere(tmp_path: Path) -> None:
    """Catches a file numbered from 0 of which a row is taken by its number, since its neighbour asks the same."""
    records = [_record(str(n), f"<image>{text}", n) for n, text in enumerate("xxyz", start=1)]
    rows = [{"id": n, "question": text, "response": f"{n}"} for n, text in enumerate("xxyz")]
    assert _read(tmp_path, rows, records) == {"b/3": ["2"], "b/4": ["3"]}
    pictured = [{**row, "image": f"{n + 1}.bin"} for n, row in enumerate(rows)]
    for n in range(1, 5):
        (tmp_path / f"{n}.bin").write_bytes(PICTURES[n])
    assert _read(tmp_path, pictured, records) == {f"b/{n}": [f"{n - 1}"] for n in range(1, 5)}


def test_names_that_begin_elsewhere(tmp_path: Path) -> None:
    """Catches a picture's number taken for its question's, in a file that numbers pictures from 0."""
    records = [_record(str(n), f"<image>{text}", n) for n, text in enumerate("xxyz", start=1)]
    rows = [{"question": text, "image": f"images/{n}.jpg", "response": f"{n}"} for n, text in enumerate("xxyz")]
    assert _read(tmp_path, rows, records) == {"b/3": ["2"], "b/4": ["3"]}
    named_alike = [{**row, "image": f"images/{n}.jpg"} for n, row in enumerate(rows, start=1)]
    assert _read(tmp_path, named_alike, records) == {f"b/{n}": [f"{n - 1}"] for n in range(1, 5)}


def test_an_id_with_the_text_of_another_question(tmp_path: Path) -> None:
    """Catches a text that is all of another question, and a part of this one, taken for this one's."""
    texts = ("How many bars?", "How many bars? Count the red ones.", "Where?", "Who?")
    records = [_record(str(n), f"<image>{text}", n) for n, text in enumerate(texts)]
    rows = [{"id": n, "question": texts[n], "response": f"{n}"} for n in range(1, 4)]
    assert _read(tmp_path, rows, records) == {f"b/{n}": [f"{n}"] for n in range(1, 4)}
    rows[0]["question"] = texts[0]
    assert _read(tmp_path, rows, records) == {"b/0": ["1"], "b/2": ["2"], "b/3": ["3"]}
    rows[0]["question"] = "Look. How many bars? Count the red ones."
    assert list(_read(tmp_path, rows, records)) == ["b/1", "b/2", "b/3"]


def test_ids_count_where_all_prompts_are_one(tmp_path: Path) -> None:
    """Catches MMMU-Pro's questions in pictures refused, whose rows have a text that the records lack."""
    records = [_record(name, "<image>Answer the question in the picture.", 0) for name in "78"]
    rows = [{"id": "7", "question": "What is missing?", "response": "A"}]
    assert _read(tmp_path, rows, records) == {"b/7": ["A"]}


def test_nothing_matches(tmp_path: Path) -> None:
    """Catches an empty table for a file of other questions, and a file of Text Only rows scored by its numbers."""
    with pytest.raises(InputError, match=r"no id in .* matches this benchmark \(found row 1, expected e\.g\. b/human"):
        _read(tmp_path, [{"question": "Who wins?", "response": "A"}])
    text_only = [{"id": "7", "problem_version": "Text Only", "response": "A"}]
    with pytest.raises(InputError, match=r"answers MathVerse's version Text Only, .*; give the file"):
        _read(tmp_path, text_only)
    with pytest.raises(InputError, match="json:1 has no 'id', but response; name the fields"):
        _read(tmp_path, [{"response": "A"}])
