"""Vision-R1-cold (Osilly): 260,994 traces for the cold start, in two JSON arrays of different keys.

The images come from elsewhere: LLaVA-CoT-100k as llava_cot_images/, Mulberry-SFT as mulberry_images/; --images names
the folder of both. Licence: non-commercial. The answers serve as targets of the cold start only, hence kind text.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from care_jax.data.conversations import read_turns, split_response
from care_jax.data.file_formats import Numbered, array_rows
from care_jax.data.image_column import images_of
from care_jax.data.parsing import Row, gold_field, place_marks, text_field
from care_jax.errors import BadRowError, shown
from care_jax.structs import Record

_FILES = {"vision_r1_llava_cot_full.json": "llava_cot", "vision_r1_mulberry_sft_full.json": "mulberry"}
# Questions ask for this form and answers begin with it; care_jax asks for its own form, so both are stripped.
_ANSWER_PREFIX = re.compile(r"\s*final answer\s*:\s*", re.IGNORECASE)
_HINT = re.compile(r"(?<!\s)\s*return the final answer as [\"“']?final answer:\s?option[\"”']?\.?\s*$", re.IGNORECASE)


def files(root: Path, split: str) -> list[Path]:
    """Lists one array or both."""
    return [path for name in _FILES if split == "train" and (path := root / name).is_file()]


def rows(path: Path) -> Numbered:
    """Yields the rows, with the name of their array as `part`."""
    for number, raw in array_rows(path):
        yield number, raw if isinstance(raw, BadRowError) else {**raw, "part": _FILES[path.name]}


def parse(where: str, raw: dict[str, Any], folder: Path) -> Row:
    """Parses one trace. `images` holds one path, as `image` does in the other array."""
    exchange = read_turns(raw.get("conversations"))
    if exchange.response is None:
        raise BadRowError("the question has no response", "several turns")
    rationale, answer = split_response(exchange.response)
    rest = exchange.response.partition("</think>")[2].strip()
    if rationale is None or not (rest.startswith("<answer>") and rest.endswith("</answer>")):
        raise BadRowError(
            f"{shown(exchange.response)} is not <think>...</think><answer>...</answer>", "response of another form"
        )
    texts = {"rationale": rationale, "answer": _ANSWER_PREFIX.sub("", answer, count=1)}
    images = images_of(raw.get("image", raw.get("images")), folder)
    record = Record(
        id=f"vision_r1/{where}",
        source=f"vision_r1_{raw['part']}",
        prompt=place_marks(_HINT.sub("", exchange.question), len(images)),
        images=(),
        answer=gold_field(texts, "answer"),
        answer_kind="text",
        rationale=text_field(texts, "rationale"),
    )
    return Row(where, record, images)
