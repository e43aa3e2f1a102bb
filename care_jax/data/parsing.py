"""Parsing shared by the readers: the parsed row, and functions from columns of a data set to fields of a record."""

from __future__ import annotations

import ast
import dataclasses
import json
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeGuard

from care_jax.data.image_column import image_bytes
from care_jax.errors import BadRowError, shown
from care_jax.inputs.media import MARKS
from care_jax.rewards.verifiers.number import read_number
from care_jax.rewards.verifiers.reading.options import LETTERS
from care_jax.structs import Record, Video

PLACEHOLDER, VIDEO_PLACEHOLDER = MARKS
OPEN_REQUEST = "\nAnswer with one number, word or phrase."  # behind a question without options
MAX_META_LEN = 1 << 16  # bytes; they travel with every response to every reward function
_LETTER = re.compile(rf"\(?([{LETTERS}])\)?")
_OPTION = re.compile(r"""'[^'\\\n]*(?:\\.[^'\\\n]*)*'|"[^"\\\n]*(?:\\.[^"\\\n]*)*\"""")
_LIST = re.compile(rf"\s*[\[(]\s*(?:(?:{_OPTION.pattern})\s*(?:,\s*(?:{_OPTION.pattern})\s*)*(?:,\s*)?)?[\])]\s*")
# A degree sign that was read in the wrong encoding: UTF-8 as GBK, or as Latin-1.
_BROKEN_DEGREE = re.compile(r"(?<=[\d}]) ?(?:\u63b3|\u00c2\u00b0)")


@dataclasses.dataclass(frozen=True)
class VideoFiles:
    """A video whose frames are not read yet."""

    frames: tuple[bytes | Path, ...]
    fps: float  # frames a second, of these frames


@dataclasses.dataclass(frozen=True)
class Row:
    """A parsed row; `record` lacks only the bytes of its images and frames."""

    where: str  # file and row number, for messages
    record: Record
    images: tuple[bytes | Path, ...]
    videos: tuple[VideoFiles, ...] = ()

    @property
    def pictures(self) -> tuple[bytes | Path, ...]:
        """The images, and the frames of the videos."""
        return (*self.images, *(frame for video in self.videos for frame in video.frames))

    def load(self) -> Record:
        """Reads images and frames and returns the whole record; raises what `image_bytes` raises."""
        videos = tuple(Video(tuple(map(image_bytes, video.frames)), video.fps) for video in self.videos)
        return dataclasses.replace(self.record, images=tuple(map(image_bytes, self.images)), videos=videos)


def is_number(value: Any) -> TypeGuard[int | float]:
    """Returns True for a number, which True and False are not."""
    return isinstance(value, int | float) and not isinstance(value, bool)


def is_blank(text: str) -> bool:
    """Returns True if a text has nothing to see: spaces, line ends, control and zero-width characters."""
    return not any(character.isprintable() and not character.isspace() for character in text)


def text_field(raw: Mapping[str, Any], key: str) -> str:
    """Returns a text of a row, with broken degree signs and newlines repaired.

    Raises:
        BadRowError: the field is missing, empty or not a text.
    """
    value = raw.get(key)
    # Golds such as 0 are numbers in some files.
    if is_number(value) and math.isfinite(value):
        value = str(value)
    if not isinstance(value, str) or is_blank(value):
        raise BadRowError(f"{key} must be a text that is not empty, not {shown(value)}", f"no {key}")
    return _BROKEN_DEGREE.sub("°", value.replace("\r\n", "\n").replace("\r", "\n")).strip()


def gold_field(raw: Mapping[str, Any], key: str) -> str:
    """Returns a text as `text_field` does, on one line: several lines would be several accepted answers."""
    return " ".join(text_field(raw, key).splitlines())


def meta_field(value: Any) -> str | None:
    """Returns the JSON text of an object for reward functions, from the object or from a text that spells it.

    None, and a text that spells null, say that there is none.

    Raises:
        BadRowError: something else, an object that holds more than JSON can, or one of more than MAX_META_LEN bytes.
    """
    try:
        found = json.loads(value) if isinstance(value, str) else value
        text = json.dumps(found, ensure_ascii=False, allow_nan=False)
        size = len(text.encode())
    except (TypeError, ValueError, RecursionError) as error:  # such as NaN, bytes or half a surrogate pair
        raise BadRowError(f"meta is no JSON object: {shown(str(error))}", "meta is no JSON object") from None
    if found is None:
        return None
    if not isinstance(found, dict):
        raise BadRowError(f"meta must be a JSON object, not {shown(found)}", "meta is no JSON object")
    if size > MAX_META_LEN:
        raise BadRowError(f"meta has {size} bytes as JSON; at most {MAX_META_LEN} are allowed", "meta is too long")
    return text


