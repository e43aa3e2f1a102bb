"""Device programs, compiled ahead of time for every bucket: one alone, and those of a table of stages.

A call outside the buckets is an error and not a silent compilation (a new image size costs minutes on a TPU).
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, NamedTuple

import jax
import ml_collections
import numpy as np
from absl import logging
from jax.sharding import Mesh, NamedSharding

from care_jax.parallel.processes import ALL_ROWS, HostShare, exchange
from care_jax.parallel.sharding import ROWS, WHOLE, fetch_rows, is_addressable, named, on_shards, place
from care_jax.stages.table import Bucket, DeviceStage, HostStage, Setup, Table, value_of
from care_jax.structs import Prompts

EVERY_BUCKET = (0, 0)  # of a program whose shapes do not depend on the prompts
# Gathers run beside products instead of before them. The TPU compiler's own choice is to wait for each.
_ASYNCHRONOUS: dict[str, Any] = {
    "xla_enable_async_all_gather": True,
    "xla_tpu_enable_async_collective_fusion": True,
    "xla_tpu_enable_async_collective_fusion_fuse_all_gather": True,
    "xla_tpu_enable_async_collective_fusion_multiple_steps": True,
    "xla_tpu_overlap_compute_collective_tc": True,
}
_MOST_AT_ONCE = 8  # compilations; each takes gigabytes of the host's memory for a large model


def bucket_of(prompts: Prompts) -> Bucket:
    """The bucket a batch was padded to."""
    return prompts.token_ids.shape[1], prompts.patches.shape[1]


def all_buckets(config: ml_collections.ConfigDict) -> list[Bucket]:
    """Every pair of a prompt and a patch bucket."""
    return list(itertools.product(config.data.prompt_buckets, config.data.patch_buckets))


class Program:
    """A function compiled ahead of time for the shapes and shardings of its arguments, once for every bucket.

    Args:
        name: what logs and plans call it.
        function: arrays to arrays.
        mesh: the devices.
        specs: makes the PartitionSpecs of arguments and results from the arguments, as `sharding.on_shards` takes
            them: the function then runs on each device's part. Without it the function sees whole arrays.
        out_shardings: how the results of a function without `specs` are divided.
        donate: arguments whose memory the results may take.
    """

    def __init__(
        self,
        name: str,
        function: Callable,
        mesh: Mesh,
        *,
        specs: Callable[..., tuple[tuple, Any]] | None = None,
        out_shardings: Any = None,
        donate: tuple[int, ...] = (),
    ):
        """See the class; nothing is compiled yet."""
        self.name, self.function = name, function
        self._mesh, self._specs, self.out_shardings = mesh, specs, out_shardings
        if specs is not None:
            function = on_shards(mesh, function, specs)
        on_tpus = mesh.size > 1 and mesh.devices.flat[0].platform == "tpu"
        options = _ASYNCHRONOUS if on_tpus else None
        self._jitted = jax.jit(function, donate_argnums=donate, out_shardings=out_shardings, compiler_options=options)
        self.compiled: dict[Bucket, Any] = {}  # by `compile_all`

    def lower(self, *args: Any) -> jax.stages.Lowered:
        """The program for the shapes and shardings of `args`, traced and not yet compiled."""
        return self._jitted.lower(*args)

    def output(self, *args: Any) -> Any:
        """Shapes and shardings of the result for those of `args`; nothing is compiled."""
        shapes = jax.eval_shape(self._jitted, *args)
        shardings = self.out_shardings
        if self._specs is not None:
            shardings = named(self._mesh, self._specs(*args)[1])
        return jax.tree.map(
            lambda x, sharding: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding),
            shapes,
            jax.tree.broadcast(shardings, shapes),
        )

    def __call__(self, bucket: Bucket, *args: Any) -> Any:
        """The result for arguments of a bucket that `compile_all` has compiled."""
        return self.compiled[bucket](*args)


def make_program(stage: DeviceStage, setup: Setup) -> Program:
    """The program of a stage; nothing is compiled yet."""
    function = stage.function(setup)
    donate = tuple(stage.takes.index(name) for name in stage.donates)
    if not stage.on_shards:
        shardings = NamedSharding(setup.mesh, ROWS) if stage.out_shardings is None else stage.out_shardings(setup)
        return Program(stage.name, function, setup.mesh, out_shardings=shardings, donate=donate)

    def specs(*args: Any) -> tuple[tuple, Any]:
        given = tuple(value_of(name).specs_of(arg) for name, arg in zip(stage.takes, args, strict=True))
        return given, _result_specs(stage, function, args)

    return Program(stage.name, function, setup.mesh, specs=specs, donate=donate)


def _result_specs(stage: DeviceStage, function: Callable, args: tuple) -> Any:
    """PartitionSpecs of a stage's one result; it is traced only if they depend on its shape."""
    specs = value_of(stage.gives[0]).specs
    return specs(jax.eval_shape(function, *args)) if callable(specs) else specs


