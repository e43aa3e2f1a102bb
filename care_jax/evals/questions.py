"""Questions without a gold: rows of a file, of a command line or of a chat, to encoded prompts."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from care_jax.data import own_data
from care_jax.data.parsing import Row, is_blank
from care_jax.data.validation import check_texts, one_row
from care_jax.errors import BadRowError, InputError
from care_jax.inputs.batch import Example
from care_jax.inputs.processor import Processor
from care_jax.inputs.prompts import encode_prompt
from care_jax.structs import Record

_UNASKED = {"source": "question", "answer": "-", "answer_kind": "text"}  # what a row of own data has besides


def read_question(raw: dict[str, Any], folder: Path, *, where: str = "question") -> Row:
    """Reads a row of own data (data/own_data.py), of which a prompt or messages are enough.

    Args:
        raw: the row.
        folder: that of its images' paths.
        where: its id, if it has none.

    Raises:
        BadRowError: it is no such row.
    """
    with one_row():
        if "messages" not in raw and is_blank(str(raw.get("prompt") or "")):
            raise BadRowError("the question is empty; give a prompt")
        row = own_data.parse(where, _UNASKED | {"id": where} | raw, folder)
        check_texts(row.record)
    return row


def encode_question(processor: Processor, record: Record) -> Example:
    """Encodes a question.

    Raises:
        BadRowError: its text or images cannot be used.
        InputError: it is too long.
    """
    if processor.overlong == "drop":  # nobody else would say why
        processor = dataclasses.replace(processor, overlong="error")
    example = encode_prompt(processor, record)
    if example is None:
        raise InputError(
            f"the question is longer than the largest of data.prompt_buckets, {processor.prompt_buckets[-1]} tokens, "
            "even with its images as small as they may be; shorten it"
        )
    return example
