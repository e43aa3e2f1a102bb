"""Every reader on its data set's own layout: the sound rows as records, the broken ones with their reason."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from care_jax.data import file_formats
from care_jax.data.parsing import option_texts, unbox
from care_jax.data.readers.virl39k import _gold
from care_jax.data.sources import READERS, ColumnRange, Dropped, read, split_files
from care_jax.data.validation import BadRowError
from care_jax.structs import Record
from tests import data_sets
from tests.benchmark_sets import WRITERS
from tests.data_sets import picture


def _read(source: str, root: Path, split: str = "train", **more) -> tuple[list[Record], dict[str, str]]:
    """Records with their images, and where -> reason of the rest."""
    files = split_files(source, root, split)
    rows = list(read(source, files, root=root, images=more.pop("images", root), **more))
    dropped = {row.where: row.reason for row in rows if isinstance(row, Dropped)}
    records = []
    for row in rows:
        if isinstance(row, Dropped):
            continue
        try:
            records.append(row.load())
        except BadRowError as error:
            dropped[row.where] = error.reason
    return records, dropped


def test_geometry3k_from_the_hub(tmp_path: Path) -> None:
    """Catches re-encoded RGBA and palette images, a null path taken for no image, and a lost mark that drops a row."""
    records, dropped = _read("geometry3k", data_sets.write_geometry3k(tmp_path))
    assert [record.id for record in records[:2]] == ["geometry3k/0", "geometry3k/7"]
    first, second, damaged = records
    assert first.prompt.startswith(r"<image>In $\odot X, A B=30")
    assert (first.answer, first.answer_kind, first.choices, first.source) == ("80", "latex", None, "geometry3k")
    assert (first.images, second.images) == ((picture(0, "RGBA"),), (picture(1, "P"),))
    assert second.prompt == "<image>Find $x$.\nRound it."
    assert second.answer == r"5 \sqrt { 3 }"
    assert damaged.id == "geometry3k/10"  # found when it is decoded
    file = "data/train-00000-of-00001.parquet"
    assert dropped == {f"{file}:3": "image without bytes and path", f"{file}:4": "no answer"}


def test_geometry3k_without_the_later_columns(tmp_path: Path) -> None:
    """Catches a reader that needs columns which the first release did not have."""
    rows = [{"images": [data_sets.embedded(picture(0))], "problem": "<image>x?", "answer": "1"}]
    schema = data_sets.pa.schema([data_sets.GEOMETRY3K.field(name) for name in ("images", "problem", "answer")])
    data_sets.write_parquet(tmp_path / "data/validation-00000-of-00001.parquet", rows, schema)
    records, dropped = _read("geometry3k", tmp_path, "val")
    assert [record.id for record in records] == ["geometry3k/data/validation-00000-of-00001.parquet:1"]
    assert not dropped


def test_geometry3k_from_the_original_folders(tmp_path: Path) -> None:
    """Catches folders sorted as text ("10" before "2"), a letter as gold, and no letter taken for A."""
    records, dropped = _read("geometry3k", data_sets.write_geometry3k_folders(tmp_path), "val")
    assert [(r.id, r.answer) for r in records] == [("geometry3k/2", "0"), ("geometry3k/10", r"2 \sqrt { 2 }")]
    assert records[1].prompt == "<image>Find $x$ in drawing 10."
    assert records[1].images == (picture(10, "RGBA"),)
    assert dropped == {f"val/{number}/data.json:1": "unreadable data.json" for number in (11, 12)}


def test_chartqa_from_the_hub(tmp_path: Path) -> None:
    """Catches people's and machine's questions mixed up, a gold of 0 taken for none, and a label left as a list."""
    data_sets.write_chartqa(tmp_path)
    records, dropped = _read("chartqa", tmp_path, "validation")
    assert [(r.source, r.prompt, r.answer) for r in records] == [
        ("chartqa_human", "<image>How many bars?", "0"),
        ("chartqa_machine", "<image>Which years?", "[2014, 2016]"),
        ("chartqa_human", "<image>What share?", "57%"),
    ]
    assert {r.answer_kind for r in records} == {"chart_relaxed"}
    assert records[0].images == (picture(20, "L", "JPEG"),)
    assert dropped == {"data/val-00001-of-00002.parquet:1": "no label"}
    assert [r.answer for r in _read("chartqa_human", tmp_path, "val")[0]] == ["0", "57%"]
    assert [r.answer for r in _read("chartqa_machine", tmp_path, "val")[0]] == ["[2014, 2016]"]


def test_chartqa_from_the_original_folder(tmp_path: Path) -> None:
    """Catches images looked for beside the wrong file, and the augmented questions among people's."""
    data_sets.write_chartqa_folder(tmp_path)
    records, dropped = _read("chartqa_human", tmp_path)
    assert [(r.prompt, r.answer, r.images) for r in records] == [
        ("<image>What is the sum?", "0.57", (picture(32),)),
        ("<image>Is it rising?", "Yes", (picture(31),)),
    ]
    assert [r.id for r in records] == ["chartqa/human/2.png:1", "chartqa/human/1.png:2"]
    assert dropped == {"ChartQA Dataset/train/train_human.json:3": "no image file"}
    assert [r.source for r in _read("chartqa", tmp_path)[0]] == 2 * ["chartqa_human"] + ["chartqa_machine"]


