"""Checkpoints with Orbax: state and data iterator in one step folder, asynchronous, best and last kept.

Parameters are stored by dotted name, so that a checkpoint outlives the classes that wrote it.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import grain
import jax
import numpy as np
import orbax.checkpoint as ocp
import tensorstore as ts
from orbax.checkpoint.checkpoint_managers import preservation_policy

from care_jax.models import params_to_dict
from care_jax.structs import TrainState

Index = tuple[int | slice, ...]

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


def _abstract(tree: Any) -> Any:
    """Shapes, types and shardings to restore into."""
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), tree)


def _save_args(tree: Any) -> Any:
    """How Orbax cuts the leaves of `tree` into chunks; those of stacked matrices [L, in, out] lie within a layer."""

    def of(x: Any) -> ocp.SaveArgs:
        if math.prod(x.shape) * x.dtype.itemsize <= _WHOLE_BYTES:
            return ocp.SaveArgs()
        return ocp.SaveArgs(chunk_byte_size=_CHUNK_BYTES, shard_axes=(0,) if len(x.shape) == 3 else ())

    return jax.tree.map(of, tree)


class Checkpointer:
    """The checkpoints of a run folder, under `workdir/checkpoints`."""

    def __init__(self, workdir: Path, *, keep_last: int, best_metric: str):
        best = preservation_policy.BestN(
            get_metric_fn=lambda metrics: metrics[best_metric], n=1, keep_checkpoints_without_metrics=False
        )
        options = ocp.CheckpointManagerOptions(
            preservation_policy=preservation_policy.AnyPreservationPolicy(
                [preservation_policy.LatestN(keep_last), best]
            ),
            enable_async_checkpointing=True,
        )
        self._manager = ocp.CheckpointManager((workdir / "checkpoints").absolute(), options=options)

    @property
    def latest_step(self) -> int | None:
        """The newest complete step, or None."""
        return self._manager.latest_step()

    def save(self, state: TrainState, iterator: grain.DatasetIterator, metrics: dict[str, float] | None) -> None:
        """Starts writing in the background; `metrics` decide what is best (None: not evaluated at this step)."""
        params, opt_state = params_to_dict(state.params), _by_path(state.opt_state)
        items = ocp.args.Composite(
            params=ocp.args.StandardSave(params, save_args=_save_args(params)),
            opt_state=ocp.args.StandardSave(opt_state, save_args=_save_args(opt_state)),
            data=grain.checkpoint.CheckpointSave(iterator),
        )
        self._manager.save(int(state.step), args=items, metrics=metrics, force=True)

    def restore(self, state: TrainState, iterator: grain.DatasetIterator) -> TrainState:
        """The newest state, in the structure and shardings of `state`; sets `iterator` to where it was."""
        step = self._manager.latest_step()
        restored = self._manager.restore(
            step,
            args=ocp.args.Composite(
                params=ocp.args.StandardRestore(_abstract(params_to_dict(state.params))),
                opt_state=ocp.args.StandardRestore(_abstract(_by_path(state.opt_state))),
                data=grain.checkpoint.CheckpointRestore(iterator),
            ),
        )
        params = jax.tree.unflatten(
            jax.tree.structure(state.params), [restored.params[name] for name in params_to_dict(state.params)]
        )
        return TrainState(
            step=jax.numpy.full_like(state.step, step),
            params=params,
            opt_state=_like(state.opt_state, restored.opt_state),
        )

    def wait(self) -> None:
        """Blocks until everything that was started is on disk."""
        self._manager.wait_until_finished()

    def close(self) -> None:
        """Waits, then frees the manager's threads."""
        self._manager.close()


def find_params(path: Path) -> Path:
    """The folder of the newest parameters under a run folder, its checkpoints, one step, or a converted model.

    Raises:
        ValueError: there is no finished checkpoint at `path`.
    """
    path = Path(path)
    for folder in (path, path / "params"):
        if (folder / "_METADATA").is_file() and folder.name == "params":
            return folder
    for root in (path / "checkpoints", path):
        steps = [int(file.parts[-3]) for file in root.glob("*/params/_METADATA") if file.parts[-3].isdigit()]
        if steps:
            return root / str(max(steps)) / "params"
    raise ValueError(f"no finished checkpoint in {path}; give a run folder, its checkpoints folder or one step of it")


def _saved(folder: Path) -> dict[str, ocp.metadata.ArrayMetadata]:
    """Shapes, types and chunks of the parameters in `folder`, by name."""
    # From the handler: a checkpointer also asks for a file that the parameters of a run do not have, and warns.
    return ocp.PyTreeCheckpointHandler().metadata(folder).tree


def load_params(path: Path) -> dict[str, jax.Array]:
    """float32 parameters by dotted name from a run, a checkpoint or a converted model, on this process's first device.

    Whatever devices and types wrote them: Orbax's default is the shardings they were saved with, which need those
    devices.
    """
    folder = find_params(path).absolute()
    here = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    target = {name: jax.ShapeDtypeStruct(x.shape, np.float32, sharding=here) for name, x in _saved(folder).items()}
    with ocp.StandardCheckpointer() as checkpointer:
        return checkpointer.restore(folder, target)


@dataclasses.dataclass(frozen=True)
class StoredParam:
    """A parameter on disk, in the type it was saved with."""

    shape: tuple[int, ...]
    dtype: np.dtype
    chunk_shape: tuple[int, ...]  # the least that is read
    store: ts.TensorStore

    def read(self, index: Index) -> ts.Future[np.ndarray]:
        """Starts reading a part of it."""
        future = self.store[index].read()
        future.force()
        return future


def open_params(path: Path) -> dict[str, StoredParam]:
    """The parameters that `load_params` would load, to be read in parts and on the host.

    Raises:
        ValueError: there is no finished checkpoint at `path`.
    """
    folder = find_params(path).absolute()
    saved = _saved(folder)
    stores = {
        name: ts.open(
            {"driver": "zarr", "kvstore": {"driver": "ocdbt", "base": f"file://{folder}/", "path": f"{name}/"}},
            read=True,
        )
        for name in saved
    }
    return {
        name: StoredParam(tuple(x.shape), np.dtype(x.dtype), tuple(x.storage.chunk_shape), stores[name].result())
        for name, x in saved.items()
    }


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


def save_params(path: Path, params: Mapping[str, StreamedParam]) -> None:
    """Writes parameters alone, as `path/params`, for `load_params`. Atomic: Orbax renames when all is written."""
    registry = ocp.type_handlers.create_type_handler_registry(
        (StreamedParam, _StreamHandler()), (jax.Array, ocp.type_handlers.ArrayHandler())
    )
    # Trained weights hardly compress, and doing it takes longer than writing them.
    handler = ocp.PyTreeCheckpointHandler(use_compression=False, type_handler_registry=registry)
    args = ocp.args.PyTreeSave(dict(params), save_args=_save_args(params))
    with ocp.Checkpointer(handler) as checkpointer:
        checkpointer.save((Path(path) / "params").absolute(), args)
