"""Plans: what is counted, what is compiled, what is said when it does not fit."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import ml_collections
import pytest

from care_jax import config as config_lib
from care_jax import plan, step
from care_jax.configs import qwen2_5_vl
from care_jax.models import abstract_model, params_to_dict
from care_jax.parallel.mesh import create_device_mesh
from care_jax.planning import advice, estimate, flops, hlo
from care_jax.planning.chips import GIB, devices_of, parse_topology
from care_jax.planning.estimate import PARTS, Bytes, Plan, StageMemory
from care_jax.planning.sizes import Sizes
from care_jax.stages import sampler
from tests.end_to_end import TINY, Forks, run_forked
from tests.marks import slow_but

MESH = {"data": 1, "fsdp": 2, "tensor": 2}


def tiny(**changes: Any) -> ml_collections.ConfigDict:
    """The tiny model in a run that compiles in seconds."""
    config = config_lib.base()
    config.model.folder, config.data.train, config.data.eval = str(TINY), "train", "eval"
    config.data.prompt_buckets, config.data.patch_buckets = (128,), (64,)
    config.rollout.update(num_rollouts=4, response_len=128, compact_shares=())
    config.objective.reflect.max_rationale_len = 32
    config.train.update(prompts=8, minibatches=1, stream_len=1024, steps=2)
    config.mesh.update(MESH)
    config.update_from_flattened_dict({name.replace("__", "."): value for name, value in changes.items()})
    return config


@pytest.fixture(scope="module", autouse=True)
def promotion() -> Iterator[None]:
    """Adam of optax has b1**count with an integer count. For all threads, hence no context manager."""
    jax.config.update("jax_numpy_dtype_promotion", "standard")
    yield
    jax.config.update("jax_numpy_dtype_promotion", "strict")


@pytest.mark.parametrize(("train_on", "dropped"), [("continuation", False), ("rewrite", True)])
def test_forced_tokens_of_a_rewrite_are_dropped(monkeypatch, train_on, dropped):
    """Catches a repair that shares its room with tokens which the update never sees, and one that loses them."""
    config = tiny(objective__reflect__train_on=train_on)
    model = estimate.planned_model(config)
    setup = estimate.planned_setup(
        config, model, create_device_mesh({"data": 1, "fsdp": 1, "tensor": 1}, jax.devices()[:1])
    )
    monkeypatch.setattr(sampler, "make_decode", lambda setup, sampling: sampling)
    stages: dict[str, Any] = {stage.name: stage for stage in step.STEP.when(config).stages}
    assert stages["reflect"].function(setup).drop_forced == dropped
    assert not stages["rollout"].function(setup).drop_forced


@pytest.fixture(scope="module")
def planned(tmp_path_factory) -> Plan:
    """Three programs of a step, on four chips."""
    folder = tmp_path_factory.mktemp("deep")  # so that even a half of all layers is larger than any other parameter
    fields = json.loads((TINY / "config.json").read_text()) | {"num_hidden_layers": 8}
    (folder / "config.json").write_text(json.dumps(fields))
    return estimate.make_plan(tiny(model__folder=str(folder)), "v5e:2x2", only=("prefill", "rollout", "update"))


def test_parts_of_a_small_run(planned):
    """Catches a part that is not divided like its arrays, is counted twice, or is forgotten beside another program."""
    config, model = planned.config, planned.sizes.model
    numbers = {name: leaf.size for name, leaf in params_to_dict(abstract_model(model)).items()}
    # Over fsdp or tensor alone, or over both: between a quarter and a half of the whole.
    whole = 4 * sum(numbers.values())
    prefill, rollout, update = planned.stages
    assert whole / 4 < update.parts["params"] < whole / 2
    assert 2 * update.parts["params"] <= update.parts["optimizer"] < 2 * update.parts["params"] + 100
    assert {stage.parts["reference"] for stage in planned.stages} == {update.parts["params"]}
    assert update.parts["gradients"] == update.parts["params"]
    per_token = 2 * model.text.num_hidden_layers * model.text.num_key_value_heads * model.text.head_dim * 2
    # All of the prompts' keys, and small arrays of each prompt.
    assert 0 <= rollout.parts["prompt_kv"] - 8 * 128 * per_token // 4 < 8 * (4 * model.text.hidden_size + 16)
    assert prefill.parts["prompt_kv"] == rollout.parts["prompt_kv"]
    assert rollout.parts["branch_kv"] == 8 * config.rollout.num_rollouts * 128 * per_token // 4
    in_sampler = sum(size for name, size in numbers.items() if not name.startswith("visual."))
    assert in_sampler <= rollout.parts["sampler"] < 2 * in_sampler
    assert not update.parts["sampler"]
    assert not update.parts["prompt_kv"]
    assert not prefill.parts["branch_kv"]
    assert all(stage.parts["temporaries"] > 0 and set(stage.parts) == set(PARTS) for stage in planned.stages)


def test_figures_of_a_small_run(planned, tmp_path):
    """Catches a figure without the others, floors of another stage, and collectives that are not there."""
    figures = json.loads(json.dumps(planned.to_json()))
    assert figures["fits"]
    assert 0 < figures["peak_gib"] < figures["limit_gib"] == 15.75
    assert figures["parts"]["params"] == round(planned.stages[0].parts["params"] / GIB, 3)
    assert figures["least_s"] == sum(max(floor.values()) for floor in planned.floors.values())
    assert planned.num_hosts == 1
    assert figures["flops_per_step"] == sum(work.flops for work in planned.work.values())
    assert set(figures["floors_s"]) == set(planned.work)
    assert set(figures["floors_s"]["update"]) == set(flops.BOUNDS)
    assert figures["collective_bytes"]["all-gather"] > 0
    assert figures["collective_bytes"]["reduce-scatter"] > 0
    assert all(0 <= s.waited_bytes.of(s.streams) <= sum(s.collective_bytes.values()) for s in planned.stages)
    assert "waited for" in plan.table(planned)
    assert figures["update_collective_bytes"] > 0.9 * figures["update_minimum_bytes"]
    text = plan.table(planned)
    assert f"fits: the peak is {planned.peak.peak / GIB:.2f} of 15.75 GiB" in text
    assert "what would take less" not in text
    for name in ("prefill", "rollout", "update"):
        assert text.count(f"\n{name}  ") == 3 if name != "prefill" else 2


def test_an_update_gathers_a_layer_at_a_time(planned):
    """Catches parameters of all layers gathered at once."""
    update, params = planned.stages[-1], params_to_dict(abstract_model(planned.sizes.model))
    stacks = ("layers.", "visual.blocks.")
    of_layer = {name: x.size // x.shape[0] if name.startswith(stacks) else x.size for name, x in params.items()}
    of_layer["embed_tokens.weight"] //= MESH["tensor"]
    sizes = planned.sizes
    rows = sizes.row_shards * sizes.bucket[1] * sizes.model.vision.patch_values  # a prompt's patches from each shard
    assert 0 < update.largest_gather <= max(*of_layer.values(), rows)
    assert rows < sum(x.size for x in params.values()) / 2


def test_what_lives_beside_a_program_counts(planned):
    """Catches a run that is said to fit because each program alone finds room."""
    chip = dataclasses.replace(planned.chip, hbm_gib=(planned.peak.peak - 1) / GIB)
    tight = dataclasses.replace(planned, chip=chip)
    assert planned.fits
    assert not tight.fits
    assert "too much" in plan.table(tight)
    assert "does not fit" in plan.table(tight)


def fake(config: ml_collections.ConfigDict, topology: str, mesh: dict[str, int], name: str, **gib: float) -> Plan:
    """A plan of one program that takes so much."""
    chip, _ = parse_topology(topology)
    sizes = Sizes.of(config, estimate.planned_model(config), (2048, 4096), mesh)
    parts = dict.fromkeys(PARTS, 0) | {part: round(size * GIB) for part, size in gib.items()}
    none = Bytes(0, 0)
    stage = StageMemory(name, parts, dict.fromkeys(hlo.COLLECTIVES, 0), none, none, none, 0, 0, 0, False, 1.0)
    return Plan(config, topology, chip, sizes, [stage], num_hosts=2)


def test_changes_name_a_setting_and_what_it_saves():
    """Catches advice that does not touch the stage that is too large, or that the run cannot follow."""
    config = qwen2_5_vl.size_7b()
    config.train.prompts, config.rollout.tensor = 256, 0
    mesh = {"data": 2, "fsdp": 4, "tensor": 1}
    update = fake(config, "v5p:2x2x2", mesh, "update", params=8, optimizer=16, reference=8, gradients=8, activations=60)
    found = {change.setting: change.saves / GIB for change in advice.changes(update)}
    assert found["train.stream_len=4096"] == 30
    assert found["mesh.data=1, mesh.fsdp=8"] == 20
    assert found["objective.kl_coef=0"] == 8
    assert not any("compact" in setting for setting in found)
    assert list(found.values()) == sorted(found.values(), reverse=True)

    gib = {"params": 8, "reference": 8, "sampler": 14, "prompt_kv": 20, "branch_kv": 50, "temporaries": 44}
    rollout = fake(config, "v5p:2x2x2", mesh | {"data": 1, "fsdp": 8}, "rollout", **gib)
    found = {change.setting: change.saves / GIB for change in advice.changes(rollout)}
    assert found["train.prompts=128"] == 57
    assert found["rollout.compact_shares=()"] == 10
    assert found["rollout.tensor=2"] == 7
    assert "train.stream_len" not in " ".join(found)


def test_a_sweep_halves_what_can_be_halved():
    """Catches 0 prompts, halves that are not exact, and streams that no run accepts."""
    config = tiny(mesh__fsdp=1, mesh__tensor=1)
    config.train.prompts, config.train.minibatches, config.train.stream_len = 6, 1, 4 * 1025 * 2
    tried = advice.candidates(config, "v5e:1x1")
    assert {c.train.prompts for c in tried} == {6, 3}
    lengths = {c.train.stream_len for c in tried}
    assert len(lengths) > 2
    assert not [length for length in lengths if length % 2]


@pytest.mark.slow
def test_candidates_of_a_sweep():
    """Catches a sweep that compiles what cannot fit, misses the mesh that does, or starts with the slow ones."""
    config = qwen2_5_vl.size_7b()
    tried = advice.candidates(config, "v5e:16x16")
    # 7.6 billion decoder weights in two bytes do not fit into 15.75 GiB beside the rest.
    assert tried
    assert all(c.mesh.tensor > 1 for c in tried)
    on_v5p = advice.candidates(config, "v5p:4x4x4")
    assert {c.rollout.tensor for c in on_v5p if c.mesh.tensor == 1} == {0, 2, 4}  # 4 key/value heads
    assert {c.rollout.tensor for c in on_v5p if c.mesh.tensor > 1} == {0}
    assert (on_v5p[0].mesh.tensor, on_v5p[0].rollout.tensor) == (1, 4)
    for c in tried:
        shards = c.mesh.data * c.mesh.fsdp
        assert shards * c.mesh.tensor == 256
        assert c.train.prompts <= config.train.prompts
        assert c.train.prompts % (c.train.minibatches * shards) == 0
        assert config.train.stream_len >= c.train.stream_len >= 2048 + 2048
    assert tried[0].train.prompts == 512
    assert config.mesh.tensor == 1, "the config itself stays as it was"
    chip, model = parse_topology("v5e:16x16")[0], estimate.planned_model(config)
    sizes = [Sizes.of(c, model, (2048, 4096), dict(c.mesh)) for c in tried]
    floors = [flops.least_seconds(of, c, chip) / c.train.prompts for of, c in zip(sizes, tried, strict=True)]
    assert floors == sorted(floors)


def test_models_by_name(tmp_path):
    """Catches a folder of the user's that is planned as a published model, and a name that is not one."""
    config = tiny(model__folder="weights/Qwen3-VL-4B-Thinking")
    assert estimate.planned_model(config).text.hidden_size == 2560
    assert estimate.planned_model(config).attention == "splash"
    assert estimate.planned_model(tiny()).text.hidden_size == 128
    (tmp_path / "Qwen3-VL-4B-mine").mkdir()
    for name in (tmp_path / "Qwen3-VL-4B-mine", "Qwen4-VL-1B"):
        with pytest.raises(ValueError, match=r"no config.json"):
            estimate.planned_model(tiny(model__folder=str(name)))


