"""The history of a run, history.json in its folder: the settings that it was started with, and each change since.

    {"started": {"seed": 0, ..., "content of data.train": "9f.."},
     "changes": [{"step": 40, "from": {"optimizer.lr": 1e-6}, "to": {"optimizer.lr": 1e-7}}]}

Beside the config's values stand digests of the data and of the model folder's files, so that a path that has come to
mean something else is a change too. A run that resumes is compared with it: some settings may change at any step, some
only if that is asked for, and the others never, since the rest of the run would be another one's.
"""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ml_collections
from etils import epath

from care_jax import config as config_lib
from care_jax import files
from care_jax.data.loader import DataSource
from care_jax.errors import InputError, shown
from care_jax.run.folder import CONFIG_FILE, HISTORY_FILE, read_object

_CONTENT = "content of "
# Keys, or groups of keys, that may change at any step. A path may, since what lies there is compared.
_FREE = (
    "tracker",
    "model.folder",
    "model.attention",
    "model.remat",
    "model.logits_chunk",
    "mesh",
    "data.train",
    "data.eval",
    "data.strict",
    "verify.workers",
    "train.steps",
    "train.eval_every",
    "train.eval_examples",
    "train.checkpoint_every",
    "train.keep_last",
    "train.samples_every",
    "train.hang_after",
    "train.max_logprob_gap",
    "optimizer.lr",
    "eval.batch_size",
    "eval.benchmarks",
)
# Those that may change with --allow_change: curves before and after the change do not compare.
_IN_DOUBT = (
    _CONTENT + "data.eval",
    _CONTENT + "model.folder",
    "model.weights",
    "model.compute_dtype",
    "data.turns_if_all_correct",
    "data.turns_if_all_wrong",
    "rollout.compact_shares",
    "rollout.weights",
    "rollout.tensor",
    "score",
    "loss",
    "verify",
    "train.stream_len",
    "optimizer",
    "eval",
)
# The files of a model folder that decide what is computed. The shapes of the parameters are compared at the restore.
_MODEL_FILES = ("*config.json", "tokenizer.json", "chat_template.*", "vocab.json", "merges.txt", "*tokens*.json")


def settings(config: ml_collections.ConfigDict, *, train: DataSource, held_out: DataSource) -> dict[str, Any]:
    """The values of a config by dotted key, and the digests of what its paths name. Reads all of the data."""
    folder = Path(config.model.folder)
    content = {"data.train": train.fingerprint(), "data.eval": held_out.fingerprint()}
    for path in sorted({path for pattern in _MODEL_FILES for path in folder.glob(pattern) if path.is_file()}):
        content[f"model.folder/{path.name}"] = _digest(path)
    values = config_lib.flat(config) | {_CONTENT + name: digest for name, digest in content.items()}
    plain: dict[str, Any] = json.loads(json.dumps(values))  # as they come back from the file
    return plain


def changed_files(workdir: epath.Path, folder: Path) -> list[str]:
    """The files that differ in `folder`, or are missing, from those of model.folder when the run last started.

    Raises:
        InputError: the history or the config in `workdir` cannot be read.
    """
    prefix = _CONTENT + "model.folder/"
    digests = {key.removeprefix(prefix): value for key, value in _current(workdir).items() if key.startswith(prefix)}
    return [
        name for name, digest in digests.items() if not (folder / name).is_file() or _digest(folder / name) != digest
    ]


def newest_step(workdir: epath.Path) -> int | None:
    """The newest step in the checkpoints folder of a run, or None; it may turn out to be damaged."""
    folder = workdir / "checkpoints"
    steps = [int(child.name) for child in folder.iterdir() if child.name.isdecimal()] if folder.is_dir() else []
    return max(steps, default=None)


