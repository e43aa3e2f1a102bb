"""Strips the wrappers that models put around an answer: LaTeX delimiters, boxes, bold, "the answer is", a full stop."""

from __future__ import annotations

import re

_DELIMITERS = (("$$", "$$"), ("$", "$"), (r"\(", r"\)"), (r"\[", r"\]"), ("**", "**"))
_COMMAND = re.compile(r"\\(?:boxed|fbox|text|textbf|textit|textrm|mathrm|mathbf|mathsf|mbox)\s*\{")
_LEAD = re.compile(
    r"(?:(?:so|thus|hence|therefore),? )?(?:the )?(?:final |correct |right |best )?(?:answer|option|choice)"
    r" ?(?:(?:is|must be|should be) ?:?|:|=) ?",
    re.IGNORECASE,
)
_LATEX_SPACE = re.compile(r"(?<!\\)\\[,;: ]|\\q?quad(?![A-Za-z])|~")
_STRUCK = re.compile(r"~~[^~]+~~")
_FULL_WIDTH = str.maketrans("（）：，；。．？！", "():,;..?!")  # noqa: RUF001
_MAX_LAYERS = 8


def unwrap(text: str) -> str:
    r"""Return the text inside its wrappers, LaTeX spaces made plain: r"$\boxed{5}$." gives "5".

    A wrapper is stripped only if it holds the whole text, so r"\boxed{5} or \boxed{6}" stays as it is.
    """
    text = text.translate(_FULL_WIDTH).replace(r"\!", "")
    if not _STRUCK.search(text):  # struck through, "~~5~~" stays no answer
        text = _LATEX_SPACE.sub(" ", text)
    for _ in range(_MAX_LAYERS):
        inner = _without_outer_layer(text.strip())
        if inner == text:
            break
        text = inner
    return text


def _without_outer_layer(text: str) -> str:
    lead = _LEAD.match(text)
    if lead:
        return text[lead.end() :]
    if text.endswith(".") and not text.endswith(".."):
        return text[:-1]
    for opening, closing in _DELIMITERS:
        inner = text[len(opening) : -len(closing)]
        wrapped = text.startswith(opening) and text.endswith(closing) and len(text) > len(opening) + len(closing)
        if wrapped and opening not in inner and closing not in inner:
            return inner
    return without_command(text)


def without_command(text: str) -> str:
    r"""Return the argument, stripped, of a LaTeX command that holds the whole text (r"\text{ cm}"), or the text."""
    command = _COMMAND.match(text)
    if command and _closing_brace(text, command.end() - 1) == len(text) - 1:
        return text[command.end() : -1].strip()
    return text


def unwrap_head(text: str) -> str:
    r"""Return the text with the wrapper of a part stripped: r"$5$ cm" and r"\boxed{5} cm" give "5 cm"."""
    if text.count("$") == 2 and r"\$" not in text:
        return " ".join(text.replace("$", " ").split())  # the space keeps "$5$6" from becoming 56
    if command := _COMMAND.match(text):
        end = _closing_brace(text, command.end() - 1) or 0
        head = text[command.end() : end]
        return f"{head.strip()} {text[end + 1 :].strip()}".strip() if end else text
    return text


def _closing_brace(text: str, opening: int) -> int | None:
    depth = 0
    for i in range(opening, len(text)):
        if text[i] == "{":
            depth += 1
        elif text[i] == "}":
            depth -= 1
            if depth == 0:
                return i
    return None
