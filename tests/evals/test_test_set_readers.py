"""Every benchmark's reader on the published layout: the sound rows as records, the others with their reason."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from care_jax.data.decontamination import normalise_question
from care_jax.data.parsing import letter_gold, number_or, option_gold
from care_jax.data.prepare import Settings, prepare
from care_jax.data.readers.mathverse import _NAME, _options
from care_jax.data.sources import READERS
from care_jax.errors import InputError
from care_jax.rewards.verifiers import verify_answer
from care_jax.structs import Record
from tests import benchmark_sets
from tests.benchmark_sets import TWELVE, WRITERS
from tests.data.test_readers import _read
from tests.data_sets import embedded, picture, write_parquet

LETTER = "\nAnswer with the letter of the right option."
PICTURES = tuple(picture(90 + n, "RGBA") for n in range(4))  # image_1 of MMMU's fixture is PICTURES[1]


def test_mathvista(tmp_path: Path) -> None:
    """Catches golds left as an option's text, a float judged within 1 %, RGBA and palette images saved anew."""
    records, dropped = _read("mathvista", benchmark_sets.write_mathvista(tmp_path), "testmini")
    hint = "<image>Hint: Answer.\nQuestion: "
    options = "\nChoices:\n(A) 135°\n(B) 145°"
    lengths = "\nChoices:\n(A) 9\n(B) 12\n(C) 18\n(D) 18"
    assert records == [
        _vista("3", hint + "Find it." + options, "(B)", "choice", ("135°", "145°"), image=picture(70, "P")),
        _vista("27", hint + "How many?", "0", "integer", image=picture(71, "RGBA")),
        _vista("1", hint + "How far?\nIn m.", "1.2", "rounded"),
        _vista("31", hint + "Which years?", "[2014, 2016]", "list"),
        _vista("781", hint + "How long?" + lengths, "(C)\n(D)", "choice", ("9", "12", "18", "18")),
    ]
    assert dropped == {"data/testmini-00000-of-00001-725687bf7a18d64b.parquet:6": "gold names no option"}


def _vista(pid: str, prompt: str, answer: str, kind: str, choices=None, image: bytes = b"") -> Record:
    images = (image or picture(int(pid)),)
    return Record(f"mathvista/{pid}", "mathvista", prompt, images, answer, kind, choices)


@pytest.mark.parametrize("write", [benchmark_sets.write_mathverse, benchmark_sets.write_mathverse_by_version])
def test_mathverse(tmp_path: Path, write: Callable[[Path], Path]) -> None:
    """Catches versions in one heap, the sixth among the five, and golds as dirty as they are published."""
    records, dropped = _read("mathverse", write(tmp_path), "testmini")
    ask, look = "<image>Reason first.\nQuestion: ", "<image>Answer the question in the image."
    angles = "\nChoices:\nA:40°\nB:60°\nC:120°\nD:140°\n102"
    assert records == [
        Record(
            "mathverse/1",
            "mathverse_text_dominant",
            ask + "DE is parallel to BC." + angles,
            (picture(80, "RGBA"),),
            "(C)",
            "choice",
            ("40°", "60°", "120°", "140°"),
        ),
        Record("mathverse/2", "mathverse_text_lite", ask + "Find the bearing.", (picture(2),), "118°T", "rounded"),
        Record(
            "mathverse/3",
            "mathverse_vision_intensive",
            ask + "Which?\nChoice:\nA. 1\nB. 2\nC. 3",
            (picture(3),),
            "A, C",
            "choice",
            ("1", "2", "3"),
        ),
        Record("mathverse/5", "mathverse_vision_only", look, (picture(5),), "(B)", "choice", ("True", "False")),
        Record("mathverse/7", "mathverse_vision_only", look, (picture(7),), r"1633.63 \mathrm{~m}^{3}", "rounded"),
    ]
    assert list(dropped.values()) == ["image without bytes and path"]


