"""The checkpoints of a run with Orbax: state and data iterator in one step folder, asynchronous, best and last kept.

Parameters are stored by dotted name, so that a checkpoint outlives the classes that wrote it. Beside the arrays lies a
checksum of each, which a restore compares.
"""

from __future__ import annotations

import dataclasses
import json
import sys
import zlib
from collections.abc import Callable, Mapping
from typing import Any

import grain
import jax
import numpy as np
import orbax.checkpoint as ocp
from etils import epath
from orbax.checkpoint.checkpoint_managers import preservation_policy

from care_jax import files
from care_jax.checkpoints.array_store import open_arrays, read_arrays, save_args
from care_jax.checkpoints.base import ITEM, Base, read_base
from care_jax.checkpoints.checksums import NamedArrays, Sums, are_finite, checksums, require_equal, require_finite
from care_jax.checkpoints.load import read_json
from care_jax.errors import InputError, one_line, shown
from care_jax.models import QwenVL, params_to_dict
from care_jax.models.trained import combine, partition
from care_jax.parallel.processes import exchange
from care_jax.stages.train_state import TrainState


class Checkpointer:
    """The checkpoints of a run folder, under `workdir/checkpoints`.

    Args:
        workdir: the run folder, local or gs://.
        keep_last: how many of the newest checkpoints are kept; the best one is kept besides.
        best_metric: the metric whose highest value makes a checkpoint the best.
        base: the weights beneath the adapters that are trained; None if there are none.
    """

    def __init__(self, workdir: epath.PathLike, *, keep_last: int, best_metric: str, base: Base | None = None) -> None:
        """Opens the folder, or makes it; removes what a kill left half written.

        Raises:
            InputError: the description of a step is JSON of another form.
        """
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
        # An array that several devices hold is written by one: to share that out among them, Orbax compiles slices.
        array_handler = ocp.type_handlers.ArrayHandler(use_replica_parallel=False)
        registry = ocp.type_handlers.create_type_handler_registry((jax.Array, array_handler))
        handlers: dict[str, ocp.CheckpointHandler] = {
            "params": ocp.PyTreeCheckpointHandler(type_handler_registry=registry),
            "opt_state": ocp.PyTreeCheckpointHandler(type_handler_registry=registry),
            "data": ocp.JsonCheckpointHandler(),
            "checksums": ocp.JsonCheckpointHandler(),
            **({ITEM: ocp.JsonCheckpointHandler()} if base is not None else {}),
        }
        self._base = base
        folder = files.anywhere(workdir) / "checkpoints"
        try:
            self._manager = ocp.CheckpointManager(folder, options=options, item_handlers=handlers)
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:  # Orbax reads each step's
            raise InputError(
                f"the _CHECKPOINT_METADATA of a step in {folder} cannot be read ({one_line(error)}); put back a copy, "
                "or move that step elsewhere"
            ) from error
        self._checksums: Callable[[NamedArrays], Sums] = checksums

    def warm_up(self, state: TrainState) -> None:
        """Compiles what `checksums` and `save` compute on the devices, and `restore` when the run starts again."""
        self._checksums = checksums.lower(named_arrays(state)).compile()
        are_finite.lower(named_arrays(state)).compile()
        exchange(None)

    def checksums(self, state: TrainState) -> Sums:
        """Starts computing the checksums that `save` stores. Call it before the next step is dispatched."""
        return self._checksums(named_arrays(state))

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
        """Copies the state to the host and starts to write it in the background; waits for a save still under way.

        Args:
            state: what is saved, under its step.
            iterator: the data iterator, at the position that belongs to the state.
            metrics: decide which checkpoint is the best; None if this step was not evaluated.
            sums: the state's `checksums`; None computes them now, which on a busy device means after its other work.
        """
        arrays, sums = named_arrays(state), jax.device_get(sums or self.checksums(state))
        items = ocp.args.Composite(
            **{name: ocp.args.PyTreeSave(tree, save_args=save_args(tree)) for name, tree in arrays.items()},
            data=ocp.args.JsonSave(iterator.get_state()),  # the same on every process
            checksums=ocp.args.JsonSave(jax.tree.map(int, sums) | {"data": _crc(iterator.get_state())}),
            **({ITEM: ocp.args.JsonSave(self._base.to_json())} if self._base is not None else {}),
        )
        self._manager.save(int(state.step), args=items, metrics=metrics, force=True)

    def restore(self, state: TrainState, iterator: grain.DatasetIterator) -> TrainState | None:
        """The newest state that is whole; sets `iterator` to the position it was saved with.

        A damaged checkpoint is reported in one line on stderr, renamed to STEP.damaged and passed over.

        Args:
            state: arrays or ShapeDtypeStructs with the structure and shardings of the result. What lies beneath
                adapters is taken from it as it is.
            iterator: the data iterator to set.

        Returns:
            The state, or None if there is no checkpoint.

        Raises:
            InputError: all checkpoints are damaged, or they are of another model; nothing is changed then.
        """
        damaged: dict[int, str] = {}
        for step in sorted(self._manager.all_steps(), reverse=True):
            try:
                restored = self._restore(step, state, iterator)
            except _OtherModelError as error:
                raise InputError(
                    f"{self._manager.directory} holds another model: {error}; give the model.folder that the run was "
                    "started with, or name another --workdir"
                ) from error
            except InputError as error:
                damaged[step] = str(error)
                continue
            if damaged:
                self._set_aside(damaged, used=step)
            return restored
        if damaged:
            problems = "; ".join(f"step {step}: {problem}" for step, problem in damaged.items())
            raise InputError(
                f"no checkpoint in {self._manager.directory} is whole ({problems}). They are left as they are: put "
                "back a copy of one, or start anew in another --workdir"
            )
        return None

    def _restore(self, step: int, state: TrainState, iterator: grain.DatasetIterator) -> TrainState:
        """Raises InputError on every process if the checkpoint cannot be used on one."""
        folder = self._manager.directory / str(step)
        stored, problem, is_other = None, "another process cannot read it", False
        try:
            stored = _read_step(folder, state, iterator.get_state())
            base = read_base(folder / "params") if self._base is not None else None
            if self._base is not None and (base is None or base.digest != self._base.digest):
                raise InputError("it names other weights beneath its adapters")
        except (OSError, ValueError) as error:
            problem, is_other = one_line(error), isinstance(error, _OtherModelError)
        told = exchange([stored is not None, is_other])
        if stored is None or not all(is_whole for is_whole, _ in told):
            raise (_OtherModelError if any(other for _, other in told) else InputError)(problem)
        like: Any = state.step
        restored = TrainState(
            step=jax.make_array_from_callback((), like.sharding, lambda _: np.int32(step)),
            params=_with_params(state.params, list(stored.arrays["params"].values())),
            opt_state=_from_paths(state.opt_state, stored.arrays["opt_state"]),
        )
        require_equal(jax.device_get(checksums(named_arrays(restored))), stored.sums)
        require_finite(named_arrays(restored))
        iterator.set_state(stored.position)
        return restored

    def _set_aside(self, damaged: Mapping[int, str], *, used: int) -> None:
        """Renames the checkpoints that were passed over, so that neither a save nor an export meets them."""
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
        exchange(None)  # no process continues before the names are right
        self._manager.reload()

    def require_written(self) -> None:
        """Raises what a save in the background ended in, an OSError on a full disk.

        Call it every step: nothing else tells of it before the next save.
        """
        if not self._manager.is_saving_in_progress():
            self._manager.wait_until_finished()  # returns at once, or raises the error

    def wait(self) -> None:
        """Blocks until everything that was started is on disk."""
        self._manager.wait_until_finished()

    def close(self) -> None:
        """Waits, then frees the manager's threads."""
        self._manager.close()


