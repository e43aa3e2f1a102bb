"""Errors that are the input's, and foreign text in messages and on pages."""

from __future__ import annotations

from collections.abc import Sequence

_SHOWN = 80  # characters of a foreign text in a message
_LISTED, _LONGEST = 20, 200  # problems in a message, and characters of each


class InputError(ValueError):
    """Input that cannot be used: a flag, a config, a file, a model folder, a row of data.

    The message is one line: what was given, what is allowed, how to mend it. A command that ends in an InputError says
    this line and ends with exit code 2, which tells a supervisor that starting it again would not help. Errors of the
    program itself are plain ValueErrors, errors of the machine OSErrors; both end with exit code 1.
    """


class BadRowError(InputError):
    """A row of data that cannot be used: readers drop it, or refuse the file if the user asks for that."""

    def __init__(self, message: str, reason: str = "") -> None:
        """Takes what was found; rows are counted by `reason`, one of few phrases, which is the message if left out."""
        super().__init__(message)
        self.reason = reason or message


def shown(text: object, limit: int = _SHOWN) -> str:
    """`text` as Python writes it, control characters escaped and cut to `limit` characters, for a message."""
    try:
        written = repr(text if not isinstance(text, str) else text[: limit + 1])
    except Exception as error:  # of a user's class
        written = f"a {type(text).__name__} whose repr raised {type(error).__name__}"
    return written if len(written) <= limit + 2 else f"{written[:limit]}..."


def raised(error: BaseException) -> str:
    """`error` as "raised TypeError: 'its text'", for a message; a user's exception may have no text that can be had."""
    try:
        text = shown(str(error))
    except Exception as another:
        text = f"its text raised {type(another).__name__}"
    return f"raised {type(error).__name__}: {text}"


def printable(text: str) -> str:
    """`text` with everything that a terminal or a page would act on or hide written as Python escapes it.

    These are control and format characters (ESC, right-to-left marks), lone surrogates, and white space other than
    spaces, line breaks and tabs.
    """
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() or c in "\n\t" else repr(c)[1:-1] for c in text)


def listed(problems: Sequence[str], most: int = _LISTED) -> str:
    """The problems in one line, control characters escaped: the first `most` of them and the number of the others."""
    others = f"; and {len(problems) - most} more" if len(problems) > most else ""
    return "; ".join(map(one_line, problems[:most])) + others


def one_line(text: object, limit: int = _LONGEST) -> str:
    """`text` in one line of at most `limit` characters, before its control characters are escaped."""
    line = " ".join(str(text).split())[:limit]
    return "".join(each if each.isprintable() else repr(each)[1:-1] for each in line)
