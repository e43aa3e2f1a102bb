"""Finds the options of a multiple-choice question that an answer names: by letter, by text or value, in a sentence.

Whatever else an answer holds, an option that it mentions beside the one it names makes it name two.
"""

from __future__ import annotations

import functools
import re
import unicodedata

from care_jax.rewards.verifiers.reading.evaluation import are_close, values
from care_jax.rewards.verifiers.reading.quantity import Quantity, agree, read_quantity, read_ratio
from care_jax.rewards.verifiers.reading.sentences import (
    HEDGE,
    SPELLED_OUT,
    main_clause,
    predicate,
    stated_value,
    without_explanation,
    without_reason,
)
from care_jax.rewards.verifiers.reading.spelling import canonical
from care_jax.rewards.verifiers.reading.wrapping import unwrap

LETTERS = "ABCDEFGHIJKL"
_COMMANDS = r"\\(?:text|textbf|textrm|textit|mathrm|mathbf|mathsf|bf|mbox|boxed|fbox)"
# A capital alone in a wrapper is marked: \text{D}, **B**.
_WRAPPED_LETTER = re.compile(
    rf"{_COMMANDS}\s*\{{\s*\(?([A-L])\)?[.:]?\s*\}}|\*\*\(?([A-L])[).:]{{0,2}}\*\*|(?<!\w)([A-L])\*\*"
)
_WRAPPED = re.compile(rf"{_COMMANDS}\s*\{{([^{{}}]*)\}}")
_DELIMITER = re.compile(r"((?<!\\)(?:\\\\)*)(?:\\[()\[\]]|\\q?quad)|\*\*")  # behind a line break, "\\\\", stands "("
_DOLLAR = re.compile(r" \$(?!\s?[0-9])")
_NAMED = r"(?:(?:the )?(?:option|choice|answer|letter)\s+)?"
_BRACKETED = r"\((?P<round>[a-l])\)|\[(?P<square>[a-l])\]"
_LETTER = re.compile(rf"{_NAMED}(?:{_BRACKETED}|(?P<bare>[a-l]))[.:)]?", re.IGNORECASE)
_MARK = (
    r"(?P<mark>[.:)]|,(?= (?:which|since|because|as|so) )|(?= (?:since|because) ))|(?= ?\()|(?P<unmarked> |, (?=\w{2}))"
)
_LETTER_AND_TEXT = re.compile(
    rf"{_NAMED}(?:(?:{_BRACKETED})[.:,]?|(?P<bare>[a-l])(?:{_MARK})) ?(?P<text>.+)", re.IGNORECASE
)
# "Tokyo (D)", "1.9, corresponding to option D"
_TEXT_AND_LETTER = re.compile(
    r"(?!\(?[A-La-l][.:)])(?P<text>.+?),? \((?P<round>[A-L])\)"
    r"|(?P<said>.+?),? (?:which is|corresponding to|matching|i\.e\.,?) (?:option|choice|letter) \(?(?P<bare>[A-L])\)?"
)
_QUOTED = re.compile(r"[\"“]([^\"“”]*)[\"”]")
# Capitals that stand alone are mentions, except the article at the head of a sentence, and letters of a formula.
_MENTION = re.compile(r"(?<![\w^_{'’+*/=<>-])([A-L])(?![\w'’^_}]|\s*[-+*/=<>])")  # noqa: RUF001
_LONE_CAPITAL = re.compile(r"(?<!\w)[A-L](?!\w)")
_NOT_BEHIND_AN_ARTICLE = (
    r"(?:is|was|are|were|be|and|or|nor|not|but|plus|vs|versus|aka|also|too|either|neither|both|can|could|would|might|may|must"
    r"|should|will|shall|has|had|have|do|does|did|if|when|while|because|since|as|although|though|however|so|thus|hence|then"
    r"|with|without|for|in|on|at|of|to|by|from|instead|rather|maybe|perhaps|possibly|probably|the|this|that|which|it|i|we|und"
    r"|oder|fits|works|seems|looks|appears|shows|describes|contains|matches|satisfies|gives|equals|means|represents)\b"
)
# "A red car", "sample A has more", but not "A is possible too"
_ARTICLE = re.compile(
    rf"A(?= (?!{_NOT_BEHIND_AN_ARTICLE})[a-z])"
    r"|(?<=[a-z] )(?<!\b[Bb]ut )(?<!\b[Aa]nd )(?<!\b[Oo]r )(?<!\b[Tt]hat )"
    r"A(?= (?!(?:and|or|nor|not|but|plus|vs|versus|aka|also|too|und|oder)\b)[a-z])"
)
_OWN_LETTER = re.compile(r"\(?([A-L])[.):]\s*")
_IN_PARENTHESES = re.compile(r"\(([A-L])\)")
# Set apart behind a value: "It is 40, B.", "40 [B]", "40 and B", "40 b)", but not the unit of "5 A" or "5 J/K"
_LETTER_APART = re.compile(
    r"(?:(?:^|[)\]])\s*and|[,;:&|(\[{<`'*_【]|\s/)\s*([A-L])(?=\s*(?:[)\]}>`'*_】.,;:!&|]|$))|(?<!\w)([A-La-l])[)\]]|([Ⓐ-Ⓛⓐ-ⓛ])"
)
_WORD = re.compile(r"[^\W\d_]{2,}")
_FORMULA = re.compile(r"[\\{}_=<>`\[\]]")
_VERB = re.compile(r"^(?:is|was|equals|=|≈|\\approx)\s*")
_ENDING_VERB = re.compile(r"\s+(?:is|was|equals):?$")
_RELATION = re.compile(r"=|≈|\\approx")
_YES_OR_NO = re.compile(r"(?:yes|no|true|false)")
_LETTERS = re.compile(r"(?<![\\A-Za-z])[A-Za-z]")


