"""The loader: exact resumption, disjoint shares, a fixed evaluation order, and no endless loops."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import grain
import orbax.checkpoint as ocp
import pytest

from care_jax import config as config_lib
from care_jax.configs import data_care_49k
from care_jax.data import array_records, loader
from care_jax.data.prepare import Settings, prepare
from care_jax.errors import BadRowError, InputError
from care_jax.parallel.processes import HostShare
from care_jax.structs import Record
from tests.numbers import Numbers


def _number(record: Record) -> int:
    return int(record.id)


def _unless_third(record: Record) -> int | None:
    return None if int(record.id) % 3 == 0 else int(record.id)


def _iterator(source, encode=_number, *, batch_size=4, seed=0):
    return loader.make_train_iterator(source, encode, batch_size=batch_size, seed=seed)


def _take(iterator, count: int) -> list[list[int]]:
    return [next(iterator) for _ in range(count)]


def _eval_batches(source, encode=_number, *, batch_size, limit=0, **more) -> list[list[int | None]]:
    """The examples of each row; None in one that has none."""
    batches = loader.make_eval_batches(source, encode, batch_size=batch_size, limit=limit, **more)
    return [[row and row.example for row in rows] for rows in batches]


def test_state_resumes_with_the_next_batch() -> None:
    """Catches examples seen twice or skipped after a restart, dropped ones and an epoch's end included."""
    whole = _take(_iterator(Numbers(23), _unless_third), 10)
    assert all(len(batch) == 4 and isinstance(batch, list) for batch in whole)
    first = _iterator(Numbers(23), _unless_third)
    head = _take(first, 5)
    second = _iterator(Numbers(23), _unless_third)
    _take(second, 2)
    second.set_state(first.get_state())
    assert head + _take(second, 5) == whole


def test_checkpoint_resumes_with_the_next_batch(tmp_path: Path) -> None:
    """Catches a state that Orbax cannot write, or restores to another place."""
    whole = _take(_iterator(Numbers(23), _unless_third), 10)
    first = _iterator(Numbers(23), _unless_third)
    _take(first, 5)
    with ocp.CheckpointManager(tmp_path / "checkpoints") as manager:
        manager.save(5, args=ocp.args.Composite(data=grain.checkpoint.CheckpointSave(first)))
        manager.wait_until_finished()
        second = _iterator(Numbers(23), _unless_third)
        manager.restore(5, args=ocp.args.Composite(data=grain.checkpoint.CheckpointRestore(second)))
    assert _take(second, 5) == whole[5:]


@dataclasses.dataclass
class Watched(Numbers):
    """Records, of which is known which were read."""

    read: set[int] = dataclasses.field(default_factory=set)

    def __getitem__(self, index: int) -> Record:
        """The record."""
        self.read.add(index)
        return super().__getitem__(index)


def test_processes_read_their_rows_alone_and_together_the_same_batches() -> None:
    """Catches batches that depend on the number of processes, and a process that reads the rows of others.

    Also a resumed run whose process goes on from other places than another process had come to. Each third record is
    dropped; the others are told so.
    """
    whole_stream = _iterator(Numbers(97), _unless_third, batch_size=8)
    whole = _take(whole_stream, 40)
    sources, rows = [Watched(97) for _ in range(3)], ([0, 1, 2], [3, 6], [4, 5, 7])
    streams = [
        loader.make_train_iterator(source, _unless_third, batch_size=8, seed=0, rows=own)
        for source, own in zip(sources, rows, strict=True)
    ]
    for batch in whole:
        parts = dict(zip(itertools.chain(*rows), itertools.chain(*map(next, streams)), strict=True))
        assert [parts[row] for row in range(8)] == batch
        for stream, other in itertools.permutations(streams, 2):
            stream.skip(dict(json.loads(json.dumps(list(other.skipped.items())))))
        assert len({json.dumps(stream.get_state()) for stream in streams}) == 1
    assert streams[0].get_state() == whole_stream.get_state()
    again = loader.make_train_iterator(Numbers(97), _unless_third, batch_size=8, seed=0, rows=[5])
    again.set_state(streams[0].get_state())
    assert next(again) == next(whole_stream)[5:6]


