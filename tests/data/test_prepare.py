"""Preparing a set: what is stored, what is counted, and that a kill at any moment leaves nothing wrong behind."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from care_jax.data import prepare as prepare_lib
from care_jax.data import statistics
from care_jax.data.array_records import StoredRecords, open_folder
from care_jax.data.prepare import Settings, prepare
from care_jax.data.sources import ColumnRange, read, split_files
from care_jax.errors import InputError
from tests import benchmark_sets, data_sets
from tests.data_sets import picture
from tests.end_to_end import TINY, write_squares

WRITERS = {
    "geometry3k": (data_sets.write_geometry3k, "train", 2, 3),
    "chartqa": (data_sets.write_chartqa, "val", 3, 1),
    "chartqa_human": (data_sets.write_chartqa_folder, "train", 2, 1),
    "chartqa_machine": (data_sets.write_chartqa, "val", 1, 0),
    "virl39k": (data_sets.write_virl39k, "train", 7, 5),
    "easyr1": (data_sets.write_easyr1_parquet, "train", 2, 2),
    "jsonl": (write_squares, "heldout", 12, 0),
    "mathvista": (benchmark_sets.write_mathvista, "testmini", 5, 1),
    "mathverse": (benchmark_sets.write_mathverse, "testmini", 5, 1),
    "mathvision": (benchmark_sets.write_mathvision, "test", 4, 1),
    "mmmu": (benchmark_sets.write_mmmu, "validation", 4, 2),
    "mmmu_pro_standard": (benchmark_sets.write_mmmu_pro, "test", 3, 1),
    "mmmu_pro_vision": (benchmark_sets.write_mmmu_pro, "test", 3, 1),
}


def _files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def _run(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "care_jax.data.prepare", *arguments]
    env = {**os.environ, "PYTHONPATH": os.getcwd()}
    return subprocess.run(command, env=env, capture_output=True, text=True, check=False)


@pytest.mark.parametrize("source", WRITERS)
def test_records_are_stored_unchanged(tmp_path: Path, source: str) -> None:
    """Catches fields or bytes that differ after the way through the files, and rows that vanish uncounted."""
    write, split, num_kept, num_dropped = WRITERS[source]
    root, out = write(tmp_path / "root"), tmp_path / "out"
    report = prepare(Settings(source, root, out, split))
    stored = list(open_folder(out))
    rows = read(source, split_files(source, root, split), root=root, images=root)
    expected = {row.record.id: row for row in rows if hasattr(row, "record")}
    assert stored == [expected[record.id].load() for record in stored]
    assert (len(stored), sum(report["dropped"].values())) == (num_kept, num_dropped)
    assert report["rows"] == num_kept + num_dropped
    assert json.loads((out / "report.json").read_text()) == report


def test_a_meta_is_stored_unchanged(tmp_path: Path) -> None:
    """Catches an object that a prepared folder loses, or gives to the next record."""
    root = write_squares(tmp_path / "root")
    path = root / "heldout.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    metas = [{"n": n, "word": "é\n"} if n % 2 else None for n in range(len(rows))]
    path.write_text("".join(json.dumps({**row, "meta": meta}) + "\n" for row, meta in zip(rows, metas, strict=True)))
    prepare(Settings("jsonl", path, tmp_path / "out", "heldout"))
    stored = open_folder(tmp_path / "out")
    assert [record.meta and json.loads(record.meta) for record in stored] == metas


def test_vision_r1_cold_with_images_from_elsewhere(tmp_path: Path) -> None:
    """Catches --images being ignored, and rationales lost on the way."""
    root = data_sets.write_vision_r1(tmp_path / "text", tmp_path / "pictures")
    prepare(Settings("vision_r1_cold", root, tmp_path / "out", images=tmp_path / "pictures"))
    assert [record.rationale for record in open_folder(tmp_path / "out")] == ["It is red.", "It is 2."]


def test_finished_shards_stay_when_a_later_row_is_refused(tmp_path: Path) -> None:
    """Catches hours of work deleted because of one row; what is there already is not made again."""
    rows = [
        {"id": str(n), "images": [f"{n}.png"], "prompt": "?", "answer": "1", "answer_kind": "integer"} for n in range(6)
    ]
    (tmp_path / "mine.jsonl").write_text("\n".join(map(json.dumps, rows)))
    for number in range(5):
        (tmp_path / f"{number}.png").write_bytes(picture(number))
    settings = Settings("jsonl", tmp_path / "mine.jsonl", tmp_path / "out", strict=True)
    with pytest.raises(ValueError, match=r"row mine.jsonl:6: no image"):
        prepare(settings, shard_records=2)
    partial = tmp_path / "out.partial"
    first = partial / "train-00000.array_record"
    assert sorted(path.name for path in partial.iterdir()) == ["report.json", first.name, "train-00001.array_record"]
    made = first.stat().st_mtime_ns
    (tmp_path / "5.png").write_bytes(picture(5))
    assert prepare(settings, shard_records=2)["shards"] == [2, 2, 2]
    assert (tmp_path / "out" / first.name).stat().st_mtime_ns == made
    assert [record.id for record in open_folder(tmp_path / "out")] == list("012345")


@pytest.mark.parametrize("damage", ["", "null", "[]", "{}", '{"settings": 1}', "[" * 100_000])
def test_a_damaged_report_is_no_report(tmp_path: Path, damage: str) -> None:
    """Catches a preparation that can neither go on nor begin anew."""
    root = data_sets.write_easyr1_parquet(tmp_path / "root")
    partial = tmp_path / "out.partial"
    partial.mkdir()
    (partial / "report.json").write_text(damage)
    assert prepare(Settings("easyr1", root, tmp_path / "out"))["shards"] == [2]
    (tmp_path / "out" / "report.json").write_text(damage)
    with pytest.raises(InputError, match="out holds other data"):
        prepare(Settings("easyr1", root, tmp_path / "out"))


def test_strict_refuses_the_first_broken_row(tmp_path: Path) -> None:
    """Catches broken rows that --strict lets pass, rows outside a filter taken for broken, and half-written folders."""
    root, out = data_sets.write_virl39k(tmp_path / "root"), tmp_path / "out"
    with pytest.raises(ValueError, match=r"row 39Krelease.parquet:8: the prompt holds 0 <image> for 2 images; give"):
        prepare(Settings("virl39k", root, out, strict=True))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["root"]
    sound = (ColumnRange("PassRate_32BTrained", 0.0, 0.5),)
    assert prepare(Settings("virl39k", root, out, keep=sound, strict=True))["shards"] == [4]


def test_images_that_would_stop_a_run_are_dropped(tmp_path: Path) -> None:
    """Catches a cut-off JPEG, which opens without complaint, and one too long for any processor."""
    data_sets.write_virl39k(tmp_path)
    whole = picture(1, encoding="JPEG", size=(400, 300))
    (tmp_path / "images/q0-0.jpg").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "images/q4-0.jpg").write_bytes(picture(1, size=(2010, 10)))
    report = prepare(Settings("virl39k", tmp_path, tmp_path / "out"))
    examples = report["examples"]["unusable image"]
    assert [where for where, _ in examples] == ["39Krelease.parquet:1", "39Krelease.parquet:5"]
    assert "truncated" in examples[0][1]
    assert "aspect ratio 201.0" in examples[1][1]
    assert open_folder(tmp_path / "out")[0].id == "virl39k/q1"


def test_counts(tmp_path: Path) -> None:
    """Catches counts of the wrong thing in the table that people read."""
    report = prepare(Settings("virl39k", data_sets.write_virl39k(tmp_path / "root"), tmp_path / "out", model=TINY))
    table = statistics.table(report)
    for line in ("read 12", "kept 7 in 1 shards", "text-only 1", "one image 5", "several 1", "dropped 5"):
        assert (
            f"\n  {line}\n" in "\n" + "\n".join(" ".join(x.split()).join(("  ", "")) for x in table.splitlines()) + "\n"
        )
    assert "answers    latex 4, choice 2, text 1" in table
    assert r"1  unbalanced \boxed; first 39Krelease.parquet:9: the box in" in table
    lengths = sorted(int(length) for length, count in report["tokens"].items() for _ in range(count))
    assert len(lengths) == 7
    assert f"mean {sum(lengths) / 7:.0f}, median {lengths[3]}, 95 % up to {lengths[6]}, longest {lengths[6]}" in table


def test_a_second_run_changes_nothing(tmp_path: Path) -> None:
    """Catches a second run that builds again, and one with other settings or data that passes for the first."""
    root, out = data_sets.write_virl39k(tmp_path / "root"), tmp_path / "out"
    report = prepare(Settings("virl39k", root, out))
    before = {path: path.stat().st_mtime_ns for path in out.iterdir()}
    assert prepare(Settings("virl39k", root, out)) == report
    assert {path: path.stat().st_mtime_ns for path in out.iterdir()} == before
    with pytest.raises(ValueError, match="holds other data, or the same with other settings"):
        prepare(Settings("virl39k", root, out, keep=(ColumnRange("PassRate_7BBase", 0.0, 1.0),)))
    with pytest.raises(ValueError, match="holds other data"):
        prepare(Settings("geometry3k", data_sets.write_geometry3k(tmp_path / "other"), out))
    with pytest.raises(ValueError, match="holds other data"):
        prepare(Settings("virl39k", root, root))
    assert {path: path.stat().st_mtime_ns for path in out.iterdir()} == before


@pytest.mark.parametrize("moment", ["in a shard", "between shards", "before the metadata", "before the rename"])
def test_killed_and_run_again(tmp_path: Path, moment: str) -> None:
    """Catches rows lost, doubled or counted twice after SIGKILL, and half a set that opens."""
    root = data_sets.write_virl39k(tmp_path / "root")
    whole, out = tmp_path / "whole", tmp_path / "out"
    expected = prepare(Settings("virl39k", root, whole), shard_records=2)
    assert expected["shards"] == [2, 2, 2, 1]
    script = f"""
