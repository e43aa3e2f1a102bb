"""Weights that are no plain safetensors of a whole model: what they are, and what to do with them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from care_jax.errors import InputError, shown
from care_jax.models.model_folder import read_fields

_ADAPTER_FILE = "adapter_config.json"
_OTHER_FILES = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.gguf", "*.msgpack", "*.h5")
_QUANTIZED_TYPES = {"F8_E4M3", "F8_E5M2", "F8_E8M0", "F4", "I8", "U8", "I32"}
_QUANTIZED_NAMES = ("qweight", "qzeros", "scales", "weight_scale", "weight_scale_inv", "weight_packed", "absmax", "SCB")
_ADAPTER_NAMES = (".lora_A.", ".lora_B.", ".base_layer.", ".modules_to_save.")


def refuse_other_forms(folder: Path) -> None:
    """Looks at the files beside the weights.

    Raises:
        InputError: the folder is an adapter, or its weights are quantized.
    """
    if (folder / _ADAPTER_FILE).exists():
        raise _adapter(f"{folder} has {_ADAPTER_FILE}")
    for name in ("config.json", "quantize_config.json", "quant_config.json", "hf_quant_config.json"):
        if (folder / name).exists():
            fields = read_fields(folder / name)
            if (method := _quantization(fields) if name == "config.json" else name) is not None:
                raise _quantized(f"{folder} is quantized ({shown(method)})")


def refuse_other_tensors(types: Mapping[str, str]) -> None:
    """Looks at the tensors: `types` has safetensors' type of each name.

    Raises:
        InputError: they are those of an adapter, or quantized.
    """
    for name, kind in types.items():
        if any(part in name for part in _ADAPTER_NAMES):
            raise _adapter(f"the tensor {shown(name)} is part of a LoRA adapter")
        if kind in _QUANTIZED_TYPES and name.rpartition(".")[2].startswith(("weight", *_QUANTIZED_NAMES)):
            raise _quantized(f"the tensor {shown(name)} of type {kind} is quantized")


def no_weights(folder: Path, wanted: str) -> InputError:
    """The error for a folder without the files that are `wanted`, which says what it has instead."""
    try:
        others = sorted(path.name for pattern in ("*.safetensors", *_OTHER_FILES) for path in folder.glob(pattern))
    except OSError:
        others = []
    if not others:
        return InputError(f"no weights in {folder}: looked for {wanted}; download one of them")
    if others[0].endswith(".safetensors"):
        return InputError(f"{folder} has {shown(others[0])}, but neither {wanted}; download the index or the one file")
    return InputError(
        f"{folder} has {shown(others[0])}, and only safetensors are read: {wanted}; load it in transformers and write "
        "it with save_pretrained"
    )


def _quantization(config: dict[str, Any]) -> object:
    """The method by which config.json says that the weights are quantized, or None."""
    text = config.get("text_config")
    for fields in (config, text if isinstance(text, dict) else {}):
        for name in ("quantization_config", "compression_config"):
            if (found := fields.get(name)) is not None:
                return found.get("quant_method", name) if isinstance(found, dict) else name
    return None


def _adapter(what: str) -> InputError:
    return InputError(
        f"{what}, not a whole model; give the folder of its base model as --hf and this one as --adapter, or merge it "
        "(merge_and_unload of peft), save that and convert it"
    )


def _quantized(what: str) -> InputError:
    return InputError(
        f"{what}; convert the checkpoint that it was made from, or dequantize it (dequantize of transformers) and save "
        "it in bfloat16"
    )
