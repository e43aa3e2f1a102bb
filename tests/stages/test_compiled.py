"""Programs are compiled once each, for every bucket; the values that the host reads are looked at when they come."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any
from unittest.mock import NonCallableMock

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import pytest

from care_jax.parallel import sharding
from care_jax.parallel.mesh import create_device_mesh
from care_jax.run.compile_guard import CompileGuard
from care_jax.stages import compiled as compiled_module
from care_jax.stages.compiled import CompiledStages, compile_all
from care_jax.stages.table import DeviceStage, Setup, Table


def tables(*functions: Any, buckets: list[tuple[int, int]]) -> list[CompiledStages]:
    """Two tables of the same stages: the first function takes what depends on the bucket, the others what does not."""
    mesh = create_device_mesh(dict.fromkeys(sharding.AXES, 1), jax.devices()[:1])

    def shape(*sizes: int) -> jax.ShapeDtypeStruct:
        return sharding.place(mesh, jax.ShapeDtypeStruct(sizes, np.float32), sharding.ROWS)

    stages = tuple(
        DeviceStage(
            f"stage {number}",
            timer="t",
            takes=("of no bucket" if number else "of a bucket",),
            gives=(f"given {number}",),
            function=lambda setup, function=function: function,
            on_shards=False,
        )
        for number, function in enumerate(functions)
    )
    start = lambda setup, bucket: {"of a bucket": shape(2, bucket[0]), "of no bucket": shape(4, 7)}  # noqa: E731
    setup = NonCallableMock(spec=Setup, mesh=mesh, config=ml_collections.ConfigDict(), objective=None)
    return [CompiledStages(Table(stages, start), setup, buckets) for _ in range(2)]


def test_a_program_is_compiled_once_for_all_that_need_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches one compiled again for each bucket it does not depend on, or for the table of evaluations.

    Also one that stands in for another whose arguments only have the same shapes. Two threads with one program would
    both compile it, so each is handed out once.
    """
    handed_out, compile_one = list[str](), compiled_module._compile
    monkeypatch.setattr(
        compiled_module, "_compile", lambda name, lowered: handed_out.append(name) or compile_one(name, lowered)
    )

    def double(x: jax.Array) -> jax.Array:
        return 2.0 * x

    def triple(x: jax.Array) -> jax.Array:
        return 3.0 * x

    def halve(x: jax.Array) -> jax.Array:
        return 0.5 * x

    both = tables(double, triple, halve, buckets=[(3, 4), (5, 4)])
    with CompileGuard() as guard:
        compile_all(*both)
    assert sorted(handed_out) == ["stage 0", "stage 0", "stage 1", "stage 2"]
    assert sorted(guard.compiled) == ["jit(double)", "jit(double)", "jit(halve)", "jit(triple)"]
    for compiled in both:
        assert compiled.is_compiled
        for bucket in ((3, 4), (5, 4)):
            values = {"of a bucket": np.ones((2, bucket[0]), np.float32), "of no bucket": np.ones((4, 7), np.float32)}
            values = {name: jax.device_put(value) for name, value in values.items()}
            given = [compiled.run(stage, bucket, values) for stage in compiled.table.stages]
            np.testing.assert_array_equal(given[0]["given 0"], np.full((2, bucket[0]), 2.0))
            np.testing.assert_array_equal(given[1]["given 1"], np.full((4, 7), 3.0))
            np.testing.assert_array_equal(given[2]["given 2"], np.full((4, 7), 0.5))


def test_what_cannot_be_compiled_is_told() -> None:
    """Catches an error of a thread that is lost, after which the run would fail at its first step."""

    def unknown(x: jax.Array) -> jax.Array:
        return jax.ffi.ffi_call("no_such_target", jax.ShapeDtypeStruct(x.shape, x.dtype))(x)

    both = tables(unknown, buckets=[(4, 4)])
    with pytest.raises(jax.errors.JaxRuntimeError, match="no_such_target"):
        compile_all(*both)
    assert not both[0].is_compiled


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_loss_that_is_not_finite_stops_the_run(value: float) -> None:
    """Catches a run that trains on after NaN."""
    stages: Any = SimpleNamespace(_objective=None, _copies_to_all={}, _given_by={"update_metrics": "update"}, step=7)
    sound = {"loss": jnp.float32(0.5), "grad_norm": jnp.float32(2.0)}
    assert CompiledStages.fetch(stages, "update_metrics", sound) == {"loss": 0.5, "grad_norm": 2.0}
    with pytest.raises(FloatingPointError, match="step 7, stage update: not finite: 1 of 1 in grad_norm"):
        CompiledStages.fetch(stages, "update_metrics", sound | {"grad_norm": jnp.float32(value)})


def test_what_is_not_finite_in_the_rows_of_one_process_stops_all(monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches processes that wait for one that has stopped, until they are told that it is gone and not why."""
    stages: Any = SimpleNamespace(_objective=None, _copies_to_all={}, _given_by={}, step=7)
    monkeypatch.setattr(compiled_module, "exchange", lambda told: [told, "step 7, stage score: not finite"])
    with pytest.raises(FloatingPointError, match="step 7, stage score: not finite"):
        CompiledStages.fetch(stages, "update_metrics", {"loss": jnp.float32(0.5)})
