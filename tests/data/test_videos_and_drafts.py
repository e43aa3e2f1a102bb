"""Videos and drafts in own data: every form is the same record, and what would be guessed is refused."""

from __future__ import annotations

import base64
import dataclasses
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from care_jax.data.own_data import read_jsonl
from care_jax.data.prepare import Settings, prepare
from care_jax.data.validation import decode_picture
from care_jax.errors import InputError
from care_jax.inputs.processor import Processor
from care_jax.inputs.prompts import encode_prompt
from care_jax.inputs.responses import encode_trace
from care_jax.structs import Record, Video
from tests.pictures import encode, picture

FRAMES = tuple(encode(picture(56, 56)) for _ in range(3))
KIND = {"id": "7", "answer": "3", "answer_kind": "integer"}
PATHS = ["v/0.png", "v/1.png", "v/2.png"]
VIDEO = {"frames": PATHS, "fps": 2}
WHOLE = Record("7", "mine", "<video>how many?", (), "3", "integer", videos=(Video(FRAMES, 2.0),))


def _folder(folder: Path) -> Path:
    (folder / "v").mkdir(parents=True)
    for number, frame in enumerate(FRAMES):
        (folder / f"v/{number}.png").write_bytes(frame)
    (folder / "v/notes.txt").write_text("no frame")
    (folder / "small.png").write_bytes(encode(picture(28, 28)))
    return folder


def _read(folder: Path, *rows: dict[str, Any]) -> tuple[list[Record], list[str]]:
    (folder / "mine.jsonl").write_text(
        "".join(json.dumps(row) + "\n" for row in (*rows, {**KIND, "id": "x", "prompt": "?"}))
    )
    source = read_jsonl(folder / "mine.jsonl", strict=False)
    return [source[index] for index in range(len(source) - 1)], [reason for _, reason in source.problems]


FORMS: dict[str, dict[str, Any]] = {
    "a list": {"prompt": "<video>how many?", "videos": [VIDEO]},
    "without a mark": {"prompt": "how many?", "videos": [VIDEO]},
    "one alone": {"prompt": "how many?", "video": VIDEO},
    "a folder of frames": {"prompt": "how many?", "videos": [{"frames": "v", "fps": 2.0}]},
    "bytes": {
        "prompt": "how many?",
        "videos": [{"frames": [{"bytes": base64.b64encode(frame).decode()} for frame in FRAMES], "fps": 2}],
    },
    "qwen_vl_utils": {
        "messages": [
            {
                "role": "user",
                "content": [
                    {"type": "video", "video": PATHS, "sample_fps": 2.0},
                    {"type": "text", "text": "how many?"},
                ],
            }
        ]
    },
    "a column beside turns": {"messages": [{"role": "user", "content": "<video>how many?"}], "videos": [VIDEO]},
}


@pytest.mark.parametrize("form", FORMS)
def test_every_form_is_the_same_video(tmp_path: Path, form: str) -> None:
    """Catches a video that is dropped from its question, frames out of order, and a rate of another column."""
    records, problems = _read(_folder(tmp_path), {**KIND, **FORMS[form]})
    assert not problems
    assert records == [WHOLE]


