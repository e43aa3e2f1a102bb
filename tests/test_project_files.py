"""The files that tell others about the project, and the versions that they name."""

from __future__ import annotations

import re
import tomllib
from typing import Any

import yaml

import care_jax
from tests.end_to_end import REPO

PYPROJECT = tomllib.loads((REPO / "pyproject.toml").read_text())


def load_yaml(name: str) -> Any:
    """A YAML file of the checkout."""
    return yaml.safe_load((REPO / name).read_text())


def test_the_citation_is_of_this_version() -> None:
    """Catches a release whose citation names another version or licence, and a field that the format requires."""
    cited = load_yaml("CITATION.cff")
    assert {"cff-version", "message", "title", "authors"} <= cited.keys()
    assert cited["version"] == care_jax.__version__
    assert cited["license"] == PYPROJECT["project"]["license"]
    assert "2512.19554" in cited["references"][0]["url"]


def test_ci_pins_its_actions_and_ends() -> None:
    """Catches an action that its owner may replace, a job that may write, and one that hangs for six hours."""
    text = (REPO / ".github/workflows/ci.yml").read_text()
    for used in re.findall(r"uses: (\S+)", text):
        assert re.fullmatch(r"[\w/-]+@[0-9a-f]{40}", used), used
    workflow = load_yaml(".github/workflows/ci.yml")
    assert workflow["permissions"] == {"contents": "read"}
    assert all(0 < job["timeout-minutes"] <= 90 for job in workflow["jobs"].values())
    matrix = workflow["jobs"]["resolved"]["strategy"]["matrix"]["include"]
    assert {job["name"]: job["resolution"] for job in matrix} == {"lowest": "lowest-direct", "newest": "highest"}


def test_ci_tries_every_python_that_the_package_names() -> None:
    """Catches a Python that the package claims and no job has."""
    named = {
        label.rpartition(" :: ")[2] for label in PYPROJECT["project"]["classifiers"] if re.search(r":: 3\.\d+$", label)
    }
    assert set(load_yaml(".github/workflows/ci.yml")["jobs"]["locked"]["strategy"]["matrix"]["python"]) == named
    assert PYPROJECT["project"]["requires-python"] == f">={min(named, key=lambda v: int(v[2:]))}"


def test_hooks_run_what_lint_runs() -> None:
    """Catches a commit that passes its hooks and fails in `make lint`."""
    hooks = [hook for repo in load_yaml(".pre-commit-config.yaml")["repos"] for hook in repo["hooks"]]
    entries = " ".join(hook.get("entry", "") for hook in hooks)
    lint = (REPO / "Makefile").read_text().partition("\nlint:")[2].partition("\n\n")[0]
    for command in re.findall(r"-m (ruff check|ruff format|mypy)", lint):
        assert command in entries
    for repo in load_yaml(".pre-commit-config.yaml")["repos"]:
        assert repo["repo"] == "local" or re.fullmatch(r"v\d+\.\d+\.\d+", repo["rev"])


def test_the_lowest_and_the_pinned_versions_agree() -> None:
    """Catches a dependency of the tests that constraints.txt leaves open, or pins below its bound."""
    pins = dict(re.findall(r"^([\w.-]+)==(\S+)$", (REPO / "constraints.txt").read_text(), flags=re.M))
    pinned = {re.sub(r"[-_.]+", "-", name).lower(): version for name, version in pins.items()}
    project = PYPROJECT["project"]
    wanted = [
        *project["dependencies"],
        *project["optional-dependencies"]["test"],
        *project["optional-dependencies"]["demo"],
    ]
    for requirement in wanted:
        name, bound = re.match(r"([\w.-]+)(?:\[[\w,-]*\])?(?:[=>]=([\d.]+))?", requirement).groups()  # type: ignore[union-attr]
        if name == "care_jax":
            continue
        version = pinned[re.sub(r"[-_.]+", "-", name).lower()]
        assert _numbers(version) >= _numbers(bound), requirement


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d+", version))
