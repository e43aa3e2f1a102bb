"""The embedded task: a small visual question answering set that builds itself in seconds, with no download.

Drawn once and kept as store.py keeps records; TFDS's builder shuffles them and writes both splits or none.
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Iterator
from pathlib import Path

import tensorflow_datasets as tfds

from care_jax.data.mini_vqa.questions import SPLITS, Difficulty, generate
from care_jax.data.store import StoredRecords, record_features, to_example


class MiniVqa(tfds.core.GeneratorBasedBuilder):
    """Digits to add, charts to read, triangles to complete; questions.py describes them."""

    VERSION = tfds.core.Version("1.0.0")
    # Says where to look for checksums of downloads. There are none, and looking needs importlib_resources, which TFDS
    # does not declare.
    code_path = None

    def __init__(self, *, difficulty: Difficulty, data_dir: Path) -> None:
        """Points the builder at `data_dir`/<difficulty>/mini_vqa/1.0.0; nothing is written yet."""
        self._difficulty = difficulty
        super().__init__(data_dir=data_dir / difficulty.name, file_format="array_record")

    def _info(self) -> tfds.core.DatasetInfo:
        return tfds.core.DatasetInfo(builder=self, features=record_features(), description=__doc__)

    def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> dict[str, Iterator[tuple[str, dict]]]:
        return {split: self._generate_examples(split) for split in SPLITS}

    def _generate_examples(self, split: str) -> Iterator[tuple[str, dict]]:
        for record in generate(split, self._difficulty):
            yield record.id, to_example(record)


def build(data_dir: Path, difficulty: Difficulty) -> None:
    """Builds both splits under `data_dir`; does nothing where they are complete.

    Safe to kill and safe to run in several processes at once: files are written to a folder of their own, which takes
    its final name when everything is in it. A killed build leaves a folder `*.incomplete*` that nothing reads.

    Args:
        data_dir: where the data sets lie, one folder a difficulty.
        difficulty: the knobs.

    Raises:
        ValueError: a package that the drawings come from is missing.
    """
    builder = MiniVqa(difficulty=difficulty, data_dir=data_dir)
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


def open_split(data_dir: Path, split: str, difficulty: Difficulty) -> StoredRecords:
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
    folder = MiniVqa(difficulty=difficulty, data_dir=data_dir).data_path
    if not folder.exists():
        raise ValueError(f"no finished mini_vqa in {folder}; call mini_vqa.build({str(data_dir)!r}) first")
    return StoredRecords(Path(folder), split)


@contextlib.contextmanager
def _without_progress_bar() -> Iterator[None]:
    tfds.disable_progress_bar()
    try:
        yield
    finally:
        tfds.enable_progress_bar()
