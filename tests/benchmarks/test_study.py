"""The study: its record of a run, the statistics over runs, and the command as a whole."""

from __future__ import annotations

import json
import math
import subprocess
import sys
import time
import types
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks import study as study_main
from benchmarks import study_claims, study_page, study_record
from benchmarks import study_stats as stats
from care_jax import config
from care_jax.config import flat
from care_jax.configs import study
from tests import small_study
from tests.end_to_end import REPO, environment


def record(
    accuracy: list[float], *, arm: str = "care", seed: int = 0, seconds: float = 1.0, tokens: int = 100, **fields: Any
) -> dict[str, Any]:
    """The record of a run: evaluations ten steps apart, steps of `seconds` and `tokens` sampled tokens."""
    evaluations = [
        {"step": 10 * i, "tokens": 10 * tokens * i, "accuracy": {"mean": value}} for i, value in enumerate(accuracy)
    ]
    return {
        "task": "t",
        "arm": arm,
        "seed": seed,
        "kind": "training",
        "evaluations": evaluations,
        "curves": {},
        "seconds_a_step": {"step": seconds},
        "tokens": {"rollout": 10 * tokens * (len(accuracy) - 1), "reflect": 0},
        "draws_a_step": 1,
        "no_gradient": {"groups": 0.25, "steps": 0.0},
        "peak_gib": 1.0,
    } | fields


def test_interval_is_students() -> None:
    """Catches a normal quantile, and the population's standard deviation, either of which is too narrow."""
    # t(0.975, 2) = 4.3027; the standard deviation of 1, 2, 3 is 1.
    assert stats.interval([1, 2, 3]) == pytest.approx((2.0, 4.3027 / math.sqrt(3), 3), rel=1e-4)
    assert math.isnan(stats.interval([5.0]).half)


def test_curve_measures_by_hand() -> None:
    """Catches a final accuracy from one evaluation, and a last quarter that is measured on the wrong axis."""
    run = record([0.5, 0.6, 0.5, 0.7, 0.9])
    results = stats.Results([run])
    curve = results.curve(run)
    assert stats.height(curve) == pytest.approx(0.8)  # from 30 to 40
    assert results.final("tokens", 2000)(run) == pytest.approx(0.525)  # from 1500 to 2000
    assert stats.area(curve) == pytest.approx((0.55 + 0.55 + 0.6 + 0.8) / 4)
    with pytest.raises(ValueError, match="has no accuracy at 4001"):
        results.final("tokens", 4001)(run)
    other = stats.Curve(curve.spent + 10, curve.accuracy + 0.2 + 0.1 * np.arange(5))  # starts higher, and gains more
    assert stats.mean_gain([curve, other]).spent == pytest.approx([5, 15, 25, 35, 45])
    assert stats.mean_gain([curve, other]).accuracy == pytest.approx([0, 0.15, 0.1, 0.35, 0.6])
    assert stats.running_means(curve) == pytest.approx([1.6 / 3, 0.6, 0.7])
    assert stats.spent_to(curve, 0.59) == 30
    assert stats.spent_to(curve, 0.75) == math.inf


def test_seconds_are_those_of_the_probes() -> None:
    """Catches times that include other work, a scoring pass that trainings do not make, or another arm's probe.

    An update counts once a step, not by the token: dynamic sampling draws more tokens for one update late in a run.
    """
    run = record([0.5, 0.6, 0.7], seconds=9.0, tokens=50)
    probes = [record([0.5, 0.5], seed=s, seconds=2.0 + s, kind="probe") for s in range(3)]
    for probe in probes:
        probe["seconds_a_step"] |= {"data": 0.25, "rollout": 0.5, "verify": 0.25, "score": 0.25, "update": 0.75}
    other = record([0.5, 0.5], arm="grpo", seconds=100.0, kind="probe")
    results = stats.Results([run, *probes, other])
    assert results.unit_times("t", "care") == pytest.approx((0.01, 0.75))  # 1 s for 100 tokens; the rest of 2 s
    assert results.curve(run, "seconds").spent == pytest.approx([0, 12.5, 25])
    assert stats.Results([run]).curve(run, "seconds").spent == pytest.approx([0, 90, 180])