def named_options(answer: str, options: tuple[str, ...] | None, *, letters_first: bool = False) -> set[int]:
    """Return the indices of every option that the answer can be read as; two or more if it contradicts itself.

    Args:
        answer: the text to read.
        options: the texts of the options, None if they are unknown.
        letters_first: a lone letter is the option's letter, even if an option's text is a letter.
    """
    texts = () if options is None else without_letters(options)
    num_options = len(LETTERS) if options is None else len(texts)
    bare = _strip_marks(answer)
    by_text = _with_text(answer, texts) or _with_text(_QUOTED.sub(r"\1", answer), texts)
    letter = _LETTER.fullmatch(bare)
    if letter and (_index(letter) < num_options or not by_text):
        named = {_index(letter)} | (set() if letters_first else by_text)
    elif by_text:
        named = by_text
    elif letter := _TEXT_AND_LETTER.fullmatch(bare):
        named = _letter_behind_text(letter, texts)
    elif (letter := _LETTER_AND_TEXT.fullmatch(bare)) and not (letter["unmarked"] and _index(letter) >= num_options):
        named = _letter_with_text(_index(letter), letter["text"], texts, is_marked=_is_marked(letter, texts))
    else:
        named = _with_value(answer, texts)
        if named and (relation := _RELATION.search(answer)):
            named |= named_options(answer[: relation.start()], options)  # "B = 40" names two, if 40 is C
        named = named or _in_sentence(bare, texts)
    return named if all(index < num_options for index in named) else set()


@functools.lru_cache(maxsize=1024)
def without_letters(options: tuple[str, ...]) -> tuple[str, ...]:
    """Return the texts of the options, without their letters if each carries its own: "A. 12 cm"."""
    heads = [_OWN_LETTER.match(option) for option in options]
    if all(head and LETTERS.index(head[1]) == index for index, head in enumerate(heads)):
        return tuple(option[head.end() :] for option, head in zip(options, heads, strict=True) if head)
    return options


def same_options(named: set[int], options: tuple[str, ...] | None) -> bool:
    """Return whether the named options have one text, so that an answer in words can't tell them apart."""
    return options is not None and len({_key(options[index]) for index in named}) == 1


def mentions_letters(answer: str) -> bool:
    """Return whether an answer names options by letters."""
    return bool(_mentioned_letters(_strip_marks(answer)))


def _mentioned_letters(text: str) -> set[int]:
    """Return the indices of the capitals that a text mentions, other than the article A."""
    return {LETTERS.index(letter) for letter in _MENTION.findall(_ARTICLE.sub("", text))}


def _strip_marks(answer: str) -> str:
    r"""Return the answer without LaTeX's and Markdown's wrappers; a wrapped letter keeps a mark: \text{D} is (D)."""
    text = _WRAPPED_LETTER.sub(lambda m: f"({m[1] or m[2] or m[3]}) ", unwrap(answer))
    for _ in range(3):
        text = _WRAPPED.sub(r" \1 ", text)
        text = _WRAPPED_LETTER.sub(lambda m: f"({m[1] or m[2] or m[3]}) ", text)
    text = _QUOTED.sub(r"\1", _DELIMITER.sub(r"\1 ", text)).replace("$", " $")
    text = _DOLLAR.sub("", text)
    return " ".join(unwrap(text).split())


