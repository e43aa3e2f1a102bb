"""The README's lines for your own data, run unchanged, and rows that cannot be used."""

from __future__ import annotations

import json
import re
import time
from pathlib import Path

import pytest

from tests.documents import document_lines
from tests.end_to_end import (
    REPO,
    SmallTask,
    finish,
    flags,
    metrics,
    run,
    run_lines,
    saved_steps,
    small,
    start,
    write_small_model,
    write_squares,
)

BROKEN = [
    '{"id": "no answer", "images": [], "prompt": "?", "answer_kind": "integer"}',
    '{"id": "no image", "images": ["images/absent.png"], "prompt": "?", "answer": "1", "answer_kind": "integer"}',
    "not JSON",
]


@pytest.mark.slow
def test_the_readmes_lines(small_task: SmallTask, tmp_path: Path) -> None:
    """Catches a README that no longer runs; only the two folders differ from its lines."""
    data, runs = write_squares(tmp_path / "squares"), tmp_path / "runs"
    lines = document_lines("own-data")
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


@pytest.mark.slow
def test_the_recipe_of_docs_own_data(small_task: SmallTask, tmp_path: Path) -> None:
    """Catches a page whose lines no longer run; only folders and numbers of steps differ from it."""
    data, runs = write_squares(tmp_path / "squares"), tmp_path / "runs"
    lines = document_lines("own-data-recipe")
    assert lines.count("python -m") == 6
    changes = {"my_data": str(data), "runs/own": str(runs), "steps=200": "steps=20", "steps=100": "steps=3"}
    run_lines(lines, changes, cwd=REPO, cache=small_task.cache)
    assert (data / "check.html").read_text().count("<section>") == 10
    results = json.loads((runs / "care" / "eval_results.json").read_text())
    for name in ("eval/accuracy", "eval/n", "eval/interval", "baseline/majority", "baseline/without_image"):
        assert {f"{name}/{source}" for source in ("digits", "chart", "geometry", "mean")} <= results.keys()
    assert results["eval/n/mean"] == 12
    limits = json.loads((runs / "export" / "preprocessor_config.json").read_text())["size"]
    assert limits == {"shortest_edge": 3136, "longest_edge": 16 * 784}


@pytest.mark.slow
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


@pytest.mark.slow
@pytest.mark.parametrize(("num_lost", "code"), [(2, 0), (48, 1)])
def test_images_that_vanish_in_mid_run(small_task: SmallTask, tmp_path: Path, num_lost: int, code: int) -> None:
    """Catches a run that one lost file ends, one that goes on without its data, and exit code 2 for a lost disk."""
    model, data = write_small_model(tmp_path / "model"), write_squares(tmp_path / "data")
    overrides = small(model, data, model__weights="random", train__steps=32)
    workdir = tmp_path / "run"
    process = start(
        "care_jax.train",
        "--config=configs/own_data.py",
        *flags(overrides),
        f"--workdir={workdir}",
        cache=small_task.cache,
    )
    while process.poll() is None and not ((workdir / "metrics.jsonl").exists() and metrics(workdir)):
        time.sleep(0.05)
    for number in range(num_lost):
        (data / f"images/train_{number}.png").unlink()
    done = finish(process)
    assert done.returncode == code, done.stderr
    if code == 0:
        rows = [row for row in metrics(workdir) if "loss" in row]
        assert rows[-1]["data/num_unreadable"] == num_lost
        assert done.stderr.count("can no longer be read: no image") == num_lost
    else:
        assert re.search(r"\d+ records of JsonlSource.* can no longer be read; the last: no image", done.stderr), (
            done.stderr
        )
