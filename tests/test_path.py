"""The way from `python -m care_jax.train` to `jax.grad`, as CONTRIBUTING.md tells it."""

from __future__ import annotations

import re
import traceback
from pathlib import Path

import jax
import pytest

from care_jax import train
from care_jax.configs import demo
from tests.end_to_end import REPO, apply, small


def told() -> set[str]:
    """The files that CONTRIBUTING.md names."""
    text = REPO.joinpath("CONTRIBUTING.md").read_text()
    sentence = re.search(r"From `python -m care_jax.train` to `jax.grad` you pass.*?\.\n", text, re.S)
    assert sentence is not None
    return set(re.findall(r"care_jax/[\w/]+\.py", sentence[0]))


def test_the_way_to_the_gradient(cached, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches a layer that is put in between, and a text that tells of another way."""

    def stop(*args: object, **kwargs: object) -> None:
        raise RuntimeError("here")

    config = apply(demo.get_config(), small(cached.model, cached.data, model__weights=str(cached.cold_start)))
    monkeypatch.setattr(jax, "grad", stop)
    with pytest.raises(RuntimeError, match="here") as caught:
        train.run(config, tmp_path / "run")
    frames = traceback.extract_tb(caught.value.__traceback__)
    files = {Path(frame.filename) for frame in frames}
    passed = {str(file.relative_to(REPO)) for file in files if file.is_relative_to(REPO / "care_jax")}
    assert len(told()) <= 6
    assert passed <= told()
    assert {"care_jax/train.py", "care_jax/stages/update.py"} <= passed
