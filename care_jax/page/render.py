"""The report page as HTML: one file that asks no other host for anything.

Its content policy allows its own scripts by their hash, and images only as data. `parts` and `data` are all that
changes when a run goes on: a page that is served replaces them (report_server.py).
"""

from __future__ import annotations

import html
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from care_jax.errors import printable
from care_jax.page.charts import sections
from care_jax.page.figures import LEVELS, Accuracy, AccuracyRow, accuracy_rows, changes, findings, percent, summary
from care_jax.page.local_server import content_policy
from care_jax.page.run_data import STAGES, Change, Run, explanation, setting

_ASSETS = Path(__file__).parent / "assets"
_SCRIPTS = ("charts.js", "samples.js", "draw.js")
_LIVE_SCRIPTS = (*_SCRIPTS, "live.js")
_NO_VALUE = "&ndash;"
_SHOWN = 60  # characters of a path


def page(runs: Sequence[Run], *, is_live: bool = False) -> str:
    """The page about some runs; one that `is_live` asks the server that it came from for news."""
    names = _LIVE_SCRIPTS if is_live else _SCRIPTS
    scripts = [(_ASSETS / name).read_text(encoding="utf-8") for name in names]
    fields = parts(runs) | {
        "policy": content_policy(scripts, asks_server=is_live),
        "style": (_ASSETS / "style.css").read_text(encoding="utf-8"),
        "data": _script_json(data(runs)),
        "scripts": "\n".join(f"<script>{script}</script>" for script in scripts),
    }
    # One pass over the template: a field's own text is never searched for another field's mark.
    head, *pieces = (_ASSETS / "page.html").read_text(encoding="utf-8").split("{{")
    return head + "".join(fields[name] + rest for name, rest in (piece.split("}}", maxsplit=1) for piece in pieces))


def data(runs: Sequence[Run]) -> dict[str, Any]:
    """The data that the page's scripts draw, as JSON has it."""
    return {
        "has_training": any(run.stage == "train" for run in runs),
        "sections": sections(runs),
        "mechanism": [{"run": run.name, "points": run.mechanism} for run in runs if run.mechanism],
        "answers": [_answer(run.name, change) for run in runs for change in run.changes],
        "samples": [{**sample, "run": run.name, "note": explanation(sample)} for run in runs for sample in run.samples],
    }


def parts(runs: Sequence[Run]) -> dict[str, str]:
    """The page's pieces of HTML by the name that the template has for them."""
    is_one = len(runs) == 1
    return {
        "title": _escape(" · ".join(run.name for run in runs)),
        "summary": _escape(summary(runs)),
        "changes": _escape(changes(runs)),
        "facts": _facts(runs),
        "findings": "".join(
            f'<li class="{one.level}"><span class="badge {one.level}">{LEVELS[one.level]}</span> '
            f"{'' if is_one else f'<b>{_escape(one.run)}</b> '}{_escape(one.text)}</li>"
            for one in findings(runs)
        ),
        "notices": "".join(
            f"<li><b>{_escape(run.name)}</b> {_escape(notice)}</li>" for run in runs for notice in run.notices
        ),
        "accuracy": _accuracy_table(accuracy_rows(runs)),
        "runs": _differences(runs) + "".join(map(_run_details, runs)),
    }


def _answer(run: str, change: Change) -> dict[str, Any]:
    after = change["after"]
    told = {key: after[key] for key in ("step", "id", "source", "images", "prompt", "answer")}
    answers = [
        {key: one[key] for key in ("step", "response", "extracted", "correct")} for one in (change["before"], after)
    ]
    return {**told, "run": run, "change": change["change"], "answers": answers}


def _escape(text: str) -> str:
    """Text for the page, in which nothing acts as markup or is hidden."""
    return html.escape(printable(text))


def _script_json(value: object) -> str:
    """JSON for a script element. `<` is written as an escape, so that no text inside can end the element."""
    text = json.dumps(value, separators=(",", ":"), allow_nan=False)
    return text.replace("<", "\\u003c")


