"""The base of a run with adapters: the weights beneath them, which its checkpoints name and do not hold.

Beside the params of each step, which are adapters alone, lies base/metadata:

    {"params": "/weights/qwen2_5_vl_7b/params", "digest": "9f..", "lora": {"rank": 64, "alpha": 64.0, ...}}
"""

from __future__ import annotations

import dataclasses
from typing import Any

import ml_collections
from etils import epath

from care_jax import files
from care_jax.checkpoints.load import find_params, read_json
from care_jax.errors import InputError, shown
from care_jax.models.model_config import LoraConfig

ITEM = "base"  # of a checkpoint


@dataclasses.dataclass(frozen=True)
class Base:
    """The folder of the weights beneath adapters, and the settings of these."""

    params: str  # the folder of the parameters
    digest: str  # of their checksums (checksums.digest); "" before they are loaded
    lora: LoraConfig

    def to_json(self) -> dict[str, Any]:
        """The object that a checkpoint holds."""
        return dataclasses.asdict(self) | {"lora": dataclasses.asdict(self.lora) | {"targets": list(self.lora.targets)}}


def base_file(params: epath.Path) -> epath.Path:
    """The file that names the base of the adapters in the folder `params`."""
    return params.parent / ITEM / "metadata"


def read_base(params: epath.Path) -> Base | None:
    """The base of the parameters in the folder `params`; None if they are a whole model.

    Raises:
        InputError: the file that names it is damaged.
    """
    file = base_file(params)
    if not file.exists():
        return None
    fields = read_json(file)
    try:
        if (lora := LoraConfig.from_settings(fields["lora"])) is None:
            raise ValueError("adapters of rank 0")
        return Base(str(fields["params"]), str(fields["digest"]), lora)
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(f"{file} does not name the weights beneath adapters; name another step's folder") from error


def find_base(config: ml_collections.ConfigDict, workdir: epath.Path | None = None) -> Base | None:
    """The base of a run's model; None without adapters.

    A run that resumes in `workdir` keeps the one that it began with. If that has moved, config.model.weights says where
    it is.

    Raises:
        InputError: there is no finished checkpoint at config.model.weights, or the adapters there are none of
            config.model.lora.
    """
    if (lora := LoraConfig.from_settings(config.model.lora.to_dict())) is None:
        return None
    recorded = None if workdir is None else _recorded(workdir)
    if recorded is not None and files.anywhere(recorded.params).exists():
        return recorded
    params = find_params(config.model.weights)
    base = read_base(params)
    if base is not None and dataclasses.replace(base.lora, targets=lora.targets) != lora:  # names are checked on load
        raise InputError(
            f"model.weights={config.model.weights} holds adapters with {_settings(base.lora)}; set model.lora to the "
            f"same, it is {_settings(lora)}"
        )
    base = base or Base(str(params), "", lora)
    return base if recorded is None else dataclasses.replace(base, digest=recorded.digest)


def require_whole_model(weights: str) -> None:
    """Looks whether model.weights names a whole model.

    Raises:
        InputError: it names adapters, or there is no finished checkpoint.
    """
    if (base := read_base(find_params(weights))) is not None:
        raise InputError(
            f"model.weights={weights} holds adapters; set model.lora to {_settings(base.lora)}, or merge them with "
            "python -m convert.jax_to_hf and convert the result"
        )


def adapters_at(config: ml_collections.ConfigDict) -> epath.Path | None:
    """The folder of the adapters that config.model.weights names; None if it names a whole model."""
    params = find_params(config.model.weights)
    return None if read_base(params) is None else params


def base_params(base: Base, wanted: str) -> epath.Path:
    """The folder of a base's parameters.

    Raises:
        InputError: it is gone; `wanted` names what needs it.
    """
    try:
        return find_params(base.params)
    except InputError as error:
        raise InputError(
            f"{wanted} needs the weights beneath its adapters, {base.params}, which are not there: put them back"
        ) from error


def _recorded(workdir: epath.Path) -> Base | None:
    """The base that the newest checkpoint of a run names, of those that can be read."""
    root = files.anywhere(workdir) / "checkpoints"
    steps = sorted((int(path.name) for path in root.iterdir() if path.name.isdecimal()) if root.is_dir() else ())
    for step in reversed(steps):
        try:
            if (base := read_base(root / str(step) / "params")) is not None:
                return base
        except InputError:  # a damaged step, which the restore will report
            continue
    return None


def _settings(lora: LoraConfig) -> str:
    return ", ".join(f"{name}={shown(value)}" for name, value in dataclasses.asdict(lora).items())
