"""LoRA adapters in the folders of the peft library: adapter_config.json and adapter_model.safetensors.

peft keeps lora_A as [rank, in] and lora_B as [out, rank] for each layer; ours are stacked and transposed, as kernels
are. Its names are those of transformers' modules in memory.
"""

from __future__ import annotations

import dataclasses
import json
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from etils import epath

from care_jax import files
from care_jax.checkpoints.array_store import Index
from care_jax.checkpoints.base import Base, base_file
from care_jax.checkpoints.load import load_params
from care_jax.convert import mapping, safetensors_io
from care_jax.convert.safetensors_io import Shard, Spec, Tensor
from care_jax.convert.weight import Weight
from care_jax.errors import InputError, listed, shown
from care_jax.models.model_config import LoraConfig
from care_jax.models.model_folder import read_fields

CONFIG_FILE, WEIGHTS_FILE = "adapter_config.json", "adapter_model.safetensors"
_PREFIX = "base_model.model."
# Fields of adapter_config.json that are read, or that change nothing of what a saved adapter computes.
_ANY = {
    *("r", "lora_alpha", "use_rslora", "target_modules", "exclude_modules", "layers_to_transform", "layers_pattern"),
    *("task_type", "auto_mapping", "peft_version", "base_model_name_or_path", "revision", "inference_mode"),
    *("lora_dropout", "megatron_config", "megatron_core", "eva_config", "qalora_group_size", "ensure_weight_tying"),
}
# Values of a plain adapter. Other ways to begin, as pissa, change the weights beneath. All other fields must be empty.
_PLAIN: dict[str, tuple[Any, ...]] = {
    "peft_type": ("LORA",),
    "bias": ("none",),
    "init_lora_weights": (True, False, "gaussian", "orthogonal", "eva"),
}


def adapter_weights(weights: Sequence[Weight], linears: Sequence[str], rank: int) -> list[Weight]:
    """The weights of adapters beside `linears`, by our names, in the order of the model's `weights`."""
    found = []
    for weight in weights:
        linear = weight.ours.removesuffix(".kernel")
        if weight.kernel and linear in linears:
            module, inputs = weight.hf.removesuffix(".weight"), math.prod(weight.shape[1:])
            (hf_a, lora_a), (hf_b, lora_b) = (
                (f"{module}.lora_{name}.weight", f"{linear}.lora_{name.lower()}") for name in "AB"
            )
            found.append(Weight(hf_a, lora_a, (rank, inputs), kernel=True, layers=weight.layers))
            # The rows of lora_b lie as the weight's do.
            found.append(dataclasses.replace(weight, hf=hf_b, ours=lora_b, shape=(weight.shape[0], rank)))
    return found


def linears_of(names: Sequence[str]) -> list[str]:
    """The linears that adapters with these names of ours lie beside."""
    return sorted({name.rpartition(".")[0] for name in names})


def peft_name(hub: str) -> str:
    """The name in a peft folder of a tensor of the hub layout."""
    return _PREFIX + mapping.laid_out(hub, "nested")


