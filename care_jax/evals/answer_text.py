"""The text of a response while it is decoded: tokens to text, stop texts, and rationale and answer apart.

What has been shown is never taken back: the start of a character, of a tag or of a stop text waits until it is whole,
or is known to be something else.
"""

from __future__ import annotations

import codecs
import re
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from care_jax.rewards.response_format import ANSWER, CLOSING, OPENING, TAGS
from care_jax.rewards.spans import TokenBytes

_TAGS = tuple(tag.decode() for tag in TAGS)
_TAG = re.compile("|".join(_TAGS))
_ENDS_RATIONALE = re.compile(f"{CLOSING}|{ANSWER.decode()}")


class Parts(NamedTuple):
    """The parts of a response that a reader is shown."""

    rationale: str
    answer: str  # everything else, tags left out; several answers are lines


def split_response(text: str, *, is_whole: bool = True) -> Parts:
    """The parts of a response, or of its beginning; those of a longer beginning only add to them.

    The rationale goes from the first <think> to </think> or, if that is missing, to <answer>.
    """
    if not is_whole:
        text = text[: len(text) - _len_of_start(text, _TAGS)]
    before, opening, inside = text.partition(OPENING)
    end = _ENDS_RATIONALE.search(inside)
    rationale, behind = (inside, "") if end is None else (inside[: end.start()], inside[end.start() :])
    pieces = [piece for part in (before, behind) for piece in map(str.strip, _TAG.split(part)) if piece]
    return Parts(rationale.strip() if opening else "", "\n".join(pieces))


class ResponseText:
    """The text of one response, to which tokens are added.

    Args:
        token_bytes: of the tokenizer.
        stops: texts at which the response ends; they do not belong to it.
    """

    def __init__(self, token_bytes: TokenBytes, stops: Sequence[str] = ()) -> None:
        """Starts empty."""
        self._token_bytes, self._stops = token_bytes, tuple(stops)
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._text = ""
        self.is_stopped = False  # at one of the stop texts

    def add(self, token_ids: Iterable[int], *, is_last: bool) -> str:
        """Adds tokens and returns the text so far, without what may still turn out to be a stop text."""
        if self.is_stopped:
            return self._text
        searched = max(0, len(self._text) - max(map(len, self._stops), default=0))
        new = b"".join([self._token_bytes[token_id] for token_id in token_ids])
        self._text += self._decoder.decode(new, is_last)
        found = [(at + len(stop), at) for stop in self._stops if (at := self._text.find(stop, searched)) >= 0]
        if found:  # the one that is whole first, however many tokens came at once
            self._text, self.is_stopped = self._text[: min(found)[1]], True
        is_final = is_last or self.is_stopped
        return self._text if is_final else self._text[: len(self._text) - _len_of_start(self._text, self._stops)]


def _len_of_start(text: str, wholes: Sequence[str]) -> int:
    """Characters at the end of `text` that one of `wholes` begins with, but not all of it."""
    longest = min(len(text), max(map(len, wholes), default=1) - 1)
    lengths = range(longest, 0, -1)
    return next((n for n in lengths if any(len(whole) > n and whole.startswith(text[-n:]) for whole in wholes)), 0)
