"""The study's page and table: pictures first, then figures, claims, costs, and how each figure is had again."""

from __future__ import annotations

import functools
import html
import io
import json
import statistics
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from benchmarks import study_claims
from benchmarks import study_stats as stats
from benchmarks.study_stats import Interval, Record, Results

CARE, GRPO = "care", "grpo"
_STYLE: Any = {
    "svg.fonttype": "none",
    "svg.hashsalt": "study",  # equal records give equal bytes
    "font.size": 9,
    "font.family": "sans-serif",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#e3e7ee",
    "legend.frameon": False,
    "figure.constrained_layout.use": True,
}
_CSS = """
body { margin: 0 auto; max-width: 1180px; padding: 28px 20px 80px; color: #1c2330; background: #f6f7f9;
  font: 15px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, sans-serif; }
h1 { font-size: 27px; margin: 0 0 8px; } h2 { font-size: 19px; margin: 36px 0 6px; }
p { max-width: 78em; margin: 0 0 10px; } .lead { font-size: 17px; } .note { color: #5d6778; }
.card { background: #fff; border: 1px solid #dfe3ea; border-radius: 10px; padding: 10px 14px; margin: 10px 0;
  overflow-x: auto; }
.card svg { max-width: 100%; height: auto; display: block; margin: 0 auto; }
table { border-collapse: collapse; font-size: 13px; font-variant-numeric: tabular-nums; }
th, td { text-align: right; padding: 4px 10px; border-top: 1px solid #eceff4; vertical-align: top; }
th:first-child, td:first-child, .words td { text-align: left; } thead th { border-top: 0; }
.holds { color: #1a7f4b; font-weight: 600; } .not { color: #b3372f; font-weight: 600; } .open { color: #5d6778; }
code { font-size: 12px; overflow-wrap: anywhere; }
"""


class Table:
    """Rows of text, as HTML and as Markdown."""

    def __init__(self, head: Sequence[str], rows: Iterable[Sequence[str]], *, words: bool = False) -> None:
        self.head, self.rows, self.words = list(head), [list(row) for row in rows], words

    def html(self) -> str:
        """A table element in a card; a cell that is a verdict gets its colour."""
        colours = {study_claims.HOLDS: "holds", study_claims.FAILS: "not", study_claims.OPEN: "open"}

        def cell(text: str) -> str:
            mark = f' class="{colours[text]}"' if text in colours else ""
            return f"<td{mark}>{html.escape(text)}</td>"

        head = "".join(f"<th>{html.escape(name)}</th>" for name in self.head)
        body = "".join(f"<tr>{''.join(map(cell, row))}</tr>" for row in self.rows)
        kind = ' class="words"' if self.words else ""
        return f'<div class="card"><table{kind}><thead><tr>{head}</tr></thead>{body}</table></div>'

    def markdown(self) -> str:
        lines = [self.head, ["---"] * len(self.head), *self.rows]
        return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines) + "\n"


class Page:
    """What both files say, in order: headings, text, tables; pictures are in the HTML alone."""

    def __init__(self, title: str) -> None:
        self._html, self._markdown = [f"<h1>{html.escape(title)}</h1>"], [f"# {title}\n"]

    def heading(self, text: str) -> None:
        self._html.append(f"<h2>{html.escape(text)}</h2>")
        self._markdown.append(f"## {text}\n")

    def text(self, text: str, kind: str = "") -> None:
        self._html.append(f'<p class="{kind}">{html.escape(text)}</p>' if kind else f"<p>{html.escape(text)}</p>")
        self._markdown.append(f"{text}\n")

    def code(self, lines: Sequence[str]) -> None:
        self._html.append("<pre><code>" + html.escape("\n".join(lines)) + "</code></pre>")
        self._markdown.append("```bash\n" + "\n".join(lines) + "\n```\n")

    def table(self, table: Table) -> None:
        self._html.append(table.html())
        self._markdown.append(table.markdown())

    def picture(self, figure: Figure) -> None:
        out = io.StringIO()
        figure.savefig(out, format="svg", metadata={"Date": None})
        plt.close(figure)
        self._html.append(f'<div class="card">{out.getvalue()[out.getvalue().index("<svg") :]}</div>')

    def write(self, out: Path, title: str) -> None:
        """OUT/index.html and OUT/README.md."""
        head = (
            '<!doctype html><html lang="en"><head><meta charset="utf-8"><meta name="viewport" '
            f'content="width=device-width"><title>{html.escape(title)}</title><style>{_CSS}</style></head><body>'
        )
        (out / "index.html").write_text(head + "\n".join(self._html) + "</body></html>\n", encoding="utf-8")
        (out / "README.md").write_text("\n".join(self._markdown), encoding="utf-8")


