r"""Finds the answer in a response that keeps to no layout: the statement that stands last.

A statement is a box, a line such as "**Answer:** B", "#### 7" or 故选B, words such as "the correct option is (D)", or
a program that prints a literal (programs.py). Without any, the last sentence counts, or the first one of a last
paragraph that begins with yes or no. Questions and closing phrases ("I hope this helps") are passed over, and so is
all that follows when a response, once it has answered, asks itself another question. Every pattern is linear in the
text that it looks at.
"""

from __future__ import annotations

import re

from care_jax.rewards.programs import Span, printed_literal
from care_jax.rewards.verifiers.verdict import MAX_ANSWER_LEN

_END_TOKEN = re.compile(r"</s>|<\|[a-z_]{1,20}\|>|<eos>|<end_of_turn>")
_LINE = re.compile(r"[^\r\n]+")
_SUITABLE = "correct|right|best|closest|nearest|accurate|appropriate|suitable|final|likely"
# What leads to an answer, which is the rest of the line, or the next line if nothing is left.
_LEAD = re.compile(
    # at the head of a line: "**Final Answer:**", "### The answer", r"\( \text{Answer: ", 故选
    r"^[\s*#>\\\[({$_【-]{0,40}(?:\\?text(?:bf)?\{)?\s{0,9}"
    rf"(?:(?:the )?(?:(?:{_SUITABLE}) )?(?:(?:answer|option|choice)(?: is)?[\s*_]{{0,20}}[:：]|answer[\s*_]{{0,20}}$)"  # noqa: RUF001
    r"|(?:(?:所以|因此|综上|故)[,，]?)?(?:正确)?(?:答案|故选|应?选择?项?)】?"  # noqa: RUF001
    r"(?:应该)?[是为选]?(?:选项)?[:：]?)[\s*_:]{0,20}"  # noqa: RUF001
    # in a line: "the correct option letter is", "the answer should be", 答案是
    rf"|\b(?:answer|(?:{_SUITABLE}) (?:\w{{1,20}} ){{0,2}}(?:option|choice)|(?:option|choice) (?:that|which))\b"
    r"[^.:!?\r\n]{0,80}?"
    r"(?:\s(?:is|(?:should|would|must|will|could)(?: (?!not\b|never\b)\w{1,20})? be)\b|:)[\s:*]{0,20}"
    # "the capability is option (A) Rec", but not "it is red, which is option A"
    r"|(?<!\bwhich )\bis (?=(?:option|choice) \(?[A-L]\b)"
    r"|(?:答案|故选|应选|选择|选项)[^。\r\n]{0,20}?[是为选：:]\s{0,9}|故选\s{0,9}",  # noqa: RUF001
    re.IGNORECASE | re.MULTILINE,
)
# What holds an answer: \fbox{42}, "option B is correct", "option (B) red is the best", "(B) is the best", 选项B正确.
_HOLDER = re.compile(
    r"\\fbox\s{0,9}\{([^{}]*(?:\{[^{}]*\}[^{}]*)*)\}"
    rf"|(?:[Oo]ption|[Cc]hoice|选项)\s?\(?([A-L])\)?\s?(?:is|是)?\s?(?:the |most )?(?:{_SUITABLE}|正确)"
    rf"|[Oo]ption (\([A-L]\) [^\r\n.,;:!?]{{1,60}}?) is (?:the |most )?(?:{_SUITABLE})\b"
    rf"|(?<![^\s,，])(\([A-L]\)) is (?:the |most )?(?:{_SUITABLE})\b"  # noqa: RUF001
)
_LAST_LINE = re.compile(r"####[ \t]*(?=[^#\s])")  # as in GSM8K
_EQUALS = re.compile(r"(?:=|≈|\\approx)\s{0,9}(?=[-*$\d])")
_THREE_WORDS = re.compile(r"(?:[^\n]{0,40}?\b[^\W\d_]{2,20}\b){3}")
_CONDITION = re.compile(r"\b(?:when|if|where|with|for|(?<!the )given|let|since|because)\b", re.IGNORECASE)
_ADVERB = re.compile(
    r"[\s,;:#]{0,9}"
    r"(?:(?:therefore|thus|hence|so|likely|most likely|probably|definitely|simply|clearly|indeed)\b[\s,:]{1,9})*",
    re.IGNORECASE,
)
# The end of a sentence: no initial ("B. red") unless quoted, no abbreviation ("U.S. dollars"), no bracket or command
# behind it.
_SENTENCE_END = re.compile(
    r"(?:(?<=\w\w)|(?<=[\d)\]}%°$*])|(?<=[\"“]\w)(?=.[\"”]))[.!?。]"
    r"(?:(?P<quote>[\"”])?[*\"”')]{0,3}\s{1,9}(?=[A-Z\u4e00-\u9fff\\$*])|(?<=。)|(?=[A-Z][a-z]+ ))"
)
_TAKEN_BACK = re.compile(
    r"\s*(?:no|not|or|but|wait|actually|maybe|perhaps|alternatively|however|sorry)\b", re.IGNORECASE
)
# What takes a statement back: directly behind it, and at the head of a later sentence or line.
_WRONG = r"(?:not (?:right|correct)|(?:wrong|incorrect|false|rejected|extraneous)\b)"
_DENIED = re.compile(rf"[\s$*\\)\]}}]{{0,9}}(?:is|was) {_WRONG}", re.IGNORECASE)
_RETRACTION = re.compile(
    r"(?:^|[.!?。])[\s$*\\)\]}(\"]{0,9}"
    r"(?:(?:no[,.:]|nope|wait|oops|hmm+|hold on|correction|corrected|scratch that|my mistake|otherwise|sorry,"
    r"|apologies,)"
    r"|actually,? (?:no|it|the|that|i)\b|on (?:second thought|reflection)"
    r"|(?:but )?i (?:was wrong|made an? (?:mistake|error)|misread|take that)"
    rf"|(?:but |however,? )?(?:that|this|it)(?: is|'s| was) {_WRONG}"
    r"|but \(?[A-L]\)? |alternatively, \(?(?:[A-L]|-?\d+)\)?[\s.]"
    r"|等等|等一下|不对|更正|错了|抱歉|应该?[是选为])",
    re.IGNORECASE | re.MULTILINE,
)
_RECHECK = re.compile(r"\blet me (?:re-?|double[ -])", re.IGNORECASE)
_CONFIRMED = re.compile(
    r"\b(?:yes|correct|right|confirm\w*|match\w*|indeed|consistent|holds|same)\b|[✓✅]", re.IGNORECASE
)
# Words before a statement in its clause that doubt, deny or only suppose it.
_DOUBT = re.compile(
    r"(?:\b(?:doubt|unlikely|unsure|tempting|whether|no evidence)\b"
    r"|(?:\bnot|n't|\bnever|\bcannot) (?:sure|certain|know|think|believe|say|tell|conclude)\b)[^,;:]{0,40}$"
    r"|\bunless\b|\bif\b[^.]{0,200}\b(?:were|had)\b.{0,200}\bwould\b"
    r"|(?:\bnot|n't|\bnever|\bcannot)(?: \w{1,20}){0,2}[\s$*\\(\[]{0,9}(?:(?:boxed|fbox)\s?\{)?$"
    r"|(?:不确定|怀疑|不能说|是否)[^,，;；:：]{0,40}$",  # noqa: RUF001
    re.IGNORECASE,
)
_CLOSING = re.compile(
    r"[^.]{0,200}\?[\s*]{0,9}$|\s*(?:i hope|let me know|please|note|feel free|i'm happy|hope this|```|---)",
    re.IGNORECASE,
)
# A paragraph that begins like this gives its answer first and its reasons behind.
_ANSWER_FIRST = re.compile(r"[\s*]{0,9}(?:((?i:yes|no|true|false))\b[*,.:;]|\([A-L]\)|[A-L][.):]{1,2}\s)")
_ANSWER_WORD = re.compile(
    r"(?:[.!?]|\b(?:is|be|answer))[\s*]{1,9}(yes|no|true|false)\b(?=[\s*]{0,9}(?:[,.:;!]|$))", re.IGNORECASE
)
_CONCLUSION = re.compile(
    r"(?:^|(?<=[.,;:])\s+)(?:so|therefore|thus|hence|consequently|overall|in total|in conclusion|as a result)\b"
    r"[\s,:]{0,9}"
    r"|\b(?:so|therefore|thus|hence)\s{1,9}(?:the|there|it|he|she|we|they)\b",
    re.IGNORECASE,
)
_REASONS = re.compile(
    r"[\s*#]{0,9}(?:explanation|reason|reasoning|rationale|justification)\b[\s*]{0,9}:", re.IGNORECASE
)
# A sentence that explains the one before it; the reader of the answer sees both.
_EXPLANATION = re.compile(r"\s*(?:this|that) is (?:because|due to)\b", re.IGNORECASE)
_LONE_LETTER = re.compile(r"[\s*]{0,9}\(?[A-L]\)?\.?[\s*]{0,9}")
_ITEM = re.compile(r"\s*(?:[-*•]|\d{1,2}[.)])\s+[^\d=.:!?\r\n]{1,40}")  # of a list; "3. So it is 5." is a sentence
_NEXT_QUESTION = re.compile(r"^[\s*#>]{0,9}(?:question|human|user)\s?\d{0,3}\s?:", re.IGNORECASE | re.MULTILINE)
_OPEN_BOX = re.compile(r"\\(?:boxed|fbox)\s*\{")
_PAIRS = (("{", "}"), (r"\[", r"\]"), (r"\(", r"\)"))
_TAIL = 20_000  # characters; an answer stands at the end
_LONGEST = 500  # characters; nothing longer is an answer, or a line to look for marks in
_IDLE = " \t\r\n\u200b\ufeff✅✓✔☑\ufe0f"


