"""Records on disk: a TFDS data set in ArrayRecord files, written and read without TensorFlow.

Image bytes are stored as text features: an image feature would decode them, and the processor needs the encoded
original.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import tensorflow_datasets as tfds
from array_record.python.array_record_module import ArrayRecordReader, ArrayRecordWriter
from google.protobuf import json_format

from care_jax import files
from care_jax.data.validation import one_row
from care_jax.errors import InputError, shown
from care_jax.structs import Record

_NAME = "records"
_INFO_FILE, _FEATURES_FILE = "dataset_info.json", "features.json"
_SHARD_TEMPLATE = "{SPLIT}-{SHARD_INDEX}.{FILEFORMAT}"
_TEXTS = ("id", "source", "prompt", "answer", "answer_kind", "rationale", "draft", "meta")
_LISTS = ("images", "choices")


def record_features() -> tfds.features.FeaturesDict:
    """Returns the features of a Record, all of them text; None is stored as empty."""
    text = tfds.features.Text()
    return tfds.features.FeaturesDict(
        dict.fromkeys(_TEXTS, text) | {name: tfds.features.Sequence(text) for name in _LISTS}
    )


def to_example(record: Record) -> dict[str, Any]:
    """Returns a record as TFDS writes it."""
    return {name: getattr(record, name) or "" for name in _TEXTS} | {
        name: list(getattr(record, name) or ()) for name in _LISTS
    }


class StoredRecords:
    """Random access to the records of one split. Picklable: a worker process opens the files anew."""

    def __init__(self, folder: Path, split: str) -> None:
        """Opens a split of a folder that `write_metadata` has completed.

        Raises:
            InputError: the folder is damaged, or is none of this project's.
        """
        self._folder, self._split = folder, split
        splits = read_splits(folder)
        if split not in splits:
            raise InputError(f"{folder} has no split {split!r}, only {shown(', '.join(splits))}")
        _check_shards(folder, split, splits[split])
        self._rows = tfds.builder_from_directory(folder).as_data_source(split)

    def __len__(self) -> int:
        """Returns the number of records."""
        return len(self._rows)

    def __getitem__(self, index: int) -> Record:
        """Reads a record; negative indices count from the end.

        Raises:
            BadRowError: the record is damaged, or its file is gone.
        """
        index = range(len(self))[index]  # IndexError past the end, as iteration needs
        with one_row(f"record {index} of {self._folder}"):
            row = self._rows[index]
            return Record(
                id=row["id"].decode(),
                source=row["source"].decode(),
                prompt=row["prompt"].decode(),
                images=tuple(row["images"]),
                answer=row["answer"].decode(),
                answer_kind=row["answer_kind"].decode(),
                choices=tuple(choice.decode() for choice in row["choices"]) or None,
                rationale=row["rationale"].decode() or None,
                draft=row["draft"].decode() or None,
                meta=row["meta"].decode() or None,
            )

    def fingerprint(self) -> str:
        """A digest of the bytes of the split's shards, which depend on the records alone."""
        digest = hashlib.blake2b(digest_size=16)
        for shard in sorted(self._folder.glob(f"{self._split}-*.array_record")):
            with shard.open("rb") as stream:
                while chunk := stream.read(1 << 20):
                    digest.update(chunk)
        return digest.hexdigest()

    def __reduce__(self) -> tuple[type[StoredRecords], tuple[Path, str]]:
        """Pickles the folder and the split, not the open files."""
        return StoredRecords, (self._folder, self._split)

    def __repr__(self) -> str:
        """Names the folder and the split, for messages."""
        return f"{self._folder} ({self._split})"


def open_folder(folder: Path) -> StoredRecords:
    """Opens the only split of a folder that care_jax.data.prepare has finished.

    Raises:
        InputError: the folder does not hold prepared data, is damaged, or has several splits.
    """
    splits = list(read_splits(folder))
    if len(splits) != 1:
        raise InputError(f"{folder} has the splits {', '.join(splits)}; prepared data has one")
    return StoredRecords(folder, splits[0])


