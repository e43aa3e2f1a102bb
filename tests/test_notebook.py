"""The notebook, run cell by cell on the CPU with the program that `pip install` would bring."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.end_to_end import REPO, SmallTask, environment, saved_steps

NOTEBOOK = REPO / "docs" / "notebook.ipynb"
# Sizes of seconds in place of the notebook's, and a model that compiles quickly.
SIZES = {
    "NUM_TRAIN, NUM_HELDOUT = 4000, 200": "NUM_TRAIN, NUM_HELDOUT = 48, 4",
    "COLD_START_STEPS, STEPS = 300, 200": "COLD_START_STEPS, STEPS = 3, 3",
    "--config.train.prompts=64": "--config.train.prompts=4 --config.model.folder={SMALL}",
    "--config.train.prompts=16": "--config.train.prompts=4 --config.model.folder={SMALL}",
    "care-jax evaluate {DATA}": "care-jax evaluate {DATA} --config.model.folder={SMALL}",
    "--hf={MODEL}": "--hf={SMALL}",
}
# IPython's part: `!` lines, which Python does not have, and what a cell shows.
_IPYTHON = """
import os, subprocess, sys, types
def shell(line):
    subprocess.run(["bash", "-c", line], check=True)
display = types.ModuleType("IPython.display")
display.HTML = str
sys.modules["IPython"], sys.modules["IPython.display"] = types.ModuleType("IPython"), display
SMALL = os.environ["SMALL"]
"""
# The program of an installed package.
_PROGRAM = """#!/bin/sh
exec {python} -c 'from care_jax.cli import main; main()' "$@"
"""


def cells(kind: str) -> dict[str, str]:
    """The sources of the cells of a kind, by id; the installation is left out."""
    found = json.loads(NOTEBOOK.read_text())["cells"]
    return {
        cell["id"]: "".join(cell["source"])
        for cell in found
        if cell["cell_type"] == kind and "install" not in cell["metadata"].get("tags", ())
    }


def as_python(cell: str) -> str:
    """A cell as Python: each line that begins with ! calls `shell`, and {names} in it are put in."""
    lines = [f"shell(f{line[1:]!r})" if line.startswith("!") else line for line in cell.splitlines()]
    return "\n".join(lines) + "\n"


@pytest.mark.slow
def test_every_cell_runs(small_task: SmallTask, tmp_path: Path) -> None:
    """Catches a cell that needs what an earlier one does not leave, and a command or key that is no longer there."""
    source = "\n".join(as_python(cell) for cell in cells("code").values())
    for written, ours in SIZES.items():
        assert source.count(written) == 1, written
        source = source.replace(written, ours)
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin/care-jax").write_text(_PROGRAM.format(python=sys.executable))
    (tmp_path / "bin/care-jax").chmod(0o755)
    env = environment(small_task.cache) | {"SMALL": str(small_task.model)}
    env["PATH"] = f"{tmp_path / 'bin'}:{env['PATH']}"
    done = subprocess.run(
        [sys.executable, "-c", _IPYTHON + source], cwd=tmp_path, env=env, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert saved_steps(tmp_path / "runs/cold_start") == [3]
    assert saved_steps(tmp_path / "runs/care") == [3]
    assert "| RL |" in done.stdout
    assert (tmp_path / "export/model.safetensors").exists()


def test_it_is_clean() -> None:
    """Catches outputs that were saved with the notebook, a cell that is no Python, and one without an id."""
    notebook = json.loads(NOTEBOOK.read_text())
    assert (notebook["nbformat"], notebook["nbformat_minor"]) == (4, 5)
    assert all(not cell.get("outputs") and cell.get("execution_count") is None for cell in notebook["cells"])
    assert len({cell["id"] for cell in notebook["cells"]}) == len(notebook["cells"])
    for cell in cells("code").values():
        ast.parse(as_python(cell))
