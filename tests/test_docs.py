"""README and docs/: every command parses and is run by a test or marked, and links and their anchors exist.

A block of commands stands behind a comment, `<!-- NAME: tests/FILE.py runs these lines -->` or `<!-- not run: WHY -->`,
and so does a program, if the text claims that something runs or loads it.
Commands in blocks and in running text are parsed with the program's own flags, config keys included, and go no further.
"""

from __future__ import annotations

import argparse
import ast
import functools
import importlib.util
import re
import runpy
import shlex
import sys
import tomllib
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from absl import app, flags
from ml_collections import ConfigDict, config_flags

from care_jax import cli
from care_jax import config as config_lib
from care_jax.configs import demo
from tests.documents import FENCE, PAGES, blocks, document_lines
from tests.end_to_end import REPO

WRITTEN = {"docs/study/README.md"}  # by benchmarks.study: its blocks have no marks
MODULES = ("benchmarks.", "care_jax.", "convert.")  # whose commands are parsed
KEPT_EMPTY = ("model.folder", "data.train", "data.eval")  # that a config leaves to its user

_INLINE = re.compile(r"(?<!`)`([^`]+)`(?!`)")
_LINK = re.compile(r"\]\(([^()\s]+)\)")
_ENDS = {"|", "||", "&&", ";", ">", ">>"}  # of a command in a line


class Parsed(Exception):  # noqa: N818 (the good end)
    """A command has read its flags."""


def words_of(lines: str, variables: dict[str, str]) -> Iterator[list[str]]:
    """The words of each command in shell lines; assignments are kept in `variables` and put in."""
    for line in lines.replace("\\\n", " ").splitlines():
        line = re.sub(r"\$\{?(\w+)\}?", lambda found: variables.get(found[1], found[0]), line)
        words: list[str] = []
        for word in [*shlex.split(line, comments=True), ";"]:
            if word in _ENDS:
                yield words
                words = []
            elif not words and (assigned := re.fullmatch(r"(\w+)=(.*)", word, re.S)):
                variables[assigned[1]] = assigned[2]
            else:
                words.append(word)


def commands(page: str) -> Iterator[list[str]]:
    """The words of every command of a page, in blocks and in running text."""
    variables: dict[str, str] = {}
    for block in blocks(page):
        if block.language == "bash":
            yield from words_of(block.body, variables)
    for text in _INLINE.findall(FENCE.sub("", (REPO / page).read_text())):
        flat = re.sub(r"[\[\]]|\.\.\.", " ", " ".join(text.split()))  # optional parts, and what is left out
        if re.match(r"(\.venv/bin/)?python -m |care-jax |make |pip install ", flat):
            yield from words_of(flat, {})


def module_command(words: list[str]) -> list[str] | None:
    """Module and arguments of a `python -m` among the words, or of a `care-jax`; None without one."""
    if words[:1] == ["care-jax"] and len(words) > 1 and words[1].islower():  # COMMAND stands for any
        module, _ = cli.COMMANDS.get(words[1], (f"care_jax.{words[1]}", ""))
        return [module, *words[2:]]
    starts = [i for i in range(len(words) - 2) if words[i].endswith("python") and words[i + 1] == "-m"]
    return words[starts[0] + 2 :] if starts else None


def module_commands() -> Iterator[tuple[str, tuple[str, ...]]]:
    """Page and command of each `python -m` with a module of ours, each once a page."""
    found = ((page, module_command(words)) for page in PAGES for words in commands(page))
    yield from dict.fromkeys((page, tuple(words)) for page, words in found if words and words[0].startswith(MODULES))


