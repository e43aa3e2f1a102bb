"""Reads what one sentence states: "The bars add up to 9 in 2012." states 9. A sentence that hedges states nothing."""

from __future__ import annotations

import re
from typing import NamedTuple

from care_jax.rewards.verifiers.reading.numerals import NUMERAL, PLAIN, to_fraction
from care_jax.rewards.verifiers.reading.surds import read_surd
from care_jax.rewards.verifiers.reading.units import read_unit
from care_jax.rewards.verifiers.reading.wrapping import unwrap

# Words with which a text takes back, leaves open or doubts what it says.
HEDGE = re.compile(
    r"\b(?:or|not|no|nor|neither|either|cannot|can't|isn't|aren't|wasn't|don't|doesn't|didn't|without|never|maybe"
    r"|perhaps|possibly|might|could|unless|aka|vs|versus|wrong|incorrect|except|rather|instead|actually|wait|unclear"
    r"|unknown|impossible|answer|option|choice|another|would need|need more|unable|insufficient|may (?:be|have)"
    r"|would have been|used to be|fails? to be|lacks?|hardly|barely|scarcely|nobody|doubt|unlikely|unsure|false"
    r"|supposed?|assume|(?:any|every)thing but|all but|far from|opposite of|distractor|rejected|extraneous"
    r"|ruled out|eliminated|nope|oops|hmm+|let me)\b"
    r"|^had\b|^let (?:the|it)\b|^up to\b|\S if\b|__|[?|❌✗✘✖]|->|→|≠"
    r"|不是|不对|不正确|并非|错|而不|除了?|排除|或|还是|可能|也许|不确定|等等",
    re.IGNORECASE,
)
_BOUNDARY = re.compile(r"(?<=[^\s.][^\s.])[.!?;]\s+(?=\S)|\n")
_WORD = re.compile(r"[^\W\d_]{2,}")
_STATES = re.compile(
    r"\b(?:is|are|was|were|be|equals|becomes|to get|gives|yields|chooses?|selects?|picks?)\b"
    r":?\s*(?:(?:approximately|about|around|roughly|only|exactly|also|therefore"
    r"|thus|simply|just|equal to|a total of|option|choice|the)\s+)*",
    re.IGNORECASE,
)
_EXISTS = re.compile(
    r"\bthere\s+(?:is|are|was|were|will be)\s+(?:(?:a total of|only|about|exactly)\s+)?", re.IGNORECASE
)
# What follows these only says more of the answer; a comma must set off the last ones.
_REASON = re.compile(
    r",?\s+(?:because|since|as|which)\b|,\s+(?:with|where|when|based on|according to|meaning|indicating)\b"
)
_EXPLANATION = re.compile(r"[.。]\s+(?:this|that) is (?:because|due to)\b", re.IGNORECASE)
# Words that leave nothing open in the subject of a sentence: "The pan or pot on the left is red."
_HARMLESS_IN_SUBJECT = re.compile(
    r"\b(?:if|or|option|choice|lacks?|unlikely|false|opposite of|rejected|eliminated)\b", re.IGNORECASE
)
# What a sentence may begin with before it states anything: "In the web, since the left side is 5, the right one is 3.",
# but not "Since 10 appears most often, it is the mode.", which points back, nor "If it is not red, ..".
_CLAUSES = re.compile(
    r"(?:(?:since|as|because|given that)\b(?:[^.;!?]|\.\d)*?,\s+(?=(?:the|there|he|she|we|you)\b)"
    r"|(?:if|when)\b(?:(?!not?\b|n't\b|never|without)(?:[^.;!?]|\.\d))*?,\s+(?=(?:the|there|he|she|we|you)\b)"
    r"|(?:for|in|at|on|from|based on|according to)\b(?:\s+[^\s,]+){1,6},\s+(?=[A-Za-z]{2})){1,2}",
    re.IGNORECASE,
)
SPELLED = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve")
SPELLED_OUT = re.compile(rf"\b(?:{'|'.join(SPELLED)})\b", re.IGNORECASE)
_SCALE = r"(?:\s+(?:hundred|thousand|million|billion|trillion|dozen|percent)\b)?"
_BETWEEN = "per|in|of|out|for|every|each|a|an|and|by|from"  # "12 per thousand" is 12, and "12 cm thousand" nothing
_NUMBER = re.compile(
    rf"(?<![\w.,/^*+=-])[-−]?\$?(?:{PLAIN})(?:\s*(?:%|°)|{_SCALE})(?![\w/^*+=%°]|-\w|[.,:]\d"  # noqa: RUF001
    r"|\s+(?:[a-z]{1,12}\s+)?(?:plus|minus|squared|cubed)\b|\s+(?:(?:out\s+)?of|to|through)\s+\$?\d"  # "2014 of 2016"
    rf"|(?:\s+(?!(?:{_BETWEEN})\b)[^\s,;]{{1,12}}){{0,2}}\s+(?:hundred|thousand|million|billion|trillion|dozen)\b)"
)
_YEAR = r"(?:1[5-9]|20)\d\d\b(?!\s*%)"
_NO_YEAR = r"(?<!1[5-9]\d\d\s)(?<!20\d\d\s)"  # before it
_DATE = re.compile(
    # not "9 of 2016" or "9 to 2016", nor "2014 until 2016" or "2014 (2016)"
    rf"(?:(?<!\d\s)(?<!\bout\s)\b(?:of|to|through)|{_NO_YEAR}\b(?:from|between|since|by|until|for|during|over)"
    r"|\b(?:in|year|(?:january|february|march|april|may|june|july|august|september|october|november|december)"
    r"(?:\s+\d{1,2},?)?))"
    rf"\s+{_YEAR}(?:,?\s+(?:and|or|to|through|until|of)\s+{_YEAR})?"
    rf"|{_NO_YEAR}\(\s*{_YEAR}\s*\)",
    re.IGNORECASE,
)
# A number behind these measures something else than the sentence is about.
_APART = re.compile(
    r"\b(?:into|by|with|per|than|in|from|for|every|each|between|among|under|above|below|over|within|after|before|least"
    r"|most|step|figure|number|question|part|point|line|row|column|minus|negative|twice|double|triple"
    r"|(?:half|third|quarter|square|cube|root|negative|inverse|reciprocal|multiple) of)\s+$",
    re.IGNORECASE,
)
_COUNTED = re.compile(r"\s+(?:[a-z]{3,}\s+)?[a-z]{2,}s(?:\s+[a-z]+){0,6}")
_WORKING = re.compile(rf"(?<![\w.])((?:\$?(?:{PLAIN})\s*[-+*/×]\s*)+\$?(?:{PLAIN}))\s*=\s*\$?({PLAIN})(?![\w/^*+=-])")  # noqa: RUF001
_ARITHMETIC = re.compile(
    r"\b(?:plus|minus|times|less|over|modulo|squares?|cubes?|halves|thirds|quarters)\b|\band\b|thousands|illions|dozens|hundreds"
)


