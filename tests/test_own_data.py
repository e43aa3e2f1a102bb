"""The README's lines for your own data, run unchanged, and rows that cannot be used."""

from __future__ import annotations

import json
import re
from pathlib import Path

from tests.end_to_end import (
    REPO,
    SmallTask,
    flags,
    metrics,
    readme_lines,
    run,
    run_lines,
    saved_steps,
    small,
    write_small_model,
    write_squares,
)

BROKEN = [
    '{"id": "no answer", "images": [], "prompt": "?", "answer_kind": "integer"}',
    '{"id": "no image", "images": ["images/absent.png"], "prompt": "?", "answer": "1", "answer_kind": "integer"}',
    "not JSON",
]


def test_the_readmes_lines(small_task: SmallTask, tmp_path: Path) -> None:
    """Catches a README that no longer runs; only the two folders differ from its lines."""
    data, runs = write_squares(tmp_path / "squares"), tmp_path / "runs"
    lines = readme_lines("own-data")
    assert lines.count("python -m") == 4
    run_lines(lines, {"my_data": str(data), "runs/own": str(runs)}, cwd=REPO, cache=small_task.cache)

    for stage in ("cold_start", "care"):
        rows = [row for row in metrics(runs / stage) if "loss" in row]
        assert [row["step"] for row in rows] == list(range(1, saved_steps(runs / stage)[-1] + 1))
    losses = [row["loss"] for row in metrics(runs / "cold_start") if "loss" in row]
    assert losses[-1] < losses[0] / 2
    results = json.loads((runs / "care" / "eval_results.json").read_text())
    assert {f"eval/accuracy/{source}" for source in ("digits", "chart", "geometry", "mean")} <= results.keys()
    assert len((runs / "care" / "eval_samples.jsonl").read_text().splitlines()) == 12
    samples = (runs / "care" / "samples.jsonl").read_text()
    assert samples
    assert "heldout" not in samples
    assert (runs / "report.html").stat().st_size > 10_000


def test_broken_rows_are_listed_or_refused(small_task: SmallTask, tmp_path: Path) -> None:
    """Catches rows that vanish silently, and strict=True that drops them all the same or leaves half a run."""
    model, data = write_small_model(tmp_path / "model"), write_squares(tmp_path / "data")
    rows = (data / "train.jsonl").read_text().splitlines()
    (data / "train.jsonl").write_text("\n".join([rows[0], *BROKEN, *rows[1:], *25 * ["{}"]]) + "\n")
    overrides = small(model, data, model__weights="random", train__steps=2)
    arguments = ["--config=configs/own_data.py", *flags(overrides)]

    refused = run(
        "care_jax.train", *arguments, f"--workdir={tmp_path / 'a'}", "--config.data.strict=True", cache=small_task.cache
    )
    assert refused.returncode == 2
    assert "Traceback" not in refused.stderr
    assert refused.stderr.startswith("error: ")
    assert not (tmp_path / "a").exists()

    trained = run("care_jax.train", *arguments, f"--workdir={tmp_path / 'b'}", cache=small_task.cache)
    assert trained.returncode == 0, trained.stderr
    assert saved_steps(tmp_path / "b") == [2]
    for text in (refused.stderr, trained.stderr):
        assert "28 broken rows" in text
        assert "and 8 more" in text
        assert "row 2: missing answer" in text
        assert re.search(r"row 3: no image .*images/absent\.png", text)
        assert "row 4: not JSON" in text
