"""Records on disk: a TFDS data set of ArrayRecord files, written and read without TensorFlow.

Image bytes are stored as text features: an image feature would decode them, and the processor wants the encoded
original.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import tensorflow_datasets as tfds
from array_record.python.array_record_module import ArrayRecordWriter
from tensorflow_datasets.core.example_serializer import ExampleSerializer

from care_jax import files
from care_jax.structs import Record

_NAME = "records"
_SHARD_TEMPLATE = "{SPLIT}-{SHARD_INDEX}.{FILEFORMAT}"
_TEXTS = ("id", "source", "prompt", "answer", "answer_kind", "rationale", "draft")
_LISTS = ("images", "choices")


def record_features() -> tfds.features.FeaturesDict:
    """The features of a Record, all of them text; None is stored as empty."""
    text = tfds.features.Text()
    return tfds.features.FeaturesDict(
        {name: text for name in _TEXTS} | {name: tfds.features.Sequence(text) for name in _LISTS}
    )


def to_example(record: Record) -> dict[str, Any]:
    """A record as TFDS writes it."""
    return {name: getattr(record, name) or "" for name in _TEXTS} | {
        name: list(getattr(record, name) or ()) for name in _LISTS
    }


class StoredRecords:
    """Random access to the records of one split. Picklable: a worker process opens the files anew."""

    def __init__(self, folder: Path, split: str) -> None:
        self._folder, self._split = folder, split
        self._rows = tfds.builder_from_directory(folder).as_data_source(split)

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> Record:
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

    def __reduce__(self) -> tuple[type[StoredRecords], tuple[Path, str]]:
        return StoredRecords, (self._folder, self._split)

    def __repr__(self) -> str:
        return f"StoredRecords({self._folder}, {self._split}, {len(self)} records)"


def open_folder(folder: Path) -> StoredRecords:
    """Opens the one split of a folder that care_jax.data.prepare has finished.

    Raises:
        ValueError: the folder is none.
    """
    if not (folder / "dataset_info.json").is_file():
        raise ValueError(f"{folder} is no prepared data; build it with python -m care_jax.data.prepare --out={folder}")
    splits = list(tfds.builder_from_directory(folder).info.splits)
    if len(splits) != 1:
        raise ValueError(f"{folder} has the splits {', '.join(splits)}; prepared data has one")
    return StoredRecords(folder, splits[0])


class ShardWriter:
    """Writes the next shards of a split, each whole or not at all."""

    def __init__(self, folder: Path, split: str) -> None:
        self._folder, self._split = folder, split
        self._features = record_features()
        self._serializer = ExampleSerializer(self._features.get_serialized_info())

    def write(self, index: int, records: Iterable[Record]) -> int:
        """Writes shard `index`; returns its number of records. Without a record nothing is written.

        The bytes depend on the records alone. A shard that is there already is replaced.
        """
        template = self._template()
        path = Path(template.sharded_filepath(shard_index=index, num_shards=None))
        count = 0
        with files.written_whole(path) as unfinished:
            writer = ArrayRecordWriter(str(unfinished), "group_size:1")  # 1: random access
            for record in records:
                example = self._serializer.get_tf_example(self._features.encode_example(to_example(record)))
                writer.write(example.SerializeToString(deterministic=True))  # else the order of fields is the process's
                count += 1
            writer.close()
            if not count:
                unfinished.unlink()
        return count

    def finish(self, shard_lengths: Sequence[int]) -> None:
        """Writes TFDS's metadata, with which tfds.builder_from_directory opens the folder."""
        template = self._template()
        split = tfds.core.SplitInfo(
            name=self._split, shard_lengths=list(shard_lengths), num_bytes=0, filename_template=template
        )
        tfds.folder_dataset.write_metadata(
            data_dir=self._folder,
            features=self._features,
            split_infos=[split],
            filename_template=template,
            check_data=False,
        )

    def _template(self) -> tfds.core.ShardedFileTemplate:
        return tfds.core.ShardedFileTemplate(
            data_dir=self._folder,
            template=_SHARD_TEMPLATE,
            dataset_name=_NAME,
            split=self._split,
            filetype_suffix="array_record",
        )
