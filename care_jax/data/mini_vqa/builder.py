"""Builds and opens the embedded task, which is drawn once and then read from disk like any prepared data."""

from __future__ import annotations

import hashlib
import shutil
import tempfile
from pathlib import Path

from care_jax.data.array_records import ShardWriter, StoredRecords, write_metadata
from care_jax.data.mini_vqa.difficulty import Difficulty
from care_jax.data.mini_vqa.questions import SPLITS, generate
from care_jax.errors import InputError
from care_jax.structs import Record

VERSION = "1.1.0"  # changes when the records do


def build(data_dir: Path, difficulty: Difficulty) -> None:
    """Builds both splits under `data_dir`; does nothing if they are complete.

    Safe to kill and safe to run in several processes at once: files are written to a folder of their own, which is
    renamed when everything is in it. A killed build leaves a folder `*.incomplete*` that nothing reads.

    Args:
        data_dir: the parent of all builds, which have one folder for each difficulty.
        difficulty: the knobs.

    Raises:
        InputError: a package that the drawings come from is missing.
    """
    folder = _folder(data_dir, difficulty)
    if folder.exists():
        return
    folder.parent.mkdir(parents=True, exist_ok=True)
    unfinished = Path(tempfile.mkdtemp(prefix=f"{folder.name}.incomplete.", dir=folder.parent))
    try:
        unfinished.chmod(folder.parent.stat().st_mode)  # mkdtemp's folder is for this user alone
        lengths = {split: [ShardWriter(unfinished, split).write(0, _shuffled(split, difficulty))] for split in SPLITS}
        write_metadata(unfinished, lengths)
        unfinished.rename(folder)
    except ModuleNotFoundError as error:
        raise InputError(
            f"mini_vqa is drawn from scikit-learn and vega-datasets, and {error.name} is not installed; "
            "pip install 'care_jax[demo]'"
        ) from error
    except OSError:
        if not folder.exists():  # otherwise another process was first, with the same bytes
            raise
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


def open_split(data_dir: Path, split: str, difficulty: Difficulty) -> StoredRecords:
    """Opens a finished split, in an order shuffled by a hash of the ids.

    Args:
        data_dir: as given to `build`.
        split: "train" or "heldout".
        difficulty: as given to `build`.

    Raises:
        InputError: unknown split, or no finished build.
    """
    if split not in SPLITS:
        raise InputError(f"mini_vqa has no split {split!r}; choose one of {', '.join(SPLITS)}")
    folder = _folder(data_dir, difficulty)
    if not folder.exists():
        raise InputError(f"no finished mini_vqa in {folder}; call mini_vqa.build({str(data_dir)!r}) first")
    return StoredRecords(folder, split)


def _folder(data_dir: Path, difficulty: Difficulty) -> Path:
    return data_dir / difficulty.name / "mini_vqa" / VERSION


def _shuffled(split: str, difficulty: Difficulty) -> list[Record]:
    """Draws the records of a split, ordered as TFDS's builders order theirs: by an MD5 of split and id."""
    return sorted(generate(split, difficulty), key=lambda record: hashlib.md5((split + record.id).encode()).digest())
