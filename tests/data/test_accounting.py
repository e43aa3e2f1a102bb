"""The account of the data before a run: counts and lengths against those of the encoders that training uses."""

from __future__ import annotations

import dataclasses
import io
import json
from pathlib import Path

import pytest
from PIL import Image

from care_jax.config import base
from care_jax.data.accounting import account_of_run, take_account
from care_jax.data.own_data import JsonlSource, read_jsonl
from care_jax.errors import InputError
from care_jax.inputs.processor import Processor
from care_jax.inputs.prompts import encode_prompt, measure_prompt
from care_jax.inputs.responses import encode_trace
from care_jax.structs import Record, Video
from tests.pictures import encode, picture, question

CUE = "!"


def _source(folder: Path, *changes: dict) -> JsonlSource:
    """A file of questions about a picture of 84 x 84; each change is a row."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "a.png").write_bytes(encode(picture(84, 84)))
    (folder / "long.png").write_bytes(encode(picture(84, 1120)))
    row = {"images": ["a.png"], "prompt": "1+2?", "answer": "3", "answer_kind": "integer", "rationale": "1+2=3"}
    lines = [json.dumps({"id": str(number), **row, **change}) for number, change in enumerate(changes)]
    (folder / "mine.jsonl").write_text("\n".join(lines) + "\n")
    return read_jsonl(folder / "mine.jsonl", strict=False)


def _lines(source: JsonlSource, processor: Processor, response_len: int, *, learns_traces: bool = True) -> list[str]:
    (account,) = take_account(source, processor, response_len=response_len, cue=CUE, learns_traces=learns_traces)
    return account.lines()


@pytest.mark.parametrize("overlong", ["drop", "shrink"])
def test_the_lengths_are_those_of_training(tiny_processor: Processor, overlong: str) -> None:
    """Catches tokens that are counted in another way than training encodes them."""
    processor = dataclasses.replace(tiny_processor, overlong=overlong, videos=True)
    turned = io.BytesIO()
    exif = Image.Exif()
    exif[0x0112] = 6  # a quarter turn
    picture(140, 28).save(turned, "JPEG", exif=exif)
    frames = (encode(picture(56, 56)),) * 3
    records = [
        question("<image>=?", encode(picture(84, 84))),
        question("<image>+<image>", encode(picture(140, 28)), encode(picture(28, 84))),
        question("<image>?", turned.getvalue()),
        question("1+2=?"),
        question("<video>?", videos=(Video(frames, 2.0),)),
        question("<image>?", encode(picture(84, 2800))),  # passes the patches
        question("<image>" + "1+2?" * 20, encode(picture(28, 28))),  # passes the tokens
    ]
    sizes = [measure_prompt(processor, record) for record in records]
    encoded = [encode_prompt(processor, record) for record in records]
    assert [size.is_usable for size in sizes] == [example is not None for example in encoded]
    assert {size.is_usable for size in sizes} == {True, False}
    for size, example in zip(sizes, encoded, strict=True):
        is_shrunk = size.num_tokens > processor.prompt_buckets[-1] or size.num_patches > processor.patch_buckets[-1]
        if example is not None and not is_shrunk:
            assert (size.num_tokens, size.num_patches) == (len(example.token_ids), len(example.patches))


def test_four_lines_and_the_values_that_keep_all(tiny_processor: Processor, tmp_path: Path) -> None:
    """Catches rows that vanish behind one line, and a value that does not keep what it says it keeps."""
    processor = dataclasses.replace(tiny_processor, overlong="drop")
    source = _source(
        tmp_path,
        {},
        {},
        {"rationale": None},
        {"rationale": "1+2=3, " * 3 + "1+2=3"},
        {"prompt": "1+2?" * 20},
        {"answer": "three"},  # broken
        {"draft": "1+2=4"},
    )
    short = len(_trace(processor, source[0]))
    longest = len(_trace(processor, source[3]))
    drafted = len(_trace(processor, source[5]))
    assert short < drafted < longest
    tokens = len(encode_prompt(dataclasses.replace(processor, prompt_buckets=(512,)), source[4]).token_ids)
    assert _lines(source, processor, drafted) == [
        f"data {tmp_path / 'mine.jsonl'}: 3 of 6 rows are usable; 1 more are broken",
        "  without a rationale: 1",
        f"  too long for rollout.response_len={drafted}: 1, of up to {longest} tokens; {longest} keeps all",
        f"  too long for data.prompt_buckets=(40,) or data.patch_buckets=(64,): 1, of up to {tokens} tokens and "
        f"36 patches; data.prompt_buckets=({tokens},) keeps all",
    ]
    roomy = dataclasses.replace(processor, prompt_buckets=(tokens,))
    assert [line.rpartition(": ")[2] for line in _lines(source, roomy, longest)[1:]] == ["1", "0", "0"]
    assert _lines(source, roomy, longest - 1)[2].partition(": ")[2].startswith("1, ")
    (line, without, *_) = _lines(source, roomy, longest, learns_traces=False)
    assert ": 6 of 6 rows are usable" in line
    assert without == "  without a rationale: 1, which only the cold start needs"


def _trace(processor: Processor, record: Record) -> list[int]:
    trace = encode_trace(processor, record, cue=CUE, response_len=1000)
    assert trace is not None
    return trace.token_ids.tolist()


def test_most_rationales_and_all(tiny_processor: Processor, tmp_path: Path) -> None:
    """Catches one long rationale for whose sake all responses become long."""
    rows = (
        [{"rationale": "1+2=3 "} for _ in range(100)] + [{"rationale": "1+2=3, " * 3}] * 99 + [{"rationale": "1" * 90}]
    )
    source = _source(tmp_path, *rows)
    short, middle, longest = (len(_trace(tiny_processor, source[index])) for index in (0, 100, 199))
    assert (
        f"100, of up to {longest} tokens; {middle} keeps 99%, {longest} keeps all"
        in _lines(source, tiny_processor, short)[2]
    )


def test_a_run_is_refused_before_it_begins(tiny_processor: Processor, tmp_path: Path) -> None:
    """Catches data of which nothing is usable, which end a run in its first step with a folder left behind."""
    config = base()
    config.train.prompts, config.rollout.response_len = 2, 8
    source = _source(tmp_path, *[{"rationale": "1+2=3, " * 3}] * 3)
    with pytest.raises(
        InputError, match=r"0 of 3 rows are usable.*a step needs 2.*rollout\.response_len=8: 3, of up to"
    ):
        account_of_run(config, tiny_processor, source, source, learns_traces=True)
    config.rollout.response_len = 64
    lines = account_of_run(config, tiny_processor, source, source, learns_traces=True)
    assert len(lines) == 5
    assert "no row has a draft, so nothing here teaches" in lines[4]
    assert "a model that reads words may know" in lines[4]
    config.objective.reflect.cue = CUE
    assert (
        "give rows a draft, take a cue in words"
        in account_of_run(config, tiny_processor, source, source, learns_traces=True)[4]
    )
    config.objective.reflect.enabled = False
    assert account_of_run(config, tiny_processor, source, source, learns_traces=False)[4] == (
        "no reflection: objective.reflect.enabled is False, so no failure is repaired"
    )
    drafted = _source(tmp_path / "drafted", *[{"draft": "1+2=4"}] * 2)
    assert account_of_run(config, tiny_processor, drafted, drafted, learns_traces=True)[4].endswith(
        "; 2 rows have a draft that teaches the cue: set it to True"
    )
    config.data.overlong = "error"
    long = _source(tmp_path / "one", {}, {}, {"prompt": "1+2?" * 20})
    with pytest.raises(InputError, match=r"overlong='error', and prompts of .*data\.prompt_buckets=\(\d+,\) keeps"):
        account_of_run(config, tiny_processor, long, source, learns_traces=False)
    config.data.overlong = "drop"
    held_out = _source(tmp_path / "long", {"prompt": "1+2?" * 40})
    processor = dataclasses.replace(tiny_processor, overlong="drop")
    with pytest.raises(InputError, match=r"every prompt of the held-out .*long/mine.jsonl is too long: 1, of up to"):
        account_of_run(config, processor, source, held_out, learns_traces=False)


def test_more_rows_than_are_looked_at(tiny_processor: Processor, tmp_path: Path) -> None:
    """Catches a start that measures 40,000 rows, and a count of some that passes for a count of all."""
    source = _source(tmp_path, *[{}] * 7)
    (account,) = take_account(source, tiny_processor, response_len=64, cue=CUE, learns_traces=True, most_rows=3)
    usable = "3 of 3 rows are usable (7 in all, of which these are a sample)"
    assert account.lines()[0] == f"data {tmp_path / 'mine.jsonl'}: {usable}"
    account.require(4)  # some are usable, and the rest is not known