def test_noise_scale_counts_what_is_sampled() -> None:
    """Catches dynamic sampling whose dropped groups cost nothing, and a mean that is drowned in noise."""
    probe = record([0.5], kind="probe", draws_a_step=2.0)
    measured = [
        stats.log_noise_scale(probe | {"noise": {"variance": 8.0, "signal": signal, "num_prompts": 12}})
        for signal in (4.0, -0.1)
    ]
    assert measured == [pytest.approx(math.log(48.0)), None]


def test_budgets_are_what_all_have_spent() -> None:
    """Catches a comparison at tokens that one of the runs never sampled."""
    results = stats.Results([record([0, 1], seed=0), record([0, 1], seed=1, tokens=80), record([0, 1], arm="grpo")])
    assert results.budget("t", ("care", "grpo"), "tokens") == 800


def test_differences_are_taken_seed_by_seed() -> None:
    """Catches arms that are compared over seeds that only one has, and spread between seeds that is not cancelled."""
    ours = [record([0.5 + 0.1 * s + 0.02] * 2, arm="care", seed=s) for s in range(3)]
    theirs = [record([0.5 + 0.1 * s] * 2, arm="grpo", seed=s) for s in range(5)]
    results = stats.Results(ours + theirs)
    difference = results.difference(results.seeds("t", "care"), results.seeds("t", "grpo"), results.final())
    assert difference is not None
    assert difference.interval == pytest.approx((0.02, 0.0, 3), abs=1e-12)
    assert (difference.ours, difference.theirs) == pytest.approx((0.62, 0.6))


def test_signature_is_fitted_over_single_advantages() -> None:
    """Catches a fit over means, which has no scatter, and K' in place of its root."""
    rng, sums = np.random.default_rng(0), []
    points: dict[str, list[tuple[float, float]]] = {"anchor": [], "negative": []}
    for role, k in (("anchor", 1), ("anchor", 3), ("anchor", 4), ("negative", 1), ("negative", 4)):
        x = k**0.5 if role == "anchor" else k**-0.5
        values = (1 if role == "anchor" else -1) * x + 0.1 * rng.standard_normal(50 * k)
        points[role] += [(x, y) for y in values]
        sums.append([role, k, len(values), values.sum(), (values**2).sum()])
    for role, fit in stats.signature([{"signature": sums}]).items():
        x, y = np.array(points[role]).T
        slope, intercept = np.polyfit(x, y, 1)
        expected = (slope, intercept, np.corrcoef(x, y)[0, 1] ** 2, len(x))
        assert fit == pytest.approx(expected, rel=1e-9)


def test_noise_is_read_from_adams_moments() -> None:
    """Catches a variance that the moments' weights bias, and a squared mean that includes noise."""
    rng, n, size, decay = np.random.default_rng(1), 100, 4000, 0.99
    mean = rng.standard_normal(size).astype(np.float32)
    mu = nu = np.zeros(size, np.float32)
    for _ in range(n):
        gradient = (mean + 3.0 * rng.standard_normal(size)).astype(np.float32)
        mu, nu = decay * mu + (1 - decay) * gradient, decay * nu + (1 - decay) * gradient**2
    noise = study_record.gradient_noise([mu], [nu], num_updates=n, decay=decay)
    assert noise.variance == pytest.approx(9.0 * size, rel=0.01)
    assert noise.signal == pytest.approx(float((mean**2).sum()), rel=0.05)


