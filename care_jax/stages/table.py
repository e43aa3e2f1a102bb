"""Tables of stages: what a stage takes and gives by name, how values are divided, and how long they live.

step.py holds the tables. Four things walk one: training runs it, `CompiledStages` compiles it for every bucket, a plan
measures the memory beside each program, and flops.py counts its work. So a stage more or less is one row.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Literal, NamedTuple

import jax
import ml_collections
import numpy as np
import optax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from care_jax.inputs.images import ImageSpec
from care_jax.method.objectives import Objective
from care_jax.models import QwenVL
from care_jax.models.cache import PREFIX_SPECS
from care_jax.models.model_config import VisionConfig
from care_jax.parallel.sharding import ROWS, WHOLE, gathered, is_addressable, param_specs, place
from care_jax.stages.program import EVERY_BUCKET, Bucket, Program
from care_jax.stages.rollout import Sampling
from care_jax.stages.train_state import TrainState, state_specs
from care_jax.structs import Array


@dataclasses.dataclass(frozen=True)
class Setup:
    """What the programs of a table are made for."""

    config: ml_collections.ConfigDict
    objective: Objective
    mesh: Mesh
    prompts: int  # B
    num_rollouts: int  # G
    temperature: float  # of the rollouts; 0 decodes greedily
    stop_ids: tuple[int, ...]
    forbidden_mask: Array  # [V] bool
    image_spec: ImageSpec | VisionConfig
    params: QwenVL  # shapes with shardings
    num_forced: int = 0  # tokens of the longest forced prefix of a reflection
    # What is trained, as shapes with shardings, and how; None in an evaluation.
    state: TrainState | None = None
    optimizer: optax.GradientTransformation | None = None

    @property
    def sampling(self) -> Sampling:
        """How the rollouts are drawn."""
        rollout = self.config.rollout
        return Sampling(
            response_len=rollout.response_len,
            temperature=self.temperature,
            stop_ids=self.stop_ids,
            compact_shares=tuple(rollout.compact_shares),
        )


@dataclasses.dataclass(frozen=True)
class Value:
    """How a value is divided among the devices, what the host reads of it, and whether it outlives its step."""

    specs: PartitionSpec | Callable[[Any], Any] = ROWS  # or from the value to its tree of PartitionSpecs
    read: Callable[[Any, Objective], Any] = lambda value, objective: value  # the part that the host reads
    lasting: bool = False  # lives on when the step has ended

    def specs_of(self, value: Any) -> Any:
        """PartitionSpecs of the value (arrays or shapes): a tree, or one for all its leaves."""
        return self.specs if isinstance(self.specs, PartitionSpec) else self.specs(value)


# All values but those that are divided by prompts and read whole.
VALUES: dict[str, Value] = {
    "state": Value(state_specs, lasting=True),
    "params": Value(param_specs, lasting=True),  # the state's, not a copy
    "reference": Value(param_specs, lasting=True),
    "forbidden_mask": Value(WHOLE, lasting=True),
    "unforced": Value(lasting=True),
    "key": Value(WHOLE, lasting=True),
    "sampler": Value(lambda sampler: gathered(param_specs(sampler))),
    "prefix": Value(lambda prefix: PREFIX_SPECS),
    # Dynamic sampling puts batches together anew, for which it needs all parts of a rollout.
    "rollouts": Value(read=lambda x, objective: x if objective.dynamic_sampling else x.replace(states=None)),
    "scores": Value(read=lambda scores, objective: scores.replace(think_states=None)),
    "repair_scores": Value(read=lambda scores, objective: scores.replace(think_states=None)),
    "batch": Value(read=lambda batch, objective: batch.replace(prompts=None)),
    "update_metrics": Value(WHOLE),
}
_BY_PROMPT = Value()


def value_of(name: str) -> Value:
    """The entry of VALUES, or that of a value which is divided by prompts and read whole."""
    return VALUES.get(name, _BY_PROMPT)


@dataclasses.dataclass(frozen=True)
class Compute:
    """What a stage computes with the model for every prompt; flops.py counts it."""

    mode: Literal["forward", "decode", "train"]
    branches: Callable[[ml_collections.ConfigDict], int]  # of full length, of a prompt


def _always(config: ml_collections.ConfigDict) -> bool:
    return True


@dataclasses.dataclass(frozen=True)
class DeviceStage:
    """A row whose function is a compiled program.

    The program takes the values named in `takes` in that order. Where `on_shards` holds it runs on each device's part
    of them (shard_map), else on whole arrays whose results are divided like prompts, or as `out_shardings` says.
    """

    name: str  # of the program, in logs, plans and floors
    timer: str  # its seconds are `time/<timer>` in the metrics
    takes: tuple[str, ...]
    gives: tuple[str, ...]
    function: Callable[[Setup], Callable]
    on_shards: bool = True
    out_shardings: Callable[[Setup], Any] | None = None
    donates: tuple[str, ...] = ()
    # From the result, and the values so far, to the values it gives; None: the result is the one value.
    unpack: Callable[[Any, Mapping[str, Any]], dict[str, Any]] | None = None
    is_on: Callable[[ml_collections.ConfigDict], bool] = _always
    of_every_bucket: bool = False  # its shapes depend on no bucket
    random: int | None = None  # folded into the step's key to give the value "key"; no number comes twice in a table
    is_drawing: bool = False  # dynamic sampling repeats it until the batch is full
    compute: Compute | None = None

    def results(self, output: Any, values: Mapping[str, Any]) -> dict[str, Any]:
        """The values that an output (arrays or shapes) gives."""
        return {self.gives[0]: output} if self.unpack is None else self.unpack(output, values)

    def program(self, setup: Setup) -> Program:
        """The program; nothing is compiled yet."""
        function = self.function(setup)
        donate = tuple(self.takes.index(name) for name in self.donates)
        if not self.on_shards:
            shardings = NamedSharding(setup.mesh, ROWS) if self.out_shardings is None else self.out_shardings(setup)
            return Program(self.name, function, setup.mesh, out_shardings=shardings, donate=donate)

        def specs(*args: Any) -> tuple[tuple, Any]:
            given = tuple(value_of(name).specs_of(arg) for name, arg in zip(self.takes, args, strict=True))
            return given, value_of(self.gives[0]).specs_of(jax.eval_shape(function, *args))

        return Program(self.name, function, setup.mesh, specs=specs, donate=donate)


@dataclasses.dataclass(frozen=True)
class HostStage:
    """A row whose function runs on the host, on NumPy copies of the values it takes.

    Of what it gives, `puts` goes to the devices; the rest stays on the host.
    """

    name: str
    timer: str
    takes: tuple[str, ...]
    gives: tuple[str, ...]
    function: Callable[..., dict[str, Any]]  # (host services, *values taken) -> the values given
    puts: tuple[str, ...]
    shapes: Callable[[Setup, Bucket], tuple[Any, ...]]  # of the values in `puts`
    is_on: Callable[[ml_collections.ConfigDict], bool] = _always
    is_drawing: bool = False


Stage = DeviceStage | HostStage


@dataclasses.dataclass(frozen=True)
class Call:
    """A program of a table, and the values that are alive while it runs, as shapes with shardings."""

    stage: DeviceStage
    program: Program
    values: dict[str, Any]  # its arguments are among them

    @property
    def args(self) -> tuple:
        """The arguments, in the program's order."""
        return tuple(self.values[name] for name in self.stage.takes)

    @functools.cached_property
    def results(self) -> dict[str, Any]:
        """The values it gives."""
        return self.stage.results(self.program.output(*self.args), self.values)


