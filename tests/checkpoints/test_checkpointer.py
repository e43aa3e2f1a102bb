"""Checkpoints: what comes back is what was saved, the right ones are kept, and broken ones are told apart."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import shutil
import subprocess
import sys
import threading
import time
import zlib
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest
import tensorstore as ts
from etils.epath import testing
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from care_jax import models
from care_jax.checkpoints import array_store
from care_jax.checkpoints.checkpointer import Checkpointer, named_arrays
from care_jax.checkpoints.checksums import checksums
from care_jax.checkpoints.load import find_params, load_params
from care_jax.data import loader
from care_jax.data.train_stream import TrainStream
from care_jax.errors import InputError
from care_jax.models import params_to_dict
from care_jax.stages.train_state import TrainState
from tests import weights
from tests.numbers import Numbers

METRIC = "eval/accuracy/mean"
OPTIMIZER = optax.adam(1e-3)


def make_iterator():
    """Batches of four numbers, from the start."""
    return loader.make_train_iterator(Numbers(23), lambda record: int(record.id), batch_size=4, seed=0)


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
    """The steps that are there."""
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
        assert ours.dtype == expected.dtype
        assert np.array_equal(ours, expected)
    assert int(restored.opt_state[0].count) == 5
    expected = make_iterator()
    next(expected)
    assert [next(iterator) for _ in range(3)] == [next(expected) for _ in range(3)]


def test_a_checkpoint_without_outcomes_is_read(tiny_model, tmp_path, monkeypatch):
    """Catches a run of an older version that is taken for damaged, since its position lacks what was added since."""
    with monkeypatch.context() as patched:
        patched.setattr(TrainStream, "get_state", lambda stream: {"positions": list(stream._positions)})
        save(tmp_path, tiny_model, {5: None}).close()
    iterator, expected = make_iterator(), make_iterator()
    with contextlib.closing(Checkpointer(tmp_path, keep_last=2, best_metric=METRIC)) as checkpointer:
        assert int(checkpointer.restore(state_at(tiny_model, 0), iterator).step) == 5
    next(expected)
    assert next(iterator) == next(expected)


def test_a_position_without_its_numbers_is_refused(tiny_model, tmp_path, monkeypatch):
    """Catches data that begin anew in silence, since what a position lacks is filled in."""
    with monkeypatch.context() as patched:
        patched.setattr(TrainStream, "get_state", lambda stream: {"outcomes": ""})
        save(tmp_path, tiny_model, {5: None}).close()
    with pytest.raises(InputError, match=r"the data position .* has another form"):
        restored(tmp_path, tiny_model)


def test_the_best_and_the_last_are_kept(tiny_model, tmp_path):
    """Catches a best one that is thrown away, a worse one kept, and one that was not evaluated taken for the best."""
    save(tmp_path, tiny_model, {1: 0.2, 2: 0.7, 3: 0.5, 4: None, 5: 0.6, 6: None}).close()
    assert kept(tmp_path) == [2, 5, 6]


def restored(folder: Path, model: models.QwenVL):
    """A resumed run's state, and the batches it goes on with."""
    checkpointer, iterator = Checkpointer(folder, keep_last=2, best_metric=METRIC), make_iterator()
    state = checkpointer.restore(state_at(model, 0), iterator)
    checkpointer.close()
    return state, [next(iterator) for _ in range(3)]


def assert_at(found, model: models.QwenVL, step: int) -> None:
    """True if `restored` gave exactly what `save` saved at `step`."""
    state, batches = found
    wanted, iterator = state_at(model, step), make_iterator()
    for _ in range(step):
        next(iterator)
    assert int(state.step) == step
    assert all(np.array_equal(x, y) for x, y in zip(jax.tree.leaves(state), jax.tree.leaves(wanted), strict=True))
    assert batches == [next(iterator) for _ in range(3)]


def largest(folder: Path) -> Path:
    """The largest file below a folder."""
    return max((path for path in folder.rglob("*") if path.is_file()), key=lambda path: path.stat().st_size)


