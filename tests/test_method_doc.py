"""docs/method.md: citations of its sections resolve, and what it says of the code is so."""

from __future__ import annotations

import ast
import dataclasses
import functools
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from care_jax import config, structs
from care_jax.method import objectives
from care_jax.method.objectives import Objective

ROOT = Path(__file__).parents[1]
DOCUMENT = ROOT / "docs" / "method.md"
ROOMS = ("care_jax", "configs", "convert", "benchmarks", "tests")
# In these files a plain "section 2" means one of docs/method.md; elsewhere it may be a paper's.
METHOD = ("care_jax/method/", "tests/method/", "tests/reference.py")

_NUMBERS = r"\d+(?:(?:,| and| to|, and) \d+)*(?:, item \d+)?"
_CITATION = re.compile(rf"method\.md,? (sections? {_NUMBERS}(?:\.\d+)?)")
_PLAIN = re.compile(rf"\b([Ss]ections? {_NUMBERS}(?:\.\d+)?)")


@functools.cache
def document() -> str:
    """docs/method.md."""
    return DOCUMENT.read_text()


def tables_with(*columns: str) -> list[dict[str, str]]:
    """The rows of the table whose first headers are `columns`, as dicts from header to cell."""
    for block in re.findall(r"(?:^\|.*\n)+", document(), flags=re.M):
        header, _, *rows = [
            [cell.strip() for cell in line.strip().strip("|").split("|")] for line in block.splitlines()
        ]
        if header[: len(columns)] == list(columns):
            return [dict(zip(header, row, strict=True)) for row in rows]
    raise AssertionError(f"no table with {columns}")


def items_of_sections() -> dict[int, int]:
    """Section number to how many numbered items it has."""
    parts = re.split(r"^## (.*)$", document(), flags=re.M)[1:]
    sections = zip(parts[::2], parts[1::2], strict=True)
    return {
        int(title.split(".")[0]): len(re.findall(r"^\d+\. ", body, flags=re.M))
        for title, body in sections
        if title[0].isdigit()
    }


def problem_of(citation: str, sections: dict[int, int]) -> str:
    """Says why "section 1, item 4", "sections 2 to 5", ... does not resolve; "" if it does."""
    text, _, item = citation.partition(", item ")
    numbers = [int(number) for number in re.findall(r"\d+", text)]
    missing = [number for number in numbers if number not in sections]
    if missing:
        return f"there is no section {missing[0]}"
    if item and not 0 < int(item) <= sections[numbers[-1]]:
        return f"section {numbers[-1]} has no item {item}"
    if re.search(r"\d\.\d", text):
        return "sections have no subsections; cite an item"
    if text.lower().startswith("sections") != (len(numbers) > 1):
        return "one is a section, several are sections"
    return ""


def citations(path: Path, text: str) -> Iterator[str]:
    """The sections of the document that a file cites; a line break in a comment may be anywhere."""
    flat = re.sub(r"\s*\n\s*(?:#:? ?)?", " ", text)
    is_methods = path.relative_to(ROOT).as_posix().startswith(METHOD)
    yield from (_PLAIN if is_methods else _CITATION).findall(flat)


@functools.cache
def cited() -> list[tuple[str, str]]:
    """Every citation in the code, as (file, citation)."""
    files = [path for room in ROOMS for path in sorted((ROOT / room).rglob("*.py")) if path != Path(__file__)]
    return [
        (path.relative_to(ROOT).as_posix(), citation)
        for path in files
        for citation in citations(path, path.read_text())
    ]


def test_every_citation_resolves():
    """Catches a docstring that sends its reader to a section that is gone or was renumbered."""
    sections = items_of_sections()
    assert list(sections) == [1, 2, 3, 4, 5, 6, 7]
    problems = [f"{path}: {what}: {problem_of(what, sections)}" for path, what in cited() if problem_of(what, sections)]
    assert not problems, "\n".join(problems)
    assert len([path for path, _ in cited() if path.startswith("care_jax/")]) >= 20
    inside = re.findall(r"\((sections? [\d, andto]+)\)", document())
    assert len(inside) > 10
    assert not [what for what in inside if problem_of(what, sections)]


