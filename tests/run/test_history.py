"""The record of a run's first start, and the comparison of a resumed run with it."""

from __future__ import annotations

import dataclasses
import json
import re
from pathlib import Path
from typing import Any

import pytest
from etils import epath

from care_jax import config as config_lib
from care_jax.data.array_records import ShardWriter, open_folder, write_metadata
from care_jax.data.loader import Mixture
from care_jax.data.own_data import read_jsonl
from care_jax.errors import InputError
from care_jax.run import history
from care_jax.structs import Record
from tests.end_to_end import TINY, write_squares

STEP = 40


def settings(**changes: Any) -> dict[str, Any]:
    """The settings of a run; `changes` name keys with "__" for "."."""
    content = {"data.train": "0a", "data.eval": "0b", "model.folder/config.json": "0c"}
    values = config_lib.flat(config_lib.base()) | {f"content of {name}": digest for name, digest in content.items()}
    return json.loads(json.dumps(values)) | {name.replace("__", "."): value for name, value in changes.items()}


@pytest.fixture
def run(tmp_path: Path) -> epath.Path:
    """The folder of a run with a checkpoint of step 40."""
    (tmp_path / "checkpoints" / str(STEP)).mkdir(parents=True)
    history.write(epath.Path(tmp_path), settings(), step=0)
    return epath.Path(tmp_path)


NEVER = [
    {"seed": 1},
    {"data__prompt_buckets": [512]},
    {"data__max_image_tokens": 512},
    {"data__format": "prepared"},
    {"data__response_format": "boxed"},
    {"data__mini_vqa__num_digits": 4},
    {"rollout__response_len": 1024},
    {"rollout__temperature": 0.5},
    {"train__prompts": 256},
    {"train__minibatches": 2},
    {"objective__kl_coef": 0.0},
    {"objective__reflect__enabled": False},
    {"objective__region__gamma_pos": 1.0},
    {"model__freeze": ("vision",)},
    {"content of data__train": "ff"},
]
IN_DOUBT = [
    {"optimizer__weight_decay": 0.0},
    {"optimizer__schedule": "linear"},
    {"optimizer__b2": 0.9},
    {"verify__tolerance": 0.02},
    {"verify__correct_weight": 1.0},
    {"eval__num_samples": 4},
    {"eval__temperature": 0.5},
    {"model__weights": "elsewhere"},
    {"model__compute_dtype": "float32"},
    {"score__old_from": "sampler"},
    {"loss__tis_cap": 2.0},
    {"rollout__weights": "int8"},
    {"content of data__eval": "ff"},
    {"content of model__folder/config__json": "ff"},
    {"content of model__folder/tokenizer__json": "ff"},  # a file that was not there
]
FREE = [
    {"train__steps": 50},
    {"train__eval_every": 5},
    {"train__checkpoint_every": 5},
    {"train__keep_last": 5},
    {"train__hang_after": 5.0},
    {"optimizer__lr": 1e-7},
    {"verify__workers": 8},
    {"mesh__tensor": 2},
    {"eval__batch_size": 8},
    {"data__train": "moved/train.jsonl"},  # whose content is the same
    {"model__folder": "moved/model"},
]


@pytest.mark.parametrize("changes", NEVER, ids=str)
def test_what_cannot_be_mixed_is_refused(run: epath.Path, changes: dict[str, Any]) -> None:
    """Catches a run that goes on as another one at the old position, with or without --allow_change."""
    for allow_change in (False, True):
        with pytest.raises(InputError, match="cannot change within a run") as error:
            history.require_same_run(run, settings(**changes), allow_change=allow_change)
        assert next(iter(changes)).replace("__", ".") in str(error.value)
        assert len(str(error.value).splitlines()) == 1


@pytest.mark.parametrize("changes", IN_DOUBT, ids=str)
def test_what_is_in_doubt_must_be_asked_for(run: epath.Path, changes: dict[str, Any]) -> None:
    """Catches curves that do not compare, and a change that cannot be made at all."""
    with pytest.raises(InputError, match="pass --allow_change"):
        history.require_same_run(run, settings(**changes), allow_change=False)
    history.require_same_run(run, settings(**changes), allow_change=True)


