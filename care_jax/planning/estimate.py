"""A step on a TPU slice: its programs, compiled from shapes on a machine without a TPU, and measured.

The table of step.py is walked for the largest bucket. The memory of a program is the compiler's own figure; the values
that the table keeps alive beside it are added.
"""

from __future__ import annotations

import dataclasses
import functools
import re
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import jax
import ml_collections
from jax.sharding import Mesh

from care_jax import config as config_lib
from care_jax import step
from care_jax.method.objectives import Objective
from care_jax.models import ModelConfig, abstract_model
from care_jax.models.config_json import parse_model_config
from care_jax.models.published import PUBLISHED, published_config
from care_jax.models.trained import partition, reference_part
from care_jax.parallel import sharding
from care_jax.parallel.mesh import create_device_mesh
from care_jax.planning import flops, hlo
from care_jax.planning.chips import GIB, Chip, devices_of
from care_jax.planning.sizes import Sizes
from care_jax.rewards.response_format import OPENING
from care_jax.stages.compiled import Call, all_buckets, make_programs, trace
from care_jax.stages.model import make_model_config, mesh_sizes
from care_jax.stages.optimizer import make_optimizer
from care_jax.stages.table import Bucket, Setup
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


class Bytes(NamedTuple):
    """Bytes that one run of a program moves, a part of them once for each stream that it goes through."""

    fixed: float
    a_stream: float

    def of(self, streams: int) -> float:
        """The bytes of a run through so many streams of each shard, over all minibatches."""
        return self.fixed + streams * self.a_stream


class Loop(NamedTuple):
    """The loops of a program over the streams of a shard."""

    streams: int  # of a minibatch, if all of them are full
    times: int  # minibatches

    def bytes_of(self, text: hlo.HloModule, count: Callable[[hlo.HloModule], float]) -> Bytes:
        """The bytes that `count` finds in a program, split by their dependence on the number of streams."""
        fixed, with_one = count(text.with_streams(0)), count(text.with_streams(1))
        return Bytes(fixed, (with_one - fixed) / self.times)


