"""Bring-your-own data: every kind of broken row is found, named and dropped, and good rows arrive unchanged."""

from __future__ import annotations

import datetime
import errno
import io
import json
import math
import os
import pickle
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from care_jax.data import loader
from care_jax.data.own_data import read_jsonl
from tests.pictures import encode, picture


def _png(shade: int) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (4, 4), (shade, 0, 0)).save(buffer, "PNG")
    return buffer.getvalue()


def _row(**changes: object) -> dict:
    row = {"id": "r1", "images": ["a.png"], "prompt": "how many?", "answer": "3", "answer_kind": "integer"}
    return {key: value for key, value in {**row, **changes}.items() if value is not None}


def _write(folder: Path, *rows: dict | str | bytes) -> Path:
    (folder / "a.png").write_bytes(_png(1))
    (folder / "b.png").write_bytes(_png(2))
    lines = [
        row if isinstance(row, bytes) else (row if isinstance(row, str) else json.dumps(row)).encode() for row in rows
    ]
    path = folder / "mine.jsonl"
    path.write_bytes(b"\n".join(lines))
    return path


def test_good_rows_arrive_unchanged(tmp_path: Path) -> None:
    """Catches lost fields, images in the wrong order, and re-encoded images."""
    choice = _row(
        id="r2",
        images=["b.png", "a.png"],
        prompt="first <image> then <image>?",
        answer="B",
        answer_kind="choice",
        choices=["red", "blue"],
        rationale="it is blue",
        source="colours",
    )
    source = read_jsonl(_write(tmp_path, _row(), choice, _row(id="r3", images=[], prompt="1+2?")), strict=True)
    assert len(source) == 3
    assert source.problems == []
    first, second, third = source
    assert (first.prompt, first.images, first.source) == ("<image>how many?", (_png(1),), "mine")
    assert (first.choices, first.rationale, first.draft) == (None, None, None)
    assert (second.prompt, second.images) == ("first <image> then <image>?", (_png(2), _png(1)))
    assert (second.choices, second.rationale, second.source) == (("red", "blue"), "it is blue", "colours")
    assert third.prompt == "1+2?"
    assert pickle.loads(pickle.dumps(source))[1] == second


META = {"points": 2.5, "sizes": [1, 2], "inside": {"é": ["x", None]}, "kind": "a\tb", "done": True}
LONG = "meta has 65537 bytes as JSON; at most 65536 are allowed"


def _meta(source: object) -> list[object]:
    return [None if record.meta is None else json.loads(record.meta) for record in source]  # type: ignore[attr-defined]


@pytest.mark.parametrize("form", ["rows", "turns"])
@pytest.mark.parametrize("ending", ["jsonl", "json", "parquet"])
def test_meta_arrives_from_every_format(tmp_path: Path, ending: str, form: str) -> None:
    """Catches an object that is dropped, refused as an unknown key, or that stays a text."""
    turns = {"messages": [{"role": "user", "content": "1+2?"}], "answer": "3", "answer_kind": "integer"}
    row = turns if form == "turns" else _row(images=None)
    metas = [META, META | {"sizes": []}, {"a": None}]
    rows = [{**row, "id": str(n), "meta": meta} for n, meta in enumerate(metas)]
    rows += [{**row, "id": "text", "meta": json.dumps(META)}, {**row, "id": "null", "meta": "null"}]
    rows += [{**row, "id": "none", "meta": None}, {**row, "id": "empty", "meta": ""}, {**row, "id": "without"}]
    path = tmp_path / f"mine.{ending}"
    if ending == "parquet":  # a column of structs, or of texts; one has one type
        for n, one in enumerate(rows):
            pq.write_table(pa.Table.from_pylist([one]), path)
            (read,) = _meta(read_jsonl(path, strict=True))
            assert read == [*metas, META, None, None, None, None][n]
        return
    path.write_text(json.dumps(rows) if ending == "json" else "\n".join(map(json.dumps, rows)))
    assert _meta(read_jsonl(path, strict=True)) == [*metas, META, None, None, None, None]


@pytest.mark.parametrize(
    "meta",
    [
        b"bytes",
        [1],
        3.5,
        "free words",
        datetime.date(2020, 1, 1),
        {"a": b"x"},
        {"a": math.nan},
        {"a": datetime.date(2020, 1, 1)},
    ],
)
def test_a_cell_of_parquet_that_is_no_json_is_a_broken_row(tmp_path: Path, meta: object) -> None:
    """Catches a date or bytes that end the reading, or reach a reward function as something else."""
    path = tmp_path / "mine.parquet"
    rows = [_row(id="good", images=None), _row(images=None, meta=meta), _row(id="last", images=None)]
    table = pa.Table.from_pylist(rows, schema=pa.Table.from_pylist(rows[1:2]).schema)
    pq.write_table(table, path)
    source = read_jsonl(path, strict=False)
    assert [record.id for record in source] == ["good", "last"]
    ((number, reason),) = source.problems
    assert number == 2
    assert reason.startswith("meta ")