def option_texts(value: Any) -> tuple[str, ...] | None:
    """Returns option texts from a list, from a string that spells one, or from None.

    Raises:
        BadRowError: the value is something else.
    """
    if isinstance(value, str):
        value = _spelled_list(value)
    if value is None:
        return None
    if not isinstance(value, list | tuple) or not all(isinstance(option, str) for option in value):
        raise BadRowError(f"choices must be a list of texts, not {shown(value)}", "unreadable choices")
    return tuple(value) or None


def _spelled_list(text: str) -> list[str] | None:
    """Reads a list of texts as Python writes it. Only the texts are given to Python's parser, one at a time."""
    if text.strip() == "None":
        return None
    if not (_LIST.fullmatch(text)):
        raise BadRowError(f"choices {shown(text)} do not spell a list of texts", "unreadable choices")
    try:
        return [ast.literal_eval(option) for option in _OPTION.findall(text)]
    except (ValueError, SyntaxError):  # such as "\x1"
        raise BadRowError(f"choices {shown(text)} do not spell a list of texts", "unreadable choices") from None


def ask_for_letter(question: str, choices: Sequence[str]) -> str:
    """Returns the question followed by its options, one a line, and the request for a letter."""
    options = "\n".join(f"{letter}. {option}" for letter, option in zip(LETTERS, choices, strict=False))
    return f"{question}\n{options}\nAnswer with the letter of the right option."


def letter_gold(gold: str, choices: Sequence[str]) -> str:
    """Returns the gold of a question that asks for a letter, from a letter or the text of an option: "(C)".

    The brackets mark it as a letter even if the option texts are letters in another order.

    Args:
        gold: a letter, or the text of an option.
        choices: the option texts; empty if they are unknown.

    Raises:
        BadRowError: the gold names no option.
    """
    letter = _LETTER.fullmatch(gold)
    if letter and (not choices or LETTERS.index(letter[1]) < len(choices)):
        return f"({letter[1]})"
    return option_gold(gold, choices)


def option_gold(gold: str, choices: Sequence[str]) -> str:
    """Returns the gold as `letter_gold` does, from the text of an option; options with equal texts are all accepted.

    Raises:
        BadRowError: no option has this text.
    """
    right = [letter for letter, option in zip(LETTERS, choices, strict=False) if option.strip() == gold]
    if not right:
        raise BadRowError(
            f"the gold {shown(gold)} names none of the options {shown(list(choices))}", "gold names no option"
        )
    return "\n".join(f"({letter})" for letter in right)


def number_or(kind: str, gold: str) -> str:
    """Returns the kind of a free answer without a column for it: "rounded" if every line is one number, else `kind`."""
    return "rounded" if all(map(read_number, gold.splitlines())) else kind


def place_marks(prompt: str, num_images: int, *, mend_up_to: int = 1, mark: str = PLACEHOLDER) -> str:
    """Returns the prompt with one "<image>" mark for each image.

    Args:
        prompt: the question.
        num_images: how many images it has.
        mend_up_to: a prompt without marks gets them at its beginning if it has at most so many images.
        mark: the mark; that of videos if it is these that are counted.

    Raises:
        BadRowError: the number of marks is wrong.
    """
    count, name = prompt.count(mark), f"{mark[1:-1]}s"
    if count == 0 and num_images <= mend_up_to:
        return mark * num_images + prompt
    if count != num_images:
        raise BadRowError(
            f"the prompt holds {count} {mark} for {num_images} {name}; give one each, or none",
            f"{mark} marks and {name} differ in number",
        )
    return prompt


def unbox(answer: str) -> str:
    r"""Returns the content of the one \boxed{...} in an answer; an answer without a box is returned as it is.

    Raises:
        BadRowError: the box does not close or is empty, or there are several.
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
        raise BadRowError(f"the box in {shown(answer)} does not close", r"unbalanced \boxed")
    if r"\boxed{" in answer[end:]:
        raise BadRowError(f"{shown(answer)} holds several boxes", r"several \boxed")
    inside = answer[first : end - 1].strip()
    if not inside:
        raise BadRowError(f"the box in {shown(answer)} is empty", r"empty \boxed")
    return inside
