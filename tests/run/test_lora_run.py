"""Runs with adapters: what is trained and kept, what starts from them, and what is refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import jax
import ml_collections
import numpy as np
import pytest

from care_jax import cold_start, evaluate, models, train
from care_jax.checkpoints.load import find_params, load_params, open_params
from care_jax.configs import demo
from care_jax.errors import InputError
from care_jax.models.trained import partition
from care_jax.parallel.mesh import create_device_mesh
from care_jax.planning import estimate
from care_jax.stages.model import make_model_config
from tests.end_to_end import SmallTask, apply, metrics, small
from tests.planning.test_plan import tiny as tiny_plan

STEPS = 20


def lora_config(task: SmallTask, **changes: Any) -> ml_collections.ConfigDict:
    """The demo's run with adapters on the small task, whose cold start is the base."""
    settings = {"model__weights": str(task.cold_start), "train__steps": STEPS, "train__checkpoint_every": STEPS}
    return apply(demo.get_config("lora"), small(task.model, task.data, **settings | changes))


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of this file's runs."""
    return tmp_path_factory.mktemp("lora")


@pytest.fixture
def trained(cached: SmallTask, folders: Path) -> Path:
    """A run with adapters and a KL, made once."""
    workdir = folders / "care"
    if not workdir.exists():
        state = train.run(lora_config(cached, objective__kl_coef=1e-2), workdir)
        _assert_base_has_stayed(cached, state.params)
        _assert_only_adapters_have_moments(state)
    return workdir


def _assert_base_has_stayed(task: SmallTask, params: models.QwenVL) -> None:
    base = load_params(task.cold_start)
    held = models.params_to_dict(partition(params)[1])
    assert held.keys() == base.keys()
    for name, value in base.items():
        np.testing.assert_array_equal(np.asarray(held[name]).view(np.uint32), np.asarray(value).view(np.uint32), name)


def _assert_only_adapters_have_moments(state: Any) -> None:
    adapters = models.params_to_dict(partition(state.params)[0])
    assert all(np.abs(value).max() > 0 for value in adapters.values())  # lora_b too, which began with 0
    moments = [leaf for leaf in jax.tree.leaves(state.opt_state) if leaf.ndim]
    assert sum(leaf.size for leaf in moments) == 2 * sum(value.size for value in adapters.values())
    assert {leaf.dtype for leaf in moments} == {np.dtype(np.float32)}


def test_checkpoints_hold_adapters_and_name_their_base(trained: Path, cached: SmallTask) -> None:
    """Catches a checkpoint with the base in it, a pointer that moves, and a base or reference that is trained."""
    stored = open_params(trained)
    assert all(name.rpartition(".")[2] in ("lora_a", "lora_b") for name in stored)
    assert len(stored) == 2 * 7
    base = json.loads((find_params(trained).parent / "base" / "metadata").read_text())
    assert base["params"] == str(find_params(cached.cold_start))
    assert base["lora"]["rank"] == 8
    rows = [row for row in metrics(trained) if "loss" in row]
    assert [row["step"] for row in rows] == list(range(1, STEPS + 1))
    assert rows[0]["kl"] == pytest.approx(0, abs=1e-6)  # the reference is the base
    assert rows[-1]["kl"] > 1e-6
    assert max(row["logprob_gap/mean"] for row in rows) < 1e-4  # of merged weights, in float32


@pytest.mark.slow
def test_bfloat16_merges_as_near_as_it_computes(cached: SmallTask, folders: Path) -> None:
    """Catches a sampler that decodes without adapters, or with other ones than the scorer has."""
    config = lora_config(cached, model__compute_dtype="bfloat16", train__steps=6)
    state = train.run(config, folders / "bfloat16")
    held = models.params_to_dict(partition(state.params)[1])
    assert {str(value.dtype) for value in held.values()} == {"bfloat16"}
    gaps = [row["logprob_gap/mean"] for row in metrics(folders / "bfloat16") if "loss" in row]
    assert max(gaps) < 2e-2


@pytest.mark.slow
def test_another_run_goes_on_from_adapters(trained: Path, cached: SmallTask, folders: Path) -> None:
    """Catches adapters that start anew, a base that is the other run's folder, and a reference without adapters."""
    config = lora_config(cached, objective__kl_coef=1e-2, train__steps=2, model__weights=str(trained))
    train.run(config, folders / "further")
    rows = [row for row in metrics(folders / "further") if "loss" in row]
    assert rows[0]["kl"] == pytest.approx(0, abs=1e-6)  # the reference has the first run's adapters
    base = json.loads((find_params(folders / "further").parent / "base" / "metadata").read_text())
    assert base["params"] == str(find_params(cached.cold_start))
    before, after = load_params(trained), load_params(folders / "further")
    moved = max(np.abs(np.asarray(after[name]) - np.asarray(before[name])).max() for name in before)
    assert 0 < moved < 0.05