def test_a_process_reads_no_record_of_anothers_rows() -> None:
    """Catches work that grows with the batch and not with a process's share of it."""
    source = Watched(800)
    stream = loader.make_train_iterator(source, _number, batch_size=80, seed=0, rows=[3, 4])
    taken = _take(stream, 5)
    stream.wait()
    assert source.read == set(itertools.chain(*taken, next(stream)))


def test_epochs_hold_everything_once_in_new_orders() -> None:
    """Catches a shuffle that is not one, and epochs that all have the same order."""
    batches = _take(_iterator(Numbers(20)), 15)
    epochs = [list(itertools.chain(*batches[i : i + 5])) for i in (0, 5, 10)]
    assert all(sorted(epoch) == list(range(20)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs} | {tuple(range(20))}) == 4
    assert _take(_iterator(Numbers(20)), 15) == batches
    assert _take(_iterator(Numbers(20), seed=1), 15) != batches


@pytest.mark.parametrize(("size", "batch_size"), [(3, 4), (9, 8), (5, 4)])
def test_too_few_usable_records_is_an_error(size: int, batch_size: int) -> None:
    """Catches an endless search for a batch, and one filled with repeats of the same examples."""
    with pytest.raises(ValueError, match="lower the batch size"):
        _take(_iterator(Numbers(size), _unless_third, batch_size=batch_size), 20)
    with pytest.raises(ValueError, match="lower the batch size"):
        _take(_iterator(Numbers(8), lambda record: None), 1)


def test_an_empty_batch_is_refused() -> None:
    """Catches an endless stream of nothing."""
    with pytest.raises(ValueError, match="batch_size=0"):
        _iterator(Numbers(20), batch_size=0)


def test_encoder_errors_reach_the_caller() -> None:
    """Catches errors in a prefetching thread that are swallowed or hang."""
    with pytest.raises(KeyError, match="broken encoder"):
        _take(_iterator(Numbers(20), lambda record: {}["broken encoder"]), 1)


def _mixture(*parts: tuple[int, float]) -> loader.Mixture:
    """Sources of the given sizes and weights; ids say the source in thousands."""
    return loader.Mixture(
        tuple((Numbers(size, first=1000 * number), weight) for number, (size, weight) in enumerate(parts))
    )


