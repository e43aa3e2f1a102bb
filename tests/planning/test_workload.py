"""Made-up steps: their averages, and the rows that each stage works on."""

from __future__ import annotations

import json
import re
from pathlib import Path

import ml_collections
import numpy as np
import pytest
from etils import epath

from care_jax import config as config_lib
from care_jax.errors import InputError
from care_jax.planning import workload
from care_jax.planning.workload import Averages, Workload, draw

BUCKET = (64, 128)


def config_of(**changes: object) -> ml_collections.ConfigDict:
    """The defaults with 256 prompts and responses of at most 100 tokens."""
    config = config_lib.base()
    config.train.prompts, config.rollout.response_len = 256, 100
    config.objective.reflect.max_rationale_len = 30
    config.update_from_flattened_dict({name.replace("__", "."): value for name, value in changes.items()})
    return config


def made(config: ml_collections.ConfigDict, *, mean_len: float = 40, accuracy: float = 0.5) -> Workload:
    """A step with these averages."""
    return draw(config, Averages.make(config, BUCKET, mean_len=mean_len, accuracy=accuracy), BUCKET, window_len=64)


@pytest.mark.parametrize("mean", [1, 3.5, 40, 80, 100])
def test_lengths_have_the_mean_that_was_given(mean):
    """Catches a mean that the cut at R tokens lowers."""
    lengths = workload.draw_lengths(np.random.default_rng(0), (500, 8), mean, 100)
    assert lengths.mean() == pytest.approx(mean, rel=0.01, abs=0.02)
    assert lengths.min() >= 1
    assert lengths.max() <= 100


def test_a_higher_mean_shortens_no_response_and_a_higher_accuracy_spoils_no_answer():
    """Catches steps of two settings that cannot be compared, since their draws differ."""
    rngs = [np.random.default_rng(3) for _ in range(4)]
    short, long = (workload.draw_lengths(rng, (64, 8), mean, 100) for rng, mean in zip(rngs, (20, 21), strict=False))
    assert np.all(short <= long)
    assert np.any(short < long)
    poor, good = (workload.draw_correct(rng, (64, 8), a) for rng, a in zip(rngs[2:], (0.4, 0.5), strict=True))
    assert np.all(poor <= good)
    assert np.any(poor < good)


@pytest.mark.parametrize(("accuracy", "mixed"), [(0.6, 0.3), (0.6, 0.9), (0.1, 0.25)])
def test_groups_are_as_mixed_as_the_run_had_them(accuracy, mixed):
    """Catches a share of mixed groups, of which most of a step's work hangs, that accuracy alone decides."""
    correct = workload.draw_correct(np.random.default_rng(0), (20_000, 8), accuracy, mixed)
    assert correct.mean() == pytest.approx(accuracy, abs=0.01)
    assert (correct.any(axis=1) & ~correct.all(axis=1)).mean() == pytest.approx(mixed, abs=0.01)


def test_rows_of_a_subgroup_by_hand():
    """Catches an anchor that is not the shortest right response, and slots that are filled without a failure."""
    correct = np.array([[1, 0, 1, 0], [0, 0, 0, 0], [1, 1, 1, 0], [1, 1, 1, 1]], bool)
    lengths = np.array([[9, 3, 5, 4], [8, 7, 6, 5], [3, 2, 9, 6], [1, 1, 1, 1]], np.int32)
    expected = [[5, 3, 4], [8, 7, 6], [2, 6, 0], [1, 0, 0]]  # the last is left out by its caller
    np.testing.assert_array_equal(workload._subgroups(correct, lengths, 1, 2), expected)
    wide = [
        [5, 3, 4, 0, 0, 0, 9, 0, 0],
        [8, 7, 6, 5, 0, 0, 0, 0, 0],
        [2, 6, 0, 0, 0, 0, 3, 9, 0],
        [1, 0, 0, 0, 0, 0, 1, 1, 1],
    ]
    np.testing.assert_array_equal(workload._subgroups(correct, lengths, 4, 5), wide)


def test_stages_of_care_work_on_groups_that_teach():
    """Catches all-correct groups that are computed, and repairs of groups without a right answer."""
    step = made(config_of())
    scored, taught, repairs = (step.rows[f"{name}_packing"] for name in ("rollout", "batch", "repair"))
    teaches, tried = scored.any(axis=1), repairs[:, 0] > 0
    assert 0 < tried.sum() < teaches.sum() < 256
    assert not np.any(tried & ~teaches)
    np.testing.assert_array_equal(taught.any(axis=1), teaches)
    np.testing.assert_array_equal(taught[tried, 1], repairs[tried, 0])  # in the nearest negative's slot
    assert np.all(step.forced[tried] + step.repaired[tried] == repairs[tried])
    assert step.forced.max() == 30  # of a failure, cut
    assert repairs.max() <= 100
    rewritten = made(config_of(objective__reflect__train_on="rewrite"))
    np.testing.assert_array_equal(rewritten.rows["repair_packing"], rewritten.repaired)
    no_rescue = made(config_of(objective__rescue__enabled=False))
    np.testing.assert_array_equal(no_rescue.rows["rollout_packing"].any(axis=1), tried)


