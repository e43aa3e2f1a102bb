"""Checks that rows of any data set must pass, and the reasons for leaving rows out."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Collection, Iterator
from typing import NamedTuple

from PIL import Image

from care_jax import files
from care_jax.errors import BadRowError, InputError, shown
from care_jax.inputs import images
from care_jax.inputs.media import MARKS
from care_jax.rewards.response_format import ANSWER_TAGS
from care_jax.rewards.verifiers import check_gold, require_allowed
from care_jax.structs import Record

_IMAGE, _VIDEO = MARKS
_MISSING = ("nan", "NaN", "NaT", "<NA>")  # cells that pandas wrote as texts
_CONTROL = re.compile(r"<\|[a-z_]+\|>")  # Qwen's special tokens; the processor knows those of a model exactly


class Dropped(NamedTuple):
    """A row that is left out."""

    where: str  # file and row number
    reason: str  # one of few, to count by
    detail: str
    broken: bool = True  # False if the row is sound and was filtered out
    repeats: str = ""  # id of the benchmark question that it repeats


@contextlib.contextmanager
def one_row(name: str = "") -> Iterator[None]:
    """Turns any failure in the block into a BadRowError, so that an unforeseen row costs itself alone.

    The message begins with `name`. An error of the machine stays what it is: rows that one start drops and the next one
    does not would be other data.
    """
    try:
        yield
    except InputError:
        raise
    except Exception as error:
        if files.is_of_the_machine(error):
            raise
        message = f"{type(error).__name__} {shown(str(error))}"
        raise BadRowError(f"{name}: {message}" if name else message, "unreadable row") from error


def decode_picture(encoded: bytes, name: str = "image") -> Image.Image:
    """Decodes an image as `images.decode_image` does.

    Raises:
        BadRowError: the image could stop a run; the message begins with `name`.
    """
    try:
        picture = images.decode_image(encoded)
        # Only for its check: an image whose sides differ too much cannot be resized by any model's processor.
        images.smart_resize(picture.height, picture.width, factor=28, min_pixels=1, max_pixels=1 << 30)
    except InputError as error:
        raise BadRowError(f"{name}: {error}", "unusable image") from None
    return picture


def check_gold_of(record: Record, allow: Collection[str]) -> None:
    """Checks that the gold is of its kind.

    Args:
        record: the record.
        allow: the functions "module:function" that it may name as its kind; no other is imported.

    Raises:
        BadRowError: it is not, the kind is not allowed, or the gold is a missing cell that was written as a text.
    """
    if record.answer_kind != "choice" and record.answer in _MISSING:
        raise BadRowError(f"answer is {record.answer!r}, which is how a missing cell is written", "no answer")
    try:
        require_allowed(record.answer_kind, allow)
    except InputError as error:
        raise BadRowError(str(error), "kind is not in verify.allow") from None
    try:
        check_gold(record.answer_kind, record.answer, record.choices)
    except InputError as error:
        raise BadRowError(str(error), f"gold is no {shown(record.answer_kind)[1:-1]}") from None


def check_texts(record: Record) -> None:
    """Checks that every run can encode the texts of a record.

    Raises:
        BadRowError: a text is not UTF-8, spells a tag or a control token, or is a missing cell that was written as one.
    """
    if record.prompt.count(_VIDEO) != len(record.videos):
        raise BadRowError(f"prompt spells {_VIDEO}, and the row has no such video", f"prompt spells {_VIDEO}")
    fields = {"prompt": record.prompt, "answer": record.answer, "rationale": record.rationale or ""}
    fields |= {"draft": record.draft} if record.draft else {}
    others = {"choices": "".join(record.choices or ())}
    for field, text in ({"id": record.id, "source": record.source} | fields | others).items():
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise BadRowError(f"{field} is not UTF-8: {error.reason}", f"{field} is not UTF-8") from None
    for field, text in {"prompt": record.prompt.replace(_IMAGE, ""), "rationale": fields["rationale"]}.items():
        if text.strip() in _MISSING:
            raise BadRowError(f"{field} is {shown(text)}, which is how a missing cell is written", f"no {field}")
    for field, text in fields.items():
        tags = [tag for tag in ANSWER_TAGS.marks if tag in text] if field != "prompt" else []
        if found := [*tags, *_CONTROL.findall(text)]:
            raise BadRowError(f"{field} spells {', '.join(found)}", f"{field} spells a tag or control token")
