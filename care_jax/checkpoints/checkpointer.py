"""Checkpoints with Orbax: state and data iterator in one step folder, asynchronous, best and last kept.

Parameters are stored by dotted name, so that a checkpoint outlives the classes that wrote it. Beside the arrays lies a
checksum of each, taken on the devices: what comes back is what was trained, whatever disk and network did to it.
"""

from __future__ import annotations

import dataclasses
import json
import math
import sys
import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import grain
import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import tensorstore as ts
from etils import epath
from orbax.checkpoint.checkpoint_managers import preservation_policy

from care_jax import files
from care_jax.checkpoints.array_store import Index, StoredParam, open_arrays, read_arrays
from care_jax.models import params_to_dict
from care_jax.parallel.processes import exchange
from care_jax.stages.train_state import TrainState

# Arrays above the first size are stored in chunks of at most the second, so that a part can be read without the rest:
# by another mesh, or by an export.
_WHOLE_BYTES, _CHUNK_BYTES = 4 * 2**20, 64 * 2**20


def _by_path(tree: Any) -> dict[str, jax.Array]:
    """Leaves of any pytree by their key path."""
    return {jax.tree_util.keystr(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}


def _like(tree: Any, leaves: dict[str, jax.Array]) -> Any:
    """The inverse of `_by_path`, in the structure of `tree`."""
    names = [jax.tree_util.keystr(path) for path, _ in jax.tree_util.tree_leaves_with_path(tree)]
    return jax.tree.unflatten(jax.tree.structure(tree), [leaves[name] for name in names])


def _save_args(tree: Any) -> Any:
    """How Orbax cuts the leaves of `tree` into chunks; those of stacked matrices [L, in, out] lie within a layer."""

    def of(x: Any) -> ocp.SaveArgs:
        if math.prod(x.shape) * x.dtype.itemsize <= _WHOLE_BYTES:
            return ocp.SaveArgs()
        return ocp.SaveArgs(chunk_byte_size=_CHUNK_BYTES, shard_axes=(0,) if len(x.shape) == 3 else ())

    return jax.tree.map(of, tree)


Sums = dict[str, dict[str, jax.Array]]


def checksums(state: TrainState) -> Sums:
    """A uint32 for each array of params and opt_state, the same on every mesh; any one changed bit changes it.

    Sum of (2 i + 1) times the bits of element i, modulo 2^32: integers, so the order of summation is free. Computed
    where the arrays are, and asynchronously.
    """
    return _checksums(_named_arrays(state))


@jax.jit
def _checksums(arrays: dict[str, dict[str, jax.Array]]) -> Sums:
    def of(x: jax.Array) -> jax.Array:
        unsigned = {1: jnp.uint8, 2: jnp.uint16, 4: jnp.uint32}[x.dtype.itemsize]
        index = jnp.zeros(x.shape, jnp.uint32)
        for axis, size in enumerate(x.shape):
            index = index * jnp.uint32(size) + jax.lax.broadcasted_iota(jnp.uint32, x.shape, axis)
        bits = jax.lax.bitcast_convert_type(x, unsigned).astype(jnp.uint32)
        return jnp.sum(bits * (jnp.uint32(2) * index + jnp.uint32(1)), dtype=jnp.uint32)

    return jax.tree.map(of, arrays)


def _named_arrays(state: TrainState) -> dict[str, dict[str, jax.Array]]:
    """What is stored of a state: folder -> name -> array."""
    return {"params": params_to_dict(state.params), "opt_state": _by_path(state.opt_state)}


class Checkpointer:
    """The checkpoints of a run folder, under `workdir/checkpoints`."""

    def __init__(self, workdir: epath.PathLike, *, keep_last: int, best_metric: str):
        best = preservation_policy.BestN(
            get_metric_fn=lambda metrics: metrics[best_metric], n=1, keep_checkpoints_without_metrics=False
        )
        options = ocp.CheckpointManagerOptions(
            preservation_policy=preservation_policy.AnyPreservationPolicy(
                [preservation_policy.LatestN(keep_last), best]
            ),
            enable_async_checkpointing=True,
            cleanup_tmp_directories=True,  # what a kill left half written; they would fill the disk
        )
        # What several devices have, one of them writes; to share that out among them, Orbax would compile slices.
        array_handler = ocp.type_handlers.ArrayHandler(use_replica_parallel=False)
        registry = ocp.type_handlers.create_type_handler_registry((jax.Array, array_handler))
        handlers: dict[str, ocp.CheckpointHandler] = {
            "params": ocp.PyTreeCheckpointHandler(type_handler_registry=registry),
            "opt_state": ocp.PyTreeCheckpointHandler(type_handler_registry=registry),
            "data": ocp.JsonCheckpointHandler(),
            "checksums": ocp.JsonCheckpointHandler(),
        }
        folder = files.anywhere(workdir) / "checkpoints"
        self._manager = ocp.CheckpointManager(folder, options=options, item_handlers=handlers)
        self._checksums: Callable[[dict], Sums] = _checksums

    def warm_up(self, state: TrainState) -> None:
        """Compiles what `checksums` and `save` compute on the devices."""
        self._checksums = _checksums.lower(_named_arrays(state)).compile()
        exchange(None)

    def checksums(self, state: TrainState) -> Sums:
        """For `save`, started now: while the device is still at work, and before it is at other work."""
        return self._checksums(_named_arrays(state))

    @property
    def latest_step(self) -> int | None:
        """The newest complete step, or None."""
        return self._manager.latest_step()

    def save(
        self,
        state: TrainState,
        iterator: grain.DatasetIterator,
        metrics: dict[str, float] | None,
        *,
        sums: Sums | None = None,
    ) -> None:
        """Copies the state to the host, and starts to write it in the background; waits for a save still under way.

        `metrics` decide what is best (None: not evaluated at this step). `sums` are the state's `checksums`; without
        them they are computed now, which on a busy device means after what it is doing.
        """
        arrays, sums = _named_arrays(state), jax.device_get(sums or self.checksums(state))
        items = ocp.args.Composite(
            **{name: ocp.args.PyTreeSave(tree, save_args=_save_args(tree)) for name, tree in arrays.items()},
            data=ocp.args.JsonSave(iterator.get_state()),  # the same on every process
            checksums=ocp.args.JsonSave(jax.tree.map(int, sums) | {"data": _crc(iterator.get_state())}),
        )
        self._manager.save(int(state.step), args=items, metrics=metrics, force=True)

    def restore(self, state: TrainState, iterator: grain.DatasetIterator) -> TrainState | None:
        """The newest state that is whole, in the structure and shardings of `state`; sets `iterator` to where it was.

        `state` has arrays or ShapeDtypeStructs.

        A damaged checkpoint is told in one line on stderr, renamed to STEP.damaged and passed over. None: there is no
        checkpoint.

        Raises:
            ValueError: all are damaged; nothing is changed then.
        """
        damaged: dict[int, str] = {}
        for step in sorted(self._manager.all_steps(), reverse=True):
            try:
                restored = self._restore(step, state, iterator)
            except ValueError as error:
                damaged[step] = str(error)
                continue
            if damaged:
                self._set_aside(damaged, used=step)
            return restored
        if damaged:
            told = "; ".join(f"step {step}: {problem}" for step, problem in damaged.items())
            raise ValueError(
                f"no checkpoint in {self._manager.directory} is whole ({told}). They are left as they are: put back "
                "a copy of one, or start anew in another --workdir"
            )
        return None

    def _restore(self, step: int, state: TrainState, iterator: grain.DatasetIterator) -> TrainState:
        """Raises ValueError on every process where the checkpoint is damaged on one."""
        folder = self._manager.directory / str(step)
        stored, problem = None, "another process cannot read it"
        try:
            stored = _read_step(folder, state)
        except (OSError, ValueError) as error:
            problem = _one_line(error)
        whole = all(exchange(stored is not None))
        if stored is None or not whole:
            raise ValueError(problem)
        like: Any = state.step
        restored = TrainState(
            step=jax.make_array_from_callback((), like.sharding, lambda _: np.int32(step)),
            params=jax.tree.unflatten(jax.tree.structure(state.params), list(stored.arrays["params"].values())),
            opt_state=_like(state.opt_state, stored.arrays["opt_state"]),
        )
        _check(jax.device_get(checksums(restored)), stored.sums)
        iterator.set_state(stored.position)
        return restored

    def _set_aside(self, damaged: Mapping[int, str], *, used: int) -> None:
        """Renames what was passed over, so that neither a save nor an export meets it."""
        for step, problem in damaged.items() if jax.process_index() == 0 else ():
            folder = self._manager.directory / str(step)
            aside = folder.with_name(f"{step}.damaged")
            if aside.exists():
                aside.rmtree()
            folder.rename(aside)
            print(
                f"warning: the checkpoint of step {step} is damaged ({problem}); that of step {used} is used instead, "
                f"and it is now {aside}",
                file=sys.stderr,
            )
        exchange(None)  # none goes on before the names are right
        self._manager.reload()

    def wait(self) -> None:
        """Blocks until everything that was started is on disk."""
        self._manager.wait_until_finished()

    def close(self) -> None:
        """Waits, then frees the manager's threads."""
        self._manager.close()


def _is_finished(params: epath.Path) -> bool:
    # On gs:// a checkpoint has its name from the start, and a file of its own says that it is finished.
    return (params / "_METADATA").is_file() and ocp.utils.is_checkpoint_finalized(params)


@dataclasses.dataclass(frozen=True)
class _StoredStep:
    """What a step folder holds, read by this process."""

    arrays: dict[str, dict[str, jax.Array]]  # as `_named_arrays`
    sums: dict[str, Any]  # as `checksums`, and "data": a CRC-32 of the position
    position: Any  # state of the data iterator


def _read_step(folder: epath.Path, state: TrainState) -> _StoredStep:
    """Raises OSError or ValueError on a folder that is not whole."""
    sums = _read_json(folder / "checksums" / "metadata")
    position = _read_json(folder / "data" / "metadata")
    if sums.get("data") != _crc(position):
        raise ValueError("data is not what was saved")
    return _StoredStep(
        arrays={name: read_arrays(folder / name, tree) for name, tree in _named_arrays(state).items()},
        sums=sums,
        position=position,
    )


def _check(actual: Mapping[str, Mapping[str, Any]], saved: Mapping[str, Any]) -> None:
    """Raises ValueError naming the arrays whose checksums differ."""
    differing = [
        f"{folder}: {name}"
        for folder, sums in actual.items()
        for name, value in sums.items()
        if saved.get(folder, {}).get(name) != int(value)
    ]
    if differing:
        raise ValueError(f"not what was saved: {', '.join(differing)}")


def _one_line(error: Exception) -> str:
    """The head of a message; tensorstore's go on for pages."""
    return " ".join(str(error).split())[:200]


def _read_json(path: epath.Path) -> dict[str, Any]:
    try:
        values = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise ValueError(f"{path.parent.name}/{path.name} cannot be read: {error}") from error
    if not isinstance(values, dict):
        raise ValueError(f"{path.parent.name}/{path.name} is no JSON object")
    return values


def _crc(position: Any) -> int:
    """CRC-32 of a data iterator's state."""
    return zlib.crc32(json.dumps(position, sort_keys=True).encode())


def find_params(path: epath.PathLike) -> epath.Path:
    """The folder of the newest parameters under a run folder, its checkpoints, one step, or a converted model.

    Raises:
        ValueError: there is no finished checkpoint at `path`.
    """
    path = files.anywhere(path)
    for folder in (path, path / "params"):
        if folder.name == "params" and _is_finished(folder):
            return folder
    for root in (path / "checkpoints", path):
        children = root.iterdir() if root.is_dir() else ()
        steps = [int(child.name) for child in children if child.name.isdigit() and _is_finished(child / "params")]
        if steps:
            return root / str(max(steps)) / "params"
    raise ValueError(f"no finished checkpoint in {path}; give a run folder, its checkpoints folder or one step of it")


def load_params(
    path: epath.PathLike, shardings: Mapping[str, jax.sharding.Sharding] | None = None
) -> dict[str, jax.Array]:
    """float32 parameters by dotted name from a run, a checkpoint or a converted model.

    Each process reads what its devices hold by `shardings`; what these do not name is put on its first device.
    Whatever devices and types wrote them.

    Raises:
        ValueError: there is no finished checkpoint at `path`, or it is damaged.
    """
    folder = find_params(path)
    here = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    try:
        shapes = {name: param.shape for name, param in open_arrays(folder).items()}
        where = {name: (shardings or {}).get(name, here) for name in shapes}
        like = {name: jax.ShapeDtypeStruct(shape, np.float32, sharding=where[name]) for name, shape in shapes.items()}
        params = read_arrays(folder, like)
        sums = folder.parent / "checksums" / "metadata"
        if sums.exists():  # not beside a converted model
            _check(jax.device_get(_checksums({"params": params})), _read_json(sums))
    except ValueError as error:
        raise ValueError(f"{folder} is damaged ({_one_line(error)}); name another step's folder") from error
    return params


def open_params(path: epath.PathLike) -> dict[str, StoredParam]:
    """The parameters that `load_params` would load, to be read in parts and on the host.

    Raises:
        ValueError: there is no finished checkpoint at `path`, or it is damaged.
    """
    return open_arrays(find_params(path))


@dataclasses.dataclass(frozen=True)
class StreamedParam:
    """A parameter to be written part after part, so that it need not fit into memory."""

    shape: tuple[int, ...]
    dtype: np.dtype
    # The parts, as index and values, for the shape of the chunks that are written: best whole ones of them.
    parts: Callable[[tuple[int, ...]], Iterable[tuple[Index, np.ndarray]]]

    @property
    def size(self) -> int:
        """Number of values, as of an array."""
        return math.prod(self.shape)


class _StreamHandler(ocp.type_handlers.NumpyHandler):
    """Writes a StreamedParam as Orbax writes a numpy array: one after the other, and not in the background."""

    async def serialize(
        self,
        values: Sequence[StreamedParam],
        infos: Sequence[ocp.type_handlers.ParamInfo],
        args: Sequence[ocp.SaveArgs] | None = None,
    ) -> list[Any]:
        for value, info, arg in zip(values, infos, args or [ocp.SaveArgs()] * len(values), strict=True):
            await self._background_serialize([value], [info], [arg])
        return []

    async def _open_and_write(self, value: StreamedParam, tspec: dict[str, Any], ts_context: ts.Context) -> None:
        store = await ts.open(ts.Spec(tspec), create=True, open=True, context=ts_context)
        under_way: ts.WriteFutures | None = None
        for index, part in value.parts(tuple(tspec["metadata"]["chunks"])):
            if under_way is not None:
                await under_way
            under_way = store[index].write(part, can_reference_source_data_indefinitely=True)
            under_way.commit.force()  # or it would wait to be waited for, and not go on while the next is made
        if under_way is not None:
            await under_way


def save_params(path: epath.PathLike, params: Mapping[str, StreamedParam]) -> None:
    """Writes parameters alone, as `path/params`, for `load_params`. Atomic: Orbax renames when all is written."""
    registry = ocp.type_handlers.create_type_handler_registry(
        (StreamedParam, _StreamHandler()), (jax.Array, ocp.type_handlers.ArrayHandler())
    )
    # Trained weights hardly compress, and doing it takes longer than writing them.
    handler = ocp.PyTreeCheckpointHandler(use_compression=False, type_handler_registry=registry)
    args = ocp.args.PyTreeSave(dict(params), save_args=_save_args(params))
    with ocp.Checkpointer(handler) as checkpointer:
        checkpointer.save(files.anywhere(path) / "params", args)
