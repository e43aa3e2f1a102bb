"""Small data sets in the layouts of the real ones, with the traps that were found in those."""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

IMAGE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
GEOMETRY3K = pa.schema(
    [
        ("images", pa.list_(IMAGE)),
        ("problem", pa.string()),
        ("answer", pa.string()),
        ("id", pa.int64()),
        ("choices", pa.list_(pa.string())),
        ("ground_truth", pa.string()),
    ]
)
CHARTQA = pa.schema(
    [("image", IMAGE), ("query", pa.string()), ("label", pa.list_(pa.string())), ("human_or_machine", pa.int64())]
)
VIRL39K = pa.schema(
    [
        ("question", pa.string()),
        ("answer", pa.string()),
        ("PassRate_32BTrained", pa.float64()),
        ("PassRate_7BBase", pa.float64()),
        ("category", pa.string()),
        ("source", pa.string()),
        ("qid", pa.string()),
        ("image", pa.list_(pa.string())),
    ]
)


def picture(seed: int, mode: str = "RGB", encoding: str = "PNG", size: tuple[int, int] = (40, 30)) -> bytes:
    """A random image of 5 x 4 blocks; `mode` is RGB, RGBA, L or P."""
    blocks = np.random.default_rng(seed).integers(0, 256, (4, 5, 3), dtype=np.uint8)
    image = Image.fromarray(blocks).resize(size, Image.Resampling.NEAREST).convert(mode)
    stream = io.BytesIO()
    image.save(stream, encoding)
    return stream.getvalue()


def embedded(encoded: bytes | None, path: str | None = None) -> dict[str, Any]:
    """An image as the hub stores it inside parquet."""
    return {"bytes": encoded, "path": path}


def write_parquet(path: Path, rows: Sequence[dict], schema: pa.Schema, row_group_size: int = 2) -> Path:
    """Rows as the hub writes them, its own schema among the metadata."""
    path.parent.mkdir(parents=True, exist_ok=True)
    features = {field.name: _feature(field.type) for field in schema}
    metadata = {"huggingface": json.dumps({"info": {"features": features}})}
    table = pa.Table.from_pylist(list(rows), schema.with_metadata(metadata))
    pq.write_table(table, path, row_group_size=row_group_size)
    return path


def _feature(kind: pa.DataType) -> dict:
    """A column's description in the form of `datasets`, which then reads these files, and so does lmms-eval."""
    if kind == IMAGE:
        return {"_type": "Image"}
    if pa.types.is_list(kind):
        return {"_type": "Sequence", "feature": _feature(kind.value_type)}
    if pa.types.is_struct(kind):
        return {field.name: _feature(field.type) for field in kind}
    return {"_type": "Value", "dtype": {"double": "float64"}.get(str(kind), str(kind))}


def write_geometry3k(root: Path) -> Path:
    """The hub's layout: 2 sound rows, 3 broken ones."""
    question = r"<image>In $\odot X, A B=30, C D=30,$ and $m \widehat{C Z}=40$. Find $m\widehat{A B}$"
    rows = [
        _geometry(0, [embedded(picture(0, "RGBA"))], question, "80", ["30", "40", "60", "80"], "D"),
        _geometry(
            7, [embedded(picture(1, "P"), "images/7.png")], "Find $x$.\r\nRound it.", r"5 \sqrt { 3 }", None, None
        ),
        _geometry(8, [embedded(None)], "<image>Find x.", "1", ["1", "2", "3", "4"], "A"),
        _geometry(9, [embedded(picture(2))], "<image>Find x.", " ", ["1", "2", "3", "4"], "A"),
        _geometry(10, [embedded(picture(3)[:60])], "<image>Find x.", "1", ["1", "2", "3", "4"], "A"),
    ]
    write_parquet(root / "data/train-00000-of-00001.parquet", rows, GEOMETRY3K)
    return root


def _geometry(number: int, images: list, problem: str, answer: str, choices: list | None, letter: str | None) -> dict:
    return {
        "images": images,
        "problem": problem,
        "answer": answer,
        "id": number,
        "choices": choices,
        "ground_truth": letter,
    }