def last_statement(text: str, box: Span | None) -> Span | None:
    """Return the span of the answer in the text of a response; None without one, or if it is doubted or taken back.

    Args:
        text: the response, without its rationale.
        box: the inside of the last box, None without one.
    """
    end = _next_question(text, box) or _content_end(text)
    if box and box[0] > end:
        box = None
    lines = _lines(text, end)
    explicit = printed_literal(text, lines) or _explicit(text, lines)
    if box and (explicit is None or box[0] >= explicit[0]):
        return None if _is_doubted(text, box[0]) or _is_taken_back(text, box[1], end) else _trimmed(text, box)
    if explicit:
        statement = _without_afterthought(text, explicit)
        taken_back = _is_doubted(text, explicit[0]) or _is_taken_back(text, statement[1], end)
        return None if taken_back else _trimmed(text, statement)
    sentence = _sentence(text, lines) if lines else None
    return sentence and _trimmed(text, sentence)


def _lines(text: str, end: int) -> list[Span]:
    """Return the last lines before `end` that hold anything."""
    tail = max(0, end - _TAIL)
    return [match.span() for match in _LINE.finditer(text, tail, end) if match[0].strip(_IDLE + "*`")]


def _next_question(text: str, box: Span | None) -> int | None:
    """Return where a response that has answered begins another question, as models do that know it from examples."""
    turn = _NEXT_QUESTION.search(text)
    answered = turn and (_explicit(text, _lines(text, turn.start())) or (box and box[1] < turn.start()))
    return turn.start() if turn and answered else None


