"""What the readers share: a row whose images are still to be read, the reasons to drop one, and the checks of a row."""

from __future__ import annotations

import ast
import dataclasses
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from care_jax.inputs import images
from care_jax.inputs.media import MARKS
from care_jax.rewards.response_format import ANSWER_TAGS
from care_jax.rewards.verifiers import check_gold
from care_jax.rewards.verifiers.choice import LETTERS
from care_jax.rewards.verifiers.number import read_number
from care_jax.structs import Record

PLACEHOLDER, _VIDEO = MARKS
_CONTROL = re.compile(r"<\|[a-z_]+\|>")  # Qwen's special tokens; the processor knows those of a model exactly
_LETTER = re.compile(rf"\(?([{LETTERS}])\)?")
# A degree sign that was read in the wrong encoding: UTF-8 as GBK, or as Latin-1.
_BROKEN_DEGREE = re.compile(r"(?<=[\d}]) ?(?:\u63b3|\u00c2\u00b0)")


class BadRow(ValueError):
    """A row that cannot be used. Rows are counted by `reason`; the text says what was found."""

    def __init__(self, message: str, reason: str = "") -> None:
        super().__init__(message)
        self.reason = reason or message


@dataclasses.dataclass(frozen=True)
class Row:
    """A row that was read; `record` lacks only its images' bytes."""

    where: str  # file and row
    record: Record
    images: tuple[bytes | Path, ...]

    def load(self) -> Record:
        """The whole record. Raises BadRow where an image's file is missing."""
        return dataclasses.replace(self.record, images=tuple(map(image_bytes, self.images)))


def image_bytes(image: bytes | Path) -> bytes:
    """An image as it is stored. Raises BadRow where its file is missing."""
    if isinstance(image, bytes):
        return image
    try:
        return image.read_bytes()
    except OSError as error:
        raise BadRow(f"no image {image}: {error.strerror}", "no image file") from None


def decode_picture(encoded: bytes, name: str = "image") -> Image.Image:
    """An image as `images.decode_image` gives it. Raises BadRow, with its name, for one that could stop a run."""
    try:
        picture = images.decode_image(encoded)
        # For its check alone: an image whose sides differ too much cannot be resized by any model's processor.
        images.smart_resize(picture.height, picture.width, factor=28, min_pixels=1, max_pixels=1 << 30)
    except ValueError as error:
        raise BadRow(f"{name}: {error}", "unusable image") from None
    return picture


def text_field(raw: Mapping[str, Any], key: str) -> str:
    """A text of a row, degree signs and newlines mended. Raises BadRow where it is missing, empty or no text."""
    value = raw.get(key)
    if isinstance(value, int | float) and not isinstance(value, bool):
        value = str(value)  # a gold of 0 is a gold
    if not isinstance(value, str) or not value.strip():
        raise BadRow(f"{key} must be a text that is not empty, not {value!r}", f"no {key}")
    return _BROKEN_DEGREE.sub("°", value.replace("\r\n", "\n").replace("\r", "\n")).strip()


def gold_field(raw: Mapping[str, Any], key: str) -> str:
    """As text_field, on one line: several lines would be several right answers."""
    return " ".join(text_field(raw, key).splitlines())


def option_texts(value: Any) -> tuple[str, ...] | None:
    """Option texts from a list, from a string that spells one, or from None."""
    if isinstance(value, str):
        try:
            value = ast.literal_eval(value)
        except (ValueError, SyntaxError):
            raise BadRow(f"choices {value!r} spell no list", "unreadable choices") from None
    if value is None:
        return None
    if not isinstance(value, list | tuple) or not all(isinstance(option, str) for option in value):
        raise BadRow(f"choices must be a list of texts, not {value!r}", "unreadable choices")
    return tuple(value) or None


def ask_for_letter(question: str, choices: Sequence[str]) -> str:
    """The question with its options, one a line."""
    options = "\n".join(f"{letter}. {option}" for letter, option in zip(LETTERS, choices, strict=False))
    return f"{question}\n{options}\nAnswer with the letter of the right option."


def letter_gold(gold: str, choices: Sequence[str]) -> str:
    """The gold of a question that asks for a letter, from a letter or the text of an option: "(C)".

    In brackets it stays a letter where option texts are letters in another order. `choices` are empty where they are
    unknown. Raises BadRow for a gold that names no option.
    """
    letter = _LETTER.fullmatch(gold)
    if letter and (not choices or LETTERS.index(letter[1]) < len(choices)):
        return f"({letter[1]})"
    return option_gold(gold, choices)


