"""The model a config names: its architecture, how it is computed, and the mesh that it is divided over."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import jax
import ml_collections
from jax.sharding import Mesh

from care_jax.errors import InputError
from care_jax.models import ModelConfig, load_model_config
from care_jax.models.model_config import LoraConfig
from care_jax.parallel.mesh import create_device_mesh, fit_sizes


def make_model_config(
    config: ml_collections.ConfigDict, platform: str, architecture: ModelConfig | None = None
) -> ModelConfig:
    """The architecture, and how config.model wants it computed on `platform`.

    Args:
        config: the run's config.
        platform: "cpu", "gpu" or "tpu".
        architecture: None reads it from the config's model folder.
    """
    architecture = architecture or load_model_config(Path(config.model.folder))
    return dataclasses.replace(
        architecture,
        compute_dtype=config.model.compute_dtype,
        remat=config.model.remat,
        attention=_attention(config, platform, architecture.text.head_dim),
        freeze=tuple(config.model.freeze),
        lora=LoraConfig.from_settings(config.model.lora.to_dict()),
        scan_decoding=platform == "tpu",
    )


def _attention(config: ml_collections.ConfigDict, platform: str, head_dim: int) -> str:
    """The attention that a config chooses on a platform."""
    wanted: str = config.model.attention
    if wanted != "auto":
        return wanted
    if platform == "gpu" and config.model.compute_dtype == "bfloat16" and _cudnn_takes(head_dim):
        return "cudnn"
    return "splash" if platform == "tpu" else "xla"


def _cudnn_takes(head_dim: int) -> bool:
    """True if cuDNN's attention has heads of this size on this GPU; it has wide ones from Hopper on."""
    capability = getattr(jax.devices()[0], "compute_capability", "9.0")  # a GPU that a plan is for has none
    return head_dim <= 128 or float(capability) >= 9.0


def make_mesh(config: ml_collections.ConfigDict, *, training: bool) -> Mesh:
    """The mesh of config.mesh over all devices; `training` asks that it divides the batches of an update too.

    Raises:
        InputError: one line on a factorisation that does not work for this model and these batches.
    """
    devices = jax.devices()
    model_config = make_model_config(config, devices[0].platform)
    return create_device_mesh(mesh_sizes(config, model_config, len(devices), training=training), devices)


def mesh_sizes(
    config: ml_collections.ConfigDict, model: ModelConfig, num_devices: int, *, training: bool = True
) -> dict[str, int]:
    """Axis sizes from config.mesh that divide the model and its batches; `training`: those of updates too.

    Raises:
        InputError: one line with what does not divide, and the factorisations that work.
    """
    rows = config.train.prompts // config.train.minibatches
    batch = {f"train.prompts / minibatches = {rows}": (rows, ("data", "fsdp"))} if training else {}
    sizes = fit_sizes(config.mesh.to_dict(), batch | model.mesh_needs(config.data.patch_buckets), num_devices)
    tensor = config.rollout.tensor
    if tensor in (0, sizes["tensor"]):
        return sizes
    problems = [f"mesh.tensor is {sizes['tensor']} and not 1"] if sizes["tensor"] > 1 else []
    counts = model.decoder_needs() | {f"mesh.fsdp = {sizes['fsdp']}": sizes["fsdp"]}
    problems += [f"{what} must divide by it" for what, count in counts.items() if count % tensor]
    if problems:
        raise InputError(f"rollout.tensor={tensor}: {', '.join(problems)}")
    return sizes