def _content_end(text: str) -> int:
    """Return the index behind the last character that is no white space and of no end token."""
    end = len(text)
    while True:
        while end and text[end - 1] in _IDLE:
            end -= 1
        start = text.rfind("<", max(0, end - 25), end)
        if start < 0 or not _END_TOKEN.fullmatch(text, start, end):
            return end
        end = start


def _explicit(text: str, lines: list[Span]) -> Span | None:
    """Return the last statement that calls itself an answer."""
    following: Span | None = None
    for start, end in reversed(lines):
        if following is None and _LONE_LETTER.fullmatch(text, start, end):
            return start, end
        if following is None and (mark := _LAST_LINE.match(text, start, end)):
            return mark.end(), end
        holder, lead = _last(_HOLDER, text, start, end), _last(_LEAD, text, start, end)
        if holder and (lead is None or lead.start() <= holder.start()):
            return holder.span(holder.lastindex or 0)
        if lead and lead.end() < end:
            return lead.end(), end
        if lead and following:
            return following
        following = start, end
    return None


def _last(pattern: re.Pattern[str], text: str, start: int, end: int) -> re.Match[str] | None:
    return max(pattern.finditer(text, start, end), key=re.Match.end, default=None)


def _is_doubted(text: str, start: int) -> bool:
    """Return whether the sentence before `start` doubts or denies what follows."""
    before = text[max(0, start - _LONGEST) : start].rpartition("\n")[2]
    return _DOUBT.search(re.split(r"[.!?。]\s", before)[-1]) is not None


