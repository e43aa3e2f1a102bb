"""The README's lines from a download to figures, run unchanged on a fixture of the data set."""

from __future__ import annotations

import json
from pathlib import Path

from tests import benchmark_sets, data_sets
from tests.end_to_end import REPO, SmallTask, flags, readme_lines, run_lines, saved_steps, small, write_small_model

# Takes the place of the hub's program: copies the fixture.
_HF = """#!/bin/bash -eu
[ "$*" = "download hiyouga/geometry3k --repo-type=dataset --local-dir=downloads/geometry3k" ]
mkdir -p downloads
cp -r {fixture} downloads/geometry3k
"""


def test_the_readmes_five_lines(small_task: SmallTask, tmp_path: Path) -> None:
    """Catches README lines that do not fit together: folders, splits, formats, a benchmark that is not found.

    Flags behind the config change only the model, the sizes, and the cue, which is long in a tokenizer of letters.
    """
    fixture = benchmark_sets.write_geometry3k(tmp_path / "fixture")
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin/hf").write_text(_HF.format(fixture=fixture))
    (tmp_path / "bin/hf").chmod(0o755)
    data_sets.write_geometry3k(fixture)
    cwd = tmp_path / "here"
    cwd.mkdir()
    (cwd / "configs").symlink_to(REPO / "configs")
    sizes = small(
        write_small_model(tmp_path / "model"),
        Path("data"),
        data__ask_for_format=False,
        objective__reflect__cue="!",
        data__prompt_buckets=(128,),
        train__stream_len=256,
        data__patch_buckets=(32,),
        model__weights="random",
        model__compute_dtype="float32",
        train__steps=1,
        optimizer__warmup_steps=0,
        train__prompts=2,
        train__minibatches=1,
        eval__batch_size=2,
    )
    overrides = {key: value for key, value in sizes.items() if key not in ("data.format", "data.train", "data.eval")}
    lines = readme_lines("recipe")
    assert len(lines.strip().splitlines()) == 5
    config = "--config=configs/geometry3k.py"
    ours = " ".join([config, *(f"'{flag}'" for flag in flags(overrides))])
    run_lines(lines, {config: ours}, cwd=cwd, cache=small_task.cache, path=tmp_path / "bin")

    assert saved_steps(cwd / "runs/geometry3k") == [1]
    results = json.loads((cwd / "runs/geometry3k/benchmarks/results.json").read_text())
    assert results["settings"]["answers"] == "of checkpoint 1"
    assert results["benchmarks"]["geometry3k"]["items"] == 2
    assert results["benchmarks"]["geometry3k"]["unanswered"] == 0
    assert "| Geometry3K test | 2 of 601 |" in (cwd / "runs/geometry3k/benchmarks/results.md").read_text()