def _letter_with_text(index: int, words: str, options: tuple[str, ...], *, is_marked: bool) -> set[int]:
    """Return the option of a letter with text beside it; several if the text names another, none if it is in doubt."""
    if options and index >= len(options):
        return set()
    own = options[index] if options else ""
    unreasoned = without_reason(words)
    said = _VERB.sub("", unreasoned)
    same = _with_text(words, options) or _with_text(said, options) or _with_value(said, options)
    if index in same:
        same = {index}  # the letter decides between options of one text
        if unreasoned == words:
            return same
    in_reasons = _mentioned_letters(words[len(unreasoned) :]) & set(range(len(options) or len(LETTERS)))
    others = (_mentioned_letters(unreasoned) | in_reasons) - _mentioned_letters(own)
    others |= same | {i for i in _mentioned(words, options) if options[i].casefold() not in own.casefold()}
    if own and (rest := words.removeprefix(own)) != words and rest[:1].isspace():
        others |= _with_text(rest, options) or _with_value(rest, options)  # "A. 1 1/2" names 1 and 1/2, not 1.5
    if others - {index}:
        return others | {index}
    if index in same or index in _with_text(said.partition(",")[0], options):
        return {index}  # reasons may follow
    is_text = said == unreasoned and (not options or _key(own).startswith(_key(said)))  # of the option: "B. No"
    doubts = set() if is_text and _YES_OR_NO.fullmatch(_key(said)) else _hedges(said) - _hedges(own)
    return {index} if is_marked and not doubts else set()


def _letter_behind_text(match: re.Match[str], options: tuple[str, ...]) -> set[int]:
    """Return the option of a letter behind a text, where letters of formulas are mentions too: "C / (A)" names two."""
    index = LETTERS.index(match["round"] or match["bare"])
    words = _ENDING_VERB.sub("", match["text"] or match["said"])  # "40 is (C)"
    own = options[index] if index < len(options) else ""
    others = {LETTERS.index(letter) for letter in _LONE_CAPITAL.findall(_ARTICLE.sub("", words))}
    others -= {LETTERS.index(letter) for letter in _LONE_CAPITAL.findall(own)}
    return others | {index} if others - {index} else _letter_with_text(index, words, options, is_marked=True)


def _is_marked(letter: re.Match[str], options: tuple[str, ...]) -> bool:
    """Return whether a letter before a text is marked as one: "B. red", but not "B red" nor "b. red"."""
    # A colon is no mark beside known options: "A: No" says "Answer: No".
    has_mark = not letter["unmarked"] and (letter["mark"] != ":" or not options)
    return has_mark and (_letter_of(letter).isupper() or not options)


def _in_sentence(bare: str, options: tuple[str, ...]) -> set[int]:
    """Return the options that a sentence names: "So it is (B).", "No, it is round.", "The red car is faster."."""
    if not options or (num_words := len(_WORD.findall(bare))) < 2:
        return set()
    letters = _mentioned_letters(bare)
    marked = {LETTERS.index(letter) for letter in _IN_PARENTHESES.findall(bare)}
    mentioned = _mentioned(bare, options)
    head = without_reason(bare.split(",")[0])
    named = _with_text(head, options)
    if _YES_OR_NO.match(head.casefold()) and len(named) == 1 and mentioned | letters <= named:
        return named
    if (stated := stated_value(bare)) and len(named := _with_value(stated, options)) == 1:
        in_words = {i for i in mentioned if _value(options[i]) is None}  # other numbers may be years or workings
        rest = bare[_last_end(rf"(?<![\w.]){re.escape(stated)}|{SPELLED_OUT.pattern}", bare) :]
        if marked := marked | _letters_apart(rest):
            marked |= _mentioned_letters(rest)  # in "40 (C) B." too
        return named if in_words | marked <= named and not _is_compared(bare, stated) else set()
    if (said := predicate(bare)) and len(named := _as_predicate(said.says, options)) == 1:
        return named if _with_value(said.subject, options) | mentioned | marked <= named else set()  # "2.83 is (A)"
    if num_words < 3 or HEDGE.search(main_clause(without_explanation(bare))) or _FORMULA.search(bare):
        return set()
    if marked:
        return marked | mentioned | letters
    words = {i for i in mentioned if not (_YES_OR_NO.fullmatch(_key(options[i])) or _is_compared(bare, options[i]))}
    return words if mentioned == words and not letters else set()