def make_programs(table: Table, setup: Setup) -> dict[str, Program]:
    """The programs of the stages that run on devices, by stage name; none is compiled yet."""
    return {stage.name: make_program(stage, setup) for stage in table.stages if isinstance(stage, DeviceStage)}


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

    @property
    def identity(self) -> Any:
        """Equal for two calls that are the same program, as those of a stage are that depends on no bucket."""
        leaves, tree = jax.tree.flatten(self.args)
        stage = self.stage
        shardings, of_shardings = jax.tree.flatten(self.program.out_shardings)
        settings = (stage.takes, stage.gives, stage.on_shards, tuple(shardings), of_shardings, stage.donates)
        return self.program.function, settings, tree, tuple(leaves)

    @functools.cached_property
    def results(self) -> dict[str, Any]:
        """The values it gives."""
        return self.stage.results(self.program.output(*self.args), self.values)


def trace(table: Table, programs: Mapping[str, Program], setup: Setup, bucket: Bucket) -> Iterator[Call]:
    """Walks a table with shapes in place of arrays and yields the call of each program."""
    values, ends = table.start(setup, bucket), table.ends()
    last_draw = next((stage for stage in reversed(table.stages) if stage.is_drawing), None)
    for stage in table.stages:
        if isinstance(stage, HostStage):
            for name, shape in zip(stage.puts, stage.shapes(setup, bucket), strict=True):
                values[name] = place(setup.mesh, shape, value_of(name).specs_of(shape))
        else:
            call = Call(stage, programs[stage.name], dict(values))
            yield call
            values |= call.results
        for name in ends[stage.name]:
            values.pop(name, None)
        if stage is last_draw:
            for name in table.freed_after_drawing():
                values.pop(name, None)


class _Job(NamedTuple):
    """A program to compile for one bucket."""

    name: str
    identity: Any  # equal for two of which one is compiled in place of both
    lower: Callable[[], jax.stages.Lowered]
    compiled: dict[Any, Any]  # gets the result, under `key`
    key: Any


