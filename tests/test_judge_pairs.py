"""The command that judges pairs of gold and response: its lines, its counts, and lines that cannot be judged."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from care_jax import judge
from care_jax.errors import InputError
from care_jax.rewards.response_format import READABLE
from tests.documents import document_lines
from tests.end_to_end import run_lines

OPTIONS = ["red", "blue"]
PAIRS = [
    {"gold": "5", "response": "<answer>5</answer>", "kind": "integer", "expected": True},
    {"gold": 5, "response": "So\n\\boxed{6}", "kind": "integer", "expected": True},
    {"gold": "B", "response": "<answer>blue</answer>", "kind": "choice", "choices": OPTIONS, "theirs": False},
    {"gold": "B", "response": "I do not know.\nSorry.", "kind": "choice", "choices": OPTIONS, "theirs": False},
    {"gold": "ab", "response": "\\boxed{ba}", "kind": "tests.own_verifier:anagram"},
]
BAD = [
    ("{", "not JSON"),
    ("[]", "a JSON object is needed"),
    ('{"gold": "5", "kind": "integer"}', "no response"),
    ('{"gold": "five", "response": "5", "kind": "integer"}', "'five' is not a whole number"),
    ('{"gold": "5", "response": null, "kind": "integer"}', "response must be a text or a number, not None"),
    ('{"gold": "5", "response": "5", "kind": "integral"}', "answer_kind 'integral' is unknown"),
    ('{"gold": "5", "response": "5", "kind": "os:system"}', "answer_kind 'os:system' is not in verify.allow"),
    ('{"gold": "5", "response": "5", "kind": "integer", "expected": "yes"}', "expected must be true or false"),
    ('{"gold": "A", "response": "A", "kind": "choice", "choices": "AB"}', "choices must be a list of texts"),
]


def judged(folder: Path, rows: list[dict | str], response_format: str = "any") -> tuple[list[list[str]], dict]:
    """The fields of each printed line, and the figures of the last."""
    path = folder / "pairs.jsonl"
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    *lines, last = judge.run(path, READABLE[response_format], ["tests.own_verifier:anagram"])
    return [line.split("\t") for line in lines], json.loads(last)


def test_every_pair_has_a_line_and_the_counts_are_those_of_the_lines(tmp_path):
    """Catches verdicts shifted by a line, an unreadable answer counted as read, and agreement turned round."""
    lines, figures = judged(tmp_path, PAIRS)
    assert lines == [
        ["1", "right", "correct", "'5'"],
        ["2", "wrong", "wrong", "'6'", "expected right"],
        ["3", "right", "correct", "'blue'", "expected wrong"],
        ["4", "unparsed", "no answer", ""],
        ["5", "right", "letters compared", "'ba'"],
    ]
    per_kind = figures.pop("per_kind")
    assert figures == {
        "n": 5, "right": 3, "unparsed": 1, "bad": 0, "compared": 4, "agree": 2, "refused_right": 1, "accepted_wrong": 1
    }  # fmt: skip
    assert list(per_kind) == ["choice", "integer", "tests.own_verifier:anagram"]
    assert per_kind["choice"] == {
        "n": 2, "right": 1, "unparsed": 1, "compared": 2, "agree": 1, "refused_right": 0, "accepted_wrong": 1
    }  # fmt: skip
    assert per_kind["tests.own_verifier:anagram"] == {"n": 1, "right": 1, "unparsed": 0}


@pytest.mark.parametrize(
    ("response_format", "right"), [("any", [1, 1, 1, 1]), ("answer_tags", [1]), ("boxed", [0, 1]), ("bare", [0, 1, 1])]
)
def test_the_format_says_where_the_answer_is(tmp_path, response_format, right):
    """Catches a flag without effect: a box is no answer where tags are asked for, but a form of a bare one."""
    texts = ["<answer>5</answer>", "\\boxed{5}", " 5 ", "I see 4.\nAnswer: 5"]
    lines, figures = judged(
        tmp_path, [{"gold": "5", "response": text, "kind": "integer"} for text in texts], response_format
    )
    wanted = [*right, 0, 0, 0, 0][:4]
    assert [int(line[1] == "right") for line in lines] == wanted
    assert figures["right"] == sum(wanted)


@pytest.mark.parametrize(("line", "reason"), BAD)
def test_bad_lines_are_named_and_left_out(tmp_path, line, reason):
    """Catches one bad line that ends the command, that is counted as a wrong answer, or that shifts the numbers."""
    lines, figures = judged(tmp_path, [PAIRS[0], line, PAIRS[0]])
    assert [one[:2] for one in lines] == [["1", "right"], ["2", "bad"], ["3", "right"]]
    assert reason in lines[1][2]
    assert (figures["n"], figures["right"], figures["bad"]) == (2, 2, 1)
    with pytest.raises(InputError, match="none of its 1 lines can be judged"):
        judged(tmp_path, [line])


def test_lines_are_printable(tmp_path):
    """Catches an answer, a gold or a kind whose control characters reach the terminal, or break the table."""
    hostile = "5\x1b[2J\u202e\t\n"
    rows = [{"gold": "5", "response": f"<answer>{hostile}</answer>", "kind": "integer"}]
    rows += [{"gold": hostile, "response": "5", "kind": "integer"}, {"gold": "5", "response": "5", "kind": hostile}]
    lines, _ = judged(tmp_path, [*rows, PAIRS[0], "\x1b[2J", '{"gold": "5", "response": "5", "kind": {"\x7f": 1}}'])
    assert [len(line) for line in lines] == [4, 3, 3, 4, 3, 3]
    assert all(field.isprintable() for line in lines for field in line)


def test_rewards_of_each_pair(tmp_path):
    """Catches values of another pair, a mean over what is missing, and images, prompts or metas that stay behind."""
    (tmp_path / "a.png").write_bytes(b"12345678")
    box = {"gold": "[0, 0, 10, 10]", "kind": "list"}
    rows = [
        {**box, "response": "<answer>[0, 0, 10, 9]</answer>", "images": ["a.png"], "meta": {"points": 2}},
        {**box, "response": "<answer>[0, 0, 10, 2]</answer>", "expected": True},
        {**box, "response": "none", "meta": [1]},
        {**box, "response": "none", "images": ["b.png"]},
        {"gold": "5", "kind": "integer", "response": "5"},
    ]
    path = tmp_path / "pairs.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    rewards = ("iou=1", "tests.own_rewards:sees.pixels=1", "tests.own_rewards:reads_meta=1")
    *lines, last = judge.run(path, READABLE["any"], (), rewards=rewards, correct_when="iou>=0.5")
    pixels, points = (reward.removesuffix("=1") for reward in rewards[1:])
    assert [line.split("\t") for line in lines] == [
        ["1", "right", "iou 0.9", "'[0, 0, 10, 9]'", "iou 0.9", f"{pixels} 8", f"{points} 2"],
        ["2", "wrong", "iou 0.2", "'[0, 0, 10, 2]'", "iou 0.2", f"{pixels} 0", f"{points} -1", "expected right"],
        ["3", "bad", "meta must be a JSON object, not [1]"],
        ["4", "bad", f"no image '{tmp_path / 'b.png'}': No such file or directory"],
        ["5", "wrong", "iou nan", "'5'", "iou missing", f"{pixels} 0", f"{points} -1"],
    ]
    assert json.loads(last)["rewards"] == {
        "iou": {"mean": pytest.approx(0.55), "missing": 1},
        pixels: {"mean": pytest.approx(8 / 3), "missing": 0},
        points: {"mean": 0.0, "missing": 0},
    }


@pytest.mark.parametrize(("rewards", "correct_when"), [(["iou"], ""), (["os:system=1"], ""), ([], "iou>=1")])
def test_rewards_that_are_none_are_one_line(tmp_path, rewards, correct_when):
    """Catches a misspelt reward that is left out, or found out after an hour."""
    (tmp_path / "pairs.jsonl").write_text(json.dumps({"gold": "5", "response": "5", "kind": "integer"}))
    with pytest.raises(InputError, match=r"verify\.|is not marked"):
        list(judge.run(tmp_path / "pairs.jsonl", READABLE["any"], (), rewards=rewards, correct_when=correct_when))


def test_the_command(tmp_path):
    """Catches flags that are lost, and a missing file that is a traceback."""
    (tmp_path / "pairs.jsonl").write_text(json.dumps({"gold": "5", "response": "\\boxed{5}", "kind": "integer"}))
    command = [sys.executable, "-m", "care_jax.judge", f"--file={tmp_path / 'pairs.jsonl'}"]
    flags = ["--format=boxed", "--rewards=length=1", "--correct_when=length>=-1"]
    done = subprocess.run([*command, *flags], capture_output=True, text=True)
    assert done.stdout.splitlines()[0] == "1\tright\tlength -0.001\t'5'\tlength -0.001", done.stderr
    assert json.loads(done.stdout.splitlines()[-1])["right"] == 1
    for wrong in (["--file=absent.jsonl"], ["--format=box"]):
        failed = subprocess.run([*command, *wrong], capture_output=True, text=True)
        assert (failed.returncode, len(failed.stderr.splitlines())) == (2, 1), failed.stderr


def test_the_documents_lines(tmp_path):
    """Catches an example of docs/rewards.md whose quoting the shell or JSON reads in another way."""
    *lines, last = run_lines(document_lines("judge"), {}, cwd=tmp_path, cache=tmp_path).splitlines()
    assert lines == ["1\tright\tcorrect\t'0.75'"]
    assert json.loads(last)["agree"] == 1
