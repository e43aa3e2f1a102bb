r"""Finds what doubts a statement or takes it back: "I doubt that", "That is wrong.", "The other one is 8."."""

from __future__ import annotations

import re

from care_jax.rewards.verifiers.reading.quantity import Quantity, agree, read_stated
from care_jax.rewards.verifiers.reading.sentences import SPELLED
from care_jax.rewards.verifiers.verdict import MAX_ANSWER_LEN

_LONGEST = 500  # characters before a statement to look at
_LABEL = r"(?:(?:explanation|reason(?:ing)?|rationale|justification|note|edit|update)[\s*]{0,9}:[\s*]{0,9})?"
# Directly behind a statement, and at the head of a later sentence or line.
_WRONG = r"(?:not (?:right|correct)|(?:wrong|incorrect|false|rejected|extraneous)\b)"
_DENIED = re.compile(rf"[\s$*\\)\]}}]{{0,9}}(?:is|was) {_WRONG}", re.IGNORECASE)
_RETRACTION = re.compile(
    r"(?:^|[.!?。])[\s$*\\)\]}(\"]{0,9}"
    rf"(?:no[,.:]|{_LABEL}(?:nope|wait|oops|hmm+|hold on|correction|corrected|scratch that|my mistake|otherwise"
    r"|sorry,|apologies,"
    r"|actually,? (?:no|it|the|that|i)\b|on (?:second thought|reflection)"
    r"|(?:but )?i (?:was wrong|made an? (?:mistake|error)|misread|take that)"
    rf"|(?:but |however,? )?(?:that|this|it)(?: is|'s| was) {_WRONG}"
    r"|but \(?[A-L]\)? |alternatively, \(?(?:[A-L]|-?\d+)\)?[\s.]"
    r"|等等|等一下|不对|更正|错了|抱歉|应该?[是选为]))",
    re.IGNORECASE | re.MULTILINE,
)
_RECHECK = re.compile(r"\blet me (?:re-?|double[ -])", re.IGNORECASE)
_CONFIRMED = re.compile(
    r"\b(?:yes|correct|right|confirm\w*|match\w*|indeed|consistent|holds|same)\b|[✓✅]", re.IGNORECASE
)
# Words before a statement in its clause that doubt, deny or only suppose it, or make it one of several.
_DOUBT = re.compile(
    r"(?:\b(?:doubt|unlikely|unsure|tempting|whether|no evidence"
    r"|(?:another|the other|alternative)(?: \w{1,20})? answer)\b"
    r"|(?:\bnot|n't|\bnever|\bcannot) (?:sure|certain|know|think|believe|say|tell|conclude)\b)[^,;:]{0,40}$"
    r"|\bunless\b|\bif\b[^.]{0,200}\b(?:were|had)\b.{0,200}\bwould\b"
    r"|(?:\bnot|n't|\bnever|\bcannot)(?: \w{1,20}){0,2}[\s$*\\(\[]{0,9}(?:(?:boxed|fbox)\s?\{)?$"
    r"|(?:不确定|怀疑|不能说|是否)[^,，;；:：]{0,40}$",  # noqa: RUF001
    re.IGNORECASE,
)
# A sentence that only names something: "Then 8.", "The other one is 8.", "No, it is (C).", "I choose C.".
_MARKS = r"[\s$*`_\\()\[\]{}\"“”]{0,9}"
_ONE = r"(?:one|answer|result|option|choice|candidate|possibility|solution)"
_ADDED = (
    rf"(?:another(?: {_ONE})?|(?:the |an? )?(?:others?|second|alternative)(?: {_ONE})?|(?:the )?(?:next|last) {_ONE})"
)
_MAY_BE = r"(?:would|could|might|may|should|must|can|will)(?: also)? be"
_BE = rf"(?:(?:\s(?:is|are|was|equals|{_MAY_BE})|'s)(?: also)?\b:?|\s?[:=,])"
_NAMING = re.compile(
    rf"(?:^|[.!?。]){_MARKS}(?:[-•]\s)?{_MARKS}(?P<label>{_LABEL})(?P<said>"
    r"(?:(?:then|and|or|also|plus|but|so|no|now|maybe|perhaps|hence|thus|therefore|rather|instead)\b[,:]?\s){0,3}"
    rf"(?:(?:it|this one|{_ADDED}|(?:the )?(?:(?:real|true|correct|right|actual|new|final) )?{_ONE}){_BE}\s"
    r"|(?:i|we) (?:mean|choose|pick|select|say|would say|think|guess|get|got|have)(?: it is)?\s|make (?:it|that)\s"
    rf"|(?:另一个|第二个|还有一个)(?:答案|选项)?[是为]|然后|还有|或者?)?){_MARKS}"
    rf"(?P<named>[^\s,;:.!?。](?:[^\s.!?。]|\.(?=\d)|[ ](?=\S)){{0,30}}?)(?:,? (?:too|as well|also|instead))?{_MARKS}"
    r"(?=(?P<line_end>[.!]?[\s*]{0,9}$)|[.!?。](?!\d))",
    re.IGNORECASE | re.MULTILINE,
)
_ADDS = re.compile(rf"\b(?:then|and|or|also|plus|{_ADDED})\b", re.IGNORECASE)
_DIGIT_FIRST = re.compile(r"[-−]?\$?\d")  # noqa: RUF001
_LETTER = re.compile(r"(?:[Oo]ption |[Cc]hoice )?\(?([A-L])\)?")
_LETTER_AND_TEXT = re.compile(
    r"(?:[Oo]ption |[Cc]hoice )?(?:\(([A-L])\)|([A-L])[:)])(?: (?!is|are|was|has|does)\S{1,20}){1,3}"
)
# "C is also correct.", "C too"
_LETTER_TOO = re.compile(
    r"(?:^|[.!?。])[\s*(]{0,9}(?:[Oo]ption |[Cc]hoice )?([A-L])\)?\*{0,2}(?: (?:is|would be|could be|might be|may be))?"
    r" (?:(?:also|equally|just as) (?:right|correct|possible|valid|good|fits|works)|another\b|(?:too|as well)[.!]?$"
    r"|(?:fits|works) (?:too|as well))",
    re.MULTILINE,
)
_JOINT = re.compile(r",?\s(?:or|and|then)\s|,\s(?:then\s)?", re.IGNORECASE)
_LETTER_FIRST = re.compile(r"(?:[Oo]ption )?(?:\\text\{)?(?:\(([A-L])\)|([A-L])(?:[.:),*}]|$| \())")


