"""The config that a run folder records, as a config file: what a command takes if it is given no other (cli.py)."""

from __future__ import annotations

from typing import Any

import ml_collections

from care_jax import config as config_lib
from care_jax import files
from care_jax.errors import InputError
from care_jax.run.folder import CONFIG_FILE, MANIFEST_FILE, read_object


def get_config(workdir: str) -> ml_collections.ConfigDict:
    """The config in a run folder, from its path or that of its checkpoints or one of them.

    Keys that the run did not have yet get their defaults.

    Raises:
        InputError: no run has left a config there, or it cannot be read.
    """
    path = files.anywhere(workdir)
    for folder in (path, *list(path.parents)[:2]):
        if (folder / CONFIG_FILE).is_file() and (folder / MANIFEST_FILE).is_file():
            config = config_lib.base()
            with config.ignore_type():
                _fill(config, read_object(folder / CONFIG_FILE))
            return config
    raise InputError(f"--config=FILE is needed, a file of configs/: no run has left a {CONFIG_FILE} in {workdir}")


def _fill(config: ml_collections.ConfigDict, recorded: dict[str, Any]) -> None:
    for key, value in recorded.items():
        if isinstance(value, dict) and isinstance(config.get(key), ml_collections.ConfigDict):
            _fill(config[key], value)
        else:
            config[key] = _with_tuples(value)


def _with_tuples(value: Any) -> Any:
    return tuple(map(_with_tuples, value)) if isinstance(value, list) else value
