"""Reads what one sentence states: "The bars add up to 9 in 2012." states 9. A sentence that hedges states nothing."""

from __future__ import annotations

import re

from care_jax.rewards.verifiers.reading.numerals import NUMERAL, PLAIN, to_fraction
from care_jax.rewards.verifiers.reading.wrapping import unwrap

# Words with which a text takes back, leaves open or doubts what it says.
HEDGE = re.compile(
    r"\b(?:or|not|no|nor|neither|either|both|cannot|can't|isn't|aren't|wasn't|don't|doesn't|didn't|without|never|maybe"
    r"|perhaps|possibly|might|could|unless|if|aka|vs|versus|wrong|incorrect|false|except|rather|instead|actually|wait"
    r"|unclear|unknown|impossible|answer|option|choice|another|other|different)\b|[?|&]|->|→|≠|\\n?eq|\\text|\\vee",
    re.IGNORECASE,
)
_BOUNDARY = re.compile(r"(?<=[^\s.][^\s.])[.!?;]\s+(?=\S)|\n")
_WORD = re.compile(r"[^\W\d_]{2,}")
_STATES = re.compile(r"\b(?:is|are|was|were|equals|becomes|be)\b:?\s*", re.IGNORECASE)
_ABOUT = re.compile(r"(?:approximately|about|around|roughly|only|exactly|also|therefore|thus|simply|just)\s+", re.IGNORECASE)
_NUMBER_WORDS = "zero one two three four five six seven eight nine ten eleven twelve".split()
_SPELLED = re.compile(rf"\b(?:{'|'.join(_NUMBER_WORDS)})\b", re.IGNORECASE)
_SCALE = r"(?:\s+(?:hundred|thousand|million|billion|trillion|dozen)\b)?"
_NUMBER = re.compile(rf"(?<![\w.,/^*+=-])[-−]?\$?(?:{PLAIN})(?:\s*(?:%|°)|{_SCALE})(?![\w/^*+=]|-[\w]|[.,:]\d)")  # noqa: RUF001
_DATE = re.compile(
    r"\b(?:in|of|from|to|between|and|since|by|until|through|for|during|over|year|january|february|march|april|may|june"
    r"|july|august|september|october|november|december|\d{1,2},)\s+(?:1[5-9]|20)\d\d\b(?!\s*%)|\(\s*(?:1[5-9]|20)\d\d\s*\)",
    re.IGNORECASE,
)
_EXISTS = re.compile(r"\bthere\s+(?:is|are|was|were|will be)\s+(?:a total of\s+|only\s+|about\s+)?", re.IGNORECASE)


def is_sentence(text: str) -> bool:
    """Return whether the text is one sentence: four words or more, none of them a hedge, and no second sentence."""
    return len(_WORD.findall(text)) >= 4 and not _BOUNDARY.search(text) and not HEDGE.search(text)


def stated_number(text: str) -> str | None:
    """Return the number that one sentence states, with its percent sign or scale ("187 million"), or None.

    It is the only number of the sentence besides years in phrases such as "in 2012"; else the one that ends the sentence
    behind its only verb of being, or follows "there are". Numbers from zero to twelve may be words.
    """
    text = _SPELLED.sub(lambda word: str(_NUMBER_WORDS.index(word[0].lower())), unwrap(text).replace("**", ""))
    if not is_sentence(text) or not text[0].isalpha():
        return None
    numbers = [match[0] for match in _NUMBER.finditer(_DATE.sub("", text))]
    if len(numbers) == 1 and len(NUMERAL.findall(_DATE.sub("", text))) == 1:
        return numbers[0]
    for verb in (_EXISTS, _STATES):
        verbs = list(verb.finditer(text))
        if len(verbs) == 1 and (number := _NUMBER.match(text, _behind(text, verbs[0].end()))):
            rest = text[number.end() :]
            if verb is _EXISTS or not NUMERAL.search(_DATE.sub("", rest)):
                return number[0]
    return None


def _behind(text: str, start: int) -> int:
    about = _ABOUT.match(text, start)
    return about.end() if about else start
