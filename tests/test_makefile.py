"""The Makefile's choice of a device, with stand-ins for Python and nvidia-smi."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.end_to_end import REPO


@pytest.mark.parametrize(
    ("has_gpu", "given", "target", "wanted"),
    [
        (True, None, "demo", ["-e .[demo,cuda] on cuda,cpu", "-m care_jax.demo --workdir=runs/demo-1 --seed=1 on cuda,cpu"]),
        (False, None, "demo", ["-e .[demo] on cpu", "-m care_jax.demo --workdir=runs/demo-1 --seed=1 on cpu"]),
        (True, "cpu", "demo", ["-e .[demo,cuda] on cpu", "-m care_jax.demo --workdir=runs/demo-1 --seed=1 on cpu"]),
        (True, None, "test", ["-e .[test,cuda] on cpu", "-m pytest --numprocesses=auto --maxprocesses=4 --dist=loadfile on cpu"]),
    ],
)
def test_a_gpu_is_used_by_the_demo_alone(
    tmp_path: Path, has_gpu: bool, given: str | None, target: str, wanted: list[str]
) -> None:
    """Catches a GPU that stands idle, tests that run on it, and JAX_PLATFORMS of the caller that is written over."""
    for name in ("Makefile", "pyproject.toml", "constraints.txt"):
        shutil.copy(REPO / name, tmp_path)
    programs = {
        ".venv/bin/python": 'echo "$* on $JAX_PLATFORMS"',
        "bin/nvidia-smi": "echo GPU 0" if has_gpu else "exit 9",
    }
    for name, line in programs.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True)
        path.write_text(f"#!/bin/sh\n{line}\n")
        path.chmod(0o755)
    (tmp_path / ".venv/python.stamp").touch()
    plain = {name: value for name, value in os.environ.items() if name != "JAX_PLATFORMS" and not name.startswith("MAKE")}
    env = plain | {"PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}"} | ({"JAX_PLATFORMS": given} if given else {})
    done = subprocess.run(["make", target], cwd=tmp_path, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    lines = [line for line in done.stdout.splitlines() if " on " in line]
    assert [line.partition("constraints.txt ")[2] or line for line in lines] == wanted
