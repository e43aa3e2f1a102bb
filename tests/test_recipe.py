"""The documents' lines from two downloads to an exported model, run unchanged on fixtures."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from care_jax.convert import jax_to_hf
from care_jax.models import load_model_config
from tests import benchmark_sets, data_sets, weights
from tests.documents import document_lines
from tests.end_to_end import REPO, SmallTask, flags, run_lines, saved_steps, small

# Takes the place of the hub's program: copies the fixture.
_HF = """#!/bin/bash -eu
[ "$*" = "download hiyouga/geometry3k --repo-type=dataset --local-dir=downloads/geometry3k" ]
mkdir -p downloads
cp -r {fixture} downloads/geometry3k
"""
_OURS = ("model.folder", "data.format", "data.train", "data.eval")  # keys that are to stay as the config has them


@pytest.mark.slow
def test_the_lines_for_geometry3k_and_a_real_model(small_task: SmallTask, tmp_path: Path) -> None:
    """Catches lines that do not fit together: folders, splits, formats, a benchmark or weights that are not found.

    Flags behind the config change only the sizes, and the cue, which is long in a tokenizer of letters.
    """
    fixture = benchmark_sets.write_geometry3k(tmp_path / "fixture")
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin/hf").write_text(_HF.format(fixture=fixture))
    (tmp_path / "bin/hf").chmod(0o755)
    data_sets.write_geometry3k(fixture)
    cwd = tmp_path / "here"
    cwd.mkdir()
    (cwd / "configs").symlink_to(REPO / "configs")
    source = cwd / "Qwen2.5-VL-3B-Instruct"
    jax_to_hf.convert(small_task.cold_start, small_task.model, source)
    sizes = small(
        source,
        Path("data"),
        data__ask_for_format=False,
        objective__reflect__cue="!",
        data__prompt_buckets=(128,),
        train__stream_len=256,
        data__patch_buckets=(32,),
        model__compute_dtype="float32",
        train__steps=1,
        optimizer__warmup_steps=0,
        train__prompts=2,
        train__minibatches=1,
        eval__batch_size=2,
    )
    overrides = {key: value for key, value in sizes.items() if key not in _OURS}
    lines = document_lines("geometry3k") + document_lines("real-model")
    assert len(lines.strip().splitlines()) == 7
    config = "--config=configs/geometry3k.py"
    ours = " ".join([config, *(f"'{flag}'" for flag in flags(overrides))])
    run_lines(lines, {config: ours}, cwd=cwd, cache=small_task.cache, path=tmp_path / "bin")

    assert saved_steps(cwd / "runs/geometry3k") == [1]
    results = json.loads((cwd / "runs/geometry3k/benchmarks/results.json").read_text())
    assert results["settings"]["answers"] == "of checkpoint 1"
    assert results["benchmarks"]["geometry3k"]["items"] == 2
    assert results["benchmarks"]["geometry3k"]["unanswered"] == 0
    assert "| Geometry3K test | 2 of 601 |" in (cwd / "runs/geometry3k/benchmarks/results.md").read_text()
    exported, before = weights.read_hf(cwd / "export"), weights.read_hf(source)
    assert exported.keys() == before.keys()
    assert any((exported[name] != before[name]).any() for name in before)
    assert load_model_config(cwd / "export") == load_model_config(source)
