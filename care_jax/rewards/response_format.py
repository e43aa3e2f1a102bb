r"""The layout of a response. A `ResponseFormat` words the request, writes the cold start's traces and parses responses.

    ANSWER_TAGS   <think> rationale </think><answer> answer </answer>
    BOXED         <think> rationale </think> any words \boxed{answer} any words

    ANY           the usual layouts of models that were not asked for either; only parsed, never requested
    BARE          the whole response is the answer; only parsed

Tags are found in the decoded bytes and never as token ids: in Qwen's BPE the first token of a tag merges with the text
before it, so one tag has many spellings in ids (docs/method.md section 5).
"""

from __future__ import annotations

import dataclasses
import itertools
import re
from collections.abc import Callable
from typing import NamedTuple

from care_jax.options import FormatName
from care_jax.rewards.last_statement import last_statement

THINK, END_THINK, ANSWER, END_ANSWER = TAGS = (b"<think>", b"</think>", b"<answer>", b"</answer>")
OPENING, CLOSING = THINK.decode(), END_THINK.decode()  # of the rationale, as text
_TAG = re.compile(b"|".join(TAGS))
_THINK_TAG = re.compile(b"|".join((THINK, END_THINK)))
_BOX = re.compile(rb"\\boxed\s*\{")
_BRACE = re.compile(rb"\\.|[{}]", re.DOTALL)  # escaped braces do not count

Span = tuple[int, int]  # bytes, end excluded
_Tag = tuple[bytes, int, int]  # name, start, end


class ParsedResponse(NamedTuple):
    """The spans of a response's contents, tags excluded; None for a region that does not exist."""

    think: Span | None
    answer: Span | None  # the last one that is closed
    several_answers: bool  # answers were given, closed or not, that differ; the response then counts as wrong
    format_ok: bool  # the layout of the format, each part once


@dataclasses.dataclass(frozen=True)
class ResponseFormat:
    """A layout of responses. All begin with <think> rationale </think>."""

    request: str  # appended to every question; "" if the cold start alone teaches the layout
    answer: tuple[str, str]  # the texts that open and close the answer
    marks: tuple[str, ...]  # texts that a rationale or an answer must not contain
    parse: Callable[[bytes], ParsedResponse]  # takes the bytes of a response, special tokens left out

    def ending(self, rationale: str, answer: str) -> str:
        """The response after its OPENING."""
        return f"{rationale}{CLOSING}{self.answer[0]}{answer}{self.answer[1]}"


def _parse_tagged(text: bytes) -> ParsedResponse:
    """Find the spans between tags.

    The rationale goes from the first <think> to the next </think>; if that never comes, to the next <answer> or the
    end. The answer is the last <answer>..</answer> with no answer tag inside; one that is not closed does not count.
    The format is correct if each tag occurs once, in order, with only white space around the two regions.
    """
    tags = [(match.group(), *match.span()) for match in _TAG.finditer(text)]
    answer_tags = [tag for tag in tags if tag[0] in (ANSWER, END_ANSWER)]
    answers: list[Span] = []
    given: set[bytes] = set()
    for (name, _, start), (following, end, _) in itertools.pairwise([*answer_tags, (b"", len(text), len(text))]):
        if name == ANSWER:
            given.add(text[start:end].strip())
            answers += [(start, end)] if following == END_ANSWER else []
    return ParsedResponse(
        think=_think_span(tags, (END_THINK, ANSWER), len(text)),
        answer=answers[-1] if answers else None,
        several_answers=len(given - {b""}) > 1,
        format_ok=_is_well_tagged(text, tags),
    )


def _think_span(tags: list[_Tag], closings: tuple[bytes, ...], text_len: int) -> Span | None:
    names = [name for name, _, _ in tags]
    if THINK not in names:
        return None
    first = names.index(THINK)
    start = tags[first][2]
    for closing in closings:
        if closing in names[first:]:
            return start, tags[names.index(closing, first)][1]
    return start, text_len


def _is_well_tagged(text: bytes, tags: list[_Tag]) -> bool:
    if tuple(name for name, _, _ in tags) != TAGS:
        return False
    outside = text[: tags[0][1]] + text[tags[1][2] : tags[2][1]] + text[tags[3][2] :]
    return not outside.strip()


