"""Rows as lists of turns: what of them is asked, what is the gold, and what is refused rather than guessed."""

from __future__ import annotations

import base64
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from care_jax.data.conversations import split_response
from care_jax.data.own_data import read_jsonl
from care_jax.structs import Record
from tests.pictures import encode, picture

PNG, OTHER = encode(picture(6, 8)), encode(picture(9, 5))
URI = "data:image/png;base64," + base64.b64encode(PNG).decode()
KIND = {"answer_kind": "integer"}


def read(folder: Path, *rows: dict) -> tuple[list[Record], list[str]]:
    """The records of a file of these rows, with a.png and b.png beside it, and the reasons of broken rows."""
    (folder / "a.png").write_bytes(PNG)
    (folder / "b.png").write_bytes(OTHER)
    sound = {"id": "sound", "prompt": "1+2?", "answer": "3"} | KIND
    (folder / "mine.jsonl").write_text("\n".join(map(json.dumps, [*rows, sound])))
    source = read_jsonl(folder / "mine.jsonl", strict=False)
    return list(source)[:-1], [reason for _, reason in source.problems]


FORMS = {
    "openai": {
        "messages": [
            {"role": "system", "content": "You are a helpful assistant."},
            {
                "role": "user",
                "content": [
                    {"type": "text", "text": "Look: "},
                    {"type": "image_url", "image_url": {"url": URI}},
                    {"type": "text", "text": " how many?"},
                ],
            },
            {"role": "assistant", "content": "<think>one, two</think><answer>2</answer>"},
        ]
    },
    "qwen": {
        "messages": [
            {
                "role": "user",
                "content": [
                    {"type": "text", "text": "Look: "},
                    {"type": "image", "image": "a.png"},
                    {"type": "text", "text": " how many?"},
                ],
            },
            {"role": "assistant", "content": [{"type": "text", "text": "<think>one, two</think>\n\n2\n"}]},
        ]
    },
    "sharegpt": {
        "conversations": [
            {"from": "human", "value": "Look: <image> how many?"},
            {"from": "gpt", "value": "<think>one, two</think>\n<answer> 2 </answer>\n"},
        ],
        "image": "a.png",
        "width": 8,
    },
    "llama-factory": {
        "messages": [
            {"role": "user", "content": "Look: <image> how many?"},
            {"role": "assistant", "content": "<think>one, two</think><answer>2</answer>"},
        ],
        "images": ["a.png"],
        "tools": "",
        "system": "",
    },
    "trl": {
        "prompt": [
            {
                "role": "user",
                "content": [
                    {"type": "text", "text": "Look: "},
                    {"type": "image"},
                    {"type": "text", "text": " how many?"},
                ],
            }
        ],
        "completion": [{"role": "assistant", "content": "<think>one, two</think>2"}],
        "images": [{"bytes": base64.b64encode(PNG).decode(), "path": None}],
    },
    "question alone": {
        "messages": [{"role": "user", "content": "Look: <image> how many?"}],
        "images": [{"bytes": None, "path": "a.png"}],
        "answer": "2",
        "rationale": "one, two",
    },
    "a response that is the rationale": {
        "messages": [
            {"role": "user", "content": "Look: <image> how many?"},
            {"role": "assistant", "content": "one, two"},
        ],
        "images": ["a.png"],
        "answer": "2",
    },
}


@pytest.mark.parametrize("form", FORMS)
def test_every_form_is_the_same_question(tmp_path: Path, form: str) -> None:
    """Catches a form that is dropped, an image that loses its place, and a rationale left in the gold."""
    (record,), broken = read(tmp_path, FORMS[form] | KIND)
    assert not broken
    assert (record.prompt, record.images) == ("Look: <image> how many?", (PNG,))
    assert (record.answer, record.rationale, record.answer_kind) == ("2", "one, two", "integer")
    assert (record.id, record.source) == ("mine.jsonl:1", "mine")


