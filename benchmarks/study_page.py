"""The study's page: pictures first, then claims, figures, costs, and how to reproduce them."""

from __future__ import annotations

import collections
import functools
import json
import math
import shlex
import statistics
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import matplotlib

from benchmarks import study_claims, study_pictures
from benchmarks import study_stats as stats
from benchmarks.study_claims import percent, points
from benchmarks.study_document import Page
from benchmarks.study_stats import Interval, Measure, Record, Results

_STAGES = ("data", "rollout", "verify", "score", "select", "reflect", "update")


def write(out: Path, study: Any, records: Sequence[Record], *, command: str, num_planned: int) -> None:
    """Writes OUT/index.html and OUT/README.md from the records.

    Args:
        out: the folder.
        study: a module such as configs/study.py; its tasks and arms have titles, sections and baselines.
        records: the lines of runs.jsonl.
        command: the command that makes the runs.
        num_planned: the number of runs in the whole study.
    """
    results = Results(records)
    main = [name for name, arm in study.ARMS.items() if arm.section == study.OBJECTIVES]
    pairs = _changed(results, study)
    with matplotlib.rc_context(study_pictures.STYLE):
        page = Page("Does CARE do here what its paper says?")
        if len(records) < num_planned:
            page.text(f"{len(records)} of {num_planned} runs are made: no figure or verdict here is final.", "note")
        claims = study_claims.claims(results, study)
        _summary(page, results, study, main, claims)
        base = _base(study)
        page.picture(study_pictures.differences(results, study, [name for name in main if name != base], base))
        page.picture(study_pictures.learning_curves(results, study, main))
        page.heading("What is trained")
        page.text(study.ABOUT)
        if claims:
            _claims(page, results, study, claims)
        for task, about in study.TASKS.items():
            if names := [name for name in main if results.seeds(task, name)]:
                page.heading(f"Objectives, {about.title}")
                page.text(
                    "Held-out accuracy in percent, at the end, and at the tokens and the seconds that all have spent. "
                    f"Rows may have different seeds: compare them by the columns against {study.ARMS[base].title}, "
                    "which are differences over the seeds that both have.",
                    "note",
                )
                page.table(*_objectives(results, study, task, names))
                page.text(
                    "Entropy and length are those of the groups used in the update. DAPO's groups without gradient "
                    "are all the groups it did not use, even good ones left over when the batch was full. If almost "
                    "nothing is clipped, DAPO's higher clip makes no difference. The noise scale is that of the "
                    "gradient at the cold start, in sampled prompts: a geometric mean with its interval.",
                    "note",
                )
                page.table(*_dynamics(results, study, task, names))
        page.heading("One thing changed")
        page.text(
            "Differences to the baseline, in points of final accuracy. The mean square of the negatives' advantages "
            "over that of the anchors follows from the definition: s² / K'² in a subgroup of K' negatives, less if a "
            "repair was tried and failed.",
            "note",
        )
        page.picture(study_pictures.changes(results, study, pairs))
        page.table(*_changes(results, study, pairs))
        page.heading("The mechanism")
        page.text(
            "With rewards for right and wrong answers alone, K' determines the raw advantages: this checks the code, "
            "not the method. The reward for the format moves them a little. Subgroups with a repaired failure follow "
            "another law and are left out.",
            "note",
        )
        page.table(["", "should be", "are", "R²", "advantages"], study_claims.signature(results, study))
        page.picture(study_pictures.mechanism(results, study))
        _costs(page, results, study)
        _how(page, records, command)
        page.write(out)


