"""Conversions that cannot be: bad input, a full disk, a kill. One clear line, and nothing that looks finished."""

from __future__ import annotations

import collections
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from care_jax.checkpoints import load
from care_jax.convert import hf_folder, hf_to_jax, jax_to_hf, staging
from tests import weights
from tests.end_to_end import REPO, run_forked
from tests.families import edit_json

HF_TO_JAX, JAX_TO_HF, PARITY = "convert.hf_to_jax", "convert.jax_to_hf", "convert.check_parity"
SHARD = "model-00002-of-00003.safetensors"

# What is done to a good source of three files, and what the line must say.
BROKEN = {
    "cut off": (lambda folder: os.truncate(folder / SHARD, (folder / SHARD).stat().st_size - 100), [SHARD, "whole"]),
    "empty": (lambda folder: os.truncate(folder / SHARD, 0), [SHARD, "whole safetensors"]),
    "absent shard": (lambda folder: (folder / SHARD).unlink(), ["not there", SHARD]),
    "no weights": (lambda folder: [file.unlink() for file in folder.glob("model*")], ["model.safetensors", "download"]),
    "unknown model_type": (
        lambda folder: edit_json(folder / "config.json", model_type="llama"),
        ["llama", "qwen2_5_vl"],
    ),
    "missing field": (lambda folder: edit_json(folder / "config.json", rope_scaling=None), ["config.json", "rope"]),
    "no JSON": (lambda folder: os.truncate(folder / "config.json", 40), ["config.json", "JSON"]),
    "no config": (lambda folder: (folder / "config.json").unlink(), ["no config.json"]),
    "no index": (lambda folder: (folder / hf_folder.INDEX_FILE).write_text("[]"), [hf_folder.INDEX_FILE, "index"]),
}
# Ends itself the hard way at the given call of a reading method, half-way through.
KILLED = """
import os, signal, sys
from pathlib import Path
from care_jax.checkpoints.array_store import StoredParam
from care_jax.convert import hf_to_jax, jax_to_hf
from care_jax.convert.safetensors_io import Tensor

direction, at, *paths = sys.argv[1:]
kind, convert = {"in": (Tensor, hf_to_jax.convert), "out": (StoredParam, jax_to_hf.convert)}[direction]
read, calls = kind.read, []

def dying(self, *arguments):
    calls.append(self)
    if len(calls) == int(at):
        os.kill(os.getpid(), signal.SIGKILL)
    return read(self, *arguments)

kind.read = dying
convert(*map(Path, paths))
"""
# No file may grow past a limit: what a full disk does, at a place that a test can choose.
FULL = """
import resource, signal, sys
from pathlib import Path
from care_jax.convert import hf_to_jax, jax_to_hf

signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (60_000, 60_000))
source, params, out = map(Path, sys.argv[1:])
for convert in (lambda: hf_to_jax.convert(source, out), lambda: jax_to_hf.convert(params, source, out)):
    try:
        convert()
    except ValueError as error:
        print(error)
    print(sorted(path.name for path in out.parent.iterdir()))
"""


@pytest.fixture(scope="module")
def good(tiny_folder, tmp_path_factory) -> Path:
    """source: three files of a tied model; params: the same converted."""
    root = tmp_path_factory.mktemp("good")
    weights.make_source("qwen2_5_vl", tiny_folder, root / "source", num_files=3)
    hf_to_jax.convert(root / "source", root / "params")
    return root