def option_gold(gold: str, choices: Sequence[str]) -> str:
    """As letter_gold, from the text of an option alone; options of one text are all right, each on a line."""
    right = [letter for letter, option in zip(LETTERS, choices, strict=False) if option.strip() == gold]
    if not right:
        raise BadRow(f"the gold {gold!r} names none of the options {list(choices)}", "gold names no option")
    return "\n".join(f"({letter})" for letter in right)


def number_or(kind: str, gold: str) -> str:
    """The kind of a free answer that no column names: "rounded" where every line is one number, else `kind`."""
    return "rounded" if all(map(read_number, gold.splitlines())) else kind


def image_of(value: Any, folder: Path) -> bytes | Path:
    """An image column's entry: a struct of bytes and path, a path from `folder`, or bytes."""
    if isinstance(value, Mapping):
        value = value["bytes"] if value.get("bytes") is not None else value.get("path")
    if isinstance(value, bytes):
        return value
    if isinstance(value, str) and value:
        return folder / value
    raise BadRow(f"an image has neither bytes nor path, but {value!r}", "image without bytes and path")


def images_of(value: Any, folder: Path) -> tuple[bytes | Path, ...]:
    """An image column: a list in the prompt's order, one image alone, or None for a text-only row."""
    if value is None or value == "":
        return ()
    return tuple(image_of(image, folder) for image in (value if isinstance(value, list) else [value]))


def place_marks(prompt: str, num_images: int, *, mend_up_to: int = 1) -> str:
    """The prompt with one "<image>" an image; if it has none, they are put first for up to `mend_up_to` images."""
    count = prompt.count(PLACEHOLDER)
    if count == 0 and num_images <= mend_up_to:
        return PLACEHOLDER * num_images + prompt
    if count != num_images:
        raise BadRow(
            f"the prompt holds {count} {PLACEHOLDER} for {num_images} images; give one each, or none",
            f"{PLACEHOLDER} marks and images differ in number",
        )
    return prompt


def unbox(answer: str) -> str:
    r"""What stands inside the one \boxed{...} of an answer; an answer without a box is returned as it is.

    Raises BadRow for a box that does not close, an empty one, and for several.
    """
    start = answer.find(r"\boxed{")
    if start < 0:
        return answer
    first = start + len(r"\boxed{")
    depth, end = 1, first
    while end < len(answer) and depth:
        depth += {"{": 1, "}": -1}.get(answer[end], 0) if answer[end - 1] != "\\" else 0
        end += 1
    if depth:
        raise BadRow(f"the box in {answer[:80]!r} does not close", r"unbalanced \boxed")
    if r"\boxed{" in answer[end:]:
        raise BadRow(f"{answer[:80]!r} holds several boxes", r"several \boxed")
    inside = answer[first : end - 1].strip()
    if not inside:
        raise BadRow(f"the box in {answer[:80]!r} is empty", r"empty \boxed")
    return inside


def check_gold_of(record: Record) -> None:
    """Raises BadRow where the gold is not of its kind."""
    try:
        check_gold(record.answer_kind, record.answer, record.choices)
    except ValueError as error:
        raise BadRow(str(error), f"gold is no {record.answer_kind}") from None


def check_texts(record: Record) -> None:
    """Raises BadRow for a text that no run could encode: not UTF-8, or one that spells a tag or a control token."""
    if record.prompt.count(_VIDEO) != len(record.videos):
        raise BadRow(f"prompt spells {_VIDEO}, and the row has no such video", f"prompt spells {_VIDEO}")
    for field in ("id", "source", "prompt", "answer", "rationale", "choices"):
        try:
            "".join(getattr(record, field) or "").encode()
        except UnicodeEncodeError as error:
            raise BadRow(f"{field} is not UTF-8: {error.reason}", f"{field} is not UTF-8") from None
    for field in ("prompt", "answer", "rationale"):
        text = getattr(record, field) or ""
        tags = [tag for tag in ANSWER_TAGS.marks if tag in text] if field != "prompt" else []
        if found := [*tags, *_CONTROL.findall(text)]:
            raise BadRow(f"{field} spells {', '.join(found)}", f"{field} spells a tag or control token")
