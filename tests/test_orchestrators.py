"""The container image, the SkyPilot task and the JobSet, without Docker, a cloud or a cluster: their parts fit."""

from __future__ import annotations

import fnmatch
import json
import math
import os
import re
import shlex
import subprocess
import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml

from care_jax import config as config_lib
from care_jax.cli import COMMANDS
from tests.end_to_end import REPO

SCRIPTS = REPO / "tpu_scripts"
PROJECT = tomllib.loads((REPO / "pyproject.toml").read_text())["project"]
FOLDERS, FILES = (
    ("care_jax", "configs", "convert"),
    ("pyproject.toml", "README.md", "LICENSE"),
)  # that a wheel is made of
BAD_INPUT, HANGS, STOPPED = 2, 3, 4  # exit codes

# Reads a task with SkyPilot's own reader and schema.
_READ_TASK = """
import json, sys
import sky
task = sky.Task.from_yaml(sys.argv[1])
(resources,) = task.resources
print(json.dumps({
    "accelerators": resources.accelerators,
    "use_spot": resources.use_spot,
    "recovery": resources.job_recovery,
    "mounts": {path: [storage.source, storage.mode.value] for path, storage in task.storage_mounts.items()},
    "run": task.run,
}))
"""


def require_command(words: Sequence[str]) -> None:
    """Checks a command of ours: its name, and each key that it sets."""
    name, *options = words
    assert name in COMMANDS, words
    keys = config_lib.flat(config_lib.base())
    for option in options:
        key, equals, value = option.removeprefix("--").partition("=")
        assert equals
        assert value
        assert key in ("config", "workdir") or key.removeprefix("config.") in keys, option


def dockerfile() -> list[list[str]]:
    """The instructions of the Dockerfile, as words."""
    lines = (SCRIPTS / "Dockerfile").read_text().replace("\\\n", " ").splitlines()
    return [shlex.split(line) for line in lines if line and not line.startswith("#")]


def test_the_image_has_what_the_wheel_needs() -> None:
    """Catches a folder that the build needs and the image lacks, or that never reaches Docker."""
    copied = [name for words in dockerfile() if words[0] == "COPY" for name in words[1:-1]]
    assert sorted(copied) == sorted([*FOLDERS, *FILES, "constraints.txt"])
    ignored = False
    for name in copied:
        assert (REPO / name).exists(), name
        for line in (SCRIPTS / "Dockerfile.dockerignore").read_text().splitlines():
            if fnmatch.fnmatch(name, line.removeprefix("!")):
                ignored = not line.startswith("!")
        assert not ignored, name


def test_the_image_installs_for_each_device() -> None:
    """Catches an extra that does not exist, a target without its device, a Python that is not tried, a wrong start."""
    words = dockerfile()
    assert {line[3]: line[1] for line in words if line[0] == "FROM" and len(line) == 4}.keys() == {"base", "tpu", "gpu"}
    installed = [re.fullmatch(r"\.\[([\w,]+)\]", line[-1]) for line in words if line[:3] == ["RUN", "pip", "install"]]
    extras = [set(match[1].split(",")) for match in installed if match]
    assert extras == [{"demo", "gcs", "tpu"}, {"demo", "gcs", "cuda"}]
    assert set.union(*extras) <= PROJECT["optional-dependencies"].keys()
    assert ["ENTRYPOINT", json.dumps(list(PROJECT["scripts"])).replace('"', "")] in words
    version = re.match(r"python:(3\.\d+)-", words[0][1])
    assert version is not None
    assert f"Programming Language :: Python :: {version[1]}" in PROJECT["classifiers"]


def test_the_skypilot_task() -> None:
    """Catches a task that starts bad input again for ever, that does not resume, or whose command is misspelt."""
    task = yaml.safe_load((SCRIPTS / "skypilot.yaml").read_text())
    recovery = task["resources"]["job_recovery"]
    assert recovery["recover_on_exit_codes"] == [HANGS, STOPPED]
    assert recovery["max_restarts_on_errors"] > 0
    assert task["resources"]["use_spot"]
    assert set(task["envs"]) == set(re.findall(r"\$\{?(\w+)", json.dumps(task["file_mounts"]) + task["run"]))
    program, *words = shlex.split(task["run"].replace("\\\n", " "))
    assert Path(program).name in PROJECT["scripts"]
    require_command(words)
    assert "--workdir=gs://$BUCKET/runs/$RUN" in words
    assert {Path(word.partition("=")[2]).parts[1] for word in words if "=/" in word} == {"bucket"}
    extra = re.search(r"-e '\.\[([\w,]+)\]'", task["setup"])
    assert extra is not None
    assert set(extra[1].split(",")) == {"gcs", "tpu"}


def test_the_jobset() -> None:
    """Catches pods that do not fill the slice, a restart after bad input, none after a preemption, a wrong command."""
    jobset = yaml.safe_load((SCRIPTS / "gke.yaml").read_text())
    policy = jobset["spec"]["failurePolicy"]
    assert policy["maxRestarts"] >= 10
    failed = {"name": "badInput", "action": "FailJobSet", "onJobFailureReasons": ["PodFailurePolicy"]}
    assert policy["rules"] == [failed]
    (group,) = jobset["spec"]["replicatedJobs"]
    job = group["template"]["spec"]
    (rule,) = job["podFailurePolicy"]["rules"]
    assert rule["action"] == "FailJob"
    assert rule["onExitCodes"]["values"] == [BAD_INPUT]
    assert job["backoffLimit"] == 0
    pod = job["template"]["spec"]
    assert pod["restartPolicy"] == "Never"  # a pod failure policy needs it
    (container,) = pod["containers"]
    assert rule["onExitCodes"]["containerName"] == container["name"]
    chips = math.prod(map(int, pod["nodeSelector"]["cloud.google.com/gke-tpu-topology"].split("x")))
    for kind in ("requests", "limits"):
        assert job["parallelism"] * container["resources"][kind]["google.com/tpu"] == chips
    assert job["completions"] == job["parallelism"]
    require_command(container["args"])
    assert "--workdir=gs://BUCKET/runs/care" in container["args"]
    assert [mount["name"] for mount in container["volumeMounts"]] == [volume["name"] for volume in pod["volumes"]]


@pytest.mark.integration
def test_skypilot_reads_the_task(tmp_path: Path) -> None:
    """Catches a field that SkyPilot refuses; SKY_PYTHON is the Python of an environment with skypilot[gcp]."""
    text = (SCRIPTS / "skypilot.yaml").read_text().replace("BUCKET: null", "BUCKET: b").replace("RUN: null", "RUN: r")
    (tmp_path / "task.yaml").write_text(text.replace("workdir: .", f"workdir: {tmp_path}"))
    (tmp_path / "read.py").write_text(_READ_TASK)
    words = [os.environ["SKY_PYTHON"], str(tmp_path / "read.py"), str(tmp_path / "task.yaml")]
    environment = os.environ | {"HOME": str(tmp_path), "SKYPILOT_DISABLE_USAGE_COLLECTION": "1"}
    done = subprocess.run(words, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    read: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    assert read["accelerators"] == {"tpu-v6e-8": 1}
    assert read["use_spot"]
    assert read["recovery"]["recover_on_exit_codes"] == [HANGS, STOPPED]
    assert read["mounts"] == {"/bucket": ["gs://b", "MOUNT"]}
    assert "--workdir=gs://$BUCKET/runs/$RUN" in read["run"]
