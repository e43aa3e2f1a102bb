"""Writes one self-contained HTML page about one or several runs.

    python -m care_jax.report --workdir=DIR [--workdir=DIR2 ...] --out=report.html

It reads a run's config.json, manifest.json, metrics.jsonl, events.jsonl and samples.jsonl, reduces them to what is
drawn, and embeds that as JSON beside the page's own style and scripts. The page asks no other host for anything: its
content policy allows its own two scripts by their hash, and images only as data.
"""

from __future__ import annotations

import base64
import dataclasses
import hashlib
import html
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from absl import flags
from etils import epath

from care_jax import cli, files
from care_jax.errors import InputError, printable
from care_jax.page.charts import sections
from care_jax.page.run_data import OUTCOMES, STAGES, Run, load_run
from care_jax.page.run_files import is_run

_PAGE = Path(__file__).parent / "page" / "assets"
_SCRIPTS = ("charts.js", "samples.js")
EVAL_PREFIX = "eval/accuracy/"
_NO_VALUE = "&ndash;"


def write_report(workdirs: Sequence[epath.PathLike], out: epath.PathLike) -> None:
    """Writes the page about some runs, side by side in the order given.

    Args:
        workdirs: run folders; one that is in progress or lacks files is shown as far as it goes.
        out: the HTML file to write.

    Raises:
        InputError: no workdir, one that is not a run folder, or `out` cannot be written; nothing is written.
    """
    if not workdirs:
        raise InputError("no run folder given; name at least one: --workdir=DIR (it holds metrics.jsonl)")
    folders, out = [files.anywhere(workdir) for workdir in workdirs], files.anywhere(out)
    for workdir, folder in zip(workdirs, folders, strict=True):
        _require_run(printable(str(workdir)), folder)
    runs = [load_run(folder, name) for folder, name in zip(folders, _run_names(folders), strict=True)]
    page = _render(runs)
    if out.is_dir():
        raise InputError(f"--out={printable(str(out))} is a folder; name the HTML file to write")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError) as error:
        raise InputError(f"--out={printable(str(out))}: a file lies where its folder should be") from error
    files.write_text(out, page)


def _require_run(given: str, folder: epath.Path) -> None:
    if not folder.is_dir():
        raise InputError(f"--workdir={given} is not a folder; give a run folder, which holds metrics.jsonl")
    try:
        if is_run(folder):
            return
    except OSError as error:
        raise InputError(f"--workdir={given} cannot be read: {error.strerror}") from error
    raise InputError(f"--workdir={given} is not a run folder: it has neither metrics.jsonl nor another file of a run")


def _run_names(workdirs: Sequence[epath.Path]) -> list[str]:
    """Folder names, with as many parents as tell them apart; numbered if one folder comes twice."""
    folders = [tuple(map(printable, workdir.parts)) for workdir in workdirs]
    for depth in range(1, max(map(len, folders))):
        names = ["/".join(parts[-depth:]) for parts in folders]
        if len(set(names)) == len(names):
            return names
    return [f"{parts[-1]} ({number})" for number, parts in enumerate(folders, 1)]


def _escape(text: str) -> str:
    """Text for the page, in which nothing acts as markup or is hidden."""
    return html.escape(printable(text))


# The page.


def _render(runs: Sequence[Run]) -> str:
    scripts = [(_PAGE / name).read_text(encoding="utf-8") for name in _SCRIPTS]
    hashes = [base64.b64encode(hashlib.sha256(script.encode()).digest()).decode() for script in scripts]
    data = {
        "has_training": any(run.stage == "train" for run in runs),
        "sections": sections(runs),
        "mechanism": [{"run": run.name, "points": run.mechanism} for run in runs if run.mechanism],
        "samples": [{**sample, "run": run.name} for run in runs for sample in run.samples],
    }
    fields = {
        "policy": "default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src "
        + " ".join(f"'sha256-{digest}'" for digest in hashes),
        "style": (_PAGE / "style.css").read_text(encoding="utf-8"),
        "title": _escape(" · ".join(run.name for run in runs)),
        "summary": _escape(summary(runs)),
        "notices": "".join(
            f"<li><b>{_escape(run.name)}</b> {_escape(notice)}</li>" for run in runs for notice in run.notices
        ),
        "accuracy": _accuracy_table(accuracy_columns(runs)),
        "runs": "".join(map(_run_details, runs)) + _differences(runs),
        "data": _script_json(data),
        "scripts": "\n".join(f"<script>{script}</script>" for script in scripts),
    }
    page = (_PAGE / "page.html").read_text(encoding="utf-8")
    # One pass over the template: a field's own text is never searched for another field's mark.
    pieces = page.split("{{")
    return pieces[0] + "".join(
        fields[name] + rest for name, rest in (piece.split("}}", maxsplit=1) for piece in pieces[1:])
    )


def _script_json(value: object) -> str:
    """JSON for a script element. `<` is written as an escape, so that no text inside can end the element."""
    text = json.dumps(value, separators=(",", ":"), allow_nan=False)
    return text.replace("<", "\\u003c")