def _last_end(pattern: str, text: str) -> int:
    """Return where the last match ends; 0 without one."""
    return max((match.end() for match in re.finditer(pattern, text, re.IGNORECASE)), default=0)


def _letters_apart(text: str) -> set[int]:
    """Return the indices of the letters that are set apart in what follows a value."""
    found = ("".join(groups) for groups in _LETTER_APART.findall(text))
    return {LETTERS.index(unicodedata.normalize("NFKC", letter).upper()) for letter in found}


def _as_predicate(says: str, options: tuple[str, ...]) -> set[int]:
    if letter := _LETTER.fullmatch(says):
        return {_index(letter)} if _letter_of(letter).isupper() else set()
    if letter := _LETTER_AND_TEXT.fullmatch(says):
        return _letter_with_text(_index(letter), letter["text"], options, is_marked=_is_marked(letter, options))
    return _with_text(says, options) or _with_value(says, options)


def _mentioned(text: str, options: tuple[str, ...]) -> set[int]:
    """Return the options whose text the words of `text` contain, without those inside a longer one."""
    words = f" {_key(text)} "
    found = {i for i, option in enumerate(options) if _key(option) and _bordered(_key(option)).search(words)}
    return {i for i in found if not any(_key(options[i]) in _key(options[j]) != _key(options[i]) for j in found)}


def _is_compared(text: str, option: str) -> bool:
    """Return whether the text measures something against the option: "It is more than 45°.", "It is almost blue."."""
    almost = r"(?:almost|nearly|virtually|practically)(?: (?:\w+ly|all|a bit))?"
    measure = rf"\b(?:than|twice|double|half(?: of)?|but|{almost}) (?:the |an? )?"
    return re.search(measure + re.escape(_key(option)), _key(text)) is not None


@functools.lru_cache(maxsize=4096)
def _bordered(words: str) -> re.Pattern[str]:
    before = r"(?<!\w)" if words[0].isalpha() else r"(?<![\w.])" if words[0].isalnum() else r"(?<![0-9.])"
    after = r"(?!\w|\.\d|/\d)" if words[-1].isalnum() else r"(?!\.?\d|/\d)"  # "\frac{1}{2} is" is spelled without space
    return re.compile(rf"{before}{re.escape(words)}{after}")  # a part of 5\pi/2 is not 5\pi


def _with_text(answer: str, options: tuple[str, ...]) -> set[int]:
    """Return the options that have the answer's text; those in its case if there are any: R is not r."""
    exact, key = _spelling(answer), _key(answer)
    same = {i for i, option in enumerate(options) if key and _key(option) == key}
    return {i for i in same if _spelling(options[i]) == exact} or same


def _with_value(answer: str, options: tuple[str, ...]) -> set[int]:
    r"""Return the options that have the answer's value, in whatever spelling; an option without a unit fits any unit.

    An option may be arithmetic, "3 \cdot 2^5", whose result is the answer; the answer itself may not.
    """
    found = _value(_strip_parentheses(answer)) if options else None
    if found is None:
        return set()
    same = {i for i, option in enumerate(options) if _agrees(found, _value(option))}
    results = [None if _LETTERS.search(option) or _value(option) else values(canonical(option)) for option in options]
    return same or {i for i, result in enumerate(results) if result and are_close(result[0], float(found.value))}


def _key(text: str) -> str:
    return _spelling(text).casefold()


def _spelling(text: str) -> str:
    return canonical(_strip_parentheses(text))


@functools.lru_cache(maxsize=4096)
def _value(text: str) -> Quantity | None:
    return read_ratio(text) or read_quantity(text, fractions_allowed=True)


def _agrees(found: Quantity, wanted: Quantity | None) -> bool:
    return (
        wanted is not None
        and not (found.unit and wanted.unit and found.unit != wanted.unit)
        and agree(found, wanted, 0)
    )


def _strip_parentheses(text: str) -> str:
    text = text.strip()
    return text[1:-1] if text.startswith("(") and text.find(")") == len(text) - 1 and "," not in text else text


def _hedges(text: str) -> set[str]:
    return {word.casefold() for word in HEDGE.findall(text)}


def _letter_of(match: re.Match[str]) -> str:
    return match["round"] or match["square"] or match["bare"]


def _index(match: re.Match[str]) -> int:
    return LETTERS.index(_letter_of(match).upper())
