"""The table of a step: rows fit each other, values live as long as they are used, every walker sees a new row."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterator

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import pytest

from care_jax import step, train
from care_jax.evals import decoding
from care_jax.inputs.batch import collate
from care_jax.inputs.processor import make_processor
from care_jax.inputs.prompts import encode_prompt
from care_jax.method import objectives
from care_jax.parallel.mesh import create_device_mesh
from care_jax.planning import estimate, flops
from care_jax.planning.sizes import Sizes
from care_jax.stages.compiled import all_buckets, bucket_of, make_programs, trace
from care_jax.stages.table import Compute, DeviceStage, HostStage, Setup, Table, value_of
from care_jax.structs import Prompts, Rollouts, Scores, Verdicts, Video, abstract
from tests.pictures import encode, picture, question
from tests.planning.test_plan import tiny


@pytest.fixture(scope="module", autouse=True)
def promotion() -> Iterator[None]:
    """Optax's Adam has b1**count with an integer count."""
    with jax.numpy_dtype_promotion("standard"):
        yield


def config_of(preset: str, **changes: object) -> ml_collections.ConfigDict:
    """The tiny model on one device with an objective."""
    config = tiny(mesh__fsdp=1, mesh__tensor=1)
    config.objective = objectives.PRESETS[preset]()
    config.objective.reflect.max_rationale_len = 32
    config.update_from_flattened_dict({name.replace("__", "."): value for name, value in changes.items()})
    return config


def setup_of(config: ml_collections.ConfigDict) -> Setup:
    """The setup of the programs, from shapes."""
    mesh = create_device_mesh({"data": 1, "fsdp": 1, "tensor": 1}, jax.devices()[:1])
    return estimate.planned_setup(config, estimate.planned_model(config), mesh)


@pytest.mark.parametrize(
    ("preset", "old_from", "tis_cap"),
    [
        *((preset, "pass", 0.0) for preset in objectives.PRESETS),
        *(("care", "sampler", cap) for cap in (0.0, 2.0)),
        ("dapo", "sampler", 0.0),
        ("care", "pass", 2.0),
    ],
)
def test_every_value_is_there_when_a_stage_takes_it(preset, old_from, tis_cap):
    """Catches a value that no earlier stage gives, one that is freed too early, and shapes that do not fit."""
    config = config_of(preset, score__old_from=old_from, loss__tis_cap=tis_cap)
    setup, table = setup_of(config), step.STEP.when(config)
    host_stages = [stage for stage in table.stages if isinstance(stage, HostStage)]
    host_only = {name for stage in host_stages for name in stage.gives if name not in stage.puts}
    calls = list(trace(table, make_programs(table, setup), setup, all_buckets(config)[0]))
    names = [call.stage.name for call in calls]
    for call in calls:
        assert set(call.stage.takes) <= call.values.keys(), call.stage.name
        assert not call.values.keys() & host_only
    assert ("reflect" in names) == config.objective.reflect.enabled
    assert ("reference" in names) == (config.objective.kl_coef > 0)
    assert names.count("score") == 1
    assert names[-1] == "update"
    updated = [(x.shape, x.dtype) for x in jax.tree.leaves(calls[-1].results["state"])]
    assert updated == [(x.shape, x.dtype) for x in jax.tree.leaves(setup.state)]


@pytest.mark.parametrize("failure", ["nearest", "likeliest", "commonest"])
def test_the_failure_to_repair_is_chosen_on_the_devices(failure: str) -> None:
    """Catches a choice that the select stage knows nothing of: the three are three programs, run on one batch."""
    setup = setup_of(config_of("care", objective__reflect__failure=failure, objective__num_negatives=3))
    shape, place = (1, 4, 8), np.arange(8)
    answers = np.broadcast_to(place < 1, shape)
    ids = np.broadcast_to(np.array([[1], [2], [3], [3]], np.int32), shape)
    logprobs = np.broadcast_to(np.array([[-1.0], [-2.0], [-1.0], [-2.0]], np.float32), shape)
    whole, correct = np.ones(shape, bool), np.array([[True, False, False, False]])
    rollouts = Rollouts(ids, np.full((1, 4), 8, np.int32), logprobs, whole, whole[:, :, 0])
    verdicts = Verdicts(correct, correct, correct, correct.astype(np.float32), ~answers, answers)
    angle = np.radians([0, 10, 50, 30])
    scores = Scores(logprobs, -logprobs, np.stack([np.cos(angle), np.sin(angle)], -1)[None].astype(np.float32))
    (select,) = (stage for stage in step.STEP.stages if stage.name == "select")
    chosen = jax.jit(select.function(setup))(rollouts, verdicts, scores, jax.random.key(0))
    order = {"nearest": [0, 1, 3, 2], "likeliest": [0, 2, 1, 3], "commonest": [0, 3, 1, 2]}
    assert chosen.index[0].tolist() == order[failure]