def test_mathvista_as_first_released(tmp_path: Path) -> None:
    """Catches the original release that must be rewritten first, asks otherwise, or has its images elsewhere."""
    hub, _ = _read("mathvista", benchmark_sets.write_mathvista(tmp_path / "hub"), "testmini")
    root = benchmark_sets.write_mathvista_json(tmp_path / "release")
    records, dropped = _read("mathvista", root, "testmini")
    assert _read("mathvista", root / "data/testmini.json", "testmini", images=root)[0] == records
    number = "Please answer the question requiring "
    integer, decimal = "an integer answer", "a floating-point number with one decimal place"
    final = " and provide the final value, e.g., "
    hints = {  # as in MathVista's data/query.json
        "3": "Please answer the question and provide the correct option letter, e.g., A, B, C, D, at the end.",
        "27": number + integer + final + "1, 2, 3, at the end.",
        "1": number + decimal + final + "1.2, 1.3, 1.4, at the end.",
        "31": number
        + "a Python list as an answer and provide the final list, e.g., [1, 2, 3], [1.2, 1.3, 1.4], at the "
        "end.",
    }
    hints["781"] = hints["3"]
    worded = [replace(r, prompt=r.prompt.replace("Answer.", hints[r.id.removeprefix("mathvista/")])) for r in hub]
    assert records == worded
    assert list(dropped.values()) == ["gold names no option"]


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"question": "?", "answer": "7", "answer_type": "integer", "unit": "g"}, None),
        ({"question": "?", "answer": "7", "answer_type": "integer", "unit": 7}, None),
        ({"answer": "7", "answer_type": "integer"}, "no question"),
        ({"question": "?", "answer": "7", "answer_type": ["integer"]}, "unknown answer_type"),
        ({"question": "?", "answer": "7", "answer_type": "float", "precision": 3}, "unknown precision"),
        ({"question": "?", "answer": "7", "answer_type": "float", "precision": [1]}, "unknown precision"),
        ({"question": "?", "answer": "7", "answer_type": "text"}, "unknown precision"),
        ({}, "no answer"),
        ([], "no JSON object"),
    ],
)
def test_rows_of_mathvistas_release(tmp_path: Path, row: object, reason: str | None) -> None:
    """Catches a broken row of the original release that ends the reading, and a unit left out of the question."""
    (tmp_path / "images").mkdir()
    (tmp_path / "images/1.png").write_bytes(picture(1))
    row = row | {"image": "images/1.png"} if isinstance(row, dict) else row
    (tmp_path / "testmini.json").write_text(json.dumps({"1": row}))
    records, dropped = _read("mathvista", tmp_path, "testmini")
    assert list(dropped.values()) == ([reason] if reason else [])
    assert [record.id for record in records] == ([] if reason else ["mathvista/1"])
    assert all("\nQuestion: ? (Unit: " in record.prompt for record in records)


@pytest.mark.parametrize("text", ["", "[]", "7", "{", '{"1": {}} {}', "[" * 100_000])
def test_a_damaged_release_of_mathvista(tmp_path: Path, text: str) -> None:
    """Catches a traceback, and half a file read as the whole one."""
    (tmp_path / "testmini.json").write_text(text)
    with pytest.raises(InputError, match=re.escape(str(tmp_path / "testmini.json"))):
        _read("mathvista", tmp_path, "testmini")


@pytest.mark.parametrize("images", ["data", "data/images", "images", "."])
def test_mathverse_as_first_released(tmp_path: Path, images: str) -> None:
    """Catches images that are not where the archive was unpacked, and options that only another version has."""
    hub, _ = _read("mathverse", benchmark_sets.write_mathverse(tmp_path / "hub"), "testmini")
    records, dropped = _read("mathverse", benchmark_sets.write_mathverse_json(tmp_path / "release", images), "testmini")
    assert records[1:] == hub
    assert (records[0].id, records[0].answer, records[0].choices) == ("mathverse/8", "(A)", ("True", "False"))
    assert list(dropped.values()) == ["no image file"]


