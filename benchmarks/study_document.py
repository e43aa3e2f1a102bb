"""A document that is written both as one self-contained HTML file and as Markdown."""

from __future__ import annotations

import html
import io
from collections.abc import Iterable, Sequence
from pathlib import Path

from matplotlib import pyplot as plt
from matplotlib.figure import Figure

from benchmarks.study_claims import FAILS, HOLDS, OPEN

_CSS = """
body { margin: 0 auto; max-width: 1180px; padding: 28px 20px 80px; color: #1c2330; background: #f6f7f9;
  font: 15px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, sans-serif; }
h1 { font-size: 27px; margin: 0 0 8px; } h2 { font-size: 19px; margin: 36px 0 6px; }
p { max-width: 78em; margin: 0 0 10px; } .lead { font-size: 17px; } .note { color: #5d6778; }
.card { background: #fff; border: 1px solid #dfe3ea; border-radius: 10px; padding: 10px 14px; margin: 10px 0;
  overflow-x: auto; }
.card svg { max-width: 100%; height: auto; display: block; margin: 0 auto; }
table { border-collapse: collapse; font-size: 12.5px; font-variant-numeric: tabular-nums; }
th, td { text-align: right; padding: 4px 7px; border-top: 1px solid #eceff4; vertical-align: top; }
th:first-child, td:first-child, .words td, .words th { text-align: left; } thead th { border-top: 0; }
table:not(.words) td:not(:first-child), .words td:nth-child(2), .holds, .not, .open { white-space: nowrap; }
.holds { color: #1a7f4b; font-weight: 600; } .not { color: #b3372f; font-weight: 600; } .open { color: #5d6778; }
code { font-size: 12px; overflow-wrap: anywhere; white-space: pre-wrap; }
"""
_CLASSES = {HOLDS: "holds", FAILS: "not", OPEN: "open"}  # CSS classes of cells that hold a verdict


class Page:
    """The parts of the document in order: headings, text, tables, and pictures, which only the HTML file has."""

    def __init__(self, title: str) -> None:
        """An empty document with a title."""
        self._title = title
        self._html, self._markdown = [f"<h1>{html.escape(title)}</h1>"], [f"# {title}\n"]

    def heading(self, text: str) -> None:
        """Adds a heading."""
        self._html.append(f"<h2>{html.escape(text)}</h2>")
        self._markdown.append(f"## {text}\n")

    def text(self, text: str, kind: str = "") -> None:
        """Adds a paragraph; `kind` is its CSS class, "lead" or "note"."""
        self._html.append(f'<p class="{kind}">{html.escape(text)}</p>')
        self._markdown.append(f"{text}\n")

    def code(self, line: str) -> None:
        """Adds a command."""
        self._html.append(f"<pre><code>{html.escape(line)}</code></pre>")
        self._markdown.append(f"```bash\n{line}\n```\n")

    def table(self, head: Sequence[str], rows: Iterable[Sequence[str]], *, words: bool = False) -> None:
        """Adds a table.

        Args:
            head: the names of the columns.
            rows: cells as text.
            words: all columns are text and aligned left; else all but the first are figures.
        """
        rows = [list(row) for row in rows]
        lines = [list(head), ["---"] * len(head), *rows]
        marked = ["| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines]
        self._markdown.append("\n".join(marked) + "\n")

        def cell(text: str) -> str:
            mark = f' class="{_CLASSES[text]}"' if text in _CLASSES else ""
            return f"<td{mark}>{html.escape(text)}</td>"

        names = "".join(f"<th>{html.escape(name)}</th>" for name in head)
        body = "".join(f"<tr>{''.join(map(cell, row))}</tr>" for row in rows)
        kind = ' class="words"' if words else ""
        self._html.append(f'<div class="card"><table{kind}><thead><tr>{names}</tr></thead>{body}</table></div>')

    def picture(self, figure: Figure) -> None:
        """Adds a figure to the HTML file and closes it."""
        out = io.StringIO()
        figure.savefig(out, format="svg", metadata={"Date": None})
        plt.close(figure)
        self._html.append(f'<div class="card">{out.getvalue()[out.getvalue().index("<svg") :]}</div>')

    def write(self, out: Path) -> None:
        """Writes index.html and README.md in the folder `out`."""
        head = (
            '<!doctype html><html lang="en"><head><meta charset="utf-8"><meta name="viewport" '
            f'content="width=device-width"><title>{html.escape(self._title)}</title><style>{_CSS}</style></head><body>'
        )
        (out / "index.html").write_text(head + "\n".join(self._html) + "</body></html>\n", encoding="utf-8")
        (out / "README.md").write_text("\n".join(self._markdown), encoding="utf-8")