def _summary(page: Page, results: Results, study: Any, names: Sequence[str], claims: Sequence[Sequence[str]]) -> None:
    base = _base(study)
    most = max(len(study.ARMS[name].seeds) for name in names)
    chief = [name for name in names if name != base and len(study.ARMS[name].seeds) == most]
    for task, about in study.TASKS.items():
        runs = results.seeds(task, base)
        start = results.over_seeds(runs, lambda record: float(results.curve(record).accuracy[0]))
        end = results.over_seeds(runs, results.final())
        found = [
            f"{study.ARMS[name].title} {points(study_claims.at_equal(results, task, (name, base), 'tokens'))}"
            for name in chief
        ]
        if start and end:
            page.text(
                f"{about.title.capitalize()}: {100 * start.mean:.1f} % of held-out answers are right after the cold "
                f"start, {100 * end.mean:.1f} % with {study.ARMS[base].title}. Difference in points at equal tokens: "
                f"{'; '.join(found)}.",
                "lead",
            )
    for has_figure, words in ((True, "Claims with a figure in the paper"), (False, "Other claims")):
        verdicts = collections.Counter(row[2] for row in claims if bool(row[4]) == has_figure)
        if verdicts:
            counts = ", ".join(f"{verdict} {verdicts[verdict]}" for verdict in study_claims.VERDICTS)
            page.text(f"{words}, counted once a task: {counts}.", "lead")


def _claims(page: Page, results: Results, study: Any, rows: Sequence[Sequence[str]]) -> None:
    page.heading("Claims")
    page.text(
        "A claim is supported if the 95 % interval of the difference is above 0, and contradicted if it is below. "
        f"Otherwise, or with fewer than {study_claims.MIN_SEEDS} seeds, it is inconclusive. Of {len(rows)} such "
        f"intervals about {max(1, round(0.05 * len(rows)))} miss their true value by chance. Objectives are judged at "
        "equal tokens, the most that both have spent, parts of CARE at equal steps, repairs, gradients and noise by "
        "probes at the cold start. Parts of CARE other than the token weights are judged with equal weights. Figures "
        "are percent of held-out accuracy, of failures repaired, of groups, and of the absolute advantage. The last "
        "column has the figures of the paper (arXiv 2512.19554) for Qwen2.5-VL-7B on six benchmarks, with its own "
        "token weights.",
        "note",
    )
    page.text(
        "Some claims hold by construction. The cold start teaches what the cue asks for. Wrong responses have half of "
        "the absolute advantage in GRPO, and s / (1 + s), a third with s = 0.5, in a subgroup; repaired ones and all "
        "rows of a rescued group count too, though some of them are pushed up. Rescue gives all-wrong groups a "
        "gradient. A repair of a subgroup's only failure leaves equal rewards, and no gradient.",
        "note",
    )
    page.table(["claim", "task", "verdict", "figure", "paper"], rows, words=True)
    page.heading("Defaults")
    page.text(
        "Values that the sources leave open, and the change in points of final accuracy with another value. Another "
        "value becomes the default if it was tried in every task and the interval over all pairs of runs is above 0. "
        "A continuation needs R = 56, all others have R = 32. Settings that these runs share may differ from the "
        "defaults: their repairs are rewritten, for room, and with equal weights tags count.",
        "note",
    )
    head = ["key", "kept", "other", *(about.title for about in study.TASKS.values()), "together", "verdict"]
    page.table(head, study_claims.defaults(results, study), words=True)


def _objectives(results: Results, study: Any, task: str, names: Sequence[str]) -> tuple[list[str], list[list[str]]]:
    records = [record for name in names for record in results.seeds(task, name).values()]
    skills = sorted({skill for record in records for skill in record["evaluations"][-1]["accuracy"]} - {"mean"})
    budgets = {axis: results.budget(task, names, axis) for axis in study_pictures.AXES}
    base = _base(study)
    targets = {
        seed: stats.running_means(results.curve(record))[-1] for seed, record in results.seeds(task, base).items()
    }
    rows = []
    for name in names:
        seeds = results.seeds(task, name)
        measures = [results.final(), *(results.final(axis, budget) for axis, budget in budgets.items())]
        cells = [study.ARMS[name].title, str(len(seeds))]
        cells += [percent(results.over_seeds(seeds, results.final(skill=skill))) for skill in skills]
        for measure in measures:
            difference = results.difference(seeds, results.seeds(task, base), measure)
            cells.append(percent(results.over_seeds(seeds, measure)))
            cells.append(points(difference) if name != base else "")
        cells.append(percent(results.over_seeds(seeds, lambda record: stats.area(results.curve(record)))))
        steps = [stats.spent_to(results.curve(seeds[seed]), targets[seed]) for seed in seeds.keys() & targets.keys()]
        reached = [step for step in steps if step < math.inf]
        cells.append(f"{statistics.median(reached):.0f}, {len(reached)} of {len(steps)}" if reached else "never")
        rows.append(cells)
    against = f"against {study.ARMS[base].title}"
    head = ["", "seeds", *skills, "mean", against, f"at {budgets['tokens']:,.0f} tokens", against]
    head += [f"at {budgets['seconds']:,.0f} s", against, "mean of the curve"]
    return [*head, f"steps to {study.ARMS[base].title}'s end, seeds that reach it"], rows


