"""Small benchmarks in the layouts of the published ones, with the traps that were found in those."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa

from care_jax.data.prepare import Settings, prepare
from tests import data_sets
from tests.data_sets import IMAGE, embedded, picture, write_parquet

TEXTS = pa.list_(pa.string())
MATHVISTA = pa.schema(
    [
        ("pid", pa.string()),
        ("question", pa.string()),
        ("image", pa.string()),
        ("decoded_image", IMAGE),
        ("choices", TEXTS),
        ("unit", pa.string()),
        ("precision", pa.float64()),
        ("answer", pa.string()),
        ("question_type", pa.string()),
        ("answer_type", pa.string()),
        ("metadata", pa.struct([("split", pa.string()), ("skills", TEXTS)])),
        ("query", pa.string()),
    ]
)
MATHVERSE = pa.schema(
    [
        ("sample_index", pa.string()),
        ("problem_index", pa.string()),
        ("problem_version", pa.string()),
        ("question", pa.string()),
        ("image", IMAGE),
        ("answer", pa.string()),
        ("question_type", pa.string()),
        ("metadata", pa.struct([("split", pa.string()), ("source", pa.string())])),
        ("query_wo", pa.string()),
        ("query_cot", pa.string()),
        ("question_for_eval", pa.string()),
    ]
)
MATHVISION = pa.schema(
    [
        ("id", pa.string()),
        ("question", pa.string()),
        ("options", TEXTS),
        ("image", pa.string()),
        ("decoded_image", IMAGE),
        ("answer", pa.string()),
        ("solution", pa.string()),
        ("level", pa.int64()),
        ("subject", pa.string()),
    ]
)
MMMU = pa.schema(
    [
        *((name, pa.string()) for name in ("id", "question", "options", "explanation")),
        *((f"image_{n}", IMAGE) for n in range(1, 8)),
        *((name, pa.string()) for name in ("img_type", "answer", "topic_difficulty", "question_type", "subfield")),
    ]
)
PRO_STANDARD = pa.schema([field for field in MMMU if field.name not in ("question_type", "subfield")])
PRO_VISION = pa.schema([("image", IMAGE), *((name, pa.string()) for name in ("id", "options", "answer", "subject"))])
LMMS_CHARTQA = pa.schema([("image", IMAGE), *((name, pa.string()) for name in ("type", "question", "answer"))])
TWELVE = [f"option {n}" for n in range(12)]


def write_mathvista(root: Path) -> Path:
    """5 sound rows, one of each kind of answer and one with two right options; a gold that is no option."""
    write_parquet(root / "data/testmini-00000-of-00001-725687bf7a18d64b.parquet", _mathvista_rows(), MATHVISTA)
    return root


def write_mathvista_json(root: Path) -> Path:
    """The same questions as first released: one object by pid, without the column `query`, and images.zip unpacked."""
    rows = {row["pid"]: row for row in _mathvista_rows()}
    for row in rows.values():
        _unpack(root / "data", row["image"], row.pop("decoded_image"))
        del row["query"]
    (root / "data/testmini.json").write_text(json.dumps(rows))
    return root


def _unpack(folder: Path, name: str, image: dict[str, Any]) -> None:
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    (folder / name).write_bytes(image["bytes"])


def _mathvista_rows() -> list[dict[str, Any]]:
    return [
        _vista("3", "Find it.", "145\u00b0", choices=["135\u00b0", "145\u00b0"], image=embedded(picture(70, "P"))),
        _vista("27", "How many?", "0", answer_type="integer", image=embedded(picture(71, "RGBA"), "images/27.jpg")),
        _vista("1", "How far?\r\nIn m.", "1.2", answer_type="float", precision=1.0),
        _vista("31", "Which years?", "[2014, 2016]", answer_type="list"),
        _vista("781", "How long?", "18", choices=["9", "12", "18", "18"]),
        _vista("9", "How long?", "17", choices=["9", "12"]),
    ]


def _vista(pid: str, question: str, answer: str, *, choices: list[str] | None = None, **more: Any) -> dict[str, Any]:
    options = "".join(f"\n({letter}) {choice}" for letter, choice in zip("ABCD", choices or (), strict=False))
    row = {
        "pid": pid,
        "question": question,
        "image": f"images/{pid}.jpg",
        "decoded_image": more.pop("image", embedded(picture(int(pid)))),
        "choices": choices,
        "answer": answer,
        "question_type": "multi_choice" if choices else "free_form",
        "answer_type": "text",
        "query": f"Hint: Answer.\nQuestion: {question}" + ("\nChoices:" + options if options else ""),
        "metadata": {"split": "testmini", "skills": ["arithmetic reasoning"]},
    }
    return row | more


def write_mathverse(root: Path) -> Path:
    """5 sound rows of four versions, one without image of the fifth, and one of the version that is left out."""
    write_parquet(root / "testmini.parquet", _mathverse_rows(), MATHVERSE)
    return root


def write_mathverse_by_version(root: Path) -> Path:
    """Writes the set as lmms-eval's copy has it, one file a version."""
    rows = _mathverse_rows()
    for version in {row["problem_version"] for row in rows}:
        path = root / f"testmini_version_split/{version.lower().replace(' ', '_')}-00000-of-00001.parquet"
        write_parquet(path, [row for row in rows if row["problem_version"] == version], MATHVERSE)
    return root


