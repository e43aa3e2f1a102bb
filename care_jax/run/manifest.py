"""The record of how a run was made: config.json and manifest.json in its folder."""

from __future__ import annotations

import importlib.metadata
import json
import subprocess
from pathlib import Path
from typing import Any

import jax
import ml_collections
from etils import epath

from care_jax import files
from care_jax.errors import InputError
from care_jax.run.folder import CONFIG_FILE, MANIFEST_FILE

_PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "transformers", "numpy")


def make_manifest(config: ml_collections.ConfigDict, stage: str) -> dict[str, Any]:
    """The stage, seed, commit, devices and package versions of this run."""
    commit = subprocess.run(
        # A tree that differs from its commit says so: HASH-dirty.
        ["git", "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"],
        capture_output=True,
        text=True,
        check=False,
        cwd=Path(__file__).parent,
    ).stdout.strip()
    about = {
        "stage": stage,
        "seed": config.seed,
        "commit": commit,
        "device": f"{jax.devices()[0].device_kind} x {jax.device_count()}",
        "processes": jax.process_count(),
    }
    return about | {name: importlib.metadata.version(name) for name in _PACKAGES}


def write(workdir: epath.Path, config: ml_collections.ConfigDict, manifest: dict[str, Any]) -> None:
    """Writes both files."""
    for name, values in ((CONFIG_FILE, json.loads(config.to_json_best_effort())), (MANIFEST_FILE, manifest)):
        files.write_text(workdir / name, json.dumps(values, indent=1, sort_keys=True) + "\n")


def require_stage(workdir: epath.Path, stage: str) -> None:
    """Refuses the folder of another stage, whose checkpoints would pass for this one's.

    Raises:
        InputError: `workdir` holds a run of another stage.
    """
    manifest = workdir / MANIFEST_FILE
    if manifest.is_file() and (found := json.loads(manifest.read_text())["stage"]) != stage:
        raise InputError(f"--workdir={workdir} holds a run of stage {found!r}, this is {stage!r}; name another folder")
