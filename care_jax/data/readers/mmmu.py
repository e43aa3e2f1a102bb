"""MMMU and MMMU-Pro: parquet files of MMMU/MMMU and MMMU/MMMU_Pro as the hub has them.

MMMU comes in 30 folders, one a subject, or merged; its validation split has 900 questions. MMMU-Pro has 1,730, once as
text with up to twelve options ("standard (10 options)") and once drawn into one picture ("vision").

Question and options name their pictures as <image 1> .. <image 7>, in MMMU-Pro in any order: the first mention becomes
the picture. An open answer has no column for its kind: one number is kind "rounded", everything else text.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from care_jax.data.file_formats import Numbered, parquet_rows, split_files
from care_jax.data.image_column import image_of
from care_jax.data.parsing import (
    OPEN_REQUEST,
    PLACEHOLDER,
    Row,
    ask_for_letter,
    gold_field,
    letter_gold,
    number_or,
    option_texts,
    text_field,
)
from care_jax.errors import BadRowError, shown
from care_jax.structs import Record

SPLIT, PRO_SPLIT = "validation", "test"
STANDARD, VISION = "standard (10 options)", "vision"  # folders of MMMU-Pro
NUM_IMAGES = 7
_IMAGES = tuple(f"image_{number}" for number in range(1, NUM_IMAGES + 1))
_COLUMNS = ("id", "question", "options", "image_1", "answer")
_MARK = re.compile(r"<image (\d)>")
_LOOK = "Answer the multiple-choice question in the picture with the letter of the right option."


def files(root: Path, split: str) -> list[Path]:
    """Lists the merged files, or those of each subject."""
    if merged := split_files(root, split, "parquet"):
        return merged
    folders = sorted(folder for folder in root.iterdir() if folder.is_dir()) if root.is_dir() else []
    return [path for folder in folders for path in split_files(folder, split, "parquet")]


def rows(path: Path) -> Numbered:
    """Yields the rows of MMMU."""
    return parquet_rows(path, *_COLUMNS, "question_type", optional=_IMAGES)


def parse(where: str, raw: dict[str, Any], folder: Path) -> Row:
    """Parses one question of MMMU."""
    if raw["question_type"] == "multiple-choice":
        return _parse_choice(where, raw, folder, "mmmu")
    gold = _open_gold(raw)
    prompt, images = _place_images(text_field(raw, "question") + OPEN_REQUEST, raw, folder)
    record = Record(f"mmmu/{text_field(raw, 'id')}", "mmmu", prompt, (), gold, number_or("text", gold))
    return Row(where, record, images)


def standard_files(root: Path, split: str) -> list[Path]:
    """Lists the files of MMMU-Pro's questions as text."""
    return split_files(root / STANDARD, split, "parquet")


def standard_rows(path: Path) -> Numbered:
    """Yields the rows of MMMU-Pro's questions as text."""
    return parquet_rows(path, *_COLUMNS, optional=_IMAGES)


def parse_standard(where: str, raw: dict[str, Any], folder: Path) -> Row:
    """Parses one question of MMMU-Pro as text."""
    return _parse_choice(where, raw, folder, "mmmu_pro_standard")


def vision_files(root: Path, split: str) -> list[Path]:
    """Lists the files of MMMU-Pro's questions as pictures."""
    return split_files(root / VISION, split, "parquet")


def vision_rows(path: Path) -> Numbered:
    """Yields the rows of MMMU-Pro's questions as pictures."""
    return parquet_rows(path, "id", "image", "options", "answer")


def parse_vision(where: str, raw: dict[str, Any], folder: Path) -> Row:
    """Parses one question of MMMU-Pro as a picture, which shows the options too."""
    return _choice_row(where, raw, "mmmu_pro_vision", PLACEHOLDER + _LOOK, (image_of(raw["image"], folder),))


def _parse_choice(where: str, raw: dict[str, Any], folder: Path, source: str) -> Row:
    prompt, images = _place_images(ask_for_letter(text_field(raw, "question"), _options(raw)), raw, folder)
    return _choice_row(where, raw, source, prompt, images)


def _choice_row(where: str, raw: dict[str, Any], source: str, prompt: str, images: tuple[bytes | Path, ...]) -> Row:
    choices = _options(raw)
    gold = letter_gold(gold_field(raw, "answer"), choices)
    return Row(where, Record(f"{source}/{text_field(raw, 'id')}", source, prompt, (), gold, "choice", choices), images)


def _options(raw: dict[str, Any]) -> tuple[str, ...]:
    """Reads the options, a string that spells a list; one question has its list inside another list."""
    value = raw["options"]
    choices = option_texts(value[1:-1] if isinstance(value, str) and value.startswith("[[") else value)
    if choices is None:
        raise BadRowError(f"options are {shown(value)}", "no options")
    return choices


def _open_gold(raw: dict[str, Any]) -> str:
    """Reads the gold of an open question; a string that spells a list gives several accepted answers."""
    gold = gold_field(raw, "answer")
    return "\n".join(option_texts(gold) or ()) if gold.startswith("[") else gold


def _place_images(prompt: str, raw: dict[str, Any], folder: Path) -> tuple[str, tuple[bytes | Path, ...]]:
    """Returns the prompt with its pictures in the order of their first mention, or all first if none is mentioned.

    A further mention of a picture becomes "image 1", and this name then also follows the picture itself.
    """
    mentions = _MARK.findall(prompt)
    if not mentions:
        present = [raw[name] for name in _IMAGES if raw.get(name) is not None]
        return PLACEHOLDER * len(present) + prompt, tuple(image_of(image, folder) for image in present)
    placed: list[str] = []

    def place(mark: re.Match[str]) -> str:
        name = f"image {mark[1]}"
        if mark[1] in placed:
            return name
        placed.append(mark[1])
        return PLACEHOLDER if mentions.count(mark[1]) == 1 else f"{PLACEHOLDER} ({name})"

    prompt = _MARK.sub(place, prompt)
    return prompt, tuple(image_of(raw.get(f"image_{number}"), folder) for number in placed)