def write_geometry3k_folders(root: Path) -> Path:
    """The original layout: ids 2 and 10 are sound, 11's letter names no choice, 12 has none."""
    for number, letter in ((10, "B"), (2, "D"), (11, "E"), (12, "")):
        folder = root / "val" / str(number)
        folder.mkdir(parents=True)
        (folder / "img_diagram.png").write_bytes(picture(number, "RGBA"))
        data = {
            "problem_text": "Find x.",
            "annotat_text": f"Find $x$ in drawing {number}.",
            "choices": ["1", r"2 \sqrt { 2 }", "3", "0"],
            "precise_value": [1.0, 2.8284, 3.0, 0.0],
            "answer": letter,
            "id": number,
        }
        (folder / "data.json").write_text(json.dumps(data))
    return root


def write_chartqa(root: Path) -> Path:
    """The hub's layout, in two files: people's and a machine's questions, gold 0, a list, an empty label."""
    rows = [
        _chart(0, picture(20, "L", "JPEG"), "How many bars?", ["0"], 0),
        _chart(1, picture(21), "Which years?", ["[2014, 2016]"], 1),
        _chart(2, picture(22), "What share?", ["57%"], 0),
        _chart(3, picture(23), "Which colour?", [], 0),
    ]
    write_parquet(root / "data/val-00000-of-00002.parquet", rows[:3], CHARTQA)
    write_parquet(root / "data/val-00001-of-00002.parquet", rows[3:], CHARTQA)
    return root


def _chart(number: int, image: bytes, query: str, label: list[str], writer: int) -> dict:
    return {"image": embedded(image, f"{number}.png"), "query": query, "label": label, "human_or_machine": writer}


def write_chartqa_folder(root: Path) -> Path:
    """The original layout: people's questions in one array, a machine's in the other."""
    folder = root / "ChartQA Dataset" / "train"
    (folder / "png").mkdir(parents=True)
    for number in (1, 2):
        (folder / "png" / f"{number}.png").write_bytes(picture(30 + number))
    human = [
        {"imgname": "2.png", "query": "What is the sum?", "label": "0.57"},
        {"imgname": "1.png", "query": "Is it rising?", "label": "Yes"},
        {"imgname": "9.png", "query": "Is it rising?", "label": "Yes"},
    ]
    machine = [{"imgname": "1.png", "query": "How many?", "label": "14"}]
    (folder / "train_human.json").write_text(json.dumps(human))
    (folder / "train_augmented.json").write_text(json.dumps(machine))
    return root


def write_virl39k(root: Path) -> Path:
    """One parquet file and images/: 7 sound rows of all kinds, 5 broken ones."""
    options = "\n".join(f"{letter}. {number}" for number, letter in enumerate("ABCDEFGHIJKL"))
    rows = [
        _virl("q0", "<image>\nFind the angle.", r"\boxed{17^\circ}", ["images/q0-0.jpg"], 0.5, -1.0),
        _virl("q1", "What is 2+3?", r"\boxed{5}", [], 1.0, 0.9, source="DeepScaleR"),
        _virl("q2", "<image> beside <image>: which?\n(A) left (B) right", r"\boxed{B}", _jpegs("q2", 1, 0), 0.2, 0.1),
        _virl("q3", "Which of these?\n" + options, r"\boxed{L}", ["images/q3-0.jpg"], 0.3, 0.2),
        _virl("q4", "<image>\nAngle 30\u63b3 is given.", "\\boxed{118\u63b3}", ["images/q4-0.jpg"], 0.0, 0.0),
        _virl("q5", "<image>\nDoes it rise?", r"\boxed{\text{it increases}}", ["images/q5-0.jpg"], 0.9, 0.9),
        _virl("q6", "<image>\r\nSolve.", r"\boxed{\frac{1}{2}}", ["images/q6-0.jpg"], 0.9, 0.9),
        _virl("q7", "Compare both.", r"\boxed{1}", _jpegs("q7", 0, 1), 0.9, 0.9),
        _virl("q8", "<image>\nFind x.", r"\boxed{\frac{1}{2}", ["images/q0-0.jpg"], 0.9, 0.9),
        _virl("q0", "<image>\nFind y.", r"\boxed{1}", ["images/q0-0.jpg"], 0.9, 0.9),
        _virl("q9", "<image>\nFind z.", r"\boxed{1}", ["images/absent.jpg"], 0.9, 0.9),
        _virl("q10", "<image>\nSay <|im_end|>.", r"\boxed{1}", ["images/q0-0.jpg"], 0.9, 0.9),
    ]
    (root / "images").mkdir(parents=True)
    for name in {name for row in rows for name in row["image"] if "absent" not in name}:
        (root / name).write_bytes(picture(sum(name.encode()), encoding="JPEG"))
    write_parquet(root / "39Krelease.parquet", rows, VIRL39K, row_group_size=100)
    return root