import os, pathlib, signal
from care_jax.data import array_records, prepare
def die(*args, **kwargs): os.kill(os.getpid(), signal.SIGKILL)
moment, count, write = {moment!r}, 0, prepare._write_report
def die_at_the_third(*args):
    global count
    count += 1
    write(*args) if count < 3 else die()
to_example = array_records.to_example
if moment == "in a shard": array_records.to_example = (
    lambda record: die() if record.id == "virl39k/q3" else to_example(record))
if moment == "between shards": prepare._write_report = die_at_the_third
if moment == "before the metadata": prepare.write_metadata = die
if moment == "before the rename": pathlib.Path.replace = (
    lambda self, to, replace=pathlib.Path.replace: die() if self.is_dir() else replace(self, to))
settings = prepare.Settings("virl39k", pathlib.Path({str(root)!r}), pathlib.Path({str(out)!r}))
prepare.prepare(settings, shard_records=2)
"""
    killed = subprocess.run([sys.executable, "-c", script], env={**os.environ, "PYTHONPATH": os.getcwd()}, check=False)
    assert killed.returncode == -signal.SIGKILL
    assert not out.exists()
    with pytest.raises(ValueError, match="is not prepared data"):
        open_folder(out)
    left = json.loads((tmp_path / "out.partial/report.json").read_text())
    assert left["shards"] == {"in a shard": [2], "between shards": [2, 2]}.get(moment, [2, 2, 2, 1])
    assert prepare(Settings("virl39k", root, out), shard_records=2) == expected
    assert _files(out) == _files(whole)
    assert not (tmp_path / "out.partial").exists()


def test_rest_of_other_settings_is_not_continued(tmp_path: Path) -> None:
    """Catches shards of two settings in one set."""
    root, out = data_sets.write_virl39k(tmp_path / "root"), tmp_path / "out"
    expected = prepare(Settings("virl39k", root, tmp_path / "whole"), shard_records=2)
    prepare(Settings("virl39k", root, out, keep=(ColumnRange("PassRate_7BBase", 0.0, 1.0),)), shard_records=2)
    out.rename(tmp_path / "out.partial")
    assert prepare(Settings("virl39k", root, out), shard_records=2) == expected
    assert _files(out) == _files(tmp_path / "whole")


def test_two_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches two processes that write the same shards."""
    root, out = data_sets.write_virl39k(tmp_path / "root"), tmp_path / "out"
    write = prepare_lib._write_report

    def meanwhile(*arguments) -> None:
        with pytest.raises(ValueError, match=r"another process is writing .*out.partial"):
            prepare(Settings("virl39k", root, out))
        write(*arguments)

    monkeypatch.setattr(prepare_lib, "_write_report", meanwhile)
    assert prepare(Settings("virl39k", root, out))["shards"] == [7]