@pytest.mark.parametrize("form", ["folder", "file", "split", "renamed", "parquet", "by version"])
def test_text_only_is_no_benchmark(tmp_path: Path, form: str) -> None:
    """Catches "no split" or an empty folder for the one file of MathVerse that is not of its five versions."""
    root, split = benchmark_sets.write_mathverse_json(tmp_path), "testmini"
    (tmp_path / "data/testmini.json").unlink()
    text_only = tmp_path / "data/testmini_text_only.json"
    rows = [{**json.loads(text_only.read_text())[0], "image": embedded(None)}]
    if form == "file":
        root = text_only
    elif form == "split":
        split = "testmini_text_only"
    elif form == "renamed":
        text_only.rename(tmp_path / "data/testmini.json")
    elif form != "folder":
        text_only.unlink()
        name = "testmini.parquet" if form == "parquet" else "testmini_version_split/text_only-00000-of-00001.parquet"
        write_parquet(tmp_path / name, rows, benchmark_sets.MATHVERSE)
    with pytest.raises(InputError, match=r"holds MathVerse's version Text Only, .*; give the file .*testmini.json"):
        _read("mathverse", root, split)


def test_mathvision(tmp_path: Path) -> None:
    """Catches a picture for each mark where one was published, testmini read as test, and a gold cut by a form feed."""
    records, dropped = _read("mathvision", benchmark_sets.write_mathvision(tmp_path), "test")
    letters, cards = tuple("ABCDE"), tuple("ABDFG")
    gold = r"$\pi-\tan ^{-1}\left(\frac{1}{d}\right)$"
    assert records == [
        _vision("2", "Which bike?\nA. A\nB. B\nC. C\nD. D\nE. E" + LETTER, "(E)", "choice", letters),
        _vision(
            "654",
            "Which cards?\n<image1>\n<image2>\nA. A\nB. B\nC. D\nD. F\nE. G" + LETTER,
            "(D)",
            "choice",
            cards,
        ),
        _vision("1000", "How much?", r"\frac{36}{13}", "rounded"),
        _vision("5", "Is it so?", gold, "latex"),
    ]
    assert list(dropped.values()) == ["gold names no option"]


def _vision(number: str, prompt: str, answer: str, kind: str, choices=None) -> Record:
    images = (picture(int(number), "L"),)
    return Record(f"mathvision/{number}", "mathvision", "<image>" + prompt, images, answer, kind, choices)


def test_mathvision_as_first_released(tmp_path: Path) -> None:
    """Catches image paths from the wrong folder, Windows newlines in the file, and a missing field that ends all."""
    hub, _ = _read("mathvision", benchmark_sets.write_mathvision(tmp_path / "hub"), "test")
    records, dropped = _read("mathvision", benchmark_sets.write_mathvision_jsonl(tmp_path / "files"), "test")
    assert records == hub[:3]
    assert dropped == {
        "test.jsonl:4": "no image file",
        "test.jsonl:5": "gold names no option",
        "test.jsonl:6": "no answer",
    }


def test_mmmu(tmp_path: Path) -> None:
    """Catches pictures in column order instead of the text's, and a picture sent for each mention.

    Also dev rows among the validation's, and a list of golds taken for one.
    """
    records, dropped = _read("mmmu", benchmark_sets.write_mmmu(tmp_path), "validation")
    _, first, second, third = PICTURES
    phrase = "\nAnswer with one number, word or phrase."
    options = ("<image 3>", "both")
    assert records == [
        Record(
            "mmmu/validation_Art_1",
            "mmmu",
            "Which of <image> and <image>?\nA. <image>\nB. both" + LETTER,
            (second, first, third),
            "(B)",
            "choice",
            options,
        ),
        Record(
            "mmmu/validation_Art_2",
            "mmmu",
            "Look: <image> (image 1), again image 1.\nA. red\nB. blue" + LETTER,
            (first,),
            "(A)",
            "choice",
            ("red", "blue"),
        ),
        Record("mmmu/validation_Music_1", "mmmu", "Where? <image>" + phrase, (first,), "Tampa\nFlorida", "text"),
        Record("mmmu/validation_Music_2", "mmmu", "<image>How much?" + phrase, (first,), "8.4", "rounded"),
    ]
    assert dropped == {
        "Art/validation-00000-of-00001.parquet:3": "unreadable choices",
        "Music/validation-00000-of-00001.parquet:3": "image without bytes and path",
    }


