"""The seconds that a step is expected to take, by stage, from its compiled programs and a made-up step's lengths.

A compiled program has static shapes, but its loops end with the data: over streams, and over the tokens of a decode.
Their trips are counted for a made-up step (workload.py), whose streams are packed as a step packs them, and whose
prompts lie in the chunks of a step's prefill; all shards take as many turns as the fullest. Stages run one after
another. Each takes the longer of its arithmetic and its traffic with HBM, at the rates that programs reach
(chips.REACHED), and then the transfers for which the compiled program waits.

* Arithmetic is that of streams of both lengths, with their padding and what the backward pass recomputes. Attention
  kernels on TPUs skip what lies after a token; XLA and cuDNN are counted with all pairs of a stream.
* Traffic of streams is read from the compiled program, as if all were long, and of a prefill as if its
  chunks had all sizes equally often. A decode reads the weights, and prompts and slots of the branches that are still
  in its batch, times what the compiled loop moves above that at full length.
* A host's work between programs is a constant for each token, and the devices wait for it. Encoding runs ahead of them.

Evaluations, checkpoints and the start are not counted, nor what lies between the kernels of a program.
"""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple

import ml_collections
import numpy as np
import numpy.typing as npt

from care_jax import step
from care_jax.planning.chips import Rates
from care_jax.planning.decode import Decode, phases
from care_jax.planning.estimate import Plan, StageMemory, forced_width_bound
from care_jax.planning.passes import Pass
from care_jax.planning.sizes import Sizes
from care_jax.planning.speed import keys_read, useful_pass
from care_jax.planning.workload import Averages, Workload, draw
from care_jax.stages.packing import StreamSizes, pack, shorter_len, stream_patches
from care_jax.stages.prefill import ChunkSizes
from care_jax.stages.table import DeviceStage, HostStage

# Seconds of a host for each token that a stage works on: 256 rollouts and 32 repairs of 2,048 tokens
# (docs/performance.md, "The host").
HOST_SECONDS = {
    "verify": 0.100 / 256 / 2048,
    "force": 0.083 / 32 / 2048,
    "verify repairs": 0.100 / 32 / 2048,
    "log": 0.004 / 256 / 2048,  # behind the stages of a step
}
_WINDOW_KEYS = 3 * 512  # that the TPU kernel computes for a patch: its block of a stream and those beside it


class Cost(NamedTuple):
    """One stage of a step."""

    name: str
    timer: str  # its seconds are in `time/<timer>` of a run's metrics
    seconds: float
    compute: float = 0.0  # seconds, of its arithmetic alone
    memory: float = 0.0
    links: float = 0.0
    # Streams or chunks that each shard goes through, or tokens that are decoded one after the other.
    turns: float = 0
    padded: float = 0.0  # seconds, were every prompt, and every row of every group, computed and padded
    moved: float = 0.0  # bytes of one chip
    needed: float = 0.0  # of these, parameters, state and keys
    useful: float = 0.0  # FLOPs of all chips, of true lengths, without what is computed again

    def times(self, repeats: int) -> Cost:
        """The cost of so many runs."""
        return Cost(*self[:2], *(value * repeats for value in self[2:]))


@dataclasses.dataclass(frozen=True)
class Expected:
    """A step of a plan."""

    costs: list[Cost]
    num_tokens: int  # of the responses that the step samples
    chips: float
    peak_flops: float  # of all chips

    @property
    def seconds(self) -> float:
        """The whole step."""
        return sum(cost.seconds for cost in self.costs)

    @property
    def useful_mfu(self) -> float:
        """FLOPs that true lengths need over what the chips could do in that time."""
        return sum(cost.useful for cost in self.costs) / (self.seconds * self.peak_flops)

    @property
    def padded_seconds(self) -> float:
        """The step if prefill, score, reference and update computed all prompts and rows in their full length."""
        return sum(cost.padded for cost in self.costs)

    def tokens_a_dollar(self, price: float) -> float:
        """Response tokens for a dollar, at a price in dollars of a chip and hour."""
        return self.num_tokens / (self.seconds / 3600 * self.chips * price)

    def by_timer(self) -> dict[str, float]:
        """Seconds by the timer of a run's metrics."""
        timers: dict[str, float] = {}
        for cost in self.costs:
            timers[cost.timer] = timers.get(cost.timer, 0.0) + cost.seconds
        return timers

    def to_json(self, price: float | None) -> dict[str, Any]:
        """The figures that --json writes."""
        useful = sum(cost.useful for cost in self.costs)
        return {
            "seconds": round(self.seconds, 3),
            "useful_mfu": round(self.useful_mfu, 4),
            "padded_seconds": round(self.padded_seconds, 3),
            "padded_useful_mfu": round(useful / (self.padded_seconds * self.peak_flops), 4),
            "response_tokens": self.num_tokens,
            "tokens_per_chip_hour": round(self.tokens_a_dollar(1.0)),
            **({"tokens_per_dollar": round(self.tokens_a_dollar(price))} if price is not None else {}),
            "stages": {cost.name: {k: v for k, v in cost._asdict().items() if k != "name"} for cost in self.costs},
        }


