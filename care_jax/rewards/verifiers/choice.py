"""Answers that name one option, by its letter, its text, or both."""

from __future__ import annotations

import re
from collections.abc import Sequence

from care_jax.errors import InputError
from care_jax.rewards.verifiers.reading.options import LETTERS, mentions_letters, named_options, same_options
from care_jax.rewards.verifiers.reading.wrapping import unwrap
from care_jax.rewards.verifiers.verdict import AMBIGUOUS, CORRECT, UNPARSED, WRONG, Verdict, refusal

_IN_BRACKETS = re.compile(r"\([A-L]\)")
_COMMA = re.compile(r"\s*[,;]\s*(?:and\s+)?|\s+(?:and|&)\s+", re.IGNORECASE)
_COLLAPSED = re.compile(r"[A-L]{2,12}")


def verify(given: str, golds: Sequence[str], *, choices: tuple[str, ...] | None) -> Verdict:
    """Compare the option that an answer names with the gold, which is a letter or the text of an option.

    It reads "B", "(b)", "B.", "option B", "B. text", "B text", the text or its value alone, and a sentence that
    mentions one option. A marked capital letter decides, "B. text", unless the text is another option's, mentions
    another letter, or takes the answer back. An answer that names two options is wrong; one that fits several of one
    text is right only if all of them are golds. A gold of several options, "A, C", needs all of them, in any order. If
    an option's text is a letter, as in "A. C", a lone "C" names two options; a gold in brackets, "(C)", says that
    letters were asked for, and "C" then names the third option.

    Args:
        given: the answer.
        golds: one or several accepted answers.
        choices: the texts of the options, or None if they are unknown.

    Raises:
        InputError: as `read_gold` does.
    """
    wanted = [read_gold(gold, choices) for gold in golds]
    refused = refusal(given)
    if refused:
        return refused
    named = named_options(given, choices, letters_first=any(map(_asks_for_letters, golds)))
    several_wanted = any(len(options) > 1 for options in wanted)
    if several_wanted:
        letters = _COLLAPSED.fullmatch(unwrap(given))
        listed = _listed_options(",".join(letters[0]) if letters else given, choices)
        named = listed if listed or len(named) > 1 else named
    if named in wanted:
        return CORRECT
    if len(named) > 1 and not several_wanted:
        all_golds = named <= set().union(*wanted) and same_options(named, choices) and not mentions_letters(given)
        return CORRECT if all_golds else AMBIGUOUS
    return WRONG if named else UNPARSED


def read_gold(gold: str, choices: tuple[str, ...] | None) -> set[int]:
    """Return the indices of the gold options.

    Raises:
        InputError: the gold names no option or contradicts itself.
    """
    if choices is not None and not 2 <= len(choices) <= len(LETTERS):
        raise InputError(f"{len(choices)} options given; a choice has 2 to {len(LETTERS)}, or None for unknown ones")
    named = set() if refusal(gold) else named_options(gold, choices, letters_first=_asks_for_letters(gold))
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
    named = [named_options(entry, choices) for entry in entries]
    once = {index for options in named for index in options}
    return once if all(len(options) == 1 for options in named) and len(once) == len(entries) else set()
