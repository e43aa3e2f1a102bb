"""The pages of the documentation and their fenced blocks, which tests run, parse and load."""

from __future__ import annotations

import re
from typing import NamedTuple

from tests.end_to_end import REPO

PAGES = sorted(
    path.relative_to(REPO).as_posix()
    for pattern in ("*.md", "docs/**/*.md", "tpu_scripts/*.md")
    for path in REPO.glob(pattern)
)
FENCE = re.compile(r"(?:<!-- (?P<mark>[^\n]*) -->\n)?^ *```(?P<language>\w*)[^\n]*\n(?P<body>.*?)^ *```$", re.M | re.S)


class Block(NamedTuple):
    """A fenced block with the comment in front of it."""

    mark: str
    language: str
    body: str


def blocks(page: str) -> list[Block]:
    """The fenced blocks of a page."""
    return [Block(*(part or "" for part in found.groups())) for found in FENCE.finditer((REPO / page).read_text())]


def document_lines(name: str, language: str = "bash") -> str:
    """The one block, of all pages, whose comment begins with `name`."""
    named = [block for page in PAGES for block in blocks(page) if block.mark.startswith(f"{name}: ")]
    [body] = [block.body for block in named if block.language == language]
    return body
