"""Parameters alone, out of a run, one of its checkpoints or a converted model."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import numpy as np
import orbax.checkpoint as ocp
from etils import epath

from care_jax import files
from care_jax.checkpoints.array_store import StoredParam, open_arrays, read_stored
from care_jax.checkpoints.checksums import are_finite, checksums, digest, require_all_finite, require_equal, sums_file
from care_jax.errors import InputError, one_line

_AT_ONCE = 4  # float32 arrays that exist while parameters are loaded in another type


def find_params(path: epath.PathLike) -> epath.Path:
    """The folder of the newest parameters under a run folder, its checkpoints, one step, or a converted model.

    Raises:
        InputError: there is no finished checkpoint at `path`.
    """
    path = files.anywhere(path)
    for folder in (path, path / "params"):
        if folder.name == "params" and _is_finished(folder):
            return folder
    for root in (path / "checkpoints", path):
        children = root.iterdir() if root.is_dir() else ()
        steps = [int(child.name) for child in children if child.name.isdecimal() and _is_finished(child / "params")]
        if steps:
            return root / str(max(steps)) / "params"
    if (path / "config.json").exists() or any(path.glob("*.safetensors")):
        raise InputError(
            f"{path} is a Hugging Face folder; convert its weights with python -m convert.hf_to_jax --hf={path} "
            "--out=NEW and name NEW"
        )
    raise InputError(f"no finished checkpoint in {path}; give a run folder, its checkpoints folder or one step of it")


def run_of(params: epath.Path) -> tuple[epath.Path, int] | None:
    """The run folder that parameters lie in, as checkpoints/STEP/params, and their step; None if in none."""
    step, checkpoints = params.parent, params.parent.parent
    if checkpoints.name != "checkpoints" or not step.name.isdecimal():
        return None
    return checkpoints.parent, int(step.name)


def _is_finished(params: epath.Path) -> bool:
    # On gs:// a checkpoint has its name from the start, and a file of its own says that it is finished.
    return (params / "_METADATA").is_file() and ocp.utils.is_checkpoint_finalized(params)


def load_params(
    path: epath.PathLike, shardings: Mapping[str, jax.sharding.Sharding] | None = None
) -> dict[str, jax.Array]:
    """float32 parameters by dotted name, whatever devices and types wrote them.

    Each process reads what its devices hold by `shardings`; parameters that these do not name go to its first device.

    Raises:
        InputError: there is no finished checkpoint at `path`, or it is damaged.
    """
    return load_summed(path, shardings, np.dtype(np.float32)).params


class Summed(NamedTuple):
    """Parameters, and the digest of the checksums that they have on disk."""

    params: dict[str, jax.Array]
    digest: str


def load_summed(path: epath.PathLike, shardings: Mapping[str, jax.sharding.Sharding] | None, dtype: np.dtype) -> Summed:
    """`load_params` in another type. The float32 values, which are what is checked, exist of a few arrays at a time.

    Raises:
        InputError: there is no finished checkpoint at `path`, or it is damaged.
    """
    folder = find_params(path)
    here = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    params: dict[str, jax.Array] = {}
    found: dict[str, Any] = {}
    finite: dict[str, Any] = {}
    try:
        stored = open_arrays(folder)
        where = {name: (shardings or {}).get(name, here) for name in stored}
        at_once = len(stored) if dtype == np.float32 else _AT_ONCE
        for start in range(0, len(stored), max(at_once, 1)):
            names = list(stored)[start : start + at_once]
            like = {name: jax.ShapeDtypeStruct(stored[name].shape, np.float32, sharding=where[name]) for name in names}
            arrays = {"params": read_stored(folder, stored, like)}
            found |= jax.device_get(checksums(arrays))["params"]
            finite |= jax.device_get(are_finite(arrays))["params"]
            params |= {name: x.astype(dtype) for name, x in arrays["params"].items()}
        if (sums := read_sums(folder)) is not None:
            require_equal({"params": found}, {"params": sums})
    except ValueError as error:
        raise InputError(f"{folder} is damaged ({one_line(error)}); name another step's folder") from error
    try:
        require_all_finite({"params": finite})
    except InputError as error:
        raise InputError(f"{folder}: {error}") from error
    return Summed(params, digest(found))


def open_params(path: epath.PathLike) -> dict[str, StoredParam]:
    """The parameters that `load_params` would load, to be read in parts and on the host.

    Raises:
        InputError: there is no finished checkpoint at `path`, or it is damaged.
    """
    return open_arrays(find_params(path))


def read_sums(path: epath.PathLike) -> dict[str, int] | None:
    """The checksums of the parameters that `load_params` would load; None if another program wrote them.

    Raises:
        InputError: there is no finished checkpoint at `path`, or the file of the checksums is damaged.
    """
    file = sums_file(find_params(path))
    if not file.exists():
        return None
    sums = read_json(file).get("params")
    if not isinstance(sums, dict):
        raise InputError(f"{file} has no checksums of parameters; name another step's folder")
    return sums


def read_json(path: epath.Path) -> dict[str, Any]:
    """The JSON object in one of a checkpoint's files.

    Raises:
        InputError: the file cannot be read, or holds something else.
    """
    try:
        values = json.loads(path.read_text())
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"{path.parent.name}/{path.name} cannot be read: {one_line(error)}") from error
    if not isinstance(values, dict):
        raise InputError(f"{path.parent.name}/{path.name} is not a JSON object")
    return values