def cut(path: Path) -> None:
    """Takes away the second half of a file."""
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def overwrite(path: Path) -> None:
    """The middle of a file with zeros: what a crash of the machine leaves of pages that were not written."""
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 3] + bytes(len(data) // 3) + data[len(data) // 3 * 2 :])


def change(folder: Path, name: str) -> None:
    """One bit of one value of an array, everything else consistent."""
    spec = array_store.open_arrays(folder)[name].store.spec(minimal_spec=True)
    store = ts.open(spec, read=True, write=True).result()
    values = store.read().result()
    values.view(np.uint32).reshape(-1)[-1] ^= 1 << 3
    store.write(values).result()


POSITION = "data/metadata"
DAMAGES: dict[str, Callable[[Path], object]] = {
    "an array's file is truncated": lambda step: cut(largest(step / "params")),
    "an array's file is empty": lambda step: largest(step / "params").write_bytes(b""),
    "an array's file is missing": lambda step: largest(step / "params").unlink(),
    "an array's file has a hole": lambda step: overwrite(largest(step / "params")),
    "a parameter's bit is flipped": lambda step: change(step / "params", "layers.mlp.up_proj.kernel"),
    "a moment's bit is flipped": lambda step: change(step / "opt_state", "[0].nu.norm.weight.value"),
    "the index is truncated": lambda step: cut(step / "opt_state" / "manifest.ocdbt"),
    "the index is missing": lambda step: (step / "opt_state" / "manifest.ocdbt").unlink(),
    "parameters are missing": lambda step: shutil.rmtree(step / "params"),
    "the folder is empty": lambda step: [shutil.rmtree(child) for child in step.iterdir() if child.is_dir()],
    "the data position is truncated": lambda step: cut(step / POSITION),
    "the data position is empty": lambda step: (step / POSITION).write_bytes(b""),
    "the data position is another one": lambda step: (step / POSITION).write_text('{"next_index": 4}'),
    "the data position is missing": lambda step: (step / POSITION).unlink(),
    "the checksums are missing": lambda step: (step / "checksums" / "metadata").unlink(),
    "the checksums are empty": lambda step: (step / "checksums" / "metadata").write_text("{}"),
    "the checksums are truncated": lambda step: cut(step / "checksums" / "metadata"),
}


def test_a_damaged_newest_checkpoint_gives_way_to_the_one_before(tiny_model, tmp_path, capfd):
    """Catches a run that crashes on, or trains on with, what a dying machine left; and damage told by a traceback."""
    save(tmp_path / "whole", tiny_model, {1: None, 2: None}).close()
    assert_at(restored(tmp_path / "whole", tiny_model), tiny_model, 2)
    capfd.readouterr()
    for number, (damage, apply) in enumerate(DAMAGES.items()):
        run = shutil.copytree(tmp_path / "whole", tmp_path / str(number))
        apply(run / "checkpoints" / "2")
        assert_at(restored(run, tiny_model), tiny_model, 1)
        told = capfd.readouterr().err
        assert told.count("\n") == 1, (damage, told)
        assert "step 2 is damaged (" in told, (damage, told)
        assert "step 1 is used" in told, (damage, told)
        assert kept(run) == [1], damage
        assert (run / "checkpoints" / "2.damaged").is_dir(), damage


@pytest.mark.slow
def test_training_past_a_damaged_checkpoint_saves_it_anew(tiny_model, tmp_path, capfd):
    """Catches a save that meets the damaged one's name, and one that is damaged twice."""
    save(tmp_path, tiny_model, {1: None, 2: None}).close()
    for _ in range(2):
        cut(largest(tmp_path / "checkpoints" / "2" / "params"))
        assert_at(restored(tmp_path, tiny_model), tiny_model, 1)
        checkpointer, iterator = Checkpointer(tmp_path, keep_last=2, best_metric=METRIC), make_iterator()
        state = checkpointer.restore(state_at(tiny_model, 0), iterator)
        next(iterator)
        checkpointer.save(state_at(tiny_model, int(state.step) + 1), iterator, None)
        checkpointer.close()
        assert kept(tmp_path) == [1, 2]
        assert_at(restored(tmp_path, tiny_model), tiny_model, 2)


def contents(folder: Path) -> dict[str, bytes]:
    """The bytes of every file below a folder."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_without_a_whole_checkpoint_nothing_is_touched(tiny_model, tmp_path):
    """Catches a run that starts from nothing over the remains of another, and one that removes what might be saved."""
    save(tmp_path, tiny_model, {1: None, 2: None}).close()
    cut(largest(tmp_path / "checkpoints" / "1" / "params"))
    (tmp_path / "checkpoints" / "2" / POSITION).unlink()
    before = contents(tmp_path)
    with pytest.raises(ValueError, match=r"no checkpoint in .*checkpoints is whole .step 2: .*step 1: ") as error:
        restored(tmp_path, tiny_model)
    assert "\n" not in str(error.value)
    assert contents(tmp_path) == before


def test_damaged_parameters_are_not_loaded(tiny_model, tmp_path):
    """Catches a training or an evaluation of what a broken disk made of a checkpoint."""
    save(tmp_path, tiny_model, {1: None}).close()
    change(tmp_path / "checkpoints" / "1" / "params", "norm.weight")
    with pytest.raises(ValueError, match=r"checkpoints/1/params is damaged .checksum mismatch: params: norm.weight"):
        load_params(tmp_path)
    cut(largest(tmp_path / "checkpoints" / "1" / "params"))
    with pytest.raises(ValueError, match=r"checkpoints/1/params is damaged .params: .* cannot be read"):
        load_params(tmp_path)


@pytest.mark.slow
def test_checksums_see_every_bit_and_no_mesh(tiny_model):
    """Catches a checksum that two errors cancel in, that an order of summation or a division over devices changes."""
    state = state_at(tiny_model, 1)
    whole = jax.device_get(checksums(named_arrays(state)))
    mesh = Mesh(np.array(jax.devices()).reshape(2, 2), ("a", "b"))

    def divided(x):
        axes = [axis if size % 2 == 0 else None for axis, size in zip(("a", "b"), x.shape, strict=False)]
        return jax.device_put(x, NamedSharding(mesh, PartitionSpec(*axes)))

    assert jax.device_get(checksums(named_arrays(jax.tree.map(divided, state)))) == whole

    name = "norm.weight"
    values = np.asarray(params_to_dict(state.params)[name])
    changes = [values[::-1]]
    for element, bit in [(0, bit) for bit in range(32)] + [(element, 31) for element in range(1, len(values))]:
        changes.append(values.copy())
        changes[-1].view(np.uint32)[element] ^= np.uint32(1) << np.uint32(bit)
    for changed in changes:
        params = params_to_dict(state.params) | {name: jnp.asarray(changed)}
        model = jax.tree.unflatten(jax.tree.structure(state.params), list(params.values()))
        actual = jax.device_get(checksums(named_arrays(state.replace(params=model))))
        assert [key for key, value in actual["params"].items() if value != whole["params"][key]] == [name]


def test_a_save_is_written_while_the_training_goes_on(tiny_model, tmp_path):
    """Catches a save that holds up the training, that takes up what comes after it, or several that pile up."""
    may_finish = threading.Event()

    def rename(original, path, target):  # the last thing that Orbax does for each part
        may_finish.wait(30)
        return original(path, target)

    checkpointer, iterator = Checkpointer(tmp_path, keep_last=3, best_metric=METRIC), make_iterator()
    next(iterator)
    states = [state_at(tiny_model, step) for step in (1, 2)]
    advance = jax.jit(lambda state: jax.tree.map(lambda x: x + jnp.asarray(1, x.dtype), state), donate_argnums=0)
    with testing.mock_epath(rename=rename):
        checkpointer.save(states[0], iterator, None)
        assert kept(tmp_path) == []
        jax.block_until_ready(advance(states[0]))  # the buffers that are being written are given up, and overwritten
        assert next(iterator)
        second = threading.Thread(target=checkpointer.save, args=(states[1], iterator, None))
        second.start()
        second.join(0.5)
        assert second.is_alive()
        assert kept(tmp_path) == []
        may_finish.set()
        second.join()
        checkpointer.close()
    assert kept(tmp_path) == [1, 2]
    assert_at(restored(tmp_path, tiny_model), tiny_model, 2)
    shutil.rmtree(tmp_path / "checkpoints" / "2")
    assert_at(restored(tmp_path, tiny_model), tiny_model, 1)


def test_a_half_written_step_is_ignored(tiny_model, tmp_path):
    """Catches a resumption, or an export, from what a killed process left behind."""
    save(tmp_path, tiny_model, {3: None}).close()
    checkpoints = tmp_path / "checkpoints"
    (checkpoints / "9.orbax-checkpoint-tmp-1" / "params").mkdir(parents=True)
    checkpointer = Checkpointer(tmp_path, keep_last=2, best_metric=METRIC)
    assert checkpointer.latest_step == 3
    checkpointer.close()
    (checkpoints / "8" / "params").mkdir(parents=True)  # what is left of a folder that was being removed
    assert find_params(tmp_path) == checkpoints / "3" / "params"


def test_params_are_found_from_every_folder(tiny_model, tmp_path):
    """Catches an older step, or a path that is one level off."""
    run, params = tmp_path / "run", params_to_dict(tiny_model)
    save(run, tiny_model, {9: None, 10: None}).close()
    newest = run / "checkpoints" / "10" / "params"
    for path in (run, run / "checkpoints", run / "checkpoints" / "10", newest):
        assert find_params(path) == newest
    assert find_params(run / "checkpoints" / "9") == run / "checkpoints" / "9" / "params"
    loaded = load_params(run)
    assert loaded.keys() == params.keys()
    assert all(np.array_equal(loaded[name], value + 10) for name, value in params.items())

    weights.save_params(tmp_path / "converted", params)
    assert find_params(tmp_path / "converted") == tmp_path / "converted" / "params"


@pytest.mark.parametrize("folder", ["", "nothing", "checkpoints"])
def test_no_checkpoint_is_told_plainly(tmp_path, folder):
    """Catches a traceback of the library for a wrong path or a run that has not saved yet."""
    (tmp_path / "checkpoints" / "7.orbax-checkpoint-tmp-1").mkdir(parents=True)
    with pytest.raises(ValueError, match=r"no finished checkpoint in .*give a run folder"):
        find_params(tmp_path / folder)


def test_params_load_on_another_number_of_devices(tmp_path):
    """Catches a restore that asks for the devices that wrote the parameters."""
    mesh = jax.sharding.Mesh(np.array(jax.devices()), ("all",))
    sharded = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("all"))
    params = {"w": jax.device_put(jnp.arange(8.0), sharded), "b": np.float32([1, 2, 3])}
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(tmp_path / "params", params)
    assert load_params(tmp_path)["w"].sharding.device_set == {jax.local_devices()[0]}
    program = (
        "import sys, json, jax; from care_jax.checkpoints.load import load_params; params = load_params(sys.argv[1]);"
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


def rewrite_position(step: Path, position: object) -> None:
    """Another data position, with the checksum that belongs to it."""
    (step / POSITION).write_text(json.dumps(position))
    sums = json.loads((step / "checksums" / "metadata").read_text())
    sums["data"] = zlib.crc32(json.dumps(position, sort_keys=True).encode())
    (step / "checksums" / "metadata").write_text(json.dumps(sums))


def rewrite_sums(step: Path, change: Callable[[dict], object]) -> None:
    """Other checksums."""
    sums = json.loads((step / "checksums" / "metadata").read_text())
    change(sums)
    (step / "checksums" / "metadata").write_text(json.dumps(sums))


OTHER_SHAPES: dict[str, Callable[[Path], object]] = {
    **{
        f"the position is {position!r}": lambda step, position=position: rewrite_position(step, position)
        for position in (None, [], {}, 7, "text", {"next_index": "4"}, {"next_index": -1}, {"next_index": None})
    },
    **{
        f"the sums of the parameters are {value!r}": lambda step, value=value: rewrite_sums(
            step, lambda sums: sums.update(params=value)
        )
        for value in (None, [], 7, "text", {}, {"norm.weight": None})
    },
    "the checksums are null": lambda step: (step / "checksums" / "metadata").write_text("null"),
    "the checksums are deep": lambda step: (step / "checksums" / "metadata").write_text("[" * 100_000),
    "the checksums are a long number": lambda step: (step / "checksums" / "metadata").write_text("9" * 5_000),
    "the checksums are binary": lambda step: (step / "checksums" / "metadata").write_bytes(b"\xff\xfe\x00"),
}


@pytest.mark.slow
def test_files_of_another_form_are_damage_too(tiny_model, tmp_path, capfd):
    """Catches a traceback at a position or a checksum that is JSON, and of another type than what is expected there."""
    save(tmp_path / "whole", tiny_model, {1: None, 2: None}).close()
    for number, (damage, apply) in enumerate(OTHER_SHAPES.items()):
        run = shutil.copytree(tmp_path / "whole", tmp_path / str(number))
        apply(run / "checkpoints" / "2")
        capfd.readouterr()
        assert_at(restored(run, tiny_model), tiny_model, 1)
        told = capfd.readouterr().err
        assert told.count("\n") == 1, (damage, told)
        assert "step 2 is damaged (" in told, (damage, told)


@pytest.mark.slow
def test_another_model_is_not_called_damaged(tiny_model, tiny_folder, tmp_path):
    """Catches a sound checkpoint that is set aside since model.folder has changed, and a message that says so."""
    save(tmp_path, tiny_model, {1: None, 2: None}).close()
    before = contents(tmp_path)
    folder = Path(shutil.copytree(tiny_folder, tmp_path.with_name("wider")))
    fields = json.loads((folder / "config.json").read_text())
    for changes in (
        {"intermediate_size": 2 * fields["intermediate_size"]},
        {"num_hidden_layers": fields["num_hidden_layers"] + 1},
    ):
        (folder / "config.json").write_text(json.dumps(fields | changes))
        other = weights.initial_model(models.load_model_config(folder))
        with pytest.raises(
            InputError, match=r"holds another model: .* parameters differ, .* give the model.folder that"
        ):
            restored(tmp_path, other)
    assert contents(tmp_path) == before


def test_a_save_that_fails_in_the_background_is_told_at_the_next_step(tiny_model, tmp_path):
    """Catches a run that goes on for many steps after a full disk, and then says that its last checkpoint is old."""

    def rename(original, path, target):  # the last thing that Orbax does for each part
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    checkpointer, iterator = Checkpointer(tmp_path, keep_last=3, best_metric=METRIC), make_iterator()
    next(iterator)
    checkpointer.require_written()
    with testing.mock_epath(rename=rename):
        checkpointer.save(state_at(tiny_model, 1), iterator, None)
        error = None
        for _ in range(200):  # steps of a twentieth of a second
            try:
                checkpointer.require_written()
            except OSError as found:
                error = found
                break
            time.sleep(0.05)
    assert error is not None
    assert error.errno == errno.ENOSPC
    with contextlib.suppress(OSError):
        checkpointer.close()
    assert kept(tmp_path) == []


@pytest.mark.parametrize("text", ["7", "1.5", "true", '"text"', "[]", "[null]", "[" * 100_000])
def test_a_step_whose_description_is_another_thing_is_refused(tmp_path, text):
    """Catches a traceback of the library at a file of JSON that is no object."""
    (tmp_path / "checkpoints" / "1").mkdir(parents=True)
    (tmp_path / "checkpoints" / "1" / "_CHECKPOINT_METADATA").write_text(text)
    with pytest.raises(InputError, match=r"_CHECKPOINT_METADATA of a step in .* cannot be read"):
        Checkpointer(tmp_path, keep_last=2, best_metric=METRIC)
