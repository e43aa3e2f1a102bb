"""Tables of stages: what a stage takes and gives by name, how values are divided, and how long they live.

step.py holds the table of a step. Five things walk it: training runs it, compiled.py compiles it for every bucket, a
plan measures the memory of each program, flops.py counts its work and expected.py its seconds. So a stage more or less
is one row.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any, Literal, NamedTuple, Protocol, runtime_checkable

import ml_collections
import optax
from jax.sharding import Mesh

from care_jax.method.importance import Correction
from care_jax.method.objectives import Objective
from care_jax.models import QwenVL
from care_jax.models.cache import PREFIX_SPECS
from care_jax.parallel.sharding import ROWS, WHOLE, gathered, num_shards, param_specs, sampler_mesh
from care_jax.stages.packing import Bucket, StreamSizes
from care_jax.stages.rollout import Sampling
from care_jax.stages.train_state import TrainState, state_specs


@runtime_checkable
class PatchSizes(Protocol):
    """The sizes of one patch; both a processor's image settings and a model's vision config have them."""

    @property
    def frame_values(self) -> int:
        """Values of one frame of a patch."""
        ...

    @property
    def patch_values(self) -> int:
        """Values of one patch with all its frames."""
        ...

    @property
    def grid_cells(self) -> int:
        """X, cells of the learned position grid that a patch takes its position from."""
        ...


@dataclasses.dataclass(frozen=True)
class Setup:
    """The sizes, devices and settings that the programs of a table are made for."""

    config: ml_collections.ConfigDict
    objective: Objective
    mesh: Mesh
    num_prompts: int  # B
    num_rollouts: int  # G
    temperature: float  # of the rollouts; 0 decodes greedily
    stop_ids: tuple[int, ...]
    forbidden_mask: Any  # [V] bool, an array or its shape
    image_spec: PatchSizes
    params: QwenVL  # shapes with shardings
    reference: QwenVL | None = None  # trained.reference_part, as shapes with shardings; None: there is no KL
    num_forced: int = 0  # tokens of the longest forced prefix of a reflection
    # What is trained, as shapes with shardings, and how; None in an evaluation.
    state: TrainState | None = None
    optimizer: optax.GradientTransformation | None = None

    @property
    def sampling(self) -> Sampling:
        """Settings of the rollouts' draws."""
        rollout = self.config.rollout
        return Sampling(
            response_len=rollout.response_len,
            temperature=self.temperature,
            stop_ids=self.stop_ids,
            compact_shares=tuple(rollout.compact_shares),
        )

    @property
    def correction(self) -> Correction | None:
        """The update's correction for the sampler, if there is one."""
        return Correction.from_config(self.config)

    @functools.cached_property
    def sampler_mesh(self) -> Mesh:
        """The devices as decoding divides the model among them; see stages/sampler.py."""
        return sampler_mesh(self.mesh, self.config.rollout.tensor) if self.sampler_is_apart else self.mesh

    @property
    def sampler_is_apart(self) -> bool:
        """True if decoding has another layout than the rest."""
        return self.config.rollout.tensor not in (0, self.mesh.shape["tensor"])

    def prompt_dims(self, bucket: Bucket) -> dict[str, int]:
        """The dimensions of `Prompts` in a bucket, by the letters of structs.py."""
        spec = self.image_spec
        values = spec.patch_values if self.config.data.videos else spec.frame_values
        return {"B": self.num_prompts, "P": bucket[0], "I": bucket[1], "F": values, "X": spec.grid_cells}

    def response_dims(self, num_responses: int) -> dict[str, int]:
        """The dimensions of `Rollouts` and `Verdicts` with so many responses a prompt."""
        return {"B": self.num_prompts, "G": num_responses, "R": self.config.rollout.response_len}

    def stream_sizes(self, bucket: Bucket, num_rows: int, *, parts: int = 1) -> StreamSizes:
        """The shape of a packing of so many rows a prompt."""
        return StreamSizes.of(self.config, bucket, num_rows, shards=num_shards(self.mesh), parts=parts)


@dataclasses.dataclass(frozen=True)
class Value:
    """A value's division among the devices, the part that the host reads, and whether it outlives its step."""

    specs: Any = ROWS  # a PartitionSpec, a tree of them, or a function from the value to one
    read: Callable[[Any, Objective], Any] = lambda value, objective: value  # the part that the host reads
    lasting: bool = False  # lives on when the step has ended
    must_be_finite: bool = False  # the host looks at its floats before another stage takes them

    def specs_of(self, value: Any) -> Any:
        """PartitionSpecs of the value (arrays or shapes): a tree, or one for all its leaves."""
        return self.specs(value) if callable(self.specs) else self.specs


