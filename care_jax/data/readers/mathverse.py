r"""MathVerse: AI4Math/MathVerse, CaraJ/MathVerse-lmmseval with one file a version, or the original release.

The first is testmini.parquet, the last testmini.json (ZrrSkywalker/MathVerse) with the unpacked images.

788 problems in five versions each, from all text to none; "Text Only", which has no image, is left out, and a file of
it alone refused. The prompt is the column `query_cot`; in the version "Vision Only" it says that the question is in the
image, and the original release has the options only in the problem's other versions.

A free-form answer has no column for its kind: one number is kind "rounded", everything else LaTeX. Golds come with the
quantity's name and as `$...$` ("Volume $=367.57 \mathrm{~cm}^{3}$"); both are stripped.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from care_jax.data.file_formats import Numbered, file_rows, split_files
from care_jax.data.image_column import released_images
from care_jax.data.parsing import Row, gold_field, letter_gold, number_or, place_marks, text_field
from care_jax.errors import BadRowError, InputError, shown
from care_jax.structs import Record

SPLIT = "testmini"
VERSIONS = ("Text Dominant", "Text Lite", "Vision Intensive", "Vision Dominant", "Vision Only")
TEXT_ONLY = "Text Only"
_OPTION = re.compile(r"^([A-H])\s?[.:]\s*(.*)$", re.MULTILINE)
_OPTIONS_HEAD = re.compile(r"^Choices?:\s*$", re.MULTILINE)
_NAME = re.compile(r"^[A-Za-z][A-Za-z. ]*[A-Za-z.]\s*(?:\$\s*)?=\s*")


def slug(version: str) -> str:
    """Returns a version's name in a source: text_dominant for "Text Dominant"."""
    return version.lower().replace(" ", "_")


def files(root: Path, split: str) -> list[Path]:
    """Lists the one file, or one a version.

    Raises:
        InputError: there are only files of Text Only.
    """
    if found := split_files(root, split, "parquet", "json"):
        return found
    versions = root / f"{split}_version_split"
    if by_version := [path for version in VERSIONS for path in split_files(versions, slug(version), "parquet")]:
        return by_version
    for path in [root, *(path for folder in (root, root / "data", versions) for path in folder.glob("*text?only*"))]:
        if path.is_file() and re.search("text.only", path.name):
            raise _text_only(path)
    return []


def _text_only(path: Path) -> InputError:
    return InputError(
        f"{path} holds MathVerse's version {TEXT_ONLY}, whose questions have no picture; the benchmark is the five "
        f"others ({', '.join(VERSIONS)}); give the file that holds those, testmini.parquet or testmini.json"
    )


def rows(path: Path) -> Numbered:
    """Yields the rows of the five versions.

    Raises:
        InputError: all rows are of Text Only.
    """
    columns = ("sample_index", "problem_version", "question_type", "query_cot", "image", "answer")
    questions: dict[str, str] = {}  # of the problems, in the version that came first
    left_out = kept = 0
    for number, raw in file_rows(path, *columns, optional=("problem_index", "question", "question_for_eval")):
        if not isinstance(raw, BadRowError):
            if raw.get("problem_version") == TEXT_ONLY:
                left_out += 1
                continue
            problem, question = str(raw.get("problem_index")), raw.get("question_for_eval") or raw.get("question")
            if question:
                questions.setdefault(problem, question)
            else:
                raw["question_for_eval"] = questions.get(problem)
        kept += 1
        yield number, raw
    if left_out and not kept:
        raise _text_only(path)


def parse(where: str, raw: dict[str, Any], folder: Path) -> Row:
    """Parses one question in one version."""
    version = raw.get("problem_version")
    if version not in VERSIONS:
        raise BadRowError(
            f"problem_version is {shown(version)}, none of {', '.join(VERSIONS)}", "unknown problem_version"
        )
    images = released_images(raw.get("image"), folder)
    if len(images) != 1:
        raise BadRowError(f"{len(images)} images; a question has one", "not one image")
    choices = None
    if raw.get("question_type") == "multi-choice":
        choices = _options(raw.get("question") or raw.get("question_for_eval") or "")
        gold, kind = _choice_gold(raw, choices), "choice"
    else:
        gold = _NAME.sub("", gold_field(raw, "answer")).replace("$", "")
        kind = number_or("latex", gold)
    record = Record(
        id=f"mathverse/{text_field(raw, 'sample_index')}",
        source=f"mathverse_{slug(version)}",
        prompt=place_marks(text_field(raw, "query_cot"), 1),
        images=(),
        answer=gold,
        answer_kind=kind,
        choices=choices,
    )
    return Row(where, record, images)


def _options(question: str) -> tuple[str, ...] | None:
    """Finds the options at the end of a question, from A on; None if they cannot be read."""
    head = _OPTIONS_HEAD.search(question)
    found = _OPTION.findall(question, head.end()) if head else []
    in_order = [letter for letter, _ in found] == list("ABCDEFGH"[: len(found)])
    return tuple(text.strip() for _, text in found) if len(found) > 1 and in_order else None


def _choice_gold(raw: dict[str, Any], choices: tuple[str, ...] | None) -> str:
    """Reads a letter, the text of an option, or letters on lines of their own, all of which are needed."""
    lines = text_field(raw, "answer").splitlines()
    return ", ".join(lines) if len(lines) > 1 else letter_gold(lines[0], choices or ())