def test_virl39k(tmp_path: Path) -> None:
    """Catches images in file order instead of the row's, text-only rows dropped, and boxes left around the golds."""
    records, dropped = _read("virl39k", data_sets.write_virl39k(tmp_path))
    assert [(r.id, r.answer, r.answer_kind, len(r.images)) for r in records] == [
        ("virl39k/q0", r"17^\circ", "latex", 1),
        ("virl39k/q1", "5", "latex", 0),
        ("virl39k/q2", "B", "choice", 2),
        ("virl39k/q3", "L", "choice", 1),
        ("virl39k/q4", "118°", "latex", 1),
        ("virl39k/q5", "it increases", "text", 1),
        ("virl39k/q6", r"\frac{1}{2}", "latex", 1),
    ]
    jpegs = [(tmp_path / name).read_bytes() for name in ("images/q2-1.jpg", "images/q2-0.jpg")]
    assert list(records[2].images) == jpegs
    assert records[3].prompt.startswith("<image>Which of these?")
    assert records[4].prompt == "<image>\nAngle 30° is given."
    assert records[6].prompt == "<image>\nSolve."
    assert dropped == {
        "39Krelease.parquet:8": "<image> marks and images differ in number",
        "39Krelease.parquet:9": r"unbalanced \boxed",
        "39Krelease.parquet:10": "id used before",
        "39Krelease.parquet:11": "no image file",
        "39Krelease.parquet:12": "prompt spells a tag or control token",
    }


def test_pass_rates_filter(tmp_path: Path) -> None:
    """Catches ends left out, -1 for "not measured" taken for a rate, and a column that is not there."""
    data_sets.write_virl39k(tmp_path)
    wanted = (ColumnRange("PassRate_32BTrained", 0.2, 0.5), ColumnRange("PassRate_7BBase", 0.0, 1.0))
    records, dropped = _read("virl39k", tmp_path, ranges=wanted)
    assert [record.id for record in records] == ["virl39k/q2", "virl39k/q3"]
    assert dropped["39Krelease.parquet:1"] == "PassRate_7BBase outside 0 .. 1"
    assert dropped["39Krelease.parquet:2"] == "PassRate_32BTrained outside 0.2 .. 0.5"
    with pytest.raises(ValueError, match=r"no column 'PassRate'.*PassRate_32BTrained, PassRate_7BBase"):
        _read("virl39k", tmp_path, ranges=[ColumnRange("PassRate", 0.0, 1.0)])