@pytest.fixture
def parse(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    """A function (module, arguments) that lets a command read its flags, in a folder with configs/, mine.py and a run.

    The command ends before it does anything: by `Parsed`, or by SystemExit for flags that it refuses.
    """
    (tmp_path / "configs").mkdir()
    for path in REPO.glob("configs/*.py"):
        (tmp_path / "configs" / path.name).symlink_to(path)
    (tmp_path / "configs" / "mine.py").write_text(document_lines("config mine.py", "python"))
    (tmp_path / "runs/care").mkdir(parents=True)  # whose config a command takes if it is given no other
    (tmp_path / "runs/care/config.json").write_text(demo.get_config().to_json())
    (tmp_path / "runs/care/manifest.json").write_text("{}")
    monkeypatch.chdir(tmp_path)
    own = flags.FlagValues()
    for name in [name for name in dir(flags) if name.startswith("DEFINE_") and name != "DEFINE_flag"]:
        monkeypatch.setattr(flags, name, functools.partial(getattr(flags, name), flag_values=own))
    define_config = functools.partial(config_flags.DEFINE_config_file, flag_values=own)
    monkeypatch.setattr(config_flags, "DEFINE_config_file", define_config)
    monkeypatch.setattr(flags, "FLAGS", own)
    monkeypatch.setattr(cli, "_is_read", False)

    def read_flags(main: object, *, argv: list[str] | None = None, flags_parser: Any) -> None:
        rest = flags_parser(argv or sys.argv)
        assert len(rest) == 1, rest
        if "config" in own and isinstance(own["config"].value, ConfigDict):
            config_lib.validate(own["config"].value, unused=KEPT_EMPTY)
        raise Parsed

    def read_arguments(parser: argparse.ArgumentParser, given: list[str] | None = None, _: object = None) -> None:
        plain(parser, given)
        raise Parsed

    plain = argparse.ArgumentParser.parse_args
    monkeypatch.setattr(app, "run", read_flags)
    monkeypatch.setattr(argparse.ArgumentParser, "parse_args", read_arguments)

    def call(module: str, arguments: tuple[str, ...]) -> None:
        monkeypatch.setattr("sys.argv", [module, *arguments])
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)  # the module was imported before
            warnings.simplefilter("ignore", DeprecationWarning)  # of ml_collections, which loads the config
            runpy.run_module(module, run_name="__main__", alter_sys=True)

    return call


def test_every_block_of_commands_has_its_mark() -> None:
    """Catches commands that nobody runs, a mark whose test is gone or runs other lines, and a name given twice."""
    names = []
    for page in PAGES:
        for block in blocks(page):
            has_commands = re.search(r"^\s*(\$ )?(python|care-jax|make|pip|hf|tpu_scripts/\S+) ", block.body, re.M)
            if block.language != "bash":
                assert not has_commands, f"{page}: commands in a block that is not bash: {block.body}"
            if page in WRITTEN or not (block.mark or block.language == "bash"):
                continue
            name, _, rest = block.mark.partition(": ")
            assert rest, f"{page}: no mark before {block.body}"
            if name == "not run":
                assert all((REPO / path).exists() for path in re.findall(r"tests/[\w/]+(?:\.py)?", rest)), block.mark
                continue
            names.append(name)
            file = re.fullmatch(r"(tests/\S+\.py) (runs these lines|loads this file)\b.*", rest)
            assert file is not None, block.mark
            assert re.search(rf'(\("|<!-- ){name}\b', (REPO / file[1]).read_text()), block.mark
    assert len(names) == len(set(names)) >= 4


@pytest.mark.parametrize(("page", "command"), list(module_commands()), ids=str)
def test_commands_parse(page: str, command: tuple[str, ...], parse: Any, capsys: pytest.CaptureFixture[str]) -> None:
    """Catches a module, a flag, a word of a flag, a config or a config key that does not exist."""
    module, *arguments = command
    if not arguments:  # only its name
        assert importlib.util.find_spec(module), module
        return
    with pytest.raises((Parsed, SystemExit)) as ended:
        parse(module, tuple(arguments))
    in_text = f"`python -m {' '.join(command)}`" in (REPO / page).read_text()  # which may name one option alone
    assert ended.type is Parsed or (in_text and "--config=FILE is needed" in capsys.readouterr().err)


@pytest.mark.parametrize(
    "command",
    [
        "care_jax.train --config=configs/demo.py --workdir=w --stepz=3",
        "care_jax.train --config=configs/demo.py --workdir=w --config.train.stepz=3",
        "care_jax.train --config=configs/demo.py:ppo --workdir=w",
        "care_jax.data.prepare --source=geometry4k --root=a --out=b",
        "convert.hf_to_jax --hf=a",
        "benchmarks.plans --olny=configs/demo.py",
    ],
)
def test_wrong_commands_do_not_parse(command: str, parse: Any) -> None:
    """Catches a check that lets everything pass."""
    module, *arguments = command.split()
    with pytest.raises((SystemExit, config_lib.InputError)):
        parse(module, tuple(arguments))


