"""Finds the literal that a program prints; programs are never run, and nothing is worked out for them."""

from __future__ import annotations

import re

Span = tuple[int, int]  # end excluded

_FENCE = re.compile(r"\s*```\w{0,20}\s*")
_LITERAL = r"(?P<quote>[\"'])(?P<text>[^\"'\\{}\n]{1,200})(?P=quote)|(?P<number>-?[0-9]{1,20}(?:\.[0-9]{1,20})?)"
_PRINT = re.compile(rf"print\(\s*(?:{_LITERAL}|(?P<name>[A-Za-z_]\w{{0,60}}))\s*\)\s*;?\s*")
_ASSIGNMENT = re.compile(rf"(?P<name>[A-Za-z_]\w{{0,60}})\s*=\s*(?:{_LITERAL})\s*")
_COMMENT = re.compile(r"#.*")
_ANY_PRINT = re.compile(r"\bprint\s*\(")


def printed_literal(text: str, lines: list[Span]) -> Span | None:
    """Return the span of the literal that a program at the end of a text prints as its only output, or None.

    The program's last line is print("no"), or print(answer) where its only other line with that name is answer = "no".
    Neither may be indented, for a branch or a function need not be run.

    Args:
        text: the text of a response.
        lines: the spans of its lines that are not empty.
    """
    code = [line for line in lines if not _FENCE.fullmatch(text, *line)]
    if not code or not (output := _PRINT.fullmatch(text, *code[-1])):
        return None
    before = [_COMMENT.sub("", text[start:end]) for start, end in code[:-1]]
    if any(map(_ANY_PRINT.search, before)):
        return None
    if not output["name"]:
        return _literal(output)
    uses = [i for i, line in enumerate(before) if re.search(rf"\b{output['name']}\b", line)]
    if len(uses) != 1:
        return None
    start, _ = code[uses[0]]
    assigned = _ASSIGNMENT.fullmatch(text, start, start + len(before[uses[0]]))
    return _literal(assigned) if assigned and assigned["name"] == output["name"] else None


def _literal(match: re.Match[str]) -> Span:
    return match.span("text" if match["text"] else "number")