def write_mathverse_json(root: Path, images: str = "data/images") -> Path:
    """The set as first released: an array without `question_for_eval`; one more row has the options of question 5."""
    rows = [
        _verse("8", "Text Lite", "True?\nChoice:\nA. True\nB. False", "True", question_type="multi-choice"),
        *_mathverse_rows(),
    ]
    for row in rows:
        del row["question_for_eval"]
        image, row["image"] = row["image"], ""
        if row["problem_version"] != "Text Only":
            row["image"] = f"images_version_1-4/image_{row['sample_index']}.png"
        row["problem_index"] = {"8": "5"}.get(row["sample_index"], row["sample_index"])
        if image["bytes"]:
            _unpack(root / images, row["image"], image)
    (root / "data").mkdir(exist_ok=True)
    (root / "data/testmini.json").write_text(json.dumps(rows))
    text_only = [row for row in rows if row["problem_version"] == "Text Only"]
    (root / "data/testmini_text_only.json").write_text(json.dumps(text_only))
    return root


def _mathverse_rows() -> list[dict[str, Any]]:
    options = "\nChoices:\nA:40\u00b0\nB:60\u00b0\nC:120\u00b0\nD:140\u00b0\n102"
    return [
        _verse("1", "Text Dominant", "DE is parallel to BC." + options, "(C)", image=embedded(picture(80, "RGBA"))),
        _verse("2", "Text Lite", "Find the bearing.", "118\u63b3T"),
        _verse("3", "Vision Intensive", "Which?\nChoice:\nA. 1\nB. 2\nC. 3", "A\nC", question_type="multi-choice"),
        _verse("4", "Vision Dominant", "Find V.", r"Volume $=1633.63 \mathrm{~m}^{3}$", image=embedded(None)),
        _verse("5", "Vision Only", "", "False", eval="True?\nChoice:\nA. True\nB. False", question_type="multi-choice"),
        _verse("6", "Text Only", "Find V." + options, "A", image=embedded(None, "")),
        _verse("7", "Vision Only", "", r"Volume $=1633.63 \mathrm{~m}^{3}$", eval="Find V."),
    ]


def _verse(index: str, version: str, question: str, answer: str, **more: Any) -> dict[str, Any]:
    row = {
        "sample_index": index,
        "problem_index": "1",
        "problem_version": version,
        "question": question,
        "image": embedded(picture(int(index))),
        "answer": answer,
        "question_type": "multi-choice" if "Choices:" in question else "free-form",
        "metadata": {"split": "testmini", "source": "GeoQA"},
        "query_wo": "Directly.",
        "query_cot": f"Reason first.\nQuestion: {question}" if question else "Answer the question in the image.",
        "question_for_eval": more.pop("eval", question),
    }
    return row | more


def _mathvision_rows() -> list[dict[str, Any]]:
    return [
        _vision("2", "Which bike?\n<image1>", list("ABCDE"), "E"),
        _vision("654", "Which cards?\n<image1>\n<image2>", ["A", "B", "D", "F", "G"], "D"),
        _vision("1000", "How much?\n<image1>", [], "\x0crac{36}{13}"),
        _vision("5", "Is it so?", [], r"$\pi-\tan ^{-1}\left(\frac{1}{d}\right)$"),
        _vision("6", "Which bike?\n<image1>", list("ABCDE"), "F"),
    ]


def _vision(number: str, question: str, options: list[str], answer: str) -> dict[str, Any]:
    return {
        "id": number,
        "question": question,
        "options": options,
        "image": f"images/{number}.jpg",
        "answer": answer,
        "solution": None,
        "level": 2,
        "subject": "arithmetic",
    }


def write_mathvision(root: Path) -> Path:
    """The hub's layout: 4 sound rows, a gold past the options."""
    rows = [row | {"decoded_image": embedded(picture(int(row["id"]), "L"))} for row in _mathvision_rows()]
    write_parquet(root / "data/test-00000-of-00001-3532b8d3f1b4047a.parquet", rows, MATHVISION)
    write_parquet(root / "data/testmini-00000-of-00001-f8ff70fcb2f29b1d.parquet", rows[:1], MATHVISION)
    return root


def write_mathvision_jsonl(root: Path) -> Path:
    """The original layout, with Windows newlines; the last images were not unpacked, and one more row is cut short."""
    rows = _mathvision_rows()
    (root / "images").mkdir(parents=True)
    for row in rows[:-2]:
        (root / row["image"]).write_bytes(picture(int(row["id"]), "L"))
    rows.append({"id": "7", "question": "How much?", "image": "images/7.jpg"})
    (root / "test.jsonl").write_bytes("".join(json.dumps(row) + "\r\n" for row in rows).encode())
    return root


