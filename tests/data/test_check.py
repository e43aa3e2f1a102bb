"""A file is looked at before training: what it holds, what would be dropped, and flags that keep it."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import ml_collections
import pytest

from care_jax.config import base
from care_jax.configs import own_data
from care_jax.data import check, prepare
from care_jax.data.accounting import take_account
from care_jax.data.own_data import read_jsonl
from care_jax.inputs.processor import make_processor
from care_jax.inputs.prompts import encode_prompt
from tests.end_to_end import REPO, TINY, apply
from tests.pictures import encode, picture

WORDS = "one two three four five six seven"


def _write(folder: Path) -> Path:
    """Forty questions, of which one has a long text, one a long rationale, and one is broken."""
    folder.mkdir()
    (folder / "a.png").write_bytes(encode(picture(64, 64)))
    rows = []
    for number in range(40):
        row = {"id": f"<b>{number}</b>", "images": ["a.png"], "prompt": "how many?", "answer": str(number % 3)}
        row |= {"answer_kind": "integer", "rationale": WORDS, "source": "count" if number % 2 else "read"}
        rows.append(row)
    rows[5]["prompt"] = "how many? " * 30
    rows[6]["rationale"] = WORDS * 2
    del rows[7]["rationale"]
    rows[8]["answer"] = "three"
    (folder / "mine.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder / "mine.jsonl"


def _with_flags(config: ml_collections.ConfigDict, lines: list[str]) -> ml_collections.ConfigDict:
    """The config with the flags that are proposed."""
    flags = dict(re.fullmatch(r"  --config\.([\w.]+)=(.*)", line).groups() for line in lines if "--config." in line)
    return apply(config, {name: eval(value) for name, value in flags.items()})


def test_what_it_says_is_what_training_does(tmp_path: Path) -> None:
    """Catches counts that are others than training's, and flags that do not keep what they promise."""
    path, config = _write(tmp_path / "data"), own_data.get_config()
    config.rollout.response_len = 16
    lines, page = check.check_file(path, config)
    told = "\n".join(lines)
    assert lines[0] == f"{path}: 40 rows, of which 1 are broken"
    assert "answers    integer 39" in told
    assert "sources    count 20, read 19" in told
    assert "pictures   1 image 39" in told
    assert "commonest  '0', the answer of 36% of the rows" in told
    assert "of 39 rows are usable; 1 more are broken" in told
    assert "row 9: the gold 'three' is not a whole number" in told

    source, processor = read_jsonl(path, strict=False), make_processor(config)
    usual = encode_prompt(processor, source[0])
    assert usual is not None
    assert f"prompt     median {len(usual.token_ids)}, " in told
    better = _with_flags(config, lines)
    (account,) = take_account(
        source, make_processor(better), response_len=better.rollout.response_len, cue="", learns_traces=True
    )
    assert account.num_usable == 38  # all but the one without a rationale
    assert better.train.stream_len >= better.data.prompt_buckets[-1] + better.rollout.response_len

    assert page.count("<section>") == 10
    assert page.count("<img ") == 10
    assert "<b>0" not in page
    assert "&lt;b&gt;0&lt;/b&gt;" in page


@pytest.mark.parametrize(
    ("lengths", "unit", "wanted"),
    [
        ([100] * 10, 1, (104,)),
        ([20] * 6 + [100] * 4, 1, (20, 104)),
        ([60] * 6 + [100] * 4, 1, (104,)),
        ([100] * 199 + [5000], 1, (104,)),  # one that is far out buys no bucket
        ([16] * 3, 4, (16,)),
        ([17] * 3, 4, (32,)),
        ([1000] * 3, 4, (1024,)),
        ([0] * 3, 4, (16,)),
    ],
)
def test_buckets(lengths: list[int], unit: int, wanted: tuple[int, ...]) -> None:
    """Catches sizes that are no multiple of what a model merges, and a bucket for one row."""
    assert check._buckets(lengths, unit) == wanted


def test_prepare_counts_the_tokens_of_training(tmp_path: Path) -> None:
    """Catches tokens counted with another request and other limits of pictures than the run has."""
    path, config = _write(tmp_path / "data"), own_data.get_config()
    processor = make_processor(config)
    lengths = []
    for record in (read_jsonl(path, strict=False)[index] for index in (0, 1)):
        example = encode_prompt(processor, record)
        assert example is not None
        lengths.append(len(example.token_ids))
    settings = prepare.Settings("jsonl", path, tmp_path / "own", config=config)
    counted = prepare.prepare(settings)["tokens"]
    assert counted[str(lengths[0])] == 38
    default = prepare.prepare(prepare.Settings("jsonl", path, tmp_path / "default", model=TINY))
    assert str(lengths[0]) not in default["tokens"]  # the default asks for the format in words
    again = base()
    again.model.folder = str(TINY)
    assert (
        prepare.prepare(prepare.Settings("jsonl", path, tmp_path / "same", config=again))["tokens"] == default["tokens"]
    )


def test_command_line(tmp_path: Path) -> None:
    """Catches flags that do not arrive, and a page that is not written."""
    path = _write(tmp_path / "data")
    words = [sys.executable, "-m", "care_jax.data.prepare", f"--check={path}"]
    done = subprocess.run(
        [*words, "--config=configs/own_data.py", "--config.rollout.response_len=12", f"--out={tmp_path / 'page.html'}"],
        capture_output=True,
        text=True,
        check=False,
        cwd=REPO,
    )
    assert done.returncode == 0, done.stderr
    assert "too long for rollout.response_len=12: 38" in done.stdout
    assert (tmp_path / "page.html").read_text().startswith("<!doctype html>")
    refused = subprocess.run(words, capture_output=True, text=True, check=False, cwd=REPO)
    assert refused.returncode == 2
    assert refused.stderr.startswith("error: --check needs --config=configs/F.py")
