"""Rows that break readers: each costs itself alone, whatever it holds, and is named in one short line."""

from __future__ import annotations

import base64
import itertools
import json
import math
import os
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from care_jax.data import own_data
from care_jax.data.file_formats import array_rows, line_rows, parquet_rows
from care_jax.data.image_column import image_bytes, image_of
from care_jax.data.own_data import read_jsonl
from care_jax.data.parsing import gold_field, option_texts
from care_jax.data.sources import ColumnRange, Dropped, read, split_files
from care_jax.errors import BadRowError, InputError
from tests.pictures import encode, picture

PNG = encode(picture(6, 8))
SOUND = {"id": "s", "images": ["a.png"], "prompt": "How many?", "answer": "3", "answer_kind": "integer"}


def row(**changes: object) -> str:
    """The sound row with changes, as a line."""
    return json.dumps(SOUND | {"id": "r"} | changes)


HOSTILE = {
    "NUL in a path": row(images=["a\0.png"]),
    "lone surrogate in a path": row(images=["\ud800.png"]),
    "long path": row(images=["x/" * 5000]),
    "folder": row(images=["."]),
    "pipe": row(images=["pipe"]),
    "device": row(images=["/dev/zero"]),
    "terminal": row(images=["/dev/tty"]),
    "file of the kernel": row(images=["/proc/self/mem"]),
    "endless file of the kernel": row(images=["/proc/kmsg"]),
    "brackets": "[" * 100_000,
    "brackets in a field": '{"id": "r", "prompt": ' + "[" * 100_000,
    "braces": '{"a":' * 100_000,
    "deep answer": row(answer="{" * 100_000, answer_kind="latex"),
    "deep number": row(answer="(" * 100_000, answer_kind="number"),
    "minus signs": row(answer="-" * 200_000 + "1", answer_kind="number"),
    "minus signs as options": row(choices="-" * 200_000, answer_kind="choice"),
    "integer of 5,000 digits": row().replace('"3"', "9" * 5000),
    "text of 5,000 digits": row(answer="9" * 5000 + "x"),
    "infinity": row().replace('"3"', "Infinity"),
    "NaN": row().replace('"3"', "NaN"),
    "nan as a text": row(answer="nan", answer_kind="latex"),
    "spaces": row(answer="  \t "),
    "characters of no width": row(prompt="\u200b\ufeff"),
    "a module's list": row(answer_kind="sys:path"),
    "a module's module": row(answer_kind="os:path"),
    "no module": row(answer_kind=":"),
    "lone surrogate in the prompt": row(prompt="how many \udfff?"),
    "lone surrogate in the id": row(id="\ud83d"),
    "escape codes in the id": row(id="\x1b[2J\x07", answer="x"),
    "escape codes in a key": row(**{"\x1b[2J": "1"}),
    "4 MB of base64": row(images=["iVBOR" + "A" * (4 << 20)]),
    "broken base64": row(images=["data:image/png;base64,!!!"]),
    "4 MB that are no picture": row(images=["data:image/png;base64," + "A" * (4 << 20)]),
    "an address": row(images=["https://example.org/a.png"]),
    "an empty picture": row(images=[{"bytes": None, "path": None}]),
    "4 MB of answer": row(answer=["x" * (4 << 20)]),
    "a message as image": row(images=[[["a.png"]]]),
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with a.png and a pipe."""
    (tmp_path / "a.png").write_bytes(PNG)
    os.mkfifo(tmp_path / "pipe")
    return tmp_path


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_row_costs_itself_alone(folder: Path, name: str) -> None:
    """Catches a row that ends the file, hangs it, fills the memory or floods the terminal."""
    lines = [json.dumps(SOUND), HOSTILE[name], json.dumps(SOUND | {"id": "last"})]
    (folder / "mine.jsonl").write_text("\n".join(lines))
    source = read_jsonl(folder / "mine.jsonl", strict=False)
    assert [record.id for record in source] == ["s", "last"]
    ((number, reason),) = source.problems
    assert number == 2
    assert reason.isprintable()
    assert len(reason) < 400

    report = list(read("jsonl", [folder / "mine.jsonl"], root=folder, images=folder))
    reasons = [row.reason for row in report if isinstance(row, Dropped)]
    assert all(reason.isprintable() and len(reason) < 200 for reason in reasons)


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_entry_of_an_array_costs_itself_alone(folder: Path, name: str) -> None:
    """Catches an entry that takes the rest of an array with it."""
    hostile = HOSTILE[name] + {"brackets": "]", "braces": "}"}.get(name, "") * 100_000
    if name == "brackets in a field":
        hostile += "]" * 100_000 + "}"
    (folder / "mine.json").write_text(f"[{json.dumps(SOUND)}, {hostile}, {json.dumps(SOUND | {'id': 'last'})}]")
    source = read_jsonl(folder / "mine.json", strict=False)
    assert [record.id for record in source] == ["s", "last"]
    assert [number for number, _ in source.problems] == [2]


@pytest.mark.parametrize("missing", [None, math.nan, "", " \n"])
@pytest.mark.parametrize("key", ["images", "choices", "rationale", "source", "meta"])
def test_a_missing_optional_cell_is_as_if_left_out(folder: Path, key: str, missing: object) -> None:
    """Catches null, or NaN as pandas writes it, dropping a sound row."""
    (folder / "mine.jsonl").write_text(row(**{key: missing}) + "\n" + row(id="without"))
    first, second = read_jsonl(folder / "mine.jsonl", strict=True)
    assert (first.choices, first.rationale, first.source) == (second.choices, second.rationale, second.source)
    assert first.meta is None
    assert first.images == (() if key == "images" else second.images)


@pytest.mark.parametrize("missing", [math.nan, None, math.inf, -math.inf, "", " \n", "\u200b", True])
def test_a_missing_cell_is_no_text(missing: object) -> None:
    """Catches the answer "nan", which a float column gives where a cell is missing."""
    with pytest.raises(BadRowError, match="answer must be a text"):
        gold_field({"answer": missing}, "answer")


def test_missing_cells_of_every_format_are_none(tmp_path: Path) -> None:
    """Catches NaN that reaches a reader from parquet, JSON lines or an array."""
    rows = [{"answer": 1.5, "n": 1}, {"answer": math.nan, "n": 2}]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "a.parquet")
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (tmp_path / "a.json").write_text(json.dumps(rows))
    wanted = [(1, {"answer": 1.5, "n": 1}), (2, {"answer": None, "n": 2})]
    assert list(parquet_rows(tmp_path / "a.parquet")) == wanted
    assert list(line_rows(tmp_path / "a.jsonl")) == wanted
    assert list(array_rows(tmp_path / "a.json")) == wanted


def _parquet(path: Path, **columns: pa.Array) -> Path:
    pq.write_table(pa.table(columns), path)
    return path


def _not_utf8(*cells: bytes) -> pa.Array:
    binary = pa.array(cells, pa.binary())
    return pa.Array.from_buffers(pa.string(), len(binary), binary.buffers())


def test_damage_in_unused_columns_does_no_harm(tmp_path: Path) -> None:
    """Catches bad UTF-8 and times past the year 9999 in a column that nobody reads."""
    path = _parquet(
        tmp_path / "train.parquet",
        problem=pa.array(["1+2?", "2+2?"]),
        answer=pa.array(["3", "4"]),
        note=_not_utf8(b"\xff\xfe", b"\xff"),
        made=pa.array([1 << 60, 1], pa.timestamp("ms")),
    )
    assert [r.record.answer for r in read("easyr1", [path], root=path, images=tmp_path)] == ["3", "4"]


def test_a_bad_cell_is_one_broken_row(tmp_path: Path) -> None:
    """Catches a cell that takes its whole batch or file with it."""
    path = _parquet(
        tmp_path / "train.parquet",
        problem=_not_utf8(b"1+2?", b"\xff\xfe", b"3+3?"),
        answer=pa.array(["3", "4", "6"]),
    )
    rows = list(read("easyr1", [path], root=path, images=tmp_path))
    assert [getattr(row, "reason", None) for row in rows] == [None, "unreadable cell", None]
    assert rows[1].where == "train.parquet:2"


@pytest.mark.parametrize(
    "options",
    [
        "-" * 200_000,
        "[" * 200_000,
        "['a'" + " " * 200_000 + "x",
        "['a' 'b']",
        "[b'a']",
        "[f'{1}']",
        "['\\x1']",
        "{'a'}",
    ],
)
def test_options_that_spell_no_list(options: str) -> None:
    """Catches a parser that recurses, and neighbouring texts joined to one option."""
    with pytest.raises(BadRowError, match="do not spell a list of texts"):
        option_texts(options)


@pytest.mark.parametrize(
    ("spelled", "texts"),
    [
        ("['a', \"it's\"]", ("a", "it's")),
        ("('a',)", ("a",)),
        (" [ 'a' , 'b' , ] ", ("a", "b")),
        (r"['\\frac{1}{2}', 'a\'b']", (r"\frac{1}{2}", "a'b")),
        ('["[1, 2]", "{3}"]', ("[1, 2]", "{3}")),
        ("None", None),
    ],
)
def test_options_that_spell_a_list(spelled: str, texts: tuple[str, ...] | None) -> None:
    """Catches quotes and brackets inside an option taken for its end."""
    assert option_texts(spelled) == texts


@pytest.mark.parametrize(
    "value",
    [
        "a.png",
        PNG,
        {"bytes": PNG, "path": None},
        {"bytes": None, "path": "a.png"},
        {"path": "a.png"},
        {"bytes": base64.b64encode(PNG).decode(), "path": "other.png"},
        "data:image/png;base64," + base64.b64encode(PNG).decode(),
        "DATA:;base64," + base64.encodebytes(PNG).decode(),
        "data:image/png," + "".join(f"%{byte:02x}" for byte in PNG),
    ],
    ids=["path", "bytes", "struct", "struct of a path", "no bytes", "base64 in a struct", "URI", "lines", "percent"],
)
def test_forms_of_an_image(folder: Path, value: Any) -> None:
    """Catches a form in which people's files have their images, and bytes that change on the way."""
    assert image_bytes(image_of(value, folder)) == PNG
    assert image_bytes(image_of((folder / "a.png").as_uri(), Path("elsewhere"))) == PNG


def test_a_file_that_is_too_large_is_not_read(folder: Path) -> None:
    """Catches a file larger than the memory."""
    with (folder / "large.png").open("wb") as file:
        file.truncate(1 << 40)
    with pytest.raises(BadRowError, match="has more than 256 MiB"):
        image_bytes(folder / "large.png")


def test_images_inside_a_file_have_a_limit(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches a file whose images fill the memory, without a word on what to do."""
    monkeypatch.setattr(own_data, "_MOST_EMBEDDED", 3 * len(PNG))
    uri = "data:image/png;base64," + base64.b64encode(PNG).decode()
    lines = [row(id=str(number), images=[uri]) for number in range(4)]
    (folder / "mine.jsonl").write_text("\n".join(lines[:3]))
    assert len(read_jsonl(folder / "mine.jsonl", strict=True)) == 3
    (folder / "mine.jsonl").write_text("\n".join(lines))
    with pytest.raises(ValueError, match=r"--source=jsonl --root=.*mine.jsonl"):
        read_jsonl(folder / "mine.jsonl", strict=True)


def test_a_line_without_end_is_one_broken_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches a line that is larger than the memory, and rows behind it that are lost."""
    monkeypatch.setattr("care_jax.data.file_formats._LONGEST_ROW", 64)
    (tmp_path / "a.jsonl").write_text('{"a": 1}\n' + "x" * 1000 + '\n{"a": 2}\n' + '{"a": "' + "y" * 55 + '"}\n')
    found = list(line_rows(tmp_path / "a.jsonl"))
    assert [value if isinstance(value, dict) else value.reason for _, value in found[:3]] == [
        {"a": 1},
        "too long",
        {"a": 2},
    ]
    assert [number for number, _ in found] == [1, 2, 3, 4]


def test_a_row_without_a_column_to_filter_by_is_outside(tmp_path: Path) -> None:
    """Catches one row of JSON lines without the column that ends a preparation."""
    lines = [{"problem": "1?", "answer": "1", "rate": 0.5}, {"problem": "2?", "answer": "2"}]
    (tmp_path / "train.jsonl").write_text("\n".join(map(json.dumps, lines)))
    files = split_files("easyr1", tmp_path, "train")
    kept, dropped = read("easyr1", files, root=tmp_path, images=tmp_path, ranges=[ColumnRange("rate", 0, 1)])
    assert (kept.record.answer, dropped.reason) == ("1", "rate outside 0 .. 1")


@pytest.mark.parametrize(
    ("text", "good", "bad"),
    [
        ('[{"n": 1}}, {"n": 2}]', [1, 2], [2]),
        ('[}, {"n": 1}]', [1], [1]),
        ('[{"n": 1}, {"n": ]}, {"n": 2}]', [1, 2], [2, 3]),
    ],
    ids=["one too many", "first", "crossed"],
)
def test_a_bracket_that_closes_nothing_is_one_broken_entry(
    tmp_path: Path, text: str, good: list[int], bad: list[int]
) -> None:
    """Catches an array whose reading stands still at a stray bracket, for ever."""
    (tmp_path / "a.json").write_text(text)
    found = list(itertools.islice(array_rows(tmp_path / "a.json"), 9))
    assert [row["n"] for _, row in found if isinstance(row, dict)] == good
    assert [number for number, row in found if not isinstance(row, dict)] == bad


@pytest.mark.parametrize("behind", ['[{"n": 2}]', ', {"n": 2}]', "\n\n x", " " * (2 << 20) + "{}"])
def test_what_stands_behind_an_array_is_not_passed_over(tmp_path: Path, behind: str) -> None:
    """Catches the rows of a second array, as `cat a.json b.json` writes them, lost without a word."""
    (tmp_path / "a.json").write_text('[{"n": 1}]' + behind)
    with pytest.raises(InputError, match="goes on behind its JSON array, after row 1"):
        list(array_rows(tmp_path / "a.json"))
    (tmp_path / "a.json").write_text('[{"n": 1}]\n \n')
    assert list(array_rows(tmp_path / "a.json")) == [(1, {"n": 1})]


def test_a_column_whose_name_is_not_utf8_is_told_in_one_line(tmp_path: Path) -> None:
    """Catches a traceback for a flipped bit in the name of a column."""
    path = _parquet(tmp_path / "a.parquet", problem=pa.array(["1+2?"]), answer=pa.array(["3"]), strange=pa.array([1]))
    path.write_bytes(path.read_bytes().replace(b"strange", b"str\xffnge"))
    with pytest.raises(InputError, match="is not a readable parquet file"):
        list(parquet_rows(path))


@pytest.mark.parametrize("text", ["nan", "<image>nan", "<image> NaN\n", "NaT", "<NA>"])
@pytest.mark.parametrize("key", ["prompt", "rationale"])
def test_a_missing_cell_that_became_a_text_is_no_question(folder: Path, key: str, text: str) -> None:
    """Catches a table that went through str(): a question, or a rationale to learn, that reads "nan"."""
    (folder / "mine.jsonl").write_text("\n".join([json.dumps(SOUND), row(**{key: text})]))
    source = read_jsonl(folder / "mine.jsonl", strict=False)
    assert len(source) == 1 + (key == "rationale" and "image" in text)
    assert all(f"{key} is" in problem and "missing cell" in problem for _, problem in source.problems)


def test_columns_of_numbers_may_stand_beside_a_row(tmp_path: Path) -> None:
    """Catches the index that pandas writes, or a pass rate to filter by, that drops every row."""
    table = pa.table(
        {name: [text, text] for name, text in SOUND.items() if name not in ("id", "images")}
        | {"id": ["1", "2"], "rate": [0.5, 0.9], "__index_level_0__": [3, 7]}
    )
    pq.write_table(table, tmp_path / "train.parquet")
    assert len(read_jsonl(tmp_path / "train.parquet", strict=True)) == 2
    (tmp_path / "train.jsonl").write_text("\n".join(map(json.dumps, table.to_pylist())))
    ranges = [ColumnRange("rate", 0.8, 1)]
    for name in ("train.parquet", "train.jsonl"):
        rows = list(read("jsonl", [tmp_path / name], root=tmp_path, images=tmp_path, ranges=ranges))
        assert [getattr(found, "reason", "kept") for found in rows] == ["rate outside 0.8 .. 1", "kept"]