def test_devices_of_each_chip():
    """Catches a slice that the compiler does not know by the name that it has here, and half chips that are whole."""
    counts = {"v4:2x2x1": 4, "v5e:1x1": 1, "v5e:2x4": 8, "v5p:2x2x2": 8, "v6e:2x2": 4, "tpu7x:2x2x1": 8}
    assert {name: len(devices_of(name)[1]) for name in counts} == counts


COMMON = ["--config=configs/demo.py", f"--config.model.folder={TINY}", "--config.mesh.fsdp=1"]


@pytest.mark.slow
def test_command_line(tmp_path: Path):
    """Catches a traceback where a run does not fit, a wrong exit code, and figures that are not written."""
    room = {"train.prompts": 2**19, "objective.reflect.enabled": False, "rollout.compact_shares": ()}
    cases = {
        "too large": [
            *COMMON,
            "--topology=v5e:1x1",
            f"--json={tmp_path}/plan.json",
            *(f"--config.{name}={value}" for name, value in room.items()),
        ],
        "expected": [
            *COMMON,
            "--topology=v5e:1x1",
            f"--json={tmp_path}/expected.json",
            "--mean_len=12",
            "--accuracy=0.5",
            "--price=1.5",
            "--config.objective.reflect.enabled=False",
        ],
    }
    run_forked([(tmp_path / name, "care_jax.plan", args) for name, args in cases.items()], cache=tmp_path / "cache")
    read = {name: [(tmp_path / name / file).read_text() for file in ("code", "stdout", "stderr")] for name in cases}
    code, stdout, stderr = read.pop("too large")
    assert code == "1", stderr
    assert "Traceback" not in stderr
    assert "does not fit" in stdout
    assert "no room" in stdout
    assert "train.prompts=262144" in stdout
    figures = json.loads((tmp_path / "plan.json").read_text())
    assert not figures["fits"]
    assert figures["peak_gib"] > figures["limit_gib"]
    code, stdout, stderr = read.pop("expected")
    assert code == "0", stderr
    expected = json.loads((tmp_path / "expected.json").read_text())["expected"]
    assert expected["tokens_per_dollar"] == pytest.approx(expected["tokens_per_chip_hour"] / 1.5, abs=1)
    assert expected["seconds"] == pytest.approx(sum(of["seconds"] for of in expected["stages"].values()), abs=1e-3)
    assert f"a step: {expected['seconds']:.1f} s, {expected['useful_mfu']:.1%} of the chips' FLOP/s useful" in stdout
    assert 0 < expected["useful_mfu"] < 0.6


