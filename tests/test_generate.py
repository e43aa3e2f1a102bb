"""The command that asks a run: the commands of docs/generate.md, what the terminal shows, and the server's life."""

from __future__ import annotations

import base64
import contextlib
import json
import re
import shlex
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from care_jax import generate
from care_jax.errors import InputError
from care_jax.evals.engine import MOST_SAMPLES, MOST_WAITING, BusyError, Piece, Question
from care_jax.evals.questions import read_question
from care_jax.inputs.processor import Processor
from tests.chat import request
from tests.documents import document_lines
from tests.end_to_end import COLOURS, REPO, Forks, SmallTask, finish, run_lines, square, start
from tests.marks import slow_but

# The tiny tokenizer has a token a letter, so the page's questions take more room than the small task's.
ROOM = ["--config.data.prompt_buckets=(128,)", "--config.data.patch_buckets=(16, 32)", "--config.train.stream_len=256"]


@pytest.fixture
def folder(small_task: SmallTask, tmp_path: Path) -> Path:
    """A folder with the run and the files that the page's commands name."""
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs/care").symlink_to(small_task.cold_start)
    for name, colour in zip(("chart", "a", "b"), COLOURS.values(), strict=True):
        (tmp_path / f"{name}.png").write_bytes(square(colour, 4))
    return tmp_path


def _with_room(line: str) -> dict[str, str]:
    return {"--workdir=runs/care": shlex.join(["--workdir=runs/care", *ROOM])} if "runs/care" in line else {}


@pytest.mark.slow
def test_one_question(small_task: SmallTask, folder: Path) -> None:
    """Catches a page whose commands do not run, an answer that is not shown, and samples that are lost."""
    lines = document_lines("ask").strip().splitlines()
    assert len(lines) == 3
    for number, line in enumerate(lines):
        run_lines(f"{line} > {number}.txt", _with_room(line), cwd=folder, cache=small_task.cache)
    shown = [(folder / f"{number}.txt").read_text() for number in range(3)]
    assert re.fullmatch(r"Rationale\n\d\n\nAnswer\n\d\n", shown[0]), shown[0]  # what the cold start has taught
    assert "Answer\n" in shown[1]
    assert re.findall(r"Sample (\d) of 4", shown[2]) == ["1", "2", "3", "4"]
    assert shown[2].count("Rationale\n") == 4


