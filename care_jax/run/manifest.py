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

import care_jax
from care_jax import files
from care_jax.errors import InputError, shown
from care_jax.run.folder import CONFIG_FILE, MANIFEST_FILE, read_object

_PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "transformers", "numpy")

UNKNOWN = "unknown"  # a commit
_GIT_SECONDS = 30.0  # a repository on a slow disk may take some


def make_manifest(config: ml_collections.ConfigDict, stage: str) -> dict[str, Any]:
    """The stage, seed, commit, devices and package versions of this run."""
    about = {
        "stage": stage,
        "seed": config.seed,
        "care_jax": care_jax.__version__,
        "commit": _commit(),
        "device": f"{jax.devices()[0].device_kind} x {jax.device_count()}",
        "processes": jax.process_count(),
    }
    return about | {name: importlib.metadata.version(name) for name in _PACKAGES}


def _commit() -> str:
    """The commit of this code, HASH-dirty if a file differs from it; "unknown" without git or outside a checkout.

    A package installed inside a checkout of something else is outside of its own.
    """
    try:
        if not _git("ls-files", "--error-unmatch", Path(__file__).name):
            return UNKNOWN
        return _git("describe", "--always", "--dirty", "--abbrev=40", "--exclude=*") or UNKNOWN
    except (OSError, subprocess.TimeoutExpired, UnicodeDecodeError):
        return UNKNOWN


def _git(*words: str) -> str:
    """The output of a git command in the folder of this file; "" if it fails."""
    done = subprocess.run(
        ["git", *words], capture_output=True, text=True, check=False, cwd=Path(__file__).parent, timeout=_GIT_SECONDS
    )
    return done.stdout.strip()


def write(workdir: epath.Path, config: ml_collections.ConfigDict, manifest: dict[str, Any]) -> None:
    """Writes both files."""
    for name, values in ((CONFIG_FILE, json.loads(config.to_json_best_effort())), (MANIFEST_FILE, manifest)):
        files.write_text(workdir / name, json.dumps(values, indent=1, sort_keys=True) + "\n")


def require_stage(workdir: epath.Path, stage: str) -> None:
    """Refuses the folder of another stage, whose checkpoints would pass for this one's.

    Raises:
        InputError: `workdir` holds a run of another stage, or a manifest that does not say so.
    """
    path = workdir / MANIFEST_FILE
    if not path.is_file():
        return
    found = read_object(path).get("stage")
    if not isinstance(found, str):
        raise InputError(f"{path} names no stage; put back a copy, or name another --workdir")
    if found != stage:
        raise InputError(
            f"--workdir={workdir} holds a run of stage {shown(found)}, this is {stage!r}; name another folder"
        )