def test_mixture_follows_its_weights() -> None:
    """Catches weights taken for sizes, sizes for weights, and a small source that is used up."""
    ids = list(itertools.chain(*_take(_iterator(_mixture((10, 3), (90, 1)), batch_size=8), 50)))
    for end in (8, 40, 400):
        assert abs(sum(number < 1000 for number in ids[:end]) - 0.75 * end) <= 1
    small, large = ([n for n in ids if n // 1000 == part] for part in (0, 1))
    assert all(sorted(small[i : i + 10]) == list(range(10)) for i in range(0, 300, 10))
    assert sorted(large[:90]) == list(range(1000, 1090))
    assert large[:90] != sorted(large[:90])


def test_mixture_resumes_with_the_next_batch(tmp_path: Path) -> None:
    """Catches a resumed mixture that starts one of its sources anew."""
    mixture = _mixture((23, 0.2), (40, 0.5), (9, 0.3))
    whole = _take(_iterator(mixture, _unless_third), 30)
    first = _iterator(mixture, _unless_third)
    head = _take(first, 13)
    with ocp.CheckpointManager(tmp_path / "checkpoints") as manager:
        manager.save(13, args=ocp.args.Composite(data=grain.checkpoint.CheckpointSave(first)))
        manager.wait_until_finished()
        second = _iterator(mixture, _unless_third)
        manager.restore(13, args=ocp.args.Composite(data=grain.checkpoint.CheckpointRestore(second)))
    assert head + _take(second, 17) == whole


def test_mixture_with_a_source_too_small_is_an_error() -> None:
    """Catches a batch with the same example twice because one source is far smaller than its weight."""
    with pytest.raises(ValueError, match="a step needs 6 different examples, more than the 5 records"):
        _iterator(_mixture((5, 3), (90, 1)), batch_size=8)
    with pytest.raises(ValueError, match="the encoder dropped 2 of 4"):
        _take(_iterator(_mixture((4, 3), (90, 1)), _unless_third), 9)


def test_mixture_in_file_order_for_evaluation() -> None:
    """Catches sources that are left out where a mixture is read from first to last."""
    mixture = _mixture((3, 5), (2, 1))
    assert _eval_batches(mixture, batch_size=5) == [[0, 1, 2, 1000, 1001]]
    assert mixture[-1].id == "1001"
    with pytest.raises(IndexError):
        mixture[5]


def test_dropped_records_are_counted_once() -> None:
    """Catches a count that grows with every epoch."""
    counter = loader.DropCounter(_unless_third)
    _take(_iterator(Numbers(21), counter), 20)
    assert counter.num_dropped == 7


@dataclasses.dataclass
class Breaking(Numbers):
    """Records of which some, by index, can no longer be read."""

    broken: set[int] = dataclasses.field(default_factory=set)

    def __getitem__(self, index: int) -> Record:
        """The record, if it can be read."""
        if index in self.broken:
            raise BadRowError(f"no image {index}.png")
        return super().__getitem__(index)


def test_a_record_that_breaks_in_mid_run_is_left_out_and_counted(caplog: pytest.LogCaptureFixture) -> None:
    """Catches a run that ends because one file vanished, a silent loss, and one that is counted every epoch."""
    source, lost = Breaking(20), loader.LostRecords()
    iterator = loader.make_train_iterator(source, _number, batch_size=4, seed=0, lost=lost)
    _take(iterator, 2)
    source.broken = {3, 11}
    later = set(itertools.chain(*_take(iterator, 20)[5:]))
    assert later == set(range(20)) - {3, 11}
    assert len(lost) == 2
    assert caplog.text.count("can no longer be read: no image") == 2
    wanted = [None if number in source.broken else number for number in range(20)]
    assert _eval_batches(source, batch_size=20, lost=lost) == [wanted]
    assert len(lost) == 2


def test_an_encoder_that_cannot_read_a_picture_loses_it_too() -> None:
    """Catches a picture that breaks on the disk, which only its decoder finds."""

    def encode(record: Record) -> int:
        if record.id == "7":
            raise BadRowError("record '7': not a readable image")
        return int(record.id)

    lost = loader.LostRecords()
    batches = _take(loader.make_train_iterator(Numbers(20), encode, batch_size=4, seed=0, lost=lost), 20)
    assert set(itertools.chain(*batches)) == set(range(20)) - {7}
    assert len(lost) == 1


@pytest.mark.parametrize(("size", "most"), [(20, 8), (400, 20)])
def test_too_many_lost_records_end_a_run(size: int, most: int) -> None:
    """Catches a run that goes on without its data, and a supervisor told that the user's input was bad."""
    source, lost = Breaking(size), loader.LostRecords()
    iterator = loader.make_train_iterator(source, _number, batch_size=4, seed=0, lost=lost)
    source.broken = set(range(most))
    _take(iterator, size)
    source.broken = set(range(most + 1))
    with pytest.raises(OSError, match=rf"{most + 1} records of .* can no longer be read; the last: no image"):
        _take(iterator, size)
    with pytest.raises(OSError, match="can no longer be read"):
        _eval_batches(source, batch_size=4)


def test_a_lost_record_ends_a_run_of_several_processes() -> None:
    """Catches processes that draw different batches because the disk of one of them lost a file."""
    source, lost = Breaking(20), loader.LostRecords(is_alone=False)
    source.broken = {3}
    with pytest.raises(OSError, match=r"1 records of .* can no longer be read"):
        _take(loader.make_train_iterator(source, _number, batch_size=4, seed=0, lost=lost), 20)


def test_too_few_readable_records_for_a_step_end_a_run() -> None:
    """Catches lost files reported as a batch size that is too large."""
    source = Breaking(9)
    iterator = loader.make_train_iterator(source, _number, batch_size=8, seed=0)
    source.broken = {1, 2}
    with pytest.raises(OSError, match=r"a step needs 8 different examples.*2 can no longer be read"):
        _take(iterator, 9)


def test_eval_keeps_the_order_and_pads_the_end() -> None:
    """Catches shuffled, missing or doubly counted evaluation examples."""
    assert _eval_batches(Numbers(10), batch_size=4) == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9, None, None]]
    batches = list(loader.make_eval_batches(Numbers(4, first=5), _unless_third, batch_size=3, limit=0))
    assert [[row and (row.place, row.record.id, row.example) for row in rows] for rows in batches] == [
        [(0, "5", 5), (1, "6", None), (2, "7", 7)],
        [(3, "8", 8), None, None],
    ]