def is_doubted(text: str, start: int) -> bool:
    """Return whether the sentence before `start` doubts or denies what follows."""
    before = text[max(0, start - _LONGEST) : start].rpartition("\n")[2]
    return _DOUBT.search(re.split(r"[.!?。]\s", before)[-1]) is not None


def is_taken_back(text: str, start: int, stop: int, end: int) -> bool:
    """Return whether the text from `stop` to `end` takes back the statement from `start` to `stop`.

    It says that it is wrong, checks it without confirming it, or has a sentence that only names another answer.
    """
    if _DENIED.match(text, stop, end) or _RETRACTION.search(text, stop, end):
        return True
    recheck = _RECHECK.search(text, stop, end)
    if recheck and not _CONFIRMED.search(text, recheck.end(), end):
        return True
    return stop - start <= MAX_ANSWER_LEN and _names_another(text, start, stop, end)


def _names_another(text: str, start: int, stop: int, end: int) -> bool:
    """Return whether a later sentence only names another answer, and none behind it ends with this one again."""
    own = text[start:stop].strip(" \t.*$")
    letter = _LETTER_FIRST.match(own)
    key = (letter[1] or letter[2]) if letter else own
    value = None if letter else read_stated(own, fractions_allowed=True)
    others = [naming for naming in _NAMING.finditer(text, stop, end) if _is_another(naming, key, value, bool(letter))]
    if letter and any(too[1] != key for too in _LETTER_TOO.finditer(text, stop, end)):
        return True
    if not others:
        return False
    again = re.compile(rf"(?<![\w.,]){re.escape(key)}{_MARKS}(?:[.!?。](?!\d)|$)", re.MULTILINE)
    return again.search(text, others[-1].end(), end) is None


def _is_another(naming: re.Match[str], key: str, value: Quantity | None, is_letter: bool) -> bool:
    """Return whether a sentence names another letter, number or word than the answer."""
    label, said, named = naming["label"], naming["said"], naming["named"]
    parts = _JOINT.split(named) if label or said else [named]
    ends_line = naming["line_end"] is not None
    if is_letter:
        if said and (beside := _LETTER_AND_TEXT.fullmatch(named)):
            return (beside[1] or beside[2]) != key
        is_alone = ends_line and naming[0][0] in ".!?。" and "\n" not in naming[0]  # "(B). C.", unlike a heading "C."
        letters = [match[1] for part in parts if (match := _LETTER.fullmatch(part))]
        return bool(label or said or is_alone) and any(letter != key for letter in letters)
    if value is None:  # of words, those that are joined to the first ones
        few = len(key.split()) <= 3 and len(named.split()) <= 2
        return few and _ADDS.search(said) is not None and named.casefold() != key.casefold()
    is_alone = ends_line and _DIGIT_FIRST.match(named) is not None  # unlike the "1." of a list, or "x = 8"
    return bool(said or is_alone) and any(_differs(part, value) for part in parts)


def _differs(named: str, value: Quantity) -> bool:
    """Return whether a text is a quantity other than `value`; one in another unit may be the same."""
    if named.casefold() in SPELLED:
        return value.value != SPELLED.index(named.casefold())
    found = read_stated(named, fractions_allowed=True)
    if found is None or (found.unit and value.unit and found.unit != value.unit):
        return False
    return not agree(found, value, 0.0)