@dataclasses.dataclass(frozen=True)
class StageMemory:
    """One program of a step on one chip."""

    name: str
    parts: dict[str, int]  # bytes of what lives while it runs, by PARTS; they add up to the peak
    collective_bytes: dict[str, int]  # received over the links, by kind; none where it was refused
    hbm_bytes: Bytes  # read and written
    received_bytes: Bytes  # over the links
    waited_bytes: Bytes  # those of them that nothing hides
    streams: int  # that each shard goes through if all are full, over all minibatches
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
    sizes: Sizes
    stages: list[StageMemory]
    num_hosts: int

    @property
    def peak(self) -> StageMemory:
        """The stage that takes most."""
        return max(self.stages, key=lambda stage: stage.peak)

    @property
    def fits(self) -> bool:
        """Every program finds room, with all that lives beside it."""
        return not any(stage.refused for stage in self.stages) and self.peak.peak <= self.chip.hbm_gib * GIB

    @functools.cached_property
    def work(self) -> dict[str, flops.Work]:
        """The least work of each stage."""
        return flops.step_work(self.sizes, self.config)

    @functools.cached_property
    def floors(self) -> dict[str, dict[str, float]]:
        """Least seconds by stage and by what bounds it; over the links those of what the program receives."""
        received = {s.name: sum(s.collective_bytes.values()) for s in self.stages if not s.refused}
        floors = {name: flops.floors(self.sizes, work, self.chip) for name, work in self.work.items()}
        for name in floors.keys() & received.keys():
            floors[name]["links"] = received[name] / self.chip.link_bytes_per_s
        return floors

    @property
    def least_seconds(self) -> float:
        """The least of a step: its stages run one after another, each as long as what bounds it most."""
        return sum(max(floor.values()) for floor in self.floors.values())

    def to_json(self) -> dict[str, Any]:
        """The figures that --json writes.

        `parts` gives each part at the stage where it is largest; the parts of one stage add up to its peak.
        """
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
            "least_s": self.least_seconds,
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
        InputError: one line on a bad config, a slice that there is not, or a mesh that does not divide the model.
    """
    config_lib.validate(config)
    model = planned_model(config)
    chip, devices = devices_of(topology)
    mesh = create_device_mesh(mesh_sizes(config, model, len(devices)), devices)
    sizes = Sizes.of(config, model, max(all_buckets(config)), dict(mesh.shape))
    num_hosts = len({device.process_index for device in devices})
    return Plan(config, topology, chip, sizes, measure(config, model, mesh, sizes, only), num_hosts)


def planned_model(config: ml_collections.ConfigDict) -> ModelConfig:
    """The architecture of the config's folder or, where there is none, of the published model that it is named after.

    Raises:
        InputError: neither.
    """
    folder = Path(config.model.folder)
    name = next((name for name in PUBLISHED if folder.name.startswith(name)), None)
    architecture = None
    if not folder.exists() and name is not None:
        architecture = parse_model_config(published_config(name), f"the published {name}")
    return make_model_config(config, "tpu", architecture)


def forced_width_bound(config: ml_collections.ConfigDict) -> int:
    """The most tokens that the forced prefix of a reflection can have: each has at least one byte of its text."""
    reflect = config.objective.reflect
    return reflect.max_rationale_len + len(f"{OPENING}{reflect.cue}".encode())


def planned_setup(config: ml_collections.ConfigDict, model: ModelConfig, mesh: Mesh) -> Setup:
    """The setup of a step's programs, from shapes alone."""
    optimizer = make_optimizer(config)
    state = jax.eval_shape(lambda params: TrainState.start(params, optimizer), abstract_model(model))
    state = sharding.place(mesh, state, state_specs(state))
    return Setup(
        config=config,
        objective=Objective.from_config(config.objective),
        mesh=mesh,
        num_prompts=config.train.prompts,
        num_rollouts=config.rollout.num_rollouts,
        temperature=config.rollout.temperature,
        stop_ids=(0, 1),  # which they are does not matter
        forbidden_mask=jax.ShapeDtypeStruct((model.text.vocab_size,), bool),
        image_spec=model.vision,
        num_forced=forced_width_bound(config),
        params=state.params,
        reference=reference_part(state.params) if config.objective.kl_coef > 0 else None,
        state=state,
        optimizer=optimizer,
    )


def planned_calls(config: ml_collections.ConfigDict, model: ModelConfig, mesh: Mesh, bucket: Bucket) -> Iterator[Call]:
    """The programs of a step with their arguments as shapes, in order; nothing is compiled."""
    setup = planned_setup(config, model, mesh)
    table = step.STEP.when(config)
    return trace(table, make_programs(table, setup), setup, bucket)


def measure(
    config: ml_collections.ConfigDict, model: ModelConfig, mesh: Mesh, sizes: Sizes, only: tuple[str, ...] = ()
) -> list[StageMemory]:
    """The programs of a step, compiled, with what lives beside each."""
    calls = [call for call in planned_calls(config, model, mesh, sizes.bucket) if not only or call.stage.name in only]
    with ThreadPoolExecutor(max_workers=2) as pool:  # half of the time; more of them would take more memory
        return list(pool.map(lambda call: _compile(call, _made(call, sizes, mesh), _loop(call, config, sizes)), calls))