def require_same_run(workdir: epath.Path, now: Mapping[str, Any], *, allow_change: bool) -> None:
    """Compares the settings `now` with those of the checkpoints in `workdir`, if there are any.

    Raises:
        InputError: one line with each changed setting that may not change, or not without `allow_change`; train.steps
            below the newest checkpoint; a history that cannot be read; or, without `allow_change`, none to compare.
    """
    step = newest_step(workdir)
    if step is None:
        return
    if now["train.steps"] < step:
        raise InputError(
            f"train.steps={now['train.steps']} is below step {step}, the newest checkpoint of --workdir={workdir}; "
            "raise it, or name another folder"
        )
    before = _current(workdir)
    if not before and not allow_change:
        raise InputError(
            f"--workdir={workdir} has checkpoints and neither {HISTORY_FILE} nor {CONFIG_FILE}, so nothing says what "
            "its run was: put them back, name another folder, or pass --allow_change"
        )
    changes = _changes(before, now)
    never = [key for key in changes if not _is_among(key, (*_FREE, *_IN_DOUBT))]
    in_doubt = [key for key in changes if key not in never and not _is_among(key, _FREE)]
    told = [_tell(key, before, now) for key in (never or in_doubt)]
    if never:
        raise InputError(
            f"--workdir={workdir} holds a run with other settings: {'; '.join(told)}. They cannot change within a run: "
            "set them back, or name another folder"
        )
    if in_doubt and not allow_change:
        raise InputError(
            f"--workdir={workdir} holds a run with other settings: {'; '.join(told)}. The run's curves before and "
            "after would not compare: set them back, name another folder, or pass --allow_change"
        )


def write(workdir: epath.Path, now: Mapping[str, Any], *, step: int) -> None:
    """Records the settings of a run that goes on from `step`, or begins at 0, and prints what has changed."""
    path = workdir / HISTORY_FILE
    before: dict[str, Any] = {}
    history: dict[str, Any] = {"started": dict(now), "changes": []}
    if step > 0:
        before = _current(workdir)
        history = _read(path) if path.is_file() else {"started": {**(before or now), **_content(now)}, "changes": []}
    changes = _changes(before, now)
    for key in changes:
        print(f"changed from step {step} on: {_tell(key, before, now)}", file=sys.stderr)
    if changes:
        old, new = ({key: values[key] for key in changes if key in values} for values in (before, now))
        history["changes"].append({"step": step, "from": old, "to": new})
    files.write_text(path, json.dumps(history, indent=1, sort_keys=True) + "\n")


def _digest(path: Path) -> str:
    return hashlib.blake2b(path.read_bytes(), digest_size=16).hexdigest()


def _changes(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """The keys whose values differ. A key of another version of this program is none; a file that came or went is."""
    keys = before.keys() & now.keys()
    if _content(before):
        keys |= _content(before).keys() ^ _content(now).keys()
    return sorted(key for key in keys if before.get(key) != now.get(key))


def _content(values: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in values.items() if key.startswith(_CONTENT)}


def _is_among(key: str, groups: tuple[str, ...]) -> bool:
    return any(key == group or key.startswith((f"{group}.", f"{group}/")) for group in groups)


def _tell(key: str, before: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    if not key.isprintable():
        return f"the key {shown(key)} is not a setting"
    if key.startswith(_CONTENT):
        return f"the {key} has changed"
    return f"{key} was {shown(before.get(key))} and is {shown(now.get(key))}"


def _current(workdir: epath.Path) -> dict[str, Any]:
    """The settings as they were last; of a run without a history its config, or nothing."""
    if (workdir / HISTORY_FILE).is_file():
        history = _read(workdir / HISTORY_FILE)
        values = dict(history["started"])
        for change in history["changes"]:
            gone = change["from"].keys() - change["to"].keys()
            values = {key: value for key, value in values.items() if key not in gone} | change["to"]
        return values
    if (workdir / CONFIG_FILE).is_file():
        config = ml_collections.ConfigDict(read_object(workdir / CONFIG_FILE))
        flat: dict[str, Any] = json.loads(json.dumps(config_lib.flat(config)))
        return flat
    return {}


def _read(path: epath.Path) -> dict[str, Any]:
    """A history, whose form is checked."""
    history = read_object(path)
    started, changes = history.get("started"), history.get("changes")
    is_one = isinstance(started, dict) and _content(started) and "seed" in started and isinstance(changes, list)
    if not is_one or not all(
        isinstance(change, dict) and all(isinstance(change.get(side), dict) for side in ("from", "to"))
        for change in changes or ()
    ):
        raise InputError(f"{path} is not the history of a run; put back a copy, or name another --workdir")
    return history
