"""What a run takes of a TPU slice, before the slice is rented: its own programs, compiled on a machine without a TPU.

    python -m care_jax.plan --config=configs/F.py --topology=v5p:2x2x2 [--json=FILE] [--sweep] [--config.a.b=v]

Every program of a step (programs.py) is compiled for the largest bucket, from shapes: neither weights nor data are
needed, and of a published model not even its folder. Needs libtpu (pip install -e '.[libtpu]').

Printed is, for each program in the order of a step, what a chip holds while it runs, in GiB:

    params      parameters, float32                 prompt_kv    keys and values of the prompts
    optimizer   Adam's moments                      branch_kv    of the rollouts, or of the reflection
    reference   the KL's reference parameters       activations  what the backward pass keeps of the forward pass
    sampler     the copy that decoding reads        batch        prompts with their patches, responses, scores
    gradients   of a minibatch, float32             temporaries  all else that the compiler allots, and padding

The peak is the compiler's own, with what lives beside the program added. Then the tokens and FLOPs of a step, the least
seconds that its arithmetic, its reads of HBM and its transfers take on that chip, and the bytes of each kind of
collective. Exit code 0: the run fits; 1: it does not, and what would change that is listed; 2: bad input.

--sweep tries the meshes, the config's prompts and fewer, and all micro-batches, from the lowest floor up, until one
fits.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import re
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
from absl import flags
from jax.sharding import Mesh

from care_jax import cli
from care_jax import config as config_lib
from care_jax.models import ModelConfig, QwenVL, abstract_model
from care_jax.models.cache import Prefix
from care_jax.models.model_config import parse_model_config
from care_jax.models.published import PUBLISHED, published_config
from care_jax.parallel import sharding
from care_jax.parallel.mesh import create_device_mesh, factorisations
from care_jax.planning import flops, hlo
from care_jax.planning.chips import GIB, Chip, devices_of
from care_jax.run.build import make_model_config, mesh_sizes
from care_jax.stages.optimizer import make_optimizer
from care_jax.stages.programs import Bucket, Inputs, Program, TrainPrograms, all_buckets
from care_jax.stages.train_state import TrainState, state_specs

PARTS = (
    "params",
    "optimizer",
    "reference",
    "sampler",
    "prompt_kv",
    "branch_kv",
    "gradients",
    "activations",
    "batch",
    "temporaries",
)
# The compiler's two ways to say it.
_NO_ROOM = re.compile(r"Ran out of memory (?:on HBM.*HLO temporaries \(|in memory space hbm\. Used )([\d.]+)([KMGT])")
_UNIT = {"K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}


@dataclasses.dataclass(frozen=True)
class Stage:
    """One program of a step on one chip."""

    name: str
    parts: dict[str, int]  # bytes of what lives while it runs, by PARTS; they add up to the peak
    collective_bytes: dict[str, int]  # received over the links, by kind; none where it was refused
    largest_array: int  # numbers
    largest_gather: int  # numbers of the largest array that is gathered at once
    refused: bool  # the compiler found no room for the program alone
    seconds: float  # of compilation, beside another

    @property
    def peak(self) -> int:
        """Bytes."""
        return sum(self.parts.values())


@dataclasses.dataclass(frozen=True)
class Plan:
    """A run on a slice."""

    config: ml_collections.ConfigDict
    topology: str
    chip: Chip
    sizes: flops.Sizes
    stages: list[Stage]

    @property
    def peak(self) -> Stage:
        """The stage that takes most."""
        return max(self.stages, key=lambda stage: stage.peak)

    @property
    def fits(self) -> bool:
        """Every program finds room, with all that lives beside it."""
        return not any(stage.refused for stage in self.stages) and self.peak.peak <= self.chip.hbm_gib * GIB

    @functools.cached_property
    def work(self) -> dict[str, flops.Work]:
        """What each stage must do."""
        return flops.step_work(self.sizes, self.config)

    @functools.cached_property
    def floors(self) -> dict[str, dict[str, float]]:
        """Least seconds by stage and by what bounds it; over the links those of what the program receives."""
        received = {s.name: sum(s.collective_bytes.values()) for s in self.stages if not s.refused}
        floors = {name: flops.floors(self.sizes, work, self.chip) for name, work in self.work.items()}
        for name in floors.keys() & received.keys():
            floors[name]["links"] = received[name] / self.chip.link_bytes_per_s
        return floors

    def to_json(self) -> dict[str, Any]:
        """What --json writes. `parts` gives each part where it is largest; those of a stage add up to its peak."""
        return {
            "topology": self.topology,
            "mesh": self.sizes.mesh,
            "fits": self.fits,
            "peak_gib": round(self.peak.peak / GIB, 3),
            "peak_stage": self.peak.name,
            "limit_gib": self.chip.hbm_gib,
            "parts": {part: round(max(stage.parts[part] for stage in self.stages) / GIB, 3) for part in PARTS},
            "stages": {
                stage.name: {part: round(size / GIB, 3) for part, size in stage.parts.items()} for stage in self.stages
            },
            "tokens_per_step": sum(work.tokens for work in self.work.values()),
            "flops_per_step": sum(work.flops for work in self.work.values()),
            "floors_s": self.floors,
            "collective_bytes": {
                kind: sum(stage.collective_bytes.get(kind, 0) for stage in self.stages) for kind in hlo.COLLECTIVES
            },
            "update_collective_bytes": sum(
                sum(stage.collective_bytes.values()) for stage in self.stages if stage.name == "update"
            ),
            "update_minimum_bytes": round(self.work["update"].link_bytes),
            "compile_s": round(sum(stage.seconds for stage in self.stages), 1),
        }


def make_plan(config: ml_collections.ConfigDict, topology: str, only: tuple[str, ...] = ()) -> Plan:
    """Compiles the programs of a step for a slice, or the ones named in `only`.

    Raises:
        ValueError: one line on a bad config, a slice that there is not, or a mesh that does not divide the model.
    """
    config_lib.validate(config)
    model = planned_model(config)
    chip, devices = devices_of(topology)
    mesh = create_device_mesh(mesh_sizes(config, model, len(devices)), devices)
    sizes = flops.Sizes.of(config, model, max(all_buckets(config)), dict(mesh.shape))
    return Plan(config, topology, chip, sizes, _stages(config, model, mesh, sizes, only))


def planned_model(config: ml_collections.ConfigDict) -> ModelConfig:
    """The architecture of the config's folder or, where there is none, of the published model that it is named after.

    Raises:
        ValueError: neither.
    """
    folder = Path(config.model.folder)
    name = next((name for name in PUBLISHED if folder.name.startswith(name)), None)
    architecture = None
    if not folder.exists() and name is not None:
        architecture = parse_model_config(published_config(name), f"the published {name}")
    return make_model_config(config, "tpu", architecture)


def forced_width(config: ml_collections.ConfigDict) -> int:
    """The most tokens that the forced prefix of a reflection can have: each has at least one byte of its text."""
    reflect = config.objective.reflect
    return reflect.max_rationale_len + len(f"<think>{reflect.cue}".encode())


def step_programs(
    config: ml_collections.ConfigDict, model: ModelConfig, mesh: Mesh, bucket: Bucket
) -> tuple[TrainPrograms, TrainState, list[tuple[Program, tuple]]]:
    """The programs of a step, the state that they are for, and each with its arguments as shapes, in order."""
    optimizer = make_optimizer(config)
    state = jax.eval_shape(
        lambda params: TrainState(jnp.int32(0), params, optimizer.init(params)), abstract_model(model)
    )
    state = sharding.place(mesh, state, state_specs(state))
    forbidden_mask: Any = jax.ShapeDtypeStruct((model.text.vocab_size,), bool)
    stop_ids = (0, 1)  # which they are does not matter
    inputs = Inputs(stop_ids, forbidden_mask, model.vision, forced_width(config))
    programs = TrainPrograms.declare(config, inputs, state, optimizer, mesh)
    of_bucket = programs.arguments(bucket, config, inputs, state, mesh)
    return programs, state, [(programs.sampler, (state.params,)), *of_bucket]


def _stages(
    config: ml_collections.ConfigDict, model: ModelConfig, mesh: Mesh, sizes: flops.Sizes, only: tuple[str, ...]
) -> list[Stage]:
    """The programs in the order in which train.py calls them, with what lives beside each."""
    programs, state, calls = step_programs(config, model, mesh, sizes.bucket)
    num_slots = {
        programs.rollout: sizes.num_rollouts * sizes.response_len,
        programs.reflect: forced_width(config) + sizes.response_len,
    }
    has_reference = config.objective.kl_coef > 0
    alive = _given((state,)) | {"reference": _bytes(state.params) if has_reference else 0, "batch": 0}
    allotted = []
    for program, args in calls:
        if program is programs.assemble:  # train.py lets go of them before
            alive |= {"sampler": 0, "prompt_kv": 0}
        given = _given(args, model_is="reference" if program is programs.reference else "params")
        alive["batch"] = max(alive["batch"], given.get("batch", 0))
        made = {}  # what can be counted of what the program takes itself
        if program in num_slots:
            made["branch_kv"] = sizes.prompts * sizes.key_bytes(num_slots[program]) // mesh.size
        elif program is programs.update:
            made |= {"gradients": _bytes(state.params), "activations": sizes.activation_bytes()}
        elif program in (programs.sampler, programs.prefill):
            made["sampler" if program is programs.sampler else "prompt_kv"] = _bytes(program.output(*args))
        if not only or program.name in only:
            allotted.append((program, args, dict(alive), given, made))
        alive |= {part: size for part, size in made.items() if part in ("sampler", "prompt_kv")}
    with ThreadPoolExecutor(max_workers=2) as pool:  # half of the time; more of them would take more memory
        return list(pool.map(lambda each: _compile(*each), allotted))


def _given(args: tuple, model_is: str = "params") -> dict[str, int]:
    """Bytes of a program's arguments by part, on one chip."""
    given: dict[str, int] = {}
    for arg in args:
        if isinstance(arg, TrainState):
            parts = {"params": _bytes(arg.params), "optimizer": _bytes((arg.step, arg.opt_state))}
        elif isinstance(arg, QwenVL):
            parts = {"sampler" if arg.visual is None else model_is: _bytes(arg)}
        else:
            parts = {"prompt_kv" if isinstance(arg, Prefix) else "batch": _bytes(arg)}
        for part, size in parts.items():
            given[part] = given.get(part, 0) + size
    return given