def test_eval_deals_each_batch_to_all_shards() -> None:
    """Catches a batch that depends on the processes, and a last one that falls to the first devices alone."""
    whole, first, second = (
        _eval_batches(Numbers(11), batch_size=8, share=HostShare(shards, 4))
        for shards in ((0, 1, 2, 3), (0, 2), (1, 3))
    )
    assert whole == [[0, 4, 1, 5, 2, 6, 3, 7], [8, None, 9, None, 10, None, None, None]]
    assert first == [[0, 4, 2, 6], [8, None, 10, None]]
    assert second == [[1, 5, 3, 7], [9, None, None, None]]


def test_eval_reads_one_batch_ahead() -> None:
    """Catches encoding that waits for the devices, one that fills the memory, and threads that are left behind."""
    seen: set[int] = set()

    def encode(record: Record) -> int:
        seen.add(int(record.id))
        if record.id == "13":
            raise InputError("record 13 is too long")
        return int(record.id)

    before = threading.enumerate()

    def have_ended() -> bool:
        return not set(threading.enumerate()) - set(before)

    batches = loader.make_eval_batches(Numbers(100), encode, batch_size=4, limit=0)
    for number in range(3):
        next(batches)
        _wait_until(lambda: seen == set(range(8 + 4 * number)))  # noqa: B023
    time.sleep(0.05)
    assert seen == set(range(16))
    with pytest.raises(InputError, match=r"^record 13 is too long$"):
        next(batches)
    _wait_until(have_ended)
    with contextlib.closing(loader.make_eval_batches(Numbers(100), _number, batch_size=4, limit=0)) as batches:
        next(batches)
    _wait_until(have_ended)


def _wait_until(is_so: Callable[[], bool]) -> None:
    limit = time.monotonic() + 30
    while not is_so():
        assert time.monotonic() < limit
        time.sleep(0.001)


def test_eval_limit_spreads_over_the_source() -> None:
    """Catches a limited evaluation that sees only the first skill of a sorted file."""
    assert _eval_batches(Numbers(12), batch_size=4, limit=4) == [[0, 3, 6, 9]]
    assert _eval_batches(Numbers(5), batch_size=5, limit=99) == [[0, 1, 2, 3, 4]]
    with pytest.raises(ValueError, match="limit=-1"):
        loader.make_eval_batches(Numbers(5), _number, batch_size=5, limit=-1)
    assert _eval_batches(Numbers(5), lambda record: None, batch_size=5) == [[None] * 5]
    assert _eval_batches(Numbers(0), batch_size=5) == []


def test_open_source_builds_mini_vqa_on_first_use(tmp_path: Path) -> None:
    """Catches train and held-out swapped, a knob that is left out, and a first run that asks for a build."""
    config = config_lib.base()
    config.data.format, config.data.train = "mini_vqa", str(tmp_path / "task")
    config.data.mini_vqa.num_train, config.data.mini_vqa.num_heldout = 60, 30
    train, heldout = loader.open_source(config, "train"), loader.open_source(config, "eval")
    assert (len(train), len(heldout)) == (60, 30)
    ids = list(itertools.chain(*_take(_iterator(train, lambda record: record.id, batch_size=20), 3)))
    assert set(ids) == {record.id for record in train}
    (sources,) = _eval_batches(heldout, lambda record: record.source, batch_size=15, limit=15)
    assert set(sources) == {"digits", "chart", "geometry"}
    config.data.mini_vqa.skills, config.data.mini_vqa.num_digits = ("digits",), 5
    few = loader.open_source(config, "eval")
    assert {(record.source, record.id.count("-s")) for record in few} == {("digits", 4)}


def test_open_source_reads_jsonl(tmp_path: Path) -> None:
    """Catches data.strict being ignored, and the wrong file being opened."""
    row = '{"id": "%s", "images": [], "prompt": "1+2?", "answer": "3", "answer_kind": "integer"}'
    for split in ("train", "eval"):
        (tmp_path / f"{split}.jsonl").write_text(row % split + "\n{\n")
    config = config_lib.base()
    config.data.train, config.data.eval = str(tmp_path / "train.jsonl"), str(tmp_path / "eval.jsonl")
    assert [loader.open_source(config, split)[0].id for split in ("train", "eval")] == ["train", "eval"]
    config.data.strict = True
    with pytest.raises(ValueError, match="row 2"):
        loader.open_source(config, "train")


