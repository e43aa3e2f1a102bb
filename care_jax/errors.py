"""Errors that are the input's, and foreign text inside a message."""

from __future__ import annotations

from collections.abc import Sequence

_SHOWN = 80  # characters of a foreign text in a message
_LISTED = 20  # problems in a message


class InputError(ValueError):
    """Input that cannot be used: a flag, a config, a file, a model folder, a row of data.

    The message is one line: what was given, what is allowed, how to mend it. A command that ends in an InputError says
    this line and ends with exit code 2, which tells a supervisor that starting it again would not help. Errors of the
    program itself are plain ValueErrors, errors of the machine OSErrors; both end with exit code 1.
    """


def shown(text: object, limit: int = _SHOWN) -> str:
    """`text` as Python writes it, control characters escaped and cut to `limit` characters, for a message."""
    written = repr(text if not isinstance(text, str) else text[: limit + 1])
    return written if len(written) <= limit + 2 else f"{written[:limit]}..."


def listed(problems: Sequence[str], most: int = _LISTED) -> str:
    """The problems in one line, the first `most` of them and the number of the others."""
    others = f"; and {len(problems) - most} more" if len(problems) > most else ""
    return "; ".join(problems[:most]) + others