def _bytes(tree: Any) -> int:
    """Of a chip's part of a tree of shapes with shardings; a random key has 4 words."""
    total = 0
    for leaf in jax.tree.leaves(tree):
        shape = leaf.sharding.shard_shape(leaf.shape) if leaf.sharding is not None else leaf.shape
        total += functools.reduce(lambda a, b: a * b, shape, 1) * leaf.dtype.itemsize
    return total


def _compile(
    program: Program, args: tuple, alive: dict[str, int], given: dict[str, int], made: dict[str, int]
) -> Stage:
    """One program; that there is no room for it is a result too."""
    started = time.time()
    collective_bytes: dict[str, int] = {}
    largest_array = largest_gather = 0
    refused = False
    try:
        compiled = program.lower(*args).compile()
        memory: Any = compiled.memory_analysis()
        taken = memory.peak_memory_in_bytes
        text = hlo.Program(str(compiled.as_text()))
        collective_bytes = text.collective_bytes()
        largest_array, largest_gather = text.largest(), text.largest("all-gather")
    except jax.errors.JaxRuntimeError as error:
        found = _NO_ROOM.search(str(error))
        if found is None:
            raise
        taken, refused = int(float(found[1]) * _UNIT[found[2]]), True
    # The compiler may need less than was counted, where it does not keep what it can make again.
    room = max(0, taken - sum(given.values()))
    counted = {}
    for part, size in made.items():
        counted[part] = min(size, room)
        room -= counted[part]
    parts = dict.fromkeys(PARTS, 0) | alive | counted | {"temporaries": room}
    seconds = time.time() - started
    return Stage(program.name, parts, collective_bytes, largest_array, largest_gather, refused, seconds)


