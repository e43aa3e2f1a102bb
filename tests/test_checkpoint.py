"""Checkpoints: what comes back is what was saved, the right ones are kept, and broken ones are told apart."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest

from care_jax import checkpoint, models
from care_jax.checkpoint import Checkpointer
from care_jax.data import loader
from care_jax.data.records import Record
from care_jax.models import params_to_dict
from care_jax.structs import TrainState
from tests import weights

METRIC = "eval/accuracy/mean"
OPTIMIZER = optax.adam(1e-3)


class Numbers:
    """Records "0" to "22"."""

    def __len__(self) -> int:
        return 23

    def __getitem__(self, index: int) -> Record:
        return Record(str(range(23)[index]), "numbers", "?", (), "1", "integer")


def make_iterator():
    return loader.make_train_iterator(
        Numbers(), lambda record: int(record.id), batch_size=4, seed=0, process_index=0, process_count=1
    )


def state_at(model: models.QwenVL, step: int) -> TrainState:
    """A state in which every array is different at every step."""
    moved = jax.tree.map(lambda x: x + jnp.float32(step), model)
    opt_state = jax.tree.map(lambda x: x + jnp.asarray(step, x.dtype), OPTIMIZER.init(model))
    return TrainState(step=jnp.int32(step), params=moved, opt_state=opt_state)


def save(folder: Path, model: models.QwenVL, scores: dict[int, float | None], keep_last: int = 2) -> Checkpointer:
    """Saves the steps with their evaluations; None was not evaluated."""
    checkpointer, iterator = Checkpointer(folder, keep_last=keep_last, best_metric=METRIC), make_iterator()
    for step, value in scores.items():
        next(iterator)
        checkpointer.save(state_at(model, step), iterator, None if value is None else {METRIC: value})
        checkpointer.wait()
    return checkpointer


def kept(folder: Path) -> list[int]:
    return sorted(int(path.name) for path in (folder / "checkpoints").iterdir() if path.name.isdigit())


def test_restored_state_is_bit_equal(tiny_model, tmp_path):
    """Catches moments, a count or the data position that is not saved, and leaves that change places."""
    save(tmp_path, tiny_model, {5: None}).close()
    iterator = make_iterator()
    checkpointer = Checkpointer(tmp_path, keep_last=2, best_metric=METRIC)
    assert checkpointer.latest_step == 5
    restored = checkpointer.restore(state_at(tiny_model, 0), iterator)
    checkpointer.close()

    saved = state_at(tiny_model, 5)
    assert jax.tree.structure(restored) == jax.tree.structure(saved)
    for ours, expected in zip(jax.tree.leaves(restored), jax.tree.leaves(saved), strict=True):
        assert ours.dtype == expected.dtype and np.array_equal(ours, expected)
    assert int(restored.opt_state[0].count) == 5
    expected = make_iterator()
    next(expected)
    assert [next(iterator) for _ in range(3)] == [next(expected) for _ in range(3)]


def test_the_best_and_the_last_are_kept(tiny_model, tmp_path):
    """Catches a best one that is thrown away, a worse one kept, and one that was not evaluated taken for the best."""
    save(tmp_path, tiny_model, {1: 0.2, 2: 0.7, 3: 0.5, 4: None, 5: 0.6, 6: None}).close()
    assert kept(tmp_path) == [2, 5, 6]


def test_a_half_written_step_is_ignored(tiny_model, tmp_path):
    """Catches a resumption, or an export, from what a killed process left behind."""
    save(tmp_path, tiny_model, {3: None}).close()
    checkpoints = tmp_path / "checkpoints"
    (checkpoints / "9.orbax-checkpoint-tmp-1" / "params").mkdir(parents=True)
    checkpointer = Checkpointer(tmp_path, keep_last=2, best_metric=METRIC)
    assert checkpointer.latest_step == 3
    checkpointer.close()
    (checkpoints / "8" / "params").mkdir(parents=True)  # what is left of a folder that was being removed
    assert checkpoint.find_params(tmp_path) == checkpoints / "3" / "params"


def test_params_are_found_from_every_folder(tiny_model, tmp_path):
    """Catches an older step, or a path that is one level off."""
    run, params = tmp_path / "run", params_to_dict(tiny_model)
    save(run, tiny_model, {9: None, 10: None}).close()
    newest = run / "checkpoints" / "10" / "params"
    for path in (run, run / "checkpoints", run / "checkpoints" / "10", newest):
        assert checkpoint.find_params(path) == newest
    assert checkpoint.find_params(run / "checkpoints" / "9") == run / "checkpoints" / "9" / "params"
    loaded = checkpoint.load_params(run)
    assert loaded.keys() == params.keys()
    assert all(np.array_equal(loaded[name], value + 10) for name, value in params.items())

    weights.save_params(tmp_path / "converted", params)
    assert checkpoint.find_params(tmp_path / "converted") == tmp_path / "converted" / "params"


@pytest.mark.parametrize("folder", ["", "nothing", "checkpoints"])
def test_no_checkpoint_is_told_plainly(tmp_path, folder):
    """Catches a traceback of the library for a wrong path or a run that has not saved yet."""
    (tmp_path / "checkpoints" / "7.orbax-checkpoint-tmp-1").mkdir(parents=True)
    with pytest.raises(ValueError, match="no finished checkpoint in .*give a run folder"):
        checkpoint.find_params(tmp_path / folder)


def test_params_load_on_another_number_of_devices(tmp_path):
    """Catches a restore that asks for the devices that wrote the parameters."""
    mesh = jax.sharding.Mesh(np.array(jax.devices()), ("all",))
    sharded = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("all"))
    params = {"w": jax.device_put(jnp.arange(8.0), sharded), "b": np.float32([1, 2, 3])}
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(tmp_path / "params", params)
    assert checkpoint.load_params(tmp_path)["w"].sharding.device_set == {jax.local_devices()[0]}
    program = (
        "import sys, json, jax; from care_jax import checkpoint; params = checkpoint.load_params(sys.argv[1]);"
        "print(json.dumps([jax.device_count(), {name: value.tolist() for name, value in params.items()}]))"
    )
    told = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path)],
        capture_output=True,
        text=True,
        check=True,
        env=os.environ | {"XLA_FLAGS": ""},
    )
    assert json.loads(told.stdout.splitlines()[-1]) == [1, {"b": [1, 2, 3], "w": [0, 1, 2, 3, 4, 5, 6, 7]}]
