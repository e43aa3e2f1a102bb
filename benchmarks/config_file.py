"""Configs by the words that commands take: FILE, or FILE:ARGUMENT."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import ml_collections


def load_config(where: str) -> ml_collections.ConfigDict:
    """Returns get_config() of `where`, a config file with or without an argument after a colon.

    Raises:
        ValueError: there is no such file, or its get_config() refuses the argument.
    """
    path, _, argument = where.partition(":")
    if not Path(path).is_file():
        raise ValueError(f"--config={where}: there is no file {path}")
    spec = importlib.util.spec_from_file_location(Path(path).stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    config: ml_collections.ConfigDict = module.get_config(argument) if argument else module.get_config()
    return config