@dataclasses.dataclass(frozen=True)
class Change:
    """A setting that takes less at the peak."""

    setting: str
    saves: int  # bytes of a chip at the peak, about
    why: str


def changes(plan: Plan) -> list[Change]:
    """What would lower the peak, from the most to the least."""
    config, sizes, parts = plan.config, plan.sizes, plan.peak.parts
    mesh, pieces = sizes.mesh, sizes.pieces
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
    if parts["reference"]:
        found.append(Change("objective.kl_coef=0", parts["reference"], "no reference parameters (another objective)"))
    if plan.peak.name == "update":
        kept = parts["activations"] + parts["temporaries"]
        if sizes.prompts % (2 * pieces * shards) == 0:
            found.append(
                Change(f"train.microbatches={2 * config.train.microbatches}", kept // 2, "half as many prompts a piece")
            )
        if not config.model.remat:
            found.append(Change("model.remat=True", kept // 2, "each layer computed again in the backward pass"))
    elif sizes.prompts % (2 * pieces * shards) == 0:
        per_prompt = sum(parts[part] for part in ("prompt_kv", "branch_kv", "batch", "temporaries"))
        found.append(Change(f"train.prompts={sizes.prompts // 2}", per_prompt // 2, "half as many prompts a step"))
    if plan.peak.name == "rollout" and (shares := config.rollout.compact_shares):
        copies = int(shares[0] * sizes.num_rollouts * parts["prompt_kv"])
        found.append(
            Change("rollout.compact_shares=()", min(copies, parts["temporaries"]), "no copies of prompts for the tail")
        )
    if parts["sampler"] and mesh["fsdp"] % 2 == 0:
        wider = mesh | {"fsdp": mesh["fsdp"] // 2, "tensor": 2 * mesh["tensor"]}
        if _works(config, sizes.model, wider):
            setting = ", ".join(f"mesh.{axis}={size}" for axis, size in wider.items())
            found.append(Change(setting, parts["sampler"] // 2, "the sampler's copy divided over tensor"))
    found.append(Change("a slice of twice the chips", plan.peak.peak // 2, "at most: what all have stays as it is"))
    return sorted(found, key=lambda change: -change.saves)


def _works(config: ml_collections.ConfigDict, model: ModelConfig, mesh: dict[str, int]) -> bool:
    """Whether a mesh divides the model and the batch."""
    changed = config.copy_and_resolve_references()
    changed.mesh.update(mesh)
    num_devices = mesh["data"] * mesh["fsdp"] * mesh["tensor"]
    try:
        mesh_sizes(changed, model, num_devices)
    except ValueError:
        return False
    return True


def table(plan: Plan) -> str:
    """The plan as text."""
    sizes, limit = plan.sizes, plan.chip.hbm_gib
    shown = [part for part in PARTS if any(stage.parts[part] for stage in plan.stages)]
    tokens, patches = sizes.bucket
    mesh = " x ".join(f"{axis} {size}" for axis, size in sizes.mesh.items())
    lines = [
        f"{plan.config.model.folder} on {plan.topology}: {mesh}; B {sizes.prompts} in {sizes.pieces} pieces, "
        f"G {sizes.num_rollouts}, rows of an update {sizes.num_rows}, P {tokens} tokens with {patches} patches, "
        f"R {sizes.response_len}",
        "",
        f"GiB of a chip's {limit}".ljust(26) + "".join(f"  {part}" for part in [*shown, " peak"]),
    ]
    for stage in plan.stages:
        cells = "".join(f"{stage.parts[part] / GIB:>{len(part) + 2}.2f}" for part in shown)
        mark = "  no room" if stage.refused else "  too much" if stage.peak > limit * GIB else ""
        lines.append(f"{stage.name:<26}{cells}{stage.peak / GIB:>7.2f}{mark}")
    lines += ["", f"{'least seconds':<26}" + "".join(f"{name:>12}" for name in ("tokens", "TFLOP", *flops.BOUNDS))]
    for name, work in plan.work.items():
        floors = "".join(f"{plan.floors[name][bound]:>12.3f}" for bound in flops.BOUNDS)
        lines.append(f"{name:<26}{work.tokens:>12,}{work.flops / 1e12:>12,.0f}{floors}")
    figures = plan.to_json()
    lines.append(
        f"{'a step':<26}{figures['tokens_per_step']:>12,}{figures['flops_per_step'] / 1e12:>12,.0f}"
        + "".join(f"{sum(floor[bound] for floor in plan.floors.values()):>12.3f}" for bound in flops.BOUNDS)
    )
    lines += ["", f"{'GiB a chip receives':<26}" + "".join(f"{kind:>20}" for kind in hlo.COLLECTIVES)]
    for stage in plan.stages:
        if any(stage.collective_bytes.values()):
            cells = "".join(f"{stage.collective_bytes[kind] / GIB:>20.3f}" for kind in hlo.COLLECTIVES)
            lines.append(f"{stage.name:<26}{cells}")
    verdict = "fits" if plan.fits else "does not fit"
    lines += ["", f"{verdict}: the peak is {plan.peak.peak / GIB:.2f} of {limit} GiB, in {plan.peak.name}"]
    if not plan.fits:
        lines.append("what would take less there, about:")
        lines += [f"  {c.saves / GIB:>7.2f} GiB  {c.setting:<44}{c.why}" for c in changes(plan) if c.saves > 0]
    return "\n".join(lines)


def candidates(config: ml_collections.ConfigDict, topology: str) -> list[ml_collections.ConfigDict]:
    """Every mesh, up to the config's prompts in halves, and micro-batches that work, from the lowest floor a prompt up.

    Left out is what cannot fit: its parameters, optimizer, reference and caches alone take more than a chip has.
    """
    model = planned_model(config)
    chip, devices = devices_of(topology)
    ranked: list[tuple[float, int, ml_collections.ConfigDict]] = []
    for mesh in factorisations(len(devices)):
        shards = mesh["data"] * mesh["fsdp"]
        for halvings in range(4):
            prompts = config.train.prompts >> halvings
            microbatches = 1
            while prompts % (config.train.minibatches * microbatches * shards) == 0:
                tried = config.copy_and_resolve_references()
                tried.mesh.update(mesh)
                tried.train.update(prompts=prompts, microbatches=microbatches)
                microbatches *= 2
                if not _works(tried, model, mesh):
                    continue
                sizes = flops.Sizes.of(tried, model, max(all_buckets(tried)), mesh)
                if flops.least_bytes(sizes, tried) > chip.hbm_gib * GIB:
                    continue
                ranked.append((flops.least_seconds(sizes, tried, chip) / prompts, len(ranked), tried))
    return [tried for _, _, tried in sorted(ranked, key=lambda entry: entry[:2])]


def sweep(config: ml_collections.ConfigDict, topology: str) -> Plan:
    """The first of the candidates that fits, with a line printed for each that is tried.

    Raises:
        ValueError: none fits.
    """
    for tried in candidates(config, topology):
        plan = make_plan(tried, topology, only=("update",))  # mostly the largest
        if plan.fits:
            plan = make_plan(tried, topology)
        mesh = "x".join(str(size) for size in plan.sizes.mesh.values())
        print(
            f"mesh {mesh}, train.prompts {tried.train.prompts}, train.microbatches {tried.train.microbatches}: "
            f"{plan.peak.peak / GIB:.2f} GiB in {plan.peak.name}",
            flush=True,
        )
        if plan.fits:
            return plan
    raise ValueError(f"--sweep: nothing fits on {topology} with up to {config.train.prompts} prompts; a larger slice?")


def main(config: ml_collections.ConfigDict) -> None:
    """Prints the plan and exits with its code."""
    jax.config.update("jax_platforms", "cpu")  # a plan takes no device, even where there is one
    topology, path = flags.FLAGS.topology, flags.FLAGS.json
    if topology is None:
        raise ValueError("--topology=NAME is needed, as v5p:2x2x2 or v6e:8x8")
    plan = sweep(config, topology) if flags.FLAGS.sweep else make_plan(config, topology)
    print(table(plan))
    if path is not None:
        Path(path).write_text(json.dumps(plan.to_json(), indent=1) + "\n")
    sys.exit(0 if plan.fits else 1)


if __name__ == "__main__":
    flags.DEFINE_string("topology", None, "The slice: v4, v5e, v5p, v6e or tpu7x and its chips along each axis.")
    flags.DEFINE_string("json", None, "A file for the same figures.")
    flags.DEFINE_boolean("sweep", False, "Try meshes, prompts and micro-batches; print the best that fits.")
    cli.run_config(main)
