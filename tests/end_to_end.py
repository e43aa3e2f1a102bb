"""The parts that end-to-end tests share: a small model, a task it half solves, and commands run as a user runs them.

The task: an image shows one coloured square, and the answer is its colour's number. With `noisy` a coin decides between
that number and the next: no model can do better than guess, so groups are mixed and every stage of a step has work.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import ml_collections
import numpy as np
from PIL import Image

from care_jax.checkpoints.load import load_params
from care_jax.run.folder import METRICS_FILE

REPO = Path(__file__).parents[1]
TINY = REPO / "care_jax" / "models" / "tiny_qwen2_5_vl"
COLOURS = {"red": (220, 30, 30), "green": (30, 160, 60), "blue": (40, 60, 220)}
SOURCES = ("digits", "chart", "geometry")  # the demo's skills

TEXT = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "max_window_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "rope_scaling": {"mrope_section": [2, 3, 3], "rope_type": "default", "type": "mrope"},
}
VISION = {
    "depth": 2,
    "fullatt_block_indexes": [1],
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_heads": 2,
    "out_hidden_size": 32,
}

# A run of seconds; a test overrides what it needs.
SMALL: dict[str, Any] = {
    "data.format": "jsonl",
    "data.prompt_buckets": (24,),
    "data.patch_buckets": (16,),
    "data.max_image_tokens": 4,
    "rollout.response_len": 16,
    "rollout.num_rollouts": 4,
    "objective.reflect.max_rationale_len": 6,
    "objective.overlong_buffer_len": 0,
    "train.prompts": 4,
    "train.stream_len": 128,
    "train.samples_every": 1,
    "train.eval_every": 0,
    "optimizer.warmup_steps": 1,
    "score.old_from": "pass",  # runs all stages
    "eval.batch_size": 12,
    "verify.workers": 1,
}

COLD_START: dict[str, Any] = {
    "train__steps": 60,
    "train__prompts": 16,
    "train__checkpoint_every": 20,
    "optimizer__lr": 1e-2,
}


class SmallTask(NamedTuple):
    """A small model that has learned all there is to learn of the noisy task: the form of its answers."""

    folder: Path

    @property
    def model(self) -> Path:
        """The Hugging Face folder, without weights."""
        return self.folder / "model"

    @property
    def data(self) -> Path:
        """The folder of `write_squares`."""
        return self.folder / "data"

    @property
    def cold_start(self) -> Path:
        """The run folder."""
        return self.folder / "cold_start"

    @property
    def cache(self) -> Path:
        """The folder of compilations."""
        return self.folder / "compilation_cache"


def write_small_model(folder: Path) -> Path:
    """A Hugging Face folder with the tiny model's tokenizer and a config of 0.1 M parameters."""
    shutil.copytree(TINY, folder)
    config = json.loads((folder / "config.json").read_text())
    config |= TEXT
    config["vision_config"] |= VISION
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def write_squares(folder: Path, *, num_train: int = 48, num_heldout: int = 12, noisy: bool = False) -> Path:
    """train.jsonl, heldout.jsonl and images/ in `folder`."""
    (folder / "images").mkdir(parents=True)
    rng = np.random.default_rng(0)
    colours = list(COLOURS)
    for split, count in (("train", num_train), ("heldout", num_heldout)):
        rows = []
        for i in range(count):
            colour = int(rng.integers(len(colours)))
            answer = str(colour + int(noisy and rng.integers(2)))
            name = f"images/{split}_{i}.png"
            (folder / name).write_bytes(square(COLOURS[colours[colour]], int(rng.integers(0, 20))))
            rows.append(
                {
                    "id": f"{split}/{i}",
                    "source": SOURCES[i % 3],
                    "images": [name],
                    "prompt": "<image>?",
                    "answer": answer,
                    "answer_kind": "integer",
                    "rationale": answer,
                }
            )
        (folder / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def square(colour: tuple[int, int, int], margin: int) -> bytes:
    """A 56 x 56 PNG: a square of `colour` on white."""
    image = Image.new("RGB", (56, 56), "white")
    image.paste(colour, (margin // 2, margin // 2, 56 - margin // 2, 56 - margin // 2))
    stream = io.BytesIO()
    image.save(stream, "PNG")
    return stream.getvalue()


def small(model: Path, data: Path, **changes: Any) -> dict[str, Any]:
    """Overrides that make any preset a run of seconds; `changes` name keys with "__" for ".", as train__steps=3."""
    paths = {
        "model.folder": str(model),
        "data.train": str(data / "train.jsonl"),
        "data.eval": str(data / "heldout.jsonl"),
    }
    return SMALL | paths | {name.replace("__", "."): value for name, value in changes.items()}


def apply(config: ml_collections.ConfigDict, overrides: Mapping[str, Any]) -> ml_collections.ConfigDict:
    """Sets the overrides in `config` and returns it; an unknown key is an error, as on the command line."""
    for name, value in overrides.items():
        *groups, last = name.split(".")
        place = config
        for group in groups:
            place = place[group]
        assert last in place, name
        place[last] = value
    return config


def flags(overrides: Mapping[str, Any]) -> list[str]:
    """The overrides as flags, --config.a.b=v."""
    return [f"--config.{name}={value}" for name, value in overrides.items()]


def environment(cache: Path) -> dict[str, str]:
    """The environment of a subprocess: one device, no network, compilations shared through `cache`."""
    ours = {
        "JAX_PLATFORMS": "cpu",
        "HF_HUB_OFFLINE": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "JAX_COMPILATION_CACHE_DIR": str(cache),
        "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",  # compiling is most of what these runs do
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
        "PATH": os.pathsep.join((str(Path(sys.executable).parent), os.environ["PATH"])),
        "PYTHONPATH": str(REPO),
    }
    return {name: value for name, value in os.environ.items() if name != "XLA_FLAGS"} | ours


def start(
    module: str, *args: str, cache: Path, cwd: Path = REPO, extra: Mapping[str, str] | None = None
) -> subprocess.Popen[str]:
    """Starts `python -m module args` in the background, with `extra` added to its environment."""
    return subprocess.Popen(
        [sys.executable, "-m", module, *args],
        cwd=cwd,
        env=environment(cache) | dict(extra or {}),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def finish(process: subprocess.Popen[str], *, seconds: float = 240) -> subprocess.CompletedProcess[str]:
    """Waits for a process of `start`; past the limit it is killed and the test fails."""
    try:
        out, err = process.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        process.kill()
        raise
    return subprocess.CompletedProcess(process.args, process.returncode, out, err)


def run(module: str, *args: str, cache: Path, cwd: Path = REPO) -> subprocess.CompletedProcess[str]:
    """Runs `python -m module args` to its end."""
    return finish(start(module, *args, cache=cache, cwd=cwd))


# Runs modules as `python -m` does, each in a fork of one process that has imported them: importing takes seconds.
_FORKS = """
import importlib, json, os, runpy, sys
for module in sys.argv[1:]:
    importlib.import_module(module)
for line in sys.stdin:
    folder, module, arguments = json.loads(line)
    child = os.fork()
    if child == 0:
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        for number, name in ((1, "stdout"), (2, "stderr")):
            os.dup2(os.open(os.path.join(folder, name), os.O_CREAT | os.O_WRONLY), number)
        sys.argv = [module, *arguments]
        runpy.run_module(module, run_name="__main__", alter_sys=True)
        sys.exit(0)
    print(child, flush=True)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    with open(os.path.join(folder, "code.new"), "w") as file:
        file.write(str(code))
    os.replace(os.path.join(folder, "code.new"), os.path.join(folder, "code"))
"""


class Fork(NamedTuple):
    """A process that `Forks` started; its folder holds stdout, stderr and, when it has ended, code."""

    pid: int
    folder: Path

    def poll(self) -> int | None:
        """The exit code, negative for a signal; None while it runs."""
        code = self.folder / "code"
        return int(code.read_text()) if code.exists() else None

    def send_signal(self, number: int) -> None:
        """Sends a signal; does nothing if the process has ended."""
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, number)

    def finish(self, *, seconds: float = 240) -> subprocess.CompletedProcess[str]:
        """Waits for it; past the limit it is killed and the test fails."""
        limit = time.monotonic() + seconds
        while (code := self.poll()) is None:
            if time.monotonic() > limit:
                self.send_signal(signal.SIGKILL)
                raise TimeoutError(f"{self.folder}: {(self.folder / 'stderr').read_text()}")
            time.sleep(0.005)
        out, err = ((self.folder / name).read_text() for name in ("stdout", "stderr"))
        return subprocess.CompletedProcess([], code, out, err)


class Forks:
    """Starts `python -m module args` without the seconds that its imports take; one at a time."""

    def __init__(self, *modules: str, cache: Path):
        """Starts the process that imports `modules` and then forks."""
        self._server = subprocess.Popen(
            [sys.executable, "-W", "ignore", "-c", _FORKS, *modules],
            cwd=REPO,
            env=environment(cache),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def start(self, folder: Path, module: str, *args: str) -> Fork:
        """Starts a module once the one before it has ended; `folder` must not exist."""
        folder.mkdir(parents=True)
        assert self._server.stdin is not None
        assert self._server.stdout is not None
        print(json.dumps([str(folder), module, args]), file=self._server.stdin, flush=True)
        return Fork(int(self._server.stdout.readline()), folder)

    def __enter__(self) -> Forks:
        """Returns itself."""
        return self

    def __exit__(self, *exception: object) -> None:
        """Waits for the last module, and ends."""
        self._server.communicate()


def run_forked(jobs: list[tuple[Path, str, list[str]]], *, cache: Path) -> None:
    """Runs `python -m module args` one after the other; each leaves code, stdout and stderr in a new folder."""
    with Forks(*{module for _, module, _ in jobs}, cache=cache) as forks:
        for folder, module, arguments in jobs:
            forks.start(folder, module, *arguments).finish()


def run_lines(lines: str, changes: Mapping[str, str], *, cwd: Path, cache: Path, path: Path | None = None) -> str:
    """Runs shell lines until one fails, and returns what they print.

    Args:
        lines: as a document has them.
        changes: text of the lines, and what replaces it.
        cwd: the folder to run them in.
        cache: of compilations.
        path: a folder of programs that are found before all others.
    """
    for written, ours in changes.items():
        assert written in lines, written
        lines = lines.replace(written, ours)
    env = environment(cache)
    if path is not None:
        env["PATH"] = os.pathsep.join((str(path), env["PATH"]))
    ended = subprocess.run(["bash", "-euc", lines], cwd=cwd, env=env, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr
    return ended.stdout


def metrics(workdir: Path) -> list[dict[str, Any]]:
    """The whole lines of metrics.jsonl, of a run that may still write it."""
    path = workdir / METRICS_FILE
    whole = path.read_text().rpartition("\n")[0] if path.exists() else ""
    return [json.loads(line) for line in whole.splitlines()]


def train_steps(workdir: Path) -> list[int]:
    """The steps of the training lines of metrics.jsonl, in file order."""
    return [row["step"] for row in metrics(workdir) if "loss" in row]


def saved_steps(workdir: Path) -> list[int]:
    """Steps with a finished checkpoint."""
    folder = workdir / "checkpoints"
    return sorted(int(child.name) for child in folder.iterdir() if child.name.isdigit()) if folder.is_dir() else []


def make_small_task(folder: Path) -> SmallTask:
    """Writes model and data, and runs the cold start, which takes some 20 seconds."""
    task = SmallTask(folder)
    write_small_model(task.model)
    write_squares(task.data, noisy=True)
    overrides = small(task.model, task.data, **COLD_START)
    arguments = ["--config=configs/demo.py:cold_start", f"--workdir={task.cold_start}", *flags(overrides)]
    ended = run("care_jax.cold_start", *arguments, cache=task.cache)
    assert ended.returncode == 0, ended.stderr
    return task


def final_params(workdir: Path) -> dict[str, np.ndarray]:
    """The newest checkpoint's parameters."""
    return {name: np.asarray(value) for name, value in load_params(workdir).items()}


def assert_same_params(actual: Path, expected: Path) -> None:
    """Checks that the newest checkpoints of two runs have the same parameters, bit for bit."""
    ours, theirs = final_params(actual), final_params(expected)
    assert ours.keys() == theirs.keys(), ours.keys() ^ theirs.keys()
    differing = [name for name, value in theirs.items() if not np.array_equal(ours[name], value)]
    assert not differing, f"these parameters differ: {differing}"