@pytest.mark.parametrize("rescued", [True, False])
def test_repairs_in_all_wrong_groups_work_too(rescued):
    """Catches all-wrong groups that are tried for nothing in the plan, and rows of those that a wrong repair leaves."""
    changes = {"objective__reflect__all_wrong": True, "objective__rescue__enabled": rescued}
    step, plain = made(config_of(**changes)), made(config_of())
    scored, taught, repairs = (step.rows[f"{name}_packing"] for name in ("rollout", "batch", "repair"))
    np.testing.assert_array_equal(scored, plain.rows["rollout_packing"])
    np.testing.assert_array_equal(repairs[:, 0] > 0, scored.any(axis=1))
    was_tried = plain.rows["repair_packing"][:, 0] > 0
    all_wrong = scored.any(axis=1) & ~was_tried
    np.testing.assert_array_equal(taught[was_tried], plain.rows["batch_packing"][was_tried])
    turned = taught[all_wrong].any(axis=1)
    assert turned.all() if rescued else 0 < turned.sum() < len(turned)
    assert np.any(taught[all_wrong][:, 0] == repairs[all_wrong][:, 0])


def test_a_virtual_reward_makes_all_wrong_groups_work():
    """Catches a plan in which they cost nothing."""
    plain = {"objective__anchored": False, "objective__reflect__enabled": False, "objective__kl_coef": 0.0}
    steps = [made(config_of(**plain, objective__virtual_reward=reward)) for reward in (1.0, 0.0)]
    ours, theirs = (each.rows["batch_packing"].any(axis=1) for each in steps)
    assert theirs.sum() < ours.sum() < 256
    assert np.all(ours | ~theirs)


def test_stages_of_grpo_work_on_all_rows_with_a_kl_term_and_on_mixed_groups_without():
    """Catches a KL term that is forgotten, and subgroups of an objective that has none."""
    plain = {"objective__anchored": False, "objective__reflect__enabled": False}
    whole = made(config_of(**plain))
    np.testing.assert_array_equal(whole.rows["batch_packing"], whole.rollouts)
    assert set(whole.rows) == {"rollout_packing", "batch_packing"}
    some = made(config_of(**plain, objective__kl_coef=0.0))
    assert 0 < np.mean(some.rows["batch_packing"].any(axis=1)) < 1
    filled = made(config_of(**plain, objective__kl_coef=0.0, objective__dynamic_sampling=True))
    assert filled.num_draws == 2
    nothing = made(config_of(**plain, objective__dynamic_sampling=True, objective__max_draws=7), accuracy=1.0)
    assert nothing.num_draws == 7  # a run tries until it gives up


def test_a_draw_of_care_keeps_the_groups_that_it_rescues():
    """Catches plans that draw until all groups are mixed, though a run would not, and groups planned without work."""
    for is_rescued in (True, False):
        drawn = made(config_of(objective__dynamic_sampling=True, objective__rescue__enabled=is_rescued))
        assert drawn.rows["rollout_packing"].any(axis=1).all()
        assert (drawn.repaired == 0).any() == is_rescued  # all-wrong groups, which are not repaired


@pytest.mark.parametrize(
    ("given", "named"),
    [
        ({"mean_len": 101.0}, "--mean_len=101"),
        ({"mean_len": 0.0}, "--mean_len=0"),
        ({"mean_len": float("nan")}, "--mean_len=nan"),
        ({"accuracy": 1.5}, "--accuracy=1.5"),
        ({"mean_prompt_len": 65.0}, "--mean_prompt_len=65"),
    ],
)
def test_averages_that_cannot_be_are_refused(given, named):
    """Catches a plan of a step that the config does not allow."""
    with pytest.raises(InputError, match=re.escape(named)):
        Averages.make(config_of(), BUCKET, **({"mean_len": 40.0, "accuracy": 0.5} | given))


def write_metrics(folder: Path, *lines: object) -> Path:
    """A run folder with these lines of metrics."""
    folder.mkdir()
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


STEP = {
    "response_len/mean": 30.0,
    "accuracy/train": 0.7,
    "groups/mixed": 0.5,
    "prompt_len/mean": 48.0,
    "patches/mean": 64.0,
}


def test_averages_of_a_run(tmp_path):
    """Catches an evaluation's line that is read as a step, the first steps of a run, and sizes of a bucket."""
    old = STEP | {"response_len/mean": 90.0}
    lines = [old] * 30 + [STEP | {"response_len/mean": 29.0}, STEP | {"response_len/mean": 31.0}] * 10
    folder = write_metrics(tmp_path / "run", *lines, {"step": 50, "eval/accuracy/mean": 0.1})
    expected = Averages(mean_len=30, accuracy=0.7, mean_prompt_len=48, mean_patches=64, mixed=0.5)
    for path in (folder, folder / "metrics.jsonl"):
        found = Averages.of_run(config_of(), BUCKET, epath.Path(path))
        assert vars(found) == pytest.approx(vars(expected))


@pytest.mark.parametrize("content", [None, "", '{"step": 1, "loss": 2.0}\n', "no\n", '{"response_len/mean": "a"}\n'])
def test_a_run_without_steps_is_refused(tmp_path, content):
    """Catches a traceback for a folder that is no run, a cold start's metrics, and another file."""
    (tmp_path / "run").mkdir()
    if content is not None:
        (tmp_path / "run" / "metrics.jsonl").write_text(content)
    with pytest.raises(InputError, match=r"metrics"):
        Averages.of_run(config_of(), BUCKET, epath.Path(tmp_path / "run"))
