"""One hostile input and its outcome."""

from __future__ import annotations

import dataclasses
import enum
import signal
import traceback
from collections.abc import Callable, Iterator
from typing import NoReturn

from care_jax.errors import InputError

SECONDS = 20.0  # that one input may take


class Outcome(enum.StrEnum):
    """The end of an attempt to use an input."""

    RIGHT = "right"  # read, and what was read is what an independent reading says
    REFUSED = "refused"  # one clear line
    TRACEBACK = "traceback"  # an error that is not the input's, or one of several lines
    WRONG = "wrong"  # read as something else, or never ended


@dataclasses.dataclass(frozen=True)
class Case:
    """One input."""

    name: str  # says how to make it again: the file, the damage, its number
    use: Callable[[], bool]  # reads it: True if the result is right; raises InputError to refuse it


@dataclasses.dataclass(frozen=True)
class Result:
    """The outcome of a case, and for a bad one what was seen."""

    case: str
    outcome: Outcome
    seen: str = ""


class _OutOfTime(BaseException):
    """The case has had its seconds. No `except Exception` of a reader may swallow it."""


def run_case(case: Case) -> Result:
    """Uses the input in this process; call it in the main thread, since it sets an alarm."""

    def end(*_: object) -> NoReturn:
        raise _OutOfTime

    previous = signal.signal(signal.SIGALRM, end)
    signal.setitimer(signal.ITIMER_REAL, SECONDS)
    try:
        is_right = case.use()
    except InputError as error:
        lines = str(error).splitlines()
        if len(lines) == 1 and str(error).isprintable():
            return Result(case.name, Outcome.REFUSED, str(error))
        return Result(case.name, Outcome.TRACEBACK, f"a message of {len(lines)} lines or unprintable: {error!r}")
    except _OutOfTime:
        return Result(case.name, Outcome.WRONG, f"not done after {SECONDS:g} s")
    except Exception:
        return Result(case.name, Outcome.TRACEBACK, traceback.format_exc(limit=-3))
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0.0)
        signal.signal(signal.SIGALRM, previous)
    return Result(case.name, Outcome.RIGHT if is_right else Outcome.WRONG)


def run_cases(cases: Iterator[Case]) -> Iterator[Result]:
    """The results, in order; a case is made when its turn comes."""
    return map(run_case, cases)