def test_repeats_of_a_benchmark_are_dropped_and_listed(tmp_path: Path) -> None:
    """Catches a repeat that was saved again as JPEG, and sound rows lost because they ask the same."""
    recoded = io.BytesIO()
    Image.open(io.BytesIO(picture(0, "RGBA", size=(240, 180)))).convert("RGB").save(recoded, "JPEG", quality=50)
    benchmark = [
        {
            "images": [data_sets.embedded(picture(0, size=(240, 180)))],
            "problem": "<image>Find $x$.",
            "answer": "1",
            "id": 3000,
        },
        {"images": [data_sets.embedded(picture(1))], "problem": "<image>Find y.", "answer": "1", "id": 3001},
    ]
    rows = [
        {"images": [data_sets.embedded(picture(9))], "problem": "<image>Find $x$.", "answer": "1", "id": 0},
        {"images": [data_sets.embedded(recoded.getvalue())], "problem": "<image>find  $x$", "answer": "1", "id": 1},
        {"images": [data_sets.embedded(picture(1, "RGBA"))], "problem": "<image>Find z.", "answer": "1", "id": 2},
    ]
    for folder, split, some in (("benchmark", "test", benchmark), ("train", "train", rows)):
        data_sets.write_parquet(tmp_path / folder / f"data/{split}-0.parquet", some, data_sets.GEOMETRY3K)
    prepare(Settings("geometry3k", tmp_path / "benchmark", tmp_path / "test", "test"))
    settings = Settings("geometry3k", tmp_path / "train", tmp_path / "out", against=(tmp_path / "test",), strict=True)
    report = prepare(settings)
    assert [record.id for record in open_folder(tmp_path / "out")] == ["geometry3k/0"]
    assert report["duplicates"] == [
        ["data/train-0.parquet:2", "geometry3k/3000", "question and nearly the picture of a benchmark"],
        ["data/train-0.parquet:3", "geometry3k/3001", "picture of a benchmark"],
    ]