@pytest.mark.slow
def test_a_file_of_questions(small_task: SmallTask, folder: Path) -> None:
    """Catches lines that change places, a row of own data that is refused, and a question that is lost."""
    heldout = [json.loads(line) for line in (small_task.data / "heldout.jsonl").read_text().splitlines()]
    (folder / "images").symlink_to(small_task.data / "images")
    url = "data:image/png;base64," + base64.b64encode(square(COLOURS["red"], 0)).decode()
    turns = [
        {"role": "user", "content": [{"type": "image_url", "image_url": {"url": url}}, {"type": "text", "text": "?"}]}
    ]
    rows = [*heldout, {"prompt": "?", "images": ["a.png"]}, {"messages": turns}]
    (folder / "questions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    line = document_lines("ask-file")
    run_lines(line, {}, cwd=folder, cache=small_task.cache)
    answers = [json.loads(line) for line in (folder / "answers.jsonl").read_text().splitlines()]
    assert [answer["id"] for answer in answers] == [*(row["id"] for row in heldout), "13", "14"]
    for answer in answers:
        [sample] = answer["samples"]
        assert sample.keys() == {"rationale", "answer", "text", "finish", "num_tokens"}
        assert sample["text"] == f"<think>{sample['rationale']}</think><answer>{sample['answer']}</answer>"
        assert sample["finish"] == "stop"

    (folder / "broken.png").write_bytes(b"no picture")
    rows[1]["images"], rows[2]["images"] = ["broken.png"], ["absent.png"]
    (folder / "questions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    arguments = shlex.split(line.removeprefix("python -m ").partition(" > ")[0])
    ended = finish(start(*arguments, cache=small_task.cache, cwd=folder))
    assert ended.returncode == 2, ended.stderr
    assert "2 of 14 questions could not be asked" in ended.stderr
    again = [json.loads(line) for line in ended.stdout.splitlines()]
    assert again[0] == answers[0]
    assert again[3:] == answers[3:]
    assert "not a readable image" in again[1]["error"]
    assert "absent.png" in again[2]["error"]


def test_the_server(small_task: SmallTask, folder: Path) -> None:
    """Catches a server that does not answer with the run's weights, and one that does not end when it is told to."""
    arguments = shlex.split(document_lines("serve").removeprefix("python -m "))
    process = start(*arguments, "--port=0", cache=small_task.cache, cwd=folder)
    assert process.stdout is not None
    try:
        ready = process.stdout.readline()
        found = re.match(r"care/60: a page at http://127.0.0.1:(\d+), an OpenAI endpoint at http://\S+/v1 ", ready)
        assert found is not None, (ready, finish(process).stderr)
        server: Any = type("Server", (), {"server_port": int(found[1])})
        url = "data:image/png;base64," + base64.b64encode(square(COLOURS["red"], 0)).decode()
        content = [{"type": "image_url", "image_url": {"url": url}}, {"type": "text", "text": "?"}]
        asked = {"messages": [{"role": "user", "content": content}], "temperature": 0, "max_tokens": 1000}
        status, body = request(server, "POST", "/v1/chat/completions", asked)
        assert status == 200, body
        [choice] = body["choices"]
        assert choice["message"]["content"].isdecimal()
        assert choice["message"]["content"] == choice["message"]["reasoning_content"]
    finally:
        process.send_signal(signal.SIGTERM)
    assert finish(process).returncode == 0


GOOD = ["--workdir={run}", "--question=?"]
BAD: dict[str, tuple[list[str], list[str]]] = {
    "nothing to ask": (["--workdir={run}"], ["--question", "--file", "--serve"]),
    "two things": ([*GOOD, "--serve"], ["one of --question"]),
    "an image of a server": (["--workdir={run}", "--serve", "--image=a.png"], ["--image needs --question"]),
    "samples of a server": (["--workdir={run}", "--serve", "--n=4"], ["--n", "each request"]),
    "no samples": ([*GOOD, "--n=0"], ["--n=0", "1 to 64"]),
    "greedy samples": ([*GOOD, "--n=2", "--temperature=0"], ["--n=2", "all alike"]),
    "temperature": ([*GOOD, "--temperature=-1"], ["--temperature=-1", "greedily"]),
    "no image": ([*GOOD, "--image=absent.png"], ["absent.png"]),
    "no picture": ([*GOOD, "--image={repo}/README.md"], ["not a readable image"]),
    "marks": ([*GOOD[:1], "--question=<image>?"], ["1 <image> for 0 images"]),
    "an empty question": ([*GOOD[:1], "--question= "], ["empty"]),
    "too long": ([*GOOD[:1], "--question=" + "?" * 99], ["data.prompt_buckets"]),
    "no file": ([*GOOD[:1], "--file=absent.jsonl"], ["absent.jsonl", "JSON object a line"]),
    "no questions": ([*GOOD[:1], "--file={repo}/LICENSE"], ["rows cannot be asked", "not JSON"]),
    "no run": (["--workdir=nowhere", "--question=?"], ["--config=FILE is needed", "config.json", "nowhere"]),
    "no checkpoint": (["--config=configs/demo.py", "--workdir=nowhere", "--question=?"], ["no finished checkpoint"]),
    "a port": (["--workdir={run}", "--serve", "--port=70000"], ["--port=70000"]),
}


@pytest.fixture(scope="module")
def forks(small_task: SmallTask) -> Iterator[Forks]:
    """A process that has imported the command."""
    with Forks("care_jax.generate", cache=small_task.cache) as forks:
        yield forks


@pytest.mark.parametrize("name", slow_but(["nothing to ask", "two things", "no image", "no run"], BAD))
def test_one_line_and_exit_code_2(name: str, small_task: SmallTask, forks: Forks, tmp_path: Path) -> None:
    """Catches a traceback, minutes of loading before a word, and a message without the culprit."""
    words = [word.format(run=small_task.cold_start, repo=REPO) for word in BAD[name][0]]
    ended = forks.start(tmp_path / "log", "care_jax.generate", *words).finish()
    assert ended.returncode == 2, ended.stderr
    assert ended.stdout == ""
    lines = ended.stderr.strip().splitlines()
    assert len(lines) == 1, ended.stderr
    assert lines[0].startswith("error: ")
    for word in BAD[name][1]:
        assert word in lines[0]


def _pieces(*texts: str, finish: str = "stop", size: int = 3) -> list[Piece]:
    """Samples that are decoded side by side."""
    longest = max(map(len, texts))
    ends = [*range(size, longest, size), longest]
    return [
        Piece(number, text[:end], min(end, len(text)), finish if end >= len(text) else "")
        for end in ends
        for number, text in enumerate(texts)
        if end < len(text) + size
    ]


def test_the_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    """Catches samples that run into each other, a heading without text, and text that acts on the terminal."""
    generate.show(_pieces("<think>one\ntwo</think><answer>3</answer>"), 1)
    assert capsys.readouterr().out == "Rationale\none\ntwo\n\nAnswer\n3\n"
    generate.show(_pieces("3\x1b[2J"), 1)
    assert capsys.readouterr().out == "Answer\n3\\x1b[2J\n"
    generate.show(_pieces("<think>a</think>"), 1)
    assert capsys.readouterr().out == "Rationale\na\n(no answer)\n"
    generate.show(_pieces("<think>abc", finish="length"), 1)
    assert re.fullmatch(r"Rationale\nabc\n\(cut off at 10 tokens; .*\)\n", capsys.readouterr().out)
    generate.show(_pieces("<think>first</think>1", "2", "<think>c</think>3"), 3)
    first, second, third = capsys.readouterr().out.split("\n\nSample ")
    assert first == "Sample 1 of 3\nRationale\nfirst\n\nAnswer\n1"
    assert second == "2 of 3\nAnswer\n2"
    assert third == "3 of 3\nRationale\nc\n\nAnswer\n3\n"


def test_the_first_sample_is_shown_while_it_is_decoded(capsys: pytest.CaptureFixture[str]) -> None:
    """Catches an answer that appears only when it is whole, and a later sample that is shown before its turn."""

    def pieces() -> Any:
        yield Piece(1, "<think>second", 2, "")
        assert capsys.readouterr().out == "Sample 1 of 2\n"
        yield Piece(0, "<think>fir", 2, "")
        assert capsys.readouterr().out == "Rationale\nfir"
        yield Piece(0, "<think>first</think>1", 4, "stop")
        assert capsys.readouterr().out == "st\n\nAnswer\n1\n\nSample 2 of 2\nRationale\nsecond"
        yield Piece(1, "<think>second</think>2", 4, "stop")

    generate.show(pieces(), 2)
    assert capsys.readouterr().out == "\n\nAnswer\n2\n"


def test_rows_that_are_no_questions_are_listed(tmp_path: Path) -> None:
    """Catches a file of which a part is asked without a word about the rest."""
    rows = ['{"prompt": "?"}', "{}", "no JSON", '{"prompt": "?", "images": 3}']
    (tmp_path / "questions.jsonl").write_text("\n".join(rows))
    with pytest.raises(InputError, match=r"3 rows cannot be asked: row 2: .*; row 3: not JSON.*; row 4: "):
        generate.read_file(tmp_path / "questions.jsonl")
    (tmp_path / "empty.jsonl").write_text("\n")
    with pytest.raises(InputError, match="empty"):
        generate.read_file(tmp_path / "empty.jsonl")


class _FullEngine:
    """An engine that takes as many samples as `Engine` does, and answers none at once."""

    def __init__(self, processor: Processor) -> None:
        self.processor, self._num_waiting, self._lock = processor, 0, threading.Lock()

    @contextlib.contextmanager
    def ask(self, question: Question) -> Iterator[Iterator[Piece]]:
        with self._lock:
            self._num_waiting += question.num_samples
            if self._num_waiting > MOST_WAITING:
                raise BusyError
        time.sleep(0.2)
        yield (Piece(sample, "1", 1, "stop") for sample in range(question.num_samples))
        with self._lock:
            self._num_waiting -= question.num_samples


def test_a_file_of_many_samples_waits(tiny_processor: Processor) -> None:
    """Catches a file that is broken off because it asks for more samples at once than may wait."""
    rows = [read_question({"prompt": "1+1"}, Path(), where=str(number)) for number in range(16)]
    engine: Any = _FullEngine(tiny_processor)
    lines = list(generate.answer_file(engine, rows, generate.Drawing(MOST_SAMPLES, 1.0, 0)))
    assert [len(line["samples"]) for line in lines] == [MOST_SAMPLES] * 16


def test_rows_are_read_as_those_of_own_data(tmp_path: Path) -> None:
    """Catches a held-out file that trains and cannot be asked: cells that are null, and an image without a list."""
    (tmp_path / "a.png").write_bytes(square(COLOURS["red"], 4))
    row = {"id": "7", "prompt": "?", "image": "a.png", "choices": None, "rationale": "", "answer": "1"}
    (tmp_path / "questions.jsonl").write_text(json.dumps(row | {"answer_kind": "integer"}) + "\n")
    [read] = generate.read_file(tmp_path / "questions.jsonl")
    assert (read.record.id, read.record.prompt, len(read.images)) == ("7", "<image>?", 1)
