"""Benchmarks without a model: answers that are kept, files of elsewhere, figures and the table."""

from __future__ import annotations

import hashlib
import json
import re
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from care_jax.data.prepare import Settings, prepare
from care_jax.errors import InputError
from care_jax.evals import test_sets
from care_jax.evals.matching import Questions
from care_jax.evals.responses import Responses, answer_all, check_settings, read_responses
from care_jax.rewards.judge import Verifier
from care_jax.rewards.response_format import ANSWER_TAGS, ANY
from care_jax.structs import Record
from tests.benchmark_sets import WRITERS, prepare_all
from tests.data_sets import picture
from tests.end_to_end import REPO

SETTINGS = {"answers": "of checkpoint 7", "data.prompt_buckets": (24,)}


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Every benchmark's fixture, prepared."""
    return prepare_all(tmp_path_factory.mktemp("benchmarks"))


@pytest.fixture(scope="module")
def verifier() -> Iterator[Verifier]:
    """A pool of one worker."""
    with Verifier(workers=1, deadline=30.0, tolerance=0.01) as pool:
        yield pool


class Model:
    """Answers in batches of two, notes what it is asked, and is killed after some batches."""

    def __init__(self, batches: int = 100, too_long: Sequence[str] = ()) -> None:
        """Nothing is asked yet."""
        self.asked: list[str] = []
        self.numbers: list[int] = []
        self._batches, self._too_long = batches, too_long

    def __call__(self, source: Any, answered: int) -> Iterator[Responses]:
        """Answers each record with its id."""
        self.numbers.append(answered)
        records = [source[i] for i in range(len(source)) if source[i].id not in self._too_long]
        for start in range(0, len(records), 2):
            if start == 2 * self._batches:
                raise KeyboardInterrupt
            batch = records[start : start + 2]
            self.asked += [record.id for record in batch]
            yield {record.id: [f"<answer>{record.id}</answer>"] for record in batch}


def test_nothing_is_asked_twice(prepared: Path, tmp_path: Path) -> None:
    """Catches answers lost at a kill, asked for again, or torn; and prompts that are too long forgotten."""
    source = test_sets.open_benchmarks(prepared, ["mathvista"])["mathvista"]
    ids = [source[i].id for i in range(5)]
    whole, first, second = Model(too_long=ids[2:3]), Model(batches=1, too_long=ids[2:3]), Model(too_long=ids[2:3])
    expected = answer_all(tmp_path / "whole", source, whole, SETTINGS)
    assert expected == {record_id: [f"<answer>{record_id}</answer>"] for record_id in ids} | {ids[2]: []}

    with pytest.raises(KeyboardInterrupt):
        answer_all(tmp_path / "killed", source, first, SETTINGS)
    path = tmp_path / "killed/responses.jsonl"
    with path.open("a") as file:
        file.write('{"id": "mathvista/31", "resp')
    assert answer_all(tmp_path / "killed", source, second, SETTINGS) == expected
    assert first.asked + second.asked == whole.asked == [ids[0], ids[1], ids[3], ids[4]]
    assert second.numbers == [2]
    assert path.read_bytes() == (tmp_path / "whole/responses.jsonl").read_bytes()

    third = Model()
    assert answer_all(tmp_path / "killed", source, third, SETTINGS) == expected
    assert not third.numbers
    with pytest.raises(ValueError, match=r"given with answers 'of checkpoint 7' \(now 'of checkpoint 8'\); move"):
        answer_all(tmp_path / "killed", source, third, SETTINGS | {"answers": "of checkpoint 8"})


OTHER_LINES = [b"{", b"", b"null", b"[]", b"7", b"{}", b'{"id": 1, "responses": []}', b'{"id": "a", "responses": "b"}']
OTHER_LINES += [b'{"id": "a", "responses": [1]}', b"\xff", b"[" * 100_000, b"9" * 5000, b'{"responses": ["a"]}']


