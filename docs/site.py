"""Hooks for mkdocs: they add pages from outside docs/ and the API, and rewrite links and formulas.

Every page is written for GitHub, so its links lead to files of the repository. On the site, a link to a page leads to
that page, a link to a module to its place in the API, and any other link becomes plain text.
"""

from __future__ import annotations

import html
import posixpath
import re
from pathlib import Path

from latex2mathml.converter import convert
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parents[1]
# Files outside docs/, or with a name that the site has for something else, and their pages.
PAGES = {
    "README.md": "index.md",
    "CHANGELOG.md": "changelog.md",
    "CONTRIBUTING.md": "contributing.md",
    "tpu_scripts/README.md": "tpu_slices.md",
    "docs/study/README.md": "study.md",
}
SOURCES = {page: source for source, page in PAGES.items()}

_FENCE = re.compile(r"(^ *```.*?^ *```$)", re.M | re.S)
_LINK = re.compile(r"\[([^\[\]]*)\]\(([^()\s]+)\)")
_FORMULA = re.compile(r'<(span|div) class="arithmatex">\\[(\[](.*?)\\[)\]]</\1>', re.S)
_PRIME = re.compile(r"<msup>(<mi>\w</mi>)<mi>&#x02032;</mi></msup>")  # which fonts without such a glyph draw tiny


def on_config(config: MkDocsConfig) -> None:
    """Adds the API to the navigation."""
    assert config.nav is not None
    config.nav.append({"API": [{name: page} for page, (name, _) in _api().items()]})


def on_files(files: Files, config: MkDocsConfig) -> None:
    """Adds the pages that docs/ does not have."""
    for source, page in PAGES.items():
        files.append(File.generated(config, page, content=(ROOT / source).read_text()))
    for page, (name, modules) in _api().items():
        files.append(File.generated(config, page, content=_api_page(name, modules)))


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Turns links of the repository into links of the site; leaves the badges out, which other hosts draw."""
    parts = _FENCE.split(re.sub(r"^\[!\[.*\n", "", markdown, flags=re.M))
    for i in range(0, len(parts), 2):  # between the fences
        parts[i] = _LINK.sub(lambda found: _link(found[1], found[2], page.file.src_uri, files), parts[i])
        parts[i] = re.sub(r"^ {2,3}(?=\S)", "    ", parts[i], flags=re.M)  # what mkdocs takes for the inside of a list
    for i in range(1, len(parts), 2):
        parts[i] = re.sub(r"^ {2,3}", "    ", parts[i], flags=re.M) if parts[i].startswith("  ") else parts[i]
    return "".join(parts)


def on_page_content(content: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Turns formulas into MathML, which browsers draw by themselves."""
    display = {"span": "inline", "div": "block"}
    content = _FORMULA.sub(lambda found: convert(html.unescape(found[2]), display=display[found[1]]), content)
    return _PRIME.sub(r'\1<mo lspace="0" rspace="0">&#x02032;</mo>', content)


def _link(text: str, target: str, page: str, files: Files) -> str:
    """A Markdown link from `page` to what `target` means in the repository, or the text alone."""
    if re.match(r"https?:|#", target):
        return f"[{text}]({target})"
    path, _, anchor = target.partition("#")
    path = posixpath.normpath(posixpath.join(posixpath.dirname(SOURCES.get(page, f"docs/{page}")), path))
    there = PAGES.get(path, path.removeprefix("docs/"))
    if path.endswith(".py"):
        module = re.sub(r"^(?=configs|convert)", "care_jax.", path.removesuffix(".py").replace("/", "."))
        there, anchor = next((there, module) for there, (_, modules) in _api().items() if module in modules)
    elif not files.get_file_from_path(there):
        return text
    return f"[{text}]({posixpath.relpath(there, posixpath.dirname(page) or '.')}{'#' * bool(anchor)}{anchor})"


def _api() -> dict[str, tuple[str, list[str]]]:
    """The pages of the API: the name and the modules of each."""
    folders = [ROOT / "care_jax", *sorted(path.parent for path in ROOT.glob("care_jax/*/__init__.py"))]
    pages = {}
    for folder in folders:
        name = folder.relative_to(ROOT).as_posix().replace("/", ".")
        paths = folder.glob("*.py") if folder.name == "care_jax" else folder.rglob("*.py")
        modules = sorted(
            path.relative_to(ROOT).with_suffix("").as_posix().replace("/", ".").removesuffix(".__init__")
            for path in paths
        )
        pages[f"api/{name}.md"] = (name, modules)
    return pages


def _api_page(name: str, modules: list[str]) -> str:
    """Markdown for mkdocstrings. Of the package itself only the docstring; of the config also the source."""
    own = {name: ["members: false", "show_root_heading: false"], "care_jax.config": ["show_source: true"]}
    parts = [f"# {name}\n"]
    for module in modules:
        options = "".join(f"      {option}\n" for option in own.get(module, []))
        parts.append(f"::: {module}\n" + f"    options:\n{options}" * bool(options))
    return "\n".join(parts)
