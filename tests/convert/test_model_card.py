"""The model card of an export: what it says is what the run folder has."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from etils import epath
from huggingface_hub import ModelCard

from care_jax.configs import demo
from care_jax.convert import hf_to_jax, jax_to_hf, model_card
from tests.end_to_end import SmallTask, metrics, saved_steps

VERSIONS = {
    "stage": "train",
    "seed": 3,
    "care_jax": "0.1.0",
    "commit": "0af1",
    "device": "TPU v5p x 64",
    "jax": "0.10.2",
}


def write_run(workdir: Path, rows: list[dict[str, Any]], **changes: Any) -> epath.Path:
    """A run folder of RL from "runs/private/cold_start" whose checkpoint is step 20; returns its parameters' folder."""
    config = demo.get_config()
    config.update(seed=3)
    config.data.train, config.data.eval = "/home/me/private/sets/charts.jsonl", "/home/me/private/sets/heldout.jsonl"
    values = json.loads(config.to_json_best_effort())
    for key, value in changes.items():
        group, name = key.split("__")
        values[group][name] = value
    params = workdir / "checkpoints" / "20" / "params"
    params.mkdir(parents=True)
    (workdir / "config.json").write_text(json.dumps(values))
    (workdir / "manifest.json").write_text(json.dumps(VERSIONS))
    (workdir / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return epath.Path(params)


def evaluation(step: int, accuracy: float, **others: float) -> dict[str, Any]:
    """A line of metrics.jsonl with an evaluation of one source."""
    row = {"step": step, "eval/accuracy/a|b": accuracy, "eval/accuracy/mean": accuracy}
    return row | {name.replace("__", "/"): value for name, value in others.items()}


def card_of(tmp_path: Path, params: epath.Path, source: Path | None = None) -> str:
    """The card of an export of `params`."""
    (tmp_path / "new").mkdir()
    model_card.write_card(tmp_path / "new", params, source or tmp_path / "Tiny-VL")
    path = tmp_path / "new" / "README.md"
    return path.read_text() if path.exists() else ""


def test_the_figures_are_the_runs(tmp_path: Path) -> None:
    """Catches figures of a later step than the checkpoint's, n of another column, and a table that a name breaks."""
    rows = [
        evaluation(0, 0.25, eval__n__mean=375, eval__interval__mean=0.04),
        {"step": 5, "loss": 0.5},
        evaluation(20, 0.5, eval__n__mean=375, eval_all__accuracy__mean=0.75, eval_all__n__mean=1500),
        evaluation(30, 0.125),
    ]
    text = card_of(tmp_path, write_run(tmp_path / "run", rows))
    assert "| | step 0 | step 20 | step 20, all questions |" in text
    assert "| a\\|b | 0.250 | 0.500 |  |" in text
    assert "| mean | 0.250 ± 0.040 (n=375) | 0.500 (n=375) | 0.750 (n=1500) |" in text
    assert "0.125" not in text
    assert f"| steps | 20 of {demo.get_config().train.steps} |" in text
    assert "| responses a prompt | 8 |" in text
    assert f"| learning rate | {demo.get_config().optimizer.lr:g}, linear |" in text


def test_the_objective_is_named_with_what_differs(tmp_path: Path) -> None:
    """Catches a card that says CARE of a run with other weights, and one that lists all settings."""
    text = card_of(tmp_path, write_run(tmp_path / "run", []))
    (row,) = [line for line in text.splitlines() if line.startswith("| objective")]
    assert row.startswith("| objective | care, with ")
    for setting in ("region.gamma\\_pos=1.0", "reflect.train\\_on=rewrite", "kl\\_coef=0.0"):
        assert setting in row
    assert "num\\_negatives" not in row
    assert "Tiny-VL after RL with a variant of care." in text
    assert "Not evaluated." in text


def test_the_hub_reads_it(tmp_path: Path) -> None:
    """Catches front matter that `hf upload` refuses, a licence nobody chose, and a base model that is guessed."""
    params = write_run(tmp_path / "run", [])
    card = ModelCard(card_of(tmp_path, params))
    assert card.data.library_name == "transformers"
    assert card.data.pipeline_tag == "image-text-to-text"
    assert card.data.tags == ["care_jax", "reinforcement-learning"]
    assert card.data.license is None
    assert card.data.base_model is None
    shutil.rmtree(tmp_path / "new")
    snapshot = tmp_path / "hub/models--Qwen--Qwen2.5-VL-3B-Instruct/snapshots/66285546"
    card = ModelCard(card_of(tmp_path, params, snapshot))
    assert card.data.base_model == "Qwen/Qwen2.5-VL-3B-Instruct"
    assert card.content.count("# Qwen2.5-VL-3B-Instruct, trained with care_jax") == 1


def test_paths_are_shortened(tmp_path: Path) -> None:
    """Catches the folders of somebody's machine on a page that is published."""
    text = card_of(tmp_path, write_run(tmp_path / "run", [evaluation(20, 0.5)]))
    assert "sets/charts.jsonl" in text
    assert "sets/heldout.jsonl" in text
    assert "private" not in text
    assert str(tmp_path) not in text


def test_a_mixture_lists_its_parts(tmp_path: Path) -> None:
    """Catches a traceback for data.train of several folders."""
    text = card_of(tmp_path, write_run(tmp_path / "run", [], data__train=[["data/a", 3], ["/x/data/b", 1.5]]))
    assert "| data | data/a (3), data/b (1.5) |" in text


@pytest.mark.parametrize("place", ["run", "lone"])
def test_a_card_that_cannot_be_made_is_none(tmp_path: Path, capsys: pytest.CaptureFixture[str], place: str) -> None:
    """Catches an export that fails for its card, and the base model's card on a model that was trained."""
    params = write_run(tmp_path / "run", [], train__steps="many")
    if place == "lone":
        shutil.move(tmp_path / "run/checkpoints/20", tmp_path / "20")
        params = epath.Path(tmp_path / "20/params")
    (tmp_path / "new").mkdir()
    (tmp_path / "new/README.md").write_text("# the base model")
    model_card.write_card(tmp_path / "new", params, tmp_path / "base")
    assert list((tmp_path / "new").iterdir()) == []
    told = capsys.readouterr().err
    assert told.startswith("note: the export has no model card: ")
    assert ("train.steps='many'" if place == "run" else "lies in no run folder") in told


def test_an_export_has_its_card(small_task: SmallTask, tmp_path: Path) -> None:
    """Catches a conversion that leaves the card out, or a stage that is taken for RL."""
    step = saved_steps(small_task.cold_start)[-1]
    source = tmp_path / "Small-VL"
    shutil.copytree(small_task.model, source)
    (source / "README.md").write_text("# the base model")
    jax_to_hf.convert(small_task.cold_start, source, tmp_path / "export", dtype="float32")
    text = (tmp_path / "export/README.md").read_text()
    newest = [row for row in metrics(small_task.cold_start) if "eval/accuracy/mean" in row][-1]
    assert f"{newest['eval/accuracy/mean']:.3f}" in text
    assert "Small-VL after supervised training on rationales." in text
    assert f"| steps | {step} of {step} |" in text
    assert "| started from | random |" in text
    assert "reinforcement-learning" not in text


def test_what_is_only_converted_keeps_its_card(small_task: SmallTask, tmp_path: Path) -> None:
    """Catches a card about training on a model that was not trained."""
    source = tmp_path / "source"
    jax_to_hf.convert(small_task.cold_start, small_task.model, source, dtype="float32")
    (source / "README.md").write_text("# the base model")
    hf_to_jax.convert(source, tmp_path / "converted")
    jax_to_hf.convert(tmp_path / "converted", source, tmp_path / "export")
    assert (tmp_path / "export/README.md").read_text() == "# the base model"