@pytest.mark.parametrize(
    ("boxed", "question", "gold"),
    [
        ("B", "Which?\nA. 1\nB. 2", ("B", "choice")),
        (r"\text{C}", "Which? (A)1 (B)2 (C)3", ("C", "choice")),
        ("B", "Name the point on line AB.", ("B", "latex")),
        ("AC", "Which hold?\nA. 1\nB. 2\nC. 3", ("AC", "text")),
        ("decreases", "How?", ("decreases", "text")),
        (r"\text{New York}", "Where?", ("New York", "text")),
        ("x", "Which variable?", ("x", "latex")),
        ("3 cm", "How long?", ("3 cm", "latex")),
        (r"\{1, 2\}", "Solve.", (r"\{1, 2\}", "latex")),
    ],
)
def test_kind_of_a_virl39k_gold(boxed: str, question: str, gold: tuple[str, str]) -> None:
    """Catches a point's name taken for an option, and words handed to a judge of formulas."""
    assert _gold(boxed, question) == gold


def test_vision_r1_cold(tmp_path: Path) -> None:
    """Catches the plural key read as a list, images sought beside the text, and "Final Answer:" left in targets."""
    root = data_sets.write_vision_r1(tmp_path / "text", tmp_path / "pictures")
    records, dropped = _read("vision_r1_cold", root, images=tmp_path / "pictures")
    assert [(r.source, r.prompt, r.rationale, r.answer, r.images) for r in records] == [
        ("vision_r1_llava_cot", "<image>\nHue?", "It is red.", "Red", (picture(40),)),
        ("vision_r1_mulberry", "<image>\nWhich?\nA. 1\nB. 2", "It is 2.", "B", (picture(41),)),
    ]
    assert dropped == {
        "vision_r1_llava_cot_full.json:2": "several turns",
        "vision_r1_mulberry_sft_full.json:2": "response of another form",
    }


@pytest.mark.parametrize("end", ["5</answer>", "5 <answer>6</answer>", "<answer>5</answer> 6", "5"])
def test_vision_r1_response_of_another_form(tmp_path: Path, end: str) -> None:
    """Catches a tag left in a target, or text beside the answer taken for it."""
    root = data_sets.write_vision_r1(tmp_path / "text", tmp_path / "pictures")
    path = root / "vision_r1_mulberry_sft_full.json"
    rows = json.loads(path.read_text())
    rows[0]["conversations"][1]["value"] = f"<think>It is</think> {end}"
    path.write_text(json.dumps(rows))
    _, dropped = _read("vision_r1_cold", root, images=tmp_path / "pictures")
    assert dropped[f"{path.name}:1"] == "response of another form"


def test_easyr1_parquet(tmp_path: Path) -> None:
    """Catches options that stay a string, and a gold that must be a letter."""
    records, dropped = _read("easyr1", data_sets.write_easyr1_parquet(tmp_path))
    assert [(r.answer, r.answer_kind, r.choices) for r in records] == [
        (r"\frac{1}{2}", "latex", None),
        ("blue", "choice", ("red", "blue")),
    ]
    assert dropped == {"train.parquet:3": "unreadable choices", "train.parquet:4": "gold is no integer"}


def test_easyr1_jsonl(tmp_path: Path) -> None:
    """Catches a gold of 0 taken for none, and Windows newlines in a row."""
    root = data_sets.write_easyr1_jsonl(tmp_path / "set")
    for given in (root, root / "train.jsonl"):
        records, dropped = _read("easyr1", given, images=root)
        assert [(r.id, r.answer, r.images) for r in records] == [("x", "0", (picture(60),))]
        assert dropped == {"train.jsonl:2": "not JSON", "train.jsonl:3": "no answer"}