def _loop(call: Call, config: ml_collections.ConfigDict, sizes: Sizes) -> Loop | None:
    """The loops of the program over streams; None in a program without streams."""
    compute = call.stage.compute
    if compute is None or compute.mode == "decode" or compute.branches(config) == 0:
        return None
    times = sizes.minibatches if compute.mode == "train" else 1
    return Loop(sizes.num_streams(compute.branches(config), times) // times, times)


def _made(call: Call, sizes: Sizes, mesh: Mesh) -> dict[str, int]:
    """Bytes that a program makes on one chip, as far as they can be counted."""
    compute = call.stage.compute
    if compute is not None and compute.mode == "decode":
        forced = call.values[compute.forced].token_ids
        slots = forced.shape[1] * (forced.shape[2] + sizes.response_len)
        own = sizes.key_bytes(slots) + forced.shape[1] * sizes.state_bytes
        return {"branch_kv": sizes.prompts * own // mesh.size}
    if compute is not None and compute.mode == "train":
        return {"gradients": _bytes(partition(call.values["state"].params)[0]), "activations": sizes.activation_bytes()}
    made = _by_part(call.results)
    return {part: made[part] for part in ("sampler", "prompt_kv") if part in made}


# The part that a value counts as; the state is parameters and optimizer, all others are "batch".
_PART_OF = {"params": "params", "reference": "reference", "sampler": "sampler", "prefix": "prompt_kv"}


def _by_part(values: Mapping[str, Any]) -> dict[str, int]:
    """Bytes of values on one chip, by part."""
    parts: dict[str, int] = {}
    if "state" in values:
        state = values["state"]
        parts = {"params": _bytes(state.params), "optimizer": _bytes((state.step, state.opt_state))}
    for name, value in values.items():
        if name == "state" or (name == "params" and "state" in values):  # whose parameters are the same arrays
            continue
        part = _PART_OF.get(name, "batch")
        parts[part] = parts.get(part, 0) + _bytes(value)
    return parts


def _bytes(tree: Any) -> int:
    """Bytes of one chip's shards of `tree`."""
    total = 0
    for leaf in jax.tree.leaves(tree):
        shape = leaf.sharding.shard_shape(leaf.shape) if leaf.sharding is not None else leaf.shape
        total += functools.reduce(lambda a, b: a * b, shape, 1) * leaf.dtype.itemsize
    return total


_COUNTS: tuple[Callable[[hlo.HloModule], float], ...] = (
    lambda text: text.hbm_bytes().total(),
    lambda text: sum(text.collective_bytes().values()),
    lambda text: sum(text.collective_bytes(waited=True).values()),
)


def _compile(call: Call, made: Mapping[str, int], loop: Loop | None) -> StageMemory:
    """Compiles one program and measures it; that there is no room for it is a result too."""
    started = time.time()
    collective_bytes: dict[str, int] = {}
    largest_array = largest_gather = 0
    moved = received = waited = Bytes(0, 0)
    refused = False
    try:
        compiled = call.program.lower(*call.args).compile()
        memory: Any = compiled.memory_analysis()
        taken = memory.peak_memory_in_bytes
        text = hlo.HloModule(str(compiled.as_text()), num_streams=loop.streams if loop else None)
        collective_bytes = text.collective_bytes()
        moved, received, waited = ((loop or Loop(0, 1)).bytes_of(text, count) for count in _COUNTS)
        largest_array, largest_gather = text.largest(), text.largest("all-gather")
    except jax.errors.JaxRuntimeError as error:
        found = _NO_ROOM.search(str(error))
        if found is None:
            raise
        taken, refused = int(float(found[1]) * _UNIT[found[2]]), True
    # The compiler may need less than was counted: it need not keep what it can make again.
    given = _by_part({name: call.values[name] for name in call.stage.takes})
    room = max(0, taken - sum(given.values()))
    counted = {}
    for part, size in made.items():
        counted[part] = min(size, room)
        room -= counted[part]
    parts = dict.fromkeys(PARTS, 0) | _by_part(call.values) | counted | {"temporaries": room}
    return StageMemory(
        name=call.stage.name,
        parts=parts,
        collective_bytes=collective_bytes,
        hbm_bytes=moved,
        received_bytes=received,
        waited_bytes=waited,
        streams=loop.streams * loop.times if loop else 0,
        largest_array=largest_array,
        largest_gather=largest_gather,
        refused=refused,
        seconds=time.time() - started,
    )