@pytest.mark.parametrize("videos", [False, True])
def test_programs_are_made_for_the_patches_that_batches_have(videos: bool) -> None:
    """Catches a run that compiles for one frame a patch and dies at its first video."""
    config = config_of("care", data__videos=videos)
    setup, processor = setup_of(config), make_processor(config)
    frames = tuple(encode(picture(28, 28)) for _ in range(4))
    clips = (Video(frames, 2.0),) if videos else ()
    row = question("<video>?" if videos else "1+2=?", videos=clips)
    prompts = collate(processor, [encode_prompt(processor, row)] * setup.num_prompts)
    wanted = abstract(Prompts, **setup.prompt_dims(bucket_of(prompts)))
    assert [x.shape for x in jax.tree.leaves(prompts)] == [x.shape for x in jax.tree.leaves(wanted)]


def test_a_turned_group_has_a_stage_of_its_own():
    """Catches a turn that comes before the repair is scored or behind the batch, and one of a run that has none."""
    config = config_of("care", objective__reflect__all_wrong=True)
    setup, table = setup_of(config), step.STEP.when(config)
    names = [call.stage.name for call in trace(table, make_programs(table, setup), setup, all_buckets(config)[0])]
    assert names.index("score of reflections") < names.index("turn") < names.index("assemble")
    assert "turn" not in [stage.name for stage in step.STEP.when(config_of("care")).stages]


def test_adapters_need_no_second_model():
    """Catches a reference policy that is held beside the one whose adapters can be switched off, and moments of it."""
    config = config_of("care", model__lora__rank=2, model__weights="base")
    setup, table = setup_of(config), step.STEP.when(config)
    assert config.objective.kl_coef > 0
    assert not jax.tree.leaves(setup.reference)
    calls = {call.stage.name: call for call in trace(table, make_programs(table, setup), setup, all_buckets(config)[0])}
    assert calls["reference"].values["params"] is setup.params
    sampler = [leaf.shape for leaf in jax.tree.leaves(calls["rollout"].values["sampler"])]
    full = setup_of(config_of("care"))
    assert len(sampler) == len(jax.tree.leaves(full.params)) - len(jax.tree.leaves(full.params.visual))
    assert len(jax.tree.leaves(full.reference)) == len(jax.tree.leaves(full.params))


def test_a_value_lives_until_its_last_use():
    """Catches a sampler or a prompt cache that takes room while the update runs, and one that is freed before it."""
    table = step.STEP.when(config_of("care"))
    ends = table.ends()
    assert set(ends["reflect"]) == {"sampler", "prefix", "forced"}
    assert set(ends["assemble"]) == {"prompts", "rollouts", "verdicts", "scores", "subgroup", "reflection"}
    assert ends["update"] == []
    assert not [name for names in ends.values() for name in names if value_of(name).lasting]
    assert table.freed_after_drawing() == []


def test_the_next_draw_finds_what_it_takes():
    """Catches dynamic sampling whose second batch has no sampler to decode with, and one that is kept for good."""
    table = step.STEP.when(config_of("dapo"))
    drawing = [stage.name for stage in table.phases().drawing]
    assert drawing == ["data", "prefill", "rollout", "verify"]
    assert {name for stage in table.phases().opening for name in stage.gives} == {"sampler"}
    assert not [name for names in table.ends().values() for name in names if name == "sampler"]
    assert table.freed_after_drawing() == ["sampler"]


def test_the_sampler_is_gone_when_rollouts_are_scored():
    """Catches a plan that counts the sampler's copy beside the scoring pass of an objective without reflection."""
    config = config_of("grpo")
    setup, table = setup_of(config), step.STEP.when(config)
    calls = {call.stage.name: call for call in trace(table, make_programs(table, setup), setup, all_buckets(config)[0])}
    assert "sampler" in calls["rollout"].values
    assert not {"sampler", "prefix"} & calls["score"].values.keys()
    assert "scores" not in calls["update"].values


