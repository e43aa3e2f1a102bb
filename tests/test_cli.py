"""Bad input: one clear line, exit code 2, no traceback, and nothing written."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from care_jax import config
from tests.end_to_end import REPO, Forks, flags, small, write_small_model, write_squares
from tests.marks import slow_but

TRAIN, EVALUATE, COLD_START = "care_jax.train", "care_jax.evaluate", "care_jax.cold_start"


# What is asked for, changes to a good command, and what the line must say; {data} is the folder of the good one's data.
CASES: dict[str, tuple[str, dict[str, Any], list[str]]] = {
    "unknown key": (TRAIN, {"train.stepz": 3}, ["stepz", "steps"]),
    "bad value": (TRAIN, {"train.steps": 0}, ["train.steps=0", "at least 1"]),
    "not a number": (TRAIN, {"train.steps": "three"}, ["train.steps", "three"]),
    "unknown choice": (TRAIN, {"objective.selector": "best"}, ["objective.selector", "farthest_first"]),
    "no model folder": (TRAIN, {"model.folder": "nowhere/model"}, ["nowhere/model", "Hugging Face"]),
    "no data": (TRAIN, {"data.train": "nowhere/train.jsonl"}, ["nowhere/train.jsonl", "JSON object a line"]),
    "no held-out data": (TRAIN, {"data.eval": "nowhere/eval.jsonl"}, ["nowhere/eval.jsonl", "JSON object a line"]),
    "no weights": (TRAIN, {"model.weights": "nowhere/run"}, ["nowhere/run", "checkpoint"]),
    "nothing to evaluate": (EVALUATE, {}, ["no finished checkpoint"]),
    "prompts that are too long": (
        TRAIN,
        {"data.prompt_buckets": (6,)},
        ["0 of 48 rows are usable", "too long for data.prompt_buckets=(6,)", "data.prompt_buckets=(", "keeps all"],
    ),
    "responses that are too long": (
        COLD_START,
        {
            "data.train": "{data}/long.jsonl",
            "rollout.response_len": 8,
            "objective.reflect.enabled": False,
            "objective.overlong_buffer_len": 0,
        },
        ["0 of 48 rows are usable", "too long for rollout.response_len=8: 48, of up to", "keeps all"],
    ),
}
# Whole command lines.
FLAGS: dict[str, tuple[list[str], list[str]]] = {
    "no workdir": (["--config=configs/demo.py"], ["--workdir"]),
    "no config": (["--workdir=run"], ["--config"]),
    "a word": (["--config=configs/demo.py", "--workdir=run", "extra"], ["extra"]),
    "absent config": (
        ["--config=configs/absent.py", "--workdir=run"],
        ["there is no file configs/absent.py", "configs/demo.py"],
    ),
    "no such run": (["--config=configs/demo.py:ppo", "--workdir=run"], ["configs/demo.py:ppo: ", "care, care_no_rgr"]),
    "no run to choose": (["--config=configs/own_data.py:7b", "--workdir=run"], ["configs/own_data.py:7b: ", "0 posit"]),
    "unknown group": (["--config=configs/demo.py", "--workdir=run", "--config.zzz.a=3"], ["zzz", "optimizer, rollout"]),
    "unknown flag": (["--config=configs/demo.py", "--workdir=run", "--stepz=3"], ["stepz"]),
}
# Config files, and what the line must say beside the file's name.
START = "from care_jax.config import base\ndef get_config():\n    c = base()\n"
FILES: dict[str, tuple[str, list[str]]] = {
    "syntax error": (START + "    c.seed = (\n    return c\n", ["line 4: SyntaxError", "never closed"]),
    "a name that is not there": (START + "    c.seed = sede\n    return c\n", ["line 4: NameError", "'sede'"]),
    "division": ("x = 1 / 0\n", ["line 1: ZeroDivisionError"]),
    "a missing import": ("import nothing_of_this_name\n", ["line 1: ModuleNotFoundError", "nothing_of_this_name"]),
    "a file it reads": (START + "    open('no_such_file')\n", ["line 4: FileNotFoundError", "no_such_file"]),
    "another type": (START + "    c.train.steps = 'three'\n", ["line 4: TypeError", "'steps'"]),
    "an error of two lines": (START + "    raise ValueError('a\\nb')\n", ["line 4: ValueError: a b"]),
    "no get_config": ("x = 1\n", ["no function get_config()"]),
    "nothing returned": (START, ["no ConfigDict"]),
    "a dict": ("def get_config():\n    return {}\n", ["no ConfigDict"]),
    "NUL": ("x = 1\0\n", ["null bytes"]),
    "a misspelt key": (START + "    c.train.stpes = 3\n    return c\n", ["train.stpes", "did you mean train.steps?"]),
    "an unknown key": (START + "    c.optimizer.learning_rate = 3\n    return c\n", ["learning_rate", "lr, schedule"]),
}


class Commands(NamedTuple):
    """The folder for all cases, and each one's module and arguments."""

    root: Path
    jobs: dict[str, tuple[str, list[str]]]