def test_a_parquet_file_has_videos_and_pictures(tmp_path: Path, tiny_processor: Processor) -> None:
    """Catches structs whose missing fields are None, and a record that no run can encode."""
    frames = [{"bytes": frame, "path": None} for frame in FRAMES]
    rows = [
        {**KIND, "prompt": "how many?", "videos": [{"frames": frames, "fps": 2.0}], "image": None},
        {**KIND, "id": "8", "prompt": "and here?", "videos": None, "image": {"bytes": FRAMES[0], "path": "a.png"}},
    ]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "mine.parquet")
    source = read_jsonl(tmp_path / "mine.parquet", strict=True)
    assert source[0] == WHOLE
    assert source[1] == Record("8", "mine", "<image>and here?", (FRAMES[0],), "3", "integer")
    with pytest.raises(InputError, match="record '7' has a video; set --config"):
        encode_prompt(tiny_processor, source[0])
    example = encode_prompt(dataclasses.replace(tiny_processor, videos=True), source[0])
    assert example is not None
    assert len(example.patches) == 2 * 16  # three frames are two patches in time
    assert source.fingerprint() == read_jsonl(tmp_path / "mine.parquet", strict=True).fingerprint()
    slower = [{**rows[0], "videos": [{"frames": frames, "fps": 1.0}]}, rows[1]]
    pq.write_table(pa.Table.from_pylist(slower), tmp_path / "mine.parquet")
    assert source.fingerprint() != read_jsonl(tmp_path / "mine.parquet", strict=True).fingerprint()


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"videos": ["v.mp4"]}, "the recording 'v.mp4' cannot be decoded here; sample it, as with ffmpeg"),
        ({"videos": [{"frames": "v.mp4", "fps": 2}]}, "the recording 'v.mp4' cannot be decoded here"),
        ({"videos": [{"frames": PATHS}]}, "a video has the fps None"),
        ({"videos": [{"frames": PATHS, "fps": 0}]}, "a video has the fps 0"),
        ({"videos": [{"frames": PATHS, "fps": True}]}, "a video has the fps True"),
        ({"videos": [{"frames": [], "fps": 2}]}, "a video has the frames []"),
        ({"videos": [{"fps": 2}]}, "a video has the frames None"),
        ({"videos": [{"frames": ["v/9.png"], "fps": 2}]}, "no image"),
        (
            {"videos": [{"frames": [*PATHS, "small.png"], "fps": 2}]},
            "the frames of a video have sizes [(28, 28), (56, 56)]",
        ),
        ({"videos": [VIDEO], "prompt": "<video><video>?"}, "2 <video> for 1 videos"),
        ({"videos": "v"}, "videos must be a list of videos"),
        ({"draft": "2"}, "draft needs a rationale"),
        ({"draft": "<think>2", "rationale": "3"}, "draft spells <think>"),
        ({"draft": 2, "rationale": "3"}, "draft must be a string"),
    ],
)
def test_what_would_be_guessed_is_refused(tmp_path: Path, row: dict[str, Any], reason: str) -> None:
    """Catches frames without a rate, recordings that vanish, and a draft without what corrects it."""
    records, (problem,) = _read(_folder(tmp_path), {**KIND, "prompt": "how many?", **row})
    assert not records
    assert reason in problem


def test_a_draft_stands_before_the_cue(tmp_path: Path, tiny_processor: Processor) -> None:
    """Catches a draft that the reader loses, so that nothing teaches what the cue asks for."""
    (record,), problems = _read(_folder(tmp_path), {**KIND, "prompt": "1+2?", "draft": "1+2=4", "rationale": "1+2=3"})
    assert not problems
    assert (record.draft, record.rationale) == ("1+2=4", "1+2=3")
    trace = encode_trace(tiny_processor, record, cue="!", response_len=64)
    assert trace is not None
    text = tiny_processor.tokenizer.decode(trace.token_ids)
    assert text.startswith("<think>1+2=4!1+2=3</think>")
    assert not trace.loss_mask.all()


def test_prepared_data_take_no_videos(tmp_path: Path) -> None:
    """Catches a prepared question whose video is gone."""
    folder = _folder(tmp_path / "mine")
    rows = [{**KIND, "prompt": "how many?", "videos": [VIDEO]}, {**KIND, "id": "8", "prompt": "?"}]
    (folder / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    report = prepare(Settings("jsonl", folder, tmp_path / "out"))
    assert report["dropped"] == {"video": 1}
    assert "train on the file itself" in report["examples"]["video"][0][1]
    assert decode_picture(FRAMES[0]).size == (56, 56)