@pytest.mark.parametrize("changes", FREE, ids=str)
def test_what_may_change_is_printed_and_recorded(
    run: epath.Path, changes: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    """Catches a longer run or another learning rate that is refused, or that leaves no trace."""
    now = settings(**changes)
    history.require_same_run(run, now, allow_change=False)
    history.write(run, now, step=STEP)
    (key,) = (name.replace("__", ".") for name in changes)
    assert capsys.readouterr().err.startswith(f"changed from step {STEP} on: {key} was ")
    kept = json.loads((run / "history.json").read_text())
    assert kept["started"] == settings()
    assert kept["changes"] == [{"step": STEP, "from": {key: settings()[key]}, "to": {key: now[key]}}]
    history.require_same_run(run, now, allow_change=False)
    history.write(run, now, step=STEP + 5)  # nothing has changed since
    assert json.loads((run / "history.json").read_text()) == kept
    assert capsys.readouterr().err == ""


def test_a_file_that_went_away_is_told_once(run: epath.Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Catches a run whose same command is refused at every resume since a file of the model folder is gone."""
    now = settings()
    del now["content of model.folder/config.json"]
    with pytest.raises(InputError, match="pass --allow_change"):
        history.require_same_run(run, now, allow_change=False)
    history.write(run, now, step=STEP)
    assert "the content of model.folder/config.json has changed" in capsys.readouterr().err
    history.require_same_run(run, now, allow_change=False)
    history.write(run, now, step=STEP + 5)
    assert capsys.readouterr().err == ""
    with pytest.raises(InputError, match="pass --allow_change"):  # it has come back
        history.require_same_run(run, settings(), allow_change=False)


def test_every_change_is_told_at_once(run: epath.Path) -> None:
    """Catches a user who mends one setting after the other."""
    with pytest.raises(InputError, match=r"objective\.ratio was 'token' and is 'sequence'; seed was 0 and is 7"):
        history.require_same_run(run, settings(seed=7, objective__ratio="sequence"), allow_change=False)


@pytest.mark.parametrize("steps", [1, STEP - 1])
def test_fewer_steps_than_the_checkpoint_has_are_refused(run: epath.Path, steps: int) -> None:
    """Catches a run that seems to end at once, or one that goes on past its last step."""
    with pytest.raises(InputError, match=rf"train.steps={steps} is below step {STEP}, the newest checkpoint"):
        history.require_same_run(run, settings(train__steps=steps), allow_change=False)
    history.require_same_run(run, settings(train__steps=STEP), allow_change=False)


def test_a_run_without_a_checkpoint_starts_anew(tmp_path: Path) -> None:
    """Catches a refusal to begin where nothing was kept, and a history of what was given up."""
    folder = epath.Path(tmp_path)
    history.write(folder, settings(), step=0)
    history.require_same_run(folder, settings(seed=1), allow_change=False)
    history.write(folder, settings(seed=1), step=0)
    assert json.loads((folder / "history.json").read_text()) == {"started": settings(seed=1), "changes": []}


def test_a_run_from_before_histories_is_compared_with_its_config(run: epath.Path) -> None:
    """Catches a run of an earlier version that cannot be resumed, or resumes as anything."""
    (run / "history.json").unlink()
    config = config_lib.base()
    (run / "config.json").write_text(config.to_json_best_effort())
    history.require_same_run(run, settings(), allow_change=False)
    with pytest.raises(InputError, match="seed was 0 and is 1"):
        history.require_same_run(run, settings(seed=1), allow_change=False)
    history.write(run, settings(), step=STEP)
    with pytest.raises(InputError, match=r"the content of data\.train has changed"):
        history.require_same_run(run, settings(**{"content of data__train": "ff"}), allow_change=False)


def test_checkpoints_without_any_record_are_not_taken_for_any_run(run: epath.Path) -> None:
    """Catches another seed that goes on without a word because a copy has the checkpoints alone."""
    (run / "history.json").unlink()
    with pytest.raises(InputError, match=r"neither history\.json nor config\.json") as error:
        history.require_same_run(run, settings(seed=1), allow_change=False)
    assert str(error.value).isprintable()
    history.require_same_run(run, settings(seed=1), allow_change=True)
    history.write(run, settings(seed=1), step=STEP)
    assert json.loads((run / "history.json").read_text())["started"]["seed"] == 1


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("", "history.json: not JSON"),
        ('{"started": {\n "seed": 0,\n', "history.json, line 3: not JSON"),
        ("null", "not a JSON object"),
        ("[]", "not a JSON object"),
        ("{}", "not the history of a run"),
        ('{"started": {}, "changes": []}', "not the history of a run"),
        ('{"started": {"seed": 0, "content of data.train": ""}, "changes": [3]}', "not the history of a run"),
        ('{"started": {"seed": 0, "content of data.train": ""}, "changes": [{"to": {}}]}', "not the history of a run"),
        ('{"started": [], "changes": {}}', "not the history of a run"),
        (
            '{"started": {"seed": 0, "content of a\\u001b[2J": ""}, "changes": []}',
            r"'content of a\x1b[2J' is not a setting",
        ),
        ("\x00\x01", "history.json: not JSON"),
        ("[" * 100_000, "not JSON (RecursionError)"),
        ("9" * 5_000, "not JSON (ValueError)"),
    ],
)
def test_a_broken_history_is_named(run: epath.Path, text: str, told: str) -> None:
    """Catches a traceback, and a run that is compared with nothing."""
    (run / "history.json").write_text(text)
    with pytest.raises(InputError, match=re.escape(told)) as error:
        history.require_same_run(run, settings(), allow_change=False)
    assert len(str(error.value).splitlines()) == 1


def row_changes(path: Path) -> dict[str, Any]:
    """Rewrites of a JSONL file that leave its size and its usable rows alone, but one."""

    def edit(old: str, new: str) -> Any:
        return lambda: path.write_text(path.read_text().replace(old, new, 1))

    return {
        "a gold": edit('"answer": "1"', '"answer": "2"'),
        "a rationale": edit('"rationale": "1"', '"rationale": "2"'),
        "a kind": edit('"answer_kind": "integer"', '"answer_kind": "number"'),
        "a meta": edit('"answer_kind": "integer"', '"answer_kind": "integer", "meta": {"a": 1}'),
        "a question": edit('"<image>?"', '"<image>!"'),
        "an id": edit('"train/3"', '"train/x"'),
        "a source": edit('"source": "digits"', '"source": "numbers"'),
        "an image's name": edit("images/train_3.png", "images/train_4.png"),
        "an image": lambda: (path.parent / "images/train_5.png").write_bytes(
            (path.parent / "images/train_6.png").read_bytes() + b"\0"
        ),
        "the order": lambda: path.write_text("".join(sorted(path.read_text().splitlines(keepends=True), reverse=True))),
        "a row less": lambda: path.write_text("".join(path.read_text().splitlines(keepends=True)[1:])),
    }


@pytest.mark.parametrize("change", row_changes(Path()))
def test_other_rows_are_other_data(tmp_path: Path, change: str) -> None:
    """Catches another file at the same path: other golds, questions or pictures, in a file of the same length."""
    path = write_squares(tmp_path / "data", num_train=12) / "train.jsonl"
    before = read_jsonl(path, strict=True).fingerprint()
    assert read_jsonl(path, strict=True).fingerprint() == before
    moved = (tmp_path / "data").rename(tmp_path / "moved") / "train.jsonl"
    assert read_jsonl(moved, strict=True).fingerprint() == before
    row_changes(moved)[change]()
    assert read_jsonl(moved, strict=True).fingerprint() != before


def prepared(folder: Path, records: list[Record]) -> Path:
    """A prepared folder."""
    folder.mkdir()
    ShardWriter(folder, "train").write(0, records)
    write_metadata(folder, {"train": [len(records)]})
    return folder


@pytest.mark.parametrize("field", ["id", "prompt", "answer", "answer_kind", "rationale", "images", "choices", "meta"])
def test_another_prepared_folder_is_other_data(tmp_path: Path, field: str) -> None:
    """Catches a folder that was prepared anew from other rows, and a mixture of other parts or weights."""
    record = Record("1", "a", "?", (b"picture",), "3", "integer", choices=("x",), rationale="r", meta="{}")
    lists = {"images": (b"Picture",), "choices": ("y",)}
    other = dataclasses.replace(record, **{field: lists.get(field, "s")})
    first, again, changed = (
        open_folder(prepared(tmp_path / name, [one])) for name, one in (("a", record), ("b", record), ("c", other))
    )
    assert first.fingerprint() == again.fingerprint() != changed.fingerprint()
    mixtures = [((first, 1.0), (again, 2.0)), ((first, 1.0), (changed, 2.0)), ((first, 1.0), (again, 3.0))]
    assert len({Mixture(parts).fingerprint() for parts in mixtures}) == 3


def test_the_settings_name_data_and_model(tmp_path: Path) -> None:
    """Catches a model folder or a data file that changes under its name without a trace."""
    data = write_squares(tmp_path / "data", num_train=4, num_heldout=4)
    config = config_lib.base()
    config.model.folder = str(TINY)
    train, held_out = (read_jsonl(data / f"{split}.jsonl", strict=True) for split in ("train", "heldout"))
    found = history.settings(config, train=train, held_out=held_out)
    content = {key for key in found if key.startswith("content of ")}
    names = {"data.train", "data.eval", "model.folder/config.json", "model.folder/tokenizer.json"}
    assert content >= {f"content of {name}" for name in names}
    assert found.keys() - content == config_lib.flat(config).keys()
    assert found["content of data.train"] != found["content of data.eval"]