def _table(kind: str, heads: Sequence[str], rows: Iterable[tuple[str, str, Sequence[str]]]) -> str:
    """A table whose rows become blocks on a narrow screen, each cell with its column's name.

    Args:
        kind: the class of the table.
        heads: the names of the columns, the first that of the rows' names; text.
        rows: class, name as HTML, and cells as HTML.
    """
    head = "".join(f"<th>{_escape(name)}</th>" for name in heads)
    body = "".join(
        f'<tr class="{row_kind}"><th>{name}</th>'
        + "".join(
            f'<td data-label="{_escape(label)}">{cell}</td>' for label, cell in zip(heads[1:], cells, strict=True)
        )
        + "</tr>"
        for row_kind, name, cells in rows
    )
    return f'<div class="scroll"><table class="{kind}"><tr class="head">{head}</tr>{body}</table></div>'


def _facts(runs: Sequence[Run]) -> str:
    """A table with the stage, data, model, seed, steps, duration and device of each run."""
    heads = ("run", "stage", "data", "model", "seed", "steps", "time", "device")
    return _table(
        "plain facts",
        heads,
        (("", _escape(run.name), [_escape(fact) for fact in _facts_of(run)]) for run in runs),
    )


def _facts_of(run: Run) -> list[str]:
    planned = setting(run.config, "train", "steps")
    return [
        STAGES[run.stage],
        _tail(setting(run.config, "data", "train")),
        _tail(setting(run.config, "model", "folder")),
        _text(run.manifest.get("seed", run.config.get("seed"))),
        f"{run.last_step} of {planned}" if isinstance(planned, int) else str(run.last_step),
        _duration(run.seconds),
        _text(run.manifest.get("device")),
    ]


def _text(value: Any) -> str:
    return "–" if value is None else str(value)[:_SHOWN]  # noqa: RUF001 (a dash for no value)


def _tail(path: Any) -> str:
    """The last two folders of a path."""
    return "/".join(path.rstrip("/").split("/")[-2:])[-_SHOWN:] if isinstance(path, str) and path else _text(None)


def _duration(seconds: float) -> str:
    if seconds < 60:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


def _accuracy_table(rows: Sequence[AccuracyRow]) -> str:
    if not rows:
        return '<p class="empty">No held-out evaluation yet: metrics.jsonl holds no eval/accuracy line.</p>'
    skills = sorted({skill for row in rows for skill in row.accuracy} - {"mean"})
    columns = ["mean"] * any("mean" in row.accuracy for row in rows) + skills
    heads = ["model", *("mean over skills" if column == "mean" else column for column in columns)]
    return _table(
        "accuracy",
        heads,
        (
            (
                "baseline" if row.is_baseline else "",
                f"{_escape(row.when)}<small>{_escape(row.run)}</small>",
                [_accuracy_cell(row.accuracy.get(column)) for column in columns],
            )
            for row in rows
        ),
    )


def _accuracy_cell(accuracy: Accuracy | None) -> str:
    if accuracy is None:
        return _NO_VALUE
    width = min(max(accuracy.value, 0.0), 1.0)
    n = "" if accuracy.n is None else f"<small>n {accuracy.n}</small>"
    return f'{percent(accuracy)}{n}<div class="bar"><i style="width:{width:.1%}"></i></div>'


def _run_details(run: Run) -> str:
    rows = (("", _escape(key), [_escape(str(value))]) for key, value in run.manifest.items())
    config = _escape(json.dumps(run.config, indent=1))
    head = f"Versions and settings of {_escape(run.name)} <small>{STAGES[run.stage]}, {run.last_step} steps</small>"
    return (
        f'<details data-key="run {_escape(run.name)}"><summary>{head}</summary>{_table("plain", ("", ""), rows)}'
        f"<pre>{config}</pre></details>"
    )


def _differences(runs: Sequence[Run]) -> str:
    """The config keys in which the runs of one page differ."""
    named = [run for run in runs if run.config]
    flat = [_flatten(run.config) for run in named]
    if len(flat) < 2:
        return ""
    keys = [key for key in dict.fromkeys(key for one in flat for key in one) if len({one.get(key) for one in flat}) > 1]
    rows = (("", _escape(key), [_escape(one[key]) if key in one else _NO_VALUE for one in flat]) for key in keys)
    return (
        f'<details data-key="differences"><summary>Settings that differ <small>{len(keys)}</small></summary>'
        f"{_table('plain', ('', *(run.name for run in named)), rows)}</details>"
    )


def _flatten(config: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    flat: dict[str, str] = {}
    for key, value in config.items():
        flat |= _flatten(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: json.dumps(value)}
    return flat