def stated_value(text: str) -> str | None:
    r"""Return the number that one sentence states, or what it says of its subject, which may be one; None without.

    "The bars add up to 9 in 2012." states 9, and "The slope is \frac{1}{2}." says \frac{1}{2}.
    """
    text = unwrap(text).replace("**", "")
    statement = without_explanation(text)
    if number := _stated_number(statement):
        return None if NUMERAL.search(text, len(statement)) else number
    said = predicate(text)
    return said.says if said and not NUMERAL.search(_DATE.sub("", said.rest)) else None


def _stated_number(text: str) -> str | None:
    """Return the number that a sentence states, with its percent sign, scale ("187 million") or unit, or None.

    It is the only number of the sentence besides years in phrases such as "in 2012"; else the one that ends the
    sentence behind its only verb of being, or follows "there are", where zero to twelve may be words. "9 dots in each
    group" states 9 too.
    """
    if HEDGE.search(text) or _BOUNDARY.search(text) or "\\" in text:
        return None
    main = main_clause(text)
    text = _WORKING.sub(_result, main if NUMERAL.search(main) or SPELLED_OUT.search(main) else text)
    if (count := _NUMBER.match(text)) and _COUNTED.fullmatch(text, count.end()):
        return _with_unit(count, text) if not _ARITHMETIC.search(text) and not SPELLED_OUT.search(text) else None
    if not _is_sentence(text):
        return None
    undated = _DATE.sub("", text)
    undated = undated if NUMERAL.search(undated) else text  # the year is what it states
    numbers = list(_NUMBER.finditer(undated))
    if len(numbers) == 1 and len(NUMERAL.findall(undated)) == 1 and not _APART.search(undated, 0, numbers[0].start()):
        return _with_unit(numbers[0], undated)
    text = SPELLED_OUT.sub(lambda word: str(SPELLED.index(word[0].lower())), text)
    undated = _DATE.sub(lambda date: " " * len(date[0]), text)
    for verb in (_EXISTS, _STATES):
        verbs = list(verb.finditer(text))
        number = _NUMBER.match(text, verbs[0].end()) if len(verbs) == 1 else None
        if number and (verb is _EXISTS or not NUMERAL.search(undated, number.end())):
            return _with_unit(number, text)
    return None


class Predicate(NamedTuple):
    """A sentence in three parts: "The centre of the circle", "(0, 0)" and ", as the figure shows"."""

    subject: str
    says: str
    rest: str  # reasons and explanations, which say nothing more of the subject


def predicate(text: str) -> Predicate | None:
    """Return what one sentence says of its subject, without the clauses before it; None if it says nothing."""
    explained = without_explanation(text)
    main = main_clause(explained)
    verbs = list(_STATES.finditer(main))
    if len(verbs) != 1 or not _is_sentence(main[: verbs[0].end()]):
        return None
    subject, says = main[: verbs[0].start()], without_reason(main[verbs[0].end() :])
    if not says or HEDGE.search(_HARMLESS_IN_SUBJECT.sub("", main[: verbs[0].end()])):
        return None
    return Predicate(subject, says, text[len(explained) - len(main) + verbs[0].end() + len(says) :])


def main_clause(text: str) -> str:
    """Return the sentence without the clauses that only lead to it."""
    clauses = _CLAUSES.match(text)
    return text[clauses.end() :] if clauses else text


def without_explanation(text: str) -> str:
    """Return the sentence before one that begins with "This is because"; the text if there is none."""
    explanation = _EXPLANATION.search(text)
    return text[: explanation.start()] if explanation else text


def without_reason(text: str) -> str:
    """Return the text up to "because ..", ", as ..", "which .."."""
    reason = _REASON.search(text)
    return text[: reason.start()] if reason else text


def _result(working: re.Match[str]) -> str:
    """Return the result of a working, "2" of "4/2 = 2", or the whole of it if that is not its result."""
    computed = read_surd(working[1].replace("$", ""), 0, negative=False, computes=True)
    is_result = computed is not None and computed[0] == to_fraction(working[2])
    return working[0].rpartition("=")[2] if is_result else working[0]


def _is_sentence(text: str) -> bool:
    least = 2 if text[:1].isupper() else 3  # words
    return text[:1].isalpha() and len(_WORD.findall(text)) >= least and not _BOUNDARY.search(text)


def _with_unit(number: re.Match[str], text: str) -> str:
    word = re.match(r"\s*[^\s,;]+", text[number.end() :])
    return number[0] + (word[0] if word and read_unit(word[0]) else "")