@pytest.mark.parametrize("line", OTHER_LINES)
def test_a_damaged_answer_is_named_by_file_and_line(tmp_path: Path, line: bytes) -> None:
    """Catches a traceback for one damaged line, or answers that are taken for others and overwritten."""
    path = tmp_path / "responses.jsonl"
    good = b'{"id": "a", "responses": ["b"]}'
    check_settings(tmp_path, SETTINGS)
    path.write_bytes(good + b"\n" + line + b"\n" + good + b"\n")
    before = path.read_bytes()
    with pytest.raises(InputError, match=re.escape(f"{path}, line 2: ")) as error:
        answer_all(tmp_path, [], lambda *_: [], SETTINGS)  # type: ignore[arg-type]
    assert str(error.value).isprintable()
    assert path.read_bytes() == before


OTHER_FILES = [b"", b"{", b"null", b"[]", b"7", b"\xff", b"[" * 100_000, b'{"answers": "of\x1b[2J"}']


@pytest.mark.parametrize("data", OTHER_FILES)
def test_damaged_settings_are_named(tmp_path: Path, data: bytes) -> None:
    """Catches a traceback for a damaged settings.json, and answers that go on under other settings."""
    (tmp_path / "settings.json").write_bytes(data)
    with pytest.raises(InputError, match=re.escape(str(tmp_path))) as error:
        check_settings(tmp_path, SETTINGS)
    assert str(error.value).isprintable()
    assert (tmp_path / "settings.json").read_bytes() == data


@pytest.mark.parametrize("data", [*OTHER_FILES, b'{"benchmarks": []}', b'{"benchmarks": {"mmmu": {"items": "9"}}}'])
def test_damaged_results_are_named(tmp_path: Path, data: bytes) -> None:
    """Catches a traceback for a damaged results.json, and the figures of other benchmarks that are lost with it."""
    check_settings(tmp_path, SETTINGS)
    (tmp_path / "results.json").write_bytes(data)
    with pytest.raises(InputError, match=re.escape(str(tmp_path / "results.json"))):
        test_sets.write_results(tmp_path, {})


def test_a_killed_process_leaves_whole_lines(prepared: Path, tmp_path: Path) -> None:
    """Catches answers that are still in a buffer when SIGKILL comes."""
    script = f"""
import os, pathlib, signal
from care_jax.evals.responses import answer_all
from care_jax.data.array_records import open_folder
def ask(source, answered):
    yield {{source[0].id: ["one"], source[1].id: ["two"]}}
    os.kill(os.getpid(), signal.SIGKILL)
answer_all(pathlib.Path({str(tmp_path)!r}), open_folder(pathlib.Path({str(prepared / "mathvista")!r})), ask, {{}})
"""
    killed = subprocess.run([sys.executable, "-c", script], cwd=REPO, capture_output=True, check=False)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    rows = [json.loads(line) for line in (tmp_path / "responses.jsonl").read_text().splitlines()]
    assert [row["responses"] for row in rows] == [["one"], ["two"]]


def _score(prepared: Path, folder: Path, name: str, responses: Responses, verifier: Verifier, reading=ANY) -> dict:
    source = test_sets.open_benchmarks(prepared, [name])[name]
    return test_sets.score(folder, name, source, responses, verifier, reading)


def test_what_is_kept_of_an_item(prepared: Path, tmp_path: Path, verifier: Verifier) -> None:
    """Catches fields in one another's place, and items without a response left out."""
    responses = {"mathvista/27": ["<think>no</think><answer>0 years</answer>", "7"], "mathvista/3": ["<answer>A"]}
    _score(prepared, tmp_path, "mathvista", responses, verifier, ANSWER_TAGS)
    items = [json.loads(line) for line in (tmp_path / "items.jsonl").read_text().splitlines()]
    assert [item["id"] for item in items] == [f"mathvista/{pid}" for pid in (3, 27, 1, 31, 781)]
    assert items[1] == {
        "id": "mathvista/27",
        "source": "mathvista",
        "image_ids": [hashlib.sha256(picture(71, "RGBA")).hexdigest()[:16]],
        "prompt": "<image>Hint: Answer.\nQuestion: How many?" + ANSWER_TAGS.request,
        "answer": "0",
        "kind": "integer",
        "choices": None,
        "responses": ["<think>no</think><answer>0 years</answer>", "7"],
        "extracted": ["0 years", None],
        "parsed": [True, False],
        "reasons": ["correct", "no answer"],
        "correct": [True, False],
        "format_ok": [True, False],
        "lmms_eval": [1.0, 0.0],
    }
    assert items[0]["choices"] == ["135°", "145°"]
    assert items[0]["correct"] == [False]
    assert items[2]["responses"] == items[2]["correct"] == items[2]["lmms_eval"] == []