# The flags behind COMMON, and words of the line that refuses them.
SLICE = "--topology=v5e:1x1"
REFUSED = {
    "no slice": (["--topology=v5e-8"], "v5e-8"),
    "no topology": ([], "--topology"),
    "does not divide": (["--topology=v5e:2x2"], "on 4 devices"),
    "no accuracy": ([SLICE, "--mean_len=12"], "--mean_len needs"),
    "too long": (
        [SLICE, "--mean_len=33", "--accuracy=0.5"],
        "--mean_len=33.0: give a number from 1 to 32, rollout.response_len",
    ),
    "nothing to expect": ([SLICE, "--price=2"], "--price needs --mean_len"),
    "no price": ([SLICE, "--mean_len=12", "--accuracy=0.5", "--price=0"], "--price=0.0"),
    "both": ([SLICE, "--mean_len=12", "--accuracy=0.5", "--metrics=runs/none"], "--mean_len and --metrics"),
    "no run": ([SLICE, "--metrics=runs/none"], "runs/none': no such file"),
}


@pytest.fixture(scope="module")
def forks(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Forks]:
    """A process that has imported the command."""
    with Forks("care_jax.plan", cache=tmp_path_factory.mktemp("cache")) as forks:
        yield forks


@pytest.mark.parametrize("name", slow_but(["no slice", "too long"], REFUSED))
def test_bad_command_lines_are_refused(forks: Forks, tmp_path: Path, name: str) -> None:
    """Catches a traceback, and flags that are looked at only after minutes of compiling."""
    arguments, words = REFUSED[name]
    ended = forks.start(tmp_path / "log", "care_jax.plan", *COMMON, *arguments).finish()
    assert (ended.returncode, ended.stdout) == (2, ""), ended.stderr
    (line,) = ended.stderr.strip().splitlines()
    assert words in line


@pytest.mark.plan
def test_the_7b_on_eight_chips():
    """Catches a 7B that no longer fits a slice which holds it.

    Also parameters of all layers gathered at once, logits of all tokens, and sums that send twice what they must.
    """
    config = qwen2_5_vl.size_7b()
    config.train.update(prompts=256, stream_len=16384)
    planned = estimate.make_plan(config, "v5p:2x2x2")
    figures = planned.to_json()
    assert figures["fits"], plan.table(planned)
    assert figures["update_collective_bytes"] <= 1.3 * figures["update_minimum_bytes"]
    update = planned.stages[-1]
    assert update.largest_gather <= 152064 * 3584  # the head
    assert update.largest_array < 2 * 5 * 2048 * 152064  # logits of the responses of a chip's piece
