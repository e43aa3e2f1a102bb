"""Checkpoints with Orbax: state and data iterator in one step folder, asynchronous, best and last kept.

Parameters are stored by dotted name, so that a checkpoint outlives the classes that wrote it.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import grain
import jax
import orbax.checkpoint as ocp
from orbax.checkpoint.checkpoint_managers import preservation_policy

from care_jax.models import params_to_dict
from care_jax.structs import Array, TrainState


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
        items = ocp.args.Composite(
            params=ocp.args.StandardSave(params_to_dict(state.params)),
            opt_state=ocp.args.StandardSave(_by_path(state.opt_state)),
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


def load_params(path: Path) -> dict[str, jax.Array]:
    """Parameters by dotted name from a run, a checkpoint or a converted model, on this process's first device.

    Whatever devices wrote them: Orbax's default is the shardings they were saved with, which need those devices.
    """
    folder = find_params(path).absolute()
    here = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    with ocp.StandardCheckpointer() as checkpointer:
        saved = checkpointer.metadata(folder).item_metadata.tree
        target = {name: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=here) for name, x in saved.items()}
        return checkpointer.restore(folder, target)


def save_params(path: Path, params: Mapping[str, Array]) -> None:
    """Writes parameters alone, as `path/params`, for `load_params`. Atomic: Orbax renames when all is written."""
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save((Path(path) / "params").absolute(), dict(params))