def test_a_parquet_file_and_an_array_hold_the_same_rows(tmp_path: Path) -> None:
    """Catches structs whose missing fields are None, and images that are bytes in a column."""
    turns = [
        {"role": "user", "content": [{"type": "image", "text": None}, {"type": "text", "text": "How many?"}]},
        {"role": "assistant", "content": [{"type": "text", "text": "2"}]},
    ]
    row = {"messages": turns, "images": [{"bytes": PNG, "path": None}], "id": "7", **KIND}
    pq.write_table(pa.Table.from_pylist([row]), tmp_path / "mine.parquet")
    (tmp_path / "a.png").write_bytes(PNG)
    (tmp_path / "mine.json").write_text(json.dumps([{**row, "images": ["a.png"]}], indent=1))
    for name in ("mine.parquet", "mine.json"):
        (record,) = read_jsonl(tmp_path / name, strict=True)
        assert record == Record("7", "mine", "<image>How many?", (PNG,), "2", "integer")


def _turns(*turns: tuple[str, object], **columns: object) -> dict:
    return {"messages": [{"role": role, "content": content} for role, content in turns], **KIND, **columns}


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        (_turns(("user", "a?"), ("assistant", "1"), ("user", "b?"), ("assistant", "2")), "one question of the user"),
        (_turns(("assistant", "1"), ("user", "b?")), "one question of the user"),
        (_turns(("user", "a?"), ("user", "b?"), answer="1"), "one question of the user"),
        (_turns(answer="1"), "one question of the user"),
        (_turns(("user", "a?"), ("tool", "1")), "one question of the user"),
        (_turns(("system", "Answer in French."), ("user", "a?"), ("assistant", "1")), "system turn 'Answer in French"),
        (_turns(("user", "a?"), ("assistant", "1"), system="Answer in French."), "system turn 'Answer in French"),
        (_turns(("user", "a?")), "missing answer"),
        ({"messages": [{"role": "user", "content": "a?"}], "answer": "1"}, "missing answer_kind"),
        (_turns(("user", [{"type": "video", "video": "v.mp4"}]), answer="1"), "recording 'v.mp4' cannot be decoded"),
        (_turns(("user", [{"type": "audio", "audio": "a.wav"}]), answer="1"), "texts, images and videos are read"),
        (_turns(("user", "a?"), answer="1", videos=["v.mp4"]), "recording 'v.mp4' cannot be decoded"),
        (_turns(("user", "a?"), answer="1", audios=["a.wav"]), "audios cannot be read"),
        (_turns(("user", 7), answer="1"), "a text or a list of parts, not 7"),
        ({"messages": "a?", **KIND}, "a list of turns, not 'a?'"),
        (_turns(("user", [{"type": "image", "image": "a.png"}]), answer="1", images=["b.png"]), "give them once"),
        (_turns(("user", "<image> a?"), answer="1"), "1 <image> for 0 images"),
        (
            _turns(("user", [{"type": "image_url", "image_url": {"url": "https://a.b/c.png"}}]), answer="1"),
            "nothing is",
        ),
        (_turns(("user", "a?"), ("assistant", "<think>so</think> it is <answer>1</answer>")), "is not a whole number"),
    ],
)
def test_what_would_be_guessed_is_refused(tmp_path: Path, row: dict, reason: str) -> None:
    """Catches turns, system texts and pictures that vanish from a question without a word."""
    records, (broken,) = read(tmp_path, row)
    assert not records
    assert reason in broken


def test_several_lines_of_a_response_are_one_answer(tmp_path: Path) -> None:
    """Catches a response whose every line would be an accepted answer."""
    (record,), _ = read(tmp_path, _turns(("user", "a?"), ("assistant", "red\nblue")) | {"answer_kind": "text"})
    assert record.answer == "red blue"


@pytest.mark.parametrize(
    ("response", "parts"),
    [
        ("<think>a</think><answer>b</answer>", ("a", "b")),
        (" <think>\na\n</think>\n\nb ", ("a", "b")),
        ("b", (None, "b")),
        ("<think>\n\n</think>\n\nb", (None, "b")),
        ("<think>a", (None, "<think>a")),
        ("x <think>a</think>b", (None, "x <think>a</think>b")),
    ],
)
def test_split_response(response: str, parts: tuple[str | None, str]) -> None:
    """Catches a rationale without its end, and text before it that vanishes."""
    assert split_response(response) == parts