def test_digest_of_params(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches a digest that other weights have too: of the names alone, of some of them, or of their order."""
    weights = {"a": np.zeros(2, np.float32), "b": np.ones(2, np.float32)}
    swapped = {"a": weights["b"], "b": weights["a"]}
    found = []
    for params in (weights, dict(reversed(weights.items())), weights | {"b": np.full(2, 2, np.float32)}, swapped):
        monkeypatch.setattr(study_record, "load_params", lambda _, params=params: params)
        found.append(study_record.digest_of_params(tmp_path))
    assert found[0] == found[1]
    assert len(set(found)) == 3


def test_record_of_a_run_folder(tmp_path: Path) -> None:
    """Catches evaluations counted as steps, repairs whose tokens do not count, and repaired groups in the signature."""
    steps = [
        {
            "step": s,
            "loss": 1.0,
            "dynamic/draws": 2,
            "tokens/rollout": 90,
            "tokens/reflect": 10,
            "time/step": 2.0,
            "time/update": 0.5 * s,
        }
        for s in (1, 2, 3)
    ]
    rows = [
        {"step": 0, "eval/accuracy/mean": 0.2},
        *steps,
        {"step": 3, "eval/accuracy/mean": 0.4, "time/evaluate": 9.0},
    ]
    base = {"anchor": 1, "num_negatives": 1, "reflected": None, "reflection_correct": None}
    mixed = {"step": 1, "outcome": "MIXED", "advantages_raw": [1.0, -1.0], "advantages": [2.0, -1.0], **base}
    repaired = mixed | {"reflected": 0, "reflection_correct": True, "advantages_raw": [9.0, 9.0]}
    wide = mixed | {"advantages_raw": [0.7, -1.4, 0.7], "advantages": [2.0, -1.0, 9.0]}  # with a further positive
    still = {"step": 2, "outcome": "ALL_CORRECT", "advantages_raw": [], "advantages": [], **base, "anchor": None}
    for name, lines in (("metrics", rows), ("events", [mixed, wide, repaired, still])):
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (tmp_path / "config.json").write_text(json.dumps({"train": {"steps": 3}}))
    ours = study_record.of_run(tmp_path)
    assert ours["evaluations"] == [
        {"step": 0, "tokens": 0, "accuracy": {"mean": 0.2}},
        {"step": 3, "tokens": 300, "accuracy": {"mean": 0.4}},
    ]
    assert ours["seconds_a_step"] == {"step": 2.0, "update": 1.0}
    assert ours["tokens"] == {"rollout": 270, "reflect": 30}
    assert ours["no_gradient"] == {"groups": pytest.approx(5 / 8), "steps": 0.5}  # of 8 drawn
    assert ours["reflections"] == {"tried": 1, "repaired": 1}
    assert ours["signature"] == [["anchor", 1, 1, 1.0, 1.0], ["negative", 1, 1, -1.0, 1.0]]
    assert ours["second_moment"] == {"anchor": 4.0, "negative": 1.0}
    (tmp_path / "config.json").write_text(json.dumps({"train": {"steps": 4}}))
    with pytest.raises(ValueError, match="was stopped before step 4"):
        study_record.of_run(tmp_path)


@pytest.mark.parametrize(
    ("values", "verdict"),
    [
        ([0.02, 0.03, 0.025], study_claims.HOLDS),
        ([-0.02, -0.03, -0.025], study_claims.FAILS),
        ([0.02, -0.03, 0.025], study_claims.OPEN),
        ([-0.02, 0.03, -0.025], study_claims.OPEN),
        ([0.5], study_claims.OPEN),
        ([0.02, 0.02], study_claims.OPEN),
    ],
)
def test_verdicts(values: list[float], verdict: str) -> None:
    """Catches a claim decided by one seed or a wide interval, and a claim of less read as a claim of more."""
    difference = stats.Difference(stats.interval(values), 0.0, 0.0)
    assert study_claims.verdict(difference) == verdict
    opposite = {study_claims.HOLDS: study_claims.FAILS, study_claims.FAILS: study_claims.HOLDS}
    assert study_claims.verdict(difference, less=True) == opposite.get(verdict, verdict)


def test_every_arm_has_a_config_of_its_own() -> None:
    """Catches two arms with one config, a change that the demo's settings undo, and a claim about an unknown arm."""
    configs = {name: study.get_config(f"{study.FIRST_TASK}/{name}").to_json() for name in study.ARMS}
    assert len(set(configs.values())) == len(configs)
    for name, arm in study.ARMS.items():
        objective = json.loads(configs[name])["objective"]
        for key, value in arm.changes.items():
            found = objective
            for part in key.split("."):
                found = found[part]
            assert found == value, (name, key)
    claims = [*study_claims.BETTER_OBJECTIVES, *study_claims.BETTER_PARTS, *study_claims.REPAIRS]
    claims += [*study_claims.GRADIENTS, *study_claims.SHARES, *study_claims.NOISE]
    named = {name for claim in claims for name in (claim.arm, claim.than)}
    named |= {name for default in study_claims.DEFAULTS for name in (default.arm, *default.others.values())}
    assert named <= study.ARMS.keys()
    with pytest.raises(ValueError, match="'three_skills/sft' is not a run of the study"):
        study.get_config("three_skills/sft")


def test_plan_has_the_seeds_of_every_arm() -> None:
    """Catches an arm that gets another's seeds, a run that is planned twice, and an order by arm before seed."""
    runs = study_main.plan(study)
    assert len(set(runs)) == len(runs)
    assert [run.seed for run in runs] == sorted(run.seed for run in runs)

    def seeds(arm: str, kind: str) -> list[int]:
        return [run.seed for run in runs if (run.task, run.arm, run.kind) == (study.FIRST_TASK, arm, kind)]

    assert seeds("care", "training") == [0, 1, 2, 3, 4]
    assert seeds("care", "probe") == [0, 1, 2]
    assert seeds("dapo", "training") == [0, 1, 2]
    assert seeds("care_long", "training") == [2, 3, 4]
    assert not seeds("care_long", "probe")


@pytest.mark.slow
def test_the_command_makes_the_runs_and_goes_on(tmp_path: Path) -> None:
    """Catches a run that is made twice, a record that lacks what the page needs, and a page that loads from a host."""

    def call(*flags: str, code: int = 0) -> str:
        command = [sys.executable, "-m", "benchmarks.study", "--config=tests/small_study.py", f"--out={tmp_path}/out"]
        command += [f"--work={tmp_path}/work", *flags]
        done = subprocess.run(command, cwd=REPO, capture_output=True, text=True, env=environment(tmp_path / "cache"))
        assert done.returncode == code, done.stderr
        return done.stdout if code == 0 else done.stderr

    assert "has no runs yet" in call("--page_only", code=2)
    broken = tmp_path / "broken.py"  # whose second arm can't be made
    lines = ["from tests import small_study", "from tests.small_study import *", "def get_config(run):"]
    lines += ["    if run == 'tiny/care': raise ValueError('no such thing')", "    return small_study.get_config(run)"]
    broken.write_text("\n".join(lines))
    assert "no such thing" in call(f"--config={broken}", code=2)
    assert not (tmp_path / "work" / "tiny").exists()
    made = f"runs are made: {tmp_path}/out/index.html"
    assert call("--only=grpo/0/training").splitlines() == ["1/1  tiny grpo 0 training", f"1 of 3 {made}"]
    runs = tmp_path / "out" / "runs.jsonl"
    recorded = runs.read_text()
    runs.write_text(recorded.replace('"cold_start": "', '"cold_start": "another'))
    message = "tiny/care/0/training is not kept: it started from another cold start than tiny/grpo/0/training"
    assert message in call("--only=care/0/training", code=2)
    assert len(runs.read_text().splitlines()) == 1
    runs.write_text(recorded + '{"task": "tiny", "arm"')  # as a kill leaves it
    assert call().splitlines() == ["1/2  tiny care 0 training", "2/2  tiny care 0 probe", f"3 of 3 {made}"]
    records = [json.loads(line) for line in runs.read_text().splitlines()]
    assert [(r["arm"], r["kind"]) for r in records] == [("grpo", "training"), ("care", "training"), ("care", "probe")]
    assert not [r["command"] for r in records if str(tmp_path) in json.dumps(r)]
    assert len({r["cold_start"] for r in records}) == 1
    assert records[0]["evaluations"][0] == records[1]["evaluations"][0]
    assert records[1]["no_gradient"]["groups"] < 1
    assert records[2]["noise"]["variance"] > 0
    page = (tmp_path / "out" / "index.html").read_text()
    assert page.count("<svg") == 4
    assert "src=" not in page
    assert page.count(">CARE<") > 3
    assert "| GRPO | 1 |" in (tmp_path / "out" / "README.md").read_text()


def test_only_names_runs() -> None:
    """Catches a mistyped --only, which would only write the page again, and a traceback."""
    runs = study_main.plan(small_study)
    assert [run.arm for run in study_main.chosen(runs, "care/0/training")] == ["care"]
    for only, message in (
        ("(", "not a regular expression"),
        ("sft", "selects none of the study's runs, for example tiny/grpo/0/tr"),
    ):
        with pytest.raises(ValueError, match=message):
            study_main.chosen(runs, only)


@pytest.mark.parametrize("data_format", ["mini_vqa", "jsonl"])
def test_own_data_stay_where_the_config_says(data_format: str, tmp_path: Path) -> None:
    """Catches a study of a user's own data that looks for them in the work folder."""
    config = small_study.get_config("tiny/care")
    config.data.format = data_format
    own = types.SimpleNamespace(TASKS={}, ARMS={}, get_config=lambda _: config)
    words = study_main.Runner(own, "c.py", tmp_path)._command("care_jax.train", "t", "care", 0, tmp_path)
    assert (f"--config.data.train={tmp_path}/data" in words) == (data_format == "mini_vqa")


def test_what_was_recorded_is_kept(tmp_path: Path) -> None:
    """Catches a last line that is dropped because it lacks a line feed, and a broken file that is cut or not named."""
    path = tmp_path / "runs.jsonl"
    for text, kept in (('{"a": 1}\n{"a": 2}', '{"a": 1}\n{"a": 2}\n'), ('{"a": 1}\n{"a', '{"a": 1}\n')):
        path.write_text(text)
        assert len(study_main.read_records(tmp_path)) == kept.count("a")
        assert path.read_text() == kept
    path.write_text('{"a": 1}\nx\n{"a": 2}\n')
    with pytest.raises(ValueError, match=r"runs.jsonl:2 is not a record"):
        study_main.read_records(tmp_path)
    assert path.read_text() == '{"a": 1}\nx\n{"a": 2}\n'


def test_a_study_that_is_stopped_leaves_no_run_behind(tmp_path: Path) -> None:
    """Catches runs that continue after SIGTERM and hold the folders that the same command needs to resume."""
    command = [sys.executable, "-m", "benchmarks.study", "--config=tests/small_study.py", f"--out={tmp_path}/out"]
    command += [f"--work={tmp_path}/work", "--only=grpo"]
    process = subprocess.Popen(
        command, cwd=REPO, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, env=environment(tmp_path / "c")
    )

    def running() -> bool:
        return subprocess.run(["pgrep", "-f", f"workdir={tmp_path}/work"], stdout=subprocess.DEVNULL).returncode == 0

    while not running():
        assert process.poll() is None
        time.sleep(0.05)
    process.terminate()
    _, said = process.communicate(timeout=120)
    assert process.returncode == 1
    assert "stopped: run the same command again to resume" in said
    assert not running()
    assert not list((tmp_path / "work").glob("**/checkpoints/2"))


def test_page_by_hand(tmp_path: Path) -> None:
    """Catches a cell in the wrong row or column, and a claim or default decided by too little evidence."""
    gains = {"grpo": 0.0, "care": -0.1, "care_equal": 0.02, "dapo": 0.01, "rescue_delta": 0.05, "rescue_mean": 0.02}
    about = {
        "command": "python -m care_jax.train --config=c.py:t/care --workdir=w --config.seed=0 --config.data.train=d "
        "--config.model.weights=start",
        "machine": "m",
        "manifest": {"commit": "c", "device": "d"},
    }
    records = [
        record(
            [0.5] * 2 + [0.5 + gains[arm] + 0.01 * seed] * 2 + [0.6 + gains[arm] + 0.01 * seed],
            arm=arm,
            seed=seed,
            task=task,
            tokens=200 if arm in ("care_equal", "rescue_mean") else 100,
            **about,
        )
        for task, arms in (
            (study.FIRST_TASK, gains),
            (study.SECOND_TASK, ("care_equal", "rescue_delta", "rescue_mean")),
        )
        for arm in arms
        for seed in range(3)
    ]
    # A step takes 2 s in GRPO, 4 s in CARE, and 1 s where nothing was probed; the noise differs by the factor 4.
    records += [
        record(
            [0.5, 0.5],
            arm=arm,
            seed=seed,
            task=study.FIRST_TASK,
            kind="probe",
            seconds=seconds + seed,
            noise={"variance": variance * (1 + 0.1 * seed), "signal": 1.0, "num_prompts": 12},
            reflections={"tried": 10, "repaired": repaired + seed},
            no_gradient={"groups": still, "steps": 0.0},
            **about,
        )
        for arm, seconds, variance, repaired, still in (
            ("grpo", 2.0, 1.0, 0, 0.5),
            ("care_equal", 4.0, 4.0, 3, 0.5),
            ("care_no_rgr", 4.0, 4.0, 0, 0.25),
            ("reflect_continuation", 4.0, 4.0, 4, 0.5),
            ("reflect_no_cue", 4.0, 4.0, 1, 0.5),
        )
        for seed in range(3)
    ]
    study_page.write(tmp_path, study, records, command="python -m all", num_planned=len(records) + 1)
    lines = (tmp_path / "README.md").read_text().splitlines()
    # GRPO's curve ends with a rise from 50 to 60, or 52 to 62. CARE with equal weights samples twice as much and is at
    # equal tokens but at its second evaluation, with half a rise from 50 to 52, or 54.
    start = "Three skills: 50.0 % of held-out answers are right after the cold start, 56.0 % with GRPO. Difference "
    assert f"{start}in points at equal tokens: CARE -10.0 ± 0.0; CARE, equal weights -3.8 ± 0.6." in lines
    assert "42 of 43 runs are made: no figure or verdict here is final." in lines

    def cells(start: str) -> list[str]:
        return next(line for line in lines if line.startswith(f"| {start} |")).removesuffix(" |").split(" | ")

    figures = ["58.0 ± 2.5", "+2.0 ± 0.0", "52.2 ± 1.9", "-3.8 ± 0.6", "50.0 ± 0.0", "-0.8 ± 1.9", "53.1 ± 1.6"]
    assert cells("CARE, equal weights | 3")[2:] == [*figures, "40, 3 of 3"]
    assert cells("CARE | 3")[-1] == "never"
    claims = {
        "CARE is better than GRPO": [study_claims.FAILS, "46.0 against 56.0: -10.0 ± 0.0, 3 seeds at equal tokens; "],
        "Equalisation helps": [study_claims.OPEN, study_claims.MISSING],
        "The cue repairs more failures than none": [study_claims.HOLDS, "50.0 against 20.0: +30.0 ± 0.0, 3 seeds"],
        "Without reflection, more groups give a gradient than with GRPO": [
            study_claims.HOLDS,
            "75.0 against 50.0: +25",
        ],
        "With reflection, more groups give a gradient than with GRPO": [study_claims.OPEN, "50.0 against 50.0: +0.0"],
        "With equal weights, CARE's gradient has less noise relative to its mean than GRPO's": [
            study_claims.FAILS,
            "noise scale 53 against 13 prompts: 4.00 (4.00 to 4.00) times, 3 seeds",
        ],
    }
    for claim, (verdict, figure) in claims.items():
        found = cells(f"{claim} | three skills")
        assert (found[2], found[3][: len(figure)]) == (verdict, figure)
    assert [line.partition(": ")[2] for line in lines if "counted once a task" in line] == [
        "supported 1, contradicted 2, inconclusive 12.",  # with a figure in the paper
        "supported 1, contradicted 4, inconclusive 29.",
    ]
    costs = cells("CARE, equal weights | 0 | 0")
    assert costs[8:] == ["4000", "2.00", "0.0 ± 0.0", "1.00 ± 0.00", "1.00"]
    assert "| objective.rescue.scale | zscore | delta | +3.0 ± 0.0 | +3.0 ± 0.0 | +3.0 ± 0.0 | better: delta |" in lines
    assert cells("objective.rescue.rank_by | sum | mean")[-1] == "no clear difference: sum stays"
    assert not [line for line in lines if line.startswith("| objective.aggregate")]
    assert any(
        line.startswith("| Rescue: scale delta, rank by sum | three skills | CARE, equal weights | 3 | 61.0")
        for line in lines
    )
    assert lines.count("python -m all") == 1
    assert about["command"] in lines
    cold = "python -m care_jax.cold_start --config=c.py:t/cold_start --workdir=start --config.seed=0"
    assert f"{cold} --config.data.train=d" in lines


@pytest.mark.parametrize("file", ["study.py", "failures.py"])
def test_every_run_of_a_study_can_begin(file: str) -> None:
    """Catches an arm that is refused after hours of others, and changes of a cold start that reach the runs from it."""
    module = study_main.load_study(str(REPO / "configs" / file))
    for task, about in module.TASKS.items():
        for name in (*module.ARMS, "cold_start"):
            c = module.get_config(f"{task}/{name}")
            c.data.train, c.model.weights = "somewhere", "random" if name == "cold_start" else "somewhere"
            config.validate(c)
            wanted = dict(about.changes) | (about.cold_start if name == "cold_start" else {})
            assert {key: flat(c)[key] for key in wanted} == wanted


def test_a_run_that_fails_ends_the_study(tmp_path: Path) -> None:
    """Catches hours of other runs that are still made, and not recorded, after one has failed."""
    made = []

    class Failing:
        def record(self, run: study_main.Run) -> dict[str, Any]:
            made.append(run)
            time.sleep(0.05)
            if len(made) == 2:
                raise ValueError("the second fails")
            return run._asdict()

    runs = [study_main.Run("t", "care", seed, "training") for seed in range(50)]
    with pytest.raises(ValueError, match="the second fails"):
        list(study_main.run_all(Failing(), runs, 1))
    assert len(made) < 10


@pytest.mark.parametrize(
    ("made", "message"),
    [
        ({"arm": "dapo"}, "has tiny/dapo/0/training, which is not in the study"),
        ({"settings": {"optimizer.lr": 1.0, "later": 0}}, "has tiny/care/0/training with another optimizer.lr than"),
        ({"settings": {"cold_start.train.prompts": 65}}, "with another cold_start.train.prompts than"),
        ({"cold_start": "other"}, "has tiny/care/0/training from another cold start than tiny/grpo/0"),
    ],
)
def test_runs_of_another_study_are_not_mixed_in(made: dict[str, Any], message: str, tmp_path: Path) -> None:
    """Catches runs of two configs under one title, and arms compared from different cold starts."""
    runner = study_main.Runner(small_study, "", tmp_path)
    ours, other = (record([0.5, 0.5], task="tiny", arm=arm, settings={}, cold_start="one") for arm in ("grpo", "care"))
    ours["settings"] = runner.settings(study_main.run_of(ours))
    study_main.require_one_study([ours, other], study_main.plan(small_study), runner)
    with pytest.raises(ValueError, match=message):
        study_main.require_one_study([ours, other | made], study_main.plan(small_study), runner)


def test_the_published_runs_are_those_of_the_study(tmp_path: Path) -> None:
    """Catches a setting that is spelled anew, after which --page_only refuses the runs that the README names."""
    runner = study_main.Runner(study, "configs/study.py", tmp_path)
    study_main.require_one_study(study_main.read_records(REPO / "docs/study"), study_main.plan(study), runner)
