"""Prepared folders of others: nothing that they name is imported, and damage is one line."""

from __future__ import annotations

import json
import random
import shutil
import sys
from pathlib import Path

import pytest

from care_jax.data.array_records import ShardWriter, StoredRecords, open_folder, write_metadata
from care_jax.errors import BadRowError, InputError
from care_jax.structs import Record

TEXT_CLASS = "tensorflow_datasets.core.features.text_feature.Text"
SHARD = "train-00001.array_record"
NOISE = random.Random(0).randbytes(500)  # which no compression shortens


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of two shards with three records each."""
    folder = tmp_path_factory.mktemp("prepared")
    writer, number = ShardWriter(folder, "train"), iter(range(6))
    records = [[Record(str(next(number)), "s", "?", (NOISE,), "1", "integer") for _ in range(3)] for _ in range(2)]
    write_metadata(folder, {"train": [writer.write(index, shard) for index, shard in enumerate(records)]})
    return folder


@pytest.fixture
def folder(prepared: Path, tmp_path: Path) -> Path:
    """A copy to damage."""
    return shutil.copytree(prepared, tmp_path / "copy")


@pytest.mark.parametrize("name", ["evil.Text", "this.Text", "evil:Text", "builtins.eval"])
def test_classes_that_a_folder_names_are_not_imported(folder: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """Catches data that run code: TFDS imports the modules that features.json names."""
    (folder / "evil.py").write_text("raise SystemExit('imported')")
    monkeypatch.syspath_prepend(folder)
    features = folder / "features.json"
    features.write_text(features.read_text().replace(TEXT_CLASS, name, 1))
    with pytest.raises(InputError, match="holds other data, or data of another version"):
        open_folder(folder)
    with pytest.raises(InputError, match="holds other data, or data of another version"):
        StoredRecords(folder, "train")
    assert not {"evil", "this"} & sys.modules.keys()


def _info(**fields: object):
    """Changes fields of dataset_info.json."""
    return "dataset_info.json", lambda text: json.dumps(json.loads(text) | fields)


def _split(length: str, template: str) -> list[dict]:
    return [{"name": "train", "shardLengths": [length], "filepathTemplate": template}]


DAMAGES = [
    *[lambda text, end=end: text[: len(text) // end] for end in (10**9, 2)],
    *[lambda text, other=other: other for other in ("null", "[]", "{}", "[" * 100_000, "\0")],
]


@pytest.mark.parametrize(
    ("name", "change"),
    [
        *[(name, change) for name in ("features.json", "dataset_info.json") for change in DAMAGES],
        _info(name="other"),
        _info(fileFormat="tfrecord"),
        _info(splits=None),
        _info(splits=[]),
        _info(splits=_split("x", "{SPLIT}-{SHARD_INDEX}.{FILEFORMAT}")),
        _info(splits=_split("3", "../{SPLIT}")),
    ],
)
def test_damaged_metadata_are_one_line(folder: Path, name: str, change) -> None:
    """Catches tracebacks out of TFDS."""
    path = folder / name
    path.write_text(change(path.read_text()))
    with pytest.raises(InputError, match=r"prepare|prepared data has one") as error:
        open_folder(folder)
    assert str(error.value).isprintable()


@pytest.mark.parametrize(
    "change",
    [
        lambda b: None,
        lambda b: b"",
        lambda b: b[:70_000],
        lambda b: b[:-1],
        lambda b: b"x" * len(b),
    ],
    ids=["missing", "empty", "cut", "a byte short", "other"],
)
def test_damaged_shards_are_found_at_the_start(folder: Path, change) -> None:
    """Catches a shard whose damage only shows when its records are drawn, hours later."""
    whole = (folder / SHARD).read_bytes()
    (folder / SHARD).unlink()
    if (damaged := change(whole)) is not None:
        (folder / SHARD).write_bytes(damaged)
    with pytest.raises(InputError, match=f"{SHARD} is missing or damaged .*; prepare .* again") as error:
        open_folder(folder)
    assert str(error.value).isprintable()


def test_a_shard_with_another_number_of_records_is_found(folder: Path) -> None:
    """Catches a shard of another set under this one's name."""
    ShardWriter(folder, "train").write(1, [Record("9", "s", "?", (), "1", "integer")])
    with pytest.raises(InputError, match=r"1 records instead of 3"):
        open_folder(folder)


def test_a_flipped_bit_costs_its_record(folder: Path) -> None:
    """Catches a record read as another one, and a traceback of ArrayRecord."""
    whole = bytearray((folder / SHARD).read_bytes())
    whole[whole.index(NOISE[100:200]) + 50] ^= 4
    (folder / SHARD).write_bytes(whole)
    stored = open_folder(folder)
    with pytest.raises(BadRowError, match=r"record 3 of .*copy") as error:
        [stored[index] for index in (0, 1, 2, 3)]
    assert str(error.value).isprintable()


def test_a_shard_that_vanishes_costs_its_records(folder: Path) -> None:
    """Catches a run that ends in a traceback of ArrayRecord."""
    stored = open_folder(folder)
    (folder / SHARD).unlink()
    assert stored[0].id == "0"
    with pytest.raises(BadRowError, match="record 4 of"):
        stored[4]


def test_a_split_that_is_not_there(folder: Path) -> None:
    """Catches a KeyError."""
    with pytest.raises(InputError, match="has no split 'heldout', only 'train'"):
        StoredRecords(folder, "heldout")