def percent(value: Interval | None, *, signed: bool = False) -> str:
    """A share in percent with half its interval."""
    if value is None:
        return "–"
    sign = "+" if signed else ""
    half = "" if np.isnan(value.half) else f" ± {100 * value.half:.1f}"
    return f"{100 * value.mean:{sign}.1f}{half}"


def number(value: Interval | None, digits: int = 2) -> str:
    """A mean over seeds."""
    return "–" if value is None else f"{value.mean:.{digits}f}"


def write(out: Path, study: Any, records: Sequence[Record]) -> None:
    """Makes OUT/index.html and OUT/README.md of the records there are.

    Args:
        out: the folder.
        study: a module as configs/study.py; its arms give titles, sections and baselines.
        records: of benchmarks/study_record.py.
    """
    results = Results(records)
    title = "Does CARE do here what its paper says?"
    with matplotlib.rc_context(_STYLE):
        page = Page(title)
        page.text(_summary(results, study), "lead")
        main = [name for name, arm in study.ARMS.items() if arm.baseline == GRPO]
        page.picture(_accuracies(results, study, main))
        page.picture(_learning_curves(results, study, main))
        page.heading("Claims of the paper")
        page.text(
            "A claim holds where the 95 % interval of the difference lies above 0, does not where it lies below, and "
            "cannot be told otherwise. Points are of held-out accuracy in percent.",
            "note",
        )
        page.table(Table(["claim", "here", "figure"], study_claims.rows(results, study), words=True))
        for task in study.TASKS:
            if names := _arms(results, task, main):
                page.heading(f"Objectives, {task.replace('_', ' ')}")
                page.table(_objectives(results, study, task, names))
                page.table(_dynamics(results, study, task, names))
        page.heading("One thing changed")
        page.text(
            "Differences to the baseline of each arm, CARE with equal token weights, in points of final accuracy.",
            "note",
        )
        page.picture(_ablations(results, study))
        page.table(_ablation_table(results, study))
        page.heading("The mechanism")
        page.picture(_mechanism(results, study))
        page.heading("What it costs")
        for task in study.TASKS:
            page.table(_costs(results, study, task))
        _how(page, study, records)
        page.write(out, title)


def _arms(results: Results, task: str, names: Iterable[str]) -> list[str]:
    return [name for name in names if results.seeds(task, name)]


def _title(study: Any, name: str) -> str:
    return study.ARMS[name].title


def _summary(results: Results, study: Any) -> str:
    words = []
    for task in study.TASKS:
        ours, theirs = (results.over_seeds(task, arm, stats.final) for arm in (CARE, GRPO))
        start = results.over_seeds(task, GRPO, stats.start)
        difference = results.difference(task, CARE, GRPO, stats.final)
        if ours and theirs and start and difference:
            words.append(
                f"On {task.replace('_', ' ')} the cold start has {100 * start.mean:.1f} % held-out accuracy, GRPO ends "
                f"at {100 * theirs.mean:.1f} % and CARE at {100 * ours.mean:.1f} % ({percent(difference, signed=True)} "
                f"points, {difference.num_seeds} seeds)."
            )
    return " ".join(words) or "No two arms can be compared yet."


