"""Checks that rows of any data set must pass, and the reasons for leaving rows out."""

from __future__ import annotations

import re
from collections.abc import Collection
from typing import NamedTuple

from PIL import Image

from care_jax.errors import InputError
from care_jax.inputs import images
from care_jax.inputs.media import MARKS
from care_jax.rewards.response_format import ANSWER_TAGS
from care_jax.rewards.verifiers import check_gold, require_allowed
from care_jax.structs import Record

_, _VIDEO = MARKS
_CONTROL = re.compile(r"<\|[a-z_]+\|>")  # Qwen's special tokens; the processor knows those of a model exactly


class BadRowError(InputError):
    """A row that cannot be used. Rows are counted by `reason`; the message says what was found."""

    def __init__(self, message: str, reason: str = "") -> None:
        """`reason` is one of few phrases; the message itself if it is left out."""
        super().__init__(message)
        self.reason = reason or message


class Dropped(NamedTuple):
    """A row that is left out."""

    where: str  # file and row number
    reason: str  # one of few, to count by
    detail: str
    broken: bool = True  # False if the row is sound and was filtered out
    repeats: str = ""  # id of the benchmark question that it repeats


def decode_picture(encoded: bytes, name: str = "image") -> Image.Image:
    """Decodes an image as `images.decode_image` does.

    Raises:
        BadRowError: the image could stop a run; the message begins with `name`.
    """
    try:
        picture = images.decode_image(encoded)
        # Only for its check: an image whose sides differ too much cannot be resized by any model's processor.
        images.smart_resize(picture.height, picture.width, factor=28, min_pixels=1, max_pixels=1 << 30)
    except ValueError as error:
        raise BadRowError(f"{name}: {error}", "unusable image") from None
    return picture


def check_gold_of(record: Record, allow: Collection[str]) -> None:
    """Checks that the gold is of its kind.

    Args:
        record: the record.
        allow: the functions "module:function" that it may name as its kind; no other is imported.

    Raises:
        BadRowError: it is not, or the kind is not allowed.
    """
    try:
        require_allowed(record.answer_kind, allow)
    except InputError as error:
        raise BadRowError(str(error), "kind is not in verify.allow") from None
    try:
        check_gold(record.answer_kind, record.answer, record.choices)
    except ValueError as error:
        raise BadRowError(str(error), f"gold is no {record.answer_kind}") from None


def check_texts(record: Record) -> None:
    """Checks that every run can encode the texts of a record.

    Raises:
        BadRowError: a text is not UTF-8, or it spells a tag or a control token.
    """
    if record.prompt.count(_VIDEO) != len(record.videos):
        raise BadRowError(f"prompt spells {_VIDEO}, and the row has no such video", f"prompt spells {_VIDEO}")
    fields = {"prompt": record.prompt, "answer": record.answer, "rationale": record.rationale or ""}
    others = {"choices": "".join(record.choices or ())}
    for field, text in ({"id": record.id, "source": record.source} | fields | others).items():
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise BadRowError(f"{field} is not UTF-8: {error.reason}", f"{field} is not UTF-8") from None
    for field, text in fields.items():
        tags = [tag for tag in ANSWER_TAGS.marks if tag in text] if field != "prompt" else []
        if found := [*tags, *_CONTROL.findall(text)]:
            raise BadRowError(f"{field} spells {', '.join(found)}", f"{field} spells a tag or control token")