def summary(runs: Sequence[Run]) -> str:
    """The figures that matter, in a sentence or three of plain text."""
    columns = [column for column in accuracy_columns(runs) if "mean" in column.accuracy]
    words = []
    if columns:
        figures = ", ".join(f"{column.accuracy['mean']:.1%} {column.when} ({column.run})" for column in columns)
        words.append(f"Held-out accuracy, mean over skills: {figures}.")
    else:
        words.append("No held-out evaluation yet.")
    for run in runs:
        num_groups = sum(run.num_groups.values())
        if num_groups:
            shares = ", ".join(
                f"{number / num_groups:.0%} {OUTCOMES[outcome]}" for outcome, number in run.num_groups.items()
            )
            words.append(f"{run.name}: {num_groups} groups, {shares}.")
        if run.num_reflected:
            words.append(
                f"Reflection repaired {run.num_repaired} of the {run.num_reflected} failures it tried"
                f" ({run.num_repaired / run.num_reflected:.0%})."
            )
    return " ".join(words)


@dataclasses.dataclass(frozen=True)
class AccuracyColumn:
    """Held-out accuracy at one moment of one run."""

    run: str
    when: str
    step: int
    accuracy: Mapping[str, float]  # by skill, and "mean"


def accuracy_columns(runs: Sequence[Run]) -> list[AccuracyColumn]:
    """First (at step 0) and last evaluation of each run, in order.

    A training run's step 0 is left out if a cold start is among the runs, whose last column shows that model.
    """
    has_cold_start = any(run.stage == "cold_start" for run in runs)
    columns = []
    for run in runs:
        evaluated = {
            step: row for step, row in run.metrics.items() if any(name.startswith(EVAL_PREFIX) for name in row)
        }
        steps = list(evaluated)
        keeps_start = run.stage == "cold_start" or not has_cold_start
        for step in dict.fromkeys((*steps[:1], *steps[-1:])):
            if (step == 0 and not keeps_start and len(steps) > 1) or step not in (0, steps[-1]):
                continue
            word = STAGES[run.stage]
            when = "at the start" if step == 0 else f"after {word}, step {step}"
            accuracy = {
                name.removeprefix(EVAL_PREFIX): value
                for name, value in evaluated[step].items()
                if name.startswith(EVAL_PREFIX)
            }
            columns.append(AccuracyColumn(run=run.name, when=when, step=step, accuracy=accuracy))
    return columns


def _accuracy_table(columns: Sequence[AccuracyColumn]) -> str:
    if not columns:
        return '<p class="empty">No held-out evaluation yet: metrics.jsonl holds no eval/accuracy line.</p>'
    skills = sorted({skill for column in columns for skill in column.accuracy} - {"mean"})
    head = "".join(f"<th>{_escape(column.when)}<small>{_escape(column.run)}</small></th>" for column in columns)
    body = []
    for skill in (*skills, "mean"):
        cells = "".join(
            _accuracy_cell(column.accuracy[skill]) if skill in column.accuracy else f"<td>{_NO_VALUE}</td>"
            for column in columns
        )
        name = "mean over skills" if skill == "mean" else _escape(skill)
        body.append(f'<tr class="{"mean" if skill == "mean" else "skill"}"><th>{name}</th>{cells}</tr>')
    return f'<div class="scroll"><table class="accuracy"><tr><th>skill</th>{head}</tr>{"".join(body)}</table></div>'


def _accuracy_cell(value: float) -> str:
    width = min(max(value, 0.0), 1.0)
    return f'<td>{value:.1%}<div class="bar"><i style="width:{width:.1%}"></i></div></td>'


def _run_details(run: Run) -> str:
    rows = "".join(
        f"<tr><th>{_escape(key)}</th><td>{_escape(str(value))}</td></tr>" for key, value in run.manifest.items()
    )
    config = _escape(json.dumps(run.config, indent=1))
    head = f"{_escape(run.name)} <small>{STAGES[run.stage]}, {run.last_step} steps</small>"
    return (
        f'<details><summary>{head}</summary><div class="scroll"><table class="plain">{rows}</table></div>'
        f"<pre>{config}</pre></details>"
    )


def _differences(runs: Sequence[Run]) -> str:
    """The config keys in which the runs of one page differ."""
    flat = [_flatten(run.config) for run in runs if run.config]
    if len(flat) < 2:
        return ""
    keys = [key for key in dict.fromkeys(key for one in flat for key in one) if len({one.get(key) for one in flat}) > 1]
    head = "".join(f"<th>{_escape(run.name)}</th>" for run in runs if run.config)
    rows = "".join(
        f"<tr><th>{_escape(key)}</th>"
        + "".join(f"<td>{_escape(one[key]) if key in one else _NO_VALUE}</td>" for one in flat)
        + "</tr>"
        for key in keys
    )
    return (
        f"<details><summary>Settings that differ <small>{len(keys)}</small></summary>"
        f'<div class="scroll"><table class="plain"><tr><th></th>{head}</tr>{rows}</table></div></details>'
    )


def _flatten(config: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    flat: dict[str, str] = {}
    for key, value in config.items():
        flat |= _flatten(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: json.dumps(value)}
    return flat


def main() -> None:
    """Writes the page that the flags ask for."""
    out = flags.FLAGS.out
    write_report(flags.FLAGS.workdir, out)
    print(f"{printable(out)} ({epath.Path(out).stat().length / 1e6:.1f} MB)")


if __name__ == "__main__":
    flags.DEFINE_multi_string("workdir", None, "Run folder; may be given more than once.", required=True)
    flags.DEFINE_string("out", "report.html", "HTML file to write.")
    cli.run_flags(main)
