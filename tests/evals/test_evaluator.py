"""The evaluation entry point: greedy and pass@k, complete, through the checkpoint of a run."""

from __future__ import annotations

import dataclasses
import json
import threading
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import Mock

import jax
import numpy as np
import pytest

from care_jax.config import base
from care_jax.errors import InputError
from care_jax.evals import evaluator as evaluator_lib
from care_jax.evals.decoding import batch_size
from care_jax.inputs.processor import Processor
from care_jax.inputs.responses import encode_rewrites
from care_jax.rewards.judge import Verifier
from care_jax.run.stop import Stopped
from care_jax.structs import Record
from tests.end_to_end import SOURCES, SmallTask, apply, flags, run, small
from tests.pictures import encode, picture, question

MESHES = ((1, (1, 1, 1)), (4, (2, 2, 1)))  # devices and axis sizes


def _evaluate(task: SmallTask, workdir: Path, **changes: Any) -> tuple[dict[str, float], list[dict[str, Any]]]:
    """Evaluates a copy of the cold start; the printed results and the per-record lines."""
    workdir.mkdir()
    (workdir / "checkpoints").symlink_to(task.cold_start / "checkpoints")
    overrides = small(task.model, task.data, **changes)
    ended = run(
        "care_jax.evaluate", "--config=configs/demo.py", f"--workdir={workdir}", *flags(overrides), cache=task.cache
    )
    assert ended.returncode == 0, ended.stderr
    printed = json.loads(ended.stdout.splitlines()[-1])
    assert printed == json.loads((workdir / "eval_results.json").read_text())
    return printed, [json.loads(line) for line in (workdir / "eval_samples.jsonl").read_text().splitlines()]


def _assert_complete(task: SmallTask, records: list[dict[str, Any]], num_samples: int) -> None:
    rows = [json.loads(line) for line in (task.data / "heldout.jsonl").read_text().splitlines()]
    assert [(r["id"], r["source"], r["answer"]) for r in records] == [(r["id"], r["source"], r["answer"]) for r in rows]
    for record in records:
        for field in ("responses", "extracted", "reasons", "correct", "parsed", "format_ok"):
            assert len(record[field]) == num_samples
        for extracted, correct in zip(record["extracted"], record["correct"], strict=True):
            assert correct == (extracted == record["answer"])


def test_greedy(small_task: SmallTask, tmp_path: Path) -> None:
    """Catches a record that is lost or counted twice (12 records, batches of 5), and a mean over the wrong things."""
    results, records = _evaluate(small_task, tmp_path / "run", eval__batch_size=5)
    _assert_complete(small_task, records, 1)
    by_source = [np.mean([r["correct"][0] for r in records if r["source"] == source]) for source in SOURCES]
    assert [results[f"eval/accuracy/{source}"] for source in SOURCES] == pytest.approx(by_source)
    assert results["eval/accuracy/mean"] == pytest.approx(np.mean(by_source))
    assert results["eval/format_rate"] == np.mean([r["format_ok"][0] for r in records])
    assert not any("pass_at_k" in name for name in results)
    # The cold start's own last evaluation is the same figure.
    last = [json.loads(line) for line in (small_task.cold_start / "metrics.jsonl").read_text().splitlines()][-1]
    assert last["eval/accuracy/mean"] == results["eval/accuracy/mean"]


@pytest.mark.slow
def test_pass_at_k(small_task: SmallTask, tmp_path: Path) -> None:
    """Catches samples that are all the same, and pass@k taken for the mean or the reverse."""
    results, records = _evaluate(small_task, tmp_path / "run", eval__num_samples=2)
    _assert_complete(small_task, records, 2)
    assert any(len(set(record["responses"])) == 2 for record in records)
    for name, reduce in (("accuracy", np.mean), ("pass_at_k", np.max)):
        by_source = [np.mean([reduce(r["correct"]) for r in records if r["source"] == source]) for source in SOURCES]
        assert [results[f"eval/{name}/{source}"] for source in SOURCES] == pytest.approx(by_source)
        assert results[f"eval/{name}/mean"] == pytest.approx(np.mean(by_source))
    assert results["eval/pass_at_k/mean"] > results["eval/accuracy/mean"]


