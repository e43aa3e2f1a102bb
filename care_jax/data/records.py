"""One record: a question about images or videos with a verifiable answer. Every reader ends here."""

from __future__ import annotations

import dataclasses


@dataclasses.dataclass(frozen=True)
class Video:
    """The frames a model is to see, already sampled from the recording."""

    frames: tuple[bytes, ...]  # encoded like images, all of one size
    fps: float  # how many of these frames a second of the recording has


@dataclasses.dataclass(frozen=True)
class Record:
    """A question. `prompt` holds one literal "<image>" for each entry of `images` and one "<video>" for each entry of
    `videos`, in order."""

    id: str
    source: str  # skill or data set; metrics and the report group by it
    prompt: str
    images: tuple[bytes, ...]  # encoded as found on disk (PNG, JPEG, ...)
    answer: str
    answer_kind: str  # one of verifiers.ANSWER_KINDS or module:function, from the data, never guessed from the answer
    choices: tuple[str, ...] | None = None  # option texts, for answer_kind "choice"
    rationale: str | None = None  # text of the think block, for the cold start
    draft: str | None = None  # a wrong rationale shown before the cue; the cold start has no loss on it
    videos: tuple[Video, ...] = ()