def test_random_stages_have_numbers_of_their_own():
    """Catches two stages of a step that draw with the same key, and draws that reach another stage's number."""
    random = [s for s in step.STEP.stages if isinstance(s, DeviceStage) and s.random is not None]
    numbers = [stage.random for stage in random]
    assert len(set(numbers)) == len(numbers) == 4
    (drawing,) = (stage.random for stage in random if stage.is_drawing)
    assert not [number for number in numbers if drawing < number < drawing + 1000], "dynamic sampling counts on from it"


def test_a_new_row_is_seen_by_all_that_walk_the_table(monkeypatch):
    """Catches a plan, a count of FLOPs or a compilation that keeps a list of stages of its own."""
    extra = DeviceStage(
        "think twice",
        timer="score",
        takes=("scores",),
        gives=("doubts",),
        function=lambda setup: lambda scores: jnp.exp(scores.logprobs),
        compute=Compute("forward", lambda config: 3),
    )
    position = [stage.name for stage in step.STEP.stages].index("select")
    stages = (*step.STEP.stages[:position], extra, *step.STEP.stages[position:])
    monkeypatch.setattr(step, "STEP", dataclasses.replace(step.STEP, stages=stages))
    config = config_of("grpo")
    model = estimate.planned_model(config)
    sizes = Sizes.of(config, model, all_buckets(config)[0], {"data": 1, "fsdp": 1, "tensor": 1})
    work = flops.step_work(sizes, config)
    assert work["think twice"].tokens == sizes.prompts * (sizes.bucket[0] + 3 * sizes.response_len)
    mesh = setup_of(config).mesh
    names = [call.stage.name for call in estimate.planned_calls(config, model, mesh, sizes.bucket)]
    assert names.index("think twice") == names.index("score") + 1


def test_without_a_stage_its_work_is_gone():
    """Catches work that is counted for a stage which does not run."""
    for enabled, kl_coef in itertools.product((True, False), (0.0, 0.01)):
        config = config_of("care", objective__reflect__enabled=enabled, objective__kl_coef=kl_coef)
        sizes = Sizes.of(
            config, estimate.planned_model(config), all_buckets(config)[0], {"data": 1, "fsdp": 1, "tensor": 1}
        )
        work = flops.step_work(sizes, config).keys()
        assert ("reflect" in work) == ("score of reflections" in work) == enabled
        assert ("reference" in work) == (kl_coef > 0)


def test_a_table_without_draws():
    """Catches a table of one stage that cannot be walked."""
    update = dataclasses.replace(step.UPDATE, takes=("state", "batch"), gives=("state",))
    table = Table((update,), lambda setup, bucket: {}, logged=())
    assert table.ends() == {"update": []}
    assert table.taken_by_host() == set()
    assert table.freed_after_drawing() == []


def test_a_row_after_the_update_that_takes_the_old_parameters_is_refused():
    """Catches a stage that reads parameters whose memory the update took: it would fail on a device only."""
    late = dataclasses.replace(step.SAMPLER, name="late")
    with pytest.raises(ValueError, match="stage late takes params"):
        dataclasses.replace(step.STEP, stages=(*step.STEP.stages, late))


def test_a_row_between_two_draws_is_refused():
    """Catches a stage that dynamic sampling repeats although its row does not say so."""
    stages = tuple(
        dataclasses.replace(stage, is_drawing=False) if stage.name == "prefill" else stage for stage in step.STEP.stages
    )
    with pytest.raises(ValueError, match="neighbours"):
        dataclasses.replace(step.STEP, stages=stages).phases()


def test_dynamic_sampling_puts_together_all_that_is_used_of_several_draws():
    """Catches a value of the last draw beside the groups of all draws."""
    assert step.STEP.when(config_of("dapo")).given_anew() <= {*train.REGROUPED}
    assert {"records", "prompts", "rollouts", "judged", "verdicts"} <= step.STEP.given_anew()


def test_a_run_and_its_evaluation_share_the_samplers_program():
    """Catches a program that reads all parameters and is compiled twice at every first start."""
    config = config_of("care")
    setup = setup_of(config)
    identities = []
    for table in (step.STEP.when(config), decoding.EVALUATION):
        calls = trace(table, make_programs(table, setup), setup, all_buckets(config)[0])
        identities += [call.identity for call in calls if call.stage.name == step.SAMPLER.name]
    assert len(identities) == 2
    assert len(set(identities)) == 1
