"""Broken rows of a file of one's own: a row is what json alone reads of its line, or it is dropped with its reason."""

from __future__ import annotations

import base64
import dataclasses
import functools
import io
import json
import math
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from PIL import Image

from benchmarks.faults import damage
from benchmarks.faults.outcomes import Case
from care_jax.data.own_data import read_jsonl
from care_jax.errors import InputError
from care_jax.structs import Record

_TURNS = [
    {"role": "user", "content": "<image> Add 1?"},
    {"role": "assistant", "content": "<think>so</think><answer>4</answer>"},
]
_INSIDE = {"cut": damage.cut, "flipped": damage.flip, "inserted": damage.insert, **damage.JSON_DOCUMENT}
_COMMON = {"answer_kind": "integer", "id": "row"}


def rows(folder: Path, num_cases: int, seed: int) -> Iterator[Case]:
    """Yields files of a sound row, a damaged one and another sound one, which are written to `folder`."""
    picture = io.BytesIO()
    Image.new("RGB", (8, 6), "red").save(picture, "PNG")
    (folder / "a.png").write_bytes(picture.getvalue())
    sound = _sound_rows("data:image/png;base64," + base64.b64encode(picture.getvalue()).decode())
    lines = {name: json.dumps(row, ensure_ascii=False).encode() for name, row in sound.items()}
    whole = [(name, kind, change) for name in lines for kind, change in damage.ANY_FILE.items()]
    inside = [(name, kind, change) for name in lines for kind, change in _INSIDE.items()]
    for number in range(num_cases):  # what replaces a whole row comes once, what changes a part again and again
        name, kind, change = whole[number] if number < len(whole) else inside[number % len(inside)]
        line = change(lines[name], random.Random(f"{seed} {number}"))
        yield Case(f"{name} {kind} ({number}, seed {seed})", functools.partial(_is_read_right, folder, line))


def _sound_rows(uri: str) -> dict[str, dict[str, Any]]:
    """Returns a row of each form."""
    options = {"choices": ["red", "blue"], "answer_kind": "choice"}
    parts = [{"type": "image_url", "image_url": {"url": uri}}, {"type": "text", "text": " Add 1?"}]
    return {
        "text": {**_COMMON, "prompt": "1 + 2?", "answer": "3", "rationale": "é, so 3", "choices": None},
        "meta": {**_COMMON, "prompt": "1 + 2?", "answer": "3", "meta": {"é": [1.5, None], "in": {"of": "r"}}},
        "picture": {**_COMMON, "images": ["a.png"], "prompt": "How many? <image>", "answer": "1,234"},
        "choice": {**_COMMON, "images": [], "prompt": "Which?", "answer": "B", **options, "source": "colours"},
        "uri": {**_COMMON, "images": [uri, {"path": "a.png"}], "prompt": "How many?", "answer": "7"},
        "turns": {**_COMMON, "messages": _TURNS, "images": ["a.png"]},
        "parts": {**_COMMON, "messages": [{"role": "user", "content": parts}, _TURNS[1]]},
        "sharegpt": {
            **_COMMON,
            "conversations": [{"from": "human", "value": "<image> Add 1?"}, {"from": "gpt", "value": "4"}],
            "image": "a.png",
        },
    }


def _is_read_right(folder: Path, line: bytes) -> bool:
    """Reads the file; raises InputError with the reason of the damaged row if it was dropped."""
    around = [json.dumps({**_COMMON, "id": name, "prompt": "1 + 2?", "answer": "3"}).encode() for name in ("<", ">")]
    path = folder / "mine.jsonl"
    path.write_bytes(b"\n".join([around[0], line, around[1]]))
    source = read_jsonl(path, strict=False)
    first, *found, last = (source[index] for index in range(len(source)))
    if (first.id, last.id) != ("<", ">"):
        return False
    numbered = list(enumerate(line.split(b"\n"), start=2))
    broken = dict(source.problems)
    read = [(number, part) for number, part in numbered if part.strip() and number not in broken]
    if len(read) != len(found) or not broken.keys() <= dict(numbered).keys():
        return False
    if not all(_is(record, part, number, folder) for record, (number, part) in zip(found, read, strict=True)):
        return False
    for reason in broken.values():
        raise InputError(reason)
    return True


def _is(record: Record, line: bytes, number: int, folder: Path) -> bool:
    """True if a record is what its line says."""
    row = {key: value for key, value in json.loads(line.decode("utf-8-sig")).items() if not _is_missing(value)}
    turns: list[dict[str, Any]] | None = row.get("messages", row.get("conversations"))
    images = [row["image"]] if "image" in row else row.get("images", [])
    prompt, answer, rationale = row.get("prompt"), row.get("answer"), row.get("rationale")
    if turns is not None:
        (_, prompt, inside), *response = map(_turn, turns)
        images = images or inside
        for _, text, _ in response:
            head, is_tagged, tail = text.removeprefix("<think>").partition("</think>")
            rationale = rationale or (head.strip() if is_tagged else None)
            answer = answer or (tail.removeprefix("<answer>").removesuffix("</answer>") if is_tagged else text)
    assert isinstance(prompt, str)
    assert isinstance(answer, str)
    wanted = Record(
        id=str(row["id"]) if "id" in row else f"mine.jsonl:{number}",
        source=row.get("source", "mine"),
        prompt=prompt if "<image>" in prompt else "<image>" * len(images) + prompt,
        images=tuple(_bytes(image, folder) for image in images),
        answer=answer.strip(),
        answer_kind=row["answer_kind"],
        choices=tuple(row["choices"]) if "choices" in row else None,
        rationale=rationale,
        meta=json.dumps(row["meta"], ensure_ascii=False) if "meta" in row else None,
    )
    return dataclasses.asdict(record) == dataclasses.asdict(wanted)


def _turn(turn: dict[str, Any]) -> tuple[str, str, list[Any]]:
    """Reads role, text and images of a turn."""
    role, content = turn.get("role", turn.get("from")), turn.get("content", turn.get("value"))
    if isinstance(content, str):
        return str(role), content, []
    assert isinstance(content, list)
    images = [part["image_url"]["url"] for part in content if part["type"] == "image_url"]
    return str(role), "".join(part.get("text", "<image>") for part in content), images


def _is_missing(value: Any) -> bool:
    return value is None or (isinstance(value, float) and math.isnan(value))


def _bytes(image: Any, folder: Path) -> bytes:
    """Reads a picture of a path, an object with a path, or base64."""
    path = image if isinstance(image, str) else image["path"]
    if path.startswith("data:"):
        return base64.b64decode(path.partition(",")[2])
    return (folder / path).read_bytes()
