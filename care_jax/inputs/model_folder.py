"""Reads the JSON files of a Hugging Face model folder."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from care_jax.errors import InputError


def read_fields(path: Path, *names: str) -> dict[str, Any]:
    """Reads the JSON object in a file of the model folder.

    Args:
        path: the file.
        names: fields that it must have.

    Returns:
        All its fields.

    Raises:
        InputError: the file or one of the fields is missing, or the file is not JSON.
    """
    if not path.is_file():
        raise InputError(f"{path.parent} has no {path.name}; give the complete folder of a Hugging Face checkpoint")
    try:
        fields: dict[str, Any] = json.loads(path.read_text())
    except ValueError as error:
        raise InputError(f"{path} is not JSON ({error}); copy the file from the source checkpoint") from error
    for name in names:
        if name not in fields:
            raise InputError(f"{path} has no field {name!r}; copy the file from the source checkpoint")
    return fields