def test_command_line(tmp_path: Path) -> None:
    """Catches flags that do not arrive, a silent run, and errors as tracebacks."""
    root, out = data_sets.write_virl39k(tmp_path / "root"), tmp_path / "out"
    flags = ["--source=virl39k", f"--root={root}", f"--out={out}", "--keep=PassRate_7BBase:0.1:0.9"]
    done = _run(*flags)
    assert done.returncode == 0, done.stderr
    assert "kept               6 in 1 shards" in done.stdout
    assert "virl39k train: 12 rows" in done.stderr
    assert len(open_folder(out)) == 6
    again = _run(*flags)
    assert (again.returncode, again.stdout) == (0, done.stdout)


def test_command_line_without_a_split(tmp_path: Path) -> None:
    """Catches a benchmark of which the training split is sought."""
    root = benchmark_sets.write_mathvista(tmp_path / "root")
    done = _run("--source=mathvista", f"--root={root}", f"--out={tmp_path / 'out'}")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("mathvista testmini\n")


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--source=coco"], "value should be one of <geometry3k|chartqa|"),
        (["--source=jsonl", "--root=x", "--out=y"], "x; give the folder that jsonl was downloaded to"),
    ],
)
def test_bad_flags_are_one_line(flags: list[str], message: str) -> None:
    """Catches tracebacks at a first try."""
    done = _run(*flags)
    assert done.returncode == 2
    assert message in done.stderr
    assert len(done.stderr.splitlines()) == 1


@pytest.mark.parametrize("text", ["PassRate_7BBase", "PassRate_7BBase:low:1", "PassRate_7BBase:0.9:0.1", "a:nan:1"])
def test_bad_ranges_are_refused(text: str) -> None:
    """Catches a filter that keeps nothing, or everything, without a word."""
    with pytest.raises(ValueError, match=f"--keep={text}: "):
        prepare_lib._column_range(text)
    assert prepare_lib._column_range("a:b:-1:0.5") == ColumnRange("a:b", -1.0, 0.5)


def test_nothing_usable_is_an_error(tmp_path: Path) -> None:
    """Catches an empty set, which would only fail at the start of training."""
    (tmp_path / "train.jsonl").write_text("{\n")
    with pytest.raises(ValueError, match=r"no usable row(.|\n)*1  not JSON; first train.jsonl:1"):
        prepare(Settings("jsonl", tmp_path, tmp_path / "out"))
    assert [path.name for path in tmp_path.iterdir()] == ["train.jsonl"]


def test_shards_are_one_source(tmp_path: Path) -> None:
    """Catches records in another order than the files', and shards that cannot be reached at random."""
    root = write_squares(tmp_path / "squares")
    prepare(Settings("jsonl", root, tmp_path / "out"), shard_records=10)
    stored = open_folder(tmp_path / "out")
    assert isinstance(stored, StoredRecords)
    assert len(list((tmp_path / "out").glob("train-*.array_record"))) == 5
    assert [stored[i].id for i in (47, 0, 10, 9, -1)] == [f"train/{i}" for i in (47, 0, 10, 9, 47)]
