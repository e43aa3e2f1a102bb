"""The files of a Hugging Face folder that an export carries over: copies of its own files, and the right stop ids."""

from __future__ import annotations

import fnmatch
import json
import os
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

from care_jax import files
from care_jax.errors import InputError, listed, shown
from care_jax.inputs import tokenizer as tokenizer_lib
from care_jax.models import load_model_config
from care_jax.models.model_folder import read_fields

# Without these, where the source has them, the export would be no model.
_NEEDED = ("config.json", "tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "preprocessor_config.json")


def copy_files(folder: Path, new: Path, *, left_out: Sequence[str]) -> None:
    """Copies the files below `folder`, except those that match a pattern of `left_out`.

    Links are followed within the folder, and to the blobs of the hub cache that the folder is a snapshot of. Other
    links, linked folders, pipes and devices are left out and named on stderr: they might carry files of this machine
    into the export.

    Args:
        folder: the source, without links in its path.
        new: a folder that exists.
        left_out: patterns of names.

    Raises:
        InputError: one of _NEEDED is among those that are left out.
    """
    roots = [folder]
    if folder.parent.name == "snapshots":
        roots.append(folder.parent.parent / "blobs")
    skipped: list[str] = []
    _copy(folder, new, roots, left_out, skipped)
    if lost := [name for name in _NEEDED if os.path.lexists(folder / name) and not (new / name).is_file()]:
        raise InputError(f"{listed(lost)} of {folder} lie outside of it or are no files; put copies of them there")
    if skipped:
        print(f"note: not copied, since they lie outside {folder} or are no files: {listed(skipped)}", file=sys.stderr)


def _copy(folder: Path, new: Path, roots: Sequence[Path], left_out: Sequence[str], skipped: list[str]) -> None:
    for path in sorted(folder.iterdir()):
        if any(fnmatch.fnmatch(path.name, pattern) for pattern in left_out):
            continue
        if path.is_dir() and not path.is_symlink():
            (new / path.name).mkdir()
            _copy(path, new / path.name, roots, left_out, skipped)
        elif path.is_file() and any(path.resolve().is_relative_to(root) for root in roots):
            shutil.copy2(path, new / path.name)
        else:
            skipped.append(shown(str(path.relative_to(roots[0]))))


def add_end_of_turn(folder: Path) -> None:
    """Puts the end of a turn first among the stop ids of generation_config.json if it is not one of them.

    Other programs then stop answers where this one does. A folder without a tokenizer stays as it is.
    """
    path = folder / "generation_config.json"
    if not (path.is_file() and (folder / "tokenizer.json").is_file()):
        return
    fields = read_fields(path)
    image_token_id = read_fields(folder / "config.json", "image_token_id")["image_token_id"]
    tokenizer = tokenizer_lib.load_tokenizer(folder, load_model_config(folder).text.vocab_size, image_token_id)
    end_id, eos = tokenizer_lib.end_of_turn(folder, tokenizer), fields.get("eos_token_id", [])
    eos_ids = eos if isinstance(eos, list) else [eos]
    if end_id not in eos_ids:
        stop_ids = tokenizer_lib.all_stop_ids(folder, end_id, eos)
        files.write_text(path, json.dumps(fields | {"eos_token_id": list(stop_ids)}, indent=2) + "\n")