def write_mmmu(root: Path) -> Path:
    """Two subjects: 4 sound rows; a picture that is not there, options that are no list."""
    art = [
        _mmmu("Art_1", "Which of <image 2> and <image 1>?", ["<image 3>", "both"], "B", images=3),
        _mmmu("Art_2", "Look: <image 1>, again <image 1>.", ["red", "blue"], "A", images=1),
        _mmmu("Art_3", "Who?", "[[red", "A", images=1),
    ]
    music = [
        _mmmu("Music_1", "Where? <image 1>", "[]", "['Tampa', 'Florida']", images=1, question_type="open"),
        _mmmu("Music_2", "How much?", "[]", "8.4", images=1, question_type="open"),
        _mmmu("Music_3", "Which? <image 2>", ["red", "blue"], "A", images=1),
    ]
    write_parquet(root / "Art/validation-00000-of-00001.parquet", art, MMMU)
    write_parquet(root / "Art/dev-00000-of-00001.parquet", art, MMMU)
    write_parquet(root / "Music/validation-00000-of-00001.parquet", music, MMMU)
    return root


def _mmmu(name: str, question: str, options: list[str] | str, answer: str, *, images: int, **more: Any) -> dict:
    columns = {f"image_{n}": embedded(picture(90 + n, "RGBA"), f"{name}_{n}.png") for n in range(1, images + 1)}
    row = {
        "id": f"validation_{name}",
        "question": question,
        "options": str(options),
        "explanation": "",
        "img_type": "['Diagrams']",
        "answer": answer,
        "topic_difficulty": "Easy",
        "question_type": "multiple-choice",
        "subfield": "Drawing",
    }
    return row | columns | more


def write_mmmu_pro(root: Path) -> Path:
    """Both forms of four questions: twelve options, options that are letters in another order, a list in a list."""
    questions: list[tuple[str, str, list, str]] = [
        ("test_History_1", "Which trend? <image 1>", TWELVE, "L"),
        ("test_Music_42", "Which of <image 2>, <image 1>?", ["C", "A", "B"], "C"),
        ("validation_Accounting_29", "Which?", [["A", "B", "none"]], "B"),
        ("test_Art_113", "Which? <image 1>", ["red", "blue"], "C"),
    ]
    standard = [_mmmu(name, question, options, gold, images=2) for name, question, options, gold in questions]
    vision = [
        {
            "id": name,
            "image": embedded(picture(100 + n, "P")),
            "options": str(options),
            "answer": gold,
            "subject": "Art",
        }
        for n, (name, _, options, gold) in enumerate(questions)
    ]
    for row, (name, *_) in zip(standard, questions, strict=True):
        row["id"] = name
    write_parquet(root / "standard (10 options)/test-00000-of-00002.parquet", standard[:2], PRO_STANDARD)
    write_parquet(root / "standard (10 options)/test-00001-of-00002.parquet", standard[2:], PRO_STANDARD)
    write_parquet(root / "vision/test-00000-of-00001.parquet", vision, PRO_VISION)
    return root


def write_chartqa(root: Path) -> Path:
    """The layout of lmms-lab/ChartQA: 3 sound rows, an empty answer."""
    rows = [
        _chart("human_test", "How many?", "0", 110),
        _chart("augmented_test", "Which years?", "[2014, 2016]", 111),
        _chart("human_test", "Which year?", "2015", 112),
        _chart("human_test", "Which year?", "", 113),
    ]
    write_parquet(root / "data/test-00000-of-00001.parquet", rows, LMMS_CHARTQA)
    return root


def _chart(writer: str, question: str, answer: str, seed: int) -> dict[str, Any]:
    return {"type": writer, "question": question, "answer": answer, "image": embedded(picture(seed, "L", "JPEG"))}


def write_geometry3k(root: Path) -> Path:
    """The test split in the hub's layout: 2 sound rows, 3 broken ones."""
    data_sets.write_geometry3k(root)
    (root / "data/train-00000-of-00001.parquet").rename(root / "data/test-00000-of-00001.parquet")
    return root


# Benchmark -> what writes its fixture, the source's split, rows that are sound.
WRITERS = {
    "mathvista": (write_mathvista, "testmini", 5),
    "mathverse": (write_mathverse, "testmini", 5),
    "mathvision": (write_mathvision, "test", 4),
    "mmmu": (write_mmmu, "validation", 4),
    "mmmu_pro_standard": (write_mmmu_pro, "test", 3),
    "mmmu_pro_vision": (write_mmmu_pro, "test", 3),
    "chartqa": (write_chartqa, "test", 3),
    "geometry3k": (write_geometry3k, "test", 2),
}


def prepare_all(root: Path) -> Path:
    """Every benchmark's fixture, prepared under its name."""
    for name, (write, split, num_sound) in WRITERS.items():
        report = prepare(Settings(name, write(root / "downloads" / name), root / name, split))
        assert sum(report["shards"]) == num_sound
    return root