@pytest.mark.parametrize(
    ("source", "split", "message"),
    [
        ("coco", "train", "no source 'coco'; choose one of geometry3k, chartqa"),
        ("virl39k", "val", "holds no split 'val' of virl39k"),
        ("geometry3k", "train", "holds no split 'train' of geometry3k"),
    ],
)
def test_missing_sources_and_splits(tmp_path: Path, source: str, split: str, message: str) -> None:
    """Catches a wrong folder that looks like an empty set."""
    with pytest.raises(ValueError, match=message):
        split_files(source, tmp_path, split)
    with pytest.raises(ValueError, match=r"no .*absent; give the folder"):
        split_files("virl39k", tmp_path / "absent", split)


def test_packed_images_are_told_apart(tmp_path: Path) -> None:
    """Catches 38,000 rows dropped one by one because a zip was not unpacked."""
    (tmp_path / "images.zip").touch()
    with pytest.raises(ValueError, match=r"still packed; unpack it there: unzip images.zip"):
        split_files("virl39k", tmp_path, "train")


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    """Catches tracebacks of pyarrow, and a half-downloaded array whose first rows would be taken for all."""
    (tmp_path / "train.parquet").write_bytes(b"PAR1 no more")
    with pytest.raises(ValueError, match=r"train.parquet is not a readable parquet file"):
        _read("easyr1", tmp_path)
    data_sets.write_parquet(tmp_path / "39Krelease.parquet", [], data_sets.CHARTQA)
    with pytest.raises(ValueError, match="has no column question, answer, qid, only image, query"):
        _read("virl39k", tmp_path)
    for text, message in (('[{"a": 1}, {"a"', "damaged at row 2"), ('{"a": 1}', "is not a JSON array")):
        (tmp_path / "vision_r1_llava_cot_full.json").write_text(text)
        with pytest.raises(ValueError, match=message):
            _read("vision_r1_cold", tmp_path)


def test_arrays_are_read_in_pieces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches rows lost or torn where a piece ends."""
    path = tmp_path / "rows.json"
    rows = [{"n": n, "s": ']},{"é'} for n in range(50)]
    path.write_text("\ufeff \n" + json.dumps([*rows, 345], indent=1) + "\n")
    for chunk in (1, 7, 64):
        monkeypatch.setattr(file_formats, "_CHUNK", chunk)
        found = list(file_formats.array_rows(path))
        assert [number for number, _ in found] == list(range(1, 52))
        assert [row for _, row in found[:50]] == rows
        assert isinstance(found[50][1], BadRowError)


@pytest.mark.parametrize(
    ("answer", "inside"),
    [
        (r"\boxed{17^\circ}", r"17^\circ"),
        (r"so \boxed{\frac{1}{2}}.", r"\frac{1}{2}"),
        (r"\boxed{\{1\}}", r"\{1\}"),
        ("5", "5"),
    ],
)
def test_unbox(answer: str, inside: str) -> None:
    """Catches a box that ends at the first bracket, or that counts escaped ones."""
    assert unbox(answer) == inside


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (r"\boxed{1", "unbalanced"),
        (r"\boxed{1} \boxed{2}", "several"),
        (r"\boxed{ }", "empty"),
        (r"\boxed{\}", "unbalanced"),
    ],
)
def test_boxes_that_cannot_be_read(answer: str, reason: str) -> None:
    """Catches half a gold."""
    with pytest.raises(BadRowError) as error:
        unbox(answer)
    assert error.value.reason == rf"{reason} \boxed"


def test_option_texts() -> None:
    """Catches code run out of a string, and options that are no texts."""
    assert option_texts("['a', 'b']") == option_texts(["a", "b"]) == ("a", "b")
    assert option_texts(None) is None
    assert option_texts("[]") is None
    for bad in ("__import__('os')", "[1, 2]", 5):
        with pytest.raises(BadRowError):
            option_texts(bad)


def test_every_source_is_tested() -> None:
    """Catches a new reader without a test of its layout."""
    training = {"chartqa_human", "chartqa_machine", "virl39k", "vision_r1_cold", "easyr1", "jsonl"}
    assert set(READERS) == training | set(WRITERS)