def test_evaluation_takes_adapters(trained: Path, cached: SmallTask) -> None:
    """Catches an evaluation of the base alone: it is that of the run's last step."""
    summary = evaluate.run(lora_config(cached, objective__kl_coef=1e-2), trained)
    last = next(row for row in reversed(metrics(trained)) if "eval/accuracy/mean" in row)
    assert summary["eval/accuracy/mean"] == last["eval/accuracy/mean"]


def test_the_cold_start_trains_adapters(cached: SmallTask, folders: Path) -> None:
    """Catches a cold start that trains all parameters, or whose loss the adapters do not lower."""
    config = apply(demo.get_config("cold_start"), small(cached.model, cached.data, train__steps=STEPS))
    config.model.weights, config.model.lora.rank = str(cached.cold_start), 4
    state = cold_start.run(config, folders / "cold_start")
    _assert_base_has_stayed(cached, state.params)
    assert len(open_params(folders / "cold_start")) == 2 * 7


def test_what_does_not_go_together_is_refused(trained: Path, cached: SmallTask, folders: Path, tmp_path: Path) -> None:
    """Catches adapters taken for a model or beside another base, in one line and before anything is written."""
    whole = apply(demo.get_config(), small(cached.model, cached.data, model__weights=str(trained)))
    with pytest.raises(InputError, match=r"holds adapters; set model\.lora to rank=8, alpha=16\.0"):
        train.run(whole, tmp_path / "run")
    with pytest.raises(InputError, match=r"holds adapters with rank=8, .* it is rank=2"):
        train.run(lora_config(cached, model__weights=str(trained), model__lora__rank=2), tmp_path / "run")
    copy = shutil.copytree(trained, tmp_path / "copy")
    file = find_params(copy).parent / "base" / "metadata"
    named = json.loads(file.read_text())
    file.write_text(json.dumps(named | {"digest": "0" * 32}))
    config = lora_config(cached, objective__kl_coef=1e-2)
    with pytest.raises(InputError, match=r"are not those that the adapters of .*copy were trained on"):
        evaluate.run(config, copy)
    file.write_text(json.dumps(named | {"params": str(tmp_path / "gone")}))
    with pytest.raises(InputError, match=r"needs the weights beneath its adapters, .*gone, which are not there"):
        evaluate.run(config, copy)
    file.write_text("{}")
    with pytest.raises(InputError, match="does not name the weights beneath adapters"):
        evaluate.run(config, copy)
    assert not (tmp_path / "run").exists()


def test_a_compiled_update_has_no_moments_of_the_base() -> None:
    """Catches gradients, moments or a copy of what is not trained in the program, beside its state."""
    mesh = create_device_mesh({"data": 1, "fsdp": 1, "tensor": 1}, jax.devices()[:1])
    memory, states = {}, {}
    for rank in (0, 2):
        # In float32, or XLA for CPUs would have copies of bfloat16 kernels in it.
        changes = {"model__weights": "base", "model__compute_dtype": "float32", "model__lora__rank": rank}
        config = tiny_plan(mesh__fsdp=1, mesh__tensor=1, objective__kl_coef=0.0, **changes)
        bucket = (max(config.data.prompt_buckets), max(config.data.patch_buckets))
        with jax.numpy_dtype_promotion("standard"):
            *_, update = estimate.planned_calls(config, make_model_config(config, "cpu"), mesh, bucket)
            memory[rank] = update.program.lower(*update.args).compile().memory_analysis()
        states[rank] = update.values["state"]
    trained, frozen = (_bytes(part) for part in partition(states[2].params))
    assert frozen == _bytes(states[0].params)
    moments = _bytes(states[2].opt_state)
    assert 2 * trained <= moments < 2 * trained + 100
    state = frozen + trained + moments
    assert memory[2].alias_size_in_bytes == pytest.approx(state, abs=1000)  # all of it is updated where it lies
    assert memory[0].argument_size_in_bytes - memory[2].argument_size_in_bytes == pytest.approx(
        2 * frozen - trained - moments, abs=1000
    )
    assert memory[0].temp_size_in_bytes - memory[2].temp_size_in_bytes > 0.9 * frozen  # gradients


def _bytes(tree: Any) -> int:
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))


@pytest.mark.slow
def test_a_run_goes_on_when_its_base_has_moved(cached: SmallTask, tmp_path: Path) -> None:
    """Catches a resumed run that does not find its base at the place that model.weights now names, or starts anew."""
    place, workdir = tmp_path / "place", tmp_path / "run"
    shutil.copytree(cached.cold_start, place)
    config = lora_config(cached, model__weights=str(place), train__steps=2, train__checkpoint_every=1)
    train.run(config, workdir)
    moved = place.rename(tmp_path / "moved")
    config.model.weights, config.train.steps = str(moved), 3
    state = train.run(config, workdir, allow_change=True)
    _assert_base_has_stayed(cached, state.params)
    assert [row["step"] for row in metrics(workdir) if "loss" in row] == [1, 2, 3]