def test_other_commands_name_what_exists() -> None:
    """Catches a target of make, an extra of pip, a mark of pytest, and a script or its flag that does not exist."""
    project = tomllib.loads((REPO / "pyproject.toml").read_text())
    marks = {line.partition(":")[0] for line in project["tool"]["pytest"]["ini_options"]["markers"]}
    makefile = (REPO / "Makefile").read_text()
    seen = {"make": 0, "pip": 0, "pytest": 0, "script": 0}
    for page in PAGES:
        for words in commands(page):
            if words[:1] == ["make"]:
                seen["make"] += 1
                for target in [word for word in words[1:] if "=" not in word]:
                    assert re.search(rf"^{target}:", makefile, re.M), (page, words)
            if words[:2] == ["pip", "install"] and (extras := re.search(r"\[(.*)\]", words[-1])):
                seen["pip"] += 1
                assert project["project"]["optional-dependencies"].keys() >= {*extras[1].split(",")}, (page, words)
            called = module_command(words) or []
            if called[:1] == ["pytest"]:
                seen["pytest"] += 1
                assert "-m" not in called or called[called.index("-m") + 1] in marks, (page, words)
                assert all((REPO / word).exists() for word in called if word.startswith("tests/")), (page, words)
            if words and words[0].startswith("tpu_scripts/"):
                seen["script"] += 1
                script = (REPO / words[0]).read_text()
                own = words[: words.index("--")] if "--" in words else words
                for flag in re.findall(r"--([\w-]+)", " ".join(own[1:])):
                    assert re.search(rf"\b{flag}\b", script), (page, words)
    assert all(seen.values()), seen


def test_configs_in_the_text_load() -> None:
    """Catches an example of a config that is not valid."""
    for body in (document_lines("config", "python"), document_lines("config mine.py", "python")):
        names: dict[str, Any] = {}
        exec(body, names)
        config_lib.validate(names["get_config"]())


def anchors(page: Path) -> set[str]:
    """The anchors of a page's headings, as GitHub makes them."""
    found: set[str] = set()
    for title in re.findall(r"^#+ (.*)$", FENCE.sub("", page.read_text()), re.M):
        text = re.sub(r"[^\w\- ]", "", re.sub(r"\[(.*?)\]\(.*?\)", r"\1", title).lower()).replace(" ", "-")
        count = sum(name == text or re.fullmatch(rf"{re.escape(text)}-\d+", name) is not None for name in found)
        found.add(f"{text}-{count}" if count else text)
    return found


@pytest.mark.parametrize("page", PAGES)
def test_links_are_right(page: str) -> None:
    """Catches a link to a file that was moved, and to a heading that was renamed."""
    for target in _LINK.findall(FENCE.sub("", (REPO / page).read_text())):
        path, _, anchor = target.partition("#")
        if re.match(r"https?:", target) or path.startswith("../../actions/"):  # GitHub's page of the CI
            continue
        file = (REPO / page).parent / path if path else REPO / page
        assert file.exists(), target
        assert not anchor or anchor in anchors(file), target


def texts_of_the_program() -> str:
    """Every string of care_jax and the Makefile, a line each, with "..." in place of what is put in."""
    parts = [(REPO / "Makefile").read_text()]
    for path in REPO.glob("care_jax/**/*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.JoinedStr):
                parts.append("".join(part.value if isinstance(part, ast.Constant) else "..." for part in node.values))
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                parts.append(node.value)
    return "\n".join(" ".join(part.split()) for part in parts)


def test_messages_in_the_table_of_faults_exist() -> None:
    """Catches a message that was reworded, so that whoever searches for it does not find its mend."""
    texts = texts_of_the_program()
    page = (REPO / "docs/troubleshooting.md").read_text()
    cells = re.findall(r"^\| ([^|]*) \| [^|]* \|$", page, re.M)
    messages = [message for cell in cells for message in _INLINE.findall(cell)]
    assert len(messages) >= 12
    for message in messages:
        pattern = ".*".join(re.escape(piece) for piece in re.split(r"\bN\b|\.\.\.", message))
        assert message == "RESOURCE_EXHAUSTED" or re.search(pattern, texts), message  # JAX's own


def test_the_front_page_is_short() -> None:
    """Catches a README that grows again: what is more than a first look belongs in docs/."""
    assert len((REPO / "README.md").read_text().split()) <= 650
    assert (REPO / "README.md").read_text().splitlines()[2] == "RL of vision-language models on TPUs."