def _base(study: Any) -> str:
    """The arm that the objectives are compared with."""
    return next(arm.baseline for arm in study.ARMS.values() if arm.section == study.OBJECTIVES)


def _dynamics(results: Results, study: Any, task: str, names: Sequence[str]) -> tuple[list[str], list[list[str]]]:
    columns: list[tuple[str, Callable[[Interval | None], str], Measure, bool]] = [
        ("groups without gradient, %", percent, lambda r: r["no_gradient"]["groups"], False),
        ("steps without, %", percent, lambda r: r["no_gradient"]["steps"], False),
        ("advantage from failures, %", percent, lambda r: stats.mean_of(r, "advantage/failure_share"), False),
        ("repaired, %", percent, stats.repair_rate, False),
        ("entropy at the end", functools.partial(number, digits=3), lambda r: stats.last(r, "entropy"), False),
        ("length at the end", functools.partial(number, digits=1), lambda r: stats.last(r, "response_len/mean"), False),
        ("clipped, %", percent, lambda r: stats.mean_of(r, "clip_fraction"), False),
        ("noise scale", functools.partial(study_claims.of_logs, digits=0), stats.log_noise_scale, True),
    ]
    rows = []
    for name in names:
        kinds = {False: results.seeds(task, name), True: results.probes(task, name)}
        cells = [show(results.over_seeds(kinds[probed], measure)) for _, show, measure, probed in columns]
        rows.append([study.ARMS[name].title, *cells])
    return ["", *(column[0] for column in columns)], rows


def number(value: Interval | None, digits: int = 2) -> str:
    """A mean over seeds with half its interval."""
    if value is None:
        return study_claims.MISSING
    half = "" if math.isnan(value.half) else f" ± {value.half:.{digits}f}"
    return f"{value.mean:.{digits}f}{half}"


def _title(study: Any, name: str) -> str:
    """The title of an arm, after its section unless that is the objectives."""
    arm = study.ARMS[name]
    return arm.title if arm.section == study.OBJECTIVES else f"{arm.section}: {arm.title}"


def _changed(results: Results, study: Any) -> list[tuple[str, str]]:
    """(task, arm) of the arms in which one thing was changed, section by section."""
    names = [name for name, arm in study.ARMS.items() if arm.section != study.OBJECTIVES]
    sections = list(dict.fromkeys(study.ARMS[name].section for name in names))
    names.sort(key=lambda name: sections.index(study.ARMS[name].section))
    return [(task, name) for name in names for task in study.TASKS if results.seeds(task, name)]


def _changes(results: Results, study: Any, pairs: Sequence[tuple[str, str]]) -> tuple[list[str], list[list[str]]]:
    rows = []
    for task, name in pairs:
        arm = study.ARMS[name]
        ours, theirs = results.seeds(task, name), results.seeds(task, arm.baseline)
        budget = results.budget(task, (name, arm.baseline), "tokens") if theirs else None
        measures = (results.final(), results.final("tokens", budget))
        found = [results.difference(ours, theirs, measure) for measure in measures]
        rows.append(
            [
                _title(study, name),
                study.TASKS[task].title,
                _title(study, arm.baseline),
                str(len(ours)),
                percent(results.over_seeds(ours, results.final())),
                *(points(difference) for difference in found),
                percent(results.over_seeds(ours, stats.repair_rate)),
                number(results.over_seeds(ours, stats.variance_ratio), 3),
                study_claims.of_logs(results.over_seeds(results.probes(task, name), stats.log_noise_scale), 0),
            ]
        )
    head = ["", "task", "baseline", "seeds", "final", "difference", "at equal tokens", "repaired, %"]
    return [*head, "mean square, negatives / anchors", "noise scale"], rows