def expect(plan: Plan, averages: Averages, rates: Rates) -> Expected:
    """The expected step of a plan whose steps have these averages, on devices that reach these rates."""
    config, sizes = plan.config, plan.sizes
    workload = draw(config, averages, sizes.bucket, sizes.model.vision.window_len)
    counter = _Counter(plan, workload, rates)
    programs = {program.name: program for program in plan.stages}
    costs = []
    for stage in step.STEP.when(config).stages:
        repeats = workload.num_draws if stage.is_drawing else 1
        if isinstance(stage, HostStage):
            costs += [counter.host(stage.name, stage.timer, repeats)] if stage.name in HOST_SECONDS else []
        elif stage.name in programs:
            costs.append(counter.program(stage, programs[stage.name]).times(repeats))
    costs.append(counter.host("log", "log", 1))
    return Expected(
        costs=costs,
        num_tokens=int(workload.rollouts.sum()) * workload.num_draws,
        chips=sizes.num_chips / plan.chip.devices,
        peak_flops=sizes.num_chips * plan.chip.peak_flops,
    )


@dataclasses.dataclass(frozen=True)
class _Counter:
    """The costs of a workload's stages."""

    plan: Plan
    workload: Workload
    rates: Rates

    @property
    def _config(self) -> ml_collections.ConfigDict:
        return self.plan.config

    @property
    def _sizes(self) -> Sizes:
        return self.plan.sizes

    def host(self, name: str, timer: str, repeats: int) -> Cost:
        """The work of a host on its rows, which are all with dynamic sampling."""
        rows = {"force": self.workload.forced, "verify repairs": self.workload.repaired}
        num_tokens = int(rows.get(name, self.workload.rollouts).sum())
        sharing = 1 if self._config.objective.dynamic_sampling else self.plan.num_hosts
        seconds = repeats * HOST_SECONDS[name] * num_tokens / sharing
        return Cost(name, timer, seconds, padded=seconds)

    def program(self, stage: DeviceStage, program: StageMemory) -> Cost:
        """One run of a program."""
        if stage.compute is None:
            return self._cost(stage, program, 0, 0.0, program.hbm_bytes.fixed)
        if stage.compute.mode == "decode":
            return self._decode(stage, program, is_repair=stage.compute.forced != "unforced")
        if stage.compute.branches(self._config) == 0:
            return self._prefill(stage, program)
        packing = next(name for name in stage.takes if name in self.workload.rows)
        return self._streams(stage, program, self.workload.rows[packing])

    def _cost(
        self,
        stage: DeviceStage,
        program: StageMemory,
        turns: int,
        compute: float,
        moved: float,
        **more: float,
    ) -> Cost:
        """The cost of FLOPs and bytes of one chip."""
        rates = self.rates
        received, waited = (
            b.of(turns) / rates.link_bytes_per_s for b in (program.received_bytes, program.waited_bytes)
        )
        parts = compute / rates.flops, moved / rates.bytes_per_s
        seconds = max(*parts, received - waited) + waited
        return Cost(
            stage.name, stage.timer, seconds, *parts, received, turns, moved=moved, **({"padded": seconds} | more)
        )

    def _whole(self) -> float:
        """Bytes of all parameters as one chip reads them."""
        return self._sizes.num_params * self._sizes.weight_bytes / self._sizes.mesh["tensor"]

    def _pass(self, tokens: int, patches: int) -> Pass:
        """The pass over one sequence of tokens and patches, as it is computed; without the head."""
        sizes, in_blocks = self._sizes, self._sizes.model.attention.startswith("splash")
        pairs = tokens * (tokens + 1) / 2 if in_blocks else tokens**2
        windows = patches * min(patches, _WINDOW_KEYS) if in_blocks else patches**2
        tower = sizes.tower_flops(patches, patches**2, windows)
        return Pass(tokens, tower, sizes.decoder_flops(tokens, pairs), 0.0)

    def _prefill(self, stage: DeviceStage, program: StageMemory) -> Cost:
        sizes, tensor = self._sizes, self._sizes.mesh["tensor"]
        lengths = ChunkSizes.of(sizes.bucket, merge_unit=sizes.model.vision.merge_unit, tensor=tensor)
        chunks = lengths.computed(self.workload.lengths, sizes.row_shards)
        computed = sum(num_prompts * self._pass(*size).flops for num_prompts, size in chunks) / tensor
        useful = useful_pass(sizes, self.workload.prompts, np.zeros((sizes.prompts, 1)))
        padded = self._padded(stage.name, turns=len(chunks))
        more = {"needed": len(chunks) * self._whole(), "useful": useful.flops, "padded": padded}
        return self._cost(stage, program, len(chunks), computed, program.hbm_bytes.fixed, **more)

    def _streams(self, stage: DeviceStage, program: StageMemory, row_len: npt.NDArray[np.int32]) -> Cost:
        """A pass over streams of a workload's rows, or an update."""
        sizes, workload = self._sizes, self.workload
        assert stage.compute is not None
        is_update = stage.compute.mode == "train"
        turns, num_long, num_targets = self._turns(row_len, sizes.minibatches if is_update else 1)
        patches = stream_patches(sizes.stream_len, sizes.bucket, sizes.response_len)
        long, short = (self._pass(n, patches) for n in (sizes.stream_len, shorter_len(sizes.stream_len)))
        parts = (num_long * one + (turns - num_long) * other for one, other in zip(long, short, strict=True))
        computed = Pass(*parts)._replace(head=2 * num_targets * sizes.head)
        used = workload.prompts.only(np.any(row_len, axis=1))
        useful = useful_pass(sizes, used, row_len)
        backward, whole, needed = sizes.backward, self._whole(), turns * self._whole()
        work, done = useful.flops, computed.flops
        if is_update:
            work = useful.updated(backward)
            done = computed.updated(backward) + computed.recomputed(backward, remat=sizes.model.remat)
            needed = 2 * turns * whole + self.plan.work[stage.name].state_bytes / sizes.num_chips
        more = {"needed": needed, "useful": work, "padded": self._padded(stage.name)}
        return self._cost(stage, program, turns, done / sizes.mesh["tensor"], program.hbm_bytes.of(turns), **more)

    def _padded(self, name: str, turns: int = 1) -> float:
        """Seconds of a pass at once over all rows in their full length, by a program that gathers `turns` times."""
        floors, chip, rates = self.plan.floors[name], self.plan.chip, self.rates
        bound = max(
            floors["compute"] * chip.peak_flops / rates.flops,
            floors["memory"] * chip.hbm_bytes_per_s / rates.bytes_per_s,
        )
        return bound + floors["links"] / turns * chip.link_bytes_per_s / rates.link_bytes_per_s

    def _turns(self, row_len: npt.NDArray[np.int32], parts: int) -> tuple[int, int, int]:
        """Streams that all shards go through together, those of full length, and the most tokens of a shard's rows."""
        sizes = self._sizes
        shape = StreamSizes.of(self._config, sizes.bucket, row_len.shape[1], shards=sizes.row_shards, parts=parts)
        streams = pack(shape, self.workload.lengths, row_len).streams
        longest = (np.asarray(streams.group) > 0).sum(axis=1).reshape(sizes.row_shards, -1).max(axis=0)  # by turn
        num_targets = np.asarray(streams.num_targets).reshape(sizes.row_shards, -1).sum(axis=1).max()
        return int((longest > 0).sum()), int((longest > shorter_len(sizes.stream_len)).sum()), int(num_targets)

    def _decode(self, stage: DeviceStage, program: StageMemory, *, is_repair: bool) -> Cost:
        """A decode until all branches have ended; those that are left become smaller batches."""
        sizes, workload, rates = self._sizes, self.workload, self.rates
        lengths = workload.repaired if is_repair else workload.rollouts
        forced = workload.forced if is_repair else np.zeros_like(lengths)
        width = forced_width_bound(self._config) if is_repair else 0
        decode = Decode(sizes, lengths.shape[1], width)
        above = program.hbm_bytes.fixed / decode.bytes_read(decode.full) or 1.0
        # Forced tokens of all prompts go through the model at once.
        computed = before = decode.forced_flops()
        moved, seconds, num_tokens = 0.0, before / rates.flops, 0
        for phase in phases(lengths.reshape(decode.shards, -1), self._config.rollout.compact_shares):
            of_phase = decode.flops(phase), above * decode.bytes_read(phase)
            seconds += max(of_phase[0] / rates.flops, of_phase[1] / rates.bytes_per_s)
            computed, moved, num_tokens = computed + of_phase[0], moved + of_phase[1], phase.end
        received = program.received_bytes.fixed * num_tokens / sizes.response_len / rates.link_bytes_per_s

        weights = decode.weights(int(lengths.max(initial=0)))
        prompts = workload.prompts._replace(tokens=workload.prompts.tokens + forced.max(axis=1))
        return Cost(
            stage.name,
            stage.timer,
            seconds + received,
            compute=computed / rates.flops,
            memory=moved / rates.bytes_per_s,
            links=received,
            turns=num_tokens,
            padded=seconds + received,
            moved=moved,
            needed=weights + sizes.cache_bytes(keys_read(prompts, lengths), lengths.sum()) / sizes.num_chips,
            useful=self._decode_flops(lengths, forced),
        )

    def _decode_flops(self, lengths: npt.NDArray[np.int32], forced: npt.NDArray[np.int32]) -> float:
        """FLOPs of sampled and forced tokens behind their prompts."""
        used = self.workload.prompts.only(np.any(lengths, axis=1))
        with_rows, without = (useful_pass(self._sizes, used, rows) for rows in (lengths + forced, 0 * lengths))
        head = 2 * float(lengths.sum()) * self._sizes.head  # forced tokens need none
        return with_rows.layers - without.layers + head
