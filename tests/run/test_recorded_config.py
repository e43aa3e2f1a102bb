"""The config that a run records is the config that a command takes when it is given no other."""

from __future__ import annotations

import importlib
import json
from pathlib import Path

import pytest

from care_jax import config as config_lib
from care_jax.errors import InputError
from care_jax.run.recorded_config import get_config
from tests.end_to_end import SmallTask, run


def _write(folder: Path, text: str) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(text)
    (folder / "manifest.json").write_text('{"stage": "train"}')
    return folder


@pytest.mark.parametrize("name", ["demo", "data_care_49k", "own_data", "qwen3_vl"])
def test_a_config_comes_back(tmp_path: Path, name: str) -> None:
    """Catches a tuple that comes back as a list, a mixture that does not, and a key that is lost."""
    config = importlib.import_module(f"care_jax.configs.{name}").get_config()
    run_folder = _write(tmp_path / "run", config.to_json_best_effort())
    for path in (run_folder, run_folder / "checkpoints", run_folder / "checkpoints" / "30"):
        assert config_lib.flat(get_config(str(path))) == config_lib.flat(config)


def test_keys_that_a_run_did_not_have(tmp_path: Path) -> None:
    """Catches a run of an older version that can no longer be asked, and a key of a newer one that is dropped."""
    recorded = json.loads(config_lib.base().to_json_best_effort())
    del recorded["model"]["remat"], recorded["eval"]
    recorded["seed"] = 7
    config = get_config(str(_write(tmp_path / "old", json.dumps(recorded))))
    assert (config.seed, config.model.remat, config.eval.num_samples) == (7, "full", 1)
    recorded["model"]["colour"] = "red"
    config = get_config(str(_write(tmp_path / "new", json.dumps(recorded))))
    with pytest.raises(InputError, match=r"model\.colour: no such key"):
        config_lib.validate(config)


def test_folders_without_a_record(tmp_path: Path) -> None:
    """Catches a Hugging Face folder's config.json that is taken for a run's, and a damaged one that is a traceback."""
    (tmp_path / "hf").mkdir()
    (tmp_path / "hf/config.json").write_text('{"model_type": "qwen2_5_vl"}')
    for folder in ("hf", "nowhere"):
        with pytest.raises(InputError, match=f"--config=FILE is needed.*{folder}"):
            get_config(str(tmp_path / folder))
    with pytest.raises(InputError, match="not JSON"):
        get_config(str(_write(tmp_path / "torn", '{"seed": ')))


@pytest.mark.slow
def test_evaluate_takes_it(small_task: SmallTask, tmp_path: Path) -> None:
    """Catches a command that asks for a config which the run folder has, or drops the keys that were given with it."""
    for name in ("checkpoints", "config.json", "manifest.json"):
        (tmp_path / name).symlink_to(small_task.cold_start / name)
    ended = run("care_jax.evaluate", "--config.eval.num_samples=2", f"--workdir={tmp_path}", cache=small_task.cache)
    assert ended.returncode == 0, ended.stderr
    assert "eval/pass_at_k/mean" in json.loads(ended.stdout.splitlines()[-1])