class _SaysThree:
    """In place of an evaluation's decoder: each response is <answer>3</answer>."""

    batch_size = 4

    def __init__(self, processor: Processor) -> None:
        self.ids = encode_rewrites(processor, ["<answer>3</answer>"])[0]
        self.asked: list[list[bool]] = []
        self.keys: list[tuple[int, ...]] = []

    def open(self, model: None) -> Callable[..., None]:
        """Starts nothing."""
        return self._decode

    def _decode(self, prompts: object, asked: list[bool], key: jax.Array) -> None:
        self.asked.append(asked)
        self.keys.append(tuple(jax.random.key_data(key).tolist()))

    def fetch(self, _: None) -> SimpleNamespace:
        """Answers every prompt alike."""
        return SimpleNamespace(token_ids=[[np.array(self.ids)]] * 4, response_len=[[len(self.ids)]] * 4)


def _evaluator(records: list[Record], processor: Processor, verifier: Verifier) -> evaluator_lib.Evaluator:
    mesh = jax.make_mesh((1, 1, 1), ("data", "fsdp", "tensor"))
    return evaluator_lib.Evaluator(
        base(), source=records, processor=processor, verifier=verifier, model=None, mesh=mesh
    )


def test_a_batch_is_made_for_as_many_as_most_evaluations_ask(
    tiny_processor: Processor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Catches a periodic evaluation of a few records in the batch of a large source, most of whose rows are blank."""
    asked: list[int] = []
    monkeypatch.setattr(evaluator_lib, "Decoder", lambda *given: asked.append(given[-1]))
    mesh, verifier = jax.make_mesh((1, 1, 1), ("data", "fsdp", "tensor")), Mock(spec=Verifier)
    given = {"source": [question("1+2?")] * 5, "processor": tiny_processor, "verifier": verifier, "model": None}
    for limit in (0, 2, 9):
        evaluator_lib.Evaluator(base(), **given, mesh=mesh, limit=limit)
    assert asked == [5, 2, 5]


def test_a_prompt_that_is_too_long_counts_as_wrong(
    tiny_processor: Processor, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Catches a record that leaves the denominator in silence: two of three answered right would be 100 %.

    A picture that can no longer be read is another matter: nothing could be asked, so it is left out and counted.
    """
    records = [question("1+2?", id="a"), question("1+2?" * 40, id="long"), question("2+1?", id="b")]
    records.append(question("<image>1+2?", b"no picture", id="lost"))
    processor, says = dataclasses.replace(tiny_processor, overlong="drop"), _SaysThree(tiny_processor)
    monkeypatch.setattr(evaluator_lib, "Decoder", lambda *args: says)
    items: list[dict[str, Any]] = []
    with Verifier(workers=1, deadline=30.0, tolerance=0.0) as verifier:
        summary = _evaluator(records, processor, verifier).run(None, limit=0, write=lambda _, item: items.append(item))
    assert summary["eval/accuracy/mean"] == pytest.approx(2 / 3)
    assert (summary["eval/num_dropped"], summary["eval/num_unreadable"]) == (1, 1)
    assert {item["id"]: item["correct"] for item in items} == {"a": [True], "b": [True], "long": []}
    assert [item["id"] for item in items] == ["a", "b", "long"]
    assert says.asked == [[True, False, True, False]]
    assert "1 of 3 held-out prompts" in caplog.text


@pytest.mark.parametrize(("whole", "written"), [(False, {0: "0", 2: "2"}), (True, dict(enumerate("01234")))])
def test_items_come_with_the_index_of_their_record(
    tiny_processor: Processor, monkeypatch: pytest.MonkeyPatch, whole: bool, written: dict[int, str]
) -> None:
    """Catches an item under its number among those that were asked, which is another record of the source."""
    records = [question("1+2?", id=str(number)) for number in range(5)]
    monkeypatch.setattr(evaluator_lib, "Decoder", lambda *args: _SaysThree(tiny_processor))
    items: dict[int, Any] = {}
    with Verifier(workers=1, deadline=30.0, tolerance=0.0) as verifier:
        _evaluator(records, tiny_processor, verifier).run(None, limit=2, whole=whole, write=items.__setitem__)
    assert {index: item["id"] for index, item in items.items()} == written


def test_keys_are_drawn_once_and_records_that_cannot_be_read_are_named(
    tiny_processor: Processor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Catches samples without the image that are drawn with the keys of those with it, and a mean of nothing."""
    picture_data = encode(picture(56, 56))
    records = [question("<image>1+2?", picture_data, id=str(number)) for number in range(9)]
    lost = [question("<image>1+2?", b"no picture", id="lost"), *records]
    says = _SaysThree(tiny_processor)
    monkeypatch.setattr(evaluator_lib, "Decoder", lambda *args: says)
    with Verifier(workers=1, deadline=30.0, tolerance=0.0) as verifier:
        summary = _evaluator(records, tiny_processor, verifier).run(None, limit=0, whole=True)
        assert summary["baseline/without_image/mean"] == summary["eval/accuracy/mean"] == 1.0
        assert (len(says.keys), len(set(says.keys))) == (6, 6)
        with pytest.raises(InputError, match=r"none of the 1 records .* can be read"):
            _evaluator(lost, tiny_processor, verifier).run(None, limit=1, whole=True)


def test_a_stop_leaves_at_once(tiny_processor: Processor, monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches a SIGTERM that waits for the rest of the evaluation, and threads that encode on behind it."""
    records, says = [question("1+2?", id=str(number)) for number in range(80)], _SaysThree(tiny_processor)
    monkeypatch.setattr(evaluator_lib, "Decoder", lambda *args: says)
    before = set(threading.enumerate())

    def stop(_: None) -> None:
        if len(says.asked) == 3:
            raise Stopped

    with Verifier(workers=1, deadline=30.0, tolerance=0.0) as verifier:
        evaluator = _evaluator(records, tiny_processor, verifier)
        with pytest.raises(Stopped) as stopped:  # whose traceback holds the frames, and what is open in them
            evaluator.run(None, limit=0, wait=stop)
        assert len(says.asked) == 3
        for thread in set(threading.enumerate()) - before:
            if thread.name.startswith("encode"):
                thread.join(timeout=30)
                assert not thread.is_alive(), stopped
        assert evaluator.run(None, limit=0)["eval/accuracy/mean"] == 1.0


@pytest.mark.parametrize(
    ("changes", "num_records", "wanted"),
    [
        ({}, 750, (75, 72)),  # 16 (28 + 8 * 32) / (28 + 32) = 75.7, which one shard and four divide
        ({}, 751, (69, 72)),  # 11 batches
        ({}, 10, (10, 12)),
        ({}, 0, (1, 4)),
        ({"rollout.response_len": 8}, 750, (26, 24)),  # 16 (28 + 8 * 8) / (2 * 28): prefilling takes more than decoding
        ({"eval.num_samples": 8}, 750, (16, 16)),  # as many samples as a rollout has branches
        ({"eval.num_samples": 64}, 750, (2, 4)),
        ({"eval.batch_size": 5}, 12, (4, 4)),
        ({"eval.batch_size": 1}, 12, (1, 4)),
    ],
)
def test_a_batch_takes_the_memory_of_a_rollout(changes: dict[str, int], num_records: int, wanted: tuple) -> None:
    """Catches batches of few prompts where hundreds fit, ones that do not fit, and a last one that is nearly empty."""
    config = base()
    config.data.prompt_buckets, config.train.prompts = (20, 28), 16
    config.rollout.update(num_rollouts=8, response_len=32)
    apply(config, changes)
    meshes = (jax.make_mesh(shape, ("data", "fsdp", "tensor"), devices=jax.devices()[:n]) for n, shape in MESHES)
    assert tuple(batch_size(config, mesh, num_records) for mesh in meshes) == wanted


def test_mean_is_over_sources() -> None:
    """Catches a mean over records: a source of 3 would outweigh a source of 1."""
    wrong, right = [
        {"source": source, "correct": [correct], "parsed": [True], "format_ok": [True]}
        for source, correct in (("a", False), ("b", True))
    ]
    summary = evaluator_lib._summarise([wrong, wrong, wrong, right])
    assert summary["eval/accuracy/mean"] == 0.5
    assert summary["eval/unparsed_rate"] == 0.0