def test_figures(prepared: Path, tmp_path: Path, verifier: Verifier) -> None:
    """Catches unanswered questions that do not count, and a mean over items where the versions have one each."""
    answers = {"3": ["B"], "27": ["Answer: 7"], "1": ["It is far."], "31": ["[2014, 2016]"]}
    responses = {f"mathvista/{pid}": texts for pid, texts in answers.items()}
    assert _score(prepared, tmp_path, "mathvista", responses, verifier) == {
        "items": 5,
        "published_items": 1000,
        "unanswered": 1,
        "samples": 1,
        "accuracy": 2 / 5,
        "unparsed_rate": pytest.approx(2 / 5),
        "format_rate": 0.0,
        "lmms_eval_accuracy": 0.0,  # no tags and no box; in the list it takes the number at the end
    }
    verses = {"mathverse/1": ["C"], "mathverse/2": ["118° T"], "mathverse/5": ["True"], "mathverse/7": ["1633.628 m^3"]}
    figures = _score(prepared, tmp_path, "mathverse", verses, verifier)
    assert figures["accuracy_by_source"] == {
        "mathverse_text_dominant": 1.0,
        "mathverse_text_lite": 1.0,
        "mathverse_vision_intensive": 0.0,
        "mathverse_vision_only": 0.5,
    }
    assert figures["accuracy"] == 2.5 / 4
    assert figures["items"] == 5


def test_figures_of_several_samples(prepared: Path, tmp_path: Path, verifier: Verifier) -> None:
    """Catches pass@k taken for the mean, or the reverse."""
    responses = {"chartqa/human/data/test-00000-of-00001.parquet:1": ["0", "1", "0", "1"]}
    figures = _score(prepared, tmp_path, "chartqa", responses, verifier)
    assert figures["accuracy_by_source"] == {"chartqa_human": 0.25, "chartqa_machine": 0.0}
    assert (figures["samples"], figures["accuracy"], figures["pass_at_k"]) == (4, 0.125, 0.25)


def test_no_response_at_all(prepared: Path, tmp_path: Path, verifier: Verifier) -> None:
    """Catches an accuracy of 0 where every prompt was too long."""
    with pytest.raises(ValueError, match="no question of mmmu has a response: every prompt is longer"):
        _score(prepared, tmp_path / "none", "mmmu", {"mmmu/validation_Art_1": []}, verifier)
    assert not (tmp_path / "none").exists()


def test_the_papers_average(tmp_path: Path) -> None:
    """Catches another set of six: these figures of the paper have 50.57 as their mean."""
    check_settings(tmp_path, SETTINGS)
    paper = dict(zip(test_sets.PAPER, (74.7, 56.8, 32.6, 62.5, 39.7, 37.1), strict=True))
    others = {name: _figures(0.9) for name in ("chartqa", "geometry3k")}
    results = test_sets.write_results(tmp_path, others)
    assert results["macro_average"] == {"over": list(test_sets.PAPER), "missing": list(test_sets.PAPER)}
    for name in reversed(paper):
        results = test_sets.write_results(tmp_path, {name: _figures(paper[name] / 100)})
    assert round(100 * results["macro_average"]["accuracy"], 2) == 50.57
    assert "pass_at_k" not in results["macro_average"]
    assert list(results["benchmarks"]) == list(test_sets.BENCHMARKS)
    assert results == json.loads((tmp_path / "results.json").read_text())


def _figures(accuracy: float, **more: Any) -> dict[str, Any]:
    numbers = {"items": 3, "published_items": 1000, "unanswered": 0, "samples": 1}
    return numbers | {"accuracy": accuracy, "unparsed_rate": 0.125, "lmms_eval_accuracy": 0.25} | more