# All values but those that are divided by prompts and read whole.
VALUES: dict[str, Value] = {
    "state": Value(state_specs, lasting=True),
    "params": Value(param_specs, lasting=True),  # the state's, not a copy
    "reference": Value(param_specs, lasting=True),  # the part of that policy that is none of the params'
    "forbidden_mask": Value(WHOLE, lasting=True),
    "unforced": Value(lasting=True),
    "key": Value(WHOLE, lasting=True),
    "sampler": Value(lambda sampler: gathered(param_specs(sampler))),
    "prefix": Value(PREFIX_SPECS),
    # Dynamic sampling puts batches together anew, for which it needs all parts of a rollout.
    "rollouts": Value(
        read=lambda x, objective: x if objective.dynamic_sampling else x.replace(states=None), must_be_finite=True
    ),
    "scores": Value(read=lambda scores, objective: scores.replace(think_states=None), must_be_finite=True),
    "repaired": Value(must_be_finite=True),
    "repair_scores": Value(read=lambda scores, objective: scores.replace(think_states=None), must_be_finite=True),
    "batch": Value(read=lambda batch, objective: batch.replace(prompts=None), must_be_finite=True),
    "update_metrics": Value(WHOLE, must_be_finite=True),
}
_BY_PROMPT = Value()


def value_of(name: str) -> Value:
    """The entry of VALUES, or that of a value which is divided by prompts and read whole."""
    return VALUES.get(name, _BY_PROMPT)


@dataclasses.dataclass(frozen=True)
class Compute:
    """A stage's work with the model, for every prompt; flops.py counts it."""

    mode: Literal["forward", "decode", "train"]
    branches: Callable[[ml_collections.ConfigDict], int]  # of full length, of a prompt
    forced: str = "unforced"  # the value with the tokens that decoding starts from


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


@dataclasses.dataclass(frozen=True)
class HostStage:
    """A row whose function runs on the host, on host copies of the values it takes: this process's rows of them.

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

    def __post_init__(self) -> None:
        """Refuses a row that takes what an earlier one gave away.

        Raises:
            ValueError: naming the row.
        """
        donated: set[str] = set()
        for stage in self.stages:
            if lost := donated & set(stage.takes):
                raise ValueError(
                    f"stage {stage.name} takes {', '.join(sorted(lost))}, whose memory is given away before it"
                )
            if isinstance(stage, DeviceStage):
                donated -= set(stage.gives)
                donated |= {name for name in stage.donates if name not in stage.gives}
                donated |= {"params"} if "state" in stage.donates else set()  # the state's parameters

    def when(self, config: ml_collections.ConfigDict) -> Table:
        """The table of the stages that a config switches on."""
        return dataclasses.replace(self, stages=tuple(stage for stage in self.stages if stage.is_on(config)))

    def phases(self) -> Phases:
        """The stages before, in and after the part that dynamic sampling repeats."""
        draws = [number for number, stage in enumerate(self.stages) if stage.is_drawing]
        first, end = min(draws), max(draws) + 1
        if len(draws) < end - first:
            raise ValueError(
                f"stages that draw are neighbours; {self.stages[first].name} to {self.stages[end - 1].name}"
            )
        return Phases(self.stages[:first], self.stages[first:end], self.stages[end:])

    def given_anew(self) -> set[str]:
        """The values that each draw of dynamic sampling gives anew and that are used after the last draw."""
        phases = self.phases()
        used = {name for stage in phases.learning for name in stage.takes} | {*self.logged}
        return used & {name for stage in phases.drawing for name in stage.gives}

    def ends(self) -> dict[str, list[str]]:
        """Stage name -> the values that no later stage takes, so that their device memory is free.

        A value that each draw of dynamic sampling takes is not among them; see `freed_after_drawing`. Neither are those
        that the last stage takes or gives.
        """
        ends: dict[str, list[str]] = {stage.name: [] for stage in self.stages}
        for name, end in self._last_uses().items():
            if name not in self._opened_for_drawing() and end is not self.stages[-1]:
                ends[end.name].append(name)
        return ends

    def freed_after_drawing(self) -> list[str]:
        """The values that only drawing stages take and that were given before them."""
        last = self._last_uses()
        return [name for name in self._opened_for_drawing() if last[name].is_drawing]

    def _last_uses(self) -> dict[str, Stage]:
        """The last stage that takes each value which a stage of this step gives."""
        given = {name for stage in self.stages for name in stage.gives if not value_of(name).lasting}
        return {name: stage for stage in self.stages for name in stage.takes if name in given}

    def _opened_for_drawing(self) -> list[str]:
        """The values given before the drawing stages that have their last use in them."""
        before = {name for stage in self.stages for name in stage.gives if not stage.is_drawing}
        return [name for name, end in self._last_uses().items() if end.is_drawing and name in before]

    def taken_by_host(self) -> set[str]:
        """The values that host stages take."""
        return {name for stage in self.stages if isinstance(stage, HostStage) for name in stage.takes}