def _parse_boxed(text: bytes) -> ParsedResponse:
    r"""Find the rationale between its tags and the answer in the last \boxed{..} behind it.

    A rationale that is not closed ends at the first box, and without a rationale the boxes of the whole text count. The
    format is correct if the text begins with <think>, each of its tags occurs once, and one closed box follows.
    """
    tags = [(match.group(), *match.span()) for match in _THINK_TAG.finditer(text)]
    think = _think_span(tags, (END_THINK,), len(text))
    is_closed = think is not None and text.startswith(END_THINK, think[1])
    boxes, is_open = _box_spans(text, think[1] if think and is_closed else 0)
    if think and not is_closed and (box := _BOX.search(text, think[0])):
        think = think[0], box.start()
    closed = boxes[:-1] if is_open else boxes
    well_tagged = tuple(name for name, _, _ in tags) == (THINK, END_THINK) and text.lstrip().startswith(THINK)
    return ParsedResponse(
        think=think,
        answer=closed[-1] if closed else None,
        several_answers=len({text[slice(*box)].strip() for box in boxes} - {b""}) > 1,
        format_ok=well_tagged and len(boxes) == len(closed) == 1,
    )


def _parse_any(text: bytes) -> ParsedResponse:
    """Find the answer in tags; else as the statement that stands last, a box included (last_statement.py).

    Unlike the formats that are requested, and like every public scorer, the last answer counts if there are no tags,
    whatever was said before it.
    """
    tagged = _parse_tagged(text)
    if tagged.answer or tagged.several_answers:
        return tagged
    start = text.find(END_THINK) + len(END_THINK) if END_THINK in text else 0
    box = _parse_boxed(text).answer
    # Any bytes: surrogateescape leads from bytes to characters and back without loss.
    before_box, in_box = (text[start : box[0]], text[slice(*box)]) if box else (b"", b"")
    characters = [len(part.decode(errors="surrogateescape")) for part in (before_box, in_box)]
    response = text[start:].decode(errors="surrogateescape")
    given = last_statement(response, (characters[0], sum(characters)) if box else None)
    if given is None:
        return tagged
    before_answer, answer = response[: given[0]], response[slice(*given)]
    length, answer_length = (len(part.encode(errors="surrogateescape")) for part in (before_answer, answer))
    return tagged._replace(answer=(start + length, start + length + answer_length))


def _parse_bare(text: bytes) -> ParsedResponse:
    return ParsedResponse(think=None, answer=(0, len(text)), several_answers=False, format_ok=True)


def _box_spans(text: bytes, start: int) -> tuple[list[Span], bool]:
    """Return the spans in the boxes from `start` on, and whether the last is open; an open one runs to the end."""
    spans: list[Span] = []
    while box := _BOX.search(text, start):
        depth = 1
        for brace in _BRACE.finditer(text, box.end()):
            depth += {b"{": 1, b"}": -1}.get(brace.group(), 0)
            if depth == 0:
                spans.append((box.end(), brace.start()))
                start = brace.end()
                break
        else:
            return [*spans, (box.end(), len(text))], True
    return spans, False


ANSWER_TAGS = ResponseFormat(
    request="\nThink first inside <think> </think>, then give the final answer inside <answer> </answer>.",
    answer=("<answer>", "</answer>"),
    marks=tuple(tag.decode() for tag in TAGS),
    parse=_parse_tagged,
)
BOXED = ResponseFormat(
    request="\nThink first inside <think> </think>, then put the final answer inside \\boxed{}.",
    answer=(r"\boxed{", "}"),
    marks=(OPENING, CLOSING, r"\boxed{"),
    parse=_parse_boxed,
)
ANY = ResponseFormat(request="", answer=("", ""), marks=(), parse=_parse_any)
BARE = ResponseFormat(request="", answer=("", ""), marks=(), parse=_parse_bare)
FORMATS: dict[FormatName, ResponseFormat] = {"answer_tags": ANSWER_TAGS, "boxed": BOXED}  # that a prompt can ask for
READABLE = {"answer_tags": ANSWER_TAGS, "boxed": BOXED, "any": ANY, "bare": BARE}