@dataclasses.dataclass(frozen=True)
class Adapters:
    """The adapters of a checkpoint, in memory."""

    lora: LoraConfig
    params: Mapping[str, np.ndarray]  # by our names

    @classmethod
    def load(cls, folder: epath.Path, lora: LoraConfig) -> Adapters:
        """The adapters in the folder of a checkpoint's params. Raises InputError if they are damaged."""
        return cls(lora, {name: np.asarray(value) for name, value in load_params(folder).items()})

    def weights(self, weights: Sequence[Weight]) -> list[Weight]:
        """Their weights.

        Raises:
            InputError: they are not adapters beside linears of the model; lists them.
        """
        found = adapter_weights(weights, linears_of(list(self.params)), self.lora.rank)
        mapping.check_params(self.params, found)
        return found

    def merge(self, weight: Weight, place: Index, part: np.ndarray) -> np.ndarray:
        """A part of a weight with what its adapter adds, in float32, or the part itself if there is none."""
        linear = weight.ours.removesuffix(".kernel")
        if f"{linear}.lora_a" not in self.params:
            return part
        *layer, _, rows = place
        lora_a, lora_b = (self.params[f"{linear}.lora_{name}"][tuple(layer)] for name in "ab")
        return part.astype(np.float32) + lora_a @ lora_b[:, rows] * np.float32(self.lora.scale)

    def write(self, new: Path, weights: Sequence[Weight], base_model: str) -> None:
        """Writes a peft folder; `base_model` is what it is to be loaded onto."""
        ours = self.weights(weights)
        tensors = {
            peft_name(name): source.weight.to_hf(self.params[source.weight.ours][source.weight.place(source.layer)])
            for name, source in mapping.by_hf_name(ours).items()
        }
        shard = Shard({name: Spec("F32", tensor.shape) for name, tensor in tensors.items()}, {"format": "pt"})
        safetensors_io.write(new / WEIGHTS_FILE, shard, tensors.values())
        modules = [mapping.laid_out(weight.hf, "nested").rpartition(".lora_")[0] for weight in ours[::2]]
        patterns = [re.escape(module).replace(re.escape("{i}"), r"\d+") for module in modules]
        alpha = float(self.lora.alpha)
        fields = {
            "peft_type": "LORA",
            "task_type": "CAUSAL_LM",
            "base_model_name_or_path": base_model,
            "r": self.lora.rank,
            "lora_alpha": int(alpha) if alpha.is_integer() else alpha,
            "use_rslora": self.lora.rank_stabilised,
            "lora_dropout": 0.0,
            "bias": "none",
            "fan_in_fan_out": False,
            "init_lora_weights": True,
            "inference_mode": True,
            "modules_to_save": None,
            # One pattern: a list of ends would also meet modules of the vision tower.
            "target_modules": "|".join(patterns),
        }
        files.write_text(new / CONFIG_FILE, json.dumps(fields, indent=2) + "\n")


def read_settings(folder: Path) -> LoraConfig:
    """The settings in a peft folder; its targets are those of its tensors, which `read_tensors` reads.

    Raises:
        InputError: there is no such file, or it is that of another kind of adapter.
    """
    path = folder / CONFIG_FILE
    fields = read_fields(path)
    other = [name for name, plain in _PLAIN.items() if fields.get(name, plain[0]) not in plain]
    other += [name for name, value in fields.items() if value and name not in _ANY and name not in _PLAIN]
    if other:
        told = ", ".join(f"{name} {shown(fields[name])}" for name in other)
        raise InputError(
            f"{path} has {told}; only plain LoRA adapters are read: merge it into its base model with peft"
        )
    rank, alpha = fields.get("r"), fields.get("lora_alpha")
    if not (_is_above_0(rank, int) and _is_above_0(alpha, int, float)):
        raise InputError(f"{path} has r {shown(rank)} and lora_alpha {shown(alpha)}; they must be numbers above 0")
    return LoraConfig(int(fields["r"]), float(fields["lora_alpha"]), bool(fields.get("use_rslora")), ())


def _is_above_0(value: Any, *types: type) -> bool:
    return type(value) in types and 0 < value < math.inf


def read_tensors(folder: Path, weights: Sequence[Weight], rank: int) -> tuple[dict[str, Tensor], list[Weight]]:
    """The tensors in a peft folder, by their names in the hub layout, and the weights that they are.

    Raises:
        InputError: no safetensors, or tensors that are not those of adapters beside linears of the model (listed).
    """
    path = folder / WEIGHTS_FILE
    if not path.is_file():
        raise InputError(f"{folder} has no {WEIGHTS_FILE}; save the adapter with safetensors")
    tensors = {mapping.hub_name(name): tensor for name, tensor in safetensors_io.read_header(path).tensors.items()}
    modules = {name.rpartition(".lora_")[0] for name in tensors}
    by_name = mapping.by_hf_name([weight for weight in weights if weight.kernel])
    if unknown := sorted(module for module in modules if f"{module}.weight" not in by_name):
        raise InputError(f"{path} has adapters beside {listed(unknown)}, which are no linears of the model")
    linears = {by_name[f"{module}.weight"].weight.ours.removesuffix(".kernel") for module in modules}
    ours = adapter_weights(weights, sorted(linears), rank)
    mapping.check_fit(tensors, mapping.by_hf_name(ours))
    return tensors, ours


def write_base(new: Path, base: Base) -> None:
    """Writes the file that names the weights beneath the adapters in `new`/params."""
    file = base_file(epath.Path(new) / "params")
    file.parent.mkdir(exist_ok=True)
    files.write_text(file, json.dumps(base.to_json()))