@pytest.fixture(scope="module")
def commands(tmp_path_factory: pytest.TempPathFactory) -> Commands:
    """The command line of every case."""
    root = tmp_path_factory.mktemp("cli")
    model, data = write_small_model(root / "model"), write_squares(root / "data")
    rows = [json.loads(line) | {"rationale": "1 2 3 4"} for line in (data / "train.jsonl").read_text().splitlines()]
    (data / "long.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    good = small(model, data, model__weights="random")
    jobs: dict[str, tuple[str, list[str]]] = {}
    for name, (module, changes, _) in CASES.items():
        changes = {key: value.format(data=data) if isinstance(value, str) else value for key, value in changes.items()}
        arguments = ["--config=configs/demo.py", f"--workdir={root / name / 'run'}", *flags(good | changes)]
        jobs[name] = (module, arguments)
    jobs |= {name: (TRAIN, arguments) for name, (arguments, _) in FLAGS.items()}
    for name, (text, _) in FILES.items():
        (root / name).with_suffix(".py").write_text(text)
        config = f"--config={(root / name).with_suffix('.py')}"
        jobs[name] = (TRAIN, [config, f"--workdir={root / name / 'run'}"])
    return Commands(root, jobs)


@pytest.fixture(scope="module")
def forks(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Forks]:
    """A process that has imported the commands."""
    with Forks(TRAIN, EVALUATE, COLD_START, cache=tmp_path_factory.mktemp("cache")) as forks:
        yield forks


QUICK = ("unknown key", "bad value", "no data", "nothing to evaluate", "no workdir", "syntax error")


@pytest.mark.parametrize("name", slow_but(QUICK, [*CASES, *FLAGS, *FILES]))
def test_one_line_and_exit_code_2(name: str, commands: Commands, forks: Forks) -> None:
    """Catches a traceback, a wrong exit code, a message without the culprit, and half a run folder."""
    module, arguments = commands.jobs[name]
    ended = forks.start(commands.root / name, module, *arguments).finish()
    assert ended.returncode == 2, ended.stderr
    assert "Traceback" not in ended.stderr
    assert ended.stdout == ""
    lines = ended.stderr.strip().splitlines()
    assert len(lines) == 1, ended.stderr
    assert lines[0].startswith("error: "), ended.stderr
    assert "\\" not in lines[0], ended.stderr
    for word in CASES[name][2] if name in CASES else (FLAGS | FILES)[name][1]:
        assert word in lines[0]
    assert not (commands.root / name / "run").exists()
    assert not (REPO / "run").exists()


# Ends a command in each way, in a fork of one process; prints the exit codes.
ENDINGS = """
import errno, json, os, subprocess, sys
from care_jax import cli
from care_jax.errors import InputError

ENDS = {
    "done": lambda: None,
    "input": lambda: (_ for _ in ()).throw(InputError("bad")),
    "value": lambda: [].index(3),
    "number": lambda: int("three"),
    "disk": lambda: (_ for _ in ()).throw(OSError(errno.ENOSPC, "No space left on device")),
    "file": lambda: open("/nowhere/at/all"),
    "floats": lambda: (_ for _ in ()).throw(FloatingPointError("step 3")),
    "peer": lambda: (_ for _ in ()).throw(ValueError("UNKNOWN: Gloo all-reduce failed: Connection reset by peer")),
    "run": lambda: (_ for _ in ()).throw(RuntimeError("the run ends")),
    "unicode": lambda: b"\\xff".decode(),
}
codes = {}
for name, end in ENDS.items():
    child = os.fork()
    if child == 0:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
        cli.run_flags(end)
    codes[name] = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
print(json.dumps(codes))
"""


def test_the_exit_code_says_who_is_to_blame() -> None:
    """Catches an error of the machine or the program that a supervisor takes for bad input, and gives up."""
    done = subprocess.run([sys.executable, "-c", ENDINGS], capture_output=True, text=True, check=True, cwd=REPO)
    codes = json.loads(done.stdout.splitlines()[-1])
    assert codes.pop("done") == 0
    assert codes.pop("input") == 2
    assert set(codes.values()) == {1}, codes


@pytest.mark.parametrize("command", [TRAIN, COLD_START, EVALUATE])
def test_help_lists_every_option(command: str) -> None:
    """Catches a help without options, and a key without its default or comment."""
    done = subprocess.run(
        [sys.executable, "-m", command, "--help"], capture_output=True, text=True, check=True, cwd=REPO
    )
    lines = [line.strip() for line in done.stdout.splitlines()]
    assert any(line.startswith("--workdir  The run folder") for line in lines)
    assert any(line.startswith("--benchmark") for line in lines) == (command == EVALUATE)
    shown = {line.partition("=")[0]: line for line in lines if "=" in line}
    assert config.flat(config.base()).keys() <= shown.keys()
    assert shown["optimizer.lr"] == "optimizer.lr=1e-06  # peak"
    assert shown["data.train"].startswith(
        "data.train=''  # jsonl: a file, images beside it; mini_vqa: the folder it is"
    )
    assert shown["objective.num_negatives"] == "objective.num_negatives=4  # K, target negatives of a subgroup"
    assert shown["objective.rescue.delta"] == "objective.rescue.delta=0.1  # pseudo-reward of the pseudo-anchor"


# Commands that print their help after imports that define flags of their own.
LATE = ("convert.jax_to_hf", "convert.hf_to_jax", "convert.check_parity", "care_jax.judge", "care_jax.plan")


@pytest.mark.parametrize("command", slow_but(("convert.jax_to_hf",), LATE))
def test_help_leaves_out_the_flags_of_libraries(command: str) -> None:
    """Catches flags of absl, grain or orbax between those of the command."""
    done = subprocess.run(
        [sys.executable, "-m", command, "--help"], capture_output=True, text=True, check=True, cwd=REPO
    )
    shown = set(re.findall(r"^  --(\w+)  ", done.stdout, re.M))
    files = [*REPO.glob("care_jax/**/*.py"), *REPO.glob("convert/*.py")]
    sources = "".join(path.read_text() for path in files)
    ours = {"config", *re.findall(r'flags\.DEFINE_\w+\(\s*"(\w+)"', sources)}
    assert len(shown) >= 2
    assert shown <= ours


@pytest.mark.parametrize("command", [TRAIN, COLD_START, EVALUATE, "care_jax.demo"])
def test_a_typo_is_refused_before_the_slow_imports(command: str) -> None:
    """Catches a command that imports JAX for some seconds, only to say that an option is misspelt."""
    program = (
        "import runpy, sys\n"
        f"sys.argv = ['x', '--config=configs/demo.py', '--workdir=run', '--config.train.stpes=3', '--sede=1']\n"
        "try:\n"
        f"    runpy.run_module({command!r}, run_name='__main__')\n"
        "except SystemExit as end:\n"
        "    print(end.code, *sorted({'jax', 'flax', 'grain', 'transformers', 'numpy'} & set(sys.modules)))\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, cwd=REPO)
    assert done.stdout == "2\n", done.stderr


@pytest.mark.parametrize(
    ("given", "kept"),
    [
        (["--config.data.prompt_buckets=(64,)", "--config.seed=1", "--config.data.prompt_buckets=(96,)"], "b=96 s=1"),
        (["--config.data.prompt_buckets", "(64,)", "--config.data.prompt_buckets=(96,)"], "b=96 s=0"),
        (
            ["-config.data.prompt_buckets=(64,)", "--config.data.prompt_buckets", "(96,)", "--config.seed", "2"],
            "b=96 s=2",
        ),
    ],
)
def test_an_option_given_twice_is_replaced(given: list[str], kept: str) -> None:
    """Catches a tuple whose second value is appended to the first."""
    program = (
        "import sys\nfrom care_jax import cli\n"
        "def main(c):\n    print('b=' + ','.join(map(str, c.data.prompt_buckets)), f's={c.seed}')\n"
        "cli.run_config(main)\n"
    )
    words = ["--config=configs/own_data.py", "--config.data.train=x", *given]
    done = subprocess.run([sys.executable, "-c", program, *words], capture_output=True, text=True, check=True, cwd=REPO)
    assert done.stdout.strip() == kept