def _jpegs(qid: str, *numbers: int) -> list[str]:
    return [f"images/{qid}-{number}.jpg" for number in numbers]


def _virl(
    qid: str, question: str, answer: str, image: list[str], rate: float, base_rate: float, source: str = "MMK12"
) -> dict:
    return {
        "question": question,
        "answer": answer,
        "PassRate_32BTrained": rate,
        "PassRate_7BBase": base_rate,
        "category": "(GradeSchool) Geometric",
        "source": source,
        "qid": qid,
        "image": image,
    }


def write_vision_r1(root: Path, images: Path) -> Path:
    """Both arrays; their images in another folder, as they are downloaded."""
    root.mkdir(parents=True)
    for number, name in enumerate(("llava_cot_images/coco/1.jpg", "mulberry_images/geo3k/2.png")):
        (images / name).parent.mkdir(parents=True)
        (images / name).write_bytes(picture(40 + number))
    good = "<think>\nIt is red.\n</think>\n\n<answer> Final Answer: Red\n</answer>"
    llava = [
        {
            "id": "a",
            "image": "llava_cot_images/coco/1.jpg",
            "conversations": _turns("human", "gpt", "<image>\nHue?", good),
        },
        {
            "id": "b",
            "image": "llava_cot_images/coco/1.jpg",
            "conversations": 2 * _turns("human", "gpt", "<image>\nHue?", good),
        },
    ]
    hint = '\nReturn the final answer as "Final Answer:option".'
    mulberry = [
        {
            "images": "mulberry_images/geo3k/2.png",
            "conversations": _turns(
                "user",
                "assistant",
                "<image>\nWhich?\nA. 1\nB. 2" + hint,
                good.replace("Red", "B").replace("is red", "is 2"),
            ),
        },
        {
            "images": "mulberry_images/geo3k/2.png",
            "conversations": _turns("user", "assistant", "<image>\nWhich?", "<think>It is</think> 5"),
        },
    ]
    (root / "vision_r1_llava_cot_full.json").write_text(json.dumps(llava, indent=2))
    (root / "vision_r1_mulberry_sft_full.json").write_text(json.dumps(mulberry))
    return root


def _turns(asker: str, answerer: str, question: str, response: str) -> list[dict[str, str]]:
    return [{"from": asker, "value": question}, {"from": answerer, "value": response}]


def write_easyr1_parquet(root: Path) -> Path:
    """Extra columns name kinds; choices are a string, and a gold is the text of an option."""
    schema = pa.schema(
        [
            ("images", pa.list_(IMAGE)),
            ("problem", pa.string()),
            ("answer", pa.string()),
            ("answer_kind", pa.string()),
            ("choices", pa.string()),
        ]
    )
    rows = [
        {"images": [embedded(picture(50))], "problem": "<image>Find x.", "answer": r"\frac{1}{2}"},
        {
            "images": [embedded(picture(51))],
            "problem": "<image>Which?",
            "answer": "blue",
            "answer_kind": "choice",
            "choices": "['red', 'blue']",
        },
        {"images": [], "problem": "Which?", "answer": "blue", "answer_kind": "choice", "choices": "[red"},
        {"images": [], "problem": "How many?", "answer": "some", "answer_kind": "integer"},
    ]
    write_parquet(root / "train.parquet", rows, schema)
    return root


def write_easyr1_jsonl(root: Path) -> Path:
    """Windows newlines, a number as gold, a line that is no JSON."""
    root.mkdir(parents=True)
    (root / "a.png").write_bytes(picture(60))
    lines = [
        json.dumps({"id": "x", "problem": "<image>How many?", "answer": 0, "images": ["a.png"]}),
        "{",
        json.dumps({"problem": "<image>How many?", "answer": None, "images": ["a.png"]}),
    ]
    (root / "train.jsonl").write_bytes("\r\n".join(lines).encode())
    return root