def run(program: str, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
    """Runs a Python program in a process of its own."""
    command = [sys.executable, "-W", "ignore", "-c", program, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, cwd=REPO)


@pytest.mark.parametrize("name", BROKEN)
def test_broken_sources_are_told_in_one_line(good, tmp_path, name):
    """Catches a traceback, a model half filled, and a folder left behind."""
    break_it, words = BROKEN[name]
    source = Path(shutil.copytree(good / "source", tmp_path / "source"))
    break_it(source)
    with pytest.raises(ValueError, match=re.escape(words[0])) as error:
        hf_to_jax.convert(source, tmp_path / "out")
    message = str(error.value)
    assert len(message.splitlines()) == 1, message
    assert all(word in message for word in words), message
    assert [path.name for path in tmp_path.iterdir()] == ["source"]


def test_export_lists_every_misfit_and_leaves_nothing_behind(good, tmp_path):
    """Catches a half-written folder, and parameters of another model exported under this config."""
    params = load.load_params(good / "params")
    params["norm.scale"] = params.pop("norm.weight")
    params["embed_tokens.weight"] = params["embed_tokens.weight"][:-1]
    weights.save_params(tmp_path / "params", params)
    with pytest.raises(ValueError, match="3 parameters do not fit") as error:
        jax_to_hf.convert(tmp_path / "params", good / "source", tmp_path / "out")
    assert str(error.value).partition("that belongs to them: ")[2].split("; ") == [
        "norm.weight: missing",
        "norm.scale: unknown",
        "embed_tokens.weight: shape (287, 128), expected (288, 128)",
    ]
    assert [path.name for path in tmp_path.iterdir()] == ["params"]


def test_out_folders_that_are_refused(good, tmp_path):
    """Catches --overwrite deleting the source, a folder above it, or a folder that never was an export."""
    source, params = Path(shutil.copytree(good / "source", tmp_path / "source")), good / "params"
    other = tmp_path / "other"
    other.mkdir()
    with pytest.raises(ValueError, match="exists already"):
        hf_to_jax.convert(source, other)
    with pytest.raises(ValueError, match="exists already"):
        jax_to_hf.convert(params, source, other)
    with pytest.raises(ValueError, match="not a Hugging Face folder"):
        jax_to_hf.convert(params, source, other, overwrite=True)
    for out in (source, tmp_path, source / "out"):
        with pytest.raises(ValueError, match="inside each other"):
            jax_to_hf.convert(params, source, out, overwrite=True)


@pytest.mark.slow
def test_a_full_disk_is_one_line_and_leaves_nothing(good, tmp_path):
    """Catches a traceback of the library that writes, and gigabytes left on a disk that has none."""
    told = run(FULL, good / "source", good / "params", tmp_path / "out")
    there, nothing, back, still_nothing = told.stdout.splitlines()
    assert nothing == still_nothing == "[]"
    assert "File too large" in there
    assert "File too large" in back
    assert told.stderr == ""


def test_too_little_space_is_told_before_anything_is_written(good, tmp_path, monkeypatch):
    """Catches an hour of writing that ends in a full disk."""
    usage = collections.namedtuple("usage", "total used free")(10**12, 10**12 - 10**5, 10**5)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    with pytest.raises(ValueError, match=r"out needs 0\.0 GB and 0\.0 GB are free"):
        hf_to_jax.convert(good / "source", tmp_path / "out")
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
@pytest.mark.parametrize("direction", ["in", "out"])
def test_what_a_kill_leaves_is_refused_and_the_same_command_succeeds(good, tmp_path, direction):
    """Catches a checkpoint or a model folder that looks finished and is not, and one that blocks the next try."""
    arguments = [good / "source"] if direction == "in" else [good / "params", good / "source"]
    out = tmp_path / "out"
    killed = run(KILLED, direction, "60", *arguments, out)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["out.partial"]
    for left in (out, tmp_path, tmp_path / "out.partial", tmp_path / "out.partial" / "new"):
        with pytest.raises(ValueError, match=r"no finished checkpoint|is a Hugging Face folder"):
            load.load_params(left)
        with pytest.raises(ValueError, match=str(left)):
            hf_to_jax.convert(left, tmp_path / "other")

    if direction == "in":
        hf_to_jax.convert(*arguments, out)
        jax_to_hf.convert(out, good / "source", tmp_path / "back")
    else:
        jax_to_hf.convert(*arguments, out)
        out.rename(tmp_path / "back")
    weights.assert_same_bits(weights.load(tmp_path / "back"), weights.load(good / "source"))
    assert not (tmp_path / "out.partial").exists()


def test_a_failed_overwrite_leaves_the_old_folder(tmp_path):
    """Catches an export that removes or mixes the old folder before the new one is whole, or loses it to a kill."""
    out, work = tmp_path / "out", tmp_path / "out.partial"
    out.mkdir()
    (out / "old").touch()
    with (
        pytest.raises(ValueError, match="out was not written: No space"),
        staging.new_folder(out, num_bytes=1, replace=True),
    ):
        raise OSError("No space left on device")
    assert (out / "old").exists()
    assert not work.exists()

    work.mkdir()
    out.rename(work / "old")  # killed between the two renames
    with pytest.raises(RuntimeError), staging.new_folder(out, num_bytes=1, replace=True):
        raise RuntimeError
    assert (out / "old").exists()
    assert not work.exists()

    with staging.new_folder(out, num_bytes=1, replace=True) as new:
        (new / "fresh").touch()
    assert [path.name for path in out.iterdir()] == ["fresh"]
    assert not work.exists()


def test_two_processes_do_not_write_one_folder(tmp_path):
    """Catches a second command that clears the work of the first."""
    with staging.new_folder(tmp_path / "out", num_bytes=1) as new:
        (new / "mine").touch()
        with pytest.raises(ValueError, match="another process is writing"):
            staging.new_folder(tmp_path / "out", num_bytes=1).__enter__()
        assert (new / "mine").exists()
    assert (tmp_path / "out" / "mine").exists()


def test_commands_go_there_and_back(good, tmp_path):
    """Catches flags of one name defined twice, an exit code that hides a difference, and tracebacks for bad input."""
    params, out, absent = tmp_path / "params", tmp_path / "out", tmp_path / "absent"
    source = f"--hf={good / 'source'}"
    other = load.load_params(good / "params")
    other["norm.weight"] += 0.5
    weights.save_params(tmp_path / "other", other)
    jobs = {
        "there": (HF_TO_JAX, [source, f"--out={params}"], 0),
        "back": (JAX_TO_HF, [f"--checkpoint={params}", source, f"--out={out}"], 0),
        "equal": (PARITY, [f"--checkpoint={params}", f"--hf={out}"], 0),
        "different": (PARITY, [f"--checkpoint={tmp_path / 'other'}", source], 1),
        "again": (HF_TO_JAX, [source, f"--out={params}"], 2),
        "no flag": (HF_TO_JAX, [source], 2),
        "a word": (HF_TO_JAX, [source, f"--out={absent}", "extra"], 2),
        "unknown dtype": (JAX_TO_HF, [f"--checkpoint={params}", source, f"--out={absent}", "--dtype=int4"], 2),
    }
    logs = tmp_path / "logs"
    run_forked([(logs / name, module, args) for name, (module, args, _) in jobs.items()], cache=tmp_path / "cache")
    for name, (_, _, code) in jobs.items():
        told = (logs / name / "stderr").read_text()
        assert (logs / name / "code").read_text() == str(code), (name, told)
        assert len(told.splitlines()) == (code == 2), (name, told)
        assert told.startswith("error: ") or code != 2
    weights.assert_same_bits(weights.load(out), weights.load(good / "source"))
    different = (logs / "different" / "stdout").read_text().splitlines()
    assert [line.split() for line in different if line.startswith("norm ")] == [["norm", "1", "1", "0.5"]]
    assert not absent.exists()