def test_table(tmp_path: Path) -> None:
    """Catches figures under one another's head, and a mean of fewer than six that looks like the paper's."""
    check_settings(tmp_path, SETTINGS)
    test_sets.write_results(tmp_path, {"mmmu": _figures(0.5, unanswered=1, pass_at_k=0.75)})
    test_sets.write_results(tmp_path, {name: _figures(0.5) for name in test_sets.PAPER[:3]})
    lines = (tmp_path / "results.md").read_text().splitlines()
    missing = "(missing: mmmu_pro_standard, mmmu_pro_vision)"
    assert lines[:8] == [
        "Answers of checkpoint 7.",
        "",
        "| benchmark | items | accuracy | pass@k | unparsed | lmms-eval rules |",
        "|---|---:|---:|---:|---:|---:|",
        "| MathVista testmini | 3 of 1000 | 50.00 |  | 12.50 | 25.00 |",
        "| MathVerse testmini, mean of five versions | 3 of 1000 | 50.00 |  | 12.50 | 25.00 |",
        "| MATH-Vision test | 3 of 1000 | 50.00 |  | 12.50 | 25.00 |",
        "| MMMU val | 3 of 1000, 1 unanswered | 50.00 | 75.00 | 12.50 | 25.00 |",
    ]
    assert lines[8] == f"| **mean of the paper's six** {missing} | |  |  |  |  |"


def test_benchmarks_that_are_not_there(prepared: Path, tmp_path: Path) -> None:
    """Catches training data scored as a benchmark, and one missing folder named a run."""
    write, _, _ = WRITERS["mathvision"]
    prepare(Settings("mathvision", write(tmp_path / "root"), tmp_path / "mathvision", "testmini"))
    with pytest.raises(ValueError, match="mathvista is missing") as error:
        test_sets.open_benchmarks(tmp_path, ["mathvista", "mathvision"])
    text = str(error.value)
    assert f"{tmp_path}/mathvista is missing; {tmp_path}/mathvision holds mathvision testmini, not mathvision" in text
    assert "--source=mathvista --split=testmini" in text
    assert "\n" not in text
    with pytest.raises(ValueError, match=r"no benchmark coco; choose one of mathvista, .*, or all"):
        test_sets.open_benchmarks(prepared, ["mathvista", "coco"])


def test_published_responses(prepared: Path, tmp_path: Path, verifier: Verifier, caplog: Any) -> None:
    """Catches MMMU-Pro's published files not read as they are.

    They have bare ids, more fields than are asked for, and a dict where a model refused.
    """
    source = test_sets.open_benchmarks(prepared, ["mmmu_pro_standard"])["mmmu_pro_standard"]
    ids = Questions(source).ids
    rows = [
        {"id": "test_History_1", "answer": "L", "response": "It falls.\n\nAnswer: (L)", "pred_indexs": "L"},
        {"id": "test_Music_42", "answer": "C", "response": {"error": "blocked"}, "pred_indexs": "A"},
        {"id": "test_Music_43", "answer": "C", "response": "C"},
    ]
    path = tmp_path / "gpt-4o_standard(10 options)_cot.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    responses = read_responses(path, Questions(source), id_field="id", response_field="response")
    assert responses == {ids[0]: ["It falls.\n\nAnswer: (L)"], ids[1]: []}
    assert "left out 1 ids that the benchmark does not have, as test_Music_43" in caplog.text
    figures = _score(prepared, tmp_path / "scored", "mmmu_pro_standard", responses, verifier)
    assert (figures["accuracy"], figures["unanswered"]) == (pytest.approx(1 / 3), 2)


BY_ID = {"1": {"pid": "1", "query": "?", "response": "A"}, "2": {"pid": "2", "response": 7, "extraction": "7"}}
FORMS = [
    (BY_ID, "pid"),
    (BY_ID, "id"),
    (list(BY_ID.values()), "pid"),
    ({"1": "A", "2": 7}, "id"),
    ({"1": ["A"], "2": [7]}, "id"),
]


