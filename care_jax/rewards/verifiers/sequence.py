"""Answers that are lists: [2014, 2016], (3, -4), or {1, 2}, whose order does not matter."""

from __future__ import annotations

import re

from care_jax.errors import InputError
from care_jax.rewards.verifiers import number, text
from care_jax.rewards.verifiers.reading.quantity import agree, without_name
from care_jax.rewards.verifiers.reading.wrapping import unwrap
from care_jax.rewards.verifiers.verdict import CORRECT, UNPARSED, WRONG, Verdict, refusal

_BRACKETS = {"[": "]", "(": ")", "{": "}"}
_COMMAND = re.compile(r"\\(?:left|right)(?![A-Za-z])|\\(?=[{}])")
_AND = re.compile(r",?\s+(?:and|&)\s+", re.IGNORECASE)
_AND_OR = re.compile(r",?\s+(?:and|or|&)\s+", re.IGNORECASE)


def verify(given: str, gold: str, *, tolerance: float) -> Verdict:
    """Compare an answer with the gold entry by entry; both must have the same number of entries.

    Entries are separated by semicolons, or by commas if there are none, or by "and"; brackets around the whole may be
    left out. An entry of the gold that is a whole number must be met exactly, another number within the relative
    tolerance, and a word as `text.plain`. Braces around the gold free the order, and allow "or".

    Raises:
        InputError: the gold is not a flat list.
    """
    wanted, ordered = _read_gold(gold)
    refused = refusal(given)
    if refused:
        return refused
    found = _entries(given, _AND if ordered else _AND_OR)
    if found is None:
        return UNPARSED
    if len(found) != len(wanted):
        return WRONG
    if ordered:
        return CORRECT if all(map(_equals, found, wanted, [tolerance] * len(wanted))) else WRONG
    for entry in wanted:
        match = next((candidate for candidate in found if _equals(candidate, entry, tolerance)), None)
        if match is None:
            return WRONG
        found.remove(match)
    return CORRECT


def _read_gold(gold: str) -> tuple[list[str], bool]:
    ordered = not _bare(gold).startswith("{")
    wanted = None if refusal(gold) else _entries(gold, _AND if ordered else _AND_OR)
    if not wanted:
        raise InputError(
            f'the gold {gold[:80]!r} is not a list; write it like "[2014, 2016]", or "{{1, 2}}" if the order does '
            'not matter, or use answer_kind "latex"'
        )
    return wanted, ordered


def _bare(answer: str) -> str:
    return _COMMAND.sub("", without_name(unwrap(answer))).strip()


def _entries(answer: str, conjunction: re.Pattern[str]) -> list[str] | None:
    """Return the entries; None if one is empty or a bracket is left over, as in nested lists."""
    listed = _bare(answer)
    if listed[-1:] and _BRACKETS.get(listed[:1]) == listed[-1]:
        listed = listed[1:-1]
    separator = ";" if ";" in listed else ","
    entries = [entry.strip().strip("'\"") for entry in conjunction.sub(separator, listed).split(separator)]
    readable = all(entry and (number.read_number(entry) or not set(entry) & set("[](){}")) for entry in entries)
    return entries if readable else None


def _equals(given: str, gold: str, tolerance: float) -> bool:
    wanted, found = number.read_number(gold), number.read_number(given)
    if wanted is None:
        return text.plain(given) == text.plain(gold)
    if found is None or (found.unit and wanted.unit and found.unit != wanted.unit):
        return False
    return agree(found, wanted, 0.0 if wanted.value.denominator == 1 else tolerance)