def test_open_source_reads_prepared_folders(tmp_path: Path) -> None:
    """Catches the paper's mixture that does not open, and a folder alone that must be a mixture."""
    for name, size in (("a", 2), ("b", 3)):
        records = [Record(f"{name}{number}", "numbers", "?", (), "1", "integer") for number in range(size)]
        folder = tmp_path / name
        folder.mkdir()
        writer = array_records.ShardWriter(folder, "train")
        array_records.write_metadata(folder, {"train": [writer.write(0, records)]})
    config = data_care_49k.get_config()
    assert sum(weight for _, weight in config.data.train) == 49_329
    config.model.folder, config.data.eval = "model", str(tmp_path / "b")
    with config.ignore_type():
        config.data.train = ((str(tmp_path / "a"), 1), (str(tmp_path / "b"), 2))
    config_lib.validate(config)
    assert [record.id for record in loader.open_source(config, "train")] == ["a0", "a1", "b0", "b1", "b2"]
    assert [record.id for record in loader.open_source(config, "eval")] == ["b0", "b1", "b2"]
    batches = _iterator(loader.open_source(config, "train"), lambda record: record.id, batch_size=3)
    assert sorted(id[0] for id in next(batches)) == ["a", "b", "b"]


def test_open_source_imports_only_what_the_config_lists(tmp_path: Path) -> None:
    """Catches prepared data, or a file, whose kinds are not compared with verify.allow."""
    rows = [{"id": "1", "images": [], "prompt": "?", "answer": "ab", "answer_kind": "tests.own_verifier:anagram"}]
    root = tmp_path / "train.jsonl"
    root.write_text(json.dumps(rows[0]) + "\n")
    own = ("tests.own_verifier:anagram",)
    prepare(Settings("jsonl", root, tmp_path / "out", allow=own))
    config = config_lib.base()
    for data_format, path in (("jsonl", root), ("prepared", tmp_path / "out")):
        config.data.format, config.data.train, config.verify.allow = data_format, str(path), ()
        with pytest.raises(InputError, match=r"anagram' is not in verify.allow \(which is empty\)"):
            loader.open_source(config, "train")
        config.verify.allow = own
        assert [record.answer for record in loader.open_source(config, "train")] == ["ab"]
    with pytest.raises(InputError, match="is not in verify"):
        prepare(Settings("jsonl", root, tmp_path / "again", strict=True))


@pytest.mark.parametrize(
    ("changes", "split", "message"),
    [
        ({"format": "csv"}, "train", "data.format='csv': choose one of jsonl, mini_vqa, prepared"),
        ({"format": "prepared"}, "train", "data.train is empty: name a folder of care_jax.data.prepare"),
        ({"format": "prepared", "train": "absent"}, "train", "absent is not prepared data; build it with"),
        ({"train": ""}, "train", "data.train is empty"),
        ({"eval": ""}, "eval", "data.eval is empty"),
        ({"format": "mini_vqa", "train": ""}, "eval", "data.train is empty"),
        ({}, "test", "unknown split 'test'"),
    ],
)
def test_open_source_refuses_bad_settings(changes: dict, split: str, message: str) -> None:
    """Catches a bad setting that surfaces as a traceback from deep inside."""
    config = config_lib.base()
    config.data.update(changes)
    with pytest.raises(ValueError, match=message):
        loader.open_source(config, split)


def test_heavy_packages_stay_out(tmp_path: Path) -> None:
    """Catches TensorFlow, torch or the datasets package coming in with a build, a read or a batch."""
    script = f"""
import pathlib, sys
from care_jax import config
from care_jax.data import loader
from care_jax.data.mini_vqa import builder as mini_vqa
folder = pathlib.Path({str(tmp_path)!r})
small = mini_vqa.Difficulty(**{{**config.base().data.mini_vqa, "num_train": 30, "num_heldout": 30}})
mini_vqa.build(folder, small)
source = mini_vqa.open_split(folder, "train", small)
encode = lambda record: record.id
next(loader.make_train_iterator(source, encode, batch_size=2, seed=0))
next(loader.make_eval_batches(source, encode, batch_size=2, limit=4))
print(sorted(set(sys.modules) & {{"tensorflow", "datasets", "torch", "vega_datasets"}}))
"""
    env = {**os.environ, "PYTHONPATH": os.getcwd()}
    done = subprocess.run([sys.executable, "-c", script], env=env, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
