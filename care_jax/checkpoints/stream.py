"""Parameters written part after part, so that a model need not fit into memory; the converter writes its models so."""

from __future__ import annotations

import dataclasses
import functools
import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
import tensorstore as ts
from etils import epath

from care_jax import files
from care_jax.checkpoints.array_store import Index, save_args
from care_jax.checkpoints.checksums import PartialSum, sums_file


@dataclasses.dataclass(frozen=True)
class StreamedParam:
    """A parameter whose values are made while it is written."""

    shape: tuple[int, ...]
    dtype: np.dtype
    # Given the shape of the chunks that are written, yields the parts as index and values; best are whole chunks.
    parts: Callable[[tuple[int, ...]], Iterable[tuple[Index, np.ndarray]]]

    @functools.cached_property
    def checksum(self) -> PartialSum:
        """The checksum of the parts that were written."""
        return PartialSum(self.shape)

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
            value.checksum.add(index, part)
            under_way = store[index].write(part, can_reference_source_data_indefinitely=True)
            under_way.commit.force()  # or it would wait to be waited for, and not go on while the next is made
        if under_way is not None:
            await under_way


def save_params(path: epath.PathLike, params: Mapping[str, StreamedParam]) -> None:
    """Writes parameters alone for `load_params`: `path/params`, and `path/checksums` as a run's checkpoint has it.

    The first is atomic: Orbax renames it when all is written.
    """
    registry = ocp.type_handlers.create_type_handler_registry(
        (StreamedParam, _StreamHandler()), (jax.Array, ocp.type_handlers.ArrayHandler())
    )
    # Trained weights hardly compress, and doing it takes longer than writing them.
    handler = ocp.PyTreeCheckpointHandler(use_compression=False, type_handler_registry=registry)
    args = ocp.args.PyTreeSave(dict(params), save_args=save_args(params))
    with ocp.Checkpointer(handler) as checkpointer:
        checkpointer.save(files.anywhere(path) / "params", args)
    sums = {"params": {name: param.checksum.value() for name, param in params.items()}}
    file = sums_file(files.anywhere(path) / "params")
    file.parent.mkdir(exist_ok=True)
    files.write_text(file, json.dumps(sums))