def test_mmmu_pro_as_text(tmp_path: Path) -> None:
    """Catches letters past J, options that are letters in another order, and a list in a list."""
    records, dropped = _read("mmmu_pro_standard", benchmark_sets.write_mmmu_pro(tmp_path), "test")
    source = "mmmu_pro_standard"
    _, first, second, _ = PICTURES
    trends = "\n".join(f"{letter}. {option}" for letter, option in zip("ABCDEFGHIJKL", TWELVE, strict=True))
    shuffled, nested = ("C", "A", "B"), ("A", "B", "none")
    notes, rest = "Which of <image>, <image>?\nA. C\nB. A\nC. B", "<image><image>Which?\nA. A\nB. B\nC. none"
    assert records == [
        _pro(source, "test_History_1", f"Which trend? <image>\n{trends}" + LETTER, (first,), "(L)", tuple(TWELVE)),
        _pro(source, "test_Music_42", notes + LETTER, (second, first), "(C)", shuffled),
        _pro(source, "validation_Accounting_29", rest + LETTER, (first, second), "(B)", nested),
    ]
    assert dropped == {"standard (10 options)/test-00001-of-00002.parquet:2": "gold names no option"}
    shuffled_question = records[1]
    assert verify_answer("choice", "C", shuffled_question.answer, shuffled_question.choices, 0.0).correct


def test_mmmu_pro_as_pictures(tmp_path: Path) -> None:
    """Catches the form as text read in its place, and options lost because only the picture shows them."""
    records, dropped = _read("mmmu_pro_vision", benchmark_sets.write_mmmu_pro(tmp_path), "test")
    look = "<image>Answer the multiple-choice question in the picture with the letter of the right option."
    wanted = [
        ("test_History_1", tuple(TWELVE), "(L)"),
        ("test_Music_42", ("C", "A", "B"), "(C)"),
        ("validation_Accounting_29", ("A", "B", "none"), "(B)"),
    ]
    assert records == [
        _pro("mmmu_pro_vision", name, look, (picture(100 + n, "P"),), gold, choices)
        for n, (name, choices, gold) in enumerate(wanted)
    ]
    assert dropped == {"vision/test-00000-of-00001.parquet:4": "gold names no option"}


def _pro(source: str, name: str, prompt: str, images: tuple[bytes, ...], gold: str, choices: tuple) -> Record:
    return Record(f"{source}/{name}", source, prompt, images, gold, "choice", choices)


def test_chartqa_as_lmms_eval_has_it(tmp_path: Path) -> None:
    """Catches people's and a machine's questions in one heap where a text names them, and a file of another set."""
    records, dropped = _read("chartqa", benchmark_sets.write_chartqa(tmp_path / "chartqa"), "test")
    file = "data/test-00000-of-00001.parquet"
    jpegs = [picture(110 + n, "L", "JPEG") for n in range(3)]
    assert records == [
        Record(f"chartqa/human/{file}:1", "chartqa_human", "<image>How many?", (jpegs[0],), "0", "chart_relaxed"),
        Record(
            f"chartqa/machine/{file}:2",
            "chartqa_machine",
            "<image>Which years?",
            (jpegs[1],),
            "[2014, 2016]",
            "chart_relaxed",
        ),
        Record(f"chartqa/human/{file}:3", "chartqa_human", "<image>Which year?", (jpegs[2],), "2015", "chart_relaxed"),
    ]
    assert dropped == {f"{file}:4": "no label"}
    write_parquet(tmp_path / "other/data/test-0.parquet", [{"image": embedded(b"")}], benchmark_sets.PRO_VISION)
    with pytest.raises(ValueError, match="has no column query, human_or_machine, only image"):
        _read("chartqa", tmp_path / "other", "test")


