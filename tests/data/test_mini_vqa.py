"""The embedded task, judged on the finished data: right answers, splits that share no source, builds all or nothing."""

from __future__ import annotations

import collections
import dataclasses
import hashlib
import itertools
import os
import pickle
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sklearn.datasets import load_digits

from care_jax import config
from care_jax.configs import study
from care_jax.data.array_records import StoredRecords
from care_jax.data.mini_vqa import builder as mini_vqa
from care_jax.data.mini_vqa import drawing
from care_jax.data.mini_vqa.difficulty import Difficulty
from care_jax.data.mini_vqa.questions import _unique, generate
from care_jax.inputs.processor import make_processor
from care_jax.inputs.responses import encode_trace
from care_jax.structs import Record
from tests.drawn import count_letters, pixels_of, read_angles, read_chart, read_digits
from tests.marks import slow_but


def difficulty(**knobs: Any) -> Difficulty:
    """The config's defaults with other values of some knobs."""
    return Difficulty(**{**config.base().data.mini_vqa, **knobs})


DEFAULT, SMALL = difficulty(), difficulty(num_train=90, num_heldout=30)


@pytest.fixture(scope="module", params=slow_but([12_000], [12_000, DEFAULT.num_train]))
def wanted(request: pytest.FixtureRequest) -> Difficulty:
    """The defaults, and the same with fewer records."""
    return difficulty(num_train=request.param)


