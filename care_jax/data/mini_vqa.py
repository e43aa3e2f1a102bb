"""The embedded task: a small visual question answering set that builds itself in seconds, with no download.

Written and read as a TFDS data set of ArrayRecord files, without TensorFlow. Image bytes are stored as text features:
an image feature would decode them, and the processor wants the encoded original.
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Iterator
from pathlib import Path

import tensorflow_datasets as tfds

from care_jax.data.mini_vqa_questions import SPLITS, Difficulty, generate
from care_jax.data.records import Record


class MiniVqa(tfds.core.GeneratorBasedBuilder):
    """Digits to add, charts to read, triangles to complete; mini_vqa_questions.py describes them."""

    VERSION = tfds.core.Version("1.0.0")
    # Says where to look for checksums of downloads. There are none, and looking needs importlib_resources, which TFDS
    # does not declare.
    code_path = None

    def __init__(self, *, difficulty: Difficulty, data_dir: Path) -> None:
        """Points the builder at `data_dir`/<difficulty>/mini_vqa/1.0.0; nothing is written yet."""
        self._difficulty = difficulty
        super().__init__(data_dir=data_dir / difficulty.name, file_format="array_record")

    def _info(self) -> tfds.core.DatasetInfo:
        text = tfds.features.Text()
        names = ("id", "source", "prompt", "answer", "answer_kind", "rationale", "draft")
        many = {name: tfds.features.Sequence(text) for name in ("images", "choices")}
        features = tfds.features.FeaturesDict({**{name: text for name in names}, **many})
        return tfds.core.DatasetInfo(builder=self, features=features, description=__doc__)

    def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> dict[str, Iterator[tuple[str, dict]]]:
        return {split: self._generate_examples(split) for split in SPLITS}

    def _generate_examples(self, split: str) -> Iterator[tuple[str, dict]]:
        for record in generate(split, self._difficulty):
            yield (
                record.id,
                {
                    "id": record.id,
                    "source": record.source,
                    "prompt": record.prompt,
                    "images": list(record.images),
                    "answer": record.answer,
                    "answer_kind": record.answer_kind,
                    "choices": list(record.choices or ()),
                    "rationale": record.rationale or "",
                    "draft": record.draft or "",
                },
            )


class MiniVqaSource:
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

    def __reduce__(self) -> tuple[type[MiniVqaSource], tuple[Path, str]]:
        return MiniVqaSource, (self._folder, self._split)

    def __repr__(self) -> str:
        return f"MiniVqaSource({self._split}, {len(self)} records)"


def build(data_dir: Path, difficulty: Difficulty | None = None) -> None:
    """Builds both splits under `data_dir`; does nothing where they are complete.

    Safe to kill and safe to run in several processes at once: files are written to a folder of their own, which takes
    its final name when everything is in it. A killed build leaves a folder `*.incomplete*` that nothing reads.

    Args:
        data_dir: where the data sets lie, one folder a difficulty.
        difficulty: the knobs; default values when None.

    Raises:
        ValueError: a package that the drawings come from is missing.
    """
    builder = MiniVqa(difficulty=difficulty or Difficulty(), data_dir=data_dir)
    if builder.data_path.exists():
        return
    with contextlib.redirect_stdout(io.StringIO()), _without_progress_bar():
        try:
            builder.download_and_prepare()
        except ModuleNotFoundError as error:
            raise ValueError(
                f"mini_vqa is drawn from scikit-learn and vega-datasets, and {error.name} is not installed; "
                "pip install 'care_jax[demo]'"
            ) from error
        except OSError:
            if not builder.data_path.exists():  # else another process was first, with the same bytes
                raise


def open_split(data_dir: Path, split: str, difficulty: Difficulty | None = None) -> MiniVqaSource:
    """Opens a finished split, in an order shuffled by a hash of the ids.

    Args:
        data_dir: as given to `build`.
        split: "train" or "heldout".
        difficulty: as given to `build`.

    Raises:
        ValueError: unknown split, or no finished build.
    """
    if split not in SPLITS:
        raise ValueError(f"mini_vqa has no split {split!r}; choose one of {', '.join(SPLITS)}")
    folder = MiniVqa(difficulty=difficulty or Difficulty(), data_dir=data_dir).data_path
    if not folder.exists():
        raise ValueError(f"no finished mini_vqa in {folder}; call mini_vqa.build({str(data_dir)!r}) first")
    return MiniVqaSource(Path(folder), split)


@contextlib.contextmanager
def _without_progress_bar() -> Iterator[None]:
    tfds.disable_progress_bar()
    try:
        yield
    finally:
        tfds.enable_progress_bar()