class Phases(NamedTuple):
    """The stages of a table, cut at those that dynamic sampling repeats."""

    opening: tuple[Stage, ...]
    drawing: tuple[Stage, ...]
    learning: tuple[Stage, ...]


@dataclasses.dataclass(frozen=True)
class Table:
    """Stages in order of time, and what is there around them."""

    stages: tuple[Stage, ...]
    # The values that are there before the first stage, as shapes with shardings, for a bucket.
    start: Callable[[Setup, Bucket], dict[str, Any]]
    logged: tuple[str, ...] = ()  # values that the log reads when the last stage has run

    def when(self, config: ml_collections.ConfigDict) -> Table:
        """The table of the stages that a config switches on."""
        return dataclasses.replace(self, stages=tuple(stage for stage in self.stages if stage.is_on(config)))

    def phases(self) -> Phases:
        """The stages before, in and after the part that dynamic sampling repeats."""
        draws = [number for number, stage in enumerate(self.stages) if stage.is_drawing]
        first, end = min(draws), max(draws) + 1
        return Phases(self.stages[:first], self.stages[first:end], self.stages[end:])

    def ends(self) -> dict[str, list[str]]:
        """Stage name -> the values whose device memory is free after it: nothing takes or logs them any more."""
        last = {name: stage for stage in self.stages for name in stage.takes}
        giver = {name: stage for stage in self.stages for name in stage.gives}
        ends: dict[str, list[str]] = {stage.name: [] for stage in self.stages}
        for name, end in last.items():
            if name not in giver or name in self.logged or value_of(name).lasting:
                continue
            if end.is_drawing and not giver[name].is_drawing:  # the next draw takes it again
                end = self.phases().learning[0]
            ends[end.name].append(name)
        return ends

    def read_by_host(self) -> set[str]:
        """The values of which the host needs a copy."""
        return {name for stage in self.stages if isinstance(stage, HostStage) for name in stage.takes} | {*self.logged}

    def programs(self, setup: Setup) -> dict[str, Program]:
        """The programs of the stages that run on devices, by stage name; none is compiled yet."""
        return {stage.name: stage.program(setup) for stage in self.stages if isinstance(stage, DeviceStage)}

    def trace(self, programs: Mapping[str, Program], setup: Setup, bucket: Bucket) -> Iterator[Call]:
        """Walks the table with shapes in place of arrays and yields the call of each program."""
        values, ends = self.start(setup, bucket), self.ends()
        for stage in self.stages:
            if isinstance(stage, HostStage):
                for name, shape in zip(stage.puts, stage.shapes(setup, bucket), strict=True):
                    values[name] = place(setup.mesh, shape, value_of(name).specs_of(shape))
            else:
                call = Call(stage, programs[stage.name], dict(values))
                yield call
                values |= call.results
            for name in ends[stage.name]:
                values.pop(name, None)