def _costs(page: Page, results: Results, study: Any) -> None:
    page.heading("What it costs")
    page.text(
        "Milliseconds of an arm's fastest probe, medians over its steps, on the machine named in the last table. "
        "Probes have a scoring pass; in the trainings the sampler keeps the log-probs instead. Resident memory is the "
        "median over an arm's processes.",
        "note",
    )
    for task, about in study.TASKS.items():
        names = [name for name in study.ARMS if results.probes(task, name)]
        if not names:
            continue
        fastest = {name: min(results.probes(task, name).values(), key=stats.seconds_a_step) for name in names}
        base = fastest.get(_base(study))
        rows = []
        for name in names:
            probes = results.probes(task, name)
            times = [stats.seconds_a_step(fastest[name], stage) for stage in (*_STAGES, "step")]
            ratio = f"{times[-1] / stats.seconds_a_step(base):.2f}" if base else study_claims.MISSING
            peak = statistics.median(r["peak_gib"] for r in (*probes.values(), *results.seeds(task, name).values()))
            rows.append(
                [
                    _title(study, name),
                    *(f"{1e3 * each:.0f}" for each in times),
                    ratio,
                    percent(results.over_seeds(probes, stats.extra_tokens)),
                    number(results.over_seeds(probes, lambda record: record["draws_a_step"])),
                    f"{peak:.2f}",
                ]
            )
        head = [about.title, *_STAGES, "step", f"/ {study.ARMS[_base(study)].title}"]
        page.table([*head, "tokens of repairs, %", "batches drawn", "GiB resident"], rows)


def _how(page: Page, records: Sequence[Record], command: str) -> None:
    """Adds commands, seeds, commits, machines and versions."""
    page.heading("How to reproduce these figures")
    page.code(command)
    page.text(
        f"Seeds {', '.join(map(str, sorted({record['seed'] for record in records})))}. All arms of a seed start from "
        "one cold start and draw the prompts in one order; no arm has a KL term, the learning rate is constant, and "
        "no gradient is clipped, so the scale of a loss does not matter. Final accuracy is the mean height of the "
        "learning curve, greedy answers to all held-out questions, over the last quarter of the steps, or of the "
        f"tokens or seconds that are compared. An arm reaches the end of another when the mean of {stats.NUM_MEAN} "
        f"evaluations reaches that of the other's last {stats.NUM_MEAN}. Seconds are the least over the probes, "
        "without the scoring pass: one time for each token (data, rollout and verify) and one for the rest of each "
        "step. Intervals are 95 % by Student's t over seeds, of differences seed by seed. The held-out questions are "
        "the same for all seeds, so the intervals do not cover other questions. A probe samples and computes "
        "gradients at the cold start with a fixed policy. The noise scale (arXiv 1812.06162) is the variance of that "
        "gradient over the squared norm of its mean, times the prompts sampled for it. Figures change a little with "
        "the number of cores of a run, which the last table names: choose --jobs to match it. The commands of one "
        "cold start and of one run from it, in this order:",
    )
    page.code(f"{_cold_start_command(records[0]['command'])}\n{records[0]['command']}")
    counts: dict[str, int] = {}
    for record in records:
        about = {key: value for key, value in record["manifest"].items() if key not in ("seed", "stage", "processes")}
        key = json.dumps(about | {"machine": record["machine"]})
        counts[key] = counts.get(key, 0) + 1
    rows = []
    for text, count in counts.items():
        about = json.loads(text)
        commit, machine, device = (about.pop(key) for key in ("commit", "machine", "device"))
        versions = ", ".join(f"{key} {value}" for key, value in about.items())
        rows.append([str(count), commit, f"{machine}, {device}", versions])
    page.table(["runs", "commit", "machine", "versions"], rows, words=True)


def _cold_start_command(command: str) -> str:
    """The command of the cold start that a run's command names."""
    flags = dict(word.partition("=")[::2] for word in shlex.split(command))
    config = f"{flags['--config'].rpartition('/')[0]}/cold_start"
    words = [f"--config={config}", f"--workdir={flags['--config.model.weights']}"]
    words += [f"{name}={flags[name]}" for name in ("--config.seed", "--config.data.train") if name in flags]
    return shlex.join(["python", "-m", "care_jax.cold_start", *words])
