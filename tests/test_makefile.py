"""The Makefile with stand-ins for .venv's Python and for nvidia-smi: what it installs, and what it computes on."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.end_to_end import REPO

# Notes how it was called; `import jax` works if its platform is among $WORKING.
_PYTHON = """#!/bin/bash
echo "${JAX_PLATFORMS-none}|$*" >> calls
[ "$1" != -c ] || [[ " $WORKING " = *" $JAX_PLATFORMS "* ]]
"""


def make(folder: Path, target: str, *, gpus: int, **extra: str) -> tuple[list[str], str]:
    """Runs `make target` in a new checkout: the calls of .venv/bin/python, as "JAX_PLATFORMS|arguments", and stderr."""
    for name in ("Makefile", "pyproject.toml", "constraints.txt"):
        shutil.copy2(REPO / name, folder)  # with its time, which make compares
    programs = {".venv/bin/python": _PYTHON, "bin/nvidia-smi": "#!/bin/sh\nexit 9\n"}
    if gpus:
        programs["bin/nvidia-smi"] = "#!/bin/sh\n" + gpus * "echo 'GPU 0: NVIDIA H100 (UUID: GPU-1)'\n"
    for name, text in programs.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
        (folder / name).chmod(0o755)
    (folder / ".venv/python.stamp").touch()
    kept = {name: value for name, value in os.environ.items() if name not in ("JAX_PLATFORMS", "MAKEFLAGS", "DEVICE")}
    env = kept | {"PATH": f"{folder / 'bin'}:{os.environ['PATH']}"} | extra
    done = subprocess.run(["make", target], cwd=folder, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return (folder / "calls").read_text().splitlines(), done.stderr


@pytest.mark.parametrize(
    ("gpus", "extra", "installed", "platforms", "told"),
    [
        (0, {}, "[demo]", "cpu", ""),
        (1, {"WORKING": "cuda"}, "[demo,cuda]", "cuda,cpu", ""),
        (1, {}, "[demo,cuda]", "cpu", "JAX cannot use DEVICE=cuda"),
        (1, {"DEVICE": "cpu"}, "[demo]", "cpu", ""),
        (0, {"DEVICE": "tpu", "WORKING": "tpu"}, "[demo,tpu]", "tpu,cpu", ""),
        (1, {"WORKING": "cuda", "JAX_PLATFORMS": "cpu"}, "[demo,cuda]", "cpu", ""),
    ],
)
def test_the_demo_runs_on_what_there_is(
    tmp_path: Path, gpus: int, extra: dict[str, str], installed: str, platforms: str, told: str
) -> None:
    """Catches a GPU that stands idle, one with an old driver that ends the demo, and a choice that is not followed."""
    calls, stderr = make(tmp_path, "demo", gpus=gpus, **extra)
    (install,) = (call for call in calls if "-m pip" in call)
    assert install.endswith(f"install -c constraints.txt -e .{installed}")
    assert calls[-1] == f"{platforms}|-m care_jax.demo --workdir=runs/demo-1 --seed=1"
    assert told in stderr
    assert bool(told) == bool(stderr)


def test_the_tests_leave_the_gpu_usable(tmp_path: Path) -> None:
    """Catches a `make demo` after `make test` that finds its stamp, and a JAX without CUDA."""
    calls, _ = make(tmp_path, "test", gpus=1, WORKING="cuda")
    assert calls[0].endswith("-e .[test,cuda]")
    again, _ = make(tmp_path, "demo", gpus=1, WORKING="cuda")
    assert again[-1].startswith("cuda,cpu|-m care_jax.demo")
    assert sum("-m pip" in call for call in again) == 1


def test_slow_tests_run_on_request(tmp_path: Path) -> None:
    """Catches a marker that the command for all tests leaves out, and one for an account or a slice that it brings."""
    chosen = "-m pytest --numprocesses=auto --maxprocesses=4 --dist=loadfile"
    rest = {}
    for target in ("test", "test-fast", "test-all", "coverage"):
        calls, _ = make(tmp_path, target, gpus=0)
        call = [call for call in calls if chosen in call][-1]
        rest[target] = call.partition(chosen)[2].strip()
    assert rest["test"] == ""
    assert rest["test-all"] == rest["coverage"] == "-m not chaos and not plan and not integration"
    folders = rest["test-fast"].split()
    assert folders
    assert all((REPO / folder).is_dir() for folder in folders)
