"""The wheel, installed into an environment of its own and used in an empty folder."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

import pytest

from care_jax import cli
from care_jax.cli import COMMANDS as NAMED
from tests import weights
from tests.documents import document_lines
from tests.end_to_end import REPO, SmallTask, environment, flags, saved_steps, small
from tests.test_imports import COMMANDS
from tests.test_orchestrators import FILES, FOLDERS

# Makes a source distribution, and the wheel from it, as an index would serve them.
_BUILD = """
import pathlib, sys, tarfile
from setuptools import build_meta
folder = pathlib.Path(sys.argv[1])  # setuptools puts arguments of its own there
tarfile.open(folder / build_meta.build_sdist(str(folder))).extractall(folder, filter="data")
"""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel of this checkout."""
    root = tmp_path_factory.mktemp("wheel")
    for name in FOLDERS:
        ignored = shutil.ignore_patterns("__pycache__")
        shutil.copytree(REPO / name, root / "checkout" / name, symlinks=True, ignore=ignored)
    for name in FILES:
        shutil.copy(REPO / name, root / "checkout")
    _run([sys.executable, "-c", _BUILD, str(root)], cwd=root / "checkout")
    (unpacked,) = root.glob("care_jax-*/")
    options = ["-q", "--no-deps", "--no-build-isolation", "--no-index", f"--wheel-dir={root}"]
    _run([sys.executable, "-m", "pip", "wheel", *options, str(unpacked)], cwd=root)
    (built,) = root.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def installed(wheel: Path) -> Path:
    """The scripts of an environment with the wheel; what it depends on is this environment's."""
    folder = wheel.parent / "venv"
    venv.create(folder, symlinks=True)
    python = str(folder / "bin/python")
    # The path comes after the installation, or pip would see the package that runs these tests.
    _run([sys.executable, "-m", "pip", f"--python={python}", "install", "-q", "--no-deps", "--no-index", str(wheel)])
    (packages,) = folder.glob("lib/python*/site-packages")
    (packages / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return folder / "bin"


def _run(words: list[str], cwd: Path = REPO, env: dict[str, str] | None = None) -> str:
    done = subprocess.run(words, cwd=cwd, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_wheel_claims_one_name(wheel: Path) -> None:
    """Catches a package called configs or convert among other people's, and files that were left out."""
    files = {Path(name) for name in zipfile.ZipFile(wheel).namelist()}
    assert {path.parts[0].partition("-")[0] for path in files} == {"care_jax"}
    top = {path.parts[1] for path in files if path.parts[0] == "care_jax"}
    assert {"configs", "convert"} <= top
    assert top.isdisjoint({"tests", "benchmarks"})
    wanted = {
        path.relative_to(REPO)
        for folder in ("care_jax", "care_jax/configs", "care_jax/convert")
        for path in (REPO / folder).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert wanted <= files, sorted(wanted - files)


def test_every_command_has_a_name() -> None:
    """Catches a command that an installed package does not list."""
    modules = {module.removeprefix("care_jax.") for module, _ in NAMED.values()}
    assert modules == {*COMMANDS, "convert.hf_to_jax", "convert.jax_to_hf", "convert.check_parity"}


@pytest.mark.slow
def test_it_works_in_an_empty_folder(installed: Path, small_task: SmallTask, tmp_path: Path) -> None:
    """Catches configs, model files or modules that only a checkout has, from training to export."""
    env = {name: value for name, value in environment(small_task.cache).items() if name != "PYTHONPATH"}
    env["PATH"] = os.pathsep.join((str(installed), env["PATH"]))
    overrides = small(small_task.model, small_task.data, train__steps=1, optimizer__warmup_steps=0)
    config = "--config=configs/demo.py:cold_start"
    lines = document_lines("installed").replace(config, shlex.join([config, *flags(overrides)]))
    _run(["bash", "-euc", lines], tmp_path, env)
    assert saved_steps(tmp_path / "runs/cold_start") == [1]
    assert (tmp_path / "report.html").stat().st_size > 10_000
    model = f"--hf={small_task.model}"
    _run(
        ["care-jax", "jax-to-hf", "--checkpoint=runs/cold_start", model, "--out=out", "--dtype=float32"], tmp_path, env
    )
    assert weights.read_hf(tmp_path / "out").keys()

    code = """
import importlib.util, json, pathlib
from care_jax import demo, train
cold, care = demo.stage_configs(pathlib.Path("runs"), seed=1)
others = [name for name in ("configs", "convert", "tests") if importlib.util.find_spec(name)]
print(json.dumps([train.__file__, cold.model.folder, others]))
"""
    module, folder, others = json.loads(_run([str(installed / "python"), "-c", code], tmp_path, env))
    assert Path(module).is_relative_to(installed.parent)
    assert (Path(folder) / "tokenizer.json").is_file()
    assert Path(folder).is_relative_to(installed.parent)
    assert others == []


def test_the_folders_own_config_comes_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches the package's config in place of somebody's own of the same name, and another flag's value changed."""
    monkeypatch.chdir(tmp_path)
    shipped = Path(cli.__file__).parent / "configs"
    words = ["care-jax", "--config=configs/demo.py:grpo", "--config", "configs/own_data.py", "--config=configs/mine.py"]
    others = ["--file=configs/demo.py", "--out", "configs/demo.py", "--config=demo.py"]
    assert cli._with_shipped_config([*words, *others]) == [
        "care-jax",
        f"--config={shipped}/demo.py:grpo",
        "--config",
        f"{shipped}/own_data.py",
        "--config=configs/mine.py",
        *others,
    ]
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs/demo.py").touch()
    assert cli._with_shipped_config(words[:2]) == words[:2]


def test_the_list_of_commands(installed: Path, tmp_path: Path) -> None:
    """Catches a program that lists nothing when it is asked."""
    told = _run([str(installed / "care-jax"), "--help"], tmp_path)
    assert all(f"  {name} " in told for name in NAMED)


def test_a_wrong_name_is_refused(installed: Path, tmp_path: Path) -> None:
    """Catches a traceback for a misspelt command."""
    done = subprocess.run([installed / "care-jax", "trian"], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr.startswith("error: no command 'trian': choose one of demo, ")
    assert len(done.stderr.splitlines()) == 1