@pytest.mark.parametrize(
    ("text", "found", "problem"),
    [
        ("(docs/method.md sections 2 to 5)", ["sections 2 to 5"], ""),
        ("docs/method.md sections 2, 4 and 5.", ["sections 2, 4 and 5"], ""),
        ("see docs/method.md\n    # section 1, item 4; 3", ["section 1, item 4"], ""),
        ("docs/method.md section 9", ["section 9"], "there is no section 9"),
        ("docs/method.md section 1, item 8", ["section 1, item 8"], "section 1 has no item 8"),
        ("docs/method.md section 1.4", ["section 1.4"], "sections have no subsections; cite an item"),
        ("docs/method.md section 2 to 4", ["section 2 to 4"], "one is a section, several are sections"),
        ("Masry et al., section 5", [], ""),
    ],
)
def test_citations_are_read(text, found, problem):
    """Catches a pattern that overlooks a form of citation, above all one that goes over a line break."""
    assert list(citations(ROOT / "care_jax" / "x.py", text)) == found
    assert [problem_of(what, items_of_sections()) for what in found] == [problem for _ in found]


def test_the_dimension_key_is_that_of_structs():
    """Catches a letter that one of the two places gives another meaning, or does not have."""
    key = re.findall(r"\b([A-Z]) (\S.*?)(?=  |$)", structs.__doc__.split("\n\n")[2], flags=re.M)
    assert len(key) > 20
    assert {row["letter"]: row["meaning"] for row in tables_with("letter")} == dict(key)


def defined_names(path: Path) -> set[str]:
    """Functions, classes, and their annotated fields as Class.field."""
    names = set()
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            names.add(node.name)
        if isinstance(node, ast.ClassDef):
            names |= {f"{node.name}.{line.target.id}" for line in node.body if isinstance(line, ast.AnnAssign)}
    return names


def test_symbols_are_where_the_table_says():
    """Catches a function of the method that was renamed or moved and is no longer found by its symbol."""
    rows = tables_with("symbol", "meaning", "section", "code")
    assert len(rows) > 15
    for row in rows:
        name, target = re.fullmatch(r"\[`([\w.]+)`\]\((.*)\)", row["code"]).groups()
        path = (DOCUMENT.parent / target).resolve()
        assert path.is_file(), row["code"]
        assert name in defined_names(path), row["code"]


def test_links_lead_somewhere():
    """Catches a link to a file that was moved."""
    for target in re.findall(r"\]\(([^)#]+)\)", document()):
        assert (DOCUMENT.parent / target).exists(), target


def value(cell: str) -> Any:
    """A table's cell as True, False, a number or a word."""
    cell = cell.strip("`")
    if cell in ("True", "False"):
        return cell == "True"
    try:
        return float(cell)
    except ValueError:
        return cell


def flat(record: Any, prefix: str = "") -> dict[str, Any]:
    """The fields of an objective by dotted name."""
    fields: dict[str, Any] = {}
    for field in dataclasses.fields(record):
        inner = getattr(record, field.name)
        fields |= flat(inner, f"{field.name}.") if dataclasses.is_dataclass(inner) else {prefix + field.name: inner}
    return fields


def test_presets_are_those_of_the_table():
    """Catches a preset, or a default of the fields it leaves alone, that differs from the document."""
    defaults = {row["field"].strip("`"): value(row["default"]) for row in tables_with("field", "default")}
    cue = defaults.pop("reflect.cue").strip('"').removesuffix(" ...")
    assert len(cue) > 20
    rows = tables_with("preset", "objective")
    for row in rows:
        fields = {name.strip("`"): value(cell) for name, cell in row.items() if name.startswith("`")}
        fields |= {name: value(cell) for name, cell in re.findall(r"`([\w.]+)=(\S+)`", row["also"])}
        preset = getattr(objectives, row["preset"].strip("`"))()
        real = flat(Objective.from_config(preset))
        assert real.pop("reflect.cue") == Objective().reflect.cue
        assert Objective().reflect.cue.startswith(cue)
        assert defaults | fields == real, row["preset"]
    assert len(rows) == 6


def test_settings_of_the_paper_are_the_configs():
    """Catches a default of the config that is no longer the paper's setting."""
    base = config.base()
    rows = tables_with("setting", "key", "value")
    assert {row["key"]: base[row["key"].strip("`")] for row in rows} == {
        row["key"]: value(row["value"]) for row in rows
    }


def test_importance_weights_are_off_as_the_table_says():
    """Catches a key of `loss` that the document does not have, and another default."""
    keys = {f"loss.{key}": default for key, default in config.base().loss.items()}
    assert {row["key"].strip("`"): value(row["default"]) for row in tables_with("key", "default")} == keys