@pytest.mark.parametrize(("published", "id_field"), FORMS)
@pytest.mark.parametrize("indent", [None, 1])
def test_published_forms(tmp_path: Path, published: Any, id_field: str, indent: int | None) -> None:
    """Catches the files of MathVista, MMMU and ChartQA that must be rewritten first, and numbers taken for silence."""
    path = tmp_path / "output.json"
    path.write_text(json.dumps(published, indent=indent))
    responses = read_responses(path, _numbered(3), id_field=id_field, response_field="response")
    assert responses == {"b/1": ["A"], "b/2": ["7"]}


@pytest.mark.parametrize(
    "damage", ['{"1": {"response": "A"}', '[{"id": "1"}, 7]', '[{"id": "1", "response": "A"}, null]']
)
def test_damaged_published_forms(tmp_path: Path, damage: str) -> None:
    """Catches half a file that is scored as a whole one."""
    path = tmp_path / "output.json"
    path.write_text(damage)
    with pytest.raises(InputError, match=re.escape(f"{path}:")):
        read_responses(path, _numbered(1), id_field="id", response_field="response")


def test_the_table_names_the_files_that_were_scored(tmp_path: Path) -> None:
    """Catches two models' responses in one table that nobody can tell apart."""
    check_settings(tmp_path, {"answers": "from files"})
    numbers = {"items": 1, "published_items": 1, "unanswered": 0}
    numbers |= {"accuracy": 0.5, "unparsed_rate": 0.0, "lmms_eval_accuracy": 0.5}
    for name, file in (("mathvista", "runs/model_a.json"), ("mmmu", "model_b\x1b|.json")):
        results = test_sets.write_results(tmp_path, {name: {"responses": file, **numbers}})
    titles = [line.split(" | ")[0] for line in test_sets.table(results).splitlines() if "model_" in line]
    assert titles == ["| MathVista testmini (model_a.json)", "| MMMU val (model_b\\x1b/.json)"]


def test_own_responses_are_such_a_file(prepared: Path, tmp_path: Path) -> None:
    """Catches answers that were asked for and cannot be scored again."""
    source = test_sets.open_benchmarks(prepared, ["mathvista"])["mathvista"]
    asked = answer_all(tmp_path, source, Model(), SETTINGS)
    path = tmp_path / "responses.jsonl"
    assert read_responses(path, Questions(source), id_field="id", response_field="responses") == asked


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"id": "x"}\n', r":1 has no 'response', but id; name the fields with --id_field and --response_field"),
        (
            '{"id": "x", "response": "A"}\n',
            r"no id in .* matches this benchmark \(found x, expected e\.g\. ",
        ),
        ("", r"\(found none, expected"),
        ("[]\n", ":1 cannot be read: a JSON object is needed, not list"),
        ('{"id": "3", "response": "A"}\n{', ":2 cannot be read: not JSON"),
        (2 * '{"id": "3", "response": "A"}\n', ":2 is the second response to '3'"),
    ],
)
def test_files_that_cannot_be_scored(prepared: Path, tmp_path: Path, text: str, message: str) -> None:
    """Catches a file of another benchmark that scores 0, and half a file."""
    questions = Questions(test_sets.open_benchmarks(prepared, ["mathvista"])["mathvista"])
    (tmp_path / "file").write_text(text)
    with pytest.raises(ValueError, match=message):
        read_responses(tmp_path / "file", questions, id_field="id", response_field="response")
    with pytest.raises(ValueError, match=r"no file .*absent"):
        read_responses(tmp_path / "absent", questions, id_field="id", response_field="response")


def _numbered(count: int) -> Questions:
    """Questions b/1, b/2, .. that are known by their ids alone."""
    return Questions(Record(f"b/{n}", "b", "", (), "", "text") for n in range(1, count + 1))


@pytest.mark.parametrize("missing", ["NaN", "Infinity", "-Infinity", "null", "[NaN]", "true"])
@pytest.mark.parametrize("form", ['{{"id": "1", "response": {0}}}', '[{{"id": "1", "response": {0}}}]', '{{"1": {0}}}'])
def test_a_missing_response_is_none(tmp_path: Path, form: str, missing: str) -> None:
    """Catches a missing cell of somebody's table judged as the answer "nan"."""
    (tmp_path / "file").write_text(form.format(missing))
    assert read_responses(tmp_path / "file", _numbered(1), id_field="id", response_field="response") == {"b/1": []}
