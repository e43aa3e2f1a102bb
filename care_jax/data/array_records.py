"""Records on disk: a TFDS data set in ArrayRecord files, written and read without TensorFlow.

Image bytes are stored as text features: an image feature would decode them, and the processor needs the encoded
original.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import tensorflow_datasets as tfds
from array_record.python.array_record_module import ArrayRecordWriter

from care_jax import files
from care_jax.errors import InputError
from care_jax.structs import Record

_NAME = "records"
_SHARD_TEMPLATE = "{SPLIT}-{SHARD_INDEX}.{FILEFORMAT}"
_TEXTS = ("id", "source", "prompt", "answer", "answer_kind", "rationale", "draft")
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
        """Opens a split of a folder that `write_metadata` has completed."""
        self._folder, self._split = folder, split
        self._rows = tfds.builder_from_directory(folder).as_data_source(split)

    def __len__(self) -> int:
        """Returns the number of records."""
        return len(self._rows)

    def __getitem__(self, index: int) -> Record:
        """Reads a record; negative indices count from the end."""
        row = self._rows[range(len(self))[index]]  # IndexError past the end, as iteration needs
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
        """Names the folder, for error messages."""
        return f"StoredRecords({self._folder}, {self._split}, {len(self)} records)"


def open_folder(folder: Path) -> StoredRecords:
    """Opens the only split of a folder that care_jax.data.prepare has finished.

    Raises:
        InputError: the folder does not hold prepared data, or has several splits.
    """
    if not (folder / "dataset_info.json").is_file():
        raise InputError(f"{folder} is not prepared data; build it with python -m care_jax.data.prepare --out={folder}")
    splits = list(tfds.builder_from_directory(folder).info.splits)
    if len(splits) != 1:
        raise InputError(f"{folder} has the splits {', '.join(splits)}; prepared data has one")
    return StoredRecords(folder, splits[0])


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