def _accuracies(results: Results, study: Any, names: Sequence[str]) -> Figure:
    """Final accuracy of each objective with its interval, and every seed as a dot."""
    figure, panels = plt.subplots(
        1, len(study.TASKS), figsize=(11, 0.42 * len(names) + 1.1), squeeze=False, sharey=True
    )
    for axes, task in zip(panels[0], study.TASKS, strict=True):
        for row, name in enumerate(names):
            values = [100 * stats.final(record) for record in results.seeds(task, name).values()]
            if values:
                whole = stats.interval(values)
                axes.plot(values, [row] * len(values), "o", color="#b9c3d6", markersize=4)
                _bar(axes, whole, row, "#2b62c9" if name.startswith(CARE) else "#5d6778")
        start = results.over_seeds(task, GRPO, stats.start)
        if start:
            axes.axvline(100 * start.mean, color="#d9772b", linestyle="--", linewidth=1)
            axes.annotate("cold start", (100 * start.mean, -0.75), color="#d9772b", annotation_clip=False)
        axes.set_title(f"Held-out accuracy, {task.replace('_', ' ')}", loc="left", fontweight="bold", pad=14)
        axes.set_xlabel("%, mean and 95 % interval over seeds")
        axes.set_yticks(range(len(names)), [_title(study, name) for name in names])
    panels[0][0].invert_yaxis()  # of both, which share it
    return figure


def _bar(axes: Axes, whole: Interval, row: float, colour: str) -> None:
    if not np.isnan(whole.half):
        axes.plot([whole.low, whole.high], [row, row], color=colour, linewidth=2)
    axes.plot([whole.mean], [row], "o", color=colour, markersize=7)


def _learning_curves(results: Results, study: Any, names: Sequence[str]) -> Figure:
    figure, panels = plt.subplots(len(study.TASKS), 2, figsize=(11, 3.1 * len(study.TASKS)), squeeze=False)
    for row, task in zip(panels, study.TASKS, strict=True):
        for axes, (axis, unit, label) in zip(
            row, (("tokens", 1e3, "thousand sampled tokens"), ("seconds", 1, "seconds of training")), strict=True
        ):
            for index, name in enumerate(names):
                records = list(results.seeds(task, name).values())
                if records:
                    x, mean, _ = stats.mean_curve(records, axis)
                    colour = f"C{index}"
                    axes.plot(x / unit, 100 * mean, color=colour, label=_title(study, name), linewidth=2)
            axes.set_xlabel(label)
            axes.set_ylabel("held-out accuracy, %")
            axes.set_title(f"{task.replace('_', ' ')}, by {axis}", loc="left", fontweight="bold")
        row[0].legend(fontsize=8, loc="lower right")
    return figure


def _objectives(results: Results, study: Any, task: str, names: Sequence[str]) -> Table:
    records = [record for name in names for record in results.seeds(task, name).values()]
    skills = sorted({skill for record in records for skill in record["evaluations"][-1]["accuracy"]} - {"mean"})
    budgets = {axis: stats.common_budget(results, task, names, axis) for axis in ("tokens", "seconds")}
    targets = {seed: stats.final(record) for seed, record in results.seeds(task, GRPO).items()}

    def reached(record: Record) -> float | None:
        return stats.steps_to(record, targets[record["seed"]]) if record["seed"] in targets else None

    rows = []
    for name in names:
        seeds = results.seeds(task, name)
        reaching = [steps for record in seeds.values() if (steps := reached(record)) is not None]
        rows.append(
            [
                _title(study, name),
                str(len(seeds)),
                *(
                    percent(results.over_seeds(task, name, functools.partial(stats.final, skill=skill)))
                    for skill in skills
                ),
                percent(results.over_seeds(task, name, stats.final)),
                percent(results.difference(task, name, GRPO, stats.final), signed=True) if name != GRPO else "",
                *(
                    percent(
                        results.over_seeds(task, name, functools.partial(stats.accuracy_at, axis=axis, budget=budget))
                    )
                    for axis, budget in budgets.items()
                ),
                percent(results.over_seeds(task, name, stats.area)),
                f"{statistics.median(reaching):.0f} ({len(reaching)} of {len(seeds)})" if reaching else "never",
            ]
        )
    head = ["", "seeds", *skills, "mean", "against GRPO"]
    head += [
        f"at {budgets['tokens']:,.0f} tokens",
        f"at {budgets['seconds']:,.0f} s",
        "area",
        "steps to GRPO's",
    ]
    return Table(head, rows)


