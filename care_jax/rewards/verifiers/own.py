"""Verifiers that users write: answer_kind "module:function" in the data, and in `verify.allow` of the config.

    from care_jax.rewards.verifiers import answer_verifier

    @answer_verifier
    def same_colour(given: str, gold: str) -> tuple[bool, bool, str]:
        return given.casefold() == gold.casefold(), True, "compared"

Data must never run code. So a function is imported only if the config lists it, which `require_allowed` checks before
the import, and called only if it is marked as a verifier.
"""

from __future__ import annotations

import functools
import importlib
from collections.abc import Callable, Collection, Sequence
from typing import TypeVar

from care_jax.errors import InputError, shown
from care_jax.rewards.verifiers.verdict import Verdict, refusal

_Function = TypeVar("_Function", bound=Callable)
OwnVerifier = Callable[[str, str], tuple[bool, bool, str]]
_marked: list[OwnVerifier] = []
_LONGEST_REASON = 80  # characters


def answer_verifier(function: OwnVerifier) -> OwnVerifier:
    """Mark a function (given, gold) -> (correct, parsed, reason) as one that data may name."""
    _marked.append(function)
    return function


def require_allowed(kind: str, allow: Collection[str]) -> None:
    """Refuse a kind that names a function which is not in `allow`, the config's verify.allow; imports nothing.

    Raises:
        InputError: it does.
    """
    if ":" in kind and kind not in allow:
        listed = ", ".join(allow) or "which is empty"
        raise InputError(
            f"answer_kind {shown(kind)} is not in verify.allow ({listed}); data may name only functions that the "
            "config lists"
        )


def verify(kind: str, given: str, gold: str) -> Verdict:
    """Judge with the function that `kind` names; an exception in it gives a verdict neither correct nor parsed.

    Raises:
        InputError: `kind` does not name a marked function.
    """
    function = load(kind)
    refused = refusal(given, control_allowed=True)
    if refused:
        return refused
    try:
        correct, parsed, reason = function(given, gold)
        # bool() would take "no" for true, and a text of three letters for a verdict.
        if correct not in (True, False) or parsed not in (True, False):
            raise TypeError
        return Verdict(bool(correct), bool(parsed), " ".join(str(reason)[:_LONGEST_REASON].split()))
    except (Exception, SystemExit) as error:  # any failure of the user's code costs this item alone
        return Verdict(False, False, f"{kind} raised {type(error).__name__}")


@functools.cache
def load(kind: str) -> OwnVerifier:
    """Return the function that `kind` names.

    Raises:
        InputError: it cannot be imported, or is not marked with `answer_verifier`.
    """
    return import_marked(kind, _marked, f"answer_kind {shown(kind)}", "care_jax.rewards.verifiers.answer_verifier")


def import_marked(name: str, marked: Sequence[_Function], described: str, mark: str) -> _Function:
    """Import the function that "module:function" names, if it is one of those that a decorator has marked.

    Args:
        name: the function.
        marked: what the decorator has marked; it grows with the import.
        described: begins the message of an error.
        mark: the decorator's name.

    Raises:
        InputError: it cannot be imported, or is not marked.
    """
    module, _, attribute = name.partition(":")
    try:
        function = getattr(importlib.import_module(module), attribute)
    except (Exception, SystemExit) as error:  # the module's own code runs here
        raise InputError(f"{described} cannot be imported: {shown(error)}") from error
    if not any(function is one for one in marked):
        raise InputError(f"{described} is not marked with @{mark}")
    return function
