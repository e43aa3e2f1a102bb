"""Settings that make a run fit: changes that lower the peak of a plan, and a sweep over meshes and batches."""

from __future__ import annotations

import dataclasses
import itertools

import ml_collections

from care_jax.errors import InputError
from care_jax.models import ModelConfig
from care_jax.parallel.mesh import factorisations
from care_jax.planning import flops
from care_jax.planning.chips import GIB, devices_of
from care_jax.planning.estimate import Plan, make_plan, planned_model
from care_jax.planning.sizes import Sizes
from care_jax.stages.compiled import all_buckets
from care_jax.stages.model import mesh_sizes


@dataclasses.dataclass(frozen=True)
class Change:
    """A setting that takes less at the peak."""

    setting: str
    saves: int  # bytes of a chip at the peak, about
    why: str


def changes(plan: Plan) -> list[Change]:
    """Changes that lower the peak, the largest saving first."""
    config, sizes, parts = plan.config, plan.sizes, plan.peak.parts
    mesh = sizes.mesh
    state = parts["params"] + parts["optimizer"] + parts["reference"] + parts["gradients"]
    shards = mesh["data"] * mesh["fsdp"]
    found = []
    if mesh["data"] > 1:
        found.append(
            Change(
                f"mesh.data=1, mesh.fsdp={shards}",
                state * (mesh["data"] - 1) // mesh["data"],
                "parameters, optimizer, reference and gradients divided over all of them",
            )
        )
    if config.model.lora.rank == 0:
        kept = parts["optimizer"] + parts["gradients"] + parts["reference"] + parts["params"] // 2
        found.append(Change("model.lora.rank=64", kept, "adapters alone are trained, beside weights in bfloat16"))
    if parts["reference"]:
        found.append(Change("objective.kl_coef=0", parts["reference"], "no reference parameters (another objective)"))
    if plan.peak.name == "update":
        kept = parts["activations"] + parts["temporaries"]
        shorter = _half(config.train.stream_len)
        if shorter >= sizes.bucket[0] + sizes.response_len:
            found.append(Change(f"train.stream_len={shorter}", kept // 2, "half as many tokens at a time"))
        if config.model.remat != "full":
            found.append(Change("model.remat=full", kept // 2, "each layer computed again in the backward pass"))
    elif sizes.prompts % (2 * sizes.minibatches * shards) == 0:
        per_prompt = sum(parts[part] for part in ("prompt_kv", "branch_kv", "batch", "temporaries"))
        found.append(Change(f"train.prompts={sizes.prompts // 2}", per_prompt // 2, "half as many prompts a step"))
    if plan.peak.name == "rollout" and (shares := config.rollout.compact_shares):
        copied = [share * sizes.num_rollouts for share in shares if share * sizes.num_rollouts <= 1]  # of all prompts
        copies = int(max(copied, default=0) * parts["prompt_kv"])
        found.append(
            Change("rollout.compact_shares=()", min(copies, parts["temporaries"]), "no copies of prompts for the tail")
        )
    if parts["sampler"] and mesh["tensor"] == 1:
        wider = 2 * sizes.decode_tensor
        if _works(config, sizes.model, mesh, rollout_tensor=wider):
            why = "the sampler's copy divided among more chips"
            found.append(Change(f"rollout.tensor={wider}", parts["sampler"] // 2, why))
    found.append(Change("a slice of twice the chips", plan.peak.peak // 2, "at most: what all have stays as it is"))
    return sorted(found, key=lambda change: -change.saves)


def _half(stream_len: int) -> int:
    """Half of a length, rounded down to an even number."""
    return stream_len // 4 * 2


def _works(
    config: ml_collections.ConfigDict, model: ModelConfig, mesh: dict[str, int], rollout_tensor: int | None = None
) -> bool:
    """True if a mesh divides the model and the batch, and `rollout_tensor` the decoder; None: the config's."""
    changed = config.copy_and_resolve_references()
    if rollout_tensor is not None:
        changed.rollout.tensor = rollout_tensor
    changed.mesh.update(mesh)
    num_devices = mesh["data"] * mesh["fsdp"] * mesh["tensor"]
    try:
        mesh_sizes(changed, model, num_devices)
    except ValueError:
        return False
    return True


_DECODE_TENSORS = (0, 2, 4, 8)  # of rollout.tensor


def candidates(config: ml_collections.ConfigDict, topology: str) -> list[ml_collections.ConfigDict]:
    """Every mesh, rollout.tensor, number of prompts and length of streams that work, from the lowest floor a prompt up.

    Prompts and lengths are the config's and halves of them. Left out is what cannot fit: its parameters, optimizer,
    reference and caches alone take more than a chip has.
    """
    model = planned_model(config)
    chip, devices = devices_of(topology)
    ranked: list[tuple[float, int, ml_collections.ConfigDict]] = []
    shortest = max(config.data.prompt_buckets) + config.rollout.response_len
    for mesh, tensor in itertools.product(factorisations(len(devices)), _DECODE_TENSORS):
        if tensor and mesh["tensor"] > 1:
            continue
        shards = mesh["data"] * mesh["fsdp"]
        for halvings in range(4):
            prompts, rest = divmod(config.train.prompts, 1 << halvings)
            if rest:
                break
            stream_len = config.train.stream_len
            while prompts % (config.train.minibatches * shards) == 0 and stream_len >= shortest:
                tried = config.copy_and_resolve_references()
                tried.mesh.update(mesh)
                tried.rollout.tensor = tensor
                tried.train.update(prompts=prompts, stream_len=stream_len)
                stream_len = _half(stream_len)
                if not _works(tried, model, mesh, tensor):
                    continue
                sizes = Sizes.of(tried, model, max(all_buckets(tried)), mesh)
                if flops.least_bytes(sizes, tried) > chip.hbm_gib * GIB:
                    continue
                ranked.append((flops.least_seconds(sizes, tried, chip) / prompts, len(ranked), tried))
    return [tried for _, _, tried in sorted(ranked, key=lambda entry: entry[:2])]


def sweep(config: ml_collections.ConfigDict, topology: str) -> Plan:
    """The first of the candidates that fits, with a line printed for each that is tried.

    Raises:
        InputError: none fits.
    """
    for tried in candidates(config, topology):
        plan = make_plan(tried, topology, only=("update",))  # mostly the largest
        if plan.fits:
            plan = make_plan(tried, topology)
        mesh = "x".join(str(size) for size in plan.sizes.mesh.values())
        print(
            f"mesh {mesh}, rollout.tensor {tried.rollout.tensor}, train.prompts {tried.train.prompts}, "
            f"train.stream_len {tried.train.stream_len}: "
            f"{plan.peak.peak / GIB:.2f} GiB in {plan.peak.name}",
            flush=True,
        )
        if plan.fits:
            return plan
    raise InputError(
        f"--sweep: nothing fits on {topology} with up to {config.train.prompts} prompts; choose a larger --topology"
    )