def _dynamics(results: Results, study: Any, task: str, names: Sequence[str]) -> Table:
    rows = []
    for name in names:

        def over(measure: Callable[[Record], float | None], name: str = name) -> Interval | None:
            return results.over_seeds(task, name, measure)

        noise = [stats.noise_scale(record) for record in results.noise(task, name)]
        rows.append(
            [
                _title(study, name),
                percent(over(lambda r: r["no_gradient"]["groups"])),
                percent(over(lambda r: r["no_gradient"]["steps"])),
                percent(over(lambda r: stats.mean_of(r, "advantage/failure_share"))),
                percent(over(stats.repair_rate)),
                number(over(lambda r: stats.last(r, "entropy")), 3),
                number(over(lambda r: stats.last(r, "response_len/mean")), 1),
                number(over(lambda r: stats.mean_of(r, "clip_fraction")), 4),
                f"{statistics.median(noise):,.0f}" if noise else "–",
            ]
        )
    head = [
        "",
        "groups without gradient, %",
        "steps without",
        "advantage from failures, %",
        "repaired, %",
        "entropy at the end",
        "length",
        "clipped",
        "noise scale, prompts",
    ]
    return Table(head, rows)


def _compared(results: Results, study: Any) -> list[tuple[str, str]]:
    """(task, arm) of what was changed one thing at a time, section by section."""
    names = [name for name, arm in study.ARMS.items() if arm.baseline != GRPO]
    sections = list(dict.fromkeys(study.ARMS[name].section for name in names))
    names.sort(key=lambda name: sections.index(study.ARMS[name].section))
    return [(task, name) for name in names for task in study.TASKS if results.seeds(task, name)]


def _ablations(results: Results, study: Any) -> Figure:
    pairs = _compared(results, study)
    figure, axes = plt.subplots(figsize=(11, max(1.5, 0.25 * len(pairs) + 0.9)))
    labels = []
    for row, (task, name) in enumerate(pairs):
        arm = study.ARMS[name]
        difference = results.difference(task, name, arm.baseline, stats.final)
        labels.append(f"{arm.section}: {arm.title}" + (f" ({task.replace('_', ' ')})" if len(study.TASKS) > 1 else ""))
        if difference:
            colour = "#2b62c9" if task == next(iter(study.TASKS)) else "#d9772b"
            points = Interval(100 * difference.mean, 100 * difference.half, difference.num_seeds)
            _bar(axes, points, row, colour)
    axes.axvline(0, color="#1c2330", linewidth=1)
    axes.set_yticks(range(len(labels)), labels)
    axes.invert_yaxis()
    axes.set_xlabel("points of held-out accuracy more or less than CARE, 95 % interval over seeds")
    return figure


def _ablation_table(results: Results, study: Any) -> Table:
    rows = []
    for task, name in _compared(results, study):
        arm = study.ARMS[name]
        rows.append(
            [
                f"{arm.section}: {arm.title}",
                task.replace("_", " "),
                str(len(results.seeds(task, name))),
                percent(results.over_seeds(task, name, stats.final)),
                percent(results.difference(task, name, arm.baseline, stats.final), signed=True),
                percent(results.difference(task, name, arm.baseline, stats.area), signed=True),
                percent(results.over_seeds(task, name, stats.repair_rate)),
                number(results.over_seeds(task, name, stats.variance_ratio), 3),
            ]
        )
    return Table(
        ["", "task", "seeds", "final", "against CARE", "area against CARE", "repaired, %", "variance ratio"], rows
    )