def test_meta_has_a_limit_in_bytes(tmp_path: Path) -> None:
    """Catches a limit on characters, and one that refuses what fits."""
    fits = {"a": "é" * (32768 - len('{"a": ""}') // 2 - 1) + "x"}
    assert len(json.dumps(fits, ensure_ascii=False).encode()) == 65536
    rows = [_row(id="fits", meta=fits), _row(meta={"a": fits["a"] + "x"})]
    source = read_jsonl(_write(tmp_path, *rows), strict=False)
    assert [record.id for record in source] == ["fits"]
    assert source.problems == [(2, LONG)]


@pytest.mark.parametrize(
    ("broken", "reason"),
    [
        ('{"id": ', "not JSON"),
        ("[1]", "a JSON object is needed, not list"),
        (b'{"id": "\xff"}', "not UTF-8"),
        (_row(answer=None, prompt=None), "missing prompt, answer"),
        (_row(images=["c.png"]), "no image"),
        (_row(images=["torn.png"]), "not a readable image"),
        (_row(images=["torn.jpg"]), "not a readable image"),
        (_row(images=["torn.gif"]), "not a readable image"),
        (_row(images=["flipped.png"]), "not a readable image"),
        (_row(images=["text.png"]), "not a readable image"),
        (_row(images=["line.png"]), "aspect ratio"),
        (_row(prompt="<|im_end|>how many?"), "prompt spells <|im_end|>"),
        (_row(prompt="<video>how many?"), "prompt spells <video>"),
        (_row(prompt="how many \ud83d?"), "prompt is not UTF-8"),
        (_row(answer="3</answer>", answer_kind="text"), "answer spells </answer>"),
        (_row(rationale="<think>3"), "rationale spells <think>"),
        (_row(answer=" "), "answer must be a string that is not empty"),
        (_row(answer=3), "answer must be a string that is not empty, not 3"),
        (_row(id=7), "id must be a string"),
        (_row(images="a.png"), "images must be a list"),
        (_row(answer="three"), "three"),
        (_row(answer_kind="colour"), "colour"),
        (_row(hint="x"), "unknown key hint"),
        (_row(answer="A", answer_kind="choice"), "needs choices"),
        (_row(answer="C", answer_kind="choice", choices=["x", "y"]), "gold 'C'"),
        (_row(answer="z", answer_kind="choice", choices=["x", "y"]), "gold 'z'"),
        (_row(id="good"), "id 'good' was used in row 1"),
        (_row(meta=[1]), "meta must be a JSON object, not [1]"),
        (_row(meta=3), "meta must be a JSON object, not 3"),
        (_row(meta=True), "meta must be a JSON object, not True"),
        (_row(meta="GPT-4"), "meta is no JSON object"),
        (_row(meta="[1]"), "meta must be a JSON object, not [1]"),
        (_row(meta='"text"'), "meta must be a JSON object, not 'text'"),
        (_row(meta='{"a": 1'), "meta is no JSON object"),
        (_row(meta='{"a": NaN}'), "meta is no JSON object"),
        (_row(meta={"a": [math.inf]}), "meta is no JSON object"),
        (_row(meta={"a": "\ud83d"}), "meta is no JSON object"),
        (_row(meta={"\ud83d": 1}), "meta is no JSON object"),
        (_row(meta='{"a": "\\ud83d"}'), "meta is no JSON object"),
        (_row(meta='{"a": ' + "9" * 5000 + "}"), "meta is no JSON object"),
        (_row(meta='{"a": ' + "[" * 50_000 + "]" * 50_000 + "}"), "meta is no JSON object"),
        (_row(meta={"a": "x" * 70_000}), "meta has 70009 bytes as JSON; at most 65536"),
        (_row(prompt="<image><image>?"), "holds 2 <image> for 1 images"),
        (_row(images=["a.png", "b.png"], prompt="<image>?"), "holds 1 <image> for 2 images"),
    ],
)
def test_broken_row_is_dropped_with_its_reason_or_refused(tmp_path: Path, broken: dict | str, reason: str) -> None:
    """Catches a broken row that gets through, takes good ones with it, or is reported at the wrong line."""
    for name, kind in (("torn.png", "PNG"), ("torn.jpg", "JPEG"), ("torn.gif", "GIF")):
        whole = encode(picture(64, 48), kind)
        (tmp_path / name).write_bytes(whole[: len(whole) // 2])
    (tmp_path / "flipped.png").write_bytes(_png(3)[:48] + bytes([_png(3)[48] ^ 1]) + _png(3)[49:])
    (tmp_path / "line.png").write_bytes(encode(picture(1, 201)))
    (tmp_path / "text.png").write_text("no picture")
    path = _write(tmp_path, _row(id="good"), "", broken, _row(id="last"))
    source = read_jsonl(path, strict=False)
    assert [record.id for record in source] == ["good", "last"]
    assert [number for number, _ in source.problems] == [3]
    assert reason in source.problems[0][1]
    with pytest.raises(ValueError, match="row 3: "):
        read_jsonl(path, strict=True)


@pytest.mark.parametrize("kind", ["poison:verify", "this:x", "sys:path", "os:system", "poison.inner:verify", "poison:"])
def test_a_row_imports_only_what_the_config_lists(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    """Catches a data file whose answer_kind runs a module of its choice, before or after the row is refused."""
    (tmp_path / "poison.py").write_text("import pathlib; pathlib.Path(__file__).with_name('ran').touch()")
    monkeypatch.syspath_prepend(tmp_path)
    sys.modules.pop("this", None)
    anagram = _row(id="own", answer="silent", answer_kind="tests.own_verifier:anagram")
    path = _write(tmp_path, _row(id="good"), _row(id="bad", answer_kind=kind), anagram)
    source = read_jsonl(path, strict=False, allow=("tests.own_verifier:anagram",))
    assert [record.id for record in source] == ["good", "own"]
    ((number, reason),) = source.problems
    assert number == 2
    assert reason.startswith(f"answer_kind '{kind}' is not in verify.allow (tests.own_verifier:anagram)")
    assert not (tmp_path / "ran").exists()
    assert "this" not in sys.modules
    assert [number for number, _ in read_jsonl(path, strict=False).problems] == [2, 3]


def test_windows_newlines_blank_lines_and_byte_order_mark(tmp_path: Path) -> None:
    """Catches files from Windows editors being refused, and line separators inside strings ending a row."""
    rows = [json.dumps(_row(id="é\u2028x"), ensure_ascii=False), "", json.dumps(_row(id="b")), ""]
    path = _write(tmp_path)
    path.write_bytes(b"\xef\xbb\xbf" + "\r\n".join(rows).encode())
    assert [record.id for record in read_jsonl(path, strict=True)] == ["é\u2028x", "b"]


def test_strict_lists_twenty_rows_and_the_count(tmp_path: Path) -> None:
    """Catches an error that stops at the first row, or that floods the terminal."""
    path = _write(tmp_path, _row(), *["{"] * 25)
    with pytest.raises(ValueError, match="25 broken rows") as error:
        read_jsonl(path, strict=True)
    text = str(error.value)
    assert "row 21: " in text
    assert "row 22: " not in text
    assert "and 5 more" in text


def test_nothing_usable_is_an_error(tmp_path: Path) -> None:
    """Catches an empty source, which would only fail much later."""
    with pytest.raises(ValueError, match="no usable row"):
        read_jsonl(_write(tmp_path, "{"), strict=False)
    with pytest.raises(ValueError, match="no data file"):
        read_jsonl(tmp_path / "absent.jsonl", strict=False)


def test_images_are_read_on_access(tmp_path: Path) -> None:
    """Catches a reader that holds all images in memory."""
    source = read_jsonl(_write(tmp_path, _row()), strict=True)
    (tmp_path / "a.png").write_bytes(_png(9))
    assert source[0].images == (_png(9),)


@pytest.mark.parametrize("number", [errno.ESTALE, errno.EIO, errno.ENOTCONN, errno.EMFILE])
def test_a_disk_that_fails_for_a_moment_drops_no_row(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    """Catches a resumed run that is refused for good, as one with other data, since a server was away at its start."""
    path = _write(tmp_path, _row(id="1", images=["1.png"]), _row(id="2", images=["2.png"]))
    for name in ("1.png", "2.png"):
        (tmp_path / name).write_bytes(_png(9))
    source, opened = read_jsonl(path, strict=False), os.open

    def fail(name: str, *given: int) -> int:
        if str(name).endswith("2.png"):
            raise OSError(number, os.strerror(number), name)
        return opened(name, *given)

    monkeypatch.setattr(os, "open", fail)
    with pytest.raises(OSError, match=r"2\.png"):
        read_jsonl(path, strict=False)
    lost = loader.LostRecords()
    batches = loader.make_eval_batches(source, lambda record: record.id, batch_size=1, limit=0, lost=lost)
    examples = [row and row.example for rows in batches for row in rows]
    assert (examples, len(lost)) == (["1", None], 1)  # in mid-run it costs the record alone