class CompiledStages:
    """The stages of a table that a config switches on, to be compiled by `compile_all` for every bucket.

    Args:
        table: the table.
        setup: what its programs are made for.
        buckets: the sizes of prompts to compile for.
        share: the rows that this process's host reads.
    """

    def __init__(self, table: Table, setup: Setup, buckets: Sequence[Bucket], share: HostShare = ALL_ROWS):
        """See the class; nothing is compiled yet."""
        self.table = table.when(setup.config)
        self.ends = self.table.ends()
        given = {name for stage in self.table.stages for name in stage.gives}
        self.taken_by_host = self.table.taken_by_host() | {name for name in given if value_of(name).must_be_finite}
        self.read_by_host = self.taken_by_host | {*self.table.logged}
        self.step = 0  # the step under way, for messages; the loop sets it
        self._given_by: dict[str, str] = {}  # value -> the stage that gave it last
        self._objective = setup.objective
        self._programs = make_programs(self.table, setup)
        self._copies_to_all: dict[str, Any] = {}
        self._setup, self._buckets, self.is_compiled = setup, buckets, False
        self._is_copied = share.is_whole and not is_addressable(setup.mesh)  # before the host reads

    def jobs(self) -> Iterator[_Job]:
        """The programs of all buckets, each to be lowered before the next is asked for."""
        for bucket in self._buckets:
            for call in trace(self.table, self._programs, self._setup, bucket):
                lower = functools.partial(call.program.lower, *call.args)
                yield _Job(call.program.name, call.identity, lower, call.program.compiled, _size(call.stage, bucket))
                if self._is_copied:
                    yield from self._copies(call.results)

    def _copies(self, values: Mapping[str, Any]) -> Iterator[_Job]:
        """With several processes, the gathering that precedes a host read, once for each value.

        Its shapes are the same in every bucket.
        """
        copy = jax.jit(lambda x: x, out_shardings=NamedSharding(self._setup.mesh, WHOLE))
        for name, value in values.items():  # in this order on every process
            if name in self.read_by_host:
                part = value_of(name).read(value, self._objective)
                leaves, tree = jax.tree.flatten(part)
                lower = functools.partial(copy.lower, part)
                yield _Job(f"the copies of {name}", (tree, *leaves), lower, self._copies_to_all, name)

    def run(self, stage: DeviceStage, bucket: Bucket, values: Mapping[str, Any]) -> dict[str, Any]:
        """Starts a stage's program on the values it takes; returns the values it gives, perhaps not computed yet."""
        args = (values[name] for name in stage.takes)
        self._given_by |= dict.fromkeys(stage.gives, stage.name)
        return stage.results(self._programs[stage.name](_size(stage, bucket), *args), values)

    def fetch(self, name: str, value: Any) -> Any:
        """The part of a value that the host reads, as NumPy arrays with the rows of the host's share.

        Raises:
            FloatingPointError: the value must be finite and is not, in the rows of one process; then all raise it.
        """
        part = value_of(name).read(value, self._objective)
        if name not in self._copies_to_all:
            fetched = fetch_rows(part)
        else:
            fetched = jax.tree.map(lambda x: np.asarray(x.addressable_data(0)), self._copies_to_all[name](part))
        if value_of(name).must_be_finite:
            problem = _not_finite(fetched, f"step {self.step}, stage {self._given_by.get(name, 'unknown')}")
            if problems := [told for told in exchange(problem) if told]:
                raise FloatingPointError(problems[0])
        return fetched


def compile_all(*tables: CompiledStages) -> None:
    """Compiles the programs of tables, in threads, since XLA works without Python's lock.

    It takes minutes for a large model. Programs that are alike are compiled once.
    """
    compiling: dict[Any, Future] = {}
    jobs: list[_Job] = []
    with ThreadPoolExecutor(min(os.cpu_count() or 1, _MOST_AT_ONCE), thread_name_prefix="compile") as pool:
        try:
            for job in itertools.chain.from_iterable(table.jobs() for table in tables):
                if job.identity not in compiling:
                    compiling[job.identity] = pool.submit(_compile, job.name, job.lower())
                jobs.append(job)
            for job in jobs:
                job.compiled[job.key] = compiling[job.identity].result()
        finally:
            pool.shutdown(cancel_futures=True)  # of what is left after an error
    for table in tables:
        table.is_compiled = True


def _compile(name: str, lowered: jax.stages.Lowered) -> jax.stages.Compiled:
    started = time.time()
    compiled = lowered.compile()
    logging.info("compiled %s in %.1f s", name, time.time() - started)
    return compiled


def _size(stage: DeviceStage, bucket: Bucket) -> Bucket:
    return EVERY_BUCKET if stage.of_every_bucket else bucket


def _not_finite(values: Any, where: str) -> str:
    """Says, naming `where`, that floats of host arrays, in any tree, are NaN or infinite; "" if none is."""
    floats = [
        (jax.tree_util.keystr(path, simple=True, separator="."), x)
        for path, x in jax.tree_util.tree_leaves_with_path(values)
        if np.issubdtype(x.dtype, np.floating)
    ]
    bad = [f"{np.sum(~np.isfinite(x))} of {x.size} in {name}" for name, x in floats if not np.isfinite(x).all()]
    if not bad:
        return ""
    return (
        f"{where}: not finite: {', '.join(bad)}. The last checkpoint is from before this step: if its weights are "
        "sound, go on with a lower learning rate or a smaller optimizer.clip_norm"
    )
