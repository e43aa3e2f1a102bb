"""Damaged run folders before the report: each file that it reads, cut, emptied, flipped or replaced.

Right is a page that is whole: its elements are closed, it runs its own three scripts alone, no invisible character is
in it, and its curve of the loss has the points that json alone finds in metrics.jsonl.
"""

from __future__ import annotations

import contextlib
import functools
import json
import shutil
import unicodedata
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

from benchmarks.faults.damage import damaged_files
from benchmarks.faults.outcomes import Case
from care_jax.report import write_report
from care_jax.run.folder import CONFIG_FILE, EVENTS_FILE, HELD_OUT_FILE, MANIFEST_FILE, METRICS_FILE, SAMPLES_FILE

_PIXEL = "data:image/png;base64,iVBORw0KGgo="
_LARGEST = 1e100  # of a number that a report draws
_VOID = ("meta", "br", "img", "link", "input", "hr")


def reports(folder: Path, num_cases: int, seed: int) -> Iterator[Case]:
    """A case for each damage; see the module."""
    for name, file, data in damaged_files(_sound_files(), num_cases, seed):
        yield Case(name, functools.partial(_report, folder / "run", file, data))


def _sound_files() -> dict[str, bytes]:
    """The files of a run of three steps with groups of two rollouts."""
    metrics: list[dict[str, Any]] = [{"step": 0, "eval/accuracy/count": 0.25, "eval/accuracy/mean": 0.25}]
    metrics += [{"step": step, "loss": 0.5 / step, "reward/mean": 0.5, "kl": None} for step in (1, 2, 3)]
    metrics += [{"step": 3, "eval/accuracy/count": 0.5, "eval/accuracy/mean": 0.5}]
    metrics[-1] |= {"eval/newly_right": 1.0, "eval/newly_wrong": 0.0}
    event: dict[str, Any] = {
        "id": "q",
        "source": "count",
        "outcome": "MIXED",
        "anchor": 0,
        "negatives": [1],
        "num_negatives": 1,
    }
    event |= {"advantages_raw": [1.0, -1.0], "advantages": [1.0, -0.5], "reflected": 1, "reflection_correct": False}
    rollout: dict[str, Any] = {
        "text": "<think>2</think><answer>3</answer>",
        "extracted": "3",
        "correct": True,
        "format_ok": True,
    }
    rollout |= {"parsed": True, "role": "anchor", "advantage": 1.0, "response_len": 9}
    reflection = {"rollout": 1, "before": "two", "cue": " Wait!", "after": "</think>", "correct": False}
    sample: dict[str, Any] = {
        "id": "q",
        "source": "count",
        "images": [_PIXEL],
        "prompt": "<image> How many?",
        "answer": "3",
    }
    sample |= {"outcome": "MIXED", "rollouts": [rollout, rollout], "reflection": reflection}
    answer = {name: sample[name] for name in ("id", "source", "images", "prompt", "answer")} | {"index": 4}
    answers = [
        {"step": step, **answer, "response": "<answer>3</answer>", "extracted": "3", "correct": step == 3}
        for step in (0, 3)
    ]
    manifest = {"stage": "train", "seed": 0, "commit": "0af1", "device": "cpu x 1", "processes": 1, "jax": "0.10.2"}
    return {
        CONFIG_FILE: json.dumps({"seed": 0, "train": {"steps": 4}, "objective": {"kl_coef": 0.0}}).encode(),
        MANIFEST_FILE: json.dumps(manifest).encode(),
        METRICS_FILE: _lines(*metrics),
        EVENTS_FILE: _lines(*({"step": step, **event} for step in (1, 2, 3))),
        SAMPLES_FILE: _lines(*({"step": step, **sample} for step in (1, 2))),
        HELD_OUT_FILE: _lines(*answers),
    }


def _lines(*rows: dict[str, Any]) -> bytes:
    return b"".join(json.dumps(row).encode() + b"\n" for row in rows)


def _report(workdir: Path, name: str, data: bytes) -> bool:
    """Writes the page about the run with one other file; True if it is whole and shows the loss."""
    files = {**_sound_files(), name: data}
    workdir.mkdir()
    try:
        for file, content in files.items():
            (workdir / file).write_bytes(content)
        write_report([workdir], workdir / "page.html")
        page = _Page((workdir / "page.html").read_text(encoding="utf-8"))
    finally:
        shutil.rmtree(workdir)
    return page.is_whole and page.loss() == _points(files[METRICS_FILE])


class _Page(HTMLParser):
    """A parsed page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self._open: list[str] = []
        self._scripts, self._is_balanced, self._data = 0, True, ""
        self.feed(text)
        hidden = [c for c in text if c not in "\n\t" and unicodedata.category(c) in ("Cc", "Cf", "Cs", "Co", "Cn")]
        self.is_whole = self._is_balanced and not self._open and self._scripts == 4 and not hidden

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Opens an element."""
        self._scripts += tag == "script"
        if tag not in _VOID:
            self._open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        """Closes one, which should be the last that was opened."""
        self._is_balanced &= bool(self._open) and self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        """Keeps the data that the page draws."""
        if self._open and self._open[-1] == "script" and not self._data:
            self._data = data

    def loss(self) -> dict[int, float]:
        """The points of the curve of the loss, which training and cold start have under names of their own."""
        charts = [chart for section in json.loads(self._data)["sections"] for chart in section["charts"]]
        lines = [line for chart in charts if chart["title"] in ("Policy loss", "Loss") for line in chart["lines"]]
        return {x: y for line in lines for x, y in zip(line["x"], line["y"], strict=True)}


def _points(metrics: bytes) -> dict[int, float]:
    """The loss by step, of the lines that are objects of finite numbers with a step."""
    points: dict[int, float] = {}
    for line in metrics.split(b"\n"):
        with contextlib.suppress(ValueError, RecursionError):
            row = json.loads(line.decode())
            if isinstance(row, dict) and all(map(_is_number, row.values())) and _is_step(row.get("step")):
                points |= {row["step"]: float(f"{row['loss']:.5g}")} if row.get("loss") is not None else {}
    return points


def _is_number(value: Any) -> bool:
    return value is None or (type(value) in (int, float) and abs(value) <= _LARGEST)  # NaN is not


def _is_step(value: object) -> bool:
    return isinstance(value, int | float) and value == int(value) and 0 <= value < 2**53