def _is_taken_back(text: str, start: int, end: int) -> bool:
    """Return whether the text behind a statement, from `start` on, takes it back, or checks without confirming it."""
    if _DENIED.match(text, start, end) or _RETRACTION.search(text, start, end):
        return True
    recheck = _RECHECK.search(text, start, end)
    return recheck is not None and not _CONFIRMED.search(text, recheck.end(), end)


def _without_afterthought(text: str, span: Span) -> Span:
    """Cut a statement behind its first sentence, unless what follows takes it back."""
    start, end = span[0] + len(_ADVERB.match(text, *span)[0]), span[1]  # type: ignore[index]  # it may be empty
    stop = _SENTENCE_END.search(text, start, end)
    if not stop or _TAKEN_BACK.match(text, stop.end(), end):
        return start, end
    return start, stop.end("quote") if stop["quote"] else stop.start()


def _sentence(text: str, lines: list[Span]) -> Span | None:
    """Return the last sentence, from its conclusion on ("so there are 4"); None if it takes back what was said."""
    start, end = _last_paragraph(text, lines)
    if first := _ANSWER_FIRST.match(text, start, end):
        given = {word.casefold() for word in [first[1] or "", *_ANSWER_WORD.findall(text, start, end)]}
        return (start, end) if first[1] and len(given) > 1 else _without_afterthought(text, (start, end))
    for stop in _SENTENCE_END.finditer(text, start, end):
        if stop.end() == end:
            break
        if _CLOSING.match(text, stop.end(), end):
            end = stop.start()
            break
        if end - start <= MAX_ANSWER_LEN and _EXPLANATION.match(text, stop.end(), end):
            break
        start = stop.end()
    if conclusion := _last(_CONCLUSION, text, start, end):
        start = conclusion.start()
    if (equals := _last(_EQUALS, text, start, end)) and _introduces(text, start, equals.start()):
        start = equals.end()
    start += len(_ADVERB.match(text, start, end)[0])  # type: ignore[index]  # it may be empty
    return None if _TAKEN_BACK.match(text, start, end) else (start, end)


def _last_paragraph(text: str, lines: list[Span]) -> Span:
    """Return the last line, passing over closing phrases, reasons under a heading, and a list under "There are 4:"."""
    reasons = next((i for i, line in enumerate(lines) if i and _REASONS.match(text, *line)), len(lines))
    kept = [line for line in lines[:reasons] if not _CLOSING.match(text, *line)]
    unlisted = next((i for i in range(len(kept), 0, -1) if not _ITEM.fullmatch(text, *kept[i - 1])), 0)
    if 0 < unlisted <= len(kept) - 2 and text.endswith(":", *kept[unlisted - 1]):
        return kept[unlisted - 1][0], kept[unlisted - 1][1] - 1
    return kept[-1] if kept else lines[-1]


def _introduces(text: str, start: int, end: int) -> bool:
    """Return whether the words before an equals sign lead to the result behind it, and to nothing else."""
    return _THREE_WORDS.match(text, start, end) is not None and not _CONDITION.search(text, start, end)


def _trimmed(text: str, span: Span) -> Span:
    r"""Shrink a span by white space, and by marks around it or with their partner before it: ** " $ } \] \)."""
    start, end = span
    while start < end and text[start] in _IDLE:
        start += 1
    while start < end and text[end - 1] in _IDLE + ".。":
        end -= 1
    if end - start > _LONGEST:
        return start, end
    inside, before = text[start:end], text[max(0, start - _LONGEST) : start].rpartition("\n")[2]
    if (box := _OPEN_BOX.match(inside)) and inside.count("}") < inside.count("{"):
        return _trimmed(text, (start + box.end(), end))
    for mark in ("**", "*", "$", "`", '"', "'"):
        length, count = len(mark), inside.count(mark)
        if inside.startswith(mark) and inside.endswith(mark) and count == 2 and len(inside) > 2 * length:
            return _trimmed(text, (start + length, end - length))
        if inside.endswith(mark) and count % 2 and before.count(mark) % 2:
            return _trimmed(text, (start, end - length))
    if inside.startswith('"') and inside.count('"') == 1:
        return _trimmed(text, (start + 1, end))
    for opening, closing in _PAIRS:
        if inside.endswith(closing) and inside.count(closing) > inside.count(opening):
            return _trimmed(text, (start, end - len(closing)))
    return start, end
