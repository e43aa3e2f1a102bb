"""Answers that name one option, by its letter, its text, or both."""

from __future__ import annotations

import re

from care_jax.errors import InputError
from care_jax.rewards.verifiers import text
from care_jax.rewards.verifiers.reading.wrapping import unwrap
from care_jax.rewards.verifiers.verdict import AMBIGUOUS, CORRECT, UNPARSED, WRONG, Verdict, refusal

LETTERS = "ABCDEFGHIJKL"
_LETTER = re.compile(r"(?:(?:option|choice) )?(?:\(([a-l])\)|\[([a-l])\]|([a-l]))[.:)]?")
_LETTER_AND_TEXT = re.compile(
    r"(?:(?:option|choice) )?(?:\(([a-l])\)[.:]?|\[([a-l])\][.:]?|([a-l])(?:[.:)]|(?P<unmarked> ))) ?(?P<text>.+)"
)
_IN_BRACKETS = re.compile(r"\([A-L]\)")
_MENTION = re.compile(r"(?<![a-z])[a-l](?![a-z])")
_COMMA = re.compile(r"\s*[,;]\s*(?:and\s+)?|\s+(?:and|&)\s+", re.IGNORECASE)
_COLLAPSED = re.compile(r"[A-L]{2,12}")
_HEDGE = re.compile(r"\b(?:or|and|not|either|both|neither|option|choice)\b")


def verify(given: str, gold: str, *, choices: tuple[str, ...] | None) -> Verdict:
    """Compare the option that an answer names with the gold, which is a letter or the text of an option.

    It reads "B", "(b)", "B.", "option B", "B. text", "B text" and "text". If the text belongs to another option than
    the letter, or two options have that text, the answer names two options and is wrong. Without `choices` a text after
    the letter is not checked, but it must not mention another letter. A gold of several options, "A, C", needs all of
    them, in any order. If an option's text is a letter, as in "A. C", a lone "C" names two options; a gold in brackets,
    "(C)", says that letters were asked for, and "C" then names the third option.

    Raises:
        InputError: as `read_gold` does.
    """
    wanted = read_gold(gold, choices)
    refused = refusal(given)
    if refused:
        return refused
    named = _named_options(given, choices, letters_first=_asks_for_letters(gold))
    if len(wanted) > 1:
        letters = _COLLAPSED.fullmatch(unwrap(given))
        named = _listed_options(",".join(letters[0]) if letters else given, choices)
    elif len(named) > 1:
        return AMBIGUOUS
    if not named:
        return UNPARSED
    return CORRECT if named == wanted else WRONG


def read_gold(gold: str, choices: tuple[str, ...] | None) -> set[int]:
    """Return the indices of the gold options.

    Raises:
        InputError: the gold names no option or contradicts itself.
    """
    if choices is not None and not 2 <= len(choices) <= len(LETTERS):
        raise InputError(f"{len(choices)} options given; a choice has 2 to {len(LETTERS)}, or None for unknown ones")
    named = set() if refusal(gold) else _named_options(gold, choices, letters_first=_asks_for_letters(gold))
    if len(named) == 1:
        return named
    listed = set() if refusal(gold) else _listed_options(gold, choices)
    if listed:
        return listed
    options = f"the options {list(choices)}" if choices is not None else f"the letters A to {LETTERS[-1]}"
    problem = "more than one" if named else "none"
    raise InputError(
        f"the gold {gold[:80]!r} names {problem} of {options}; give one letter or one whole option text, or several "
        "with commas between them if all are needed"
    )


def _asks_for_letters(gold: str) -> bool:
    return _IN_BRACKETS.fullmatch(gold.strip()) is not None


def _listed_options(answer: str, choices: tuple[str, ...] | None) -> set[int]:
    """Return the options of a list like "A, C" or "A and C"; none if an entry does not name exactly one."""
    entries = _COMMA.split(unwrap(answer))
    named = [_named_options(entry, choices) for entry in entries]
    once = {index for options in named for index in options}
    return once if all(len(options) == 1 for options in named) and len(once) == len(entries) else set()


def _named_options(answer: str, choices: tuple[str, ...] | None, *, letters_first: bool = False) -> set[int]:
    """Return the indices of every option that the answer can be read as; two if it contradicts itself."""
    options = [] if choices is None else [_plain(option) for option in choices]
    num_options = len(LETTERS) if choices is None else len(options)
    spaced = text.normalise(unwrap(answer))
    named = {i for i, option in enumerate(options) if option and option == _plain(answer)}
    letter = _LETTER.fullmatch(spaced)
    if letter and (_index(letter) < num_options or not named):
        named = {_index(letter)} | (set() if letters_first else named)
    elif not named and (letter := _LETTER_AND_TEXT.fullmatch(spaced)):
        named = _letter_with_text(letter, options)
    return named if all(i < num_options for i in named) else set()


def _letter_with_text(match: re.Match[str], options: list[str]) -> set[int]:
    index, words = _index(match), match["text"]
    same = {i for i, option in enumerate(options) if option == _plain(words)}
    if index in same:
        return {index}  # the letter decides between options of one text
    others = same | {LETTERS.index(letter.upper()) for letter in _MENTION.findall(words)}
    if others - {index}:
        return others | {index}
    # Without a list of options, the text after the letter cannot be compared with its option.
    unchecked = not options and not others and not match["unmarked"] and not _HEDGE.search(words)
    return {index} if unchecked else set()


def _index(match: re.Match[str]) -> int:
    return LETTERS.index((match[1] or match[2] or match[3]).upper())


def _plain(answer: str) -> str:
    """Return the text of an option for comparing; LaTeX without its spaces, which carry no meaning."""
    plain = text.normalise(unwrap(answer))
    return plain.replace(" ", "") if "\\" in plain else plain
