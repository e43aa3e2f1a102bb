"""The layout of care_jax: rooms import downwards only, nothing imports a command, and light imports stay light."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

PROJECT = Path(__file__).parents[1]
PACKAGE = PROJECT / "care_jax"

# A room is a package or a module at the top of care_jax. Each imports only itself and those before it.
ROOMS = (
    "errors",
    "structs",
    "options",
    "files",
    "parallel",
    "models",
    "rewards",
    "inputs",
    "method",
    "config_rules",
    "config",
    "cli",
    "data",
    "stages",
    "checkpoints",
    "step",
    "evals",
    "run",
    "planning",
    "page",
)
COMMANDS = ("train", "cold_start", "evaluate", "generate", "judge", "plan", "report", "demo", "data.prepare")
NOT_INSTALLED = ("benchmarks", "configs", "convert", "tests", "tpu_scripts")
MOST_FILES, MOST_PACKAGES, MOST_LINES = 16, 12, 350


def module_name(path: Path) -> str:
    """The name of a file's module below care_jax: "data.prepare", or "" for care_jax itself."""
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def room_of(module: str) -> str:
    """The room that a module below care_jax lies in."""
    return module.partition(".")[0]


def is_command(module: str) -> bool:
    """True for a command, and for what is imported from one ("train.Trainer")."""
    return any(module == command or module.startswith(command + ".") for command in COMMANDS)


@cache
def imports() -> dict[str, tuple[tuple[str, str], ...]]:
    """The imports of every module below care_jax, those inside functions too: (file:line, dotted name) by module."""
    return {module_name(path): tuple(_imports_of(path)) for path in sorted(PACKAGE.rglob("*.py"))}


def _imports_of(path: Path) -> Iterator[tuple[str, str]]:
    for node in ast.walk(ast.parse(path.read_text())):
        match node:
            case ast.Import(names=names):
                found = [alias.name for alias in names]
            case ast.ImportFrom(level=0, module=str(module), names=names):
                found = [f"{module}.{alias.name}" for alias in names]
            case ast.ImportFrom():
                found = ["a relative import"]
            case _:
                continue
        yield from ((f"{path.relative_to(PROJECT)}:{node.lineno}", name) for name in found)


def library_imports() -> Iterator[tuple[str, str, str]]:
    """Imports of care_jax by modules that are not commands: importing module, file:line, name below care_jax."""
    for module, found in imports().items():
        if not is_command(module):
            yield from (
                (module, where, name.removeprefix("care_jax.")) for where, name in found if name.startswith("care_jax.")
            )


def loaded_after(code: str, *wanted: str) -> list[str]:
    """The modules of `wanted` that a fresh interpreter has loaded after running `code`."""
    script = f"{code}\nimport sys\nprint(*sorted({set(wanted)!r} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", script], cwd=PROJECT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()[-1].split()


def test_every_module_lies_in_a_room_or_is_a_command():
    """Catches a new room without a place in the order, which the other tests would not look at."""
    homeless = [name for name in imports() if name and not is_command(name) and room_of(name) not in ROOMS]
    assert not homeless, homeless


def test_rooms_import_only_lower_rooms():
    """Catches an import upwards, and so every cycle between rooms."""
    upwards = [
        f"{where} imports {name}"
        for module, where, name in library_imports()
        if not is_command(name)
        and room_of(module) in ROOMS
        and (room_of(name) not in ROOMS or ROOMS.index(room_of(name)) > ROOMS.index(room_of(module)))
    ]
    assert not upwards, "\n".join(upwards)


def test_no_library_module_imports_a_command():
    """Catches a library that drags in a command's flags and everything the command needs."""
    of_commands = [f"{where} imports {name}" for _, where, name in library_imports() if is_command(name)]
    assert not of_commands, "\n".join(of_commands)


def test_nothing_imports_what_an_installed_package_lacks():
    """Catches code that works only inside a checkout, and a second copy of a module under another name.

    configs/ and convert/ are installed as care_jax.configs and care_jax.convert, two links in a checkout.
    """
    folders = (PACKAGE, PROJECT / "configs", PROJECT / "convert")
    outwards = [
        f"{where} imports {name}"
        for folder in folders
        for path in sorted(folder.rglob("*.py"))
        for where, name in _imports_of(path)
        if name.partition(".")[0] in NOT_INSTALLED
    ]
    copies = [
        f"{where} imports {name}"
        for folder in (PROJECT / "benchmarks", PROJECT / "tests")
        for path in sorted(folder.rglob("*.py"))
        for where, name in _imports_of(path)
        if name.partition(".")[0] in ("configs", "convert")
    ]
    assert not outwards + copies, "\n".join(outwards + copies)


def test_only_the_demo_imports_configs_or_convert():
    """Catches an import circle: both import the library."""
    found = [
        f"{where} imports {name}"
        for module, names in imports().items()
        for where, name in names
        if module != "demo" and name.startswith(("care_jax.configs", "care_jax.convert"))
    ]
    assert not found, "\n".join(found)


def test_imports_are_absolute():
    """Catches a relative import, which the tests above cannot see."""
    relative = [where for found in imports().values() for where, name in found if name == "a relative import"]
    assert not relative, "\n".join(relative)


def test_few_files_and_packages_at_the_top():
    """Catches a package that grows flat again: its top shows the commands and the rooms, no more."""
    files = sorted(path.name for path in PACKAGE.glob("*.py") if path.name != "__init__.py")
    packages = sorted(path.parent.name for path in PACKAGE.glob("*/__init__.py") if not path.parent.is_symlink())
    assert len(files) <= MOST_FILES, files
    assert len(packages) <= MOST_PACKAGES, packages


def test_no_file_is_too_long():
    """Catches a file that has grown a second idea."""
    lines = {path.relative_to(PROJECT): len(path.read_text().splitlines()) for path in PACKAGE.rglob("*.py")}
    long = [f"{path} has {count} lines" for path, count in sorted(lines.items()) if count > MOST_LINES]
    assert not long, "\n".join(long)


def test_a_config_loads_no_heavy_library():
    """Catches a config file that takes seconds to read because its defaults come from the modules that use them."""
    heavy = ("grain", "tensorflow_datasets", "transformers")
    assert loaded_after("import care_jax.config", *heavy) == []


def test_a_step_on_devices_needs_no_data_packages():
    """Catches a device module or the step's table that can only be imported where the data packages are installed."""
    packages = ("grain", "tensorflow_datasets", "transformers", "care_jax.data")
    assert loaded_after("import benchmarks.accelerator", *packages) == []


def test_training_loads_neither_benchmarks_nor_their_readers():
    """Catches training that imports the evaluation sets and every data set's reader with them."""
    assert loaded_after("import care_jax.train", "care_jax.data.readers", "care_jax.evals.test_sets") == []


@pytest.mark.parametrize("kind", ["latex", "tests.own_verifier:anagram", "care_jax.evals.lmms_eval_equal:equal"])
def test_verifier_workers_load_no_jax(kind):
    """Catches workers of half a gigabyte each that take seconds to start again after a kill."""
    code = f"from care_jax.rewards import worker; worker.load_kind({kind!r})"
    assert loaded_after(code, "jax", "flax", "transformers") == []
