"""Benchmarks through the entry point: with a model, killed and gone on with; and files of elsewhere, deviceless."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from care_jax import evaluate
from care_jax.configs import demo
from care_jax.errors import InputError
from care_jax.evals.evaluator import Evaluator
from care_jax.evals.test_sets import BENCHMARKS, PAPER
from tests.benchmark_sets import WRITERS, prepare_all
from tests.data_sets import picture
from tests.end_to_end import REPO, SmallTask, apply, environment, run_forked, small

TOO_LONG = {"mmmu": 1, "mmmu_pro_standard": 1}  # 72 patches, 217 tokens
CONFIG = "--config=configs/demo.py"


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Every benchmark's fixture, prepared."""
    return prepare_all(tmp_path_factory.mktemp("benchmarks"))


def _run_folder(task: SmallTask, folder: Path) -> Path:
    folder.mkdir()
    (folder / "checkpoints").symlink_to(task.cold_start / "checkpoints")
    return folder


def test_all_benchmarks_killed_and_gone_on_with(
    cached: SmallTask, prepared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Catches answers asked for twice or lost at a kill, and a mean over other benchmarks than the paper's.

    Also prompts that are too long left out of the figures, and a model that is loaded when nothing is left to ask.
    """
    overrides = small(
        cached.model,
        cached.data,
        data__prompt_buckets=(128,),
        train__stream_len=256,
        data__patch_buckets=(48,),
        eval__batch_size=4,  # five questions are batches of 3 and 2
        eval__benchmarks=str(prepared),
    )
    config, names = apply(demo.get_config(), overrides), list(BENCHMARKS)
    whole, killed = _run_folder(cached, tmp_path / "whole"), _run_folder(cached, tmp_path / "killed")
    asked: list[str] = []
    responses = Evaluator.responses

    def note(self: Evaluator, *arguments: Any, **more: Any) -> Iterator:
        for answered in responses(self, *arguments, **more):
            asked.extend(answered)
            yield answered
            if len(asked) == stop_at:
                raise KeyboardInterrupt

    monkeypatch.setattr(Evaluator, "responses", note)
    stop_at = 8  # in the second benchmark
    with pytest.raises(KeyboardInterrupt):
        evaluate.run_benchmarks(config, killed, names)
    first, stop_at = asked.copy(), 0
    results = evaluate.run_benchmarks(config, killed, names)
    assert asked[:8] == first
    assert len(asked) == len(set(asked)) == sum(n for _, _, n in WRITERS.values()) - 2

    assert evaluate.run_benchmarks(config, whole, names) == results
    for name, (_, _, num_sound) in WRITERS.items():
        for file in ("responses.jsonl", "items.jsonl"):
            ours, theirs = (folder / "benchmarks" / name / file for folder in (whole, killed))
            assert ours.read_bytes() == theirs.read_bytes(), (name, file)
        figures = results["benchmarks"][name]
        assert (figures["items"], figures["unanswered"]) == (num_sound, TOO_LONG.get(name, 0))
    for rate in ("accuracy", "lmms_eval_accuracy", "unparsed_rate"):
        six = [results["benchmarks"][name][rate] for name in PAPER]
        assert results["macro_average"][rate] == pytest.approx(sum(six) / 6)
    table = (whole / "benchmarks/results.md").read_text().splitlines()
    assert [line.partition(" | ")[0] for line in table[4:12]] == [f"| {one.title}" for one in BENCHMARKS.values()]
    assert table[12].startswith(f"| **mean of the paper's six** | | {100 * results['macro_average']['accuracy']:.2f} |")
    assert any(item["format_ok"] == [True] for item in _items(whole, "chartqa"))

    monkeypatch.setattr(evaluate, "initial_model", lambda *_: pytest.fail("loaded"))
    assert evaluate.run_benchmarks(config, whole, ["mmmu"]) == results
    config.rollout.response_len = 24
    with pytest.raises(ValueError, match=r"benchmarks holds answers given with response_len 16 \(now 24\)"):
        evaluate.run_benchmarks(config, whole, ["mmmu"])


def _items(folder: Path, name: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "benchmarks" / name / "items.jsonl").read_text().splitlines()]


def test_responses_of_elsewhere_need_no_device(prepared: Path, tmp_path: Path) -> None:
    """Catches a model loaded or a device touched for a file that has all the answers, and flags that do not arrive."""
    rows = [{"name": "test_History_1", "said": "Answer: (L)"}, {"name": "test_Music_42", "said": ["A", "C"]}]
    (tmp_path / "file.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    fields = ["--id_field=name", "--response_field=said", f"--responses={tmp_path / 'file.jsonl'}"]
    place = [f"--config.eval.benchmarks={prepared}", f"--workdir={tmp_path / 'run'}"]
    command = [sys.executable, "-m", "care_jax.evaluate", CONFIG, *place, "--benchmark=mmmu_pro_vision", *fields]
    env = environment(tmp_path / "cache") | {"JAX_PLATFORMS": "none"}
    ended = subprocess.run(command, cwd=REPO, env=env, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr
    results = json.loads(ended.stdout.splitlines()[-1])
    assert results == json.loads((tmp_path / "run/benchmarks/results.json").read_text())
    assert results["settings"] == {"answers": "from files"}
    figures = results["benchmarks"]["mmmu_pro_vision"]
    assert figures["accuracy"] == pytest.approx((1 + 0.5 + 0) / 3)
    assert figures["unanswered"] == 1
    assert "| MMMU-Pro vision (file.jsonl) | 3 of 1730, 1 unanswered | 50.00 | 66.67 |" in ended.stdout
    assert [item["correct"] for item in _items(tmp_path / "run", "mmmu_pro_vision")] == [[True], [False, True], []]


def _score(prepared: Path, workdir: Path, name: str, path: Path, rows: list[dict[str, Any]]) -> dict[str, Any]:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(rows))
    config = demo.get_config()
    config.eval.benchmarks = str(prepared)
    return evaluate.score_responses(config, workdir, name, path)


def test_two_models_are_not_one_table(prepared: Path, tmp_path: Path) -> None:
    """Catches a mean over the files of two models that looks like one model's, and figures that replace others."""
    run, pro, vista = tmp_path / "run", "mmmu_pro_standard", [{"id": "3", "response": "B"}]
    of_a = [{"id": "test_Music_42", "response": "C", "model": "a"}]
    of_b = [{"id": "test_Music_42", "response": "C", "model": "b"}]
    _score(prepared, run, pro, tmp_path / "one/output.json", of_a)
    assert _score(prepared, run, pro, tmp_path / "one/output.json", of_a)["benchmarks"][pro]["model"] == "a"
    before = (run / "benchmarks/results.json").read_bytes()
    another_file = "has mmmu_pro_standard from '.*one/output.json', not from '.*two/output.json'; "
    another_model = "has responses of the model 'a', .* of 'b'; give each model a --w"
    two_models = "has responses of 2 models, 'a, b'; give one's"
    for name, file, rows, message in (
        (pro, "two/output.json", of_a, another_file),
        ("mmmu_pro_vision", "two/output.json", of_b, another_model),
        ("mmmu_pro_vision", "both.json", of_a + of_b, two_models),
    ):
        with pytest.raises(InputError, match=message):
            _score(prepared, run, name, tmp_path / file, rows)
    assert (run / "benchmarks/results.json").read_bytes() == before
    assert "files" not in (run / "benchmarks/results.md").read_text().splitlines()[1]
    _score(prepared, run, "mathvista", tmp_path / "two/output.json", vista)
    table = (run / "benchmarks/results.md").read_text().splitlines()
    assert table[:2] == ["Answers from files.", "The rows name 2 files; they must be one model's."]
    assert sum(f"({tmp_path}/{name}/output.json)" in line for line in table for name in ("one", "two")) == 2


def test_responses_without_ids(prepared: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Catches questions that the command finds by id alone, and pictures that are not compared with the prepared."""
    (tmp_path / "png").mkdir()
    (tmp_path / "png/41.jpg").write_bytes(picture(112, "L", "JPEG"))
    rows = [
        {"imgname": "png/41.jpg", "query": "Which year?", "response": "2015"},
        {"imgname": "png/40.jpg", "query": "How many?", "response": "0"},
    ]
    results = _score(prepared, tmp_path / "run", "chartqa", tmp_path / "file.json", rows)
    assert "responses found 1 by image and question, 1 by question alone" in caplog.text
    figures = results["benchmarks"]["chartqa"]
    assert figures["accuracy_by_source"] == {"chartqa_human": 1.0, "chartqa_machine": 0.0}


REFUSED = {
    "unknown": (["--benchmark=coco"], "no benchmark coco; choose one of mathvista"),
    "not prepared": (["--benchmark=all", "--config.eval.benchmarks=nowhere"], "nowhere/mathvista is missing; nowhere"),
    "no benchmark": (["--responses=file"], "--responses needs --benchmark=NAME"),
    "a file for all": (["--responses=file", "--benchmark=all"], "--responses needs --benchmark=NAME"),
    "unknown field": (
        ["--benchmark=mmmu_pro_vision", "--responses={file}", "--response_field=said"],
        "file.jsonl:1 has no 'said', but id, response; name the fields",
    ),
    "other ids": (
        ["--benchmark=mathvista", "--responses={file}"],
        "matches this benchmark (found",
    ),
    "no file": (
        ["--benchmark=mathvista", "--responses=nowhere"],
        "no file nowhere; give one with JSON objects, a line each, in an array, or by id",
    ),
    "no checkpoint": (["--benchmark=mathvista"], "no finished checkpoint"),
}


@pytest.mark.slow
def test_bad_input_is_one_line(prepared: Path, tmp_path: Path) -> None:
    """Catches tracebacks, half a folder left behind, and a training run that takes these flags without a word."""
    file = tmp_path / "file.jsonl"
    file.write_text('{"id": "test_Music_42", "response": "A"}\n')
    jobs = []
    for name, (arguments, _) in REFUSED.items():
        given = [CONFIG, f"--config.eval.benchmarks={prepared}", f"--workdir={tmp_path / name / 'run'}", *arguments]
        jobs.append((tmp_path / name, "care_jax.evaluate", [argument.format(file=file) for argument in given]))
    jobs.append((tmp_path / "train", "care_jax.train", [CONFIG, f"--workdir={tmp_path / 'run'}", "--benchmark=mmmu"]))
    run_forked(jobs, cache=tmp_path / "cache")
    for name, (_, message) in (REFUSED | {"train": ([], "Unknown command line flag 'benchmark'")}).items():
        code, error = (tmp_path / name / "code").read_text(), (tmp_path / name / "stderr").read_text()
        assert code == "2", (name, error)
        assert len(error.splitlines()) == 1, (name, error)
        assert message in error, (name, error)
        assert not (tmp_path / name / "run").exists()