@pytest.fixture(scope="module")
def folder(wanted: Difficulty, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The data set, built once."""
    path = tmp_path_factory.mktemp("mini_vqa")
    mini_vqa.build(path, wanted)
    return path


@pytest.fixture(scope="module")
def train(wanted: Difficulty, folder: Path) -> list[Record]:
    """All train records."""
    return list(mini_vqa.open_split(folder, "train", wanted))


@pytest.fixture(scope="module")
def heldout(wanted: Difficulty, folder: Path) -> list[Record]:
    """All held-out records."""
    return list(mini_vqa.open_split(folder, "heldout", wanted))


def _of(records: list[Record], skill: str) -> list[Record]:
    return [record for record in records if record.source == skill]


def test_sizes_and_balance(wanted: Difficulty, train: list[Record], heldout: list[Record]) -> None:
    """Catches a skill that is missing or too rare, and records written twice."""
    assert (len(train), len(heldout)) == (wanted.num_train, 1_500)
    assert DEFAULT.num_train == 40_000
    for records in (train, heldout):
        counts = collections.Counter(record.source for record in records)
        assert set(counts) == {"digits", "chart", "geometry"}
        assert max(counts.values()) - min(counts.values()) <= 1
    assert len({record.id for record in train + heldout}) == wanted.num_train + 1_500


@pytest.mark.slow
@pytest.mark.parametrize("task", study.TASKS)
def test_every_trace_and_answer_of_the_study_fits(task: str) -> None:
    """Catches a length that leaves out the traces which teach a repair, the longest, or cuts right answers off."""
    cold_start, training = (study.get_config(f"{task}/{run}") for run in ("cold_start", "care"))
    processor, longest = make_processor(cold_start), 0
    room, cue = cold_start.rollout.response_len, cold_start.objective.reflect.cue
    for record in itertools.islice(generate("train", Difficulty(**cold_start.data.mini_vqa)), 3000):
        trace = encode_trace(processor, record, cue=cue, response_len=room)
        assert trace is not None, (record.rationale, record.draft)
        longest = max(longest, len(trace.token_ids))
        alone = dataclasses.replace(record, draft=None)
        answer = encode_trace(processor, alone, cue=cue, response_len=training.rollout.response_len)
        assert answer is not None, record.rationale
    assert longest == room  # no longer than it has to be


def test_no_scan_in_both_splits(train: list[Record], heldout: list[Record]) -> None:
    """Catches handwriting that leaks into the held-out split."""
    scans = [
        set(re.findall(r"s(\d+)", " ".join(r.id.split("/")[1] for r in _of(x, "digits")))) for x in (train, heldout)
    ]
    assert len(scans[0]) == 1300
    assert len(scans[1]) > 450
    assert not scans[0] & scans[1]


def test_no_table_row_in_both_splits(train: list[Record], heldout: list[Record]) -> None:
    """Catches windows of one series that overlap between the splits."""
    rows: tuple[dict, dict] = collections.defaultdict(set), collections.defaultdict(set)
    for seen, records in zip(rows, (train, heldout), strict=True):
        for record in _of(records, "chart"):
            table, column, window = record.id.split("/")[1].split(":")
            first, last = map(int, window.split("-"))
            seen[table, column] |= set(range(first, last + 1))
    assert len(rows[0]) == 37
    for key, seen in rows[0].items():
        assert not seen & rows[1][key], key


def test_no_angle_pair_in_both_splits(train: list[Record], heldout: list[Record]) -> None:
    """Catches a pair of angles that is in both splits, in either order."""
    pairs = [{frozenset(r.id.split("/")[1].split("-")) for r in _of(x, "geometry")} for x in (train, heldout)]
    assert len(pairs[0]) > 100
    assert len(pairs[1]) > 15
    assert not pairs[0] & pairs[1]


def test_digit_answers_match_the_scans(train: list[Record], heldout: list[Record]) -> None:
    """Catches wrong labels, and cells drawn in another order than the rationale reads them."""
    scans, labels = load_digits(return_X_y=True)
    for record in _of(train + heldout, "digits"):
        _, key, question = record.id.split("/")
        indices = [int(scan[1:]) for scan in key.split("-")]
        digits = [int(labels[i]) for i in indices]
        assert record.prompt == f"<image>{question}?"
        assert int(record.answer) == (sum(digits) if question == "sum" else max(digits) - min(digits))
        if question == "sum":
            totals = list(itertools.accumulate(digits))
            steps = zip(digits[1:], totals[1:], strict=True)
            assert record.rationale == str(digits[0]) + "".join(f"+{digit}={total}" for digit, total in steps)
        else:
            assert record.rationale.split(":")[0].split(" ") == [str(digit) for digit in digits]
    assert min(read_digits(pixels_of(record.images[0]), scans[indices])) > 0.97


def test_chart_answers_match_the_pixels(train: list[Record], heldout: list[Record]) -> None:
    """Catches a chart that shows other values than the answer was worked out from, and ambiguous questions."""
    questions = collections.Counter()
    for record in _of(heldout, "chart") + _of(train, "chart")[:500]:
        pixels = pixels_of(record.images[0])
        values = dict(zip("ABCDE", read_chart(pixels, count_letters(pixels)), strict=False))
        question = record.prompt.removeprefix("<image>")
        questions[question if question == "top?" else question[1]] += 1
        if question == "top?":
            assert record.answer_kind == "choice"
            assert record.choices == tuple(values)
            assert [k for k, v in values.items() if v == max(values.values())] == [record.answer]
            continue
        first, second = values[question[0]], values[question[2]]
        assert record.answer_kind == "integer"
        assert record.choices is None
        assert int(record.answer) == (first + second if question[1] == "+" else first - second) >= 0
        assert record.rationale.startswith(f"{question[0]}{first:g} {question[2]}{second:g}:")
    assert min(questions[form] for form in ("top?", "+", "-")) > 200


def test_geometry_answers_match_the_print(train: list[Record], heldout: list[Record]) -> None:
    """Catches labels that are cut off, touched by a side or read in another order, and wrong sums."""
    for record in _of(heldout, "geometry")[:60] + _of(train, "geometry")[:60]:
        first, second = read_angles(pixels_of(record.images[0]))
        key, question = record.id.split("/")[1:3]
        assert sorted((first, second)) == [int(angle) for angle in key.split("-")]
        assert int(record.answer) == (180 - first - second if question == "third" else first + second)
        tens, ones = second - second % 10, second % 10
        work = f"{first}+{tens}={first + tens}" + (f"+{ones}={first + second}" if ones else "")
        assert record.rationale == (f"{work}:{record.answer}" if question == "third" else work)


@pytest.mark.parametrize(("first", "second"), [(20, 20), (35, 110), (60, 60), (90, 25), (140, 20)])
def test_triangle_is_to_scale(first: int, second: int) -> None:
    """Catches a drawing whose angles are not the printed ones, and mirror images that are not mirrored."""
    shapes = []
    for mirrored in (False, True):
        corners = np.array(drawing._unit_corners(first, second, rotation=25, mirrored=mirrored))
        sides = np.roll(corners, -1, axis=0) - corners
        for i, angle in enumerate((first, second, 180 - first - second)):
            out, back = sides[i], -sides[i - 1]
            cosine = out @ back / np.linalg.norm(out) / np.linalg.norm(back)
            assert np.degrees(np.arccos(cosine)) == pytest.approx(angle, abs=1e-6)
        shapes.append(np.sign(sides[0][0] * sides[1][1] - sides[0][1] * sides[1][0]))
    assert shapes == [1, -1]


def test_rationales_are_short_and_drafts_are_wrong(train: list[Record], heldout: list[Record]) -> None:
    """Catches long responses, drafts that are right after all, and drafts in the held-out split."""
    assert all(record.draft is None for record in heldout)
    with_draft = [record for record in train if record.draft]
    assert 0.23 < len(with_draft) / len(train) < 0.27
    for record in train + heldout:
        assert len(record.rationale) <= 22
        assert len(record.prompt) <= len("<image>") + 9
        assert re.split("[=:]", record.rationale)[-1] == record.answer
    for record in with_draft:
        assert len(record.draft) <= 22
        assert re.split("[=:]", record.draft)[-1] != record.answer
        assert _shape(record, record.draft) == _shape(record, record.rationale)


def _shape(record: Record, rationale: str) -> str:
    """A rationale without its values; an angle that is misread may have no ones to add, or some."""
    shape = re.sub(r"\d+", "9", rationale).rstrip("ABCDE")
    return shape.replace("+9=9+9=9", "+9=9") if record.source == "geometry" else shape


def test_hardest_knobs_still_fit() -> None:
    """Catches rationales that outgrow the response, and drawings that fail, at the far end of the knobs."""
    hard = difficulty(num_digits=9, min_bars=5, num_levels=21, angle_step=1, num_train=150, num_heldout=60)
    for split in ("train", "heldout"):
        records = list(generate(split, hard))
        assert all(len(record.rationale) <= 41 for record in records)
        assert all(pixels_of(record.images[0]).min() < 60 for record in records)


@pytest.mark.parametrize(
    "knobs",
    [{"num_digits": 10}, {"num_levels": 2}, {"min_bars": 5, "max_bars": 4}, {"angle_step": 7}, {"skills": ("count",)}],
)
def test_bad_knob_is_refused(knobs: dict) -> None:
    """Catches a knob that would only fail in the middle of a build."""
    with pytest.raises(ValueError, match=next(iter(knobs))):
        difficulty(**knobs)


def test_too_many_questions_is_refused() -> None:
    """Catches a build that never ends because a skill has run out of new questions."""
    stream = ((f"id{i % 7}", lambda: "drawn") for i in itertools.count())
    with pytest.raises(ValueError, match="only 7 different questions"):
        list(_unique(stream, "digits"))


def test_same_seed_same_bytes(tmp_path: Path) -> None:
    """Catches any source of randomness besides the seed: in another process, fields of a record in another order."""
    mini_vqa.build(tmp_path / "one", SMALL)
    script = f"""
import pathlib
from care_jax.data.mini_vqa import builder
builder.build(pathlib.Path({str(tmp_path / "two")!r}), builder.Difficulty(**{dataclasses.asdict(SMALL)}))
"""
    env = {**os.environ, "PYTHONPATH": os.getcwd()}
    done = subprocess.run([sys.executable, "-c", script], env=env, capture_output=True, text=True, check=True)
    assert done.stdout == ""
    shards = [
        [path.read_bytes() for path in sorted((tmp_path / name).rglob("*array_record*"))] for name in ("one", "two")
    ]
    assert len(shards[0]) == 2
    assert shards[0] == shards[1]
    other = list(generate("train", dataclasses.replace(SMALL, seed=1)))
    assert {record.id for record in other} != {record.id for record in generate("train", SMALL)}


def test_order_of_the_records(tmp_path: Path) -> None:
    """Catches another shuffle, with which a seed would train on other batches than it did."""
    mini_vqa.build(tmp_path, SMALL)
    ids = [record.id for split in ("train", "heldout") for record in mini_vqa.open_split(tmp_path, split, SMALL)]
    assert hashlib.sha256("\n".join(ids).encode()).hexdigest()[:16] == "de5d44d6513844c6"


@pytest.mark.slow
def test_killed_build_does_not_look_finished(tmp_path: Path) -> None:
    """Catches half-written data being taken for whole after a kill -9."""
    script = f"""
import os, pathlib
from care_jax.data.mini_vqa import builder as mini_vqa
from care_jax import config
whole = mini_vqa.generate
def killed(split, difficulty):
    for number, record in enumerate(whole(split, difficulty)):
        if split == "heldout" and number == 5:
            os._exit(9)
        yield record
mini_vqa.generate = killed
knobs = {{**config.base().data.mini_vqa, "num_train": 90, "num_heldout": 30}}
mini_vqa.build(pathlib.Path({str(tmp_path)!r}), mini_vqa.Difficulty(**knobs))
"""
    done = subprocess.run([sys.executable, "-c", script], env={**os.environ, "PYTHONPATH": os.getcwd()}, check=False)
    assert done.returncode == 9
    with pytest.raises(ValueError, match="no finished mini_vqa"):
        mini_vqa.open_split(tmp_path, "train", SMALL)
    mini_vqa.build(tmp_path, SMALL)
    assert len(mini_vqa.open_split(tmp_path, "train", SMALL)) == 90


def test_two_builds_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches the slower of two processes failing, or spoiling what the faster one finished."""
    whole = mini_vqa.generate

    def overtaken(split, difficulty):
        yield from whole(split, difficulty)
        if split == "heldout":
            monkeypatch.setattr(mini_vqa, "generate", whole)
            mini_vqa.build(tmp_path, SMALL)

    monkeypatch.setattr(mini_vqa, "generate", overtaken)
    mini_vqa.build(tmp_path, SMALL)
    assert len(mini_vqa.open_split(tmp_path, "train", SMALL)) == 90
    assert not [path for path in tmp_path.rglob("*") if "incomplete" in path.name]


def test_build_twice_changes_nothing(wanted: Difficulty, folder: Path) -> None:
    """Catches a second run that builds again."""
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*.*record*")}
    mini_vqa.build(folder, wanted)
    assert before == {path: path.stat().st_mtime_ns for path in folder.rglob("*.*record*")}
    assert len(before) == 2


def test_source_is_picklable_and_keeps_every_field(tmp_path: Path) -> None:
    """Catches fields lost or altered between the generator and the reader, in this process and in a worker."""
    mini_vqa.build(tmp_path, SMALL)
    source: StoredRecords = pickle.loads(pickle.dumps(mini_vqa.open_split(tmp_path, "train", SMALL)))
    made = {record.id: record for record in generate("train", SMALL)}
    assert [made[record.id] for record in source] == list(source)
    assert len(source) == len(made)
    with pytest.raises(ValueError, match="no split 'test'"):
        mini_vqa.open_split(tmp_path, "test", SMALL)