def named_arrays(state: TrainState) -> NamedArrays:
    """The arrays of a state as they are stored: folder -> name -> array. Of a model with adapters they alone are."""
    return {"params": params_to_dict(_stored(state.params)), "opt_state": _by_path(state.opt_state)}


def _stored(params: QwenVL) -> QwenVL:
    return partition(params)[0] if params.config.lora is not None else params


def _with_params(like: QwenVL, stored: list[jax.Array]) -> QwenVL:
    """The model with these arrays in the places of those that are stored."""
    params: QwenVL = jax.tree.unflatten(jax.tree.structure(_stored(like)), stored)
    return combine(params, partition(like)[1]) if like.config.lora is not None else params


def _by_path(tree: Any) -> dict[str, jax.Array]:
    """Leaves of any pytree by their key path."""
    return {jax.tree_util.keystr(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}


def _from_paths(tree: Any, leaves: dict[str, jax.Array]) -> Any:
    """The inverse of `_by_path`, in the structure of `tree`."""
    names = [jax.tree_util.keystr(path) for path, _ in jax.tree_util.tree_leaves_with_path(tree)]
    return jax.tree.unflatten(jax.tree.structure(tree), [leaves[name] for name in names])


@dataclasses.dataclass(frozen=True)
class _StoredStep:
    """The contents of a step folder, read by this process."""

    arrays: NamedArrays
    sums: dict[str, Any]  # as `checksums`, and "data": a CRC-32 of the position
    position: Any  # state of the data iterator


class _OtherModelError(InputError):
    """The parameters are whole, and not those of the model."""


def _read_step(folder: epath.Path, state: TrainState, position_like: Any) -> _StoredStep:
    """Raises OSError or InputError on a folder that is not whole, or of another model."""
    sums = read_json(folder / "checksums" / "metadata")
    position = read_json(folder / "data" / "metadata")
    if sums.get("data") != _crc(position):
        raise InputError("checksum mismatch: data")
    if isinstance(position, dict):  # an older version had no texts in it
        position = {name: value for name, value in position_like.items() if value == ""} | position
    if not _is_like(position, position_like):
        raise InputError(f"the data position {shown(position)} has another form than {shown(position_like)}")
    arrays = named_arrays(state)
    if not all(isinstance(sums.get(name), dict) for name in arrays):
        raise InputError("the checksums have another form")
    _require_same_model(folder / "params", arrays["params"], sums["params"])
    return _StoredStep(
        arrays={name: read_arrays(folder / name, tree) for name, tree in arrays.items()}, sums=sums, position=position
    )


def _require_same_model(folder: epath.Path, params: Mapping[str, Any], sums: Mapping[str, Any]) -> None:
    """Raises _OtherModelError if the parameters in `folder` are those that were saved, but not `params`."""
    stored = {name: param.shape for name, param in open_arrays(folder).items()}
    wanted = {name: param.shape for name, param in params.items()}
    differing = sorted(name for name in stored.keys() | wanted.keys() if stored.get(name) != wanted.get(name))
    if differing and stored.keys() == sums.keys():
        name = differing[0]
        raise _OtherModelError(
            f"{len(differing)} of its parameters differ, {name} is {stored.get(name, 'not there')} in the checkpoint "
            f"and {wanted.get(name, 'not there')} in the model"
        )


def _is_like(value: Any, like: Any) -> bool:
    """True if two JSON values have the same keys and types, and no number is negative."""
    if isinstance(like, dict):
        return (
            isinstance(value, dict) and value.keys() == like.keys() and all(_is_like(value[k], like[k]) for k in like)
        )
    if isinstance(like, list):
        return isinstance(value, list) and len(value) == len(like) and all(map(_is_like, value, like))
    return type(value) is type(like) and not (type(value) is int and value < 0)


def _crc(position: Any) -> int:
    """CRC-32 of a data iterator's state."""
    return zlib.crc32(json.dumps(position, sort_keys=True).encode())