def read_splits(folder: Path) -> dict[str, list[int]]:
    """Reads the number of records in each shard of each split, and checks all that TFDS would act upon.

    TFDS imports the classes that features.json names, so the file must name those that this module writes.

    Raises:
        InputError: the metadata are missing, damaged, or not those of `write_metadata`.
    """
    again = f"build it with python -m care_jax.data.prepare --out={folder}"
    if not (folder / _INFO_FILE).is_file():
        raise InputError(f"{folder} is not prepared data; {again}")
    try:
        info, features = (json.loads((folder / name).read_bytes()) for name in (_INFO_FILE, _FEATURES_FILE))
        splits = {str(split["name"]): [int(length) for length in split["shardLengths"]] for split in info["splits"]}
        are_ours = (info["name"], info["fileFormat"]) == (_NAME, "array_record") and all(
            split["filepathTemplate"] == _SHARD_TEMPLATE for split in info["splits"]
        )
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise InputError(
            f"{folder} is damaged: {_INFO_FILE} or {_FEATURES_FILE} cannot be read ({shown(str(error))}); {again}"
        ) from None
    if not are_ours or features != json_format.MessageToDict(record_features().to_proto()):
        raise InputError(f"{folder} holds other data, or data of another version of this program; {again}")
    return splits


def _check_shards(folder: Path, split: str, lengths: Sequence[int]) -> None:
    """Raises InputError if a shard is missing, cut off, or has another number of records."""
    for index, length in enumerate(lengths):
        path = Path(_template(folder, split).sharded_filepath(shard_index=index, num_shards=len(lengths)))
        try:
            reader = ArrayRecordReader(str(path))
            found = f"it has {reader.num_records()} records instead of {length}" * (reader.num_records() != length)
            reader.close()
        except RuntimeError as error:
            found = shown(str(error))
        if found:
            raise InputError(f"{path} is missing or damaged ({found}); prepare {folder} again")


class ShardWriter:
    """Writes the shards of a split; a shard is written whole or not at all."""

    def __init__(self, folder: Path, split: str) -> None:
        """Prepares to write; `folder` must exist."""
        self._template = _template(folder, split)
        self._features = record_features()
        # TFDS's public FeaturesDict.serialize_example leaves the order of a record's fields to the process, so two runs
        # would write different bytes. tfds.core exports this class, but does not list it in __all__.
        self._serializer = tfds.core.ExampleSerializer(self._features.get_serialized_info())

    def write(self, index: int, records: Iterable[Record]) -> int:
        """Writes shard `index` and returns its number of records; without records it writes nothing.

        The bytes depend on the records alone. An existing shard is replaced.
        """
        path, count = Path(self._template.sharded_filepath(shard_index=index, num_shards=None)), 0
        with files.written_whole(path) as unfinished:
            writer = ArrayRecordWriter(str(unfinished), "group_size:1")  # 1: random access
            for record in records:
                example = self._serializer.get_tf_example(self._features.encode_example(to_example(record)))
                writer.write(example.SerializeToString(deterministic=True))
                count += 1
            writer.close()
            if not count:
                unfinished.unlink()
        return count


def write_metadata(folder: Path, shard_lengths: Mapping[str, Sequence[int]]) -> None:
    """Writes TFDS's metadata, which completes a folder: tfds.builder_from_directory then opens it.

    Args:
        folder: holds the shards.
        shard_lengths: the number of records in each shard of each split.
    """
    splits = [
        tfds.core.SplitInfo(
            name=split, shard_lengths=list(lengths), num_bytes=0, filename_template=_template(folder, split)
        )
        for split, lengths in shard_lengths.items()
    ]
    tfds.folder_dataset.write_metadata(
        data_dir=folder,
        features=record_features(),
        split_infos=splits,
        filename_template=splits[0].filename_template,
        check_data=False,
    )


def _template(folder: Path, split: str) -> tfds.core.ShardedFileTemplate:
    return tfds.core.ShardedFileTemplate(
        data_dir=folder,
        template=_SHARD_TEMPLATE,
        dataset_name=_NAME,
        split=split,
        filetype_suffix="array_record",
    )
