"""Parameters alone, out of a run, one of its checkpoints or a converted model."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from etils import epath

from care_jax import files
from care_jax.checkpoints.array_store import StoredParam, open_arrays, read_arrays
from care_jax.checkpoints.checksums import checksums, require_equal, require_finite, sums_file
from care_jax.errors import InputError, one_line


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
    folder = find_params(path)
    here = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    try:
        shapes = {name: param.shape for name, param in open_arrays(folder).items()}
        where = {name: (shardings or {}).get(name, here) for name in shapes}
        like = {name: jax.ShapeDtypeStruct(shape, np.float32, sharding=where[name]) for name, shape in shapes.items()}
        params = read_arrays(folder, like)
        if (sums := read_sums(folder)) is not None:
            require_equal(jax.device_get(checksums({"params": params})), {"params": sums})
    except ValueError as error:
        raise InputError(f"{folder} is damaged ({one_line(error)}); name another step's folder") from error
    try:
        require_finite({"params": params})
    except InputError as error:
        raise InputError(f"{folder}: {error}") from error
    return params


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