def _mechanism(results: Results, study: Any) -> Figure:
    figure, (signature, share, repairs) = plt.subplots(1, 3, figsize=(11, 3.3))
    records = [record for task in study.TASKS for record in results.seeds(task, CARE).values()]
    sizes = sorted({k for role in ("anchor", "negative") for k in stats.means_by_size(records, role)})
    for role, power, colour in (("anchor", 0.5, "#2b62c9"), ("negative", -0.5, "#b3372f")):
        means = stats.means_by_size(records, role)
        signature.plot(list(means), [mean for mean, _ in means.values()], "o", color=colour, label=f"{role}s, measured")
        sign = 1 if role == "anchor" else -1
        signature.plot(sizes, [sign * k**power for k in sizes], "--", color=colour, linewidth=1, label="theory")
    signature.set_xticks(sizes)
    signature.set_xlabel("K', negatives of a subgroup")
    signature.set_title("Raw advantages", loc="left", fontweight="bold")
    signature.legend(fontsize=8)
    for axes, curve, title, names in (
        (share, "advantage/failure_share", "Share of the advantage from failures", (GRPO, CARE, "care_no_rgr")),
        (repairs, "reflect/success_rate", "Failures repaired", (CARE, "reflect_no_cue", "reflect_scratch")),
    ):
        for name in names:
            rows = [
                r["curves"][curve]
                for r in results.seeds(next(iter(study.TASKS)), name).values()
                if curve in r["curves"]
            ]
            if rows and len({len(row) for row in rows}) == 1:
                steps, values = np.mean(np.array(rows), axis=0).T
                axes.plot(steps, 100 * values, label=_title(study, name), linewidth=2)
        axes.set_xlabel("step")
        axes.set_ylabel("%")
        axes.set_ylim(bottom=0)
        axes.set_title(title, loc="left", fontweight="bold")
        axes.legend(fontsize=8)
    return figure


def _costs(results: Results, study: Any, task: str) -> Table:
    names = _arms(results, task, study.ARMS)
    stages = ("data", "rollout", "verify", "score", "select", "reflect", "update")
    base = results.over_seeds(task, GRPO, stats.seconds_a_step)
    rows = []
    for name in names:

        def milliseconds(stage: str, name: str = name) -> str:
            seconds = results.over_seeds(task, name, functools.partial(stats.seconds_a_step, stage=stage))
            return f"{1e3 * seconds.mean:.0f}" if seconds else "–"

        step = results.over_seeds(task, name, stats.seconds_a_step)
        share = results.over_seeds(task, name, stats.extra_tokens)
        rows.append(
            [
                _title(study, name)
                if study.ARMS[name].baseline == GRPO
                else f"{study.ARMS[name].section}: {_title(study, name)}",
                *(milliseconds(stage) for stage in stages),
                milliseconds("step"),
                f"{step.mean / base.mean:.2f}" if step and base else "–",
                percent(share),
                number(results.over_seeds(task, name, lambda r: r["peak_gib"]), 2),
            ]
        )
    head = [
        f"{task.replace('_', ' ')}: milliseconds",
        *stages,
        "step",
        "/ GRPO",
        "tokens of repairs, %",
        "GiB resident",
    ]
    return Table(head, rows)


def _how(page: Page, study: Any, records: Sequence[Record]) -> None:
    """Commands, seeds, commits and versions."""
    page.heading("How to have these figures again")
    page.text((study.__doc__ or "").strip().split("\n\n")[-1].replace("\n", " "))
    page.code(["python -m benchmarks.study --config=configs/study.py --out=docs/study"])
    page.text("One of the runs, as runs.jsonl has the command of each:")
    page.code([records[0]["command"]])
    manifests: dict[str, int] = {}
    for record in records:
        about = {key: value for key, value in record["manifest"].items() if key not in ("seed", "stage", "processes")}
        manifests[json.dumps(about)] = manifests.get(json.dumps(about), 0) + 1
    rows = []
    for text, count in manifests.items():
        about = json.loads(text)
        versions = ", ".join(f"{key} {value}" for key, value in about.items() if key not in ("commit", "device"))
        rows.append([str(count), about["commit"][:12], about["device"], versions])
    page.table(Table(["runs", "commit", "device", "versions"], rows, words=True))
    seeds = sorted({record["seed"] for record in records})
    page.text(
        f"Seeds {', '.join(map(str, seeds))}. Final accuracy is the mean of the evaluations in the last quarter of the "
        "steps, each of 1,500 held-out questions, decoded greedily. Seconds are steps times their median time: no "
        "compilation, no evaluation, no checkpoints. Variance ratio: mean squared advantage of a negative over that of "
        "an anchor. Noise scale: prompts of an update at which the gradient's noise equals the gradient, at the cold "
        "start (arXiv 1812.06162).",
        "note",
    )