@pytest.mark.parametrize("source", WRITERS)
def test_bad_rows_are_refused_under_strict(tmp_path: Path, source: str) -> None:
    """Catches a benchmark scored without the rows that could not be read, although none was to be left out."""
    write, split, _ = WRITERS[source]
    with pytest.raises(ValueError, match="mend it, or leave --strict out"):
        prepare(Settings(source, write(tmp_path / "root"), tmp_path / "out", split, strict=True))
    assert not (tmp_path / "out").exists()


def test_default_splits() -> None:
    """Catches a benchmark whose command line needs a split that nobody remembers, or that reads its training data."""
    splits = {source: split for source, (_, split, _) in WRITERS.items() if source not in ("chartqa", "geometry3k")}
    assert {source: READERS[source].split for source in splits} == splits


@pytest.mark.parametrize(
    ("gold", "value"),
    [
        (r"Volume $=367.57 \mathrm{~cm}^{3}$", r"367.57 \mathrm{~cm}^{3}$"),
        ("S.A. of rectangular prism $=5$", "5$"),
        ("slope =-4", "-4"),
        ("y=-2 x+5", "y=-2 x+5"),
        ("f(x)=|x-3|", "f(x)=|x-3|"),
        ("When x<=3 f(x)=-x+1", "When x<=3 f(x)=-x+1"),
    ],
)
def test_names_of_quantities_are_taken_off(gold: str, value: str) -> None:
    """Catches a hundred golds of MathVerse that no answer could equal, and equations that lose their left side."""
    assert _NAME.sub("", gold) == value


def test_options_inside_a_question() -> None:
    """Catches sentences that begin with a letter taken for options, and half a list."""
    assert _options("A. Look.\nChoices:\nA:1\nB: 2 \nnoise") == ("1", "2")
    assert _options("Which?\nA. 1\nB. 2") is None
    assert _options("Choices:\nA:1\nC:2") is None
    assert _options("Choices:\nA:1") is None


def test_golds_of_choices() -> None:
    """Catches a letter past the options, and a text that two options share."""
    assert letter_gold("C", ("C", "A", "B")) == letter_gold("(C)", ()) == "(C)"
    assert letter_gold("True", ("False", "True")) == "(B)"
    assert option_gold("C", ("C", "A", "B")) == "(A)"
    assert option_gold("x", ("x", "y", "x")) == "(A)\n(C)"
    for gold, choices in (("C", ("x", "y")), ("z", ("x", "y")), ("x", ())):
        with pytest.raises(ValueError, match="names none of the options"):
            letter_gold(gold, choices)


@pytest.mark.parametrize(
    ("gold", "kind"),
    [("8.4", "rounded"), ("24/7\n3.429", "rounded"), ("4 cm", "rounded"), ("x+1", "latex"), ("3\nthree", "latex")],
)
def test_kind_of_a_free_answer(gold: str, kind: str) -> None:
    """Catches words handed to a judge of numbers."""
    assert number_or("latex", gold) == kind


def test_questions_are_compared_without_hints_and_options() -> None:
    """Catches a training question that a benchmark repeats with a hint before it and options behind."""
    same = (
        "<image>Hint: Answer.\nQuestion: Find $x$.\nChoices:\n(A) 135°\n(B) 145°",
        "<image>find x",
        "Find x.\nA. 3\nB. 4" + LETTER,
        "<image>Reason first.\nQuestion: Find x.\nChoice:\nA:3\nB:4",
    )
    assert {normalise_question(question) for question in same} == {"findx"}
    assert normalise_question("A. is a point?") == "aisapoint"