class CompiledStages:
    """The stages of a table that a config switches on, compiled for every bucket.

    Args:
        table: the table.
        setup: what its programs are made for.
        buckets: the sizes of prompts to compile for.
    """

    def __init__(self, table: Table, setup: Setup, buckets: Sequence[Bucket]):
        """Compiles; takes minutes for a large model."""
        self.table = table.when(setup.config)
        self.ends = self.table.ends()
        self.read_by_host = self.table.read_by_host()
        self._objective = setup.objective
        self._programs = self.table.programs(setup)
        self._copies_to_all: dict[str, Any] = {}
        for bucket in buckets:
            for call in self.table.trace(self._programs, setup, bucket):
                size = _size(call.stage, bucket)
                if not call.program.is_compiled(size):
                    call.program.compile(size, *call.args)
                if not is_addressable(setup.mesh):
                    self._compile_copies(setup.mesh, call.results)

    def _compile_copies(self, mesh: Mesh, values: Mapping[str, Any]) -> None:
        """Several processes: what the host reads is first copied whole to all. The shapes depend on no bucket."""
        copy = jax.jit(lambda x: x, out_shardings=NamedSharding(mesh, WHOLE))
        for name in values.keys() & self.read_by_host - self._copies_to_all.keys():
            part = value_of(name).read(values[name], self._objective)
            self._copies_to_all[name] = copy.lower(part).compile()

    def run(self, stage: DeviceStage, bucket: Bucket, values: Mapping[str, Any]) -> dict[str, Any]:
        """Starts a stage's program on the values it takes; returns the values it gives, perhaps not computed yet."""
        args = (values[name] for name in stage.takes)
        return stage.results(self._programs[stage.name](_size(stage, bucket), *args), values)

    def fetch(self, name: str, value: Any) -> Any:
        """What the host reads of a value that a device stage gave, as NumPy arrays, whole on every process."""
        part = value_of(name).read(value, self._objective)
        if name not in self._copies_to_all:
            return jax.device_get(part)
        return jax.tree.map(lambda x: np.asarray(x.addressable_data(0)), self._copies_to_all[name](part))


def _size(stage: DeviceStage, bucket: Bucket) -> Bucket:
    return EVERY_BUCKET if stage.of_every_bucket else bucket
