"""One record: a question about images with a verifiable answer. Every reader ends here."""

from __future__ import annotations

import dataclasses

ANSWER_KINDS = ("integer", "number", "choice", "text")


@dataclasses.dataclass(frozen=True)
class Record:
    """A question. `prompt` holds one literal "<image>" for each entry of `images`, in order."""

    id: str
    source: str  # skill or data set; metrics and the report group by it
    prompt: str
    images: tuple[bytes, ...]  # encoded as found on disk (PNG, JPEG, ...)
    answer: str
    answer_kind: str  # one of ANSWER_KINDS, from the data, never guessed from the answer
    choices: tuple[str, ...] | None = None  # option texts, for answer_kind "choice"
    rationale: str | None = None  # text of the think block, for the cold start
    draft: str | None = None  # a wrong rationale shown before the cue; the cold start has no loss on it
